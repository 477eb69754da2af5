"""What the operations worth a rule of their own do to a pair (value, tangents).

A rule ``rule(shadows, func, *arguments)`` computes the values, puts their tangents and returns the values, or
returns NotImplemented before it has done anything. Tangents have a leading dimension of K.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fgbench.trainers.forward_mode.batch_norm import normalize
from fgbench.trainers.forward_mode.shadows import RefusedError, Shadows, TangentRule

aten = torch.ops.aten
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


@rule(aten._local_scalar_dense.default)
def to_number(m: Shadows, func: Any, x: Tensor) -> Any:
    """A number for Python is a constant, as it is to backprop."""
    return func(x)


# Linear operations


@rule(aten.clone.default, aten._to_copy.default)
def copy(m: Shadows, func: Any, x: Tensor, **kwargs: Any) -> Tensor:
    """The tangents copied likewise; a copy of a weight in another dtype keeps its factors."""
    y: Tensor = func(x, **kwargs)
    if not (y.is_floating_point() or y.is_complex()):
        return y
    factors = m.factors(x)
    if factors is not None:
        m.put_factors(y, factors.to(y))
        return y
    t = m.get(x)
    assert t is not None
    if kwargs.get("memory_format") in (None, torch.preserve_format) or x.dim() == 0:
        kwargs.pop("memory_format", None)
        m.put(y, func(t, **kwargs))
    else:
        m.put(y, func(t.flatten(0, 1), **kwargs).unflatten(0, t.shape[:2]))
    return y


@rule(aten.mean.default, aten.sum.default)
def reduce_all(m: Shadows, func: Any, x: Tensor, **kwargs: Any) -> Tensor:
    """The same of the tangents."""
    y: Tensor = func(x, **kwargs)
    t = m.get(x)
    assert t is not None
    reduce = aten.mean.dim if func is aten.mean.default else aten.sum.dim_IntList
    m.put(y, reduce(t, list(range(1, t.dim())), False, **kwargs) if t.dim() > 1 else t.to(y.dtype, copy=True))
    return y


@rule(aten.mean.dim, aten.sum.dim_IntList)
def reduce_some(m: Shadows, func: Any, x: Tensor, dim: Any, keepdim: bool = False, **kwargs: Any) -> Tensor:
    """The same of the tangents."""
    if x.dim() == 0:
        return NotImplemented
    y: Tensor = func(x, dim, keepdim, **kwargs)
    t = m.get(x)
    assert t is not None
    dims = dim or range(x.dim())
    m.put(y, func(t, [each % x.dim() - x.dim() for each in dims], keepdim, **kwargs))
    return y


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
            carried = _carry(func, tx, w, geometry, groups)
            t = carried if t is None else t.add_(carried)
    else:
        scale, rows = (each.to(dtype) for each in factors.convolved(x, func, *geometry))
        m.release(x)
        t = None if tx is None else _carry(func, tx, w, geometry, 1)
        last = y.dim() == 4 and y.is_contiguous(memory_format=torch.channels_last)
        if last:  # or the product is made in another order of memory
            scale, rows = scale.movedim(2, -1), rows.movedim(2, -1)
            shift = None if shift is None else shift.movedim(2, -1)
            t = None if t is None else t.movedim(2, -1)
        if t is not None:
            t.addcmul_(scale, rows)
        else:
            t = scale * rows if shift is None else torch.addcmul(shift, scale, rows)
            shift = None
        if last:
            t, shift = t.movedim(-1, 2), None if shift is None else shift.movedim(-1, 2)
    if shift is not None:
        t = shift.expand(m.count, *y.shape).clone() if t is None else t.add_(shift)
    assert t is not None
    m.put(y, t)
    return y


def _carry(func: Any, tx: Tensor, w: Tensor, geometry: Any, groups: int) -> Tensor:
    """All tangents of the input through the layer, as one larger batch."""
    return func(tx.flatten(0, 1), w, None, *geometry, groups).unflatten(0, tx.shape[:2])


# Element by element


@rule(aten.add.Tensor, aten.sub.Tensor)
def add(m: Shadows, func: Any, x: Tensor, other: Any, alpha: Any = 1) -> Tensor:
    """The rule y' = x' + alpha o'."""
    y: Tensor = func(x, other, alpha=alpha)
    tx, to = m.get(x), m.get(other) if isinstance(other, Tensor) else None
    if tx is not None and to is not None:
        t = func(lift(tx, y.dim()), lift(to, y.dim()), alpha=alpha)
    elif tx is not None:
        t = lift(tx, y.dim()).to(y.dtype).expand(m.count, *y.shape).clone()
    else:
        assert to is not None
        t = (lift(to, y.dim()) * (alpha if func is aten.add.Tensor else -alpha)).to(y.dtype)
        t = t.expand(m.count, *y.shape).contiguous() if t.shape[1:] != y.shape else t
    m.put(y, t)
    return y


@rule(aten.mul.Tensor)
def mul(m: Shadows, func: Any, x: Tensor, other: Any) -> Tensor:
    """The rule y' = x' o + x o'."""
    y: Tensor = func(x, other)
    tx, to = m.get(x), m.get(other) if isinstance(other, Tensor) else None
    t = None if tx is None else lift(tx, y.dim()) * other
    if to is not None:
        to = lift(to, y.dim())
        t = x * to if t is None else t.addcmul_(x, to) if t.shape[1:] == y.shape else t + x * to
    assert t is not None
    m.put(y, t.to(y.dtype))
    return y


