"""Every series against a baseline, paired by seed, at equal epochs, time and memory."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fgbench.analysis.pairing import TUNABLE, Pair, Task, closest_to_defaults, make_tasks, nearest
from fgbench.analysis.readings import (
    MEASURES,
    Column,
    at_chance,
    disturbed_epochs,
    epochs_within,
    epochs_within_passes,
    has_diverged,
    negligible,
    passes_over_data,
    quiet_epochs,
    read,
    training_time,
)
from fgbench.analysis.records import RunRecord
from fgbench.analysis.series import Series
from fgbench.analysis.statistics import Paired, adjust_holm, log_ratios, summarise_differences
from fgbench.errors import ConfigError
from fgbench.formatting import format_number

Budget = Literal["epochs", "time", "memory", "passes"]
BUDGETS: tuple[Budget, ...] = ("epochs", "time", "memory", "passes")

MEMORY_TOLERANCE = 1.01
"""A series fits a memory budget that it exceeds by no more than this factor."""

DISTURBED_SHARE = 0.1
"""Share of epochs timed beside other work above which a sum of times says nothing; a convention."""

TUNING_NOISE = 0.02
"""Accuracy by which two trainers tuned apart may differ because of the tuning alone; a smaller lead is not
called one. It is about what a search of few short trials left between two estimators of one gradient."""

MIN_SEEDS = 3
"""Seeds below which nothing is decided; a convention of this project: two leave the interval one degree of
freedom, so it is 12.7 standard errors wide on either side, against 4.3 with three."""

ALPHA = 0.05
"""Adjusted p value below which a difference is called one: the usual one."""


@dataclass(frozen=True)
class Comparison:
    """One measure of a series and its baseline at one budget.

    Attributes:
        limit: the budget: epochs, seconds of training, MiB, or forward passes of all training images.
        epochs: at which each pair of runs was read, the series' first.
        values: of each pair of runs; NaN for a run that has diverged or has none.
        paired: of the differences, series - baseline; None where not every pair has both values.
        p_adjusted: Holm's, over the comparisons of this measure on this task.
        obstacle: why there is no difference to report; empty where there is one.
    """

    pair: Pair
    measure: Column
    budget: Budget
    limit: float
    epochs: tuple[tuple[int, int], ...]
    values: tuple[tuple[float, float], ...]
    paired: Paired | None = None
    p_adjusted: float | None = None
    obstacle: str = ""

    @property
    def wins(self) -> tuple[int, int]:
        """Seeds in which the series, and in which the baseline, was better; a diverged run loses."""
        wins = losses = 0
        for (run, other), epochs, (value, reference) in zip(
            self.pair.runs, self.epochs, self.values, strict=True
        ):
            lost, won = (has_diverged(each, epoch) for each, epoch in zip((run, other), epochs, strict=True))
            if self.measure.learns and lost != won:
                wins, losses = wins + won, losses + lost
            else:
                gain = self.measure.gain(value - reference)
                wins, losses = wins + (gain > 0), losses + (gain < 0)
        return wins, losses

    @property
    def caution(self) -> str:
        """Why nothing may be claimed from the difference; empty where something may."""
        if self.refusal:
            return self.refusal
        return below_tuning_noise(self.pair, self.measure, self.paired.mean if self.paired else math.nan)

    @property
    def refusal(self) -> str:
        """Why the values say nothing, whatever they are; empty where they do."""
        if caution := find_caution(self.pair, self.measure, self.budget):
            return caution
        return unlike_points(self.pair, self.epochs) if self.measure.learns else ""

    @property
    def is_negligible(self) -> bool:
        """Whether the whole interval is so close to no difference that it is as good as none."""
        effect = self.paired
        if effect is not None and not self.measure.learns and effect.interval != (0, 0):
            effect = log_ratios(self.values)
        if effect is None or effect.interval is None:
            return False
        return max(map(abs, effect.interval)) <= negligible(self.measure)

    @property
    def conclusion(self) -> str:
        """What may be said: better, worse, or why nothing may be."""
        if self.obstacle or self.paired is None:
            return self.obstacle
        if self.paired.n < MIN_SEEDS:
            return f"no claim from {self.paired.n} seed{'s' * (self.paired.n > 1)}"
        if self.refusal:
            return f"no claim: {self.refusal}"
        if self.is_negligible:
            return "about the same"
        if self.caution:
            return f"no claim: {self.caution}"
        if self.p_adjusted is not None and self.p_adjusted < ALPHA:
            return "better" if self.measure.gain(self.paired.mean) > 0 else "worse"
        needed = self.paired.seeds_needed
        if needed is None:
            return "not shown"
        if needed <= self.paired.n:
            return "not shown once adjusted"
        return f"not shown (about {needed} seeds might)"


def compare(
    records: Iterable[RunRecord], columns: Sequence[str] = ("test_accuracy",), baseline: str = "backprop"
) -> list[Comparison]:
    """Every series against the baseline series nearest to it in its other settings.

    Args:
        records: the runs.
        columns: of metrics.csv, among ``MEASURES``. Those that measure how well a network has learnt are also
            compared at equal time, equal memory and equally many forward passes.
        baseline: a trainer, or the label of one series.

    Returns:
        By task, column, series and budget. p values are adjusted over those of one column and task, so that
        what is said of a task does not depend on what else there is; a comparison at equal memory repeats the
        one at equal epochs and counts no second time, nor does one that decides nothing whatever it gives.

    Raises:
        ConfigError: a column that cannot be compared, or no such baseline.
    """
    measures = [find_measure(column) for column in columns]
    pairs = pair_all(make_tasks(records), baseline)
    return [
        comparison
        for task in pairs
        for measure in measures
        for comparison in _adjusted(
            [
                compare_pair(pair, measure, budget)
                for pair in task
                for budget in (BUDGETS if measure.learns else ("epochs",))
            ]
        )
    ]


def _adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of one measure on one task, with p values adjusted for their number."""
    adjusted = adjust_holm([p_value(each) for each in comparisons])
    results = []
    for index, each in enumerate(comparisons):  # the one at equal memory follows two after equal epochs
        source = index - 2 if each.budget == "memory" else index
        results.append(replace(each, p_adjusted=adjusted[source] if each.paired else None))
    return results


