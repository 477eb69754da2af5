"""Auxiliary networks: small classifiers that give a block of a model its own loss."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fgbench.models.layers import TokenMean
from fgbench.trainers.local.blocks import Block, Value
from fgbench.trainers.passes import differentiate

Losses = Callable[[Tensor], Tensor]
"""Outputs, shape (B, classes), to one loss per sample, shape (B,)."""
LAYERS = 3
"""Hidden layers of ``mlp`` and ``cnn``, besides the ``cnn``'s first."""
POOLED = 2
"""Height and width to which feature maps are pooled."""


class Auxiliary(nn.Sequential):
    """A classifier on a block's outputs; if these have several parts, on their sum."""

    def forward(self, value: Value) -> Tensor:
        """Outputs of shape (B, classes)."""
        return super().forward(value if isinstance(value, Tensor) else sum(value))


def build_auxiliary(
    kind: str, shape: torch.Size, hidden: int, num_classes: int, *, batch_norm: bool
) -> Auxiliary:
    """A classifier of one of three kinds.

    ``linear``: normalise, average-pool to 2x2, linear. ``mlp``: average-pool to 2x2, three hidden layers,
    linear. ``cnn``: a 1x1 convolution, three 3x3 convolutions of stride 2, average-pool to at most 2x2,
    linear. Hidden layers have no bias and are normalised before their ReLU.

    Args:
        kind: ``cnn``, ``mlp`` or ``linear``.
        shape: of one sample of the block's outputs: (C, H, W); (F,), which counts as (F, 1, 1); or (T, F),
            averaged over the tokens.
        hidden: channels or units of the hidden layers.
        num_classes: number of outputs.
        batch_norm: normalise over the batch, as in the source, without running statistics, since an auxiliary
            network never runs in evaluation mode; otherwise within a sample (``nn.GroupNorm``, one group).

    Source: Fournier et al. (2023), arXiv 2306.06968, and the authors' code.
    """
    channels, height, width = shape if len(shape) == 3 else (shape[-1], 1, 1)
    layers: list[nn.Module] = [TokenMean()] if len(shape) == 2 else []
    layers += [nn.Unflatten(1, (channels, 1, 1))] if len(shape) < 3 else []

    def normalize(features: int) -> nn.Module:
        if batch_norm:
            return nn.BatchNorm2d(features, track_running_stats=False)
        return nn.GroupNorm(1, features)

    def convolve(inputs: int, kernel: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, hidden, kernel, stride, kernel // 2, bias=False)
        return [convolution, normalize(hidden), nn.ReLU()]

    if kind == "cnn":
        layers += convolve(channels, 1, 1)
        for _ in range(LAYERS):
            layers += convolve(hidden, 3, 2)
            height, width = -(-height // 2), -(-width // 2)
        channels = hidden
    elif kind == "linear":
        layers.append(normalize(channels))
    rows, columns = min(POOLED, height), min(POOLED, width)
    layers += [_average_pool((height, width), (rows, columns)), nn.Flatten()]
    features = channels * rows * columns
    if kind == "mlp":
        for _ in range(LAYERS):
            layers += [nn.Linear(features, hidden, bias=False), nn.Unflatten(1, (hidden, 1, 1))]
            layers += [normalize(hidden), nn.ReLU(), nn.Flatten()]
            features = hidden
    return Auxiliary(*layers, nn.Linear(features, num_classes))


def draw_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Draw new uniform weights (He et al., 2015, arXiv 1502.01852) for linear and convolution layers."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _average_pool(size: tuple[int, int], pooled: tuple[int, int]) -> nn.AvgPool2d:
    """The windows of ``nn.AdaptiveAvgPool2d`` up to 2x2, with a derivative that is deterministic on CUDA."""
    stride = (size[0] // pooled[0], size[1] // pooled[1])
    kernel = (size[0] - (pooled[0] - 1) * stride[0], size[1] - (pooled[1] - 1) * stride[1])
    return nn.AvgPool2d(kernel, stride)


def last_gradient(last: Block, value: Value, losses: Losses) -> tuple[Tensor, Tensor]:
    """Fill the last block's true gradient; returns the mean loss and the model's outputs."""
    outputs, loss, gradient, _ = last.gradient(value, lambda outputs: losses(outputs).mean())
    last.fill(gradient)
    return loss, outputs


def local_gradient(
    block: Block, auxiliary: nn.Module, value: Value, losses: Losses
) -> tuple[Value, dict[str, Tensor]]:
    """The block's outputs, and the gradient of its auxiliary loss; fills the network's ``.grad``."""
    own = _trained(auxiliary)
    outputs, _, gradient, others = block.gradient(value, lambda y: losses(auxiliary(y)).mean(), own)
    _fill(own, others)
    return outputs, gradient


def auxiliary_gradient(auxiliary: nn.Module, outputs: Value, losses: Losses) -> Value:
    """The gradient of the auxiliary loss with respect to a block's outputs; fills the network's ``.grad``."""
    own = _trained(auxiliary)
    with torch.enable_grad():
        outputs = tree_map(lambda each: each.detach().requires_grad_(), outputs)
        leaves, structure = tree_flatten(outputs)
        gradients = differentiate([losses(auxiliary(outputs)).mean()], leaves + own)
    _fill(own, gradients[len(leaves) :])
    return tree_unflatten(gradients[: len(leaves)], structure)


def _trained(auxiliary: nn.Module) -> list[nn.Parameter]:
    return [param for param in auxiliary.parameters() if param.requires_grad]


def _fill(params: list[nn.Parameter], gradients: list[Tensor]) -> None:
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient
