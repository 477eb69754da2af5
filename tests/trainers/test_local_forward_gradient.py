"""Local forward gradients: exact derivatives of every copy of every loss, and the right mean."""

import math

import pytest
import torch
from torch import nn
from torch.func import jvp

from fgbench.errors import ConfigError
from fgbench.models.build import build_model
from fgbench.models.local_mixer import normalize_groups
from fgbench.registry import options_model
from fgbench.trainers import local_forward_gradient
from fgbench.trainers.local_forward_gradient import LocalForwardGradient, differentiate_normalize

LOSS = nn.CrossEntropyLoss(reduction="none")
GROUPS, PATCHES, CHANNELS, BATCH, CLASSES = 2, 4, 6, 5, 3


def ready(blocks=2, groups=GROUPS, patches=2, **options):
    settings = {"channels": CHANNELS, "groups": groups, "patches": patches, "blocks": blocks}
    model = build_model(
        options_model("model", "local-mixer")(**settings), (1, 4, 4), CLASSES, 0, "cpu"
    ).double()
    nn.init.normal_(model[-1][-1].weight, std=0.5, generator=torch.Generator().manual_seed(2))
    inputs = torch.randn(BATCH, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    trainer = LocalForwardGradient(**options)
    trainer.set_up(model, inputs, CLASSES, torch.Generator().manual_seed(1))
    return trainer, model, inputs, torch.arange(BATCH) % CLASSES


def local_gradient(trainer, model, inputs, labels):
    """The gradient of the trainer's losses by backprop: within each block, or of the model's alone."""
    if trainer.options.losses == "global":
        return torch.autograd.grad(LOSS(model(inputs), labels).mean(), list(model.parameters()))
    value, losses = model[0](inputs), []
    for block, head in zip(list(model)[1:-1], [*trainer.heads, model[-1][-1]], strict=True):
        value = block(value.detach())
        losses.append(LOSS(head(value.mean(1)), labels).mean())
    return torch.autograd.grad(sum(losses), [*model.parameters(), *trainer.parameters()])


def copies(block, head, labels, value, noises):
    """The losses of all copies, shape (B, patches, groups), with noise on all normalised outputs."""
    start = value
    for place, (layer, noise) in enumerate(zip(block.layers, noises, strict=True), 1):
        value = layer(value) + noise
        value = (value + start if block.residual and place == len(block.layers) else value).relu()
    stopped = value.detach()
    losses = torch.empty(BATCH, PATCHES, GROUPS, dtype=value.dtype)
    width = CHANNELS // GROUPS
    columns = []
    for patch in range(PATCHES):
        for group in range(GROUPS):
            keep = torch.zeros(PATCHES, CHANNELS, dtype=value.dtype)
            keep[patch, group * width : (group + 1) * width] = 1
            mean = stopped.mean(1) + ((value - stopped) * keep).sum(1) / PATCHES
            columns.append(LOSS(head(mean), labels))
    return torch.stack(columns, 1).view_as(losses)


def test_the_model_computes_what_its_blocks_say():
    _, model, inputs, _ = ready()
    assert model(inputs).shape == (BATCH, CLASSES)
    patches = model[0](inputs)
    assert torch.equal(patches[:, 1], inputs[:, 0, :2, 2:].flatten(1)), "the second patch is at the top right"


def test_every_derivative_is_that_of_its_copy_along_the_noise(monkeypatch):
    trainer, model, inputs, labels = ready()
    drawn, draw = [], local_forward_gradient.sample_tangents

    def note(*args):
        drawn.append(draw(*args))
        return drawn[-1]

    monkeypatch.setattr(local_forward_gradient, "sample_tangents", note)
    stats = trainer.compute_gradients(model, LOSS, inputs, labels, torch.Generator().manual_seed(3))
    value, noises = model[0](inputs), [each["noise"] for each in drawn]
    for index, block in enumerate(list(model)[1:-1]):
        own, noises = noises[: len(block.layers)], noises[len(block.layers) :]
        head = [*trainer.heads, model[-1][-1]][index]
        zeros = tuple(torch.zeros_like(each) for each in own)

        def losses(*given, block=block, head=head, value=value):
            return copies(block, head, labels, value, given)

        expected = jvp(losses, zeros, tuple(own))[1]
        assert torch.allclose(stats.directional_derivatives[index], expected, rtol=1e-4, atol=1e-9)
        value = block(value)


def test_the_derivative_of_the_models_loss_is_that_along_all_noise(monkeypatch):
    trainer, model, inputs, labels = ready(losses="global")
    drawn, draw = [], local_forward_gradient.sample_tangents

    def note(*args):
        drawn.append(draw(*args)["noise"])
        return {"noise": drawn[-1]}

    monkeypatch.setattr(local_forward_gradient, "sample_tangents", note)
    stats = trainer.compute_gradients(model, LOSS, inputs, labels, torch.Generator().manual_seed(3))

    def losses(*given):
        value, given = model[0](inputs), list(given)
        for block in list(model)[1:-1]:
            start = value
            for place, layer in enumerate(block.layers, 1):
                value = layer(value) + given.pop(0)
                value = (value + start if block.residual and place == len(block.layers) else value).relu()
        return LOSS(model[-1](value), labels)

    assert len(drawn) == 5
    expected = jvp(losses, tuple(torch.zeros_like(each) for each in drawn), tuple(drawn))[1]
    assert torch.allclose(stats.directional_derivatives.flatten(), expected, rtol=1e-4, atol=1e-9)


def test_with_one_block_patch_and_group_the_local_loss_is_the_models():
    found = []
    for losses in ("local", "global"):
        trainer, model, inputs, labels = ready(blocks=1, losses=losses, groups=1, patches=1)
        trainer.compute_gradients(model, LOSS, inputs, labels, torch.Generator().manual_seed(3))
        found.append([param.grad for param in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def mean_projections(trainer, model, inputs, labels, draws):
    """<g_hat, g> / |g|^2 of every draw, g the gradient of the local losses."""
    names = [name for name, _ in model.named_parameters()]
    truth = local_gradient(trainer, model, inputs, labels)[: len(names)]
    square = sum(each.square().sum() for each in truth)
    generator = torch.Generator().manual_seed(4)
    values = []
    for _ in range(draws):
        trainer.compute_gradients(model, LOSS, inputs, labels, generator)
        dots = [(p.grad * g).sum() for p, g in zip(model.parameters(), truth, strict=True)]
        values.append(sum(dots) / square)
    return torch.stack(values)


@pytest.mark.parametrize("losses", ["local", "global"])
@pytest.mark.parametrize("guess", ["normal", "rademacher"])
def test_the_mean_is_the_gradient_of_its_losses(guess, losses):
    trainer, model, inputs, labels = ready(guess=guess, losses=losses)
    inputs, labels = inputs.repeat(100, 1, 1, 1), labels.repeat(100)  # every copy has its own noise
    values = mean_projections(trainer, model, inputs, labels, 100)
    error = values.std().item() / math.sqrt(len(values))
    assert error < {"local": 0.0125, "global": 0.03}[losses]
    assert abs(values.mean().item() - 1) < 4 * error
    wrong = {"local": 1.1, "global": 1.25}[losses] * values
    assert abs(wrong.mean().item() - 1) > 4 * wrong.std().item() / math.sqrt(len(values))


def test_heads_and_the_output_layer_have_their_exact_gradients():
    trainer, model, inputs, labels = ready()
    trainer.compute_gradients(model, LOSS, inputs, labels, torch.Generator().manual_seed(0))
    truth = local_gradient(trainer, model, inputs, labels)
    params = [*model.parameters(), *trainer.parameters()]
    exact = {id(model[-1][-1].weight), id(model[-1][-1].bias), *map(id, trainer.parameters())}
    checked = 0
    for param, expected in zip(params, truth, strict=True):
        if id(param) in exact:
            assert torch.allclose(param.grad, expected, rtol=1e-9)
            checked += 1
    assert checked == 4


def test_the_normalisations_derivative_is_its_own_transpose():
    generator = torch.Generator().manual_seed(0)
    value, left, right = (torch.randn(2, 3, 6, dtype=torch.float64, generator=generator) for _ in range(3))
    along = jvp(lambda each: normalize_groups(each, 2), (value,), (left,))[1]
    assert torch.allclose(differentiate_normalize(left, value, 2), along)
    assert torch.isclose((along * right).sum(), (left * differentiate_normalize(right, value, 2)).sum())


def test_other_models_are_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"model.name: local-mixer"):
        LocalForwardGradient().set_up(nn.Sequential(nn.Linear(3, 2)), torch.ones(2, 3), 2, torch.Generator())


def test_a_local_mixer_that_was_changed_is_refused():
    trainer, model, inputs, labels = ready()
    model[1].layers[0].register_forward_hook(lambda module, args, outputs: 2 * outputs)
    with pytest.raises(ConfigError, match="forward hooks"):
        trainer.compute_gradients(model, LOSS, inputs, labels, torch.Generator())
    trainer, model, inputs, labels = ready()
    model.insert(2, nn.Tanh())
    with pytest.raises(ConfigError, match=r"model.name: local-mixer"):
        trainer.compute_gradients(model, LOSS, inputs, labels, torch.Generator())


def test_images_that_cannot_be_cut_are_refused():
    options = options_model("model", "local-mixer")(patches=8)
    with pytest.raises(ConfigError, match=r"model.patches: 8 does not divide images of 28x28"):
        build_model(options, (1, 28, 28), 10, 0, "cpu")
