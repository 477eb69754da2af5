"""What one pair of series says about a claim. Imports no torch."""

import math
from typing import Literal

from fgbench.analysis.claims.verdicts import Kind, Outcome
from fgbench.analysis.compare import common_epoch, compare_pair, was_disturbed
from fgbench.analysis.pairing import TUNABLE, Pair
from fgbench.analysis.readings import Measure, negligible
from fgbench.analysis.statistics import Paired, log_ratios

MIN_SEEDS = 3

Side = Literal["better", "worse"]


def judge(pair: Pair, measure: Measure, side: Side, at_most: float | None = None) -> Outcome:
    """Whether the series is better (or worse) than its baseline at equal epochs, as claimed.

    Args:
        pair: the two.
        measure: of what.
        side: which is claimed.
        at_most: the largest mean difference the claim allows; beyond, it holds and does not hold.
    """
    if lacking := find_lack(pair, measure):
        return lacking
    comparison = compare_pair(pair, measure)
    n, (wins, losses) = len(pair.runs), comparison.wins
    if comparison.obstacle.startswith("diverged"):  # no mean then, but losing every seed is an answer
        won = (wins, losses) if side == "better" else (losses, wins)
        kind = Kind.for_ if won == (n, 0) else Kind.against if won == (0, n) else Kind.both
        return outcome_of(kind, pair, f"{measure.title} {comparison.obstacle}")
    if comparison.paired is None:
        return outcome_of(Kind.too_few, pair, f"{measure.title} {comparison.obstacle}")
    paired = comparison.paired if measure.learns else log_ratios(comparison.values)
    if paired is None:
        return outcome_of(Kind.too_few, pair, f"{measure.title} is 0")
    low, high = sorted(measure.gain(bound) for bound in paired.interval or ())
    if side == "worse":
        low, high = -high, -low
    kind = kind_of(low, high, negligible(measure))
    text = number_text(measure, paired)
    if kind is Kind.for_ and at_most is not None and abs(paired.mean) > at_most:
        return outcome_of(Kind.both, pair, f"{text}, more than {at_most:g}")
    if kind is Kind.unclear and paired.seeds_needed:
        text += f", {max(paired.seeds_needed, n + 1)} seeds needed"
    return outcome_of(kind, pair, text)


def kind_of(low: float, high: float, negligible: float) -> Kind:
    """From the interval of the claimed effect, positive as claimed."""
    if high < 0 or (-negligible <= low and high <= negligible):
        return Kind.against
    return Kind.for_ if low > 0 else Kind.unclear


def find_lack(pair: Pair, measure: Measure) -> Outcome | None:
    """Why a pair cannot say anything, whatever its numbers."""
    if len(pair.runs) < MIN_SEEDS:
        seeds = f"{len(pair.runs)} seed{'s' * (len(pair.runs) != 1)} in common, {MIN_SEEDS} needed"
        return outcome_of(Kind.too_few, pair, seeds)
    if measure.learns:
        return None
    if different := pair.environments:
        return outcome_of(Kind.too_few, pair, f"measured in different environments: {', '.join(different)}")
    if was_disturbed(pair, measure):
        return outcome_of(Kind.too_few, pair, "timed while other work kept the machine busy")
    return None


def outcome_of(kind: Kind, pair: Pair, text: str) -> Outcome:
    """An outcome whose text also says for which series, epoch and seeds."""
    seeds = f"; epoch {common_epoch(pair)}, seeds {', '.join(map(str, pair.seeds))}" if pair.runs else ""
    different = [each for each in pair.other_settings if each.startswith(TUNABLE)]
    other = f"; also different: {', '.join(different)}" if different else ""
    return Outcome(kind, f"{pair.task}, {pair.series.label} / {pair.baseline.label}: {text}{seeds}{other}")


def number_text(measure: Measure, paired: Paired) -> str:
    """The mean difference of what was learnt, the mean ratio of a cost, with its interval."""
    told = interval_text(paired, measure.form) if measure.learns else ratio_text(paired)
    return f"{measure.title} {told}"


def interval_text(paired: Paired, form: str) -> str:
    """Such as ``-0.2000 [-0.2248, -0.1752]``."""
    low, high = paired.interval or (math.nan, math.nan)
    return f"{paired.mean:+{form}} [{low:+{form}}, {high:+{form}}]"


def ratio_text(logs: Paired) -> str:
    """Such as ``1.500× [1.400, 1.600]``, from paired logarithms."""
    low, high = logs.interval or (math.nan, math.nan)
    return f"{math.exp(logs.mean):.3f}× [{math.exp(low):.3f}, {math.exp(high):.3f}]"
