"""Paired statistics, against hand-computed numbers and scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from fgbench.analysis.statistics import adjust_holm, power, seeds_needed, summarise_differences


def test_paired_statistics_are_those_computed_by_hand():
    paired = summarise_differences([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)  # t of 2 degrees of freedom at 0.975, standard deviation 1
    assert paired.mean == 2.0
    assert paired.interval == pytest.approx((2 - half, 2 + half))
    assert paired.effect_size == pytest.approx(2.0)
    assert paired.corrected_effect_size == pytest.approx(2.0 * math.gamma(1) / math.gamma(0.5))
    assert paired.p_value == pytest.approx(1 - 2 * math.sqrt(3) / math.sqrt(14))  # closed form for 2 df


def test_the_interval_and_p_value_are_those_of_scipys_paired_test():
    rng = np.random.default_rng(3)
    first, second = rng.normal(1, 1, 8), rng.normal(0.3, 1, 8)
    paired = summarise_differences((first - second).tolist())
    expected = stats.ttest_rel(first, second)
    assert paired.p_value == pytest.approx(expected.pvalue)
    assert paired.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_one_seed_gives_a_difference_and_nothing_else():
    paired = summarise_differences([0.25])
    assert (paired.n, paired.mean) == (1, 0.25)
    assert paired.interval is paired.p_value is paired.effect_size is paired.seeds_needed is None


def test_the_bootstrap_is_used_from_ten_seeds_on_and_repeats():
    values = np.random.default_rng(0).exponential(size=10).tolist()
    assert summarise_differences(values[:9]).bootstrap is None
    low, high = summarise_differences(values).bootstrap
    assert low < np.mean(values) < high
    assert summarise_differences(values).bootstrap == (low, high)


@pytest.mark.parametrize("value", [0.5, -2.0])
@pytest.mark.parametrize("n", [3, 12])
def test_equal_differences_have_an_interval_of_no_width(value, n):
    paired = summarise_differences([value] * n)
    assert paired.interval == (value, value)
    assert paired.p_value == 0
    assert paired.effect_size == math.copysign(math.inf, value)
    assert paired.seeds_needed == 2


def test_no_difference_at_all_needs_no_number_of_seeds():
    paired = summarise_differences([0.0, 0.0, 0.0])
    assert (paired.p_value, paired.effect_size, paired.seeds_needed) == (1.0, 0.0, None)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 0.0]])
def test_a_missing_difference_is_never_left_out(values):
    with pytest.raises(ValueError, match="finite"):
        summarise_differences(values)


@pytest.mark.parametrize("effect", [0.3, 0.8, 1.7, 4.0, 15.0])
def test_seeds_needed_is_the_fewest_with_80_percent_power(effect):
    n = seeds_needed(effect)
    assert power(effect, n) >= 0.8
    assert n == 2 or power(effect, n - 1) < 0.8
    assert seeds_needed(-effect) == n


def test_power_agrees_with_simulation():
    rng = np.random.default_rng(5)
    samples = rng.normal(1.0, 1.0, (20_000, 6))
    p_values = stats.ttest_1samp(samples, 0.0, axis=1).pvalue
    assert power(1.0, 6) == pytest.approx((p_values < 0.05).mean(), abs=0.01)


def test_tiny_effects_need_seeds_by_the_normal_approximation():
    assert seeds_needed(0.01) == math.ceil((1.959964 + 0.841621) ** 2 / 0.01**2)


def test_holm_adjusts_in_order_and_never_above_one():
    assert adjust_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjust_holm([0.9, 0.8]) == [1.0, 1.0]
    assert adjust_holm([None, 0.02]) == [None, 0.02]
    assert adjust_holm([]) == []


def test_accuracies_of_few_images_that_agree_by_chance_are_no_proof():
    agreeing = [0.05, 0.05, 0.05]
    exact, of_20_images = summarise_differences(agreeing), summarise_differences(agreeing, 1 / 20)
    assert exact.p_value == 0
    assert of_20_images.p_value == pytest.approx(0.0513, abs=1e-4)
    assert of_20_images.interval == pytest.approx((-0.0007, 0.1007), abs=1e-4)
    spread = [0.01, 0.05, 0.09]
    assert summarise_differences(spread, 1 / 10_000) == summarise_differences(spread)
