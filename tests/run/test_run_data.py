"""A run knows its data: it goes on with it, is skipped for it and is told it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_files import (
    hide_installed_data,
    write_binary_cifar10,
    write_cifar10,
    write_fashion_mnist,
    write_mnist,
)
from typer.testing import CliRunner

from fgbench.cli.app import app
from fgbench.datasets import download as download_module
from fgbench.storage.run_directory import RunDirectory
from fgbench.storage.state import load_state, save_state

ROOT = Path(__file__).parents[2]
CONFIG = """
dataset: {name: imagefolder, dir: pictures, size: 8, grey: true}
model: {name: fc, hidden: 4}
trainer: backprop
epochs: 2
batch_size: 8
device: cpu
threads: 1
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    hide_installed_data(monkeypatch, tmp_path)
    monkeypatch.setattr(download_module, "download", _no_network)
    return tmp_path / "work"


def _no_network(torchvision_class, root):
    raise AssertionError("nothing may be downloaded")


def write_pictures(root, per_class=10, classes=("a", "b", "c")):
    from PIL import Image

    dice = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in classes:
            for number in range(per_class):
                file = root / part / name / f"{number:03}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(dice.integers(0, 256, (8, 8), dtype=np.uint8)).save(file)


def fgbench(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def finished(place):
    write_pictures(place / "pictures")
    (place / "c.yaml").write_text(CONFIG)
    done = fgbench("run", "c.yaml")
    assert done.exit_code == 0, done.output
    assert "24 + 6 + 30 images, 3 classes, from " in done.output.splitlines()[0]
    [folder] = (place / "results" / "c").iterdir()
    return folder


def make_unfinished(folder):
    """As if the run had been killed after its first epoch."""
    directory = RunDirectory(folder)
    state, _ = load_state(folder, folder.name)
    directory.write_status("interrupted", epoch=1, epochs=2)
    (folder / "summary.json").unlink()
    shutil.copy(folder / "state-1.pt", folder / "state.pt")
    return state


def test_what_was_loaded_stands_in_env_json_and_in_the_state(finished, place):
    data = json.loads((finished / "env.json").read_text())["data"]
    assert data["source"] == str(place / "pictures")
    assert data["images"] == {"train": 30, "test": 30}
    assert data["classes"] == 3
    assert len(data["loaded"]) == len(data["content"]["train"]) == 64
    assert data.pop("largest_class") == pytest.approx({"train": 1 / 3, "val": 1 / 3, "test": 1 / 3}, abs=0.2)
    assert load_state(finished, finished.name)[0]["data"] == data


def test_a_finished_run_is_skipped_for_the_same_data_alone(finished, place):
    assert "finished already, skipped (--force repeats it)" in fgbench("run", "c.yaml").output
    shutil.rmtree(place / "pictures" / "train" / "c")
    shutil.rmtree(place / "pictures" / "test" / "c")
    before = (finished / "metrics.csv").read_bytes()
    for command in (("run", "c.yaml"),):
        refused = fgbench(*command)
        assert refused.exit_code == 2
        assert "finished already, but on other data" in refused.output
        assert "30 + 30 images then, 20 + 20 now; 3 classes then, 2 now" in refused.output
    assert (finished / "metrics.csv").read_bytes() == before
    assert fgbench("run", "c.yaml", "--force").exit_code == 0


def test_a_finished_run_whose_data_has_gone_is_skipped_and_says_so(place):
    write_mnist(place / "data")
    arguments = ("run", ROOT / "configs" / "fc_mnist_bp.yaml", "--epochs", 1, "-o", "model.hidden=4", "-o")
    arguments += ("device=cpu", "--no-download")
    first = fgbench(*arguments)
    assert "(not the official set, which has 60,000 + 10,000)" in first.output
    shutil.rmtree(place / "data")
    again = fgbench(*arguments)
    assert again.exit_code == 0
    assert "skipped (--force repeats it; its data is missing, so it was not compared)" in again.output


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda root: (root / "train" / "a" / "003.png").unlink(), "30 + 30 images then, 29 + 30 now"),
        (
            lambda root: shutil.copy(root / "train" / "a" / "003.png", root / "train" / "b" / "003.png"),
            "other images or labels in train",
        ),
        (
            lambda root: (root / "train" / "a" / "000.png").rename(root / "train" / "a" / "999.png"),
            "the same images in another order",
        ),
    ],
)
def test_an_unfinished_run_does_not_go_on_with_other_data(finished, place, change, told):
    make_unfinished(finished)
    change(place / "pictures")
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    refused = fgbench("run", "c.yaml")
    assert refused.exit_code == 2
    assert "this run started on other data" in refused.output
    assert told in refused.output
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before
    anew = fgbench("run", "c.yaml", "--no-resume")
    assert anew.exit_code == 0
    assert "resumes" not in anew.output


