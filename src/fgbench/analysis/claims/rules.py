"""The rules that decide published claims.

A rule takes pairs of series (what the claim is about, what it is compared with) and the claim's options, and
returns a ``Finding``; a rule in ``WITH_STEPS`` also takes benchmarked steps. Its docstring is what users read
as the rule. To add one: a function here and its row in ``RULES``; then a row in claims.yaml.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fgbench.analysis.bench_steps import Step
from fgbench.analysis.claims.judging import (
    MIN_SEEDS,
    Side,
    compared,
    diverged_text,
    gains,
    insufficient_evidence,
    interval_text,
    judge,
    judge_no_worse,
    kind_of,
    kind_within,
    number_text,
    outcome_of,
    ratio_text,
)
from fgbench.analysis.claims.verdicts import Finding, Outcome, Stance, Verdict, conclude
from fgbench.analysis.compare import common_epoch, find_measure, peak_memory
from fgbench.analysis.pairing import TUNABLE, Pair, setting_differences, settings
from fgbench.analysis.readings import Column, at_chance, has_diverged, negligible, read
from fgbench.analysis.records import RunRecord
from fgbench.analysis.statistics import Paired, log_ratios, summarise_differences
from fgbench.analysis.time_to import time_to_same_loss
from fgbench.formatting import format_number

Rule = Callable[..., Finding]

COMPARABLE_MEMORY = 1.1
"""Memories within this factor of each other count as comparable; a convention of this project."""

FEWEST_EPOCHS = 20
"""Fewest epochs from which the shape of a curve is read; a convention of this project."""


def differs(
    pairs: Sequence[Pair],
    steps: Sequence[tuple[Step, Step]] = (),
    *,
    measures: Sequence[str],
    side: Side,
    at_most: float | None = None,
) -> Finding:
    """For: the 95 % paired-t interval at equal epochs lies on the claimed side of no difference.

    Against: on the other side. As good as equal: within 0.005 of accuracy, 0.01 of loss or 2 % of a cost.
    """
    outcomes = []
    for pair in pairs:
        judged = [judge(pair, find_measure(column), side, at_most) for column in measures]
        if any(each.kind is Stance.too_few for each in judged):  # the claim is about all of the measures
            judged = [
                replace(each, kind=Stance.too_few) if each.kind is Stance.for_ else each for each in judged
            ]
        outcomes += judged
    for step, backprop in steps:
        low, high = step.interval(backprop)
        faster = side == "better"
        kind = kind_of(*((-high, -low) if faster else (low, high)), negligible(find_measure("batch_time_ms")))
        outcomes.append(_step_outcome(kind, step, backprop))
    return conclude(outcomes)


def differs_throughout(pairs: Sequence[Pair], *, measure: str, side: Side, share: float) -> Finding:
    """For: the 95 % paired-t interval of the last epoch and the given share of epochs are as claimed."""
    return conclude(_judge_throughout(pair, find_measure(measure), side, share) for pair in pairs)


def no_worse(
    pairs: Sequence[Pair], steps: Sequence[tuple[Step, Step]] = (), *, measure: str, within: float
) -> Finding:
    """For: the 95 % paired-t interval at equal epochs has no loss beyond the margin. Against: only such."""
    outcomes = [judge_no_worse(pair, find_measure(measure), within) for pair in pairs]
    for step, backprop in steps:
        low, high = step.interval(backprop)
        outcomes.append(_step_outcome(kind_within(-high, -low, math.log1p(within)), step, backprop))
    return conclude(outcomes)


def similar(
    pairs: Sequence[Pair], steps: Sequence[tuple[Step, Step]] = (), *, measure: str, within: float
) -> Finding:
    """For: the 95 % paired-t interval of the ratio lies within the margin. Against: wholly outside it."""
    margin = math.log1p(within)
    outcomes = [_judge_similar(pair, find_measure(measure), margin) for pair in pairs]
    for step, backprop in steps:
        outcomes.append(_step_outcome(_kind_similar(step.interval(backprop), margin), step, backprop))
    return conclude(outcomes)


def sooner(pairs: Sequence[Pair], *, some: bool = False) -> Finding:
    """For: the 95 % paired-t interval of the ratio of times to the same validation loss lies below 1."""
    return conclude(map(_judge_sooner, pairs), some)


def gap_larger(
    pairs: Sequence[Pair], *, measure: str, key: str, value: str, named: Sequence[str] = ()
) -> Finding:
    """For: the baseline leads by more there, by the 95 % paired-t interval of the leads' differences.

    Nothing is decided without those named.
    """
    column = find_measure(measure)
    cases = [
        (_setting(other, key), _judge_gaps(pair, other, column))
        for pair in pairs
        if _setting(pair, key) == value
        for other in pairs
        if _setting(other, key) != value and _same_but(pair, other, key)
    ]
    seen = {place for place, outcome in cases if outcome.kind is not Stance.too_few}
    outcomes = [outcome for _, outcome in cases]
    if lacking := [name for name in named if name not in seen]:
        outcomes = [replace(each, kind=Stance.aside) for each in outcomes]
        outcomes.append(Outcome(Stance.aside, f"no case about {', '.join(lacking)}, which it names"))
    return conclude(outcomes)


def worse_at_equal_memory(pairs: Sequence[Pair], *, measure: str) -> Finding:
    """For: at a peak memory at most 10 % above the series', the baseline is better by the 95 % interval."""
    return conclude(_judge_equal_memory(pair, find_measure(measure)) for pair in pairs)


