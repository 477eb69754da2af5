"""Figures from run directories: the study's four panels for every dataset and model. Imports no torch."""

import re
import textwrap
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fgbench.analysis.records import RunRecord, load_results
from fgbench.analysis.series import Series, group_series
from fgbench.errors import ConfigError
from fgbench.plot_style import STYLE, Look, figure_format, save_figure, series_looks

_MARKS: dict[str, dict[str, Any]] = {
    "diverged": {"marker": "X", "markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.5},
    "not finished": {"marker": "o", "markersize": 4.5, "markerfacecolor": "white"},
}


def plot_results(path: str | Path, out: str | Path | None = None) -> list[Path]:
    """Draw the four panels (accuracy, memory, training loss, time) for every dataset and model found.

    Args:
        path: a results folder, or any folder in it.
        out: the file to write, ending in png, svg or pdf; PNG and SVG without an ending. Several figures get
            ``-MODEL_DATASET`` before the ending. By default ``path/MODEL_DATASET.png`` and ``.svg``.

    Returns:
        The files written.

    Raises:
        ConfigError: no runs there, none with an epoch done, or ``out`` has another ending.
        FgbenchError: a file cannot be written.
    """
    ending = figure_format(Path(out)) if out else ""
    endings = [ending] if ending else ["png", "svg"]
    groups = {
        group: begun
        for group, series in group_series(load_results(path)).items()
        if (begun := [each for each in series if each.averaged])
    }
    if not groups:
        raise ConfigError(f"no run in {path} has finished an epoch yet: nothing to plot")
    written = []
    for (dataset, model), series in groups.items():
        name = re.sub(r"[^\w.-]+", "-", f"{model}_{dataset}")
        base = Path(path, name) if out is None else Path(out).with_suffix("") if ending else Path(out)
        if out is not None and len(groups) > 1:
            base = base.with_name(f"{base.name}-{name}")
        figure = four_panels(f"{model} on {dataset}", series)
        for each in endings:
            written.append(base.with_name(f"{base.name}.{each}"))
            save_figure(figure, written[-1])
    return written


def four_panels(title: str, series: Sequence[Series]) -> Figure:
    """The study's figure: test accuracy, peak memory, training loss and time per epoch of some series."""
    looks = series_looks(series)
    names = [f"{each.label} ({_count(each)})" for each in series]
    columns = 2 if max(map(len, names)) < 52 else 1
    names = ["\n".join(textwrap.wrap(name, 100, subsequent_indent="    ")) for name in names]
    legend_height = 0.17 * (3 + sum(name.count("\n") + 1 for name in names) / columns)
    with mpl.rc_context(STYLE):
        height = 2 * max(2.1, 0.8 + 0.27 * len(series)) + 0.3 + legend_height
        layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.04, hspace=0.03)
        figure = Figure(figsize=(7.2, height), layout=layout)
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.012, ha="left")
        (accuracy, memory), (loss, time) = figure.subplots(2, 2)
        marks = _draw_curves(accuracy, series, looks, "test_accuracy")
        marks |= _draw_curves(loss, series, looks, "train_loss")
        sources = _draw_bars(memory, series, looks, "peak_memory_mib", "memory_source")
        busy = _draw_bars(time, series, looks, "epoch_time_s", "timing_note")
        accuracy.set(title="a  Test accuracy", ylabel="fraction correct")
        memory.set(title="b  Peak memory", xlabel=f"MiB ({', '.join(sources)})" if sources else "MiB")
        loss.set(title="c  Training loss", ylabel="mean over the epoch")
        note = "\n* some epochs timed while the machine was busy" if busy else ""
        time.set(title="d  Training time per epoch", xlabel=f"s, median over epochs{note}")
        handles = [Line2D([], [], **look, label=name) for look, name in zip(looks, names, strict=True)]
        handles += [
            Line2D([], [], **_MARKS[mark], color="0.3", linestyle="", label=mark) for mark in sorted(marks)
        ]
        legend = figure.legend(
            handles=handles,
            loc="outside lower left",
            ncols=columns,
            handlelength=3,
            title="Lines and bars: mean over n seeds. Bands and whiskers: smallest to largest.",
            alignment="left",
        )
        legend.get_title().set_color("0.35")
    return figure


