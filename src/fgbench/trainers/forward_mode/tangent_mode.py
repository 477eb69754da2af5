"""The dispatch mode that carries tangents along with every ATen operation that a model runs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fgbench.trainers.forward_mode.operations import signature, tensors
from fgbench.trainers.forward_mode.shadows import RefusedError, Shadows
from fgbench.trainers.forward_mode.torch_formula import apply_torch_formula

aten = torch.ops.aten
_NEW_MEMORY = {
    aten.resize_.default,
    aten.set_.source_Storage,
    aten.set_.source_Tensor,
    aten.set_.source_Storage_storage_offset,
}

TangentRule = Callable[..., Any]
Observer = Callable[[Any, tuple[Any, ...], dict[str, Any]], None]


class TangentMode(TorchDispatchMode):
    """Within, every ATen operation carries K tangents along with its values.

    Runs with gradients enabled and nothing that requires one, so that ``torch.is_grad_enabled()`` says what
    the model itself asked for: what it computes under ``no_grad``, and what it detaches, has no tangent.

    Args:
        shadows: where the tangents are.
        rules: by operation: ``rule(shadows, func, *args, **kwargs)`` returns the values, having ``put``
            their tangents, or NotImplemented. Without a rule: torch's forward formula of that operation.

    Attributes:
        observers: called with every operation, and every ``torch.autograd.Function``, before it runs.
        handling: whether an operation is under way, below the model's own code.
        in_function: whether a function with a backward pass of its own runs whose arguments have none.
    """

    def __init__(self, shadows: Shadows, rules: Mapping[Any, TangentRule]) -> None:
        super().__init__()
        self.shadows = shadows
        self.rules = rules
        self.observers: list[Observer] = []
        self.handling = False
        self.in_function = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.handling = True
        try:
            return self._handle(func, args, kwargs or {})
        finally:
            self.handling = False

    def _handle(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for observe in self.observers:
            observe(func, args, kwargs)
        view, written = signature(func)
        if self.is_in_unseen_function() and any(map(self.shadows.has, tensors(args, kwargs))):
            raise RefusedError(
                "a function with a backward pass of its own is called by another name of its apply, as in "
                "square = Square.apply: call Square.apply(...) where it is used"
            )
        if view:
            if func in _NEW_MEMORY and self.shadows.has(args[0]):
                raise RefusedError("the model gives a tensor other memory")
            result = func(*args, **kwargs)
            source = args[0] if args and isinstance(args[0], Tensor) else None
            if (
                func is aten.detach.default
                or not torch.is_grad_enabled()
                or (source is not None and self.shadows.is_detached(source))
            ):
                self.shadows.mark_detached(result)
            return result
        # Without gradients a model computes constants; what it writes then keeps its tangent, as in backprop.
        if not torch.is_grad_enabled() or not any(map(self.shadows.has, tensors(args, kwargs))):
            return func(*args, **kwargs)
        rule = self.rules.get(func)
        if rule is not None and (result := rule(self.shadows, func, *args, **kwargs)) is not NotImplemented:
            return result
        return apply_torch_formula(self.shadows, func, written, args, kwargs)

    def is_in_unseen_function(self) -> bool:
        """Whether a ``torch.autograd.Function`` runs whose ``apply`` was taken before this pass began.

        Only there is forward AD off: ``no_grad`` leaves it on.
        """
        forward_ad = torch._C._is_fwd_grad_enabled()
        return not (forward_ad or self.in_function or torch.is_inference_mode_enabled())