def generalises(pairs: Sequence[Pair]) -> Finding:
    """For: training minus test accuracy at equal epochs is smaller by the 95 % paired-t interval.

    A network that fits its training images less well also has less of a gap: where its training accuracy is
    lower, a smaller gap says nothing. (Training accuracy is the mean over the epoch.)
    """
    return conclude(map(_judge_generalisation, pairs))


def levels_off(pairs: Sequence[Pair], *, measures: Sequence[str]) -> Finding:
    """For: from the last tenth of the epochs but one to the last the mean changes by next to nothing.

    That is less than 0.005 of accuracy or 0.01 of loss, by the 95 % interval over seeds; 20 epochs needed.
    """
    return conclude(_judge_level(pair, find_measure(column)) for pair in pairs for column in measures)


def steadier(pairs: Sequence[Pair], *, measure: str) -> Finding:
    """For: the curve fluctuates less from epoch to epoch, by the 95 % paired-t interval of the ratio.

    Fluctuation is the root mean square of the curve's second differences; 20 epochs needed.
    """
    return conclude(_judge_steadiness(pair, find_measure(measure)) for pair in pairs)


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
            Stance.aside,
            f"{pair.task}: with one schedule, equal learning rates in {sum(map(_equal_rates, pair.runs))} of "
            f"{len(pair.runs)} pairs of runs",
        )
        for pair in controlled
    ]
    return Finding(Verdict.not_testable, outcomes)


def no_run_tells(pairs: Sequence[Pair], *, why: str) -> Finding:
    """No run can test this: it is nothing that a run measures."""
    return Finding(Verdict.not_testable, [Outcome(Stance.aside, why)])


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        differs,
        differs_throughout,
        no_worse,
        similar,
        sooner,
        gap_larger,
        worse_at_equal_memory,
        generalises,
        levels_off,
        steadier,
        set_by_schedule,
        no_run_tells,
    )
}

WITH_STEPS = ("differs", "no_worse", "similar")
"""Rules that also take steps which ``fgbench bench`` measured, each with backprop's."""


def _step_outcome(kind: Stance, step: Step, backprop: Step) -> Outcome:
    where = f"{step.model}, batch {step.batch_size}, {step.case} / {backprop.case}"
    if step.noise:
        return Outcome(Stance.too_few, f"{where}: benchmarked while {step.noise}")
    low, high = (math.exp(bound) for bound in step.interval(backprop))
    text = f"time of a step {step.time_to_backprop:.3f}× [{low:.3f}, {high:.3f}]"
    return Outcome(kind, f"{where}: {text}; benchmark, {step.rounds} rounds in one process")


