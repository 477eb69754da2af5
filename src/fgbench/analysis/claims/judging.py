"""What one pair of series, or one benchmarked step, says about a claim."""

import math
from statistics import fmean
from typing import Literal

import numpy as np

from fgbench.analysis.bench_steps import Step
from fgbench.analysis.budgets import common_epoch, peak_memory
from fgbench.analysis.cautions import MIN_SEEDS, TUNING_NOISE, below_tuning_noise
from fgbench.analysis.claims.evidence import (
    diverged_text,
    effect_text,
    gain_interval,
    insufficient_evidence,
    interval_text,
    pair_outcome,
    paired_effect,
    ratio_text,
    stance_of_interval,
    stance_of_similarity,
    stance_of_wins,
    stance_within_margin,
)
from fgbench.analysis.claims.verdicts import Outcome, Stance
from fgbench.analysis.compare import Comparison, find_measure
from fgbench.analysis.pairing import Pair
from fgbench.analysis.readings import Column, at_chance, has_diverged, negligible, read
from fgbench.analysis.records import RunRecord
from fgbench.analysis.statistics import Paired, log_ratios, summarise_differences
from fgbench.analysis.time_to import time_to_same_loss
from fgbench.formatting import format_number

Side = Literal["better", "worse"]

COMPARABLE_MEMORY = 1.1
"""Memories within this factor of each other count as comparable; a convention of this project."""

FEWEST_EPOCHS = 20
"""Fewest epochs from which the shape of a curve is read; a convention of this project."""


def judge(pair: Pair, measure: Column, side: Side, at_most: float | None = None) -> Outcome:
    """Whether the series is better (or worse) than its baseline at equal epochs, as claimed.

    Args:
        pair: the two.
        measure: of what.
        side: which is claimed. Where runs diverged, each seed has to show it: by divergence, or by more than
            counts as none.
        at_most: the largest mean difference the claim allows; beyond, it holds and does not hold.
    """
    result = paired_effect(pair, measure)
    if isinstance(result, Outcome):
        return result
    if isinstance(result, Comparison):
        margin = TUNING_NOISE if below_tuning_noise(pair, measure, 0.0) else negligible(measure)
        won = result.wins_by(margin)
        stance = stance_of_wins(won if side == "better" else won[::-1], len(pair.runs))
        beyond = stance is Stance.for_ and at_most is not None
        return pair_outcome(Stance.both if beyond else stance, pair, f"{measure.title} {diverged_text(pair)}")
    low, high = gain_interval(result, measure)
    if side == "worse":
        low, high = -high, -low
    stance = stance_of_interval(low, high, negligible(measure))
    text = effect_text(measure, result)
    noise = below_tuning_noise(pair, measure, result.mean)
    if noise and stance in (Stance.for_, Stance.against):
        return pair_outcome(Stance.unclear, pair, f"{text}, {noise}")
    if stance is Stance.for_ and at_most is not None and abs(result.mean) > at_most:
        return pair_outcome(Stance.both, pair, f"{text}, more than {at_most:g}")
    if stance is Stance.unclear and result.seeds_needed:
        text += f", {max(result.seeds_needed, result.n + 1)} seeds needed"
    return pair_outcome(stance, pair, text)


def judge_no_worse(pair: Pair, measure: Column, within: float) -> Outcome:
    """Whether the series is worse than its baseline by no more than a margin, at equal epochs.

    Args:
        pair: the two.
        measure: of what.
        within: the margin: of what was learnt a difference, of a cost a share.
    """
    result = paired_effect(pair, measure)
    if isinstance(result, Outcome):
        return result
    if isinstance(result, Comparison):
        won = result.wins_by(-within)[0], result.wins_by(within)[1]
        return pair_outcome(
            stance_of_wins(won, len(pair.runs)), pair, f"{measure.title} {diverged_text(pair)}"
        )
    low, high = gain_interval(result, measure)
    margin = within if measure.learns else math.log1p(within)
    text = f"{effect_text(measure, result)}, margin {within:g}"
    return pair_outcome(stance_within_margin(low, high, margin), pair, text)


