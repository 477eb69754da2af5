"""How many floating-point operations a step takes."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def _product(target: Sequence[int], left: Sequence[int], right: Sequence[int], **_: Any) -> int:
    """Of products of the matrices of two shapes."""
    return 2 * prod(left) * right[-1]


_IN_PLACE = {torch.ops.aten.addmm_: _product, torch.ops.aten.baddbmm_: _product}
"""What torch counts only where the result is a new tensor."""


def count_operations(step: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions that a step runs, on any machine.

    Attention counts by its formula: torch counts no fused one on a CPU, and has no forward mode of it.
    """
    with FlopCounterMode(display=False, custom_mapping=_IN_PLACE) as counter, sdpa_kernel(SDPBackend.MATH):
        step()
    return int(counter.get_total_flops())
