"""Figures from run directories, one of each kind for every dataset and model."""

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, isfinite
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from fgbench.analysis.records import load_results
from fgbench.analysis.series import Series, group_series
from fgbench.errors import ConfigError
from fgbench.plotting import charts, cost, layers
from fgbench.plotting.data import PASSES, TIME, Data, by_epoch, by_layer, by_run
from fgbench.plotting.panels import FOUR_PANELS, MARKS, Panel, count_runs
from fgbench.plotting.style import (
    SHEETS,
    STYLE,
    Sheet,
    add_title,
    figure_format,
    plain,
    save_figure,
    series_looks,
    series_marker,
)

SPREAD = "Lines, bars and points: mean over n seeds. Bands and whiskers: smallest to largest."


@dataclass(frozen=True)
class FigureSpec:
    """One kind of figure.

    Attributes:
        title: what it shows.
        panels: what it is made of.
        choose: of the series of a dataset and model, those it has something to show of.
        lacks: what a results folder has not, when nothing can be shown.
        data: tables of the numbers behind it, by what a row of each is for.
        lines: the series that stand for a line each, where a line is not a series.
        points: whether a series is a point, and not a line or a bar.
        numbered: whether points have numbers, with which names in the legend begin, where names do not fit.
        columns: how many panels stand side by side at most.
    """

    title: str
    panels: tuple[Panel, ...]
    choose: Callable[[Sequence[Series]], list[Series]]
    lacks: str
    data: dict[str, Data]
    lines: Callable[[Sequence[Series]], list[Series]] | None = None
    points: bool = False
    numbered: bool = False
    columns: int = 2


def _having(*columns: str) -> Callable[[Sequence[Series]], list[Series]]:
    def choose(series: Sequence[Series]) -> list[Series]:
        return [
            each
            for each in series
            if each.averaged
            and all(any(run.metrics[name].notna().any() for run in each.averaged) for name in columns)
        ]

    return choose


def _swept(block: str, key: str) -> Callable[[Sequence[Series]], list[Series]]:
    def choose(series: Sequence[Series]) -> list[Series]:
        begun = [each for each in series if each.averaged]
        return [each for line in charts.swept(begun, block, key).values() for each in line]

    return choose


_number = partial(charts.name_points, numbered=True)

KINDS = {
    "panels": FigureSpec(
        "Accuracy, memory, loss and time",
        FOUR_PANELS,
        _having(),
        "has finished an epoch yet",
        {
            "epochs": by_epoch("test_accuracy", "train_loss"),
            "runs": by_run("peak_memory_mib", "epoch_time_s"),
        },
    ),
    "time": FigureSpec(
        "Over time",
        (Panel(charts.draw_loss_over_time), Panel(charts.draw_accuracy_over_time)),
        _having("epoch_time_s"),
        "has timed an epoch yet",
        {"epochs": by_epoch(TIME, "train_loss", "test_accuracy")},
    ),
    "tradeoff": FigureSpec(
        "Accuracy against cost",
        (
            Panel(charts.draw_time_tradeoff, finish=charts.name_points),
            Panel(charts.draw_memory_tradeoff, finish=charts.name_points),
        ),
        _having("test_accuracy"),
        "has measured its test accuracy yet",
        {"runs": by_run(TIME, "peak_memory_mib", "test_accuracy")},
        points=True,
    ),
    "cost": FigureSpec(
        "Accuracy against forward passes and time",
        (
            Panel(cost.draw_accuracy_by_passes, finish=_number, inches=3.2),
            Panel(cost.draw_accuracy_by_time, finish=_number, inches=3.2),
        ),
        lambda series: _having("test_accuracy")(
            [each for each in series if any(isfinite(run.forward_passes_per_step) for run in each.averaged)]
        ),
        "has both its test accuracy and forward_passes_per_step in summary.json",
        {"runs": by_run(PASSES, TIME, "test_accuracy")},
        points=True,
        numbered=True,
        columns=1,
    ),
    "cosine": FigureSpec(
        "Quality of the gradient",
        (Panel(charts.draw_cosine), Panel(charts.draw_relative_error)),
        _having("gradient_cosine"),
        "compares its gradient with the true one (the key diagnostics.every asks for it)",
        {"epochs": by_epoch("gradient_cosine", "gradient_relative_error")},
    ),
    "noise": FigureSpec(
        "Noise and alignment over training, by layer",
        (Panel(layers.draw_layer_noise), Panel(layers.draw_layer_cosine)),
        lambda series: [each for each in series if any(len(run.layers) for run in each.averaged)],
        "compares its gradient with the true one (the key diagnostics.every asks for it)",
        {"layers": by_layer("noise", "cosine")},
    ),
    "lr": FigureSpec(
        "Sensitivity to the learning rate",
        (Panel(charts.draw_learning_rates),),
        _swept("optimizer", "lr"),
        "has a companion that differs in optimizer.lr alone",
        {"runs": by_run("optimizer.lr", "test_accuracy")},
        partial(charts.swept_heads, block="optimizer", key="lr"),
    ),
    "depth": FigureSpec(
        "Scaling with depth",
        (Panel(charts.draw_time_by_depth), Panel(charts.draw_memory_by_depth)),
        _swept("model", "layers"),
        "has a companion that differs in model.layers alone",
        {"runs": by_run("model.layers", "epoch_time_s", "peak_memory_mib")},
        partial(charts.swept_heads, block="model", key="layers"),
    ),
}
"""Every kind of figure. To add one: its panels' draw functions, their data and a row here."""


