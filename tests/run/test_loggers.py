"""Loggers: what they are told, that a run does not feel them, and TensorBoard by its own reader."""

import sys
from pathlib import Path

import pytest
import torch
from interrupts import interrupt_at
from typer.testing import CliRunner

import fgbench
from fgbench.cli.app import app
from fgbench.config.config import Config, config_hash, load_config
from fgbench.errors import ConfigError
from fgbench.run.progress import EpochProgress
from fgbench.run.runner import run_configs
from fgbench.run.signals import Interrupted
from fgbench.storage.run_directory import RunDirectory

SETTINGS = {
    "name": "tiny",
    "dataset": {"name": "synthetic", "shape": [1, 8, 8], "classes": 3, "train": 60, "test": 12},
    "model": {"name": "fc", "hidden": 6, "dropout": 0.2},
    "trainer": {"name": "forward-gradient"},
    "batch_size": 8,
    "epochs": 3,
    "device": "cpu",
    "verify": False,
}
BATCHES = 6
LEARNT = ("epoch", "train_loss", "val_loss", "test_loss", "grad_norm")


def make(results: Path, *log: str, **changes) -> Config:
    return Config.model_validate(SETTINGS | {"results_dir": str(results), "log": log} | changes)


def run(results: Path, *log: str, **changes) -> RunDirectory:
    code, [path] = run_configs([make(results, *log, **changes)])
    assert code == 0
    return RunDirectory(path)


@pytest.fixture
def told(monkeypatch):
    """What ``spy:Spy`` was told, in order; ``spy:Broken`` breaks where ``spy.where`` says."""
    heard = []

    class Spy(fgbench.Logger):
        def start(self, path, config, environment, rows):
            heard.append(("start", path, config, environment, len(rows)))
            config["epochs"] = environment["torch"] = "changed"

        def log(self, row):
            heard.append(("log", dict(row)))
            torch.manual_seed(0)
            row.clear()

        def finish(self, state, summary):
            heard.append(("finish", state, dict(summary)))
            summary.clear()

    class Broken(Spy):
        def __getattribute__(self, name):
            spy = sys.modules.get("spy")  # gone when a garbage collector asks
            if spy is not None and name == getattr(spy, "where", None):
                raise spy.error
            return super().__getattribute__(name)

    class Unmakable(fgbench.Logger):
        def __init__(self):
            raise OSError("no such server")

    module = type(sys)("spy")
    module.__dict__.update(Spy=Spy, Broken=Broken, Unmakable=Unmakable, NoLogger=int, heard=heard)
    monkeypatch.setitem(sys.modules, "spy", module)
    return heard


def test_a_logger_is_told_config_environment_every_epoch_and_the_end(told, tmp_path):
    directory = run(tmp_path, "spy:Spy")
    (_, path, config, environment, done), *epochs, (_, state, summary) = told
    assert (path, done) == (directory.path, 0)
    assert config["trainer"]["name"] == "forward-gradient"
    assert environment["threads"] == torch.get_num_threads()
    assert [row for _, row in epochs] == directory.read_metrics()
    assert (state, summary) == ("finished", directory.read_summary())


def test_a_logger_changes_no_number_and_no_hash(told, tmp_path):
    logged, plain = run(tmp_path / "a", "spy:Spy"), run(tmp_path / "b")
    assert logged.path.name == plain.path.name
    mine, other = ([[row[key] for key in LEARNT] for row in each.read_metrics()] for each in (logged, plain))
    assert mine == other
    assert load_config(logged.path / "config.yaml").epochs == 3
    assert config_hash(load_config(logged.path / "config.yaml"), "cpu") == config_hash(make(tmp_path), "cpu")


@pytest.mark.parametrize("where", ["start", "log", "finish"])
@pytest.mark.parametrize("error", [OSError("no space\nleft"), SystemExit(), ZeroDivisionError("by zero")])
def test_a_logger_that_breaks_costs_one_line_and_nothing_else(where, error, told, tmp_path, capsys):
    sys.modules["spy"].where, sys.modules["spy"].error = where, error
    directory = run(tmp_path, "spy:Broken", "spy:Spy")
    assert directory.status()["state"] == "finished"
    assert len(directory.read_metrics()) == 3
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fgbench: log: spy:Broken: {type(error).__name__}")
    assert line.endswith("; the run continues without this logger")
    assert sum(kind == "finish" for kind, *_ in told) == 1, "the other logger is told all the same"


def test_a_logger_that_cannot_be_made_costs_one_line(told, tmp_path, capsys):
    assert run(tmp_path, "spy:Unmakable").status()["state"] == "finished"
    assert capsys.readouterr().err == (
        "fgbench: log: spy:Unmakable: OSError: no such server; the run continues without this logger\n"
    )


def test_a_run_that_goes_on_tells_how_far_it_is_and_repeats_no_epoch(told, tmp_path, monkeypatch):
    interrupt_at(BATCHES + 2, monkeypatch)
    with pytest.raises(Interrupted):
        run(tmp_path, "spy:Spy")
    assert told[-1] == ("finish", "interrupted", {})
    monkeypatch.setattr(EpochProgress, "update", lambda self: None)
    run(tmp_path, "spy:Spy")
    assert [each[-1] for each in told if each[0] == "start"] == [0, 1]
    assert [each[1]["epoch"] for each in told if each[0] == "log"] == [1, 2, 3]
    assert told[-1][:2] == ("finish", "finished")


