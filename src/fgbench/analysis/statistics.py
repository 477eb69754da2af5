"""Paired differences between two trainers' runs of the same seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

LEVEL = 0.95
"""Level of confidence intervals: the usual one."""
POWER = 0.8
"""Power for which the number of seeds needed is computed: the usual one."""
BOOTSTRAP_FROM = 10
"""Fewest seeds for a bootstrap interval: below, resampling few values gives intervals that are too narrow."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Paired:
    """Statistics of n paired differences.

    Attributes:
        n: how many differences, one per seed.
        mean: their mean.
        interval: 95 % interval of the mean by the paired t-test; None for one difference.
        bootstrap: 95 % BCa bootstrap interval of the mean; None for fewer than ten differences.
        p_value: two-sided, of the paired t-test; None for one difference.
        effect_size: Cohen's d_z, mean / standard deviation (n - 1); infinite where all differences are the
            same and not 0; None for one difference.
        corrected_effect_size: d_z without its small-sample bias; None for fewer than three differences.
        seeds_needed: seeds with which a paired t-test finds a difference of this effect size with 80 %
            power; None where the effect size is 0 or unknown.
    """

    n: int
    mean: float
    interval: Interval | None = None
    bootstrap: Interval | None = None
    p_value: float | None = None
    effect_size: float | None = None
    corrected_effect_size: float | None = None
    seeds_needed: int | None = None


def summarise_differences(differences: Sequence[float], resolution: float = 0.0) -> Paired:
    """Mean, intervals and effect size of paired differences; for a single one, only the mean.

    Source: Student (1908) for the interval; Efron (1987) for BCa; Cohen (1988) for d_z.

    Args:
        differences: one per seed, finite, at least one.
        resolution: of what they are differences of, such as 1 / images of an accuracy. Values that are
            multiples of it can agree by chance: their deviation is taken to be at least that of rounding to
            it, for a difference resolution / sqrt(6).

    Raises:
        ValueError: there is none, or one is not finite.
    """
    values = np.asarray(differences, dtype=float)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"expected one or more finite differences, got {list(differences)}")
    n, mean = len(values), float(values.mean())
    if n == 1:
        return Paired(n, mean)
    deviation = max(float(values.std(ddof=1)), resolution / math.sqrt(6))
    if deviation <= 1e-12 * float(np.abs(values).max()):  # no spread except rounding
        return _without_spread(n, mean)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * deviation / math.sqrt(n)
    effect = mean / deviation
    return Paired(
        n,
        mean,
        interval=(mean - half, mean + half),
        bootstrap=_bootstrap(values) if n >= BOOTSTRAP_FROM else None,
        p_value=2 * float(stats.t.sf(abs(effect) * math.sqrt(n), n - 1)),
        effect_size=effect,
        corrected_effect_size=effect * _small_sample_factor(n - 1) if n > 2 else None,
        seeds_needed=seeds_needed(effect),
    )


def log_ratios(values: Sequence[tuple[float, float]]) -> Paired | None:
    """Paired logarithms of the ratios; None if there are none or a value is not positive."""
    if not values or not all(math.isfinite(value) and value > 0 for both in values for value in both):
        return None
    return summarise_differences([math.log(mine / other) for mine, other in values])


def _without_spread(n: int, mean: float) -> Paired:
    effect = math.copysign(math.inf, mean) if mean else 0.0
    return Paired(
        n,
        mean,
        interval=(mean, mean),
        bootstrap=(mean, mean) if n >= BOOTSTRAP_FROM else None,
        p_value=0.0 if mean else 1.0,
        effect_size=effect,
        corrected_effect_size=effect if n > 2 else None,
        seeds_needed=seeds_needed(effect),
    )


def _bootstrap(values: np.ndarray) -> Interval:
    result = stats.bootstrap(
        (values,), np.mean, confidence_level=LEVEL, method="BCa", random_state=np.random.default_rng(0)
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _small_sample_factor(df: int) -> float:
    """Hedges' correction of a standardised mean: Gamma(df/2) / (sqrt(df/2) Gamma((df-1)/2)).

    Source: Hedges (1981).
    """
    return math.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / math.sqrt(df / 2)


def power(effect_size: float, n: int) -> float:
    """Power of a two-sided 5 % paired t-test over n seeds for a difference of ``effect_size`` d_z."""
    df, shift = n - 1, abs(effect_size) * math.sqrt(n)
    critical = float(stats.t.ppf((1 + LEVEL) / 2, df))
    return float(stats.nct.sf(critical, df, shift) + stats.nct.cdf(-critical, df, shift))


def seeds_needed(effect_size: float) -> int | None:
    """Fewest seeds, at least 2, with which a paired t-test finds d_z = ``effect_size`` with 80 % power.

    >>> seeds_needed(1.0), seeds_needed(0.0)
    (10, None)
    """
    if effect_size == 0 or math.isnan(effect_size):
        return None
    if abs(effect_size) > 50:  # two seeds do, and scipy's distribution loses its digits there
        return 2
    by_normal = ((stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(POWER)) / effect_size) ** 2
    n = max(2, math.ceil(by_normal))
    if n < 1000:  # above, the t and the normal distribution agree
        while power(effect_size, n) < POWER:
            n += 1
    return n


def adjust_holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P values adjusted to control the family-wise error rate.

    Source: Holm (1979). None stays None and counts as no test.

    >>> adjust_holm([0.01, None, 0.04])
    [0.02, None, 0.04]
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        adjusted[index] = largest
    return adjusted