def plot_results(
    path: str | Path,
    out: str | Path | None = None,
    kinds: Iterable[str] | None = ("panels",),
    style: str = "screen",
    tag: str | None = None,
) -> list[Path]:
    """Draw figures of every dataset and model found.

    Args:
        path: a results folder, or any folder in it.
        out: the file, ending in png, svg or pdf; those of the style without an ending. Several get
            ``-MODEL_DATASET`` and the kind before the ending. Or a folder that is there, for
            ``MODEL_DATASET.png`` ... in it; by default ``path``.
        kinds: names in ``KINDS``; all that have something to show when None.
        style: a name in ``SHEETS``.
        tag: draw only the runs that have it; a figure named by its model and dataset is named by it too.

    Returns:
        The files written.

    Raises:
        ConfigError: no such kind, no runs there, nothing in them to show, or ``out`` has another ending.
        FgbenchError: a file cannot be written.
    """
    wanted = list(KINDS if kinds is None else kinds)
    if unknown := [kind for kind in wanted if kind not in KINDS]:
        raise ConfigError(f"--kind: got {unknown[0]}, expected one of {', '.join([*KINDS, 'all'])}")
    target = Path(path) if out is None else Path(out)
    in_folder = out is None or target.is_dir()
    ending = "" if in_folder else figure_format(target)
    sheet = SHEETS[style]
    endings = [ending] if ending else sheet.endings
    groups = group_series(load_results(path, tag))
    figures = [
        (group, kind, chosen)
        for kind in wanted
        for group, series in groups.items()
        if (chosen := KINDS[kind].choose(series))
    ]
    if not figures:
        lacks = KINDS[wanted[0]].lacks
        raise ConfigError(f"no run in {path} {lacks}: nothing to plot")
    several = len({group for group, _, _ in figures}) > 1
    written = []
    for (dataset, model), kind, chosen in figures:
        name = re.sub(r"[^\w.-]+", "-", f"{model}_{dataset}")
        base = target / name if in_folder else target.with_suffix("") if ending else target
        parts = [base.name, *([name] if several and not in_folder else [])]
        parts += [tag] if tag and in_folder else []
        parts += [kind] if kind != "panels" and (in_folder or kinds is None) else []
        figure = compose(KINDS[kind], f"{model} on {dataset}", chosen, sheet)
        for each in endings:
            written.append(base.with_name(f"{'-'.join(parts)}.{each}"))
            save_figure(figure, written[-1])
    return written


def four_panels(title: str, series: Sequence[Series]) -> Figure:
    """The study's figure: test accuracy, peak memory, training loss and time per epoch of some series."""
    return compose(KINDS["panels"], title, series)


def compose(
    kind: FigureSpec, title: str, series: Sequence[Series], sheet: Sheet = SHEETS["screen"]
) -> Figure:
    """The panels of a kind in one figure, with a legend."""
    lines = kind.lines(series) if kind.lines else series
    looks = series_looks(lines)
    names = [each.label if kind.lines else f"{each.label} ({count_runs(each)})" for each in lines]
    names = [f"{place}  {name}" if kind.numbered else name for place, name in enumerate(names, 1)]
    columns = 2 if max(map(len, names)) < 52 and sheet.columns > 1 else 1
    letters = round(100 * sheet.width / SHEETS["screen"].width)
    names = [_wrap(name, letters) for name in names]
    spread = textwrap.fill(SPREAD, letters)
    legend_lines = 3 + spread.count("\n") + sum(name.count("\n") + 1 for name in names) / columns
    across = min(sheet.columns, kind.columns, len(kind.panels))
    rows = ceil(len(kind.panels) / across)
    heights = [
        max(panel.height(len(lines)) for panel in kind.panels[row * across : (row + 1) * across])
        for row in range(rows)
    ]
    with mpl.rc_context({**STYLE, **sheet.settings}):
        height = sum(heights) + 0.3 + 0.17 * legend_lines
        layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.04, hspace=0.03)
        figure = Figure(figsize=(sheet.width, height), layout=layout)
        if sheet.titled:
            add_title(figure, title)
        grid = figure.subplots(rows, across, squeeze=False, height_ratios=heights)
        marks: set[str] = set()
        for letter, panel, axes in zip("abcdefgh", kind.panels, grid.flat, strict=False):
            marks |= panel.draw(axes, series, looks)
            if len(kind.panels) > 1:
                axes.set_title(f"{letter}  {axes.get_title(loc='left')}")
        shown = [
            look | {"linestyle": "", "marker": series_marker(each)} if kind.points else look
            for each, look in zip(lines, looks, strict=True)
        ]
        handles = [Line2D([], [], **look, label=name) for look, name in zip(shown, names, strict=True)]
        handles += [
            Line2D([], [], **MARKS[mark], color="0.3", linestyle="", label=mark) for mark in sorted(marks)
        ]
        legend = figure.legend(
            handles=handles,
            loc="outside lower left",
            ncols=columns,
            handlelength=3,
            title=spread,
            alignment="left",
        )
        legend.get_title().set_color("0.35")
        drawn = zip(kind.panels, grid.flat, strict=False)
        numbered = [panel.finish(axes, series, looks) for panel, axes in drawn if panel.finish]
        if kind.numbered and not any(numbered):
            for place, text in enumerate(legend.get_texts()[: len(names)], 1):
                text.set_text(text.get_text().removeprefix(f"{place}  "))
    return figure


def _wrap(name: str, letters: int) -> str:
    """A name in lines of some letters; ``n = 3`` stays together."""
    lines = textwrap.wrap(plain(name).replace("n = ", "n\xa0=\xa0"), letters, subsequent_indent="    ")
    return "\n".join(lines).replace("\xa0", " ")
