"""Several passes over one batch that count as one: the same random numbers, and buffers updated once."""

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from fgbench.errors import ConfigError
from fgbench.trainers.model_state import ModelState, version


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


@contextmanager
def restoring_state(model: nn.Module) -> Iterator[None]:
    """Restore random states, buffers, counters and flags afterwards."""
    states = RandomStates(), ModelState(model)
    try:
        yield
    finally:
        for each in states:
            each.restore()


_LOOKED_AT: WeakSet[nn.Module] = WeakSet()
"""Models whose constant parameters were compared entry by entry after a pass; once, since that takes time."""


class _Constants:
    """The parameters that are not trained, which no pass may change."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._params = {name: param for name, param in model.named_parameters() if not param.requires_grad}
        self._closely = model not in _LOOKED_AT
        self._before = self._look()

    def refuse_changes(self) -> None:
        """Refuse a model that wrote to one of them; see :class:`OnePass`."""
        for (name, before), now in zip(self._before.items(), self._look().values(), strict=True):
            if now != before:
                raise ConfigError(
                    f"the model writes to its parameter {name!r} in its forward pass, so it cannot be run "
                    f"twice: make it a buffer"
                )
        _LOOKED_AT.add(self._model)

    def _look(self) -> dict[str, Any]:
        return {name: (version(param), self._sums(param)) for name, param in self._params.items()}

    def _sums(self, param: Tensor) -> str:
        """What a write past the version, by ``.data``, changes."""
        seen = (
            param.layout == torch.strided and param.is_floating_point() and not isinstance(param, FakeTensor)
        )
        if not self._closely or not seen:
            return ""
        value = param.detach().float() if param.element_size() == 1 else param.detach()
        return str([float(value.sum()), float(torch.linalg.vector_norm(value))])


class OnePass:
    """``with one_pass:`` around every pass of a step: all start alike, and only the first has side effects.

    Every later pass starts with the random states, buffers, counters and flags that the first started with,
    and restores what it found, as far as :class:`ModelState` follows what a model keeps; so all passes
    together draw, and update running statistics, as one pass does.

    Args:
        model: whose buffers.
        passes: how many there will be; with one, nothing is saved.
        inputs: of every pass, which the model must not write into.
        with_graph: a graph outlives its pass, so no buffer may be written to at the end of it: copies replace
            the buffers. Otherwise a graph has to be used within its pass.

    Raises:
        ConfigError: at the end of a pass, where the model wrote into its inputs, or into a parameter that is
        not trained.

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
        self._constants: _Constants | None = None
        self._stack = ExitStack()

    def __enter__(self) -> None:
        if not self._keep:
            return
        if self._first is None:
            self._first = RandomStates(), ModelState(self._model)
            self._constants = _Constants(self._model)
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
        constants, self._constants = self._constants, None
        if constants is not None and error is None:
            constants.refuse_changes()
        written = self._inputs is not None and self._inputs._version != self._version
        if self._keep and written and error is None:
            raise ConfigError(
                "the model modifies its inputs in place, and this step passes them through it several "
                "times: let it work on a copy"
            )
