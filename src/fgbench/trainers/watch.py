"""What a forward pass does with its tensors, watched once: where it uses parameters, what it reads last.

The passes after it free a layer's input as soon as it has been read, and take parameters whose tangents are
cheap only where that is known to be right.
"""

import sys
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

INERT = {
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "layout")
    ),
    *(
        getattr(Tensor, name)
        for name in ("size", "dim", "numel", "stride", "is_floating_point", "is_contiguous")
    ),
}  # ask a tensor what it is: a parameter used in no other way has not been used


class Call(NamedTuple):
    """A call of a torch function in a forward pass, as it is seen every time.

    Attributes:
        func: the function.
        references: how many there were to its first argument.
        last_use: whether that argument was gone when the next function was called.
    """

    func: Callable[..., Any]
    references: int
    last_use: bool


class Watch(TorchFunctionMode):
    """Notes the calls of a forward pass, and which parameters are used only as weights of known layers.

    Attributes:
        calls: all of them, once the block is left.
        weights: ``id`` of what was the weight of a linear layer or convolution.
        others: ``id`` of parameters that were used in other ways.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: set[int] = set()
        self.others: set[int] = set()
        self.calls: list[Call] = []
        self._last: tuple[Callable[..., Any], int, Any] | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self._close()
        count = references(args)
        reference = weakref.ref(args[0]) if args and isinstance(args[0], Tensor) else None
        self._last = (func, count, reference)
        values = dict(enumerate(args)) | (kwargs or {})
        if func in (F.linear, F.conv2d):
            self.weights.add(id(values.pop(1, values.pop("weight", None))))
        if func not in INERT:
            self.others.update(id(value) for value in values.values() if isinstance(value, nn.Parameter))
        return func(*args, **(kwargs or {}))

    def saw(self, param: nn.Parameter) -> bool:
        """Whether a torch function was given the parameter directly."""
        return id(param) in self.weights or id(param) in self.others

    def only_weight(self, param: nn.Parameter) -> bool:
        """Whether the parameter was nothing but the weight of linear layers or convolutions."""
        return id(param) in self.weights and id(param) not in self.others

    def __exit__(self, *error: Any) -> None:
        self._close()
        super().__exit__(*error)

    def _close(self) -> None:
        if self._last is not None:
            func, count, reference = self._last
            self.calls.append(Call(func, count, reference is not None and reference() is None))


def references(args: tuple[Any, ...]) -> int:
    """How many references there are to the first argument of a call."""
    return sys.getrefcount(args[0]) if args else 0