def p_value(comparison: Comparison) -> float | None:
    """The p value of a comparison that counts as a test of its own."""
    if comparison.paired is None or comparison.budget == "memory":
        return None
    if comparison.paired.n < MIN_SEEDS or comparison.refusal:
        return None
    return comparison.paired.p_value


def find_measure(column: str) -> Column:
    """The measure of a column.

    Raises:
        ConfigError: it cannot be compared; lists those that can.
    """
    if column not in MEASURES:
        raise ConfigError(f"--metric {column[:60]}: expected one of {', '.join(MEASURES)}")
    return MEASURES[column]


def pair_all(tasks: Sequence[Task], baseline: str = "backprop") -> list[list[Pair]]:
    """For every task, each series with its baseline; none where the task has no baseline.

    Raises:
        ConfigError: no task has one; lists the series there are.
    """
    paired = []
    for task in tasks:
        candidates = [each for each in task.series if each.label == baseline]
        candidates = candidates or closest_to_defaults(
            each for each in task.series if each.trainer == baseline
        )
        others = [each for each in task.series if each not in candidates]
        paired.append(
            [Pair(task.title, each, found) for each in others if (found := nearest(each, candidates))]
        )
    if not any(paired) and not any(each.trainer == baseline for task in tasks for each in task.series):
        labels = dict.fromkeys(each.label for task in tasks for each in task.series)
        make = "; `fgbench run CONFIG -o trainer=backprop` makes one" if baseline == "backprop" else ""
        raise ConfigError(f"--baseline {baseline[:60]}: no such series; there are {'; '.join(labels)}{make}")
    return paired


def compare_pair(pair: Pair, measure: Column, budget: Budget = "epochs") -> Comparison:
    """One comparison, its p value not adjusted.

    At equal epochs, both runs of a seed are read at the last epoch all of them have; at equal time, at the
    last epoch each has finished within the training time of the shortest, or within the forward passes of the
    one that made fewest; at equal memory, as at equal epochs, if the series' peak memory fits the
    baseline's. A run that diverged or stopped early does not shorten the budget; within a longer one, a run
    that stopped early counts as what it ended with.
    """
    epoch = float(common_epoch(pair))
    limit, epochs = epoch, tuple((int(epoch), int(epoch)) for _ in pair.runs)
    obstacle = "" if pair.runs else "no seed in common"
    if budget == "time" and pair.runs:
        limit = _shared_end(pair, lambda run: float(training_time(run)[-1]))
        epochs = tuple((epochs_within(run, limit), epochs_within(other, limit)) for run, other in pair.runs)
    if budget == "passes" and pair.runs:
        limit = _shared_end(pair, lambda run: passes_over_data(run, run.last_epoch))
        if any(math.isnan(run.forward_passes_per_step) for run in _all_runs(pair)):
            obstacle = "forward passes not counted"
        else:
            epochs = tuple(
                (epochs_within_passes(run, limit), epochs_within_passes(other, limit))
                for run, other in pair.runs
            )
    if budget == "memory" and pair.runs:
        limit, needed = peak_memory(pair.baseline), peak_memory(pair.series)
        if math.isnan(limit) or math.isnan(needed):
            obstacle = "memory not measured"
        elif needed > limit * MEMORY_TOLERANCE:
            obstacle = f"does not fit: needs {format_number(needed, '.1f')} MiB"
    values = tuple(
        (read(run, measure, first), read(other, measure, second))
        for (run, other), (first, second) in zip(pair.runs, epochs, strict=True)
    )
    obstacle = obstacle or _obstacle(pair, measure, epochs, values)
    paired = None if obstacle else summarise_differences([value - other for value, other in values])
    return Comparison(pair, measure, budget, limit, epochs, values, paired, obstacle=obstacle)


