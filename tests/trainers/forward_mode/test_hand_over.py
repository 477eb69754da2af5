"""The shipped models free a layer's input as soon as it is read, and nothing that anybody else refers to."""

import pytest
import torch
from torch import nn

from fgbench.models import layers
from fgbench.models.layers import Stages
from fgbench.trainers.forward_mode import ForwardPass
from fgbench.trainers.forward_mode.shadows import Shadows


def model():
    torch.manual_seed(0)
    return Stages(
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(3, 3)),
    ).to(torch.float64, memory_format=torch.channels_last)


def derive(network, count=2, before=lambda network: None):
    before(network)
    inputs = torch.linspace(-1, 1, 4 * 2 * 8 * 8).double().view(4, 2, 8, 8)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    kept = inputs.clone()
    generator = torch.Generator().manual_seed(1)
    tangents = {
        param: torch.randn(count, *param.shape, generator=generator).double()
        for param in network.parameters()
        if param.requires_grad
    }
    with ForwardPass(network, tangents, count) as forward:
        derivatives = forward.tangent_of(network(inputs).square().sum())
    assert torch.equal(inputs, kept)
    return derivatives


@pytest.fixture
def taken(monkeypatch):
    """How many inputs were taken over."""
    counts = [0]
    plain = Shadows.take_memory

    def count(shadows, value):
        result = plain(shadows, value)
        counts[0] += result
        return result

    monkeypatch.setattr(Shadows, "take_memory", count)
    return counts


@pytest.mark.parametrize("count", [1, 2])
def test_freeing_changes_no_number(taken, monkeypatch, count):
    found = derive(model(), count)
    assert taken == [4]
    monkeypatch.setattr(layers, "_KEEP_NOTHING", set())
    torch.testing.assert_close(derive(model(), count), found, rtol=1e-12, atol=0)
    assert taken == [4]


def test_a_normalisation_that_takes_over_what_has_no_tangent_has_its_own(monkeypatch):
    def freeze(network):
        network[0][0].requires_grad_(False)

    found = derive(model(), before=freeze)
    monkeypatch.setattr(layers, "_KEEP_NOTHING", set())
    torch.testing.assert_close(derive(model(), before=freeze), found, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["forward", "_conv_forward"])
def test_what_a_replaced_forward_keeps_is_not_freed(name, monkeypatch):
    def replace(network):
        layer = network[1][0]
        plain = getattr(layer, name)
        setattr(layer, name, lambda value, *others: plain(value, *others) + value)

    found = derive(model(), before=replace)
    monkeypatch.setattr(layers, "_KEEP_NOTHING", set())
    torch.testing.assert_close(derive(model(), before=replace), found, rtol=1e-12, atol=0)


def test_what_a_hook_keeps_is_not_freed():
    log = []

    def keep(network):
        network[0][1].register_forward_hook(lambda layer, inputs, outputs: log.extend([*inputs, outputs]))
        network[1][1].register_forward_hook(lambda layer, inputs, outputs: log.append(outputs))

    plain = derive(model())
    torch.testing.assert_close(derive(model(), before=keep), plain, rtol=1e-12, atol=0)
    assert len(log) == 3
    assert all(each.untyped_storage().nbytes() for each in log)
    assert all(each.isfinite().all() for each in log)
