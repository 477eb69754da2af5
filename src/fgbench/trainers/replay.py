"""Several passes over one batch that count as one: the same chance in each, and buffers that move once."""

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn


class RandomStates:
    """The states of every global generator that a model may draw from, to be put back."""

    def __init__(self) -> None:
        self._torch = torch.default_generator.get_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self._python = random.getstate()
        numpy = sys.modules.get("numpy")
        self._numpy: Any = numpy.random.get_state() if numpy is not None else None

    def restore(self) -> None:
        """Put them back."""
        torch.default_generator.set_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)


class ModelState:
    """A model's buffers and plain attributes (counters, flags) as they are now."""

    def __init__(self, model: nn.Module) -> None:
        self._kept: list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]] = [
            (module._buffers, name, buffer, buffer.clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._plain: list[tuple[dict[str, Any], str, Any]] = [
            (module.__dict__, name, value)
            for module in model.modules()
            for name, value in module.__dict__.items()
            if isinstance(value, bool | int | float | str)
        ]

    def restore(self) -> None:
        """Put them back, also where the model replaced one."""
        for buffers, name, buffer, value in self._kept:
            buffers[name] = buffer
            with torch.no_grad():
                buffer.copy_(value)
        for attributes, name, value in self._plain:
            attributes[name] = value


@contextmanager
def restoring_state(model: nn.Module) -> Iterator[None]:
    """Afterwards random states, buffers, counters and flags are as they were before."""
    states = RandomStates(), ModelState(model)
    try:
        yield
    finally:
        for each in states:
            each.restore()


class OnePass:
    """``with one_pass:`` around every pass of a step: all begin alike, and only the first leaves its traces.

    Every later pass begins with the random states, buffers, counters and flags that the first began with, and
    puts back what it found; so all passes together draw, and move running statistics, as one pass does. A
    graph has to be used up within its pass, since buffers are written to at the end of it.

    Args:
        model: whose buffers.
        passes: how many there will be; with one, nothing is kept.

    Example:
        >>> model, inputs = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()), torch.randn(4, 3)
        >>> one_pass = OnePass(model, 2)
        >>> with one_pass:
        ...     first = model(inputs)
        >>> with one_pass:
        ...     second = model(inputs)
        >>> bool((first == second).all()), int(model[0].num_batches_tracked)
        (True, 1)
    """

    def __init__(self, model: nn.Module, passes: int = 2) -> None:
        self._model = model
        self._keep = passes > 1
        self._first: tuple[RandomStates, ModelState] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> None:
        if not self._keep:
            return
        if self._first is None:
            self._first = RandomStates(), ModelState(self._model)
            return
        self._stack.enter_context(restoring_state(self._model))
        for each in self._first:
            each.restore()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
