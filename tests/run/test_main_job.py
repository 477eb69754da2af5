"""The study's grid, end to end, on tiny data in each set's real format."""

from pathlib import Path

import pandas as pd
import pytest
from data_files import hide_installed_data, write_all

from fgbench.cli.app import app
from fgbench.config.config import load_config
from fgbench.run.runner import run_configs

CONFIGS = Path(__file__).parents[2] / "configs"
GRID = sorted(
    f"{model}_{dataset}_{trainer}"
    for model in ("fc", "cnn", "vgg16", "resnet18")
    for dataset in ("mnist", "fmnist", "cifar10")
    for trainer in ("bp", "fg")
)


def test_the_grid_is_complete_and_set_as_in_the_study() -> None:
    for name in GRID:
        config = load_config(CONFIGS / f"{name}.yaml")
        assert config.name == name
        assert (config.epochs, config.batch_size, config.dataset.validation_fraction) == (100, 64, 0.2)
        assert (config.optimizer.name, config.optimizer.lr) == ("adam", 1e-3)
        assert config.schedule.name == "constant"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_loads(path: Path) -> None:
    if "sweeps" not in path.parts:
        load_config(path)


DEEP = [name for name in GRID if name.startswith(("vgg16", "resnet18")) and "_fmnist_" not in name]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.nightly) if name in DEEP else name for name in GRID]
)
def test_every_config_of_the_grid_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_all(tmp_path / "data")
    hide_installed_data(monkeypatch, tmp_path)
    overrides = ["epochs=1", "batch_size=16", f"results_dir={tmp_path / 'results'}"]
    if name.startswith(("vgg16", "resnet18")) and not name.startswith(("vgg16_cifar10", "resnet18_mnist")):
        overrides.append("model.width=8")  # full width for one dataset each, or this takes minutes
    config = load_config(CONFIGS / f"{name}.yaml", overrides)
    assert run_configs([config], data_dir=data, download=False).code == 0
    (metrics,) = (tmp_path / "results" / name).glob("s0-*/metrics.csv")
    row = pd.read_csv(metrics).iloc[0]
    assert row["train_loss"] > 0
    assert 0 <= row["test_accuracy"] <= 1
    assert row["peak_memory_mib"] > 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-o", "trainer.tangent=3"], "did you mean"),
        (["-o", "epochs=many"], "epochs"),
        (["-o", "model=fcc"], "fc, cnn, vgg16, resnet18"),
        (["--device", "cuda:77"], "cuda:77"),
        (["-o", "dataset=cifar10"], "cifar-10-batches-py"),
        (["--results", "file"], "is a file"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hide_installed_data(monkeypatch, tmp_path)
    Path("file").write_text("")
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises(SystemExit) as exit_:
        app(["run", str(CONFIGS / "demo_fg.yaml"), "--no-download", *arguments])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert expected in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) <= 3
    assert sorted(Path.cwd().rglob("*")) == before
