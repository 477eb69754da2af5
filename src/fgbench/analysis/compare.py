"""Every series against a baseline, paired by seed, at equal epochs, time and memory."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from fgbench.analysis.budgets import BUDGETS, Budget, Epochs, read_at
from fgbench.analysis.cautions import MIN_SEEDS, below_tuning_noise, find_caution, unlike_points
from fgbench.analysis.pairing import Pair, Task, closest_to_defaults, make_tasks, nearest
from fgbench.analysis.readings import MEASURES, Column, epochs_measured, has_diverged, negligible, read
from fgbench.analysis.records import RunRecord
from fgbench.analysis.statistics import Paired, adjust_holm, log_ratios, summarise_differences
from fgbench.errors import ConfigError

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
    epochs: Epochs
    values: tuple[tuple[float, float], ...]
    paired: Paired | None = None
    p_adjusted: float | None = None
    obstacle: str = ""

    @property
    def wins(self) -> tuple[int, int]:
        """Seeds in which the series, and in which the baseline, was better; a diverged run loses."""
        return self.wins_by(0.0)

    def wins_by(self, margin: float) -> tuple[int, int]:
        """As ``wins``, for those better by more than a margin."""
        wins = losses = 0
        for (run, other), epochs, (value, reference) in zip(
            self.pair.runs, self.epochs, self.values, strict=True
        ):
            lost, won = (has_diverged(each, epoch) for each, epoch in zip((run, other), epochs, strict=True))
            if self.measure.learns and lost != won:
                wins, losses = wins + won, losses + lost
            else:
                gain = self.measure.gain(value - reference)
                wins, losses = wins + (gain > margin), losses + (gain < -margin)
        return wins, losses

    @property
    def caution(self) -> str:
        """Why nothing may be claimed from the difference; empty where something may."""
        if self.refusal:
            return self.refusal
        return below_tuning_noise(self.pair, self.measure, self.paired.mean if self.paired else math.nan)

    @cached_property
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
    measures = [find_measure(column) for column in dict.fromkeys(columns)]
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
        paired.append([pair for each in others if (pair := nearest(task.title, each, candidates))])
    if not any(paired) and not any(each.trainer == baseline for task in tasks for each in task.series):
        labels = dict.fromkeys(each.label for task in tasks for each in task.series)
        make = "; `fgbench run CONFIG -o trainer=backprop` makes one" if baseline == "backprop" else ""
        raise ConfigError(f"--baseline {baseline[:60]}: no such series; there are {'; '.join(labels)}{make}")
    return paired


def compare_pair(pair: Pair, measure: Column, budget: Budget = "epochs") -> Comparison:
    """One comparison, its p value not adjusted; :func:`read_at` says where its runs are read."""
    limit, epochs, obstacle = read_at(pair, budget)
    values = _read_all(pair, measure, epochs)
    obstacle = obstacle or _obstacle(pair, measure, epochs, values)
    if measure.reading == "latest" and not obstacle:
        epochs = _measured(pair, measure, epochs)
        values = _read_all(pair, measure, epochs)
        limit = float(max(epochs)[0]) if budget == "epochs" else limit
        obstacle = "" if all(map(all, epochs)) else "not measured at equal epochs"
    differences = [value - other for value, other in values]
    paired = None if obstacle else summarise_differences(differences, _resolution(pair, measure))
    return Comparison(pair, measure, budget, limit, epochs, values, paired, obstacle=obstacle)


def _read_all(pair: Pair, measure: Column, epochs: Epochs) -> tuple[tuple[float, float], ...]:
    return tuple(
        (read(run, measure, first), read(other, measure, second))
        for (run, other), (first, second) in zip(pair.runs, epochs, strict=True)
    )


def _measured(pair: Pair, measure: Column, epochs: Epochs) -> Epochs:
    """Where a pair is read instead in a column that not every epoch has; 0 for nowhere.

    Two that are read at one epoch stay so, at the last that both measured.
    """
    found = []
    for (run, other), (first, second) in zip(pair.runs, epochs, strict=True):
        mine, others = epochs_measured(run, measure, first), epochs_measured(other, measure, second)
        if first == second:
            mine = others = mine & others
        found.append((max(mine, default=0), max(others, default=0)))
    return tuple(found)


def _resolution(pair: Pair, measure: Column) -> float:
    """The step in which the measure's values come; 0 where it is unknown or none."""
    counts = [run.num_test_images for run in pair.all_runs] if measure.name == "test_accuracy" else []
    return max((1 / count for count in counts if count), default=0.0)


def _obstacle(pair: Pair, measure: Column, epochs: Epochs, values: Sequence[tuple[float, float]]) -> str:
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
