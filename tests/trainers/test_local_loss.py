"""Local losses: every block's gradient is that of its own loss, on the shipped models as they are."""

import copy

import pytest
import torch
from torch import nn

from fgbench.models.build import build_model
from fgbench.registry import options_model
from fgbench.trainers.local.blocks import cut_model
from fgbench.trainers.local_loss import LocalLoss, build_head

LOSS = nn.CrossEntropyLoss(reduction="none")
MODELS = {
    "fc": {"name": "fc", "hidden": 8, "layers": 2},
    "cnn": {"name": "cnn", "width": 2, "hidden": 8},
    "vit": {"name": "vit", "width": 8, "heads": 2, "depth": 2},
}


def ready(name, **options):
    model = build_model(options_model("model", name)(**MODELS[name]), (1, 8, 8), 3, 0, "cpu").double()
    inputs = torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    trainer = LocalLoss(**options)
    trainer.set_up(model, inputs, 3, torch.Generator().manual_seed(1))
    return trainer, model, inputs, torch.arange(6) % 3


def autograd_of_local_losses(trainer, model, inputs, labels, stop):
    """The gradient of the sum of all local losses, as one graph; ``stop`` cuts it between blocks."""
    value, losses = inputs, []
    blocks = cut_model(model)
    for block, head in zip(blocks, [*trainer.heads, nn.Identity()], strict=True):
        value = block(stop(value))
        losses.append(LOSS(head(value), labels).mean())
    return torch.autograd.grad(sum(losses), [*model.parameters(), *trainer.parameters()])


@pytest.mark.parametrize("head", ["linear", "projection"])
@pytest.mark.parametrize("name", MODELS)
def test_every_block_and_head_has_the_gradient_of_its_own_loss(name, head):
    trainer, model, inputs, labels = ready(name, head=head)
    trainer.compute_gradients(model, LOSS, inputs, labels, torch.Generator())
    found = [param.grad for param in [*model.parameters(), *trainer.parameters()]]
    expected = autograd_of_local_losses(trainer, model, inputs, labels, torch.Tensor.detach)
    joined = autograd_of_local_losses(trainer, model, inputs, labels, lambda value: value)
    for mine, its in zip(found, expected, strict=True):
        assert torch.allclose(mine, its, rtol=1e-9, atol=1e-12)
    assert not all(torch.allclose(a, b) for a, b in zip(found, joined, strict=True)), (
        "with gradients from later blocks it must be another one"
    )


def test_a_few_steps_teach_the_body_by_its_own_losses():
    trainer, model, inputs, labels = ready("fc")
    before = copy.deepcopy(model)
    optimizer = torch.optim.Adam([*model.parameters(), *trainer.parameters()], 1e-2)
    losses = []
    for _ in range(60):
        stats = trainer.compute_gradients(model, LOSS, inputs, labels, torch.Generator())
        optimizer.step()
        losses.append(stats.loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize(
    ("kind", "shape", "features"),
    [
        ("linear", (64, 28, 28), 64 * 25),  # windows of 6: 64 x 5 x 5 is the first not above 2048
        ("linear", (4, 5, 5), 100),
        ("linear", (49, 128), 128),
        ("linear", (1024,), 1024),
        ("projection", (64, 28, 28), 64 * 28 * 28),
    ],
)
def test_heads_see_averages_of_at_most_2048_features_or_everything(kind, shape, features):
    head = build_head(kind, torch.Size(shape), 10)
    linear = next(module for module in head.modules() if isinstance(module, nn.Linear))
    assert linear.in_features == features
    assert (linear.bias is None) == (kind == "projection")
    assert head(torch.zeros(2, *shape)).shape == (2, 10)
