"""Noise and alignment of a trainer's gradient, by layer: exact for backprop, the closed form for tangents."""

import copy

import pytest
import torch
from torch import nn

from fgbench.checks.quality import WHOLE, gradient_quality
from fgbench.registry import TRAINERS, load
from fgbench.trainers.backprop import Backprop
from fgbench.trainers.forward_gradient import ForwardGradient
from fgbench.trainers.frozen import Frozen

LOSS = nn.CrossEntropyLoss(reduction="none")


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 3))


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 1, 4, 4, generator=generator), torch.arange(6) % 3


def quality(trainer, draws=1):
    model = small_model()
    trainer.set_up(model, batch()[0], 3, torch.Generator().manual_seed(0))
    return gradient_quality(trainer, model, LOSS, *batch(), torch.Generator().manual_seed(1), draws)


def test_the_true_gradient_has_no_noise_and_points_the_same_way():
    found = quality(Backprop(), draws=2)
    assert list(found) == [WHOLE, "1", "4"]
    for each in found.values():
        assert each.cosine == pytest.approx(1)
        assert each.noise == pytest.approx(0, abs=1e-9)
    assert found[WHOLE].norm ** 2 == pytest.approx(found["1"].norm ** 2 + found["4"].norm ** 2)


def test_layers_without_a_gradient_are_all_error_and_no_alignment():
    found = quality(Frozen())
    assert (found["1"].noise, found["1"].cosine) == (1, 0)
    assert found["4"].noise == pytest.approx(0, abs=1e-9)


def test_the_noise_of_rademacher_tangents_is_the_closed_form_in_every_layer():
    # Var(d v_i) = |g|^2 - g_i^2 for entries v_i = +-1, so R of layer l is P_l |g|^2 / |g_l|^2 - 1
    found = quality(ForwardGradient(guess="rademacher"), draws=1000)
    sizes = {"1": 16 * 4 + 4, "4": 4 * 3 + 3}
    sizes[WHOLE] = sum(sizes.values())
    for layer, size in sizes.items():
        expected = size * found[WHOLE].norm ** 2 / found[layer].norm ** 2 - 1
        assert found[layer].noise == pytest.approx(expected, rel=0.2)  # its standard error is 0.045


@pytest.mark.parametrize("name", [name for name in TRAINERS if name != "local-forward-gradient"])
def test_measuring_gradient_quality_disturbs_nothing(name):
    model, (inputs, labels) = small_model(), batch()
    trainer = load("trainer", name)()
    trainer.set_up(model, inputs, 3, torch.Generator().manual_seed(0))
    trainer.compute_gradients(model, LOSS, inputs, labels, torch.Generator())

    def everything():
        grads = {key: param.grad for key, param in model.named_parameters() if param.grad is not None}
        return model.state_dict(), grads, trainer.state_dict()

    before = copy.deepcopy(everything())
    state = torch.get_rng_state()

    found = gradient_quality(trainer, model, LOSS, inputs, labels, torch.Generator(), draws=2)

    assert all(-1 <= each.cosine <= 1 for each in found.values())
    assert all(each.noise >= 0 for each in found.values())
    assert torch.equal(state, torch.get_rng_state())
    left, right = (torch.utils._pytree.tree_leaves(each) for each in (before, everything()))
    for a, b in zip(left, right, strict=True):
        assert a == b if isinstance(a, str) else torch.equal(torch.as_tensor(a), torch.as_tensor(b))
