"""Where paired runs are read: at equal epochs, training time, memory or forward passes."""

import math
from collections.abc import Callable
from typing import Literal

from fgbench.analysis.pairing import Pair
from fgbench.analysis.readings import (
    epochs_within,
    epochs_within_passes,
    passes_over_data,
    read,
    training_time,
)
from fgbench.analysis.records import RunRecord
from fgbench.analysis.series import Series
from fgbench.formatting import format_number

Budget = Literal["epochs", "time", "memory", "passes"]
BUDGETS: tuple[Budget, ...] = ("epochs", "time", "memory", "passes")

MEMORY_TOLERANCE = 1.01
"""A series fits a memory budget that it exceeds by no more than this factor."""

Epochs = tuple[tuple[int, int], ...]
"""Of each pair of runs, the epochs at which they are read, the series' first."""


def read_at(pair: Pair, budget: Budget) -> tuple[float, Epochs, str]:
    """The budget of a pair, and where it puts the reading of each run.

    At equal epochs, both runs of a seed are read at the last epoch all of them have; at equal time, at the
    last epoch each has finished within the training time of the shortest, or within the forward passes of the
    one that made fewest; at equal memory, as at equal epochs, if the series' peak memory fits the
    baseline's. A run that diverged or stopped early does not shorten the budget; within a longer one, a run
    that stopped early counts as what it ended with.

    Returns:
        The budget, in epochs, seconds, MiB or forward passes of all training images; the epochs; and why
        there is no such comparison, empty where there is one.
    """
    if not pair.runs:
        seeds = [{run.seed for run in each.averaged} for each in (pair.series, pair.baseline)]
        return 0.0, (), "other images or code" if set.intersection(*seeds) else "no seed in common"
    epoch = common_epoch(pair)
    shared = ((epoch, epoch),) * len(pair.runs)
    if budget == "time":
        limit = _shared_end(pair, lambda run: float(training_time(run)[-1]))
        return limit, _each(pair, lambda run: epochs_within(run, limit)), ""
    if budget == "passes":
        limit = _shared_end(pair, lambda run: passes_over_data(run, run.last_epoch))
        if any(math.isnan(run.forward_passes_per_step) for run in pair.all_runs):
            return limit, shared, "forward passes not counted"
        return limit, _each(pair, lambda run: epochs_within_passes(run, limit)), ""
    if budget == "memory":
        limit, needed = peak_memory(pair.baseline), peak_memory(pair.series)
        if math.isnan(limit) or math.isnan(needed):
            return limit, shared, "memory not measured"
        fits = needed <= limit * MEMORY_TOLERANCE
        return limit, shared, "" if fits else f"does not fit: needs {format_number(needed, '.1f')} MiB"
    return float(epoch), shared, ""


def common_epoch(pair: Pair) -> int:
    """The last epoch that all paired runs have.

    One that diverged or stopped early has no more to come and does not count; where all did, it is the last
    epoch of any that stopped early, or else the first at which one had diverged.
    """
    return int(_shared_end(pair, lambda run: float(run.last_epoch)))


def _shared_end(pair: Pair, end: Callable[[RunRecord], float]) -> float:
    """The smallest end among the paired runs that would have more; see :func:`common_epoch`."""
    sound = [run for run in pair.all_runs if run.state != "diverged"]
    complete = [run for run in sound if not run.stopped_early]
    if complete or not sound:
        return min(map(end, complete or pair.all_runs), default=0.0)
    return max(map(end, sound))


def peak_memory(series: Series) -> float:
    """The largest peak memory of its runs, MiB; NaN where none was measured."""
    peaks = [read(run, "peak_memory_mib") for run in series.averaged]
    return max((peak for peak in peaks if not math.isnan(peak)), default=math.nan)


def _each(pair: Pair, epoch_of: Callable[[RunRecord], int]) -> Epochs:
    return tuple((epoch_of(run), epoch_of(other)) for run, other in pair.runs)
