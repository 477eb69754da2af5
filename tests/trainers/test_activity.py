"""Activity perturbation on the shipped models as they are shipped: their ReLUs work in place."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fgbench.errors import ConfigError
from fgbench.models.build import build_model
from fgbench.registry import options_model
from fgbench.trainers.activity_forward_gradient import ActivityForwardGradient
from fgbench.trainers.backprop import Backprop

LOSS = nn.CrossEntropyLoss(reduction="none")
SHAPE, CLASSES, SAMPLES = (1, 8, 8), 3, 3
SHIPPED = {"fc": {"hidden": 8, "layers": 2}, "cnn": {"width": 2, "hidden": 8}}


def shipped(name):
    """A shipped model, small and in float64, with a batch."""
    options = options_model("model", name)(name=name, **SHIPPED[name])
    model = build_model(options, SHAPE, CLASSES, 0, "cpu").double()
    inputs = torch.randn(SAMPLES, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return model, inputs, torch.arange(SAMPLES) % CLASSES


def flat_gradient(trainer, model, inputs, labels, generator=None):
    trainer.compute_gradients(model, LOSS, inputs, labels, generator)
    return torch.cat([param.grad.flatten() for param in model.parameters()])


def variance_in_theory(model, inputs, labels):
    """E|g_hat - g|^2 over the batch for masked +-1 perturbations, one tangent, by autograd.

    For sample i and layer l, M maps a change of the layer's output to the weights' gradient, delta is the
    gradient at that output and G = M^T M over the units a ReLU lets through. From the fourth moments of u,
    E|d M u|^2 - |M delta|^2 = |delta of all layers|^2 tr G + delta^T G delta - 2 sum_j delta_j^2 G_jj.
    """
    model = copy.deepcopy(model)
    records = []

    def record(layer, args, output):
        output.retain_grad()
        records.append((layer, args[0].detach(), output))

    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(record)
    LOSS(model(inputs), labels).mean().backward()
    total = 0.0
    for sample in range(len(labels)):
        everything = sum(output.grad[sample].square().sum() for _, _, output in records)
        for layer, value, output in records:
            params = list(layer.parameters())
            with torch.enable_grad():
                result = (
                    layer._conv_forward(value[sample, None], *params)
                    if isinstance(layer, nn.Conv2d)
                    else F.linear(value[sample, None], *params)
                )
                units = torch.eye(result.numel(), dtype=result.dtype).view(-1, *result.shape)
                rows = torch.autograd.grad(result, params, units, is_grads_batched=True)
            rows = torch.cat([row.flatten(1) for row in rows], dim=1)
            last = layer is records[-1][0]
            active = torch.ones(len(rows), dtype=torch.bool) if last else output[sample].flatten() > 0
            gram = (rows @ rows.T)[active][:, active]
            delta = output.grad[sample].flatten()[active]
            total += everything * gram.trace() + delta @ gram @ delta
            total -= 2 * (delta.square() * gram.diagonal()).sum()
    return float(total)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_mask_is_on_in_shipped_models(name):
    model, inputs, labels = shipped(name)
    masked, unmasked = (
        flat_gradient(
            ActivityForwardGradient(mask=mask), model, inputs, labels, torch.Generator().manual_seed(0)
        )
        for mask in (True, False)
    )
    assert not torch.equal(masked, unmasked)
    first = next(iter(model.parameters())).numel()
    assert (masked[:first] == 0).sum() >= (unmasked[:first] == 0).sum()


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("name", SHIPPED)
def test_the_variance_on_shipped_models_is_the_masked_one_of_theory(name, mask):
    model, inputs, labels = shipped(name)
    truth = flat_gradient(Backprop(), model, inputs, labels)
    copies, runs = 40, 150
    many = inputs.repeat(copies, 1, 1, 1), labels.repeat(copies)
    generator = torch.Generator().manual_seed(5)
    trainer = ActivityForwardGradient(mask=mask)
    sample = torch.stack([flat_gradient(trainer, model, *many, generator) for _ in range(runs)])
    errors = (sample - truth).square().sum(1)
    expected = variance_in_theory(model, inputs, labels) / copies
    close = abs(errors.mean() - expected) <= 4 * errors.std() / math.sqrt(runs)
    assert close == mask, f"{errors.mean():.4g} for {expected:.4g}"
    projections = sample @ truth / (truth @ truth)
    assert abs(projections.mean() - 1) <= 4 * projections.std() / math.sqrt(runs)


class Centred(nn.Module):
    """Takes the mean over the batch away."""

    def forward(self, value):
        return value - value.mean(0)


def test_a_model_whose_samples_interact_is_refused_and_its_generators_are_left_alone():
    _, inputs, labels = shipped("fc")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), Centred(), nn.ReLU(), nn.Linear(4, 3)).double()
    trainer = ActivityForwardGradient()
    with pytest.raises(ConfigError, match="in this model samples interact"):
        trainer.compute_gradients(model, LOSS, inputs, labels, torch.Generator())
    model[2] = nn.Dropout(0.5)
    torch.manual_seed(0)
    first = flat_gradient(trainer, model, inputs, labels, torch.Generator().manual_seed(1))  # looks first
    torch.manual_seed(0)
    assert torch.equal(first, flat_gradient(trainer, model, inputs, labels, torch.Generator().manual_seed(1)))