def test_the_state_refuses_other_data_even_without_env_json(finished, place):
    make_unfinished(finished)
    (finished / "env.json").unlink()
    (place / "pictures" / "train" / "a" / "003.png").unlink()
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    refused = fgbench("run", "c.yaml")
    assert refused.exit_code == 2
    assert "this run started on other data (state file): 30 + 30 images then, 29 + 30 now" in refused.output
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_a_damaged_env_json_does_not_keep_a_run_from_going_on(finished):
    make_unfinished(finished)
    directory = RunDirectory(finished)
    env = directory.read_env()
    directory.write_env(env | {"data": env["data"] | {"loaded": "0" * 64}})
    done = fgbench("run", "c.yaml")
    assert done.exit_code == 0, done.output
    assert "resumes after epoch 1" in done.output


def test_a_moved_folder_of_the_same_images_is_the_same_data(finished, place):
    make_unfinished(finished)
    (place / "data").mkdir()
    (place / "pictures").rename(place / "data" / "pictures")
    done = fgbench("run", "c.yaml")
    assert done.exit_code == 0, done.output
    assert "resumes after epoch 1" in done.output
    assert "changed since" not in done.output


def test_a_run_that_did_not_record_its_data_says_so_once_and_goes_on(finished):
    state = make_unfinished(finished)
    directory = RunDirectory(finished)
    directory.write_env({key: value for key, value in directory.read_env().items() if key != "data"})
    state, _ = load_state(finished, finished.name)
    save_state(finished, {key: value for key, value in state.items() if key != "data"}, 1)
    done = fgbench("run", "c.yaml")
    assert done.exit_code == 0, done.output
    assert done.output.count("was not recorded") == 1
    assert "data" in RunDirectory(finished).read_env()
    assert "recorded" not in fgbench("run", "c.yaml").output


def test_a_sweep_refuses_other_data_before_it_writes(place):
    write_pictures(place / "pictures")
    sweep = (
        "base:\n" + "".join(f"  {line}\n" for line in CONFIG.strip().splitlines()) + "axes:\n  seed: [0, 1]\n"
    )
    (place / "s.yaml").write_text(sweep)
    assert fgbench("run", "c.yaml").exit_code == 2
    (place / "c.yaml").write_text(CONFIG + "name: s\n")
    assert fgbench("run", "c.yaml").exit_code == 0
    (place / "pictures" / "train" / "a" / "003.png").unlink()
    before = sorted(place.rglob("*"))
    refused = fgbench("sweep", "s.yaml")
    assert refused.exit_code == 2
    assert "finished already, but on other data" in refused.output
    assert sorted(place.rglob("*")) == before


# Dry runs

CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if "sweeps" not in path.parts)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_dry_run_of_every_shipped_config_needs_neither_data_nor_network(path, place, monkeypatch):
    monkeypatch.setattr("fgbench.run.check.build_training", lambda *_: None)
    if "base:" in path.read_text():
        return
    done = fgbench("run", path, "--dry-run")
    assert done.exit_code == 0, done.output
    if "-mini" not in path.read_text():
        assert "unknown: the data is missing, `fgbench data fetch " in done.output
    assert not list(place.iterdir())


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem
)
def test_a_dry_run_of_every_shipped_sweep_needs_neither_data_nor_network(path, place, monkeypatch):
    monkeypatch.setattr("fgbench.sweep.estimate.build_training", _fail)
    done = fgbench("sweep", path, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "runs, 0 finished" in done.output
    assert "-mini" in path.read_text() or "unknown: the data is missing, `fgbench data fetch " in done.output
    assert not list(place.iterdir())


def _fail(*_):
    from fgbench.errors import ConfigError

    raise ConfigError("not built in this test")


# The shipped configs on data of each form


@pytest.mark.parametrize(
    ("write", "form"), [(write_cifar10, "pickled batches"), (write_binary_cifar10, "binary batches")]
)
def test_the_shipped_config_trains_on_cifar10_in_a_named_folder(place, write, form):
    write(place / "sets")
    done = fgbench(
        *("run", ROOT / "configs" / "fc_cifar10_bp.yaml", "--epochs", 1, "--data-dir", place / "sets"),
        *("-o", "model.hidden=4", "-o", "device=cpu"),
    )
    assert done.exit_code == 0, done.output
    assert "32 + 8 + 20 images, 10 classes, from " in done.output
    assert f"({form}) (not the official set" in done.output


def test_a_named_folder_with_something_else_is_refused_though_another_copy_is_near(place):
    write_fashion_mnist(place / "data")
    (place / "sets").mkdir()
    (place / "sets" / "notes.txt").write_text("nothing")
    config = ROOT / "configs" / "fc_fmnist_bp.yaml"
    refused = fgbench("run", config, "--epochs", 1, "--data-dir", place / "sets")
    assert refused.exit_code == 2
    assert "(which holds notes.txt)" in refused.output
    assert f"another copy is in {place / 'data'}" in refused.output
    assert not (place / "results").exists()