def step_outcome(stance: Stance, step: Step, backprop: Step) -> Outcome:
    """What a benchmarked step says, with its time as a multiple of backprop's."""
    where = f"{step.model}, batch {step.batch_size}, {step.case} / {backprop.case}"
    if step.noise:
        return Outcome(Stance.no_evidence, f"{where}: benchmarked while {step.noise}")
    low, high = (math.exp(bound) for bound in step.interval(backprop))
    text = f"time of a step {step.time_to_backprop:.3f}× [{low:.3f}, {high:.3f}]"
    return Outcome(stance, f"{where}: {text}; benchmark, {step.rounds} rounds in one process")


def judge_throughout(pair: Pair, measure: Column, side: Side, share: float) -> Outcome:
    """As ``judge``; and whether it is so in a share of all epochs and seeds."""
    final = judge(pair, measure, side)
    if final.stance is not Stance.for_:
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


def judge_similar(pair: Pair, measure: Column, margin: float) -> Outcome:
    """Whether a cost is the baseline's within a margin, of the logarithm of their ratio."""
    result = paired_effect(pair, measure)
    if isinstance(result, Outcome):
        return result
    assert isinstance(result, Paired), "a cost has no divergence"
    stance = stance_of_similarity(result.interval or (math.nan, math.nan), margin)
    return pair_outcome(stance, pair, f"{effect_text(measure, result)}, margin {math.expm1(margin):.0%}")


def judge_sooner(pair: Pair) -> Outcome:
    """Whether the series takes less time to the validation loss that both reach."""
    if missing := insufficient_evidence(pair, find_measure("val_loss"), "time"):
        return missing
    reached = time_to_same_loss(pair)
    if reached and reached.in_first_epoch:
        return pair_outcome(
            Stance.no_evidence, pair, "no more than one epoch to the validation loss that both reach"
        )
    paired = log_ratios(reached.seconds) if reached else None
    if paired is None:
        return pair_outcome(Stance.no_evidence, pair, "no validation loss that both reach")
    low, high = paired.interval or (math.nan, math.nan)
    stance = stance_of_interval(-high, -low, negligible(find_measure("epoch_time_s")))
    return pair_outcome(stance, pair, f"time to the same validation loss {ratio_text(paired)}")


def judge_larger_gap(pair: Pair, other: Pair, measure: Column) -> Outcome:
    """Whether the baseline leads by more in one pair than in another, which was run elsewhere."""
    epoch = min(common_epoch(pair), common_epoch(other))
    leads, references = _leads(pair, measure, epoch), _leads(other, measure, epoch)
    seeds = sorted(leads.keys() & references.keys())
    where = f"{pair.task} - {other.task} ({pair.series.label})"
    if len(seeds) < MIN_SEEDS:
        return Outcome(Stance.no_evidence, f"{where}: {len(seeds)} seeds in common, {MIN_SEEDS} needed")
    if all(at_chance(run, epoch) for each in (pair, other) for run, _ in each.runs):
        return Outcome(
            Stance.no_evidence,
            f"{where}: at chance on both, so the leads say something of the baseline alone",
        )
    differences = [leads[seed] - references[seed] for seed in seeds]
    if not all(map(math.isfinite, differences)):
        return Outcome(Stance.unclear, f"{where}: runs diverged or were not measured")
    paired = summarise_differences(differences)
    low, high = paired.interval or (math.nan, math.nan)
    stance = stance_of_interval(low, high, negligible(measure))
    text = f"lead in {measure.title} {interval_text(paired, measure.form)}; epoch {epoch}"
    return Outcome(stance, f"{where}: {text}; seeds {', '.join(map(str, seeds))}")


def _leads(pair: Pair, measure: Column, epoch: int) -> dict[int, float]:
    """How far the baseline is ahead, by seed; NaN where a run diverged."""
    return {
        run.seed: measure.gain(read(other, measure, epoch) - read(run, measure, epoch))
        for run, other in pair.runs
    }


def judge_equal_memory(pair: Pair, measure: Column) -> Outcome:
    """Whether the series is worse than a baseline that needs no more memory."""
    if missing := insufficient_evidence(pair, find_measure("peak_memory_mib")):
        return missing
    outcome = judge(pair, measure, "worse")
    if outcome.stance is Stance.no_evidence:
        return outcome
    budget, needed = peak_memory(pair.series), peak_memory(pair.baseline)
    if math.isnan(budget) or math.isnan(needed):
        return pair_outcome(Stance.no_evidence, pair, "memory not measured")
    memory = f"{format_number(needed, '.1f')} MiB for {format_number(budget, '.1f')}"
    if needed > budget * COMPARABLE_MEMORY:
        return pair_outcome(Stance.no_evidence, pair, f"{pair.baseline.label} does not fit: {memory}")
    return Outcome(outcome.stance, f"{outcome.text}; {memory}")


