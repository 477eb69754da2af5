"""Accuracy against cost: a point for every trainer, lines for backprop and the frozen control."""

from collections.abc import Callable, Sequence
from math import isfinite
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fgbench.analysis.control import UNCOMPARED, controls_of
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

LINES = "dashed: backprop and frozen"


def draw_accuracy_by_passes(axes: Axes, series: Sequence[Series], looks: Sequence[Look]) -> set[str]:
    """Final test accuracy against the forward passes that training took."""
    axes.set(
        title=f"Accuracy against forward passes ({LINES})",
        xlabel="forward passes of all training images, by operations counted",
        ylabel="final test accuracy",
    )
    return _draw(axes, series, looks, lambda run: passes_over_data(run, run.last_epoch))


def draw_accuracy_by_time(axes: Axes, series: Sequence[Series], looks: Sequence[Look]) -> set[str]:
    """Final test accuracy against the time that training took."""
    seconds = label_time(axes, series, longest_time(series))
    axes.set(title=f"Accuracy against time ({LINES})", ylabel="final test accuracy")
    return _draw(axes, series, looks, lambda run: training_time(run) / seconds)


def _draw(
    axes: Axes, series: Sequence[Series], looks: Sequence[Look], cost: Callable[[RunRecord], float]
) -> set[str]:
    """Points on a logarithmic axis, hollow where a trainer is not shown to beat the control."""
    controls = controls_of(run for each in series for run in each.runs)
    beaten = [
        each.trainer in UNCOMPARED or ((found := controls.get(each.runs[0].path)) is not None and found.beats)
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
    for trainer in UNCOMPARED:
        own = closest_to_defaults(each for each in series if each.trainer == trainer)
        best = max(own, key=mean_validation_accuracy, default=None)
        accuracy = fmean(map(final_accuracy, best.averaged)) if best else float("nan")
        if best and isfinite(accuracy):
            colour = looks[series.index(best)]["color"]
            axes.axhline(accuracy, color=colour, lw=0.8, ls=(0, (5, 3)), zorder=0, gid=ACROSS)
    return marks if all(beaten) else {*marks, NOT_BEATING}
