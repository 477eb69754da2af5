"""The rules that decide published claims. Imports no torch.

A rule takes pairs of series (what the claim is about, what it is held against) and the claim's options, and
returns a ``Finding``. Its docstring is what users read as the rule. To add one: a function here and its row
in ``RULES``; then a row in claims.yaml.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from fgbench.analysis.claims.judging import (
    MIN_SEEDS,
    Side,
    find_lack,
    interval_text,
    judge,
    kind_of,
    number_text,
    outcome_of,
    ratio_text,
)
from fgbench.analysis.claims.verdicts import Finding, Kind, Outcome, Verdict, conclude
from fgbench.analysis.compare import (
    MEMORY_TOLERANCE,
    common_epoch,
    compare_pair,
    find_measure,
    peak_memory,
)
from fgbench.analysis.pairing import TUNABLE, Pair, setting_differences, settings
from fgbench.analysis.readings import Measure, disturbed_epochs, has_diverged, negligible, read
from fgbench.analysis.records import RunRecord
from fgbench.analysis.statistics import log_ratios, summarise_differences
from fgbench.analysis.time_to import time_to_same_loss

Rule = Callable[..., Finding]

DISTURBED_SHARE = 0.1
"""Share of epochs timed beside other work above which a sum of times says nothing."""


def differs(
    pairs: Sequence[Pair], *, measures: Sequence[str], side: Side, at_most: float | None = None
) -> Finding:
    """For: the 95 % paired-t interval at equal epochs lies on the claimed side of no difference.

    Against: on the other side, or within 0.005 of accuracy, 0.01 of loss or 2 % of a cost.
    """
    outcomes = []
    for pair in pairs:
        told = [judge(pair, find_measure(column), side, at_most) for column in measures]
        if any(each.kind is Kind.too_few for each in told):  # the claim is about all of the measures
            told = [replace(each, kind=Kind.too_few) if each.kind is Kind.for_ else each for each in told]
        outcomes += told
    return conclude(outcomes)


def differs_throughout(pairs: Sequence[Pair], *, measure: str, side: Side, share: float) -> Finding:
    """For: the 95 % paired-t interval of the last epoch and the given share of epochs are as claimed."""
    return conclude(_judge_throughout(pair, find_measure(measure), side, share) for pair in pairs)


def similar(pairs: Sequence[Pair], *, measure: str, within: float) -> Finding:
    """For: the 95 % paired-t interval of the ratio lies within the margin. Against: wholly outside it."""
    return conclude(_judge_similar(pair, find_measure(measure), within) for pair in pairs)


def sooner(pairs: Sequence[Pair], *, some: bool = False) -> Finding:
    """For: the 95 % paired-t interval of the ratio of times to the same validation loss lies below 1."""
    return conclude(map(_judge_sooner, pairs), some)


def gap_larger(pairs: Sequence[Pair], *, measure: str, key: str, value: str) -> Finding:
    """For: the baseline leads by more there, by the 95 % paired-t interval of the leads' differences."""
    column = find_measure(measure)
    return conclude(
        _judge_gaps(pair, other, column)
        for pair in pairs
        if _setting(pair, key) == value
        for other in pairs
        if _setting(other, key) != value and _same_but(pair, other, key)
    )


def worse_at_equal_memory(pairs: Sequence[Pair], *, measure: str) -> Finding:
    """For: the baseline fits the series' peak memory and is better by the 95 % paired-t interval."""
    return conclude(_judge_equal_memory(pair, find_measure(measure)) for pair in pairs)


def set_by_schedule(pairs: Sequence[Pair]) -> Finding:
    """The learning rate is the schedule's, not the trainer's: no run can test this."""
    controlled = [
        pair
        for pair in pairs
        if not any(
            key.startswith(TUNABLE)
            for key in setting_differences(settings(pair.series), settings(pair.baseline))
        )
    ]
    outcomes = [
        Outcome(
            Kind.aside,
            f"{pair.task}: with one schedule, equal learning rates in {sum(map(_equal_rates, pair.runs))} of "
            f"{len(pair.runs)} pairs of runs",
        )
        for pair in controlled
    ]
    return Finding(Verdict.not_testable, outcomes)


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        differs,
        differs_throughout,
        similar,
        sooner,
        gap_larger,
        worse_at_equal_memory,
        set_by_schedule,
    )
}


def _judge_throughout(pair: Pair, measure: Measure, side: Side, share: float) -> Outcome:
    final = judge(pair, measure, side)
    if final.kind is not Kind.for_:
        return final
    sign = 1 if side == "better" else -1
    points = [
        sign * measure.gain(read(run, measure, epoch) - read(other, measure, epoch)) > 0
        for run, other in pair.runs
        for epoch in range(1, common_epoch(pair) + 1)
        if not (has_diverged(run, epoch) or has_diverged(other, epoch))
    ]
    held = sum(points) / len(points) if points else 0.0
    return Outcome(Kind.for_ if held >= share else Kind.both, f"{final.text}; so in {held:.0%} of epochs")


