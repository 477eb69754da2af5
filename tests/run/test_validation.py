"""What the validation images decide: when a run stops early, and which weights are kept."""

from pathlib import Path

import pytest
import torch
from interrupts import interrupt_at
from typer.testing import CliRunner

import fgbench
from fgbench.analysis.records import load_results, read_results
from fgbench.analysis.status import status_report
from fgbench.cli.app import app
from fgbench.config.config import Config
from fgbench.config.epochs import EarlyStoppingOptions
from fgbench.errors import ConfigError, FgbenchError
from fgbench.run.epochs import EpochLoop
from fgbench.run.runner import run_configs
from fgbench.run.signals import Interrupted
from fgbench.run.validation import reason_to_stop
from fgbench.storage.run_directory import RunDirectory
from fgbench.storage.state import load_state, save_state

SETTINGS = {
    "name": "tiny",
    "dataset": {"name": "synthetic", "shape": [1, 4, 4], "classes": 10, "train": 80, "test": 20},
    "model": {"name": "fc", "hidden": 6, "dropout": 0.5},
    "trainer": {"name": "backprop"},
    "optimizer": {"name": "adam", "lr": 0.03},
    "batch_size": 8,
    "epochs": 12,
    "device": "cpu",
    "verify": False,
}
BATCHES = 8
STOPPING = {"metric": "val_loss", "patience": 3, "min_delta": 0.05}


def run(results: Path, **changes) -> RunDirectory:
    config = Config.model_validate(SETTINGS | {"results_dir": str(results)} | changes)
    code, [path] = run_configs([config])
    assert code == 0
    return RunDirectory(path)


def rows_of(metric: str, *values: float | None) -> list[dict]:
    return [{"epoch": index + 1, metric: value} for index, value in enumerate(values)]


# ---- when to stop


@pytest.mark.parametrize(
    ("metric", "min_delta", "values", "stops"),
    [
        ("val_accuracy", 0.0, [0.5, 0.6, 0.6, 0.55], True),
        ("val_accuracy", 0.0, [0.5, 0.6, 0.6, 0.61], False),
        ("val_accuracy", 0.0, [0.5, 0.6, 0.6], False),
        ("val_loss", 0.0, [1.0, 1.0, 1.0], True),
        ("val_loss", 0.0, [1.0, 1.0, 0.99], False),
        ("val_loss", 0.1, [1.0, 0.95, 0.92], True),
        ("val_loss", 0.1, [1.0, 0.95, 0.89], False),
        ("val_loss", 0.0, [float("nan"), float("nan")], True),
        ("val_loss", 0.0, [float("nan"), 1.0, float("inf")], False),
    ],
)
def test_a_run_stops_after_so_many_epochs_without_a_better_value(metric, min_delta, values, stops):
    options = EarlyStoppingOptions(metric=metric, patience=2, min_delta=min_delta)
    assert bool(reason_to_stop(rows_of(metric, *values), options)) == stops


def test_why_it_stopped_is_told_with_the_best_epoch():
    options = EarlyStoppingOptions(metric="val_loss", patience=2, min_delta=0.1)
    assert reason_to_stop(rows_of("val_loss", 1.25, 1.2, 1.3), options) == (
        "stopped early: in 2 epochs no better val_loss by more than 0.1 than 1.25 in epoch 1"
    )
    assert reason_to_stop(rows_of("val_loss", 1.0, 2.0, 3.0), None) == ""


def test_a_run_that_stopped_early_is_finished_and_says_so(tmp_path, capsys):
    directory = run(tmp_path, early_stopping=STOPPING)
    rows, status, summary = directory.read_metrics(), directory.status(), directory.read_summary()
    assert 3 < len(rows) < 12
    best = next(row for row in rows if row["epoch"] == len(rows) - 3)
    assert all(row["val_loss"] >= best["val_loss"] - 0.05 for row in rows[-3:])
    assert status["state"] == "finished"
    assert status["reason"] == summary["stopped_early"]
    assert f"in epoch {best['epoch']}" in summary["stopped_early"]
    assert summary["stopped_early"] in capsys.readouterr().out
    assert summary["epochs"] == len(rows)
    [record] = load_results(tmp_path)
    assert (record.state, record.stopped_early, record.last_epoch) == ("finished", True, len(rows))
    told = status_report(read_results(tmp_path), tmp_path)
    assert f"{len(rows)}/12" in told
    assert "stopped early: in 3 epochs" in told
    whole = run(tmp_path / "whole")
    assert whole.read_summary()["stopped_early"] is None
    same = [(mine["train_loss"], mine["val_loss"]) for mine in whole.read_metrics()[: len(rows)]]
    assert same == [(row["train_loss"], row["val_loss"]) for row in rows]
    assert whole.path.name != directory.path.name, "it is another experiment"


def test_a_finished_one_is_skipped_and_one_that_lost_its_status_comes_to_the_same_end(tmp_path, capsys):
    directory = run(tmp_path, early_stopping=STOPPING)
    rows, summary = directory.read_metrics(), directory.read_summary()
    run(tmp_path, early_stopping=STOPPING)
    assert "finished already, skipped" in capsys.readouterr().out
    (directory.path / "status.json").unlink()
    run(tmp_path, early_stopping=STOPPING)
    assert (directory.read_metrics(), directory.read_summary()) == (rows, summary)
    (directory.path / "metrics.csv").write_text("epoch\n")
    assert load_results(tmp_path)[0].state == "failed", "rows are lost, whatever it says of itself"