def judge_generalisation(pair: Pair) -> Outcome:
    """Whether training minus test accuracy is smaller, and not because less was learnt.

    Training accuracy is a mean over the epoch: while a network learns fast, it is below the test accuracy at
    the epoch's end, and the gap says how fast, not how well it generalises.
    """
    train, test = find_measure("train_accuracy"), find_measure("test_accuracy")
    fitted = paired_effect(pair, train)
    if isinstance(fitted, Outcome):
        return fitted
    epoch = common_epoch(pair)
    gaps = [tuple(read(run, train, epoch) - read(run, test, epoch) for run in both) for both in pair.runs]
    if isinstance(fitted, Comparison) or not all(math.isfinite(gap) for both in gaps for gap in both):
        return pair_outcome(Stance.no_evidence, pair, "runs diverged or were not measured")
    paired = summarise_differences([mine - other for mine, other in gaps])
    low, high = paired.interval or (math.nan, math.nan)
    stance = stance_of_interval(-high, -low, negligible(test))
    text = f"training minus test accuracy {interval_text(paired, test.form)}"
    if (
        stance is Stance.for_
        and stance_within_margin(*gain_interval(fitted, train), negligible(train)) is not Stance.for_
    ):
        return pair_outcome(Stance.no_evidence, pair, f"{text}, at a lower {effect_text(train, fitted)}")
    if min(fmean(side) for side in zip(*gaps, strict=True)) < -negligible(test):
        return pair_outcome(
            Stance.no_evidence, pair, f"{text}; training accuracy is still below that of tests"
        )
    return pair_outcome(stance, pair, text)


def judge_levelling_off(pair: Pair, measure: Column) -> Outcome:
    """Whether the series' own curve has become flat by its last epochs."""
    if missing := _too_few_epochs(pair):
        return missing
    changes = []
    for run, _ in pair.runs:
        values = run.metrics[measure.name].to_numpy(float)
        tenth = max(1, len(values) // 10)
        changes.append(float(values[-tenth:].mean() - values[-2 * tenth : -tenth].mean()))
    if any(run.state == "diverged" for run, _ in pair.runs):
        return pair_outcome(Stance.against, pair, f"{measure.title} {diverged_text(pair)}")
    if not all(map(math.isfinite, changes)):
        return pair_outcome(Stance.no_evidence, pair, f"{measure.title} not measured")
    paired, margin = summarise_differences(changes), negligible(measure)
    stance = stance_of_similarity(paired.interval or (math.nan, math.nan), margin)
    text = f"{measure.title} changes by {interval_text(paired, measure.form)} over the last tenth of epochs"
    return pair_outcome(stance, pair, text)


def judge_steadiness(pair: Pair, measure: Column) -> Outcome:
    """Whether the curve fluctuates less from epoch to epoch than the baseline's."""
    if missing := _too_few_epochs(pair):
        return missing
    epoch = common_epoch(pair)

    def fluctuation(run: RunRecord) -> float:
        bends = np.diff(run.metrics[measure.name].to_numpy(float)[:epoch], n=2)
        return float(np.sqrt(np.mean(bends**2)))

    paired = log_ratios([(fluctuation(run), fluctuation(other)) for run, other in pair.runs])
    if paired is None:
        return pair_outcome(Stance.no_evidence, pair, f"{measure.title} diverged or not measured")
    low, high = paired.interval or (math.nan, math.nan)
    stance = stance_of_interval(-high, -low, negligible(find_measure("epoch_time_s")))
    return pair_outcome(stance, pair, f"fluctuation of {measure.title} {ratio_text(paired)}")


def _too_few_epochs(pair: Pair) -> Outcome | None:
    if missing := insufficient_evidence(pair, find_measure("train_loss")):
        return missing
    if common_epoch(pair) < FEWEST_EPOCHS:
        return pair_outcome(Stance.no_evidence, pair, f"{common_epoch(pair)} epochs, {FEWEST_EPOCHS} needed")
    return None
