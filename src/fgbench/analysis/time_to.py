"""The time two trainers take to reach the same target."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fgbench.analysis.pairing import Pair
from fgbench.analysis.readings import MEASURES, Column, best, time_to, training_time
from fgbench.analysis.records import RunRecord

ACCURACY_STEP = 0.05
"""Accuracies whose time is compared are multiples of this; a convention of this project."""


@dataclass(frozen=True)
class TimeTo:
    """Seconds of training until each run of a pair is as good as a target, evaluation left out.

    Attributes:
        targets: one per pair of runs.
        seconds: of each pair, the series' first; infinite for a run that never gets there.
    """

    pair: Pair
    measure: Column
    targets: tuple[float, ...]
    seconds: tuple[tuple[float, float], ...]

    @property
    def in_first_epoch(self) -> bool:
        """Whether every run reaches it in its first epoch, so that the times say nothing more."""
        first = [tuple(float(training_time(run)[0]) for run in both) for both in self.pair.runs]
        return list(self.seconds) == first

    @property
    def ratio(self) -> float:
        """Geometric mean over seeds of the series' time over the baseline's; NaN if one never gets there."""
        return geometric_mean([mine / other if other else math.inf for mine, other in self.seconds])


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean; NaN for no values, or any that is not finite and positive."""
    if not values or not all(math.isfinite(value) and value > 0 for value in values):
        return math.nan
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def time_to_same_loss(pair: Pair) -> TimeTo | None:
    """T_f and T_b: time until each has the lowest validation loss that both of a seed reach.

    Read at the ends of epochs. None where validation loss was not measured.
    """
    measure = MEASURES["val_loss"]
    targets = [max(best(run, measure), best(other, measure)) for run, other in pair.runs]
    return _time_to(pair, measure, targets)


def time_to_accuracy(pair: Pair, accuracy: float | None = None) -> TimeTo | None:
    """Time until each run has reached a validation accuracy.

    Args:
        pair: the series and its baseline.
        accuracy: 0..1; by default the highest multiple of 0.05 that every run of both reaches.

    Returns:
        None where validation accuracy was not measured or the default would be 0.
    """
    measure = MEASURES["val_accuracy"]
    if accuracy is None:
        lowest = min((best(run, measure) for both in pair.runs for run in both), default=math.nan)
        if math.isnan(lowest) or lowest < ACCURACY_STEP:
            return None
        accuracy = math.floor(lowest / ACCURACY_STEP + 1e-9) * ACCURACY_STEP
    return _time_to(pair, measure, [accuracy] * len(pair.runs))


def _time_to(pair: Pair, measure: Column, targets: Sequence[float]) -> TimeTo | None:
    if not targets or any(math.isnan(target) for target in targets):
        return None

    def seconds(run: RunRecord, target: float) -> float:
        return time_to(run, measure, target - 1e-12 if measure.better == "higher" else target)

    times = tuple(
        (seconds(run, target), seconds(other, target))
        for (run, other), target in zip(pair.runs, targets, strict=True)
    )
    return TimeTo(pair, measure, tuple(targets), times)
