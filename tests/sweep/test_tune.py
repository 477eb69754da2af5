"""Tuning: equal budgets, what is written, and going on after an interruption."""

import json
import os
import signal
from pathlib import Path

import pytest
from data_files import write_mnist

from fgbench.config.config import config_hash, load_config
from fgbench.config.sweep import load_sweep
from fgbench.datasets.search import DataSearch
from fgbench.errors import ConfigError
from fgbench.run.signals import Interrupted
from fgbench.sweep.tuned import short_name, tuning_table

tune = pytest.importorskip("fgbench.sweep.tune", reason="Optuna is not installed")

TEXT = """
base:
  dataset: {name: synthetic, shape: [1, 8, 8], classes: 3, train: 60, test: 12}
  model: {name: fc, hidden: 6}
  epochs: 4
  device: cpu
axes:
  trainer: [backprop, {name: forward-gradient, tangents: 2}]
  optimizer.lr: [0.1, 0.2]
seeds: [3, 4]
tune: {keys: {optimizer.lr: {log: [1e-6, 1]}}, trials: 8, epochs: 2, metric: val_loss}
"""
SHORT = TEXT.replace("trials: 8, epochs: 2", "trials: 2, epochs: 1")


def tune_in(folder, *overrides, text=TEXT):
    path = folder / "s.yaml"
    path.write_text(text)
    sweep = load_sweep(path, [f"results_dir={folder}/results", *overrides])
    return tune.tune_sweep(sweep, DataSearch(None, None, False))


def test_every_configuration_has_the_same_budget_and_gets_a_config(tmp_path):
    results = tune_in(tmp_path)
    assert [each.trials for each in results] == [8, 8]
    assert "backprop" in results[0].label
    for each in results:
        config = load_config(each.path)
        assert config.optimizer.lr == each.values["optimizer.lr"]
        assert (config.epochs, config.seed) == (4, 3)
        assert config.tuned == "val_loss after 2 epochs, best of 8 trials"
        assert config_hash(config, "cpu") == config_hash(config.model_copy(update={"tuned": None}), "cpu")
    assert results[0].values["optimizer.lr"] > 1e-3  # the smallest rates of the range learn nothing
    assert tuning_table(results).count("forward-gradient") == 1


def test_fewer_trials_than_there_are_choose_among_the_first_alone(tmp_path):
    """As if the others had never been: every configuration has the same budget."""
    two, eight, again = (
        tune_in(tmp_path, text=TEXT.replace("trials: 8", f"trials: {trials}")) for trials in (2, 8, 2)
    )
    assert again == two
    assert again[1].values != eight[1].values
    assert [each.trials for each in again] == [2, 2]
    assert all(load_config(each.path).tuned.endswith("best of 2 trials") for each in again)


def test_an_interrupted_search_goes_on_and_ends_where_it_would_have(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = tune_in(tmp_path / "a")
    evaluate, count = tune.evaluate, [0]

    def evaluate_and_stop(*arguments):
        count[0] += 1
        if count[0] == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*arguments)

    monkeypatch.setattr(tune, "evaluate", evaluate_and_stop)
    with pytest.raises(Interrupted):
        tune_in(tmp_path / "b")
    seen = count[0]
    again = tune_in(tmp_path / "b")
    assert count[0] > seen
    assert [each.trials for each in again] == [8, 8]
    assert again[1].values == whole[1].values
    before = count[0]
    assert tune_in(tmp_path / "b") != []
    assert count[0] == before


@pytest.fixture
def count(monkeypatch):
    """How many epochs of trials have been evaluated."""
    evaluate, count = tune.evaluate, [0]

    def counted(*arguments):
        count[0] += 1
        return evaluate(*arguments)

    monkeypatch.setattr(tune, "evaluate", counted)
    return count


def test_trials_that_diverge_count_as_diverged_as_runs_do_and_not_as_stopped_early(tmp_path):
    path = tmp_path / "s.yaml"
    text = TEXT.replace("{log: [1e-6, 1]}", "[0.1, 1e+4, 1e+30]").replace("trials: 8", "trials: 5")
    path.write_text(
        text.replace("epochs: 4", "epochs: 4\n  optimizer: sgd").replace(
            ", {name: forward-gradient, tangents: 2}", ""
        )
    )
    (backprop,) = tune.tune_sweep(
        load_sweep(path, [f"results_dir={tmp_path}/results"]), DataSearch(None, None, False)
    )
    assert backprop.values == {"optimizer.lr": 0.1}
    assert (backprop.trials, backprop.stopped) == (5, 0)
    journal = (tmp_path / "results/tuned/s.journal").read_text().splitlines()
    tried = [json.loads(line) for line in journal if '"param_name"' in line]
    rates = [each["param_value_internal"] for each in tried]
    assert {1, 2} <= set(rates), "both an absurd loss and an infinite one are meant to be tried"
    assert backprop.diverged == sum(rate > 0 for rate in rates)
    row = next(line for line in tuning_table([backprop]).splitlines() if "backprop" in line)
    assert row.split()[-6:-3] == ["5", str(backprop.diverged), "0"]


def test_the_journal_answers_for_the_same_images_alone(tmp_path, count):
    path = tmp_path / "s.yaml"
    text = TEXT.replace("{name: synthetic, shape: [1, 8, 8], classes: 3, train: 60, test: 12}", "mnist")
    path.write_text(
        text.replace("trials: 8, epochs: 2", "trials: 2, epochs: 1").replace("hidden: 6", "hidden: 2")
    )

    def tune_on(seed):
        write_mnist(tmp_path / "data", seed=seed)
        sweep = load_sweep(path, [f"results_dir={tmp_path}/results"])
        tune.tune_sweep(sweep, DataSearch(tmp_path / "data", None, False))
        return count[0]

    assert (tune_on(0), tune_on(0), tune_on(1), tune_on(0)) == (4, 4, 8, 8)


