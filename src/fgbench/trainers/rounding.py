"""How far rounding alone moves a derivative, where two ways of computing it are compared in one precision.

On a deep network that is more than one expects: a rounding switches a ReLU or the maximum of a pool, and the
derivative jumps. Comparisons measure it by moving every input to a neighbouring number.
"""

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


class Trial(NamedTuple):
    """What a pass gave, in float64: its result, tensor by tensor, and its losses, outputs and buffers."""

    result: list[Tensor]
    state: list[Tensor]

    def distance(self, other: "Trial") -> float:
        """The largest difference of a tensor, as a share of its size, by root mean square.

        A tensor of the result counts as no smaller than the whole result: a part may be all but zero, such as
        the gradient of a bias before normalisation.
        """
        whole = _size(torch.cat([part.flatten() for part in self.result]))
        scales = [max(_size(part), whole, 1e-30) for part in self.result]
        scales += [max(_size(part), 1e-30) for part in self.state]
        pairs = zip([*self.result, *self.state], [*other.result, *other.state], scales, strict=True)
        errors = [_size(first - second) / scale for first, second, scale in pairs]
        return max(errors, key=lambda error: (error != error, error))  # NaN is the largest


def _size(part: Tensor) -> float:
    return float(part.square().mean().sqrt()) if part.numel() else 0.0
