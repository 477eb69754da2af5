"""One forward pass along given tangents, on any model: right, or refused in one line."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from traceback import walk_tb
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fgbench.errors import ConfigError
from fgbench.models.layers import handing_over_to
from fgbench.trainers.forward_mode.factors import Factors
from fgbench.trainers.forward_mode.refusals import (
    backprop_semantics,
    constant_parameters,
    refuse_hidden,
    refuse_hooks,
    run_eagerly,
)
from fgbench.trainers.forward_mode.rules import RULES
from fgbench.trainers.forward_mode.shadows import RefusedError, Shadows
from fgbench.trainers.forward_mode.tangent_mode import Observer, TangentMode

REMEDY = "train this model with backprop or zeroth-order, or write this part in operations that have one"


class ForwardPass:
    """Within, everything the model computes carries K directional derivatives along.

    Parameters (or inputs) get tangents; run the model and the loss inside, and ask for the tangents of what
    came out: of the loss, d_k = <g, v_k>; of the outputs, J v_k. What is computed under ``no_grad``, or
    detached, counts as constant, as it does for backprop. The pass leaves no trace: parameters, hooks and
    buffers are as after any forward pass (see ``OnePass`` for several passes over one batch).

    Args:
        model: whose parameters have the tangents; refused where backprop's gradient is not a derivative.
        tangents: by parameter (or input tensor), shape (K, ...): full tangents, or their ``Factors``. What
            has none is a constant.
        count: K.
        observers: called with every ATen operation (and ``autograd.Function``) before it runs.
        half: take float32 values' tangents in bfloat16; off by 0.3 to 1.5 % (shipped models).

    Raises:
        ConfigError: on the way in or out: forward mode would not give this model's derivative; names the
            operation, the module, and what to do.

    Example:
        >>> model, inputs = nn.Linear(3, 2), torch.ones(4, 3)
        >>> tangents = {param: torch.ones(1, *param.shape) for param in model.parameters()}
        >>> with ForwardPass(model, tangents) as forward:
        ...     outputs = model(inputs)
        ...     change = forward.tangent_of(outputs)
        >>> change.shape, float(change[0, 0, 0])
        (torch.Size([1, 4, 2]), 4.0)
    """

    def __init__(
        self,
        model: nn.Module,
        tangents: Mapping[Tensor, Tensor | Factors],
        count: int = 1,
        observers: tuple[Observer, ...] = (),
        *,
        half: bool = False,
    ) -> None:
        self.model = model
        self.shadows = Shadows(count, half=half)
        self.mode = TangentMode(self.shadows, RULES)
        self._tangents = tangents
        self._observers = observers
        self._stack = ExitStack()

    def __enter__(self) -> "ForwardPass":
        refuse_hooks(self.model)
        refuse_hidden(self.model, self.model.parameters())
        with self._stack, self._named_refusals():
            self._stack.enter_context(constant_parameters(self.model))
            with torch.no_grad():
                for value, tangent in self._tangents.items():
                    self.shadows.give(value, tangent)
            self._tangents = {}
            self.mode.observers += self._observers
            self._stack.enter_context(run_eagerly())
            self._stack.enter_context(backprop_semantics(self.mode))
            self._stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            self._stack.enter_context(torch.enable_grad())
            if not self._observers:  # which may keep what they see
                self._stack.enter_context(handing_over_to(self._disposable))
            self._stack.enter_context(self.mode)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        self.shadows.clear()
        self.mode.observers.clear()
        if isinstance(error, RefusedError):
            raise ConfigError(refusal(error, self.model)) from error
        if isinstance(error, RuntimeError) and _is_in_transform(traceback):
            why = RefusedError(
                f"it uses torch.func, which does not go with this pass ({str(error).splitlines()[0]})"
            )
            raise ConfigError(refusal(why.with_traceback(traceback), self.model)) from error

    def _disposable(self, value: Tensor) -> AbstractContextManager[None]:
        return self.shadows.disposable(None if self.mode.observers else value)

    def tangent_of(self, value: Tensor) -> Tensor:
        """The K directional derivatives of something computed within, shape (K, ...); a copy."""
        with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
            tangent = self.shadows.get(value)
            if tangent is None:
                return torch.zeros(self.shadows.count, *value.shape, dtype=value.dtype, device=value.device)
            return tangent.to(value.dtype, copy=True)

    @contextmanager
    def _named_refusals(self) -> Iterator[None]:
        try:
            yield
        except RefusedError as error:
            raise ConfigError(refusal(error, self.model)) from error


def _is_in_transform(traceback: TracebackType | None) -> bool:
    """Whether an error came up within one of ``torch.func``'s."""
    frames = (frame for frame, _ in walk_tb(traceback))
    return any(frame.f_globals.get("__name__", "").startswith("torch._functorch.") for frame in frames)


def refusal(error: RefusedError, model: nn.Module) -> str:
    """One line: in which module (from the traceback), in which operation, why, and what to do."""
    names = {id(module): name for name, module in model.named_modules()}
    where, traceback = "", error.__traceback__
    while traceback is not None:
        module = traceback.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module) and names.get(id(module)):
            where = f" in {names[id(module)]!r} ({type(module).__name__})"
        operation = traceback.tb_frame.f_locals.get("func")
        traceback = traceback.tb_next
    name = f"{operation}: " if isinstance(operation, torch._ops.OpOverload) else ""
    return f"forward mode cannot differentiate this model{where}: {name}{error}; {REMEDY}"
