"""Rules of sums, means, softmax and the loss on top of it."""

from typing import Any

import torch
from torch import Tensor

from fgbench.trainers.forward_mode.rules.table import rule
from fgbench.trainers.forward_mode.shadows import Shadows

aten = torch.ops.aten


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
