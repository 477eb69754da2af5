"""``compile: true`` in a config: what it changes, what it refuses, and what env.json says of it."""

import pytest
from pydantic import ValidationError

from fgbench.config.config import Config, config_hash
from fgbench.errors import ConfigError
from fgbench.run.runner import run_configs
from fgbench.storage.run_directory import RunDirectory
from fgbench.trainers.compiled import require_compiler

SETTINGS = {
    "name": "tiny",
    "dataset": {"name": "synthetic", "shape": [1, 8, 8], "classes": 3, "train": 40, "test": 12},
    "model": {"name": "fc", "hidden": 6},
    "trainer": {"name": "forward-gradient", "guess": "rademacher", "structure": "rank1"},
    "batch_size": 8,
    "epochs": 1,
    "device": "cpu",
}


def make(results, **changes):
    [path] = run_configs([Config.model_validate(SETTINGS | {"results_dir": str(results)} | changes)]).paths
    return RunDirectory(path)


@pytest.fixture
def compiler():
    try:
        require_compiler()
    except ConfigError as error:
        pytest.skip(str(error))


def test_a_compiled_run_learns_what_the_eager_run_learns_and_is_another_run(compiler, tmp_path):
    eager, compiled = make(tmp_path), make(tmp_path, compile=True)
    assert eager.path != compiled.path
    assert compiled.read_env()["compiled"] == "yes"
    assert "compiled" not in eager.read_env()
    assert compiled.read_summary()["verification"]["verdict"] == "verified"
    mine, true = compiled.read_metrics()[-1], eager.read_metrics()[-1]
    assert mine["train_loss"] == pytest.approx(true["train_loss"], rel=1e-4)


def test_where_compiling_fails_the_run_says_so_once_and_trains_eagerly(
    compiler, tmp_path, monkeypatch, capsys
):
    def fail(*_):
        raise RuntimeError("no such thing\nand more")

    monkeypatch.setattr("fgbench.trainers.capture.Program._compile", fail)
    compiled = make(tmp_path, compile=True)
    assert compiled.read_env()["compiled"] == "no: RuntimeError: no such thing"
    assert capsys.readouterr().err.count("steps run eagerly: RuntimeError: no such thing") == 1
    mine, true = compiled.read_metrics()[-1], make(tmp_path).read_metrics()[-1]
    assert mine["train_loss"] == true["train_loss"]


def test_without_it_a_run_keeps_the_hash_it_had():
    config = Config.model_validate(SETTINGS)
    assert config_hash(config, "cpu") == config_hash(config.model_copy(update={"compile": False}), "cpu")
    assert config_hash(config, "cpu") != config_hash(config.model_copy(update={"compile": True}), "cpu")


@pytest.mark.parametrize(
    "trainer",
    [
        {"name": "zeroth-order", "exact_output": True},
        {"name": "backprop", "recompute": True},
        {"name": "frozen"},
    ],
)
def test_a_trainer_without_a_compiled_form_is_refused_in_the_config(trainer):
    with pytest.raises(ValidationError, match=f"does not go with trainer.name: {trainer['name']}"):
        Config.model_validate(SETTINGS | {"trainer": trainer, "compile": True})


def test_a_missing_compiler_is_a_mistake_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "fgbench.trainers.compiled.require_compiler", lambda: (_ for _ in ()).throw(ConfigError("none"))
    )
    with pytest.raises(ConfigError, match="none"):
        make(tmp_path, compile=True)
    assert not list(tmp_path.iterdir())