def _judge_throughout(pair: Pair, measure: Column, side: Side, share: float) -> Outcome:
    final = judge(pair, measure, side)
    if final.kind is not Stance.for_:
        return final
    sign = 1 if side == "better" else -1
    points = [
        sign * measure.gain(read(run, measure, epoch) - read(other, measure, epoch)) > 0
        for run, other in pair.runs
        for epoch in range(1, common_epoch(pair) + 1)
        if not (has_diverged(run, epoch) or has_diverged(other, epoch))
    ]
    held = sum(points) / len(points) if points else 0.0
    return Outcome(Stance.for_ if held >= share else Stance.both, f"{final.text}; so in {held:.0%} of epochs")


def _judge_similar(pair: Pair, measure: Column, margin: float) -> Outcome:
    result = compared(pair, measure)
    if isinstance(result, Outcome):
        return result
    assert isinstance(result, Paired), "a cost has no divergence"
    kind = _kind_similar(result.interval or (math.nan, math.nan), margin)
    return outcome_of(kind, pair, f"{number_text(measure, result)}, margin {math.expm1(margin):.0%}")


def _kind_similar(interval: tuple[float, float], margin: float) -> Stance:
    low, high = interval
    if -margin <= low and high <= margin:
        return Stance.for_
    return Stance.against if low > margin or high < -margin else Stance.unclear


def _judge_sooner(pair: Pair) -> Outcome:
    if lacking := insufficient_evidence(pair, find_measure("val_loss"), "time"):
        return lacking
    reached = time_to_same_loss(pair)
    if reached and reached.in_first_epoch:
        return outcome_of(
            Stance.too_few, pair, "no more than one epoch to the validation loss that both reach"
        )
    paired = log_ratios(reached.seconds) if reached else None
    if paired is None:
        return outcome_of(Stance.too_few, pair, "no validation loss that both reach")
    low, high = paired.interval or (math.nan, math.nan)
    kind = kind_of(-high, -low, negligible(find_measure("epoch_time_s")))
    return outcome_of(kind, pair, f"time to the same validation loss {ratio_text(paired)}")


def _judge_gaps(pair: Pair, other: Pair, measure: Column) -> Outcome:
    epoch = min(common_epoch(pair), common_epoch(other))
    leads, references = _leads(pair, measure, epoch), _leads(other, measure, epoch)
    seeds = sorted(leads.keys() & references.keys())
    where = f"{pair.task} - {other.task} ({pair.series.label})"
    if len(seeds) < MIN_SEEDS:
        return Outcome(Stance.too_few, f"{where}: {len(seeds)} seeds in common, {MIN_SEEDS} needed")
    if all(at_chance(run, epoch) for each in (pair, other) for run, _ in each.runs):
        return Outcome(
            Stance.too_few, f"{where}: at chance on both, so the leads say something of the baseline alone"
        )
    differences = [leads[seed] - references[seed] for seed in seeds]
    if not all(map(math.isfinite, differences)):
        return Outcome(Stance.unclear, f"{where}: runs diverged or were not measured")
    paired = summarise_differences(differences)
    low, high = paired.interval or (math.nan, math.nan)
    kind = kind_of(low, high, negligible(measure))
    text = f"lead in {measure.title} {interval_text(paired, measure.form)}; epoch {epoch}"
    return Outcome(kind, f"{where}: {text}; seeds {', '.join(map(str, seeds))}")


def _leads(pair: Pair, measure: Column, epoch: int) -> dict[int, float]:
    """How far the baseline is ahead, by seed; NaN where a run diverged."""
    return {
        run.seed: measure.gain(read(other, measure, epoch) - read(run, measure, epoch))
        for run, other in pair.runs
    }