def _obstacle(
    pair: Pair, measure: Column, epochs: Sequence[tuple[int, int]], values: Sequence[tuple[float, float]]
) -> str:
    """Why the differences have no mean. Those that diverged are never left out of one."""
    diverged = [
        sum(has_diverged(both[side], epoch[side]) for both, epoch in zip(pair.runs, epochs, strict=True))
        for side in (0, 1)
    ]
    if measure.learns and any(diverged):
        return f"diverged: {diverged[0]} of {len(values)}; baseline {diverged[1]}"
    if not all(math.isfinite(value) for both in values for value in both):
        return "no epoch within the budget" if any(0 in each for each in epochs) else "not measured"
    return ""


def common_epoch(pair: Pair) -> int:
    """The last epoch that all paired runs have.

    One that diverged or stopped early has no more to come and does not count; where all did, it is the last
    epoch of any that stopped early, or else the first at which one had diverged.
    """
    return int(_shared_end(pair, lambda run: float(run.last_epoch)))


def _shared_end(pair: Pair, end: Callable[[RunRecord], float]) -> float:
    """The smallest end among the paired runs that would have more; see :func:`common_epoch`."""
    sound = [run for run in _all_runs(pair) if run.state != "diverged"]
    complete = [run for run in sound if not run.stopped_early]
    if complete or not sound:
        return min(map(end, complete or _all_runs(pair)), default=0.0)
    return max(map(end, sound))


def find_caution(pair: Pair, measure: Column, budget: Budget = "epochs") -> str:
    """Why a difference that was seen says nothing, whatever its size; empty where it does."""
    timed = measure.timed or budget == "time"
    if (timed or not measure.learns or budget == "memory") and (different := pair.environments):
        return f"different environments ({', '.join(different)})"
    if timed and was_disturbed(pair, summed=not measure.timed):
        return "timed beside other work"
    if timed and pair.runs and common_epoch(pair) == 1:
        return "only the first epoch was timed, which warms up"
    if measure.learns and pair.runs and all(at_chance(run, common_epoch(pair)) for run in _all_runs(pair)):
        return "neither is better than chance"
    return ""


def unlike_points(pair: Pair, epochs: Sequence[tuple[int, int]]) -> str:
    """That the two were read at different points of a schedule of learning rates; empty where they were not.

    A run is better at the end of a falling schedule than within it, whatever trains it.
    """
    for both, read_at in zip(pair.runs, epochs, strict=True):
        points = {
            1.0 if run.stopped_early else min(1.0, epoch / (run.config.get("epochs") or epoch or 1))
            for run, epoch in zip(both, read_at, strict=True)
        }
        if len(points) > 1 and any(_schedule(run) != "constant" for run in both):
            return "read at different points of the schedule of learning rates"
    return ""


def _schedule(run: RunRecord) -> str:
    return str(run.settings.get("schedule.name") or "constant")


def below_tuning_noise(pair: Pair, measure: Column, mean: float) -> str:
    """That an accuracy differs by less than tuning can account for, where the two were tuned apart."""
    tuned_apart = any(each.startswith(TUNABLE) for each in pair.other_settings)
    accuracy = measure.learns and measure.name.endswith("accuracy")
    if accuracy and tuned_apart and abs(mean) < TUNING_NOISE:
        return f"tuned apart, and by less than tuning may decide ({TUNING_NOISE:g})"
    return ""


def was_disturbed(pair: Pair, *, summed: bool = False) -> bool:
    """Whether other work on the machine leaves nothing to be said of times.

    Args:
        pair: the two.
        summed: of a sum over epochs, which more than a tenth of disturbed ones spoils; otherwise of a
            median, which needs one warm epoch that nothing disturbed.
    """
    epoch = common_epoch(pair)
    return bool(epoch) and any(
        disturbed_epochs(run, epoch) > DISTURBED_SHARE * min(epoch, run.last_epoch)
        if summed
        else not quiet_epochs(run, epoch)
        for run in _all_runs(pair)
    )


def peak_memory(series: Series) -> float:
    """The largest peak memory of its runs, MiB; NaN where none was measured."""
    peaks = [read(run, "peak_memory_mib") for run in series.averaged]
    return max((peak for peak in peaks if not math.isnan(peak)), default=math.nan)


def _all_runs(pair: Pair) -> list[RunRecord]:
    return [run for both in pair.runs for run in both]
