"""The last stages by backprop: their true gradient, the front by tangents, refusals."""

import copy

import pytest
import torch
from torch import nn

from fgbench.errors import ConfigError
from fgbench.models.build import build_model
from fgbench.registry import options_model
from fgbench.trainers.backprop import Backprop
from fgbench.trainers.forward_gradient import ForwardGradient
from fgbench.trainers.frozen import Frozen

LOSS = nn.CrossEntropyLoss(reduction="none")


def batch():
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


def step(trainer, model):
    torch.manual_seed(3)
    return trainer.compute_gradients(model, LOSS, *batch(), torch.Generator().manual_seed(1))


@pytest.mark.parametrize("trainer", [ForwardGradient(exact_stages=2), Frozen(exact_stages=2)])
def test_the_last_stages_have_their_true_gradient_and_buffers_move_once(trainer):
    model = build_model(options_model("model", "resnet18")(width=2), (1, 8, 8), 3, 0, "cpu").double()
    reference = copy.deepcopy(model)
    for each, own in ((Backprop(), reference), (trainer, model)):
        torch.manual_seed(3)
        inputs, labels = batch()
        each.compute_gradients(own, LOSS, inputs.double(), labels, torch.Generator().manual_seed(1))
    exact = trainer.exact_names(model)
    assert exact == {
        name for name, _ in model.named_parameters() if int(name.split(".")[0]) >= len(model) - 2
    }
    for (name, mine), its in zip(model.named_parameters(), reference.parameters(), strict=True):
        if name in exact:
            assert torch.allclose(mine.grad, its.grad, rtol=1e-7, atol=1e-12), name
        elif isinstance(trainer, Frozen):
            assert mine.grad is None
        else:
            assert not torch.allclose(mine.grad, its.grad, rtol=1e-3), name
    for mine, its in zip(model.buffers(), reference.buffers(), strict=True):
        assert torch.allclose(mine.double(), its.double(), rtol=1e-6)


def test_what_cannot_be_split_is_refused():
    model = build_model(options_model("model", "fc")(hidden=4), (1, 8, 8), 3, 0, "cpu")
    with pytest.raises(ConfigError, match="exact_stages: got 9, expected fewer than the"):
        step(ForwardGradient(exact_stages=9), model)
    with pytest.raises(ConfigError, match=r"exact_stages: 2 needs an nn.Sequential of stages, got Linear"):
        ForwardGradient(exact_stages=2).exact_names(nn.Linear(3, 2))
    with pytest.raises(ConfigError, match="exact_output: true does not go with exact_stages"):
        ForwardGradient(exact_stages=2, exact_output=True)
