"""What one pair of series says about a claim."""

import math
from typing import Literal

from fgbench.analysis.claims.verdicts import Outcome, Stance
from fgbench.analysis.compare import Budget, below_tuning_noise, common_epoch, compare_pair, find_caution
from fgbench.analysis.pairing import TUNABLE, Pair
from fgbench.analysis.readings import Column, negligible
from fgbench.analysis.statistics import Paired, log_ratios
from fgbench.formatting import format_number

MIN_SEEDS = 3
"""Seeds below which nothing is decided; a convention of this project: two leave the interval one degree of
freedom, so it is 12.7 standard errors wide on either side, against 4.3 with three."""

Side = Literal["better", "worse"]


def judge(pair: Pair, measure: Column, side: Side, at_most: float | None = None) -> Outcome:
    """Whether the series is better (or worse) than its baseline at equal epochs, as claimed.

    Args:
        pair: the two.
        measure: of what.
        side: which is claimed.
        at_most: the largest mean difference the claim allows; beyond, it holds and does not hold.
    """
    result = compared(pair, measure)
    if isinstance(result, Outcome):
        return result
    if isinstance(result, tuple):
        won = result if side == "better" else result[::-1]
        return outcome_of(kind_of_wins(won, len(pair.runs)), pair, f"{measure.title} {diverged_text(pair)}")
    low, high = gains(result, measure)
    if side == "worse":
        low, high = -high, -low
    kind = kind_of(low, high, negligible(measure))
    text = number_text(measure, result)
    noise = below_tuning_noise(pair, measure, result.mean)
    if noise and kind in (Stance.for_, Stance.against):
        return outcome_of(Stance.unclear, pair, f"{text}, {noise}")
    if kind is Stance.for_ and at_most is not None and abs(result.mean) > at_most:
        return outcome_of(Stance.both, pair, f"{text}, more than {at_most:g}")
    if kind is Stance.unclear and result.seeds_needed:
        text += f", {max(result.seeds_needed, result.n + 1)} seeds needed"
    return outcome_of(kind, pair, text)


def judge_no_worse(pair: Pair, measure: Column, within: float) -> Outcome:
    """Whether the series is worse than its baseline by no more than a margin, at equal epochs.

    Args:
        pair: the two.
        measure: of what.
        within: the margin: of what was learnt a difference, of a cost a share.
    """
    result = compared(pair, measure)
    if isinstance(result, Outcome):
        return result
    if isinstance(result, tuple):
        return outcome_of(
            kind_of_wins(result, len(pair.runs)), pair, f"{measure.title} {diverged_text(pair)}"
        )
    low, high = gains(result, measure)
    margin = within if measure.learns else math.log1p(within)
    text = f"{number_text(measure, result)}, margin {within:g}"
    return outcome_of(kind_within(low, high, margin), pair, text)


def compared(pair: Pair, measure: Column) -> Paired | tuple[int, int] | Outcome:
    """The paired differences of what was learnt, or logarithms of ratios of a cost, at equal epochs.

    Returns:
        An outcome where nothing can be said; won and lost seeds where runs diverged: then there is no mean,
        but losing every seed is an answer.
    """
    if lacking := insufficient_evidence(pair, measure):
        return lacking
    comparison = compare_pair(pair, measure)
    if comparison.obstacle.startswith("diverged"):
        return comparison.wins
    if comparison.paired is None:
        return outcome_of(Stance.too_few, pair, f"{measure.title} {comparison.obstacle}")
    paired = comparison.paired if measure.learns else log_ratios(comparison.values)
    return paired or outcome_of(Stance.too_few, pair, f"{measure.title} is 0")


def gains(paired: Paired, measure: Column) -> tuple[float, float]:
    """The interval of the effect, positive where the series is the better one."""
    low, high = sorted(measure.gain(bound) for bound in paired.interval or (math.nan, math.nan))
    return low, high


def diverged_text(pair: Pair) -> str:
    """How many runs diverged on each side: ``diverged: 1 of 3; baseline 0``."""
    mine, other = (sum(both[side].state == "diverged" for both in pair.runs) for side in (0, 1))
    return f"diverged: {mine} of {len(pair.runs)}; baseline {other}"


def kind_of_wins(won: tuple[int, int], n: int) -> Stance:
    """From the seeds won and lost of ``n``; one that diverged on both sides is neither."""
    wins, losses = won
    if wins == n:
        return Stance.for_
    if losses == n:
        return Stance.against
    return Stance.both if wins and losses else Stance.unclear


def kind_of(low: float, high: float, negligible: float) -> Stance:
    """From the interval of the claimed effect, positive as claimed."""
    if -negligible <= low and high <= negligible:
        return Stance.same
    return Stance.for_ if low > 0 else Stance.against if high < 0 else Stance.unclear


def kind_within(low: float, high: float, margin: float = math.inf) -> Stance:
    """From the interval of a gain, whether it is no loss beyond the margin."""
    return Stance.for_ if low >= -margin else Stance.against if high < -margin else Stance.unclear


def insufficient_evidence(pair: Pair, measure: Column, budget: Budget = "epochs") -> Outcome | None:
    """Why a pair cannot say anything, whatever its numbers."""
    if len(pair.runs) < MIN_SEEDS:
        seeds = f"{len(pair.runs)} seed{'s' * (len(pair.runs) != 1)} in common, {MIN_SEEDS} needed"
        return outcome_of(Stance.too_few, pair, seeds)
    if caution := find_caution(pair, measure, budget):
        return outcome_of(Stance.too_few, pair, caution)
    return None


def outcome_of(kind: Stance, pair: Pair, text: str) -> Outcome:
    """An outcome whose text also says for which series, epoch and seeds."""
    seeds = f"; epoch {common_epoch(pair)}, seeds {', '.join(map(str, pair.seeds))}" if pair.runs else ""
    different = [each for each in pair.other_settings if each.startswith(TUNABLE)]
    other = f"; also different: {', '.join(different)}" if different else ""
    return Outcome(kind, f"{pair.task}, {pair.series.label} / {pair.baseline.label}: {text}{seeds}{other}")


def number_text(measure: Column, paired: Paired) -> str:
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
