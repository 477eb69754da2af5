"""The weights of a run, as a module and as a file; runs that degenerate; output that nobody reads."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

import fgbench
from fgbench.cli.app import app
from fgbench.config.config import Config
from fgbench.errors import FgbenchError
from fgbench.run.runner import run_configs
from fgbench.storage.run_directory import RunDirectory

SETTINGS = {
    "name": "tiny",
    "dataset": {"name": "synthetic", "shape": [1, 8, 8], "classes": 3, "train": 60, "test": 12},
    "model": {"name": "fc", "hidden": 6},
    "trainer": {"name": "backprop"},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "batch_size": 8,
    "epochs": 2,
    "device": "cpu",
}


def run(results: Path, **changes) -> tuple[int, RunDirectory]:
    code = run_configs([Config.model_validate(SETTINGS | {"results_dir": str(results)} | changes)]).code
    (folder,) = {path.parent for path in results.rglob("status.json")}
    return code, RunDirectory(folder)


def test_a_model_loaded_from_a_run_gives_the_accuracy_that_the_run_logged(tmp_path):
    _, directory = run(tmp_path)
    model = fgbench.load_model(directory.path)
    assert not model.training
    splits = fgbench_splits(directory)
    inputs, labels = splits.test.batch(torch.arange(len(splits.test)))
    accuracy = (model(inputs).argmax(1) == labels).double().mean()
    assert float(accuracy) == directory.read_metrics()[-1]["test_accuracy"]


def fgbench_splits(directory: RunDirectory):
    from fgbench.config.config import load_config
    from fgbench.datasets.base import load_splits
    from fgbench.datasets.search import DataSearch

    config = load_config(directory.path / "config.yaml")
    return load_splits(config.dataset, config.seed, torch.device("cpu"), DataSearch())


def test_exported_weights_are_a_plain_state_dict_that_torch_reads_safely(tmp_path):
    _, directory = run(tmp_path / "results")
    done = CliRunner().invoke(app, ["export", str(directory.path), "--out", str(tmp_path / "model.pt")])
    assert done.exit_code == 0, done.output
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    model = fgbench.load_model(tmp_path / "results")  # the only run in the folder
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert set(weights) == set(model.state_dict())


def test_a_folder_without_a_run_or_a_run_without_a_state_is_told_in_one_line(tmp_path):
    with pytest.raises(FgbenchError, match="no run in it"):
        fgbench.load_model(tmp_path)
    _, directory = run(tmp_path)
    for file in directory.path.glob("*.pt"):
        file.unlink()
    with pytest.raises(FgbenchError, match="no state file"):
        fgbench.load_model(directory.path)


def test_an_absurd_training_loss_counts_as_diverged_and_is_written_short(tmp_path, capsys):
    code, directory = run(tmp_path, optimizer={"name": "sgd", "lr": 1e5}, epochs=3)
    rows = directory.read_metrics()
    assert code == 4
    assert directory.status()["state"] == "diverged"
    assert not rows[-1]["train_loss"] <= 1e6
    numbers = [word for word in capsys.readouterr().out.split() if word.replace(".", "").isdigit()]
    assert numbers
    assert all(len(number) <= 10 for number in numbers)


def test_one_value_per_channel_under_batch_normalisation_is_refused_before_anything_is_written(tmp_path):
    config = tmp_path / "c.yaml"
    settings = SETTINGS | {"model": {"name": "resnet18", "width": 2}, "batch_size": 1}
    config.write_text(yaml.safe_dump(settings | {"results_dir": str(tmp_path / "results")}))
    refused = CliRunner().invoke(app, ["run", str(config)])
    assert refused.exit_code == 2
    assert "batch_size: 1" in refused.output
    assert "model.normalization: group" in refused.output
    assert not (tmp_path / "results").exists()
    well = CliRunner().invoke(app, ["run", str(config), "-o", "model.normalization=group", "--dry-run"])
    assert well.exit_code == 0


def test_a_reader_that_goes_away_does_not_stop_a_run(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(SETTINGS | {"results_dir": str(tmp_path / "results")}))
    command = f"'{sys.executable}' -m fgbench run '{config}' | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}"
    assert subprocess.run(["bash", "-c", command], check=False).returncode == 0
    (folder,) = {path.parent for path in (tmp_path / "results").rglob("status.json")}
    assert RunDirectory(folder).status()["state"] == "finished"
