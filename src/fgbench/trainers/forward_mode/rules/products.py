"""Rules of products: linear layers, batches of matrices, convolutions."""

from typing import Any

import torch
from torch import Tensor

from fgbench.trainers.forward_mode.rules.table import lift, rule
from fgbench.trainers.forward_mode.shadows import Shadows

aten = torch.ops.aten


@rule(aten.addmm.default)
def addmm(m: Shadows, func: Any, bias: Tensor, x: Tensor, w: Tensor, **kwargs: Any) -> Tensor:
    """A linear layer with a bias: y = b + x w."""
    if kwargs:
        return NotImplemented
    t = m.get(bias)
    return _product(m, func(bias, x, w), t if t is None else lift(t, 2), x, w)


@rule(aten.mm.default)
def mm(m: Shadows, func: Any, x: Tensor, w: Tensor) -> Tensor:
    """A product y = x w."""
    return _product(m, func(x, w), None, x, w)


def _product(m: Shadows, y: Tensor, start: Tensor | None, x: Tensor, w: Tensor) -> Tensor:
    """The rule y' = start + x' w + x w', where x w' for w' = inputs rows^T is (x inputs) rows^T."""
    factors, tx, dtype = m.factors(w, transposed=True), m.operand(x), m.dtype(y)
    tw = None if factors is not None else m.operand(w)
    start = None if start is None else start.to(dtype)
    t: Tensor | None = None
    if tx is not None:
        w = w.to(dtype)
        if start is not None and m.count == 1:
            t = torch.addmm(start[0], tx[0], w)[None]
        else:
            t = (tx.flatten(0, 1) @ w).view(*tx.shape[:2], w.shape[1])
            t = t if start is None else t.add_(start)
    if factors is not None:
        scale, rows = (each.to(dtype) for each in factors.times(x))
        if t is not None:
            t.addcmul_(scale, rows)
        else:
            t = scale * rows if start is None else torch.addcmul(start, scale, rows)
    elif tw is not None:
        start, x = start if t is None else t, x.to(dtype)
        if m.count == 1:
            t = ((x @ tw[0]) if start is None else torch.addmm(start[0], x, tw[0]))[None]
        else:
            t = torch.matmul(x, tw)
            t = t if start is None else t.add_(start)
    if t is None:
        assert start is not None
        t = start.expand(m.count, *y.shape).clone()
    m.put(y, t)
    return y


@rule(aten.bmm.default)
def bmm(m: Shadows, func: Any, x: Tensor, w: Tensor) -> Tensor:
    """A product y = x w for every matrix of a batch."""
    y: Tensor = func(x, w)
    tx, tw, dtype = m.operand(x), m.operand(w), m.dtype(y)
    x, w = x.to(dtype), w.to(dtype)
    t: Tensor | None = None
    if tx is not None:
        t = torch.stack([func(each, w) for each in tx]) if m.count > 1 else func(tx[0], w)[None]
    if tw is not None:
        if t is None:
            t = torch.stack([func(x, each) for each in tw]) if m.count > 1 else func(x, tw[0])[None]
        else:
            for k, each in enumerate(tw):
                t[k].baddbmm_(x, each)
    assert t is not None
    m.put(y, t)
    return y


@rule(aten.convolution.default)
def convolution(
    m: Shadows, func: Any, x: Tensor, w: Tensor, bias: Tensor | None, stride: Any, padding: Any,
    dilation: Any, transposed: bool, output_padding: Any, groups: int,
) -> Tensor:  # fmt: skip
    """The rule y' = w * x' + w' * x + b'."""
    geometry = (stride, padding, dilation, transposed, output_padding)
    if x.dim() != w.dim():
        return NotImplemented
    factors = None if transposed or groups != 1 else m.factors(w)
    tx, tb = m.operand(x), m.operand(bias)
    tw = None if factors is not None else m.operand(w)
    y: Tensor = func(x, w, bias, *geometry, groups)
    axes, dtype = y.dim() - 2, m.dtype(y)
    w = w.to(dtype)
    shift = None if tb is None else tb.view(m.count, 1, -1, *[1] * axes)
    if factors is None:
        parts = [] if tw is None else [func(x.to(dtype), each, None, *geometry, groups) for each in tw]
        t = parts[0][None] if len(parts) == 1 else torch.stack(parts) if parts else None
        m.release(x)
        if tx is not None:
            part = _convolve_tangents(func, tx, w, geometry, groups)
            t = part if t is None else t.add_(part)
    else:
        scale, rows = (each.to(dtype) for each in factors.convolved(x, func, *geometry))
        m.release(x)
        t = None if tx is None else _convolve_tangents(func, tx, w, geometry, 1)
        channels_last = y.dim() == 4 and y.is_contiguous(memory_format=torch.channels_last)
        if channels_last:  # or the product is made in another order of memory
            scale, rows = scale.movedim(2, -1), rows.movedim(2, -1)
            shift = None if shift is None else shift.movedim(2, -1)
            t = None if t is None else t.movedim(2, -1)
        if t is not None:
            t.addcmul_(scale, rows)
        else:
            t = scale * rows if shift is None else torch.addcmul(shift, scale, rows)
            shift = None
        if channels_last:
            t, shift = t.movedim(-1, 2), None if shift is None else shift.movedim(-1, 2)
    if shift is not None:
        t = shift.expand(m.count, *y.shape).clone() if t is None else t.add_(shift)
    assert t is not None
    m.put(y, t)
    return y


def _convolve_tangents(func: Any, tx: Tensor, w: Tensor, geometry: Any, groups: int) -> Tensor:
    """All tangents of the input through the layer, as one larger batch."""
    return func(tx.flatten(0, 1), w, None, *geometry, groups).unflatten(0, tx.shape[:2])
