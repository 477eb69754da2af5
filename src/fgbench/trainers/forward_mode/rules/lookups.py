"""Rules of what picks entries: embeddings and max pooling."""

from typing import Any

import torch
from torch import Tensor

from fgbench.trainers.forward_mode.rules.table import rule
from fgbench.trainers.forward_mode.shadows import RefusedError, Shadows

aten = torch.ops.aten


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


@rule(aten.scatter_reduce.two, aten.scatter_reduce_.two)
def scatter_reduce(
    m: Shadows, func: Any, x: Tensor, dim: int, where: Tensor, y: Tensor, how: str, **rest: Any
) -> Any:
    """Torch's forward formula leaves out a derivative of its products."""
    if how == "prod":
        raise RefusedError("torch's forward-mode formula of scattered products is wrong")
    return NotImplemented


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
