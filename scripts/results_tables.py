"""The tables of results in README and docs, from the runs in results/; make_docs.py fills them in."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import pandas as pd

from fgbench.analysis.control import compare_with_control
from fgbench.analysis.pairing import make_tasks, mean_validation_accuracy
from fgbench.analysis.readings import read
from fgbench.analysis.records import RunRecord, load_results
from fgbench.analysis.series import Series
from fgbench.analysis.statistics import summarise_differences
from fgbench.analysis.tuning import tuning_noise
from fgbench.sweep.tuned import short_name

RESULTS = Path(__file__).parents[1] / "results"
ACCURACY = "test_accuracy"
HEAD = (
    *("trainer", "uses backwards", "rate", "test accuracy, 95 %", "minus backprop, 95 %", "beats frozen?"),
    *("noise of tuning", "forward passes", "memory, MiB"),
)

SUMMARY = {
    "trainers": "FC, 20 epochs",
    "mlp": "MLP of 3 x 512, 10 epochs",
    "cnn_trainers": "CNN, 10,000 images, 5 epochs",
    "cnn_best": "CNN, 48,000 images, 5 epochs",
    "cnn_best_cifar10": "CIFAR-10: CNN, 3 epochs",
}
"""Folders of tuned trainers, each with what its column of the summary is called."""

MORE = {"trainers": ("trainers_more", "trainers_rest"), "mlp": ("mlp_feedback",)}
"""Folders of further trainers on the same task, from other commits and another machine."""


def interval_text(values: Sequence[float], form: str = ".4f") -> str:
    """The mean of values, one per seed, and its 95 % t interval: ``0.8884 [0.8795, 0.8973]``."""
    found = summarise_differences(values)
    if found.interval is None:
        return f"{found.mean:{form}}"
    low, high = found.interval
    return f"{found.mean:{form}} [{low:{form}}, {high:{form}}]"


def accuracies(runs: Sequence[RunRecord]) -> list[float]:
    """The test accuracy at the end of every run, one per seed.

    Raises:
        ValueError: a run has not finished, or two have one seed.
    """
    seeds = [run.seed for run in runs]
    if len(set(seeds)) < len(seeds) or any(run.state != "finished" for run in runs):
        raise ValueError(f"{runs[0].path.parent}: unfinished runs, or one seed twice: {seeds}")
    return [read(run, ACCURACY) for run in sorted(runs, key=lambda run: run.seed)]


def runs_of(name: str) -> list[RunRecord]:
    """The runs in a folder of results, and the further ones on its task."""
    return [run for each in (name, *MORE.get(name, ())) for run in load_results(RESULTS / each)]


def trainers_rows(name: str) -> list[tuple[str, ...]]:
    """Every trainer of one task, the most accurate first, with its control and what tuning leaves open.

    Args:
        name: of the folder of results with the runs, all of one model, dataset and number of epochs, and
            with the tables that tuning on this task wrote.

    Returns:
        The cells of each row, below ``HEAD``.
    """
    (task,) = make_tasks(runs_of(name))
    controls = compare_with_control([task])
    baseline = {run.seed: run for each in task.series if each.trainer == "backprop" for run in each.runs}
    rows = []
    for each in task.series:
        values = accuracies(each.runs)
        pairs = [(run, baseline[run.seed]) for run in each.runs if run.seed in baseline]
        behind = [read(run, ACCURACY) - read(other, ACCURACY) for run, other in pairs]
        judged = controls.get(each.runs[0].path)
        cells = (
            short_label(each),
            each.uses_backwards,
            f"{each.runs[0].settings['optimizer.lr']:.2g}",
            interval_text(values),
            "" if each.trainer == "backprop" else interval_text(behind, "+.4f"),
            judged.verdict if judged else "",
            f"{tuning_noise(trials_of(each.runs[0])):.4f}" if each.runs[0].config["tuned"] else "",
            number(each, lambda run: run.forward_passes_per_step, ".2f"),
            number(each, lambda run: read(run, "peak_memory_mib"), ".1f"),
        )
        rows.append((fmean(values), cells))
    return [cells for _, cells in sorted(rows, key=lambda row: row[0], reverse=True)]


def trials_of(run: RunRecord) -> pd.DataFrame:
    """The trials that chose a run's learning rate, from the nearest table of tuning."""
    grid = next(grid for folder in run.path.parents for grid in folder.glob("tuned/*_grid.csv"))
    trials = pd.read_csv(grid)
    return trials[trials["run"].map(short_name) == run.config["name"]]


def summary_rows() -> list[tuple[str, ...]]:
    """Every tuned trainer with its test accuracy on every task of ``SUMMARY``, by that on the first task.

    Of several rates, one that was looked for on that task, and the best of these by validation accuracy.
    """
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for folder in SUMMARY:
        (task,) = make_tasks(runs_of(folder))
        for each in sorted(task.series, key=_choice):
            label = f"**{short_label(each)}**" if each.trainer == "frozen" else short_label(each)
            key = (label, each.uses_backwards)
            cells.setdefault(key, {})[folder] = interval_text(accuracies(each.runs))
    rows = [(*key, *(found.get(folder, "") for folder in SUMMARY)) for key, found in cells.items()]
    return sorted(rows, key=lambda row: row[2:], reverse=True)


def _choice(series: Series) -> tuple[bool, float]:
    return bool(series.runs[0].config["tuned"]), mean_validation_accuracy(series)


def short_label(series: Series) -> str:
    """A series by its trainer and what sets it apart but its rate, as ``name, option: value``."""
    words = [word for word in series.label.split(", ") if not word.startswith("lr=")]
    return ", ".join(words).replace("=", ": ")


def number(series: Series, of: Callable[[RunRecord], float], form: str) -> str:
    """The mean over runs, empty where one has none."""
    mean = fmean(map(of, series.runs))
    return "" if math.isnan(mean) else f"{mean:{form}}"