def test_trials_stop_early_as_runs_do(tmp_path, count):
    path = tmp_path / "s.yaml"
    path.write_text(TEXT.replace("trials: 8, epochs: 2", "trials: 2, epochs: 4"))
    stopping = ["early_stopping={metric: val_loss, patience: 1, min_delta: 1000.0}"]
    sweep = load_sweep(path, [f"results_dir={tmp_path}/results", *stopping])
    tune.tune_sweep(sweep, DataSearch(None, None, False))
    assert count[0] == 2 * 2 * 2, "two configurations, two trials, two epochs each"


def test_the_journal_answers_for_the_same_metric_alone(tmp_path, count):
    """A study that maximizes accuracy would choose the largest of the losses."""
    path = tmp_path / "s.yaml"
    for metric, epochs in (("val_loss", 4), ("val_accuracy", 8), ("val_loss", 8)):
        path.write_text(SHORT.replace("val_loss", metric))
        results = tune.tune_sweep(
            load_sweep(path, [f"results_dir={tmp_path}/results"]), DataSearch(None, None, False)
        )
        assert count[0] == epochs
        assert all(load_config(each.path).tuned.startswith(metric) for each in results)


def test_the_journal_answers_for_the_same_schedule_alone(tmp_path, count):
    for epochs, seen in ((2, 4), (2, 4), (200, 8)):
        tune_in(tmp_path, "schedule=one-cycle", f"epochs={epochs}", text=SHORT)
        assert count[0] == seen


@pytest.mark.parametrize("schedule", ["linear", "cosine", "one-cycle"])
def test_no_trial_trains_on_after_the_end_of_a_schedule(tmp_path, schedule):
    with pytest.raises(ConfigError, match=r"tune.epochs: got 2, expected at most epochs: 1, where schedule"):
        tune_in(tmp_path, f"schedule={schedule}", "epochs=1")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("optimizer.lr: {log", "optimizer.lrr: {log"), r"optimizer\.lrr: unknown key"),
        (("optimizer.lr: {log: [1e-6, 1]}", "batch_size: {log: [2, 8]}"), "batch_size: got 2.0, expected"),
        (("optimizer.lr: {log: [1e-6, 1]}", "optimizer.weight_decay: [0, -1]"), "weight_decay: got -1"),
        (
            ("optimizer.lr: {log: [1e-6, 1]}", "dataset.limit: [20, 40]"),
            "got dataset.limit, which all trials",
        ),
        (("trainer: [", "dataset.validation_fraction: [0.1, 0]\n  trainer: ["), "needs validation images"),
    ],
)
def test_what_no_trial_can_do_is_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        tune_in(tmp_path, text=SHORT.replace(*change))
    assert not (tmp_path / "results").exists()


def test_a_value_out_of_a_list_is_written_as_it_was_tried(tmp_path):
    path = tmp_path / "s.yaml"
    listed = "{optimizer.weight_decay: [0.00012345]}"
    path.write_text(
        TEXT.replace("{optimizer.lr: {log: [1e-6, 1]}}", listed).replace("trials: 8, epochs: 2", "trials: 1")
    )
    [found, *_] = tune.tune_sweep(
        load_sweep(path, [f"results_dir={tmp_path}/results"]), DataSearch(None, None, False)
    )
    assert load_config(found.path).optimizer.weight_decay == 0.00012345


@pytest.fixture
def journal(tmp_path, monkeypatch):
    """The journal of two trials of each configuration, of a search that began in a relative folder."""
    monkeypatch.chdir(tmp_path)
    tune_in(Path(), text=SHORT)
    return tmp_path / "results/tuned/s.journal"


def test_the_lock_that_a_killed_search_left_stops_no_later_one(journal):
    def end_the_wait(*_):
        raise TimeoutError

    journal.with_name("s.journal.lock").symlink_to("results/tuned/s.journal")
    signal.signal(signal.SIGALRM, end_the_wait)
    signal.alarm(100)
    try:
        assert len(tune_in(Path(), text=SHORT)) == 2
    finally:
        signal.alarm(0)


def test_a_cut_last_line_of_the_journal_costs_no_more_than_its_trial(journal, count):
    whole = journal.read_bytes()
    journal.write_bytes(whole[: whole.rindex(b"{") + 9])
    tune_in(Path(), text=SHORT)
    assert count[0] == 1
    assert [json.loads(line) for line in journal.read_bytes().splitlines()]


@pytest.mark.parametrize("damage", [b"{}}\n", b"[1]\n", b"{}\n", b"\xff\n"])
def test_a_damaged_journal_is_named(journal, damage):
    whole = journal.read_bytes()
    for content in (whole + damage, damage + whole):
        journal.write_bytes(content)
        with pytest.raises(ConfigError, match=r"s\.journal: damaged \(.*\); move it away to search anew$"):
            tune_in(Path(), text=SHORT)
        assert journal.read_bytes() == content


def test_names_that_are_cut_stay_different():
    long = f"cnn on fashion-mnist, guided-forward-gradient, {'space=activations, ' * 4}granularity=tensor"
    names = [
        short_name(long),
        short_name(f"{long}, clip_gradient_norm=1"),
        short_name("fc on mnist, backprop"),
    ]
    assert len(set(names)) == 3
    assert max(map(len, names)) <= 100
    assert names[2] == "fc_mnist_backprop"
