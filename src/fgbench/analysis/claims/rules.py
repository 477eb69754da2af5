"""The rules that decide published claims.

A rule takes pairs of series (what the claim is about, what it is compared with) and the claim's options, and
returns a ``Finding``; a rule in ``WITH_STEPS`` also takes benchmarked steps. Its docstring is what users read
as the rule. To add one: a function here and its row in ``RULES``; then a row in claims.yaml.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from fgbench.analysis.bench_steps import Step
from fgbench.analysis.claims.evidence import stance_of_interval, stance_of_similarity, stance_within_margin
from fgbench.analysis.claims.judging import (
    Side,
    judge,
    judge_equal_memory,
    judge_generalisation,
    judge_larger_gap,
    judge_levelling_off,
    judge_no_worse,
    judge_similar,
    judge_sooner,
    judge_steadiness,
    judge_throughout,
    step_outcome,
)
from fgbench.analysis.claims.verdicts import Finding, Outcome, Stance, Verdict, conclude
from fgbench.analysis.compare import find_measure
from fgbench.analysis.pairing import TUNABLE, Pair, setting_differences, settings
from fgbench.analysis.readings import negligible
from fgbench.analysis.records import RunRecord

Rule = Callable[..., Finding]


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
        # The claim is about all of the measures: those that are for it do not count without the others.
        missing = any(each.stance is Stance.no_evidence for each in judged)
        outcomes += [
            replace(each, stance=Stance.no_evidence) if missing and each.stance is Stance.for_ else each
            for each in judged
        ]
    for step, backprop in steps:
        low, high = step.interval(backprop)
        faster = side == "better"
        stance = stance_of_interval(
            *((-high, -low) if faster else (low, high)), negligible(find_measure("batch_time_ms"))
        )
        outcomes.append(step_outcome(stance, step, backprop))
    return conclude(outcomes)


def differs_throughout(pairs: Sequence[Pair], *, measure: str, side: Side, share: float) -> Finding:
    """For: the 95 % paired-t interval of the last epoch and the given share of epochs are as claimed."""
    return conclude(judge_throughout(pair, find_measure(measure), side, share) for pair in pairs)


def no_worse(
    pairs: Sequence[Pair], steps: Sequence[tuple[Step, Step]] = (), *, measure: str, within: float
) -> Finding:
    """For: the 95 % paired-t interval at equal epochs has no loss beyond the margin. Against: only such."""
    outcomes = [judge_no_worse(pair, find_measure(measure), within) for pair in pairs]
    for step, backprop in steps:
        low, high = step.interval(backprop)
        outcomes.append(step_outcome(stance_within_margin(-high, -low, math.log1p(within)), step, backprop))
    return conclude(outcomes)


def similar(
    pairs: Sequence[Pair], steps: Sequence[tuple[Step, Step]] = (), *, measure: str, within: float
) -> Finding:
    """For: the 95 % paired-t interval of the ratio lies within the margin. Against: wholly outside it."""
    margin = math.log1p(within)
    outcomes = [judge_similar(pair, find_measure(measure), margin) for pair in pairs]
    for step, backprop in steps:
        outcomes.append(step_outcome(stance_of_similarity(step.interval(backprop), margin), step, backprop))
    return conclude(outcomes)


def sooner(pairs: Sequence[Pair], *, some: bool = False) -> Finding:
    """For: the 95 % paired-t interval of the ratio of times to the same validation loss lies below 1."""
    return conclude(map(judge_sooner, pairs), some)


def gap_larger(
    pairs: Sequence[Pair], *, measure: str, key: str, value: str, named: Sequence[str] = ()
) -> Finding:
    """For: the baseline leads by more there, by the 95 % paired-t interval of the leads' differences.

    They are read at the last epoch that both have; of different lengths they are compared only if their rate
    stays as it is. Nothing is decided without those named.
    """
    column = find_measure(measure)
    cases = [
        (_setting(other, key), judge_larger_gap(pair, other, column))
        for pair in pairs
        if _setting(pair, key) == value
        for other in pairs
        if _setting(other, key) != value and _same_but(pair, other, key)
    ]
    seen = {place for place, outcome in cases if outcome.stance is not Stance.no_evidence}
    outcomes = [outcome for _, outcome in cases]
    if missing := [name for name in named if name not in seen]:
        outcomes = [replace(each, stance=Stance.note) for each in outcomes]
        outcomes.append(Outcome(Stance.note, f"no case about {', '.join(missing)}, which it names"))
    return conclude(outcomes)


def worse_at_equal_memory(pairs: Sequence[Pair], *, measure: str) -> Finding:
    """For: at a peak memory at most 10 % above the series', the baseline is better by the 95 % interval."""
    return conclude(judge_equal_memory(pair, find_measure(measure)) for pair in pairs)


def generalises(pairs: Sequence[Pair]) -> Finding:
    """For: training minus test accuracy at equal epochs is smaller by the 95 % paired-t interval.

    A network that fits its training images less well also has less of a gap: where its training accuracy is
    lower, a smaller gap says nothing; nor does any where training accuracy, a mean over an epoch of learning,
    is below the test accuracy at its end.
    """
    return conclude(map(judge_generalisation, pairs))


def levels_off(pairs: Sequence[Pair], *, measures: Sequence[str]) -> Finding:
    """For: from the last tenth of the epochs but one to the last the mean changes by next to nothing.

    That is less than 0.005 of accuracy or 0.01 of loss, by the 95 % interval over seeds; 20 epochs needed.
    """
    return conclude(judge_levelling_off(pair, find_measure(column)) for pair in pairs for column in measures)


def steadier(pairs: Sequence[Pair], *, measure: str) -> Finding:
    """For: the curve fluctuates less from epoch to epoch, by the 95 % paired-t interval of the ratio.

    Fluctuation is the root mean square of the curve's second differences; 20 epochs needed.
    """
    return conclude(judge_steadiness(pair, find_measure(measure)) for pair in pairs)


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
            Stance.note,
            f"{pair.task}: with one schedule, equal learning rates in {sum(map(_equal_rates, pair.runs))} of "
            f"{len(pair.runs)} pairs of runs",
        )
        for pair in controlled
    ]
    return Finding(Verdict.not_testable, outcomes)


def no_run_tells(pairs: Sequence[Pair], *, why: str) -> Finding:
    """No run can test this: it is nothing that a run measures."""
    return Finding(Verdict.not_testable, [Outcome(Stance.note, why)])


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


def _equal_rates(runs: tuple[RunRecord, RunRecord]) -> bool:
    first, second = (run.metrics["lr"].tolist() for run in runs)
    return all(mine == other for mine, other in zip(first, second, strict=False))


def _setting(pair: Pair, key: str) -> object:
    return pair.series.runs[0].settings.get(key)


def _same_but(first: Pair, second: Pair, key: str) -> bool:
    """Whether two pairs were run alike, but for the model or the dataset's name.

    How long they were run makes no difference to the epochs that both have, if the rate stays as it is.
    """
    ignored: tuple[str, ...] = ("model.",) if key.startswith("model.") else (key,)
    every = (first.series, first.baseline, second.series, second.baseline)
    if all(settings(each).get("schedule.name") == "constant" for each in every):
        ignored += ("epochs",)
    return not any(
        not name.startswith(ignored)
        for mine, other in ((first.series, second.series), (first.baseline, second.baseline))
        for name in setting_differences(settings(mine), settings(other))
    )
