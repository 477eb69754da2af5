"""The numbers that a pair of series gives as evidence, and how they are put in words."""

import math

from fgbench.analysis.budgets import Budget, common_epoch
from fgbench.analysis.cautions import MIN_SEEDS
from fgbench.analysis.claims.verdicts import Outcome, Stance
from fgbench.analysis.compare import Comparison, compare_pair
from fgbench.analysis.pairing import TUNABLE, Pair
from fgbench.analysis.readings import Column
from fgbench.analysis.statistics import Paired, log_ratios
from fgbench.formatting import format_number


def paired_effect(pair: Pair, measure: Column) -> Paired | Comparison | Outcome:
    """The paired differences of what was learnt, or logarithms of ratios of a cost, at equal epochs.

    Returns:
        An outcome where nothing can be said; the comparison where runs diverged: then there is no mean, but
        losing every seed is an answer.
    """
    if missing := insufficient_evidence(pair, measure):
        return missing
    comparison = compare_pair(pair, measure)
    if comparison.obstacle.startswith("diverged"):
        return comparison
    if comparison.paired is None:
        return pair_outcome(Stance.no_evidence, pair, f"{measure.title} {comparison.obstacle}")
    paired = comparison.paired if measure.learns else log_ratios(comparison.values)
    return paired or pair_outcome(Stance.no_evidence, pair, f"{measure.title} is 0")


def gain_interval(paired: Paired, measure: Column) -> tuple[float, float]:
    """The interval of the effect, positive where the series is the better one."""
    low, high = sorted(measure.gain(bound) for bound in paired.interval or (math.nan, math.nan))
    return low, high


def diverged_text(pair: Pair) -> str:
    """How many runs diverged on each side: ``diverged: 1 of 3; baseline 0``."""
    mine, other = (sum(both[side].state == "diverged" for both in pair.runs) for side in (0, 1))
    return f"diverged: {mine} of {len(pair.runs)}; baseline {other}"


def stance_of_wins(won: tuple[int, int], n: int) -> Stance:
    """From the seeds won and lost of ``n``; one that diverged on both sides is neither."""
    wins, losses = won
    if wins == n:
        return Stance.for_
    if losses == n:
        return Stance.against
    return Stance.both if wins and losses else Stance.unclear


def stance_of_interval(low: float, high: float, negligible: float) -> Stance:
    """From the interval of the claimed effect, positive as claimed."""
    if -negligible <= low and high <= negligible:
        return Stance.equal
    return Stance.for_ if low > 0 else Stance.against if high < 0 else Stance.unclear


def stance_within_margin(low: float, high: float, margin: float = math.inf) -> Stance:
    """From the interval of a gain, whether it is no loss beyond the margin."""
    return Stance.for_ if low >= -margin else Stance.against if high < -margin else Stance.unclear


def stance_of_similarity(interval: tuple[float, float], margin: float) -> Stance:
    """From the interval of an effect, whether it is none within the margin."""
    low, high = interval
    if -margin <= low and high <= margin:
        return Stance.for_
    return Stance.against if low > margin or high < -margin else Stance.unclear


def insufficient_evidence(pair: Pair, measure: Column, budget: Budget = "epochs") -> Outcome | None:
    """Why a pair cannot say anything, whatever its numbers."""
    if len(pair.runs) < MIN_SEEDS:
        seeds = f"{len(pair.runs)} seed{'s' * (len(pair.runs) != 1)} in common, {MIN_SEEDS} needed"
        return pair_outcome(Stance.no_evidence, pair, seeds)
    if refusal := compare_pair(pair, measure, budget).refusal:
        return pair_outcome(Stance.no_evidence, pair, refusal)
    return None


def pair_outcome(stance: Stance, pair: Pair, text: str) -> Outcome:
    """An outcome whose text also says for which series, epoch and seeds."""
    seeds = f"; epoch {common_epoch(pair)}, seeds {', '.join(map(str, pair.seeds))}" if pair.runs else ""
    different = [each for each in pair.other_settings if each.startswith(TUNABLE)]
    other = f"; also different: {', '.join(different)}" if different else ""
    return Outcome(stance, f"{pair.task}, {pair.series.label} / {pair.baseline.label}: {text}{seeds}{other}")


def effect_text(measure: Column, paired: Paired) -> str:
    """The mean difference of what was learnt, the mean ratio of a cost, with its interval."""
    text = interval_text(paired, measure.form) if measure.learns else ratio_text(paired)
    return f"{measure.title} {text}"


def interval_text(paired: Paired, form: str) -> str:
    """Such as ``-0.2000 [-0.2248, -0.1752]``."""
    low, high = paired.interval or (math.nan, math.nan)
    mean, left, right = (format_number(value, f"+{form}") for value in (paired.mean, low, high))
    return f"{mean} [{left}, {right}]"


def ratio_text(logs: Paired) -> str:
    """Such as ``1.500× [1.400, 1.600]``, from paired logarithms."""
    low, high = logs.interval or (math.nan, math.nan)
    mean, left, right = (format_number(math.exp(value), ".3f") for value in (logs.mean, low, high))
    return f"{mean}× [{left}, {right}]"
