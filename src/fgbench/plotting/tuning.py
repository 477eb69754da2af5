"""The curves of tuning on a grid: the score at every value of the tuned key."""

from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from fgbench.plotting.style import SHEETS, STYLE, add_title, plain, save_figure, trainer_hue
from fgbench.registry import TRAINERS

PANEL_HEIGHT, LINE_HEIGHT, LEGEND_DROP = 2.6, 0.19, 0.45
"""Inches of a panel without its legend, of a line of that, and from the axes down to it."""


def plot_tuning(curves: Path) -> list[Path]:
    """Draw the table that ``fgbench tune`` wrote for a grid, in the same folder.

    A panel for every model and dataset, a line for every configuration: the mean over its seeds of the
    validation accuracy at the end, a point for every seed, a ring round the value that was chosen, and a
    cross at the bottom where a run diverged. A first look with fewer epochs is a thin line.

    Args:
        curves: the CSV file.
    """
    table = pd.read_csv(curves)
    tasks = list(dict.fromkeys(table["task"]))
    sheet = SHEETS["screen"]
    with mpl.rc_context(STYLE):
        lines = table.groupby("task")["run"].nunique().max()
        size = (sheet.width, 0.5 + (PANEL_HEIGHT + LINE_HEIGHT * lines) * len(tasks))
        figure = Figure(size, layout="constrained")
        for axes, task in zip(figure.subplots(len(tasks), squeeze=False).flat, tasks, strict=True):
            _draw(axes, task, table[table["task"] == task])
        add_title(figure, "Tuning: accuracy at every value of the grid")
        paths = [curves.with_suffix(f".{ending}") for ending in sheet.endings]
        for path in paths:
            save_figure(figure, path)
    return paths


def _draw(axes: Axes, task: str, table: pd.DataFrame) -> None:
    labels = list(dict.fromkeys(table["run"]))
    own = sorted(set(table["trainer"]) - set(TRAINERS))
    drawn: dict[str, int] = {}
    whole = table.groupby("run")["epochs"].transform("max")
    for label in labels:
        rows = table[table["run"] == label]
        trainer = rows["trainer"].iloc[0]
        style = ("-", "--", ":", "-.")[drawn.setdefault(trainer, 0) % 4]
        drawn[trainer] += 1
        hue = trainer_hue(trainer, own)
        look = rows[rows["epochs"] < whole[rows.index]]
        rows = rows[rows["epochs"] == whole[rows.index]]
        axes.plot(_means(look), style, color=hue, alpha=0.45, linewidth=0.8)
        finished, means = rows[rows["state"] == "finished"], _means(rows)
        words = label.removeprefix(f"{task}, ")
        axes.plot(means.index, means, style, color=hue, label=plain(words))
        axes.plot(finished["value"], finished["val_accuracy"], ".", color=hue, markersize=3)
        chosen = means[means.index.isin(rows.loc[rows["chosen"], "value"])]
        axes.plot(chosen.index, chosen, "o", color=hue, markersize=8, fillstyle="none")
        diverged = rows.loc[rows["state"] == "diverged", "value"].unique()
        bottom = axes.get_xaxis_transform()
        axes.plot(diverged, [0.03] * len(diverged), "x", color=hue, markersize=4, transform=bottom)
    looks = table["epochs"][table["epochs"] < whole]
    if len(looks):
        task += f": first {looks.min()} epochs (thin lines), then {' or '.join(map(str, sorted(set(whole))))}"
    axes.set_xscale("log")
    axes.set(xlabel=table["key"].iloc[0], ylabel="validation accuracy", title=plain(task))
    below = axes.transAxes + ScaledTranslation(0, -LEGEND_DROP, axes.figure.dpi_scale_trans)
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=below)


def _means(rows: pd.DataFrame) -> pd.Series:
    """The mean over seeds of the validation accuracy, at the values where no run diverged."""
    whole = rows.groupby("value").filter(lambda each: (each["state"] == "finished").all())
    return whole.groupby("value")["val_accuracy"].mean()
