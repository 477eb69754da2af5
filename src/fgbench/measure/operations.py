"""How many floating-point operations a step takes."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Self

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker


def _product(target: Sequence[int], left: Sequence[int], right: Sequence[int], **_: Any) -> int:
    """Of products of the matrices of two shapes."""
    return 2 * prod(left) * right[-1]


_IN_PLACE = {torch.ops.aten.addmm_: _product, torch.ops.aten.baddbmm_: _product}
"""What torch counts only where the result is a new tensor."""


class _Whole(ModuleTracker):
    """No module by itself: torch's hooks for that cannot stand a leaf as a module's input."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


def count_operations(step: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions that a step runs, on any machine.

    Attention counts by its formula: torch counts no fused one on a CPU, and has no forward mode of it.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_IN_PLACE)
    counter.mod_tracker = _Whole()
    with counter, sdpa_kernel(SDPBackend.MATH):
        step()
    return int(counter.get_total_flops())
