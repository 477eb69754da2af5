"""The energy of an epoch in a run's files: where a counter moves, and only for an epoch measured whole."""

import itertools
import os
import signal

import pytest

import fgbench
from fgbench.config.config import Config
from fgbench.run.progress import EpochProgress
from fgbench.run.runner import run_configs
from fgbench.run.signals import Interrupted
from fgbench.storage.run_directory import RunDirectory
from fgbench.storage.state import load_state, save_state

SETTINGS = {
    "name": "tiny",
    "dataset": {"name": "synthetic", "shape": [1, 8, 8], "classes": 3, "train": 60, "test": 12},
    "model": {"name": "fc", "hidden": 6},
    "trainer": {"name": "backprop"},
    "batch_size": 8,
    "epochs": 3,
    "device": "cpu",
    "verify": False,
}


def run(results, **changes):
    [path] = run_configs([Config.model_validate(SETTINGS | {"results_dir": str(results)} | changes)]).paths
    return RunDirectory(path)


@pytest.fixture
def counter(monkeypatch):
    """A counter that moves by 2 J between any two readings."""
    readings = itertools.count(0, 2000)
    monkeypatch.setattr("fgbench.measure.energy._find_counter", lambda _: lambda: next(readings))


def test_where_there_is_no_counter_the_column_is_empty(tmp_path):
    directory = run(tmp_path)
    assert [row["energy_j"] for row in directory.read_metrics()] == [None] * 3
    assert directory.read_summary()["median"]["energy_j"] is None


def test_every_epoch_has_its_energy_without_what_saving_within_it_took(counter, tmp_path):
    directory = run(tmp_path, saving={"every_steps": 3})
    assert [row["energy_j"] for row in directory.read_metrics()] == [6.0] * 3
    assert directory.read_summary()["median"]["energy_j"] == 6.0
    [energy] = fgbench.read_summaries(tmp_path)["energy_j"]
    assert energy == 6.0


def test_an_epoch_that_was_interrupted_has_none(counter, tmp_path, monkeypatch):
    update = EpochProgress.update

    def update_and_kill(self):
        update(self)
        if self.training.step == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(EpochProgress, "update", update_and_kill)
    with pytest.raises(Interrupted):
        run(tmp_path)
    monkeypatch.setattr(EpochProgress, "update", update)
    assert [row["energy_j"] for row in run(tmp_path).read_metrics()] == [2.0, None, 2.0]


def test_a_run_goes_on_from_a_state_that_knew_fewer_columns(tmp_path):
    whole = run(tmp_path / "whole").read_metrics()
    directory = run(tmp_path / "cut")
    directory.write_status("interrupted")
    state, _ = load_state(directory.path)
    for row in state["rows"]:
        del row["energy_j"]
    save_state(directory.path, state, keep=2)
    again = run(tmp_path / "cut").read_metrics()
    assert [row["test_loss"] for row in again] == [row["test_loss"] for row in whole]
