"""Rank-one central differences: shifted products are what shifted weights give, and no weight is copied."""

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn

import fgbench
from fgbench.config.config import Config, config_hash
from fgbench.errors import FgbenchError
from fgbench.measure.memory import MIB, step_memory
from fgbench.models.build import build_model
from fgbench.registry import options_model
from fgbench.trainers.forward_mode import shifted
from fgbench.trainers.forward_mode.factors import Factors
from fgbench.trainers.rank_one import RankOneTangents

LOSS = nn.CrossEntropyLoss(reduction="none")
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])
RANK_ONE = {"guess": "rademacher", "structure": "rank1"}
MODELS = {
    "fc": {"hidden": 8, "dropout": 0.3},
    "cnn": {"width": 2, "hidden": 8},
    "vgg16": {"width": 2},
    "resnet18": {"width": 2},
    "local-mixer": {"channels": 8, "groups": 2, "patches": 2, "blocks": 2},
    "vit": {"width": 4, "depth": 1, "heads": 2, "dropout": 0.3},
}
KEPT = {"vit": 1, "local-mixer": 2}
"""How many parameters of two dimensions and more are no layer's weight: positions, grouped kernels."""


def shipped(name):
    options = options_model("model", name)(name=name, **MODELS[name])
    model = build_model(options, (1, 8, 8), 3, 0, "cpu").double().train()
    if name == "local-mixer":  # its output layer is 0 at first, and so is the body's gradient
        nn.init.normal_(model[-1][-1].weight, std=0.1, generator=torch.Generator().manual_seed(0))
    inputs = torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return model, inputs.contiguous(memory_format=torch.channels_last)


def loss_of(model, inputs):
    torch.manual_seed(7)  # the same dropout each time
    return LOSS(model(inputs), LABELS).mean()


def difference(model, inputs, direction, epsilon):
    """(L(theta + epsilon v) - L(theta - epsilon v)) / (2 epsilon) by shifting copies of the whole model."""
    losses = []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for name, param in moved.named_parameters():
                param.add_(direction[name], alpha=sign * epsilon)
            losses.append(loss_of(moved, inputs))
    return (losses[0] - losses[1]) / (2 * epsilon)


def directions(model, count):
    """What ``forward-gradient`` with rank-one tangents draws."""
    tangents = RankOneTangents(model)
    dense = tangents.dense(tangents.sample(torch.Generator().manual_seed(3), count))
    return [{name: rows[index] for name, rows in dense.items()} for index in range(count)]


def length_of_gradient(model, inputs):
    model = copy.deepcopy(model)
    loss_of(model, inputs).backward()
    return torch.stack([param.grad.norm() for param in model.parameters()]).norm()


