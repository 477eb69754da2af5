"""Several passes over one batch that count as one: the same random numbers, and buffers updated once."""

import copy
import random
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import NoneType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from fgbench.errors import ConfigError


class RandomStates:
    """The states of every global generator that a model may draw from, to be restored."""

    def __init__(self) -> None:
        self._torch = torch.default_generator.get_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self._python = random.getstate()
        numpy = sys.modules.get("numpy")
        self._numpy: Any = numpy.random.get_state() if numpy is not None else None

    def restore(self) -> None:
        """Restore them."""
        torch.default_generator.set_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)


_OF_EVERY_MODULE = {name for name, value in vars(nn.Module()).items() if not isinstance(value, bool)}
_CONTAINERS = (list, dict, set, deque)
_ATTRIBUTES = (bool, int, float, str, NoneType, Tensor, torch.Generator, *_CONTAINERS)


class _Attributes:
    """What one module keeps besides buffers, as it is now: numbers, tensors, lists and the like."""

    def __init__(self, module: nn.Module) -> None:
        self._of = vars(module)
        self._kept = {name: (value, _content(value)) for name, value in self._own().items()}

    def restore(self) -> str:
        """Restore them; returns the name of one that was written into, which cannot be, or nothing."""
        for name in self._own().keys() - self._kept.keys():
            del self._of[name]
        written = ""
        for name, (value, content) in self._kept.items():
            self._of[name] = value
            if isinstance(value, torch.Generator):
                value.set_state(content)
            elif isinstance(value, list):
                value[:] = content
            elif isinstance(value, dict | set):
                value.clear()
                value.update(content)
            elif isinstance(value, deque):
                value.clear()
                value.extend(content)
            elif isinstance(value, Tensor) and content != _content(value):
                written = name
        return written

    def _own(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in self._of.items()
            if isinstance(value, _ATTRIBUTES) and name not in _OF_EVERY_MODULE
        }


def _content(value: Any) -> Any:
    """What tells whether an attribute's value has changed, or restores it."""
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, Tensor):
        return None if value.is_inference() else value._version
    return copy.copy(value) if isinstance(value, _CONTAINERS) else None


class ModelState:
    """A model's buffers and other attributes (counters, flags, running tensors) as they are now.

    Raises:
        ConfigError: on restoring, where a tensor that is no buffer was written into.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept: list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]] = [
            (module._buffers, name, buffer, buffer.clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._attributes = [_Attributes(module) for module in model.modules()]

    def restore(self) -> None:
        """Restore them, even if the model replaced one."""
        for buffers, name, buffer, value in self._kept:
            buffers[name] = buffer
            with torch.no_grad():
                buffer.copy_(value)
        self._restore_attributes()

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Replace the buffers by copies of their saved values inside this context; they are not touched.

        Raises:
            ConfigError: the model wrote to one of them under another name.
        """
        now = ModelState(self._model)
        versions = [buffer._version for _, _, buffer, _ in now._kept]
        copies: dict[int, Tensor] = {}
        for buffers, name, buffer, value in self._kept:
            buffers[name] = copies.setdefault(id(buffer), value.clone())
        self._restore_attributes()
        try:
            yield
        finally:
            for buffers, name, buffer, _ in now._kept:
                buffers[name] = buffer
            now._restore_attributes()
        if versions != [buffer._version for _, _, buffer, _ in now._kept]:
            raise ConfigError(
                "the model writes to a buffer under another name than the one it is registered with, so "
                "parts of it cannot be run twice"
            )

    def _restore_attributes(self) -> None:
        written = [name for each in self._attributes if (name := each.restore())]
        if written:
            raise ConfigError(
                f"the model writes into its tensor {written[0]!r}, which is no buffer, so parts of it cannot "
                "be run twice: give it to register_buffer"
            )


@contextmanager
def restoring_state(model: nn.Module) -> Iterator[None]:
    """Restore random states, buffers, counters and flags afterwards."""
    states = RandomStates(), ModelState(model)
    try:
        yield
    finally:
        for each in states:
            each.restore()


class OnePass:
    """``with one_pass:`` around every pass of a step: all start alike, and only the first has side effects.

    Every later pass starts with the random states, buffers, counters and flags that the first started with,
    and restores what it found; so all passes together draw, and update running statistics, as one pass does.

    Args:
        model: whose buffers.
        passes: how many there will be; with one, nothing is saved.
        inputs: of every pass, which the model must not write into.
        with_graph: a graph outlives its pass, so no buffer may be written to at the end of it: copies replace
            the buffers. Otherwise a graph has to be used within its pass.

    Raises:
        ConfigError: at the end of a pass, where the model wrote into its inputs.

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

    def __init__(
        self, model: nn.Module, passes: int = 2, inputs: Tensor | None = None, *, with_graph: bool = False
    ) -> None:
        self._model = model
        self._keep = passes > 1
        self._with_graph = with_graph
        self._inputs = inputs
        self._version = 0 if inputs is None else inputs._version
        self._first: tuple[RandomStates, ModelState] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> None:
        if not self._keep:
            return
        if self._first is None:
            self._first = RandomStates(), ModelState(self._model)
            return
        states, before = self._first
        if self._with_graph:
            self._stack.callback(RandomStates().restore)
            self._stack.enter_context(before.swapped_in())
        else:
            self._stack.enter_context(restoring_state(self._model))
            before.restore()
        states.restore()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)
        written = self._inputs is not None and self._inputs._version != self._version
        if self._keep and written and error is None:
            raise ConfigError(
                "the model modifies its inputs in place, and this step passes them through it several "
                "times: let it work on a copy"
            )
