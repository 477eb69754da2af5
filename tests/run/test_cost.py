"""What steps cost in forward passes, counted; the hidden layer of ``fc`` has nearly all operations."""

import pytest
import torch

from fgbench.config.config import Config
from fgbench.datasets.base import load_splits
from fgbench.datasets.search import DataSearch
from fgbench.run.cost import count_forward_passes

INPUTS, HIDDEN, CLASSES = 64, 16, 4
FIRST = INPUTS * HIDDEN / (INPUTS * HIDDEN + HIDDEN * CLASSES)
"""Share of the first layer in a forward pass."""


def passes(trainer, optimizer="adam"):
    settings = {
        "dataset": {"name": "synthetic", "shape": [1, 8, 8], "classes": CLASSES, "train": 40, "test": 8},
        "model": {"name": "fc", "hidden": HIDDEN},
        "trainer": trainer,
        "optimizer": {"name": optimizer},
        "batch_size": 8,
    }
    config, device = Config.model_validate(settings), torch.device("cpu")
    splits = load_splits(config.dataset, config.seed, device, DataSearch(download=False))
    return count_forward_passes(config, device, splits)


def test_backprop_costs_three_forward_passes_but_no_gradient_of_the_images():
    assert passes({"name": "backprop"}) == pytest.approx(3 - FIRST)


def test_a_forward_gradient_costs_the_outputs_and_two_passes_for_every_tangent():
    # V x and W x_t for every layer but the first, whose inputs have no tangent
    for tangents in (1, 3):
        trainer = {"name": "forward-gradient", "tangents": tangents}
        assert passes(trainer) == pytest.approx(1 + tangents * (2 - FIRST), rel=1e-3)


def test_central_differences_cost_two_forward_passes():
    assert passes({"name": "zeroth-order"}) == pytest.approx(2)


def test_a_frozen_body_costs_a_forward_pass_and_the_output_layers_gradient():
    assert passes({"name": "frozen"}) == pytest.approx(1 + (1 - FIRST))


def test_sign_feedback_costs_as_much_as_backprop_and_direct_feedback_a_product_per_layer():
    assert passes({"name": "feedback-alignment", "feedback": "sign"}) == pytest.approx(3 - FIRST)
    direct = passes({"name": "feedback-alignment", "feedback": "direct"})
    assert direct == pytest.approx(2 + (1 - FIRST))  # e B in place of delta W: here as many operations