def _judge_equal_memory(pair: Pair, measure: Column) -> Outcome:
    if lacking := insufficient_evidence(pair, find_measure("peak_memory_mib")):
        return lacking
    outcome = judge(pair, measure, "worse")
    if outcome.kind is Stance.too_few:
        return outcome
    budget, needed = peak_memory(pair.series), peak_memory(pair.baseline)
    if math.isnan(budget) or math.isnan(needed):
        return outcome_of(Stance.too_few, pair, "memory not measured")
    memory = f"{format_number(needed, '.1f')} MiB for {format_number(budget, '.1f')}"
    if needed > budget * COMPARABLE_MEMORY:
        return outcome_of(Stance.too_few, pair, f"{pair.baseline.label} does not fit: {memory}")
    return Outcome(outcome.kind, f"{outcome.text}; {memory}")


def _judge_generalisation(pair: Pair) -> Outcome:
    train, test = find_measure("train_accuracy"), find_measure("test_accuracy")
    fitted = compared(pair, train)
    if isinstance(fitted, Outcome):
        return fitted
    epoch = common_epoch(pair)
    gaps = [tuple(read(run, train, epoch) - read(run, test, epoch) for run in both) for both in pair.runs]
    if isinstance(fitted, tuple) or not all(math.isfinite(gap) for both in gaps for gap in both):
        return outcome_of(Stance.too_few, pair, "runs diverged or were not measured")
    paired = summarise_differences([mine - other for mine, other in gaps])
    low, high = paired.interval or (math.nan, math.nan)
    kind = kind_of(-high, -low, negligible(test))
    text = f"training minus test accuracy {interval_text(paired, test.form)}"
    if kind is Stance.for_ and kind_within(*gains(fitted, train), negligible(train)) is not Stance.for_:
        return outcome_of(Stance.too_few, pair, f"{text}, at a lower {number_text(train, fitted)}")
    return outcome_of(kind, pair, text)


def _judge_level(pair: Pair, measure: Column) -> Outcome:
    if lack := _lacks_epochs(pair):
        return lack
    changes = []
    for run, _ in pair.runs:
        values = run.metrics[measure.name].to_numpy(float)
        tenth = max(1, len(values) // 10)
        changes.append(float(values[-tenth:].mean() - values[-2 * tenth : -tenth].mean()))
    if any(run.state == "diverged" for run, _ in pair.runs):
        return outcome_of(Stance.against, pair, f"{measure.title} {diverged_text(pair)}")
    if not all(map(math.isfinite, changes)):
        return outcome_of(Stance.too_few, pair, f"{measure.title} not measured")
    paired, margin = summarise_differences(changes), negligible(measure)
    kind = _kind_similar(paired.interval or (math.nan, math.nan), margin)
    text = f"{measure.title} changes by {interval_text(paired, measure.form)} over the last tenth of epochs"
    return outcome_of(kind, pair, text)


def _judge_steadiness(pair: Pair, measure: Column) -> Outcome:
    if lack := _lacks_epochs(pair):
        return lack
    epoch = common_epoch(pair)

    def fluctuation(run: RunRecord) -> float:
        bends = np.diff(run.metrics[measure.name].to_numpy(float)[:epoch], n=2)
        return float(np.sqrt(np.mean(bends**2)))

    paired = log_ratios([(fluctuation(run), fluctuation(other)) for run, other in pair.runs])
    if paired is None:
        return outcome_of(Stance.too_few, pair, f"{measure.title} diverged or not measured")
    low, high = paired.interval or (math.nan, math.nan)
    kind = kind_of(-high, -low, negligible(find_measure("epoch_time_s")))
    return outcome_of(kind, pair, f"fluctuation of {measure.title} {ratio_text(paired)}")


def _lacks_epochs(pair: Pair) -> Outcome | None:
    if lacking := insufficient_evidence(pair, find_measure("train_loss")):
        return lacking
    if common_epoch(pair) < FEWEST_EPOCHS:
        return outcome_of(Stance.too_few, pair, f"{common_epoch(pair)} epochs, {FEWEST_EPOCHS} needed")
    return None


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
