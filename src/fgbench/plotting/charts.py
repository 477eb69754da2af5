"""Charts beyond the four panels: over time, trade-offs, gradient quality, swept keys."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.path import Path as LinePath
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from fgbench.analysis.pairing import environment_differences
from fgbench.analysis.readings import read
from fgbench.analysis.records import RunRecord
from fgbench.analysis.series import Series
from fgbench.plotting.panels import MARKS, draw_curves, draw_curves_along
from fgbench.plotting.style import Look, plain, series_marker

ACROSS = "across"
"""The id of lines across the whole axes, which names must not touch."""

Place = tuple[tuple[float, float], str]
"""An offset from a point, in points, and the alignment of the text there."""

MOST_LABELS = 8
"""With more series than this, points have no names; the legend has them, in some figures by number."""


def training_time(run: RunRecord) -> float:
    """Seconds spent training, evaluation and pauses left out."""
    return float(run.metrics["epoch_time_s"].sum()) if run.metrics["epoch_time_s"].notna().any() else np.nan


def longest_time(series: Sequence[Series]) -> float:
    """The longest training time of all runs, in seconds."""
    return max((training_time(run) for each in series for run in each.averaged), default=0.0)


def draw_loss_over_time(axes: Axes, series: Sequence[Series], looks: Sequence[Look]) -> set[str]:
    """Training loss over the time spent training."""
    axes.set(title="Training loss over time", ylabel="mean over the epoch")
    return _draw_over_time(axes, series, looks, "train_loss")


def draw_accuracy_over_time(axes: Axes, series: Sequence[Series], looks: Sequence[Look]) -> set[str]:
    """Test accuracy over the time spent training."""
    axes.set(title="Test accuracy over time", ylabel="fraction correct")
    return _draw_over_time(axes, series, looks, "test_accuracy")


def draw_time_tradeoff(axes: Axes, series: Sequence[Series], looks: Sequence[Look]) -> set[str]:
    """Final test accuracy against the time it took."""
    seconds = label_time(axes, series, longest_time(series))
    axes.set(title="Accuracy against time", ylabel="final test accuracy")
    return draw_points(axes, series, looks, lambda run: training_time(run) / seconds)


def draw_memory_tradeoff(axes: Axes, series: Sequence[Series], looks: Sequence[Look]) -> set[str]:
    """Final test accuracy against peak memory."""
    axes.set(title="Accuracy against memory", xlabel="peak memory, MiB", ylabel="final test accuracy")
    return draw_points(axes, series, looks, lambda run: read(run, "peak_memory_mib"))


def draw_cosine(axes: Axes, series: Sequence[Series], looks: Sequence[Look]) -> set[str]:
    """Cosine of the angle between the trainer's gradient and the true one."""
    axes.set(title="Cosine to the true gradient", ylabel="1: the same direction, 0: unrelated")
    return draw_curves(axes, series, looks, "gradient_cosine")


def draw_relative_error(axes: Axes, series: Sequence[Series], looks: Sequence[Look]) -> set[str]:
    """Length of the gradient's error, in lengths of the true gradient."""
    axes.set(title="Relative error of the gradient", ylabel="|estimate - gradient| / |gradient|")
    return draw_curves(axes, series, looks, "gradient_relative_error")