def _draw_curves(axes: Axes, series: Sequence[Series], looks: Sequence[Look], column: str) -> set[str]:
    """Mean and band of every series over the epochs all its averaged runs have; beyond, run by run and thin.

    Returns:
        The marks used, for the legend.
    """
    ends = []
    for each, look in zip(series, looks, strict=True):
        common = each.curve(column).replace([np.inf, -np.inf], np.nan).dropna()
        low, high = common.min(axis=1), common.max(axis=1)
        axes.plot(
            common.index, common.mean(axis=1), **look, marker="o" if len(common) == 1 else "", markersize=4
        )
        if len(common.columns) > 1 and len(common) > 1:
            axes.fill_between(common.index, low, high, color=look["color"], alpha=0.2, lw=0)
        elif len(common.columns) > 1:
            axes.vlines(common.index, low, high, color=look["color"], alpha=0.35, lw=4)
        for run in each.runs:
            values = _finite(run, column)
            alone = values.iloc[max(0, len(common) - 1) :] if run in each.averaged else values
            if len(alone) > 1:
                axes.plot(alone.index, alone, **look, lw=0.8, alpha=0.8)
            if run.state != "finished" and len(run.metrics):
                mark = "diverged" if run.state == "diverged" else "not finished"
                ends.append((run.last_epoch, values, mark, look["color"]))
    _limit(axes, [run for each in series for run in each.runs], column)
    bottom, top = axes.get_ylim()
    for epoch, values, mark, colour in ends:
        edge = top if column.endswith("loss") else bottom
        place = (values.index[-1], min(max(values.iloc[-1], bottom), top)) if len(values) else (epoch, edge)
        axes.plot(*place, **_MARKS[mark], color=colour, clip_on=False, zorder=5)
    return {mark for _, _, mark, _ in ends}


def _finite(run: RunRecord, column: str) -> "pd.Series[float]":
    return run.metrics.set_index("epoch")[column].replace([np.inf, -np.inf], np.nan).dropna()


def _limit(axes: Axes, runs: Sequence[RunRecord], column: str) -> None:
    """Limits that a run which diverged cannot spoil; a logarithmic axis where a loss spans decades."""
    axes.set_xlabel("epoch")
    last = max(run.last_epoch for run in runs)
    margin = 0.02 * (last - 1) or 0.5
    axes.set_xlim(1 - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10], min_n_ticks=1))
    calm = [run for run in runs if run.state != "diverged" and len(run.metrics)] or runs
    values = np.concatenate([_finite(run, column).to_numpy(dtype=float) for run in calm])
    if not len(values):
        return
    low, high = values.min(), values.max()
    if column.endswith("loss") and low > 0 and high > 50 * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.2, high * 1.2)
    else:
        margin = 0.06 * (high - low) or 0.05
        axes.set_ylim(max(0.0, low - margin), high + margin)


def _draw_bars(
    axes: Axes, series: Sequence[Series], looks: Sequence[Look], column: str, notes: str
) -> list[str]:
    """A bar for every series, its name above it and its value beside it: a peak of memory, a median of time.

    Returns:
        The different texts in the text column ``notes``; a timing note is marked with a star.
    """
    measure = RunRecord.median if column.endswith("_s") else RunRecord.peak
    measured = [
        [value for run in each.averaged if isfinite(value := measure(run, column))] for each in series
    ]
    longest = max((value for values in measured for value in values), default=0.0) or 1.0
    found: dict[str, None] = {}
    for place, (each, look, values) in enumerate(zip(series, looks, measured, strict=True)):
        told = list(dict.fromkeys(note for run in each.averaged for note in run.notes(notes)))
        found |= dict.fromkeys(told)
        mean, reach = (float(np.mean(values)), max(values)) if values else (0.0, 0.0)
        text = (f"{mean:#.3g}" if mean < 99.95 else f"{mean:,.0f}") if values else "not measured"
        star = " *" if told and notes == "timing_note" else ""
        beside: dict[str, Any] = {"textcoords": "offset points", "va": "center"}
        axes.barh(place + 0.16, mean, height=0.42, color=look["color"])
        if values and reach - min(values) > 0.005 * longest:
            for colour, width in (("white", 2.2), ("0.15", 1.0)):
                axes.hlines(place + 0.16, min(values), reach, color=colour, lw=width)
        axes.annotate(_shorten(each.label), (0, place - 0.26), (2, 0), fontsize=6.5, **beside)
        axes.annotate(text + star, (reach, place + 0.16), (3, 0), fontsize=7, color="0.2", **beside)
    spare = max(0.0, (4 - len(series)) / 2)
    axes.set(xlim=(0, longest * 1.17), ylim=(len(series) - 0.5 + spare, -0.6 - spare), yticks=[])
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    return list(found)


def _count(series: Series) -> str:
    """``n = 3``, and what became of those that did not finish."""
    left_out = sum(len(run.metrics) > 0 for run in series.runs) - len(series.averaged)
    diverged = sum(run.state == "diverged" for run in series.averaged)
    told = [f"n = {len(series.averaged)}"]
    told += [f"{diverged} diverged"] if diverged else []
    told += [f"{left_out} more not finished"] if left_out else []
    return ", ".join(told)


def _shorten(label: str, length: int = 58) -> str:
    return label if len(label) <= length else label[: length - 1].rstrip(" ,") + "…"
