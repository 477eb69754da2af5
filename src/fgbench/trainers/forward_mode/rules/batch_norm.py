"""Batch normalisation along tangents, in chunks that stay in the cache."""

from typing import Any

import torch
from torch import Tensor

from fgbench.trainers.forward_mode.rules.table import rule
from fgbench.trainers.forward_mode.shadows import Shadows

aten = torch.ops.aten
CHUNK_ENTRIES = 2**18  # 1 MiB


@rule(aten.native_batch_norm.default, aten.cudnn_batch_norm.default)
def batch_norm(
    m: Shadows, func: Any, x: Tensor, w: Tensor | None, b: Tensor | None, mean: Tensor | None,
    variance: Tensor | None, training: bool, momentum: float, eps: float,
) -> Any:  # fmt: skip
    """With statistics of the batch; torch's formula moves the running ones with every tangent."""
    if not training:
        return NotImplemented
    mu, var = torch.batch_norm_update_stats(x, mean, variance, momentum)
    if m.take_memory(x):
        y = x.view_as(x)
        t = c = m.get_or_allocate(x)
    else:
        y = torch.empty_like(x)
        c, given = m.get_or_allocate(y, zeros=False), m.get(x)
        t = x.new_zeros(()).expand(m.count, *x.shape) if given is None else given
    normalize(x, t, y, c, mu, var + eps, w, b, m.get(w), m.get(b))
    rest = (mu, (var + eps).rsqrt())
    return (y, *rest) if func is aten.native_batch_norm.default else (y, *rest, x.new_empty(0))


def normalize(
    value: Tensor,
    tangent: Tensor,
    output: Tensor,
    output_tangent: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    weight_tangent: Tensor | None,
    bias_tangent: Tensor | None,
) -> None:
    """Normalise, with K tangents, into ``output`` and ``output_tangent``, which may be the inputs.

    y = w z + b with z = (x - mean) / std, and y' = w (t - <t> - z <z t>) / std + w' z + b', where <> are
    means over the batch. Everything is centred before it is multiplied, since <x t> - <x><t> would cancel.

    Args:
        value: shape (B, C, ...); fastest with channels last in memory.
        tangent: shape (K, B, C, ...), likewise.
        output: like ``value``.
        output_tangent: like ``tangent``.
        mean: of each channel, shape (C,).
        variance: of each channel, epsilon added, shape (C,).
        weight: shape (C,).
        bias: shape (C,).
        weight_tangent: shape (K, C).
        bias_tangent: shape (K, C).
    """
    std = variance.sqrt()
    if not all(map(_is_channels_last, (value, output, *tangent, *output_tangent))):  # in one piece
        _normalize(
            *(value, tangent, output, output_tangent), mean, std, weight, bias, weight_tangent, bias_tangent
        )
        return
    x, y = (each.movedim(1, -1).flatten(0, -2) for each in (value, output))
    ts, cs = (each.movedim(2, -1).flatten(1, -2) for each in (tangent, output_tangent))
    size = max(1, CHUNK_ENTRIES // value.size(1))
    spans = [slice(start, start + size) for start in range(0, len(x), size)]
    scale = 1 / std if weight is None else weight / std
    averages = ts.mean(1, dtype=x.dtype)
    products = torch.zeros_like(averages)
    for span in spans:
        z = (x[span] - mean).div_(std)
        for k, t in enumerate(ts):
            products[k] += ((t[span] - averages[k]).mul_(z)).sum(0)
    slopes = -scale * products / len(x)
    if weight_tangent is not None:
        slopes = slopes + weight_tangent
    for span in spans:
        z = (x[span] - mean).div_(std)
        for k, t in enumerate(ts):
            centred = (t[span] - averages[k]).mul_(scale).addcmul_(z, slopes[k])
            if bias_tangent is None:
                cs[k, span] = centred
            else:
                torch.add(centred, bias_tangent[k], out=cs[k, span])
        if weight is not None:
            z.mul_(weight)
        if bias is None:
            y[span] = z
        else:
            torch.add(z, bias, out=y[span])


def _is_channels_last(value: Tensor) -> bool:
    """Whether its memory is a matrix with a column for each channel, as ``normalize`` reads and writes it."""
    return value.movedim(1, -1).is_contiguous()


def _normalize(
    value: Tensor,
    tangent: Tensor,
    output: Tensor,
    output_tangent: Tensor,
    mean: Tensor,
    std: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    weight_tangent: Tensor | None,
    bias_tangent: Tensor | None,
) -> None:
    """The same in one piece, for any layout."""
    axes = value.dim() - 2

    def wide(each: Tensor) -> Tensor:
        return each.view(-1, *[1] * axes)

    dims = [0, *range(2, value.dim())]
    z = (value - wide(mean)).div_(wide(std))
    for k, t in enumerate(tangent):
        centred = t - t.mean(dims, keepdim=True)
        change = (centred - z * (centred * z).mean(dims, keepdim=True)).div_(wide(std))
        if weight is not None:
            change.mul_(wide(weight))
        if weight_tangent is not None:
            change.addcmul_(z, wide(weight_tangent[k]))
        if bias_tangent is not None:
            change.add_(wide(bias_tangent[k]))
        output_tangent[k].copy_(change)
    if weight is not None:
        z.mul_(wide(weight))
    output.copy_(z if bias is None else z.add_(wide(bias)))
