"""What steps cost: forward passes, counted, and drawing, timed; the hidden layer of ``fc`` has nearly all."""

import pytest
import torch

from fgbench.config.config import Config
from fgbench.datasets.base import load_splits
from fgbench.datasets.search import DataSearch
from fgbench.run.cost import measure_step_cost
from fgbench.trainers import sampling

INPUTS, HIDDEN, CLASSES = 64, 16, 4
FIRST = INPUTS * HIDDEN / (INPUTS * HIDDEN + HIDDEN * CLASSES)
"""Share of the first layer in a forward pass."""


def cost(trainer, optimizer="adam", model=None):
    settings = {
        "dataset": {"name": "synthetic", "shape": [1, 8, 8], "classes": CLASSES, "train": 40, "test": 8},
        "model": model or {"name": "fc", "hidden": HIDDEN},
        "trainer": trainer,
        "optimizer": {"name": optimizer},
        "batch_size": 8,
    }
    config, device = Config.model_validate(settings), torch.device("cpu")
    splits = load_splits(config.dataset, config.seed, device, DataSearch(download=False))
    return measure_step_cost(config, device, splits)


def passes(trainer, optimizer="adam"):
    return cost(trainer, optimizer).forward_passes


def test_backprop_costs_three_forward_passes_but_no_gradient_of_the_images():
    assert passes({"name": "backprop"}) == pytest.approx(3 - FIRST)


def test_a_forward_gradient_costs_the_outputs_and_two_passes_for_every_tangent():
    # V x and W x_t for every layer but the first, whose inputs have no tangent
    for tangents in (1, 3):
        trainer = {"name": "forward-gradient", "tangents": tangents}
        assert passes(trainer) == pytest.approx(1 + tangents * (2 - FIRST), rel=1e-3)


def test_central_differences_cost_two_forward_passes():
    assert passes({"name": "zeroth-order"}) == pytest.approx(2)


def test_products_that_are_added_in_place_count_too():
    """Rank-one differences: twice W x and w^T x, w a vector, and one product of vectors in place of 8."""
    rank_one = {"name": "zeroth-order", "guess": "rademacher", "structure": "rank1"}
    weights = INPUTS * HIDDEN + HIDDEN * CLASSES
    assert passes(rank_one) == pytest.approx(2 * (1 + (INPUTS + HIDDEN) / weights) + 1 / 8, rel=2e-3)
    feedback = passes({"name": "feedback-forward-gradient"})
    matrix = HIDDEN * CLASSES / weights  # y, what F says of it, learning F, guiding by it
    assert feedback == pytest.approx(passes({"name": "frozen"}) + FIRST + 4 * matrix)


def test_a_frozen_body_costs_a_forward_pass_and_the_output_layers_gradient():
    assert passes({"name": "frozen"}) == pytest.approx(1 + (1 - FIRST))


def test_sign_feedback_costs_as_much_as_backprop_and_direct_feedback_a_product_per_layer():
    assert passes({"name": "feedback-alignment", "feedback": "sign"}) == pytest.approx(3 - FIRST)
    direct = passes({"name": "feedback-alignment", "feedback": "direct"})
    assert direct == pytest.approx(2 + (1 - FIRST))  # e B in place of delta W: here as many operations


@pytest.mark.parametrize(
    ("trainer", "draws"),
    [
        ({"name": "forward-gradient"}, True),
        ({"name": "forward-gradient", "structure": "rank1", "guess": "rademacher"}, True),
        ({"name": "activity-forward-gradient"}, True),
        ({"name": "feedback-forward-gradient"}, True),
        ({"name": "guided-forward-gradient", "guess": "normal"}, True),
        ({"name": "zeroth-order"}, True),
        ({"name": "backprop"}, False),
        ({"name": "frozen"}, False),
        ({"name": "local-loss"}, False),
        ({"name": "feedback-alignment"}, False),
    ],
    ids=str,
)
def test_drawing_takes_time_where_a_trainer_draws_and_none_elsewhere(trainer, draws):
    found = cost(trainer).drawing_ms
    assert (found > 0) == draws
    assert found < 1000


def test_every_draw_is_timed_once_while_a_clock_runs(monkeypatch):
    times = iter([2.0, 5.0, 7.0, 7.5])
    monkeypatch.setattr(sampling.time, "perf_counter", lambda: next(times))
    params, generator = {"weight": torch.zeros(64)}, torch.Generator()
    sampling.sample_tangents(params, "rademacher", generator)  # reads no clock
    with sampling.DrawingClock() as clock:
        for guess in ("rademacher", "sphere"):
            sampling.sample_tangents(params, guess, generator)
    assert clock.seconds == 3.5
    sampling.sample_tangents(params, "normal", generator)


def test_attention_counts_alike_in_a_pass_and_in_a_step():
    """Tangents cost two products for every one, of attention too, but for the images, which have none."""
    vit = {"name": "vit", "width": 16, "depth": 2, "heads": 2, "patch": 1}
    assert cost({"name": "zeroth-order"}, model=vit).forward_passes == pytest.approx(2, rel=1e-3)
    assert 2.9 < cost({"name": "forward-gradient"}, model=vit).forward_passes < 3
