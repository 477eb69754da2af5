"""Accuracy against cost: a point for every trainer, lines for backprop and the frozen control."""

from collections.abc import Callable, Sequence
from math import isfinite
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fgbench.analysis.control import CONTROL, UNCOMPARED, controls_of
from fgbench.analysis.pairing import closest_to_defaults, mean_validation_accuracy
from fgbench.analysis.readings import passes_over_data
from fgbench.analysis.records import RunRecord
from fgbench.analysis.series import Series
from fgbench.plotting.charts import (
    ACROSS,
    draw_points,
    final_accuracy,
    label_time,
    longest_time,
    training_time,
)
from fgbench.plotting.style import Look

NOT_BEATING = "not shown to beat frozen"


def draw_accuracy_by_passes(axes: Axes, series: Sequence[Series], looks: Sequence[Look]) -> set[str]:
    """Final test accuracy against the forward passes that training took."""
    axes.set(
        title=f"Accuracy against forward passes{_lines(series)}",
        xlabel="forward passes of all training images, by operations counted",
        ylabel="final test accuracy",
    )
    return _draw(axes, series, looks, lambda run: passes_over_data(run, run.last_epoch))


def draw_accuracy_by_time(axes: Axes, series: Sequence[Series], looks: Sequence[Look]) -> set[str]:
    """Final test accuracy against the time that training took."""
    seconds = label_time(axes, series, longest_time(series))
    axes.set(title=f"Accuracy against time{_lines(series)}", ylabel="final test accuracy")
    return _draw(axes, series, looks, lambda run: training_time(run) / seconds)


def _draw(
    axes: Axes, series: Sequence[Series], looks: Sequence[Look], cost: Callable[[RunRecord], float]
) -> set[str]:
    """Points on a logarithmic axis, hollow where a trainer is not shown to beat a control that was run."""
    controls = controls_of(run for each in series for run in each.runs)
    judged = any(each.trainer == CONTROL for each in series)
    beaten = [
        not judged
        or each.trainer in UNCOMPARED
        or ((found := controls.get(each.runs[0].path)) is not None and found.beats)
        for each in series
    ]
    marks = draw_points(axes, series, looks, cost, filled=beaten)
    costs = [value for each in series for run in each.averaged if isfinite(value := cost(run)) and value > 0]
    if costs:
        axes.set_xscale("log")
        axes.set_xlim(min(costs) / 1.6, max(costs) * 2.2)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    for best, accuracy in _across(series):
        colour = looks[series.index(best)]["color"]
        axes.axhline(accuracy, color=colour, lw=0.8, ls=(0, (5, 3)), zorder=0, gid=ACROSS)
    return marks if all(beaten) else {*marks, NOT_BEATING}


def _across(series: Sequence[Series]) -> list[tuple[Series, float]]:
    """The best series of backprop and of the control, with their accuracies, as far as there are any."""
    found = []
    for trainer in reversed(UNCOMPARED):
        own = closest_to_defaults(each for each in series if each.trainer == trainer)
        best = max(own, key=mean_validation_accuracy, default=None)
        if best and isfinite(accuracy := fmean(map(final_accuracy, best.averaged))):
            found.append((best, accuracy))
    return found


def _lines(series: Sequence[Series]) -> str:
    """What the dashed lines are, as the end of a title."""
    drawn = " and ".join(best.trainer for best, _ in _across(series))
    return f" (dashed: {drawn})" if drawn else ""
