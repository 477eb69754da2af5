"""Rules of copies, and of what is computed element by element."""

from typing import Any

import torch
from torch import Tensor

from fgbench.trainers.forward_mode.rules.table import lift, rule
from fgbench.trainers.forward_mode.shadows import Shadows

aten = torch.ops.aten


@rule(aten._local_scalar_dense.default)
def to_number(m: Shadows, func: Any, x: Tensor) -> Any:
    """A number for Python is a constant, as it is to backprop."""
    return func(x)


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
    t = m.writable(x)
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
    t = m.writable(x)
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
