"""A forward pass at other parameters than the model's, of which only those in use are ever there."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fgbench.errors import ConfigError
from fgbench.trainers.forward_mode.refusals import refuse_hidden, run_eagerly
from fgbench.trainers.forward_mode.shadows import signature


class ShiftedParameters(TorchDispatchMode):
    """Within, every operation that reads a parameter reads it shifted by a step along a direction.

    Decided by memory, so that transposes, slices and tied weights are shifted too. The parameters themselves
    are never written to, and a shifted one lives as long as the operation that reads it.

    Args:
        model: whose parameters.
        params: those to shift.
        direction: gives a parameter's share of the direction, in its shape.
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
        self, model: nn.Module, params: Sequence[Tensor], direction: Callable[[Tensor], Tensor], step: float
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
        view, written = signature(func)
        if not view:
            for index, name, by_keyword in written:
                target = (kwargs or {}).get(name) if by_keyword or index >= len(args) else args[index]
                if isinstance(target, Tensor) and target.untyped_storage()._cdata in self._params:
                    raise ConfigError(f"the model writes into a parameter ({func}), which cannot be shifted")
            args, kwargs = tree_map_only(Tensor, self._shifted, (args, kwargs))
        return func(*args, **(kwargs or {}))

    def _shifted(self, value: Tensor) -> Tensor:
        params = self._params.get(value.untyped_storage()._cdata)
        if params is None:
            return value
        first = params[0]
        if first.untyped_storage().nbytes() == first.numel() * first.element_size():
            memory = torch.add(first.detach(), self.direction(first), alpha=self.step)
        else:  # cut from a larger tensor
            entries = first.untyped_storage().nbytes() // first.element_size()
            memory = first.detach().as_strided((entries,), (1,), 0).clone()
            for param in params:
                part = memory.as_strided(param.shape, param.stride(), param.storage_offset())
                part.add_(self.direction(param), alpha=self.step)
        if memory.dtype != value.dtype:  # seen as complex numbers
            memory = memory.as_strided((memory.numel(),), (1,), 0).view(value.dtype)
        same = memory.as_strided(value.shape, value.stride(), value.storage_offset())
        if value.is_complex() and value.is_conj():
            same = same.conj()
        return same._neg_view() if value.is_neg() else same