def draw_learning_rates(axes: Axes, series: Sequence[Series], looks: Sequence[Look]) -> set[str]:
    """Final test accuracy against the learning rate, a line for every configuration otherwise the same."""
    axes.set(title="Sensitivity to the learning rate", xlabel="learning rate", ylabel="final test accuracy")
    axes.set_xscale("log")
    axes.xaxis.set(major_locator=LogLocator(numticks=7), minor_formatter=NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-")))
    return _draw_swept(axes, series, looks, ("optimizer", "lr"), final_accuracy)


def draw_time_by_depth(axes: Axes, series: Sequence[Series], looks: Sequence[Look]) -> set[str]:
    """Time per epoch against the number of layers."""
    axes.set(
        title="Time per epoch by depth",
        xlabel="hidden layers",
        ylabel=f"s, median over epochs{doubt_times(series)}",
        ylim=(0, None),
    )
    return _draw_swept(axes, series, looks, ("model", "layers"), lambda run: read(run, "epoch_time_s"))


def draw_memory_by_depth(axes: Axes, series: Sequence[Series], looks: Sequence[Look]) -> set[str]:
    """Peak memory against the number of layers."""
    axes.set(title="Peak memory by depth", xlabel="hidden layers", ylabel="MiB", ylim=(0, None))
    return _draw_swept(axes, series, looks, ("model", "layers"), lambda run: read(run, "peak_memory_mib"))


def final_accuracy(run: RunRecord) -> float:
    """Test accuracy at the last epoch; NaN for a run that diverged."""
    return read(run, "test_accuracy")


def swept(series: Sequence[Series], block: str, key: str) -> dict[str, list[Series]]:
    """Series that differ in one key of the config alone, by what their labels share, in ascending order.

    Lines of a single series are left out.
    """
    lines: dict[str, list[Series]] = {}
    for each in series:
        if isinstance(_setting(each, block, key), int | float):
            words = each.label.split(", ")
            shared = [word for word in words if not word.startswith((f"{key}=", f"{block}.{key}="))]
            lines.setdefault(", ".join(shared), []).append(each)
    return {
        label: sorted(line, key=lambda each: float(_setting(each, block, key)))
        for label, line in lines.items()
        if len(line) > 1
    }


def swept_heads(series: Sequence[Series], block: str, key: str) -> list[Series]:
    """One series for every line of ``swept``, to name and colour it."""
    heads: list[Series] = []
    for label, line in swept(series, block, key).items():
        variant = sum(head.trainer == line[0].trainer for head in heads)
        heads.append(replace(line[0], label=label, variant=variant))
    return heads


def _setting(series: Series, block: str, key: str) -> Any:
    inner = series.runs[0].config.get(block)
    return inner.get(key) if isinstance(inner, dict) else None


def _draw_swept(
    axes: Axes,
    series: Sequence[Series],
    looks: Sequence[Look],
    place: tuple[str, str],
    measure: Callable[[RunRecord], float],
) -> set[str]:
    marks: set[str] = set()
    lost: list[tuple[float, str]] = []
    for line, look in zip(swept(series, *place).values(), looks, strict=True):
        rows = []
        for each in line:
            at, values = float(_setting(each, *place)), [measure(run) for run in each.averaged]
            if values and all(map(isfinite, values)):
                rows.append((at, float(np.mean(values)), min(values), max(values)))
            elif any(run.state == "diverged" for run in each.averaged):
                lost.append((at, look["color"]))
        if rows:
            x, mean, low, high = map(list, zip(*rows, strict=True))
            axes.plot(x, mean, **look, marker="o", markersize=3.5)
            axes.vlines(x, low, high, color=look["color"], lw=1)
    for at, colour in lost:
        axes.plot(at, axes.get_ylim()[0], **MARKS["diverged"], color=colour, clip_on=False, zorder=5)
        marks.add("diverged")
    return marks


def _draw_over_time(axes: Axes, series: Sequence[Series], looks: Sequence[Look], column: str) -> set[str]:
    times = [training_time(run) for each in series for run in each.runs]
    seconds = label_time(axes, series, max(filter(isfinite, times), default=0.0))
    marks = draw_curves_along(
        axes, series, looks, column, lambda run: run.metrics["epoch_time_s"].cumsum() / seconds
    )
    axes.set_xlim(left=0)
    return marks


def label_time(axes: Axes, series: Sequence[Series], longest: float) -> float:
    """Label the axis of training times up to ``longest`` seconds; seconds of the unit chosen for it.

    The label says why times are not to be compared, if they are not.
    """
    unit, seconds = ("h", 3600.0) if longest > 3 * 3600 else ("min", 60.0) if longest > 300 else ("s", 1.0)
    axes.set_xlabel(f"training time, {unit}{doubt_times(series)}")
    return seconds


def doubt_times(series: Sequence[Series]) -> str:
    """Why times are not to be compared, as the end of an axis' label; empty where they may be."""
    runs = [run for each in series for run in each.averaged]
    disturbed = any(run.notes("timing_note") for run in runs)
    differ = environment_differences(runs)
    return ", beside other work" * disturbed + ", in different environments" * bool(differ)


def draw_points(
    axes: Axes,
    series: Sequence[Series],
    looks: Sequence[Look],
    cost: Callable[[RunRecord], float],
    filled: Sequence[bool] | None = None,
) -> set[str]:
    """A point for every series, ``filled`` or hollow, with whiskers from its smallest to its largest seed."""
    marks: set[str] = set()
    lost: list[tuple[float, str]] = []
    farthest = 0.0
    for each, look, solid in zip(series, looks, filled or [True] * len(series), strict=True):
        table = pd.DataFrame([(cost(run), final_accuracy(run)) for run in each.averaged])
        x, y = table.mean(skipna=False)
        farthest = max(farthest, table[0].max()) if isfinite(x) else farthest
        if isfinite(x) and isfinite(y):
            reach = np.array([table.mean() - table.min(), table.max() - table.mean()]).clip(min=0)
            style = {"fmt": series_marker(each), "ms": 5, "lw": 1, "color": look["color"]}
            style |= {} if solid else {"mfc": "white"}
            bars = axes.errorbar(x, y, reach[:, [1]], reach[:, [0]], **style)
            bars.set_label(each.label)
        elif isfinite(x):
            lost.append((x, look["color"]))
    axes.margins(0.12)
    axes.set_xlim(0, 1.12 * farthest or 1.0)
    for x, colour in lost:
        axes.plot(x, axes.get_ylim()[0], **MARKS["diverged"], color=colour, clip_on=False, zorder=5)
        marks.add("diverged")
    return marks


def name_points(
    axes: Axes, series: Sequence[Series], looks: Sequence[Look], *, numbered: bool = False
) -> bool:
    """A name beside every point where one fits without touching a name, a point, a whisker or the border.

    Where there are more points than ``MOST_LABELS`` none. With ``numbered``, all points have the places of
    their series instead, from 1, where there are that many or a name does not fit.

    Returns:
        Whether the points have numbers.
    """
    many = len(series) > MOST_LABELS
    if many and not numbered:
        return False
    figure = cast(Figure, axes.figure)
    if figure.get_layout_engine():
        figure.draw_without_rendering()
    axes.get_xlim(), axes.get_ylim()  # what has been drawn decides the limits only when they are asked for
    if (not many and _write_names(axes, {each.label: plain(each.label) for each in series})) or not numbered:
        return False
    for text in [*axes.texts]:
        text.remove()
    _write_names(axes, {each.label: str(place) for place, each in enumerate(series, 1)}, _far_places())
    return True


def _write_names(axes: Axes, names: Mapping[str, str], far: Sequence[Place] = ()) -> bool:
    """Names of points by their labels, beside them, or at one of the places ``far`` from them.

    The latter are joined to their points by thin lines, which cross no name, and no other point or whisker
    if that is possible. A name without a place is left out; where there are far places, it touches something.

    Returns:
        Whether all have a place.
    """
    figure = cast(Figure, axes.figure)
    renderer = FigureCanvasAgg(figure).get_renderer()
    points = [bars for bars in axes.containers if isinstance(bars, ErrorbarContainer)]
    drawn = [[_extent(axes, each) for each in (bars.lines[0], *bars.lines[2])] for bars in points]
    taken = [box for boxes in drawn for box in boxes]
    taken += [_extent(axes, line) for line in axes.lines if line.get_gid() == ACROSS]
    written: list[Bbox] = []
    joints: list[LinePath] = []
    for bars, boxes in zip(points, drawn, strict=True):
        own, line = Bbox.union(boxes), bars.lines[0]
        at = tuple(np.asarray(line.get_xydata())[0])
        x, y = axes.transData.transform(at)
        reach = np.array([own.x0 - x, own.x1 - x, own.y0 - y, own.y1 - y]) * 72 / figure.dpi
        near = _places(*reach)
        joined = {"arrowstyle": "-", "lw": 0.4, "color": line.get_color(), "shrinkA": 2, "shrinkB": 3}
        others = [box for box in taken if not box.contains(x, y)]
        tries: list[tuple[Place, bool, list[Bbox] | None]] = [(place, False, []) for place in near]
        tries += [(place, True, avoided) for avoided in (others, []) for place in far]
        tries += [(near[0], False, None)] if far else []
        for (offset, align), away, avoided in tries:
            text = axes.annotate(
                names[str(bars.get_label())],
                at,
                offset,
                textcoords="offset points",
                ha=align,
                va="center",
                fontsize=6.5,
                color=line.get_color(),
                arrowprops=joined if away else None,
            )
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer)  # without the line
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
            inside &= axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1
            joint = [LinePath([((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2), (x, y)])] if away else []
            free = box.count_overlaps(taken + written) == 0 and not _cross(joints, [box])
            if avoided is None or (inside and free and not _cross(joint, written + avoided)):
                written.append(box)
                joints += joint
                break
            text.remove()
    return len(written) == len(points)


def _cross(lines: Iterable[LinePath], boxes: Sequence[Bbox]) -> bool:
    """Whether one of the lines crosses one of the boxes."""
    return any(line.intersects_bbox(box) for line in lines for box in boxes)


def _extent(axes: Axes, drawn: Artist) -> Bbox:
    """Where a marker or a whisker is, in pixels, with a little room around it."""
    data = drawn.get_datalim(axes.transData) if isinstance(drawn, LineCollection) else None
    box = axes.transData.transform_bbox(data) if data else drawn.get_window_extent()
    return box.padded(2)


def _places(left: float, right: float, below: float, above: float) -> list[Place]:
    """Where a name may stand beside a point whose whiskers reach so far, all in points, and its alignment."""
    return [
        ((right + 3, 0), "left"),
        ((left - 3, 0), "right"),
        ((0, above + 6), "center"),
        ((0, below - 6), "center"),
        ((4, 8), "left"),
        ((4, -8), "left"),
        ((-4, 8), "right"),
        ((-4, -8), "right"),
    ]


def _far_places() -> list[Place]:
    """Where a number may stand away from its point, nearest first."""
    return [
        ((length * np.cos(angle), length * np.sin(angle)), "center")
        for length in range(14, 60, 6)
        for angle in np.deg2rad(range(0, 360, 20))
    ]
