"""Tuning: equal budgets, what is written, and going on after an interruption."""

import os
import signal

import pytest

from fgbench.config.config import config_hash, load_config
from fgbench.config.sweep import load_sweep
from fgbench.datasets.search import DataSearch
from fgbench.run.signals import Interrupted
from fgbench.sweep.tuned import tuning_table

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


def tune_in(folder):
    path = folder / "s.yaml"
    path.write_text(TEXT)
    return tune.tune_sweep(load_sweep(path, [f"results_dir={folder}/results"]), DataSearch(None, None, False))


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


def test_trials_stop_early_as_runs_do(tmp_path, monkeypatch):
    evaluate, count = tune.evaluate, [0]

    def counted(*arguments):
        count[0] += 1
        return evaluate(*arguments)

    monkeypatch.setattr(tune, "evaluate", counted)
    path = tmp_path / "s.yaml"
    path.write_text(TEXT.replace("trials: 8, epochs: 2", "trials: 2, epochs: 4"))
    stopping = ["early_stopping={metric: val_loss, patience: 1, min_delta: 1000.0}"]
    sweep = load_sweep(path, [f"results_dir={tmp_path}/results", *stopping])
    tune.tune_sweep(sweep, DataSearch(None, None, False))
    assert count[0] == 2 * 2 * 2, "two configurations, two trials, two epochs each"
