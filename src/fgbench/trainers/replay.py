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
_CHANGING = (Tensor, torch.Generator, list, dict, set, deque)
_KEPT = (bool, int, float, str, NoneType, *_CHANGING)


class _Attributes:
    """What one module keeps besides buffers, as it is now: numbers, tensors, lists and the like."""

    def __init__(self, module: nn.Module) -> None:
        self._of = vars(module)
        self._names = set(self._of)
        self._values = {
            name: value
            for name, value in self._of.items()
            if name not in _OF_EVERY_MODULE and isinstance(value, _KEPT)
        }
        self._contents = [
            (name, value, _content(value))
            for name, value in self._values.items()
            if isinstance(value, _CHANGING)
        ]

    def restore(self, *, copies: bool = False) -> None:
        """Restore them; with ``copies``, tensors without a graph by copies, so that they are not touched."""
        for name in self._of.keys() - self._names:
            if isinstance(self._of[name], _KEPT):
                del self._of[name]
        self._of.update(self._values)
        for name, value, content in self._contents:
            if not copies or not isinstance(value, Tensor):
                _refill(value, content)
            elif not value.requires_grad:
                self._of[name] = content[1].clone()


def _content(value: Any) -> Any:
    """What restores an attribute that can be changed in place; of a tensor also when it was."""
    if isinstance(value, torch.Generator):
        return value.get_state()
    return (_version(value), value.detach().clone()) if isinstance(value, Tensor) else copy.copy(value)


def _refill(value: Any, content: Any) -> None:
    if isinstance(value, torch.Generator):
        value.set_state(content)
    elif isinstance(value, Tensor):
        if content[0] != _version(value):
            with torch.no_grad():
                value.copy_(content[1])
    else:
        value.clear()
        (value.update if isinstance(value, dict | set) else value.extend)(content)


def _version(value: Tensor) -> int:
    """How often it was written into; inference tensors do not count that."""
    return 0 if value.is_inference() else value._version


class ModelState:
    """A model's buffers and other attributes (counters, flags, running tensors) as they are now."""

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
        for each in self._attributes:
            each.restore()

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Replace buffers and tensors by copies of their saved values in this context; they are not touched.

        Raises:
            ConfigError: the model wrote to one of them under another name.
        """
        now = ModelState(self._model)
        versions = [buffer._version for _, _, buffer, _ in now._kept]
        copies: dict[int, Tensor] = {}
        for buffers, name, buffer, value in self._kept:
            buffers[name] = copies.setdefault(id(buffer), value.clone())
        for each in self._attributes:
            each.restore(copies=True)
        try:
            yield
        finally:
            for buffers, name, buffer, _ in now._kept:
                buffers[name] = buffer
            for each in now._attributes:
                each.restore()
        if versions != [buffer._version for _, _, buffer, _ in now._kept]:
            raise ConfigError(
                "the model writes to a buffer under another name than the one it is registered with, so "
                "parts of it cannot be run twice"
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
