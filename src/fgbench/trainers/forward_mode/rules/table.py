"""The table of rules: for an operation, how its values and their tangents are computed together.

A rule takes the shadow memory, the operation, and its arguments; it returns the values, having ``put`` their
tangents, or NotImplemented, for torch's own formula. It runs only where an argument has a tangent.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fgbench.trainers.forward_mode.tangent_mode import TangentRule

RULES: dict[Any, TangentRule] = {}


def rule(*operations: Any) -> Callable[[TangentRule], TangentRule]:
    """Enter a function in ``RULES``."""

    def enter(function: TangentRule) -> TangentRule:
        RULES.update(dict.fromkeys(operations, function))
        return function

    return enter


def lift(tangent: Tensor, dim: int) -> Tensor:
    """Tangents (K, *shape) of an operand that is broadcast to ``dim`` dimensions: (K, 1, ..., *shape)."""
    missing = dim + 1 - tangent.dim()
    return tangent if missing <= 0 else tangent.view(len(tangent), *[1] * missing, *tangent.shape[1:])