@pytest.mark.parametrize("batch", [2, 6 * BATCHES + 1])
def test_an_interrupted_run_stops_and_keeps_what_it_would_have(batch, tmp_path, monkeypatch):
    changes = {"early_stopping": STOPPING, "saving": {"best": "val_accuracy", "every": 2}}
    whole = run(tmp_path / "whole", **changes)
    interrupt_at(batch, monkeypatch)
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", **changes)
    monkeypatch.undo()
    cut = run(tmp_path / "cut", **changes)
    assert_same_end(cut, whole)


@pytest.mark.parametrize("epoch", [3, 4, 9])
def test_a_run_killed_between_its_files_stops_and_keeps_what_it_would_have(epoch, tmp_path, monkeypatch):
    changes = {"early_stopping": STOPPING, "saving": {"best": "val_loss", "every": 2}}
    whole = run(tmp_path / "whole", **changes)
    save = EpochLoop.save

    def killed(self: EpochLoop) -> None:
        if self.training.epochs_done >= epoch:
            raise KeyboardInterrupt
        save(self)

    monkeypatch.setattr(EpochLoop, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run_configs([Config.model_validate(SETTINGS | changes | {"results_dir": str(tmp_path / "cut")})])
    monkeypatch.undo()
    assert_same_end(run(tmp_path / "cut", **changes), whole)


def assert_same_end(cut: RunDirectory, whole: RunDirectory) -> None:
    """The same rows, reason and weights, bit for bit."""
    learnt = ("epoch", "train_loss", "val_loss", "val_accuracy", "test_loss", "grad_norm")
    mine, other = ([[row[key] for key in learnt] for row in each.read_metrics()] for each in (cut, whole))
    assert mine == other
    for key in ("stopped_early", "best_saved", "final"):
        assert cut.read_summary()[key] == whole.read_summary()[key]
    for which in ("last", "best"):
        first, second = (fgbench.load_model(each.path, which).state_dict() for each in (cut, whole))
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"early_stopping": {"patience": 2}},
            "early_stopping.metric: val_accuracy needs validation images",
        ),
        ({"saving": {"best": "val_loss"}}, "saving.best: val_loss needs validation images"),
    ],
)
def test_without_validation_images_nothing_is_decided_by_them(changes, message, tmp_path):
    dataset = SETTINGS["dataset"] | {"validation_fraction": 0}
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "results", dataset=dataset, **changes)
    assert list(tmp_path.iterdir()) == []


# ---- the best weights


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss"])
def test_the_best_weights_give_what_the_run_logged_at_its_best_epoch(metric, tmp_path):
    directory = run(tmp_path, saving={"best": metric})
    rows = directory.read_metrics()
    best = (max if metric == "val_accuracy" else min)(rows, key=lambda row: row[metric])
    assert best["epoch"] < 12, "otherwise this test tells nothing"
    assert directory.read_summary()["best_saved"] == {
        "metric": metric,
        "epoch": best["epoch"],
        "value": best[metric],
    }
    for which, row in (("best", best), ("last", rows[-1])):
        assert losses(directory, which) == pytest.approx((row["val_loss"], row["test_loss"]), rel=1e-12)


def losses(directory: RunDirectory, which: str) -> tuple[float, float]:
    from fgbench.config.config import load_config
    from fgbench.datasets.base import load_splits
    from fgbench.datasets.search import DataSearch
    from fgbench.run.loop import evaluate

    config = load_config(directory.path / "config.yaml")
    splits = load_splits(config.dataset, config.seed, torch.device("cpu"), DataSearch())
    model, loss_fn = fgbench.load_model(directory.path, which), torch.nn.CrossEntropyLoss(reduction="none")
    return evaluate(model, loss_fn, splits.validation)[0], evaluate(model, loss_fn, splits.test)[0]


def test_keeping_the_best_changes_no_number_and_no_hash(tmp_path):
    kept, plain = run(tmp_path / "kept", saving={"best": "val_loss"}), run(tmp_path / "plain")
    assert kept.path.name == plain.path.name
    assert [row["train_loss"] for row in kept.read_metrics()] == [
        row["train_loss"] for row in plain.read_metrics()
    ]


def test_the_best_weights_are_exported_and_a_run_without_them_says_how_to_keep_them(tmp_path):
    kept, plain = run(tmp_path / "kept", saving={"best": "val_loss"}), run(tmp_path / "plain")
    out = str(tmp_path / "best.pt")
    done = CliRunner().invoke(app, ["export", str(kept.path), "--best", "--out", out])
    assert done.exit_code == 0, done.output
    weights, best = torch.load(out, weights_only=True), fgbench.load_model(kept.path, "best").state_dict()
    assert weights.keys() == best.keys()
    assert all(torch.equal(weights[name], best[name]) for name in best)
    with pytest.raises(FgbenchError, match=r"weights of its best epoch were not kept; .* saving.best"):
        fgbench.load_model(plain.path, "best")
    with pytest.raises(FgbenchError, match="got 'worst', expected last or best"):
        fgbench.load_model(plain.path, "worst")


def test_weights_of_an_epoch_that_is_not_the_best_are_never_given_as_the_best(tmp_path):
    directory = run(tmp_path, saving={"best": "val_loss"})
    state, _ = load_state(directory.path)
    state["best"]["epoch"] += 1
    save_state(directory.path, state, keep=2)
    with pytest.raises(FgbenchError, match="were not kept"):
        fgbench.load_model(directory.path, "best")
