"""How far rounding alone moves a derivative, where two ways of computing it are compared in one precision.

On a deep network that is more than one expects: PyTorch's batch statistics on a CPU are right to five digits,
a rounding switches a ReLU or the maximum of a pool, and layer by layer the derivative drifts, by a percent or
two in the end. Comparisons measure it by moving every input to a neighbouring number.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDING_FACTOR = 4.0
"""A difference passes as rounding up to this many times what moving every input by one rounding makes; a
convention of this project."""

MAX_TOLERANCE_FACTOR = 5.0
"""However much rounding makes, no more than this many times the usual tolerance passes; a convention too."""


def moved_by_rounding(inputs: Tensor) -> Tensor:
    """Every input moved to the next larger or the next smaller number, the same ones every time."""
    signs = torch.randint(0, 2, inputs.shape, generator=torch.Generator().manual_seed(0)).to(inputs.device)
    return torch.nextafter(inputs, torch.where(signs == 0, torch.inf, -torch.inf).to(inputs.dtype))


def allowance(tolerance: float, rounding: float) -> float:
    """The tolerance where moving the inputs made a difference of ``rounding``; never below ``tolerance``."""
    return max(tolerance, min(ROUNDING_FACTOR * rounding, MAX_TOLERANCE_FACTOR * tolerance))


def largest(errors: Iterable[float]) -> float:
    """The largest error; NaN if one is."""
    return max(errors, key=lambda error: (math.isnan(error), error), default=0.0)


class Trial(NamedTuple):
    """What a pass gave, in float64: derivatives, a gradient by parameter, and losses, outputs and buffers."""

    derivatives: list[Tensor]
    gradient: list[Tensor]
    state: list[Tensor]

    def distance(self, other: "Trial") -> float:
        """The largest difference, as a share of what it belongs to, by root mean square.

        Of derivatives, losses, outputs and buffers every number counts by itself; of a parameter's gradient,
        whose few large numbers say nothing against millions of small ones, the whole. A parameter's gradient
        counts as no smaller than the gradient: one may be all but zero, as of a bias before normalisation.
        """
        whole = _size(torch.cat([part.flatten() for part in self.gradient])) if self.gradient else 0.0
        numbers = zip([*self.derivatives, *self.state], [*other.derivatives, *other.state], strict=True)
        errors = [
            float((first - second).abs().max()) / max(_size(first), 1e-30)
            for first, second in numbers
            if first.numel()
        ]
        errors += [
            _size(first - second) / max(_size(first), whole, 1e-30)
            for first, second in zip(self.gradient, other.gradient, strict=True)
        ]
        return largest(errors)


def _size(part: Tensor) -> float:
    return float(part.square().mean().sqrt()) if part.numel() else 0.0
