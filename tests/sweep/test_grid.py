"""Tuning on a grid: the same values for all, several seeds, values beyond an edge, the noise of tuning."""

import csv

import pytest

from fgbench.analysis.records import load_results
from fgbench.cli.app import app
from fgbench.config.config import load_config
from fgbench.config.sweep import load_sweep
from fgbench.errors import ConfigError
from fgbench.run.runner import run_configs
from fgbench.sweep.grid import tune_grid
from fgbench.sweep.tuned import tuning_table

TEXT = """
base:
  dataset: {{name: synthetic, shape: [1, 8, 8], classes: 3, train: 60, test: 30}}
  model: {{name: fc, hidden: 6}}
  epochs: 2
  batch_size: 6
  device: cpu
  verify: false
  optimizer: sgd
axes:
  trainer: [backprop, {{name: forward-gradient, tangents: 64}}]
seeds: [0, 1]
tune: {{sampler: grid, keys: {{optimizer.lr: {{log: [{low}, {high}]}}}}, points: 3, metric: val_loss}}
"""


def load(folder, low, high, text=TEXT):
    path = folder / "s.yaml"
    path.write_text(text.format(low=low, high=high))
    return load_sweep(path, [f"results_dir={folder}/results"])


def make_runs(configs):
    return run_configs(configs).paths


