"""The tables of results in README and docs, from the runs in results/; make_docs.py fills them in."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean

import pandas as pd

from fgbench.analysis.control import compare_with_control
from fgbench.analysis.pairing import make_tasks
from fgbench.analysis.readings import read
from fgbench.analysis.records import RunRecord, load_results
from fgbench.analysis.series import Series
from fgbench.analysis.statistics import summarise_differences
from fgbench.registry import DATASETS, MODELS
from fgbench.sweep.tuned import short_name

RESULTS = Path(__file__).parents[1] / "results"
ACCURACY = "test_accuracy"

STUDY: dict[str, dict[str, object]] = {
    "backprop": {"trainer.name": "backprop"},
    "forward-gradient (the study's)": {"trainer.name": "forward-gradient", "trainer.structure": "full"},
    "forward-gradient, rank-one": {"trainer.name": "forward-gradient", "trainer.structure": "rank1"},
}
"""Columns of the table of the study's setting, each with what holds for its runs."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


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


def study_table(folders: Sequence[Path]) -> str:
    """As the study sets it: a row for every model, dataset and length, a column for every trainer."""
    runs = [run for folder in folders for run in load_results(folder)]
    cases = sorted(
        {_case(run) for run in runs}, key=lambda case: (list(MODELS).index(case[0]), -case[3], case)
    )
    rows = []
    for case in cases:
        model, dataset, limit, epochs = case
        cells = []
        for wanted in STUDY.values():
            found = [run for run in runs if _case(run) == case and _matches(run, wanted)]
            cells.append(interval_text(accuracies(found)) if found else "")
        images = f", {limit:,} images" if limit else ""
        rows.append([MODEL_TITLES.get(model, model), DATASET_TITLES[dataset] + images, str(epochs), *cells])
    return table(["model", "dataset", "epochs", *STUDY], rows)


SUMMARY = {
    "trainers": "FC, 20 epochs",
    "mlp": "MLP, 10 epochs",
    "cnn_trainers": "CNN, 10,000 images, 5 epochs",
}
"""Folders in the summary, each with what its column is called."""
ROWS: dict[str, dict[str, object]] = {
    "backprop": {"trainer.name": "backprop"},
    "feedback-forward-gradient": {"trainer.name": "feedback-forward-gradient"},
    "feedback-alignment, sign": {"trainer.name": "feedback-alignment", "trainer.feedback": "sign"},
    "feedback-alignment, random": {"trainer.name": "feedback-alignment", "trainer.feedback": "random"},
    "feedback-alignment, direct": {"trainer.name": "feedback-alignment", "trainer.feedback": "direct"},
    "local-loss": {"trainer.name": "local-loss"},
    "guided-forward-gradient": {"trainer.name": "guided-forward-gradient"},
    "activity, next-weights": {"trainer.name": "activity-forward-gradient", "trainer.guess": "next-weights"},
    "activity, exact output": {"trainer.name": "activity-forward-gradient", "trainer.exact_output": True},
    "**frozen** (the control)": {"trainer.name": "frozen", "trainer.exact_stages": None},
    "frozen, last two layers exact": {"trainer.name": "frozen", "trainer.exact_stages": 2},
    "forward-gradient, rank-one, exact output": {
        "trainer.name": "forward-gradient",
        "trainer.structure": "rank1",
        "trainer.exact_output": True,
    },
    "activity-forward-gradient": {
        "trainer.name": "activity-forward-gradient",
        "trainer.guess": "rademacher",
        "trainer.exact_output": False,
    },
    "forward-gradient (the study's)": {"trainer.name": "forward-gradient", "trainer.guess": "normal"},
    "forward-gradient, rank-one": {
        "trainer.name": "forward-gradient",
        "trainer.structure": "rank1",
        "trainer.exact_output": False,
    },
    "zeroth-order": {"trainer.name": "zeroth-order"},
}
"""Rows of the summary, each with what holds for its runs."""


def summary_table() -> str:
    """Every trainer with a rate of its own, a column for every task; the mean and half its 95 % interval."""
    runs = {title: load_results(RESULTS / name) for name, title in SUMMARY.items()}
    rows = []
    for title, wanted in ROWS.items():
        cells, backwards = [], ""
        for task in runs.values():
            found = [run for run in task if _matches(run, wanted)]
            cells.append(half_text(accuracies(found)) if found else "")
            backwards = found[0].uses_backwards if found else backwards
        if any(cells):
            rows.append([title, backwards, *cells])
    ordered = sorted(rows, key=lambda row: max(row[2:3], row[4:5]), reverse=True)
    return table(["trainer", "uses backwards", *runs], ordered)


def half_text(values: Sequence[float]) -> str:
    """The mean of values and half its 95 % interval."""
    found = summarise_differences(values)
    return f"{found.mean:.4f}" + (f" ± {found.interval[1] - found.mean:.4f}" if found.interval else "")


MODEL_TITLES = {"fc": "FC", "cnn": "CNN", "vgg16": "VGG-16", "resnet18": "ResNet-18"}
DATASET_TITLES = {name: name for name in DATASETS} | {
    "mnist": "MNIST",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
}


def _case(run: RunRecord) -> tuple[str, str, int, int]:
    settings = run.settings
    limit = settings.get("dataset.limit") or 0
    return run.component("model"), run.component("dataset"), int(limit), int(run.config["epochs"])


def _matches(run: RunRecord, wanted: dict[str, object]) -> bool:
    return all(run.settings.get(key) == value for key, value in wanted.items())


def trainers_table(folder: Path, grid: Path | None = None) -> str:
    """Every trainer of one task, the most accurate first, with its control and what tuning leaves open.

    Args:
        folder: of the runs, all of one model, dataset and number of epochs.
        grid: the table that tuning wrote; None where the rates were not tuned on this task.
    """
    (task,) = make_tasks(load_results(folder))
    controls = compare_with_control([task])
    baseline = {run.seed: run for each in task.series if each.trainer == "backprop" for run in each.runs}
    noise = tuning_noise(grid) if grid else {}
    rows = []
    for each in task.series:
        values = accuracies(each.runs)
        behind = [read(run, ACCURACY) - read(baseline[run.seed], ACCURACY) for run in each.runs]
        judged = controls.get(each.runs[0].path)
        cells = [
            short_label(each),
            each.uses_backwards,
            f"{each.runs[0].settings['optimizer.lr']:.2g}",
            interval_text(values),
            "" if each.trainer == "backprop" else interval_text(behind, "+.4f"),
            judged.verdict if judged else "",
            f"{noise[key]:.4f}" if (key := noise_key(each, noise)) else "",
            number(each, lambda run: run.forward_passes_per_step, ".2f"),
            number(each, lambda run: read(run, "peak_memory_mib"), ".1f"),
        ]
        rows.append((fmean(values), cells))
    head = [
        "trainer",
        "uses backwards",
        "rate",
        "test accuracy, 95 %",
        "minus backprop, 95 %",
        "beats frozen?",
    ]
    head += ["noise of tuning", "forward passes", "memory, MiB"]
    ordered = sorted(rows, key=lambda row: row[0], reverse=True)
    return table(head, [cells for _, cells in ordered])


def short_label(series: Series) -> str:
    """A series by its trainer and what sets it apart but its rate, as ``name, option: value``."""
    words = [word for word in series.label.split(", ") if not word.startswith("lr=")]
    return ", ".join(words).replace("=", ": ")


def number(series: Series, of: Callable[[RunRecord], float], form: str) -> str:
    """The mean over runs, empty where one has none."""
    mean = fmean(map(of, series.runs))
    return "" if math.isnan(mean) else f"{mean:{form}}"


def tuning_noise(grid: Path) -> dict[str, float]:
    """By the name of a configuration: the spread of the test accuracy when each tuning seed alone chooses.

    Every seed chooses the rate with its highest validation accuracy; a rate's test accuracy is the mean over
    all tuning seeds.
    """
    rows = pd.read_csv(grid)
    found = {}
    for name, trials in rows.groupby("run", sort=False):
        trials = trials[trials["epochs"] == trials["epochs"].max()]
        mean = trials.groupby("value")[ACCURACY].mean()
        choices = trials.loc[trials.groupby("seed")["val_accuracy"].idxmax(), "value"]
        reached = mean[choices]
        found[str(name)] = float(reached.max() - reached.min())
    return found


def noise_key(series: Series, noise: dict[str, float]) -> str | None:
    """The name under which tuning knew a series: that its tuned config has in ``name``."""
    name = str(series.runs[0].config.get("name"))
    return next((key for key in noise if short_name(key) == name), None)