@rule(aten.add_.Tensor)
def add_(m: Shadows, func: Any, x: Tensor, other: Any, alpha: Any = 1) -> Tensor:
    """In place in both."""
    to = m.get(other) if isinstance(other, Tensor) else None
    t = m.written(x)
    func(x, other, alpha=alpha)
    if to is not None:
        t.add_(lift(to, x.dim()), alpha=alpha)
    return x


@rule(aten.relu.default)
def relu(m: Shadows, func: Any, x: Tensor) -> Tensor:
    """The tangent where the value is positive."""
    y: Tensor = func(x)
    t = m.get(x)
    assert t is not None
    m.put(y, aten.threshold_backward(t, y.to(t.dtype), 0))
    return y


@rule(aten.relu_.default)
def relu_(m: Shadows, func: Any, x: Tensor) -> Tensor:
    """In place in both."""
    t = m.written(x)
    func(x)
    aten.threshold_backward.grad_input(t, x.to(t.dtype), 0, grad_input=t)
    return x


@rule(aten.gelu.default)
def gelu(m: Shadows, func: Any, x: Tensor, **kwargs: Any) -> Tensor:
    """The tangent times the derivative."""
    y: Tensor = func(x, **kwargs)
    t = m.get(x)
    assert t is not None
    m.put(y, t * aten.gelu_backward(torch.ones_like(x), x, **kwargs))
    return y


# Lookups and pooling


@rule(aten.embedding.default)
def embedding(
    m: Shadows, func: Any, w: Tensor, indices: Tensor, padding_idx: int = -1, by_frequency: bool = False,
    sparse: bool = False,
) -> Tensor:  # fmt: skip
    """As backprop has it: none at the padding, and by a token's frequency where the layer says so."""
    y: Tensor = func(w, indices, padding_idx, by_frequency, sparse)
    factors = m.factors(w)
    if factors is not None:
        t = torch.mul(*factors.looked_up(indices))
    else:
        tw = m.get(w)
        assert tw is not None
        t = tw[:, indices]
    if padding_idx >= 0:
        t = t * (indices != padding_idx).unsqueeze(-1)
    if by_frequency:
        counts = torch.bincount(indices.flatten(), minlength=len(w))
        t = t / counts[indices].unsqueeze(-1)
    m.put(y, t.to(y.dtype))
    return y


@rule(aten._embedding_bag.default, aten._embedding_bag_forward_only.default)
def embedding_bag(m: Shadows, func: Any, *args: Any, **kwargs: Any) -> Any:
    """Its gradient depends on options that torch's forward mode does not know."""
    raise RefusedError("forward mode has no rule for bags of embeddings")


@rule(aten.max_pool2d_with_indices.default)
def max_pool2d(m: Shadows, func: Any, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """The tangent at the largest value."""
    if x.dim() != 4:
        return NotImplemented
    t = m.get(x)
    assert t is not None
    y, where = func(x, *rest)
    if not x.is_contiguous(memory_format=torch.channels_last):
        places = where.flatten(2).expand(m.count, -1, -1, -1)
        m.put(y, t.flatten(3).gather(3, places).view(m.count, *y.shape))
        return y, where
    m.release(x)
    rows = t.permute(0, 1, 3, 4, 2).flatten(2, 3)
    places = where.permute(0, 2, 3, 1).flatten(1, 2).expand(m.count, -1, -1, -1)
    m.put(y, rows.gather(2, places).unflatten(2, y.shape[2:]).permute(0, 1, 4, 2, 3))
    return y, where


# Normalisation and losses


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
        t = c = m.blank(x)
    else:
        y = torch.empty_like(x)
        c, given = m.blank(y, zeros=False), m.get(x)
        t = x.new_zeros(()).expand(m.count, *x.shape) if given is None else given
    normalize(x, t, y, c, mu, var + eps, w, b, m.get(w), m.get(b))
    rest = (mu, (var + eps).rsqrt())
    return (y, *rest) if func is aten.native_batch_norm.default else (y, *rest, x.new_empty(0))


@rule(aten._log_softmax.default)
def log_softmax(m: Shadows, func: Any, x: Tensor, dim: int, half: bool) -> Tensor:
    """The rule y' = x' - <softmax, x'>."""
    if x.dim() == 0:
        return NotImplemented
    y: Tensor = func(x, dim, half)
    t = m.get(x)
    assert t is not None
    t = t.to(y.dtype)
    m.put(y, t - (y.exp() * t).sum(dim % x.dim() - x.dim(), keepdim=True))
    return y


@rule(aten._softmax.default)
def softmax(m: Shadows, func: Any, x: Tensor, dim: int, half: bool) -> Tensor:
    """The rule y' = y (x' - <y, x'>)."""
    if x.dim() == 0:
        return NotImplemented
    y: Tensor = func(x, dim, half)
    t = m.get(x)
    assert t is not None
    t = y * t.to(y.dtype)
    m.put(y, t.addcmul_(y, t.sum(dim % x.dim() - x.dim(), keepdim=True), value=-1))
    return y


@rule(aten.nll_loss_forward.default)
def nll_loss(m: Shadows, func: Any, x: Tensor, labels: Tensor, weight: Tensor | None, *rest: Any) -> Any:
    """The loss is linear in the log-probabilities."""
    if weight is not None and m.has(weight):
        return NotImplemented
    t = m.get(x)
    assert t is not None
    result = func(x, labels, weight, *rest)
    tangents = [func(each, labels, weight, *rest)[0] for each in t.to(x.dtype)]
    m.put(result[0], torch.stack(tangents) if m.count > 1 else tangents[0][None])
    return result
