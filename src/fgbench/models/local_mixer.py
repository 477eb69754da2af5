"""LocalMixer: a network of patches and groups of channels, designed for losses that are local to them."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgbench.errors import ConfigError
from fgbench.models.layers import Stages, TokenMean
from fgbench.models.options import LocalMixerOptions

Mixing = Literal["token", "channel", "group"]


def build_local_mixer(
    options: LocalMixerOptions, image_shape: tuple[int, int, int], num_classes: int
) -> nn.Sequential:
    """``blocks`` blocks on patches x patches patches, and a linear layer on the patches' mean.

    The first block maps each patch to ``channels`` features and mixes these within each group of channels;
    a later one mixes patches, then channels, then the channels within each group, and adds its inputs. There
    is a normalisation without parameters before and after every linear layer, then a ReLU; they normalise the
    channels of a patch, or those of each of its groups around layers that keep groups separate. Weights are
    normal with deviation min(2 / sqrt(inputs), 0.1), biases and the output layer 0.

    Source: Ren et al. (2023), arXiv 2210.03310. S/1/1 is ``{channels: 256, groups: 1}``, M/1/16 the default,
    M/8/16 ``{patches: 8, blocks: 4}``.

    Raises:
        ConfigError: the images cannot be divided into that many patches.
    """
    _, height, width = image_shape
    if height % options.patches or width % options.patches:
        raise ConfigError(
            f"model.patches: {options.patches} does not divide images of {height}x{width} into patches"
        )
    patches = options.patches**2
    size, groups = options.channels, options.groups
    first = MixerBlock(
        MixerLayer("channel", image_shape[0] * height * width // patches, size),
        MixerLayer("group", size, size, groups),
    )
    blocks = [first]
    for _ in range(1, options.blocks):
        layers = (MixerLayer("token", patches, patches), MixerLayer("channel", size, size))
        blocks.append(MixerBlock(*layers, MixerLayer("group", size, size, groups), residual=True))
    output = nn.Linear(size, num_classes)
    nn.init.zeros_(output.weight)
    nn.init.zeros_(output.bias)
    return Stages(Patches(options.patches), *blocks, nn.Sequential(TokenMean(), output))


class Patches(nn.Module):
    """Images of shape (B, C, H, W) as patches, shape (B, count * count, C H W / count^2)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, images: Tensor) -> Tensor:
        """The patches, row by row."""
        cut = images.unflatten(3, (self.count, -1)).unflatten(2, (self.count, -1))  # B C n h n w
        return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class MixerLayer(nn.Module):
    """A linear layer between two normalisations.

    Args:
        kind: what it mixes: ``token``, patches; ``channel``, all channels; ``group``, those of a group.
        inputs: patches or channels.
        outputs: as many for ``token`` and ``group``.
        groups: of channels, for ``group``.
    """

    def __init__(self, kind: Mixing, inputs: int, outputs: int, groups: int = 1) -> None:
        super().__init__()
        self.kind, self.groups = kind, groups
        shape = (groups, outputs // groups, inputs // groups) if kind == "group" else (outputs, inputs)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = None if kind == "token" else nn.Parameter(torch.zeros(outputs))
        nn.init.normal_(self.weight, std=min(2 / math.sqrt(shape[-1]), 0.1))

    def forward(self, value: Tensor) -> Tensor:
        """Shape (B, patches, channels) to the same; the ReLU follows in the block."""
        mixed = self.mix(normalize_groups(value, self.groups))
        return normalize_groups(mixed if self.bias is None else mixed + self.bias, self.groups)

    def mix(self, value: Tensor) -> Tensor:
        """The product with the weights alone."""
        if self.kind == "group":
            parts = value.unflatten(-1, (self.groups, -1))
            return torch.einsum("bpgi,goi->bpgo", parts, self.weight).flatten(-2)
        if self.kind == "token":
            return F.linear(value.transpose(1, 2), self.weight).transpose(1, 2)
        return F.linear(value, self.weight)

    def gradients(self, value: Tensor, delta: Tensor) -> dict[str, Tensor]:
        """The parameters' gradient, given the one at the layer's product.

        Args:
            value: what ``mix`` was given, shape (B, patches, inputs).
            delta: shape (B, patches, outputs).
        """
        if self.kind == "group":
            groups = (self.groups, -1)
            weight = torch.einsum("bpgi,bpgo->goi", value.unflatten(-1, groups), delta.unflatten(-1, groups))
        elif self.kind == "token":
            weight = torch.einsum("bpc,bqc->qp", value, delta)
        else:
            weight = torch.einsum("bpi,bpo->oi", value, delta)
        return {"weight": weight} | ({} if self.bias is None else {"bias": delta.sum((0, 1))})


class MixerBlock(nn.Module):
    """Layers with a ReLU after each; before the last one the block's inputs are added, if ``residual``."""

    def __init__(self, *layers: MixerLayer, residual: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.residual = residual
        self.groups = layers[-1].groups

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape (B, patches, features) to (B, patches, channels)."""
        value = inputs
        for layer in self.layers[:-1]:
            value = layer(value).relu()
        value = self.layers[-1](value)
        return (value + inputs if self.residual else value).relu()


def normalize_groups(value: Tensor, groups: int) -> Tensor:
    """Mean 0 and variance 1 over the channels of each group (Ba et al., 2016), without scale and shift."""
    parts = value.unflatten(-1, (groups, -1))
    return F.layer_norm(parts, parts.shape[-1:]).flatten(-2)
