"""What docs/loggers.md shows works: its classes are run as loggers, the trackers' libraries made up."""

import sys
from unittest.mock import MagicMock

import pytest
from pages import PAGES, blocks

from fgbench.config.config import Config
from fgbench.run.runner import run_configs

SETTINGS = {
    "name": "tiny",
    "dataset": {"name": "synthetic", "shape": [1, 8, 8], "classes": 3, "train": 60, "test": 12},
    "model": {"name": "fc", "hidden": 6},
    "trainer": {"name": "backprop"},
    "epochs": 2,
    "batch_size": 16,
    "device": "cpu",
    "verify": False,
}
EXAMPLES = blocks(PAGES["docs/loggers.md"], "python")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs with the logger of an example; gives the run directory, and fails if the logger broke."""

    def run_with(example, name, force=False):
        module = type(sys)("shown")
        exec(example, module.__dict__)
        monkeypatch.setitem(sys.modules, "shown", module)
        config = Config.model_validate(SETTINGS | {"results_dir": str(tmp_path), "log": [f"shown:{name}"]})
        code, [path] = run_configs([config], force=force, resume=not force)
        assert code == 0
        assert capsys.readouterr().err == ""
        return path

    return run_with


@pytest.fixture
def library(monkeypatch):
    def make(name):
        made = MagicMock()
        monkeypatch.setitem(sys.modules, name, made)
        return made

    return make


def test_the_page_has_its_three_examples():
    assert len(EXAMPLES) == 3


def test_the_first_example_runs(run):
    assert run(EXAMPLES[0], "Lines")


def test_weights_and_biases_gets_config_rows_and_the_end(run, library):
    wandb = library("wandb")
    path = run(EXAMPLES[1], "WandB")
    begun = wandb.init.call_args.kwargs
    assert begun["id"] == f"tiny-{path.name}"
    assert begun["config"]["trainer"]["name"] == "backprop"
    assert begun["config"]["environment"]["device"] == "cpu"
    tracked = wandb.init.return_value
    assert [call.kwargs["step"] for call in tracked.log.call_args_list] == [1, 2]
    assert "val_accuracy" in tracked.log.call_args.args[0]
    tracked.finish.assert_called_once_with(exit_code=0)


def test_mlflow_gets_config_rows_and_the_end_and_one_run_again(run, library):
    mlflow = library("mlflow")
    mlflow.start_run.return_value.info.run_id = "0123"
    run(EXAMPLES[2], "MLflow")
    assert mlflow.start_run.call_args.kwargs["run_id"] is None
    assert mlflow.log_dict.call_args.args[0]["trainer"]["name"] == "backprop"
    assert [call.kwargs["step"] for call in mlflow.log_metrics.call_args_list] == [1, 2]
    mlflow.end_run.assert_called_once_with("FINISHED")
    run(EXAMPLES[2], "MLflow", force=True)
    assert mlflow.start_run.call_args.kwargs["run_id"] == "0123"