def _judge_similar(pair: Pair, measure: Measure, within: float) -> Outcome:
    if lacking := find_lack(pair, measure):
        return lacking
    comparison = compare_pair(pair, measure)
    paired = log_ratios(comparison.values)
    if comparison.paired is None or paired is None:
        return outcome_of(Kind.too_few, pair, f"{measure.title} {comparison.obstacle or 'is 0'}")
    low, high = paired.interval or (math.nan, math.nan)
    margin = math.log1p(within)
    if -margin <= low and high <= margin:
        kind = Kind.for_
    else:
        kind = Kind.against if low > margin or high < -margin else Kind.unclear
    return outcome_of(kind, pair, f"{number_text(measure, paired)}, margin {within:.0%}")


def _judge_sooner(pair: Pair) -> Outcome:
    measure = find_measure("epoch_time_s")
    if lacking := find_lack(pair, measure):
        return lacking
    for run in (run for both in pair.runs for run in both):
        if (disturbed := disturbed_epochs(run, run.last_epoch)) > DISTURBED_SHARE * run.last_epoch:
            told = f"{disturbed} of {run.last_epoch} epochs timed while other work kept the machine busy"
            return outcome_of(Kind.too_few, pair, told)
    reached = time_to_same_loss(pair)
    if reached and reached.at_once:
        return outcome_of(Kind.too_few, pair, "no more than one epoch to the validation loss that both reach")
    paired = log_ratios(reached.seconds) if reached else None
    if paired is None:
        return outcome_of(Kind.too_few, pair, "no validation loss that both reach")
    low, high = paired.interval or (math.nan, math.nan)
    kind = kind_of(-high, -low, negligible(measure))
    return outcome_of(kind, pair, f"time to the same validation loss {ratio_text(paired)}")


def _judge_gaps(pair: Pair, other: Pair, measure: Measure) -> Outcome:
    epoch = min(common_epoch(pair), common_epoch(other))
    leads, references = _leads(pair, measure, epoch), _leads(other, measure, epoch)
    seeds = sorted(leads.keys() & references.keys())
    where = f"{pair.task} - {other.task} ({pair.series.label})"
    if len(seeds) < MIN_SEEDS:
        return Outcome(Kind.too_few, f"{where}: {len(seeds)} seeds in common, {MIN_SEEDS} needed")
    differences = [leads[seed] - references[seed] for seed in seeds]
    if not all(map(math.isfinite, differences)):
        return Outcome(Kind.unclear, f"{where}: runs diverged or were not measured")
    paired = summarise_differences(differences)
    low, high = paired.interval or (math.nan, math.nan)
    kind = kind_of(low, high, negligible(measure))
    text = f"lead in {measure.title} {interval_text(paired, measure.form)}; epoch {epoch}"
    return Outcome(kind, f"{where}: {text}; seeds {', '.join(map(str, seeds))}")


def _leads(pair: Pair, measure: Measure, epoch: int) -> dict[int, float]:
    """How far the baseline is ahead, by seed; NaN where a run diverged."""
    return {
        run.seed: measure.gain(read(other, measure, epoch) - read(run, measure, epoch))
        for run, other in pair.runs
    }


def _judge_equal_memory(pair: Pair, measure: Measure) -> Outcome:
    if lacking := find_lack(pair, find_measure("peak_memory_mib")):
        return lacking
    outcome = judge(pair, measure, "worse")
    if outcome.kind is Kind.too_few:
        return outcome
    budget, needed = peak_memory(pair.series), peak_memory(pair.baseline)
    if math.isnan(budget) or math.isnan(needed):
        return outcome_of(Kind.too_few, pair, "memory not measured")
    memory = f"{needed:.1f} MiB of {budget:.1f}"
    if needed > budget * MEMORY_TOLERANCE:
        return outcome_of(Kind.against, pair, f"{pair.baseline.label} does not fit: {memory}")
    return Outcome(outcome.kind, f"{outcome.text}; {memory}")


def _equal_rates(runs: tuple[RunRecord, RunRecord]) -> bool:
    first, second = (run.metrics["lr"].tolist() for run in runs)
    return all(mine == other for mine, other in zip(first, second, strict=False))


def _setting(pair: Pair, key: str) -> object:
    return pair.series.runs[0].settings.get(key)


def _same_but(first: Pair, second: Pair, key: str) -> bool:
    """Whether two pairs were run alike, but for the model or the dataset's name."""
    aside = ("model.",) if key.startswith("model.") else (key,)
    return not any(
        not name.startswith(aside)
        for mine, other in ((first.series, second.series), (first.baseline, second.baseline))
        for name in setting_differences(settings(mine), settings(other))
    )
