"""A forward pass at other parameters than the model's, of which only those in use are ever there."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fgbench.errors import ConfigError
from fgbench.trainers.forward_mode.factors import Factors, is_whole
from fgbench.trainers.forward_mode.operations import signature, tensors
from fgbench.trainers.forward_mode.refusals import refuse_hidden, refuse_hooks, run_eagerly

aten = torch.ops.aten


@contextmanager
def shifted_parameters(
    model: nn.Module,
    params: Sequence[Tensor],
    direction: Callable[[Tensor], Tensor | Factors],
    step: float,
) -> Iterator[None]:
    """Within, a model runs as if its parameters were shifted; see :class:`ShiftedParameters`.

    Raises:
        ConfigError: the model writes into a parameter, runs what shows none of its operations, or has hooks
            on gradients.

    Example:
        >>> layer, x = nn.Linear(3, 2, bias=False), torch.eye(3)
        >>> with torch.no_grad(), shifted_parameters(layer, [layer.weight], torch.ones_like, 0.5):
        ...     shifted = layer(x)
        >>> torch.allclose(shifted, layer(x) + 0.5)
        True
    """
    refuse_hooks(model)
    refuse_hidden(model, params)
    torch.clear_autocast_cache()  # of weights cast at other parameters
    with run_eagerly(), ShiftedParameters(params, direction, step):
        yield
    torch.clear_autocast_cache()


class ShiftedParameters(TorchDispatchMode):
    """Within, every operation that reads a parameter reads it shifted by a step along a direction.

    Decided by memory, so that transposes, slices and tied weights are shifted too. The parameters themselves
    are never written to, and a shifted one lives as long as the operation that reads it. Of a weight whose
    share is rank-one there is no shifted copy: where all of it is a layer's, the layer's output is shifted,
    W x + step u (w^T x). Used in any other way (sliced, cast, in arithmetic) it is shifted as a copy too.

    Args:
        params: those to shift.
        direction: gives a parameter's share of the direction, in its shape, or as the factors of one tangent.
        step: how far.
    """

    def __init__(
        self, params: Sequence[Tensor], direction: Callable[[Tensor], Tensor | Factors], step: float
    ) -> None:
        super().__init__()
        self.direction = direction
        self.step = step
        self._params: dict[int, list[Tensor]] = {}
        for param in params:
            self._params.setdefault(param.untyped_storage()._cdata, []).append(param)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        view, written = signature(func)
        if view:
            return func(*args, **kwargs)
        for index, name, by_keyword in written:
            target = kwargs.get(name) if by_keyword or index >= len(args) else args[index]
            if isinstance(target, Tensor) and self._params_in(target):
                raise ConfigError(f"the model writes into a parameter ({func}), which cannot be shifted")
        if not any(self._params_in(each) for each in tensors(args, kwargs)):
            return func(*args, **kwargs)
        if func in _PRODUCTS and not kwargs and (output := self._product(func, args)) is not NotImplemented:
            return output
        args, kwargs = tree_map_only(Tensor, self._shifted, (args, kwargs))
        return func(*args, **kwargs)

    def _product(self, func: Any, args: tuple[Any, ...]) -> Any:
        """What a layer puts out that takes all of a weight whose share is rank-one, else NotImplemented."""
        position, product = _PRODUCTS[func]
        weight = args[position]
        params = self._params_in(weight)
        if len(params) != 1 or not is_whole(weight, params[0], transposed=func in _TRANSPOSED):
            return NotImplemented
        share = self.direction(params[0])
        if not isinstance(share, Factors):
            return NotImplemented
        before, after = tree_map_only(Tensor, self._shifted, (args[:position], args[position + 1 :]))
        return product(share, self.step, *before, weight, *after)

    def _params_in(self, value: Tensor) -> Sequence[Tensor]:
        """Those that have their values in a tensor's memory; sparse ones have none."""
        return self._params.get(value.untyped_storage()._cdata, ()) if value.layout == torch.strided else ()

    def _shifted(self, value: Tensor) -> Tensor:
        params = self._params_in(value)
        if not params:
            return value
        first = params[0]
        if first.untyped_storage().nbytes() == first.numel() * first.element_size():
            memory = torch.add(first.detach(), self._share(first), alpha=self.step)
        else:  # cut from a larger tensor
            entries = first.untyped_storage().nbytes() // first.element_size()
            memory = first.detach().as_strided((entries,), (1,), 0).clone()
            for param in params:
                part = memory.as_strided(param.shape, param.stride(), param.storage_offset())
                part.add_(self._share(param), alpha=self.step)
        if memory.dtype != value.dtype:  # seen as complex numbers
            memory = memory.as_strided((memory.numel(),), (1,), 0).view(value.dtype)
        same = memory.as_strided(value.shape, value.stride(), value.storage_offset())
        if value.is_complex() and value.is_conj():
            same = same.conj()
        return same._neg_view() if value.is_neg() else same

    def _share(self, param: Tensor) -> Tensor:
        share = self.direction(param)
        return share.dense()[0] if isinstance(share, Factors) else share


def _mm(v: Factors, step: float, x: Tensor, w: Tensor) -> Tensor:
    scale, rows = v.times(x)
    return (scale[0] * (step * rows[0])).addmm_(x, w)


def _addmm(v: Factors, step: float, bias: Tensor, x: Tensor, w: Tensor) -> Tensor:
    scale, rows = v.times(x)
    return torch.addcmul(bias, scale[0], rows[0], value=step).addmm_(x, w)


def _convolution(
    v: Factors, step: float, x: Tensor, w: Tensor, bias: Tensor | None, stride: Any, padding: Any,
    dilation: Any, transposed: bool, output_padding: Any, groups: int,
) -> Any:  # fmt: skip
    if transposed or groups != 1 or x.dim() != w.dim():
        return NotImplemented
    geometry = (stride, padding, dilation, transposed, output_padding)
    scale, rows = v.convolved(x, aten.convolution.default, *geometry)
    output: Tensor = aten.convolution.default(x, w, bias, *geometry, groups)
    return output.addcmul_(scale[0], rows[0], value=step)


def _embedding(v: Factors, step: float, w: Tensor, indices: Tensor, *rest: Any) -> Tensor:
    output: Tensor = aten.embedding.default(w, indices, *rest)
    scale, rows = v.looked_up(indices)
    return output.addcmul_(scale[0], rows[0], value=step)


_PRODUCTS: dict[Any, tuple[int, Callable[..., Any]]] = {
    aten.mm.default: (1, _mm),
    aten.addmm.default: (2, _addmm),
    aten.convolution.default: (1, _convolution),
    aten.embedding.default: (0, _embedding),
}
"""Operations that multiply a weight: at which position it is, and what comes of its factors and a step."""
_TRANSPOSED = {aten.mm.default, aten.addmm.default}
"""Those whose weight arrives transposed from a layer."""
