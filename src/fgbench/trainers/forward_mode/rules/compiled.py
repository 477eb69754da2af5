"""The rules of a pass that is compiled: without chunks and gathers, which keep a compiler from fusing."""

from typing import Any

import torch
from torch import Tensor

from fgbench.trainers.forward_mode.rules import RULES, lookups
from fgbench.trainers.forward_mode.shadows import Shadows

aten = torch.ops.aten


def max_pool2d(
    m: Shadows,
    func: Any,
    x: Tensor,
    size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    *rest: Any,
) -> Any:
    """Windows of 2 x 2 that do not overlap, as the larger of pairs; others by the eager rule."""
    even = x.dim() == 4 and x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0
    plain = padding in (0, [0, 0]) and dilation in (1, [1, 1])
    if not (even and plain and list(size) == [2, 2] and list(stride) in ([], [2, 2])):
        return lookups.max_pool2d(m, func, x, size, stride, padding, dilation, *rest)
    t = m.get(x)
    assert t is not None
    parts = [(x[:, :, i::2, j::2], t[:, :, :, i::2, j::2]) for i in (0, 1) for j in (0, 1)]
    y, change = parts[0]
    for value, tangent in parts[1:]:  # the first of equals, and NaN, as in the operation itself
        later = (value > y) | value.isnan()
        y, change = torch.where(later, value, y), torch.where(later, tangent, change)
    m.put(y, change)
    return y, x.new_empty(0, dtype=torch.int64)


def batch_norm(
    m: Shadows, func: Any, x: Tensor, w: Tensor | None, b: Tensor | None, mean: Tensor | None,
    variance: Tensor | None, training: bool, momentum: float, eps: float,
) -> Any:  # fmt: skip
    """The formula of ``batch_norm.normalize`` in one piece."""
    if not training:
        return NotImplemented
    t = m.get(x)
    dims = [0, *range(2, x.dim())]

    def wide(each: Tensor) -> Tensor:
        return each.view(*each.shape[:-1], 1, -1, *[1] * (x.dim() - 2))

    # As backprop rounds them; what it does to running statistics a capture would not see.
    mu, var = torch.batch_norm_update_stats(x, None, None, momentum)
    count = x.numel() // x.shape[1]
    if mean is not None and variance is not None:
        mean.lerp_(mu, momentum)
        variance.lerp_(var * (count / (count - 1)), momentum)
    inverse = (var + eps).rsqrt()
    z = (x - wide(mu)) * wide(inverse)
    y = z if w is None else z * wide(w)
    y = y if b is None else y + wide(b)
    change: Tensor | None = None
    if t is not None:
        over = [each + 1 for each in dims]
        centred = t - t.mean(over, keepdim=True)
        change = (centred - z * (centred * z).mean(over, keepdim=True)) * wide(inverse)
        change = change if w is None else change * wide(w)
    for given, times in ((m.get(w), z), (m.get(b), None)):
        if given is not None:
            part = wide(given) if times is None else wide(given) * times
            change = part if change is None else change + part
    assert change is not None
    m.put(y, change.expand(m.count, *y.shape).contiguous() if change.shape[1:] != y.shape else change)
    rest = (mu, inverse)
    return (y, *rest) if func is aten.native_batch_norm.default else (y, *rest, x.new_empty(0))


COMPILED_RULES = RULES | {
    aten.max_pool2d_with_indices.default: max_pool2d,
    aten.native_batch_norm.default: batch_norm,
    aten.cudnn_batch_norm.default: batch_norm,
}
