"""A forward pass at other parameters than the model's, of which only those in use are ever there."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fgbench.errors import ConfigError
from fgbench.trainers.forward_mode.factors import Factors, is_whole
from fgbench.trainers.forward_mode.refusals import refuse_hidden, run_eagerly
from fgbench.trainers.forward_mode.shadows import signature

aten = torch.ops.aten


class ShiftedParameters(TorchDispatchMode):
    """Within, every operation that reads a parameter reads it shifted by a step along a direction.

    Decided by memory, so that transposes, slices and tied weights are shifted too. The parameters themselves
    are never written to, and a shifted one lives as long as the operation that reads it. Of a weight whose
    share is rank-one there is no shifted copy: where all of it is a layer's, the layer's output is shifted,
    W x + step u (w^T x). Used in any other way (sliced, cast, in arithmetic) it is shifted as a copy too.

    Args:
        model: whose parameters.
        params: those to shift.
        direction: gives a parameter's share of the direction, in its shape, or as the factors of one tangent.
        step: how far.

    Raises:
        ConfigError: the model writes into a parameter, or runs what shows none of its operations.

    Example:
        >>> layer, x = nn.Linear(3, 2, bias=False), torch.eye(3)
        >>> with torch.no_grad(), ShiftedParameters(layer, [layer.weight], torch.ones_like, 0.5):
        ...     shifted = layer(x)
        >>> torch.allclose(shifted, layer(x) + 0.5)
        True
    """

    def __init__(
        self,
        model: nn.Module,
        params: Sequence[Tensor],
        direction: Callable[[Tensor], Tensor | Factors],
        step: float,
    ) -> None:
        super().__init__()
        self.direction = direction
        self.step = step
        refuse_hidden(model, params)
        self._params: dict[int, list[Tensor]] = {}
        for param in params:
            self._params.setdefault(param.untyped_storage()._cdata, []).append(param)

    def __enter__(self) -> "ShiftedParameters":
        torch.clear_autocast_cache()  # of weights cast at other parameters
        self._eager = run_eagerly()
        self._eager.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        torch.clear_autocast_cache()
        self._eager.__exit__(kind, error, traceback)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        view, written = signature(func)
        if view:
            return func(*args, **kwargs)
        for index, name, by_keyword in written:
            target = kwargs.get(name) if by_keyword or index >= len(args) else args[index]
            if isinstance(target, Tensor) and target.untyped_storage()._cdata in self._params:
                raise ConfigError(f"the model writes into a parameter ({func}), which cannot be shifted")
        product = _PRODUCTS.get(func)
        factors = None if product is None or kwargs else self._factors(product, args)
        if factors is None:
            args, kwargs = tree_map_only(Tensor, self._shifted, (args, kwargs))
            return func(*args, **kwargs)
        assert product is not None
        given = [
            arg if index == product.weight else tree_map_only(Tensor, self._shifted, arg)
            for index, arg in enumerate(args)
        ]
        output = func(*given)
        scale, rows = product.change(factors, *given)
        return output.addcmul_(scale[0], rows[0], value=self.step)

    def _factors(self, product: "Product", args: tuple[Any, ...]) -> Factors | None:
        """The share of a layer's weight, where that is rank-one and the layer takes all of the weight."""
        weight = args[product.weight]
        params = self._params.get(weight.untyped_storage()._cdata, ())
        if len(params) != 1 or not is_whole(weight, params[0], transposed=product.transposed):
            return None
        if not product.fits(*args):
            return None
        share = self.direction(params[0])
        return share if isinstance(share, Factors) else None

    def _shifted(self, value: Tensor) -> Tensor:
        params = self._params.get(value.untyped_storage()._cdata)
        if params is None:
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


class Product(NamedTuple):
    """An operation that multiplies its weight with something else among its arguments.

    Attributes:
        weight: at which position the weight is.
        change: of the output by a rank-one change of the weight, as two factors; see ``Factors``.
        transposed: whether the weight arrives transposed.
        fits: whether it is such a product with these arguments.
    """

    weight: int
    change: Callable[..., tuple[Tensor, Tensor]]
    transposed: bool = False
    fits: Callable[..., bool] = lambda *args: True


def _convolved(factors: Factors, x: Tensor, w: Tensor, bias: Any, *geometry: Any) -> tuple[Tensor, Tensor]:
    return factors.convolved(x, aten.convolution.default, *geometry[:-1])


def _is_plain(
    x: Tensor, w: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, *rest: Any
) -> bool:
    return not transposed and rest[-1] == 1 and x.dim() == w.dim()


_PRODUCTS = {
    aten.mm.default: Product(1, lambda factors, x, _: factors.times(x), transposed=True),
    aten.addmm.default: Product(2, lambda factors, bias, x, _: factors.times(x), transposed=True),
    aten.convolution.default: Product(1, _convolved, fits=_is_plain),
    aten.embedding.default: Product(0, lambda factors, _, indices, *rest: factors.looked_up(indices)),
}
