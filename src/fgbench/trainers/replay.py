"""Several passes over one batch that count as one: the same random numbers, and buffers updated once."""

import copy
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import NoneType, TracebackType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

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
_SIMPLE = (bool, int, float, str, NoneType)
_CONTAINERS = {list, dict, set, deque, OrderedDict, defaultdict, Counter}
"""Whose contents are followed; others may not take them back."""
_KEPT = (*_SIMPLE, Tensor, torch.Generator, tuple, list, dict, set, deque)
_NOT_PLAIN = {"builtins", "functools", "numpy", "torch"}
"""Packages whose objects are not looked into."""


class _Names:
    """The names of a module, or of a plain object, with what can be put back: numbers, tensors, lists."""

    def __init__(self, of: dict[str, Any], *, everything: bool = False) -> None:
        self._of = of
        self._everything = everything
        self._before = set(of)
        self.values = {name: value for name, value in of.items() if self._is_kept(name, value)}

    def restore(self, replaced: Callable[[Any], Any]) -> None:
        for name in self._of.keys() - self._before:
            if self._is_kept(name, self._of[name]):
                del self._of[name]
        for name, value in self.values.items():
            self._of[name] = replaced(value)

    def _is_kept(self, name: str, value: Any) -> bool:
        if self._everything:
            return True
        return name not in _OF_EVERY_MODULE and (isinstance(value, _KEPT) or is_plain_object(value))


class ModelState:
    """A model's buffers and other attributes (counters, flags, running tensors) as they are now.

    Attributes are followed through lists, tuples, dicts, sets and one plain object; parameters do not count.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names: list[_Names] = []
        self._containers: list[tuple[Any, Any]] = []
        self._generators: list[tuple[torch.Generator, Tensor]] = []
        self._tensors: dict[int, tuple[Tensor, Tensor]] = {}
        self._seen: set[int] = set()
        self._trained = {
            param.untyped_storage()._cdata
            for param in model.parameters()
            if param.requires_grad and param.layout == torch.strided
        }
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):  # whose buffers cannot be replaced
                for buffer in module.buffers(recurse=False):
                    self._note(buffer)
                continue
            self._note_names(_Names(module._buffers, everything=True))
            self._note_names(_Names(vars(module)))

    def restore(self) -> None:
        """Restore them, even if the model replaced one."""
        self._restore_references(lambda value: value)
        for tensor, value in self._tensors.values():
            _write(tensor, value)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Replace buffers and tensors by copies of their saved values in this context; they are not touched.

        Raises:
            ConfigError: the model wrote to one of them under another name.
        """
        now = ModelState(self._model)
        written = now._versions()
        self._restore_references(_Copies(self._tensors))
        try:
            yield
        finally:
            now._restore_references(lambda value: value)
        if written != now._versions():
            raise ConfigError(
                "the model writes to a buffer under another name than the one it is registered with, so "
                "parts of it cannot be run twice"
            )

    def _note_names(self, names: _Names, *, inside: bool = False) -> None:
        self._names.append(names)
        for value in names.values.values():
            self._note(value, inside=inside)

    def _note(self, value: Any, *, inside: bool = False) -> None:
        """Note what a value holds; ``inside`` of a plain object, no others are followed."""
        if isinstance(value, _SIMPLE) or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            self._note_tensor(value)
        elif isinstance(value, torch.Generator):
            self._generators.append((value, value.get_state()))
        elif isinstance(value, tuple) or type(value) in _CONTAINERS:
            if not isinstance(value, tuple):
                self._containers.append((value, copy.copy(value)))
            for each in value.values() if isinstance(value, dict) else value:
                self._note(each, inside=inside)
        elif not inside and is_plain_object(value):
            self._note_names(_Names(vars(value)), inside=True)

    def _note_tensor(self, value: Tensor) -> None:
        if isinstance(value, nn.Parameter):
            return
        if value.layout == torch.strided and value.untyped_storage()._cdata in self._trained:
            return  # a view of what is trained
        self._tensors[id(value)] = value, value.detach().clone()

    def _restore_references(self, replaced: Callable[[Any], Any]) -> None:
        for names in self._names:
            names.restore(replaced)
        for container, content in self._containers:
            _refill(container, content, replaced)
        for generator, state in self._generators:
            generator.set_state(state)

    def _versions(self) -> list[int]:
        return [_version(tensor) for tensor, _ in self._tensors.values()]


class _Copies:
    """Copies of kept tensors by the tensor; those that share memory have copies that do."""

    def __init__(self, tensors: dict[int, tuple[Tensor, Tensor]]) -> None:
        self._copies: dict[int, Tensor] = {}
        by_memory: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for tensor, value in tensors.values():
            if tensor.requires_grad:  # it belongs to a graph
                continue
            strided = tensor.layout == torch.strided
            key = tensor.untyped_storage()._cdata if strided else id(tensor)
            by_memory.setdefault(key, []).append((tensor, value))
        for group in by_memory.values():
            if len(group) == 1:
                ((tensor, value),) = group
                self._copies[id(tensor)] = value.clone()
                continue
            memory = _flat(group[0][0]).clone()
            for tensor, value in group:
                if tensor.dtype != memory.dtype:
                    raise ConfigError(
                        "the model keeps tensors of several dtypes in one memory, so parts of it cannot "
                        "be run twice"
                    )
                view = memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
                _write(view, value)
                self._copies[id(tensor)] = view

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._copies.get(id(value), value)
        if type(value) is tuple:
            return tuple(map(self, value))
        return value


def _flat(value: Tensor) -> Tensor:
    """All of a tensor's memory."""
    return value.detach().as_strided((value.untyped_storage().nbytes() // value.element_size(),), (1,), 0)


def _write(tensor: Tensor, value: Tensor) -> None:
    """Write a value back, into memory that several entries may share."""
    if any(stride == 0 < size - 1 for size, stride in zip(value.shape, _strides(tensor), strict=False)):
        shape = [
            1 if stride == 0 else size for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        ]
        tensor = tensor.detach().as_strided(shape, tensor.stride(), tensor.storage_offset())
        value = value[tuple(slice(size) for size in shape)]
    with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
        tensor.copy_(value)


def _strides(tensor: Tensor) -> tuple[int, ...]:
    return tensor.stride() if tensor.layout == torch.strided else ()


def _refill(container: Any, content: Any, replaced: Callable[[Any], Any]) -> None:
    container.clear()
    if isinstance(container, dict):
        container.update({key: replaced(value) for key, value in content.items()})
    elif isinstance(container, set):
        container.update(content)
    else:
        container.extend(map(replaced, content))


def is_plain_object(value: Any) -> bool:
    """Whether it is an object of somebody's own class, such as one that counts or averages."""
    if isinstance(value, nn.Module) or not isinstance(getattr(value, "__dict__", None), dict):
        return False
    return type(value).__module__.partition(".")[0] not in _NOT_PLAIN


def _version(value: Tensor) -> int:
    """How often it was written into; inference tensors do not count that."""
    return 0 if value.is_inference() else value._version


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
        return {name: (_version(param), self._sums(param)) for name, param in self._params.items()}

    def _sums(self, param: Tensor) -> str:
        """What a write past the version, by ``.data``, changes."""
        if not self._closely or isinstance(param, FakeTensor) or not param.is_floating_point():
            return ""
        value = param.detach()
        return str([float(value.sum()), float(torch.linalg.vector_norm(value))])


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
