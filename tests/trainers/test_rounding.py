"""What passes as rounding where two ways of computing one thing are compared."""

import math

import torch

from fgbench.trainers.rounding import Trial, allowance, largest, moved_by_rounding


def test_every_input_moves_to_a_neighbour_up_or_down_the_same_way_each_time():
    inputs = torch.randn(50, 8)
    moved = moved_by_rounding(inputs)
    up, down = (torch.nextafter(inputs, torch.full_like(inputs, way)) for way in (math.inf, -math.inf))
    assert ((moved == up) | (moved == down)).all()
    assert 0.3 < float((moved == up).float().mean()) < 0.7
    assert torch.equal(moved, moved_by_rounding(inputs))


def test_the_allowance_is_four_roundings_between_the_tolerance_and_five_times_that():
    assert [allowance(0.01, rounding) for rounding in (0.0, 0.002, 0.005, 0.1, math.nan)] == [
        0.01,
        0.01,
        0.02,
        0.05,
        0.01,
    ]


def test_one_wrong_number_among_many_outputs_or_derivatives_is_as_far_off_as_it_is():
    outputs, derivatives = torch.ones(64, 10), torch.ones(8)
    for place in ("state", "derivatives"):
        true = Trial([derivatives], [], [outputs])
        wrong = Trial([derivatives.clone()], [], [outputs.clone()])
        getattr(wrong, place)[0].view(-1)[3] += 0.2
        assert math.isclose(true.distance(wrong), 0.2, rel_tol=1e-5)
    assert true.distance(true) == 0


def test_a_gradient_is_compared_by_parameter_and_none_counts_as_smaller_than_the_whole():
    large, small = torch.ones(300), torch.full((10,), 1e-9)
    true = Trial([], [large, small], [])
    assert true.distance(Trial([], [large, 2 * small], [])) < 1e-8
    assert math.isclose(true.distance(Trial([], [1.1 * large, small], [])), 0.1, rel_tol=1e-5)
    assert true.distance(Trial([], [large, small + 0.1], [])) > 0.09


def test_what_is_not_a_number_is_the_largest_error():
    assert math.isnan(largest([1.0, math.nan, 2.0]))
    assert largest([1.0, 2.0]) == 2
    assert largest([]) == 0