def step(model, inputs, **options):
    torch.manual_seed(7)
    trainer = fgbench.ZerothOrder(**RANK_ONE, **options)
    return trainer.compute_gradients(model, LOSS, inputs, LABELS, torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", MODELS)
def test_each_derivative_is_the_difference_along_the_tangent_of_forward_gradient(name):
    model, inputs = shipped(name)
    before, length, drawn = copy.deepcopy(model), length_of_gradient(model, inputs), directions(model, 2)
    stats = step(model, inputs, tangents=2)
    for found, direction in zip(stats.directional_derivatives, drawn, strict=True):
        assert abs(found - difference(before, inputs, direction, 1e-3)) <= 1e-8 * length
    for key, param in model.named_parameters():
        both = zip(stats.directional_derivatives, drawn, strict=True)
        torch.testing.assert_close(param.grad, sum(d * v[key] for d, v in both) / 2)
        assert torch.equal(param, before.get_parameter(key))


def test_buffers_move_once_as_at_the_first_of_the_two_points():
    model, inputs = shipped("resnet18")
    moved, [direction] = copy.deepcopy(model), directions(model, 1)
    with torch.no_grad():
        for name, param in moved.named_parameters():
            param.add_(direction[name], alpha=1e-3)
    loss_of(moved, inputs)
    step(model, inputs)
    torch.testing.assert_close(dict(model.named_buffers()), dict(moved.named_buffers()))


@pytest.mark.parametrize("name", MODELS)
def test_no_weight_of_a_layer_is_copied(name, monkeypatch):
    model, inputs = shipped(name)
    made, dense = [], Factors.dense
    monkeypatch.setattr(Factors, "dense", lambda factors: made.append(1) or dense(factors))
    step(model, inputs)
    assert len(made) == 2 * KEPT.get(name, 0)


def test_a_step_needs_the_memory_of_inference_and_a_full_one_that_of_a_shifted_layer_more():
    model = nn.Sequential(nn.Flatten(), *(nn.Linear(512, 512) for _ in range(4)))
    inputs, labels = torch.randn(8, 512), torch.zeros(8, dtype=torch.long)

    def peak(function):
        function()
        return step_memory(torch.no_grad()(function), model) * MIB

    def train(**options):
        trainer = fgbench.ZerothOrder(guess="rademacher", **options)
        return peak(lambda: trainer.sgd_step(model, LOSS, inputs, labels, torch.Generator(), 1e-6))

    layer, inference = 4 * 512 * 512, peak(lambda: model(inputs))
    assert train(structure="rank1") < inference + 0.2 * layer
    assert train() > inference + layer


class Elsewhere(nn.Module):
    """Weights used otherwise than by a layer that takes all of one, and one that is used twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.tied = nn.Linear(64, 6), nn.Embedding(6, 6, padding_idx=2)
        self.square = nn.Linear(6, 6, bias=False)
        self.whole = nn.Parameter(torch.randn(6, 6))
        self.grouped = nn.Conv1d(6, 6, 3, groups=2, padding=1)
        self.back = nn.ConvTranspose1d(6, 6, 3, padding=1)
        self.last = nn.Linear(6, 3)

    def forward(self, images):
        h = self.first(images.flatten(1)).tanh()
        h = h @ self.whole + h @ self.whole.T + self.whole @ h.T[:, :1].squeeze()
        h = h @ self.square.weight + nn.functional.linear(h, self.square.weight[:, :6] * 2)
        h = nn.functional.linear(h, self.tied.weight) + self.tied(torch.tensor([0, 2, 5, 1, 1, 2]))
        h = self.back(self.grouped(h[:, :, None].expand(6, 6, 4).contiguous())).mean(2)
        return self.last(h.tanh())


def test_weights_used_in_other_ways_are_shifted_as_copies():
    model, inputs = Elsewhere().double(), shipped("fc")[1]
    before, [direction] = copy.deepcopy(model), directions(model, 1)
    stats = step(model, inputs)
    true = difference(before, inputs, direction, 1e-3)
    assert abs(stats.directional_derivatives - true) <= 1e-8 * length_of_gradient(model, inputs)


def test_weights_that_autocast_casts_are_shifted_as_copies():
    # which a derivative reported in bfloat16 shows to 0.4 %
    model, inputs = shipped("cnn")
    model, inputs = model.float(), inputs.float()
    with torch.autocast("cpu", torch.bfloat16):
        found = fgbench.verify(fgbench.ZerothOrder(**RANK_ONE), model, LOSS, inputs, LABELS, tolerance=4e-3)
    assert found.verdict == "verified"


@pytest.mark.parametrize("operation", [torch.ops.aten.addmm.default, torch.ops.aten.convolution.default])
def test_a_wrong_product_is_found(operation, monkeypatch):
    position, product = shifted._PRODUCTS[operation]
    model, inputs = shipped("cnn")
    trainer = fgbench.ZerothOrder(**RANK_ONE)
    assert fgbench.verify(trainer, model, LOSS, inputs, LABELS, tolerance=1e-8).verdict == "verified"
    twice_as_far = position, lambda factors, epsilon, *args: product(factors, 2 * epsilon, *args)
    monkeypatch.setitem(shifted._PRODUCTS, operation, twice_as_far)
    with pytest.raises(FgbenchError, match="directional derivative"):
        fgbench.verify(trainer, model, LOSS, inputs, LABELS)


def test_the_mean_is_the_gradient_and_the_variance_that_of_full_signs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 3)).double()
    inputs = torch.randn(6, 1, 3, 3, dtype=torch.float64)
    loss_of(model, inputs).backward()
    truth = torch.cat([param.grad.flatten() for param in model.parameters()])
    drawn = directions(model, 1000)
    stats = step(model, inputs, tangents=1000)
    names = [name for name, _ in model.named_parameters()]
    rows = torch.stack([torch.cat([each[name].flatten() for name in names]) for each in drawn])

    def agrees(factor):
        sample = factor * stats.directional_derivatives[:, None] * rows
        projections = sample @ truth / truth.square().sum()
        errors = (sample - truth).square().sum(1)
        expected = (len(truth) - 1) * truth.square().sum()
        return all(
            abs(values.mean() - wanted) <= 4 * values.std() / len(drawn) ** 0.5
            for values, wanted in ((projections, 1), (errors, expected))
        )

    assert agrees(1)
    assert not agrees(1.2)


@pytest.mark.parametrize("on", ["parameter", "module"])
def test_hooks_on_gradients_are_refused(on):
    model, inputs = shipped("fc")
    if on == "parameter":
        next(model.parameters()).register_hook(lambda gradient: 0 * gradient)
    else:
        model[-1].register_full_backward_hook(lambda module, inputs, outputs: None)
    with pytest.raises(FgbenchError, match=r"has a (gradient|backward) hook, which runs in no forward"):
        fgbench.ZerothOrder().compute_gradients(model, LOSS, inputs, LABELS, torch.Generator())


def test_rank_one_goes_with_signs_alone_and_leaves_the_hashes_of_full_directions_as_they_were():
    settings = {"name": "tiny", "dataset": "synthetic", "model": "fc"}
    settings = {
        key: {"name": value} if key in ("dataset", "model") else value for key, value in settings.items()
    }

    def hashed(**options):
        return config_hash(
            Config.model_validate(settings | {"trainer": {"name": "zeroth-order", **options}}), "cpu"
        )

    assert hashed() == hashed(structure="full") == "fa0f1d09"
    assert hashed(**RANK_ONE) != hashed(guess="rademacher")
    with pytest.raises(ValidationError, match="structure: rank1 needs guess: rademacher"):
        hashed(structure="rank1")
