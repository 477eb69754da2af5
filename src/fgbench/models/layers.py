"""Parts of the models: stages, normalisation, shapes."""

import copy
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn

MAX_GROUPS = 32


class Stages(nn.Sequential):
    """A sequence of stages: the places where recomputation and block-wise trainers may cut a model.

    Iterating gives the stages, as with any ``nn.Sequential``. A pass runs the layers inside nested sequences
    one after the other, because ``nn.Sequential`` inside ``nn.Sequential`` would keep a stage's input until
    the stage ends, where a layer's input can be freed when the layer is done.
    """

    def forward(self, value: Tensor) -> Tensor:
        """The outputs, shape (B, classes), of images of shape (B, C, H, W)."""
        box = [value]
        del value
        for layer in _layers(self):
            box.append(hand_over(layer, box))
        return box.pop()


@contextmanager
def handing_over_to(owning: Callable[[Tensor], AbstractContextManager[None]]) -> Iterator[None]:
    """Enter ``owning(x)`` around every layer that may overwrite its input x, inside this context."""
    _takers.append(owning)
    try:
        yield
    finally:
        _takers.pop()


def hand_over(layer: nn.Module, box: list[Tensor]) -> Tensor:
    """``layer(box.pop())``; a layer holding the only reference to its input may overwrite it.

    Only for layers that keep nothing of their input, without hooks and outside function modes that may keep
    it.
    """
    if _takers and type(layer) in _KEEP_NOTHING and _is_alone(box) and not _is_watched(layer):
        with _takers[-1](box[0]):
            return layer(box.pop())
    return layer(box.pop())


_takers: list[Callable[[Tensor], AbstractContextManager[None]]] = []
_KEEP_NOTHING = {nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d}


def _is_alone(box: list[Tensor]) -> bool:
    """Whether nothing else refers to the tensor in the box or shares its memory."""
    if sys.getrefcount(box[0]) > 2 or box[0]._is_view():  # the box, and the call
        return False
    return torch._C._storage_Use_Count(box[0].untyped_storage()._cdata) <= 2  # the tensor, and Python


def _is_watched(layer: nn.Module) -> bool:
    modes = torch.overrides._get_current_function_mode_stack()
    return bool(
        not is_bare(layer)
        or "_conv_forward" in vars(layer)
        or nn.modules.module._has_any_global_hook()
        or not all(getattr(mode, "keeps_no_inputs", False) for mode in modes)
    )


def is_bare(module: nn.Module) -> bool:
    """Whether calling it runs the ``forward`` of its class and nothing else: no hooks, none in its place."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return not any(hooks) and "forward" not in vars(module)


def runs_in_order(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether calling it runs its parts one after the other and nothing else."""
    own = type(module).forward if isinstance(module, nn.Sequential) else None
    return own in (nn.Sequential.forward, Stages.forward) and is_bare(module)


def _layers(sequence: nn.Sequential) -> Iterator[nn.Module]:
    for module in sequence:
        if type(module) is nn.Sequential and is_bare(module):
            yield from _layers(module)
        else:
            yield module


class GlobalAveragePool(nn.Module):
    """The mean of each feature map; ``nn.AdaptiveAvgPool2d(1)`` is slow under ``torch.vmap`` and says so."""

    def forward(self, features: Tensor) -> Tensor:
        """Features of shape (B, C, H, W) to (B, C)."""
        return features.mean((2, 3))


class TokenMean(nn.Module):
    """The mean over the tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Shape (B, T, width) to (B, width)."""
        return tokens.mean(1)


def normalize(kind: str, channels: int) -> list[nn.Module]:
    """The layers that normalise ``channels`` feature maps: one, or none at all.

    Args:
        kind: ``batch``; ``group`` (Wu and He, 2018, arXiv 1803.08494), of 32 groups, or fewer so that
            each has two maps; ``none``.
        channels: number of feature maps.
    """
    if kind == "batch":
        return [nn.BatchNorm2d(channels)]
    if kind == "group":
        return [nn.GroupNorm(math.gcd(MAX_GROUPS, max(1, channels // 2)), channels)]
    return []


def output_shape(module: nn.Module, image_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """The shape, without the batch, of the module's outputs for one image; computes no values."""
    probe = copy.deepcopy(module).to("meta").eval()
    return tuple(probe(torch.empty(1, *image_shape, device="meta")).shape[1:])


def initialize(model: nn.Module) -> None:
    """Draw the weights of convolutions as torchvision does: normal, variance 2 / fan-out, biases 0.

    Source: He et al. (2015), arXiv 1502.01852, eq. 14.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
