"""The study's four panels, and the curves, bars and marks they share with other charts."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fgbench.analysis.pairing import environment_differences
from fgbench.analysis.readings import read
from fgbench.analysis.records import RunRecord
from fgbench.analysis.series import Series
from fgbench.formatting import format_number
from fgbench.plotting.style import Look, plain

MARKS: dict[str, dict[str, Any]] = {
    "diverged": {"marker": "X", "markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.5},
    "not shown to beat frozen": {"marker": "o", "markersize": 5, "markerfacecolor": "white"},
    "not finished": {"marker": "o", "markersize": 4.5, "markerfacecolor": "white"},
}
"""Markers for the end of a run that did not finish, and for points with weaker evidence."""

Draw = Callable[[Axes, Sequence[Series], Sequence[Look]], set[str]]
"""Draws series into axes, title and labels included; returns the ``MARKS`` it used."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes of a chart.

    Attributes:
        draw: what fills it.
        bars: whether it needs a line of its own for every series.
        finish: what is added once the axes have their final place; whether it gave the series numbers.
        inches: height, where it does not need more.
    """

    draw: Draw
    bars: bool = False
    finish: Callable[[Axes, Sequence[Series], Sequence[Look]], bool] | None = None
    inches: float = 2.3

    def height(self, num_series: int) -> float:
        """Height in inches."""
        return max(self.inches, 0.8 + 0.27 * num_series) if self.bars else self.inches


def draw_accuracy(axes: Axes, series: Sequence[Series], looks: Sequence[Look]) -> set[str]:
    """Test accuracy over the epochs."""
    axes.set(title="Test accuracy", ylabel="fraction correct")
    return draw_curves(axes, series, looks, "test_accuracy")


def draw_loss(axes: Axes, series: Sequence[Series], looks: Sequence[Look]) -> set[str]:
    """Training loss over the epochs."""
    axes.set(title="Training loss", ylabel="mean over the epoch")
    return draw_curves(axes, series, looks, "train_loss")


def draw_memory(axes: Axes, series: Sequence[Series], looks: Sequence[Look]) -> set[str]:
    """Peak memory, and what measured it."""
    sources = _draw_bars(axes, series, looks, "peak_memory_mib", "memory_source")
    differ = _differ(series)
    axes.set(title="Peak memory", xlabel=(f"MiB ({', '.join(sources)})" if sources else "MiB") + differ)
    return set()


def draw_time(axes: Axes, series: Sequence[Series], looks: Sequence[Look]) -> set[str]:
    """Training time per epoch."""
    busy = _draw_bars(axes, series, looks, "epoch_time_s", "timing_note")
    note = "\n* timed while the machine was busy: do not compare" if busy else ""
    axes.set(title="Training time per epoch", xlabel=f"s, median over epochs{note}{_differ(series)}")
    return set()


def _differ(series: Sequence[Series]) -> str:
    differ = environment_differences(run for each in series for run in each.averaged)
    return "\nin different environments: do not compare" if differ else ""


FOUR_PANELS = (
    Panel(draw_accuracy),
    Panel(draw_memory, bars=True),
    Panel(draw_loss),
    Panel(draw_time, bars=True),
)


def draw_curves(axes: Axes, series: Sequence[Series], looks: Sequence[Look], column: str) -> set[str]:
    """``draw_curves_along`` the epochs."""
    marks = draw_curves_along(axes, series, looks, column, lambda run: run.metrics["epoch"])
    _limit_epochs(axes, [run for each in series for run in each.runs])
    return marks


def draw_curves_along(
    axes: Axes,
    series: Sequence[Series],
    looks: Sequence[Look],
    column: str,
    along: Callable[[RunRecord], "pd.Series[float]"],
) -> set[str]:
    """Mean and band of every series over the epochs all its averaged runs have; beyond, run by run and thin.

    Args:
        axes: to draw into.
        series: what to draw.
        looks: of every series.
        column: of metrics.csv.
        along: where the epochs of a run stand on the other axis, a value for each; means have their mean.

    Returns:
        The marks used, for the legend.
    """
    ends = []
    for each, look in zip(series, looks, strict=True):
        common = each.curve(column).replace([np.inf, -np.inf], np.nan).dropna()
        low, high = common.min(axis=1), common.max(axis=1)
        places = {run: along(run).set_axis(run.metrics["epoch"]) for run in each.runs if len(run.metrics)}
        x = pd.DataFrame({run.seed: places[run] for run in each.averaged}).mean(axis=1).loc[common.index]
        axes.plot(x, common.mean(axis=1), **look, marker="o" if len(common) == 1 else "", markersize=4)
        if len(common.columns) > 1 and len(common) > 1:
            axes.fill_between(x, low, high, color=look["color"], alpha=0.2, lw=0)
        elif len(common.columns) > 1:
            axes.vlines(x, low, high, color=look["color"], alpha=0.35, lw=4)
        for run, place in places.items():
            values = finite(run, column)
            alone = values.iloc[max(0, len(common) - 1) :] if run in each.averaged else values
            if len(alone) > 1:
                axes.plot(place[alone.index], alone, **look, lw=0.8, alpha=0.8)
            if run.state != "finished":
                mark = "diverged" if run.state == "diverged" else "not finished"
                ends.append((place, values, mark, look["color"]))
    limit_values(axes, [run for each in series for run in each.runs], column)
    bottom, top = axes.get_ylim()
    for place, values, mark, colour in ends:
        at = place[values.index[-1]] if len(values) else place.iloc[-1]
        edge = top if column.endswith("loss") else bottom
        y = min(max(values.iloc[-1], bottom), top) if len(values) else edge
        axes.plot(at, y, **MARKS[mark], color=colour, clip_on=False, zorder=5)
    return {mark for _, _, mark, _ in ends}


def finite(run: RunRecord, column: str) -> "pd.Series[float]":
    """A column by epoch, without the values that are missing or not finite."""
    return run.metrics.set_index("epoch")[column].replace([np.inf, -np.inf], np.nan).dropna()


def _limit_epochs(axes: Axes, runs: Sequence[RunRecord]) -> None:
    axes.set_xlabel("epoch")
    last = max(run.last_epoch for run in runs)
    margin = 0.02 * (last - 1) or 0.5
    axes.set_xlim(1 - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10], min_n_ticks=1))


def limit_values(axes: Axes, runs: Sequence[RunRecord], column: str) -> None:
    """Limits that ignore diverged runs; a logarithmic axis if a loss spans decades."""
    calm = [run for run in runs if run.state != "diverged" and len(run.metrics)] or runs
    values = np.concatenate([finite(run, column).to_numpy(dtype=float) for run in calm])
    if not len(values):
        return
    low, high = values.min(), values.max()
    if column.endswith("loss") and low > 0 and high > 50 * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.2, high * 1.2)
        if high < 3000 * low:  # too few powers of ten to read by
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        margin = 0.06 * (high - low) or 0.05
        axes.set_ylim(low - margin if low < 0 else max(0.0, low - margin), high + margin)


def _draw_bars(
    axes: Axes, series: Sequence[Series], looks: Sequence[Look], column: str, notes: str
) -> list[str]:
    """A bar for every series, its name above it and its value beside it: a peak of memory, a median of time.

    Returns:
        The different texts in the text column ``notes``; a timing note is marked with a star.
    """
    measured = [[value for run in each.averaged if isfinite(value := read(run, column))] for each in series]
    longest = max((value for values in measured for value in values), default=0.0) or 1.0
    found: dict[str, None] = {}
    names = _shorten([each.label for each in series])
    for place, (each, name, look, values) in enumerate(zip(series, names, looks, measured, strict=True)):
        texts = list(dict.fromkeys(note for run in each.averaged for note in run.notes(notes)))
        found |= dict.fromkeys(texts)
        mean, reach = (float(np.mean(values)), max(values)) if values else (0.0, 0.0)
        text = (f"{mean:#.3g}" if mean < 99.95 else format_number(mean, ",.0f")) if values else "not measured"
        star = " *" if texts and notes == "timing_note" else ""
        beside: dict[str, Any] = {"textcoords": "offset points", "va": "center"}
        axes.barh(place + 0.16, mean, height=0.42, color=look["color"])
        if values and reach - min(values) > 0.005 * longest:
            for colour, width in (("white", 2.2), ("0.15", 1.0)):
                axes.hlines(place + 0.16, min(values), reach, color=colour, lw=width)
        axes.annotate(plain(name), (0, place - 0.26), (2, 0), fontsize=6.5, **beside)
        axes.annotate(text + star, (reach, place + 0.16), (3, 0), fontsize=7, color="0.2", **beside)
    spare = max(0.0, (4 - len(series)) / 2)
    axes.set(xlim=(0, longest * 1.17), ylim=(len(series) - 0.5 + spare, -0.6 - spare), yticks=[])
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    return list(found)


def count_runs(series: Series) -> str:
    """``n = 3``, and how many of them diverged or did not finish."""
    left_out = sum(len(run.metrics) > 0 for run in series.runs) - len(series.averaged)
    diverged = sum(run.state == "diverged" for run in series.averaged)
    stopped = sum(run.stopped_early for run in series.averaged)
    counts = [f"n = {len(series.averaged)}"]
    counts += [f"{diverged} diverged"] if diverged else []
    counts += [f"{stopped} stopped early"] if stopped else []
    counts += [f"{left_out} more not finished"] if left_out else []
    return ", ".join(counts)


def _shorten(labels: Sequence[str], length: int = 58) -> list[str]:
    """Labels in so many letters each: words that most of them share are left out, the trainer never.

    As long as possible, none that tells a label from others.
    """
    words = [label.split(", ") for label in labels]
    uses = Counter(word for each in words for word in each)

    def rank(kept: list[str], word: str) -> tuple[int, int]:
        rest = {*kept} - {word}
        return -sum(rest <= {*each} for each in words), uses[word]

    short = []
    for label in labels:
        kept, whole = label.split(", "), label
        while len(whole) > length and len(kept) > 1:
            kept.remove(max(kept[1:], key=partial(rank, kept)))
            whole = ", ".join([*kept, "…"])
        end = length // 2
        short.append(whole if len(whole) <= length else f"{whole[: length - end - 1]}…{whole[-end:]}")
    return short