def test_a_run_that_fails_says_so(told, tmp_path, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("fgbench.run.epochs.train_epoch", broken)
    monkeypatch.setattr("fgbench.run.epochs.cpu_step_memory", lambda *_: 1.0)
    with pytest.raises(RuntimeError, match="on purpose"):
        run_configs([make(tmp_path, "spy:Spy")])
    assert told[-1] == ("finish", "failed", {})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("spy:Nothing", "log: cannot import 'spy:Nothing': module 'spy' has no attribute 'Nothing'"),
        ("no_such_module:X", "log: cannot import 'no_such_module:X': No module named 'no_such_module'"),
        ("spy:NoLogger", "log: spy:NoLogger is not a subclass of fgbench.Logger"),
    ],
)
def test_what_is_no_logger_is_refused_before_anything_is_written(name, message, told, tmp_path):
    with pytest.raises(ConfigError) as caught:
        run_configs([make(tmp_path / "results", name)])
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_no_logger_has_is_a_mistake_in_the_config(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("dataset: mnist\nmodel: fc\ntrainer: backprop\nlog: [tensorbord]\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == (
        f"{path}:4: log.0: got 'tensorbord', expected tensorboard, or package.module:Class "
        "(did you mean 'tensorboard'?)"
    )


# ---- TensorBoard, read by its own reader


@pytest.fixture
def events():
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read(directory: RunDirectory):
        found = reader.EventAccumulator(str(directory.path / "tensorboard"), {reader.TENSORS: 0})
        return found.Reload()

    return read


def curve(found, tag):
    return [(event.step, event.value) for event in found.Scalars(tag)]


def assert_same_curves(found, directory):
    """TensorBoard has the rows of metrics.csv, once each, and no empty cells."""
    rows = directory.read_metrics()
    numbers = {key for row in rows for key, value in row.items() if isinstance(value, float)}
    assert numbers <= set(found.Tags()["scalars"])
    for column in numbers:
        assert curve(found, column) == [
            (row["epoch"], pytest.approx(row[column], rel=1e-6)) for row in rows if row[column] is not None
        ]


def test_tensorboard_has_every_column_the_config_and_the_environment(events, tmp_path):
    directory = run(tmp_path, "tensorboard")
    found = events(directory)
    assert_same_curves(found, directory)
    assert "energy_j" not in found.Tags()["scalars"], "nothing stands for what was not measured"
    texts = {
        tag: found.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in found.Tags()["tensors"]
    }
    assert "name: forward-gradient" in texts["config/text_summary"]
    assert f'"torch": "{torch.__version__}"' in texts["environment/text_summary"]
    assert texts["state/text_summary"] == "finished"


def test_tensorboard_has_the_settings_beside_the_curves(events, tmp_path):
    from tensorboard.plugins.hparams import plugin_data_pb2

    directory = run(tmp_path, "tensorboard")
    metadata = events(directory).summary_metadata["_hparams_/session_start_info"]
    start = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content).session_start_info
    assert start.hparams["trainer.name"].string_value == "forward-gradient"
    assert start.hparams["optimizer.lr"].number_value == 0.001
    assert start.hparams["model.hidden"].number_value == 6


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_that_goes_on_has_each_epoch_once_in_tensorboard(epoch, events, tmp_path, monkeypatch):
    log = {"saving": {"every": 2}}
    interrupt_at(epoch * BATCHES + 2, monkeypatch)
    with pytest.raises(Interrupted):
        run(tmp_path, "tensorboard", **log)
    monkeypatch.undo()
    directory = run(tmp_path, "tensorboard", **log)
    assert_same_curves(events(directory), directory)
    run_configs([make(tmp_path, "tensorboard")], force=True, resume=False)
    assert_same_curves(events(directory), directory)


def test_a_logger_that_joins_a_run_later_is_told_the_epochs_before(events, tmp_path, monkeypatch):
    interrupt_at(2 * BATCHES + 1, monkeypatch)
    with pytest.raises(Interrupted):
        run(tmp_path)
    monkeypatch.undo()
    directory = run(tmp_path, "tensorboard")
    assert [step for step, _ in curve(events(directory), "train_loss")] == [1, 2, 3]


def test_the_command_line_names_loggers_for_runs_and_sweeps(told, events, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(
        "dataset: {name: synthetic, shape: [1, 8, 8], classes: 3, train: 60, test: 12}\n"
        "model: fc\ntrainer: backprop\nepochs: 1\ndevice: cpu\nlog: ['spy:Spy']\n"
    )
    done = CliRunner().invoke(app, ["run", "a.yaml", "--log", "tensorboard", "--results", "r"])
    assert done.exit_code == 0, done.output
    [path] = Path("r").glob("a/*")
    assert events(RunDirectory(path)).Scalars("test_loss")
    assert told == [], "--log replaces the file's"
    Path("s.yaml").write_text("base: a.yaml\naxes: {seed: [1, 2]}\n")
    done = CliRunner().invoke(app, ["sweep", "s.yaml", "--log", "tensorbord", "--dry-run"])
    assert done.exit_code == 2
    assert "--log: log.0: got 'tensorbord'" in done.output


def test_without_tensorboard_a_run_that_asks_for_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fgbench.run.tensorboard", None)
    monkeypatch.delitem(sys.modules, "fgbench.run.tensorboard")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"log: tensorboard is not installed: pip install .fgbench\[tensor"):
        run_configs([make(tmp_path / "results", "tensorboard")])
    assert list(tmp_path.iterdir()) == []