def read_curve(folder):
    with (folder / "results/tuned/s_grid.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_configuration_is_tried_at_the_same_values_and_the_best_mean_is_chosen(tmp_path):
    results = tune_grid(load(tmp_path, 1e-14, 1e12), make_runs)
    curve = read_curve(tmp_path)
    for tuned, trainer in zip(results, ("backprop", "forward-gradient"), strict=True):
        rows = [row for row in curve if row["trainer"] == trainer]
        assert [(float(row["value"]), int(row["seed"])) for row in rows] == [
            (value, seed) for value in (1e-14, 0.1, 1e12) for seed in (100, 101)
        ]
        assert {row["epochs"] for row in rows if row["state"] == "finished"} == {"2"}
        assert tuned.values == {"optimizer.lr": 0.1}
        assert {row["value"] for row in rows if row["chosen"] == "True"} == {"0.1"}
        chosen = [float(row["val_loss"]) for row in rows if row["chosen"] == "True"]
        assert tuned.score == pytest.approx(sum(chosen) / 2)
        assert tuned.diverged == sum(row["state"] == "diverged" for row in rows)
        assert (tuned.trials, tuned.stopped, tuned.at_edge) == (6, 0, False)
        config = load_config(tuned.path)
        assert (config.optimizer.lr, config.seed, config.epochs) == (0.1, 0, 2)
        assert config.tuned == "val_loss after 2 epochs, grid of 3, seeds 100, 101"
    assert results[0].diverged > 0, "this grid is meant to reach where backprop diverges"
    assert tuning_table(results).splitlines()[0].endswith("noise of tuning")


def test_the_grid_grows_where_the_best_is_at_an_edge_and_what_has_ended_is_not_made_again(tmp_path):
    said, made = [], []

    def counted(configs):
        made.append([(config.trainer.name, config.optimizer.lr) for config in configs])
        return make_runs(configs)

    sweep = load(tmp_path, 1e-4, 1e-2)
    first = tune_grid(sweep, counted, said.append)
    assert len(made[0]) == 12
    assert {lr for _, lr in made[1]} == {0.1, 1.0, 10.0}
    assert "the best optimizer.lr is at an edge; trying 0.1, 1, 10 too" in said[0]
    assert all(tuned.values["optimizer.lr"] > 1e-2 for tuned in first)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.csv")}
    assert tune_grid(sweep, make_runs) == first
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.csv")}


def test_the_noise_of_tuning_is_what_the_choices_of_single_seeds_differ_by(tmp_path):
    tuned = tune_grid(load(tmp_path, 1e-14, 1e12), make_runs)
    for each, trainer in zip(tuned, ("backprop", "forward-gradient"), strict=True):
        rows = [row for row in read_curve(tmp_path) if row["trainer"] == trainer and row["val_loss"]]
        reached = []
        for seed in ("100", "101"):
            own = [row for row in rows if row["seed"] == seed and row["state"] == "finished"]
            choice = min(own, key=lambda row: float(row["val_loss"]))["value"]
            reached.append(sum(float(row["test_accuracy"]) for row in rows if row["value"] == choice) / 2)
        assert each.noise == pytest.approx(max(reached) - min(reached))


def test_after_a_first_look_the_best_value_and_its_neighbours_are_trained_in_full(tmp_path):
    tried = []

    def counted(configs):
        tried.append({(config.epochs, config.optimizer.lr) for config in configs})
        return make_runs(configs)

    text = TEXT.replace("points: 3", "points: 5, screen: 1").replace("epochs: 2", "epochs: 3")
    tuned = tune_grid(load(tmp_path, 1e-9, 1e-1, text), counted)
    assert tried[0] == {(1, 10.0**power) for power in (-9, -7, -5, -3, -1)}
    for each, trainer in zip(tuned, ("backprop", "forward-gradient"), strict=True):
        rows = [row for row in read_curve(tmp_path) if row["trainer"] == trainer]
        assert {row["epochs"] for row in rows} == {"1", "3"}
        assert {row["epochs"] for row in rows if row["chosen"] == "True"} == {"3"}
        whole = [row for row in rows if row["epochs"] == "3"]
        assert len(whole) < len(rows) - len(whole)
        losses = {
            row["value"]: sum(
                float(each["val_loss"] or "inf") for each in whole if each["value"] == row["value"]
            )
            for row in whole
        }
        assert float(min(losses, key=losses.get)) == each.values["optimizer.lr"]


def test_trials_are_no_results(tmp_path):
    sweep = load(tmp_path, 1e-14, 1e12)
    tune_grid(sweep, make_runs)
    run_configs(sweep.configs[:1])
    assert [run.seed for run in load_results(tmp_path / "results")] == [0]
    assert len(load_results(tmp_path / "results/tuned/trials")) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("points: 3", "points: 3, seeds: [1, 2]"), r"^tune.seeds: 1 is among the seeds that are reported"),
        (("points: 3", "points: 3, seeds: [7]"), "tune.seeds: got a list of 1, expected at least 2$"),
        (("points: 3", "points: 3, trials: 4"), "trials has no meaning for sampler: grid"),
        (("points: 3", "points: 3, screen: 2"), "^tune.screen: got 2, expected fewer than epochs: 2"),
        (("points: 3", "points: 3, epochs: 1"), "epochs has no meaning for sampler: grid"),
        (("classes: 3", "validation_fraction: 0, classes: 3"), "^dataset.validation_fraction: got 0"),
        (("{high}]}}}}, points: 3", "0.0010003]}}}}, points: 5"), "got 5 values from 0.001 to 0.0010003"),
        (
            ("{{log: [{low}, {high}]}}", "[0.1, 0.2]"),
            r"^tune.keys: got optimizer.lr: \[0.1, 0.2\]; sampler: grid .* no list",
        ),
    ],
)
def test_what_is_no_fair_grid_is_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        tune_grid(load(tmp_path, 1e-3, 1e-1, TEXT.replace(*change)), make_runs)
    assert not (tmp_path / "results").exists()


def test_a_grid_that_names_no_key_has_nine_learning_rates_over_three_decades(tmp_path):
    sweep = load(
        tmp_path, 0, 0, TEXT.replace("keys: {{optimizer.lr: {{log: [{low}, {high}]}}}}, points: 3, ", "")
    )
    tried = []

    def note(configs):
        tried.extend(config.optimizer.lr for config in configs)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune_grid(sweep, note)
    assert sorted(set(tried)) == pytest.approx([1e-4 * 10 ** (3 * place / 8) for place in range(9)], rel=1e-3)


def test_the_command_writes_configs_table_and_figure(tmp_path, capsys):
    load(tmp_path, 1e-14, 1e12, TEXT.replace("epochs: 2", "epochs: 1"))
    with pytest.raises(SystemExit) as end:
        app(["tune", str(tmp_path / "s.yaml"), "--results", str(tmp_path / "r"), "--jobs", "2"])
    assert not end.value.code
    assert sorted(
        path.name for path in (tmp_path / "r/tuned").iterdir() if path.suffix in (".png", ".csv")
    ) == [
        "s_grid.csv",
        "s_grid.png",
    ]
    assert "noise of tuning" in capsys.readouterr().out
