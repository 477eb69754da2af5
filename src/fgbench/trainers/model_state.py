"""What a model keeps besides its parameters, to be put back: buffers, running tensors, counters, lists."""

import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from fgbench.errors import ConfigError

_OF_EVERY_MODULE = {name for name, value in vars(nn.Module()).items() if not isinstance(value, bool)}
SIMPLE = (bool, int, float, str, NoneType)
"""Types of values that nothing can be written into."""
_CONTAINERS: tuple[Any, ...] = (OrderedDict, dict, list, set, deque)
_KEPT = (*SIMPLE, Tensor, tuple, *_CONTAINERS)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the size of an entry in bytes."""
_NOT_PLAIN = {"builtins", "functools", "logging", "numpy", "torch"}
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
        if self._everything or name in _OF_EVERY_MODULE:
            return self._everything
        return isinstance(value, _KEPT) or is_array(value) or is_random(value) or is_plain_object(value)


class ModelState:
    """A model's buffers and other attributes (counters, flags, running tensors) as they are now.

    Attributes are followed through lists, tuples, dicts, sets, arrays and one plain object. Parameters do not
    count, nor what is kept elsewhere: in objects within objects, ``__slots__``, closures, globals.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names: list[_Names] = []
        self._containers: list[tuple[Any, Any]] = []
        self._others: list[Callable[[], Any]] = []
        self._tensors: dict[int, tuple[Tensor, Tensor]] = {}
        self._seen: set[int] = set()
        self._scripted = False
        self._trained = {
            param.untyped_storage()._cdata
            for param in model.parameters()
            if param.requires_grad and param.layout == torch.strided
        }
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):  # whose buffers cannot be replaced
                self._others.append(partial(module.train, module.training))
                for buffer in module.buffers(recurse=False):
                    self._scripted = True
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
            ConfigError: the model wrote to one of them under another name, or a part of it is scripted.
        """
        if self._scripted:
            raise ConfigError(
                "a scripted module (torch.jit) has buffers, so it cannot be run twice with a graph: use the "
                "module it was made from"
            )
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
        if isinstance(value, SIMPLE) or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            self._note_tensor(value)
        elif is_random(value):
            set_state, state = random_state(value)
            self._others.append(partial(set_state, state))
        elif is_array(value):
            if value.flags.writeable:
                self._others.append(partial(value.__setitem__, ..., value.copy()))
        elif isinstance(value, (tuple, *_CONTAINERS)):
            if not isinstance(value, tuple):
                content: Any = dict if isinstance(value, dict) else list
                self._containers.append((value, content(value)))
            held: Any = value
            for each in held.values() if isinstance(held, dict) else held:
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
            refill(container, content, replaced)
        for restore in self._others:
            restore()

    def _versions(self) -> list[int]:
        return [version(tensor) for tensor, _ in self._tensors.values()]


class _Copies:
    """Copies of kept tensors by the tensor; those that share memory have copies that do."""

    def __init__(self, tensors: dict[int, tuple[Tensor, Tensor]]) -> None:
        self._copies: dict[int, Tensor] = {}
        by_memory: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for tensor, value in tensors.values():
            if not tensor.requires_grad:  # else it belongs to a graph
                strided = tensor.layout == torch.strided
                key = tensor.untyped_storage()._cdata if strided else id(tensor)
                by_memory.setdefault(key, []).append((tensor, value))
        for group in by_memory.values():
            if len(group) == 1:
                ((tensor, value),) = group
                self._copies[id(tensor)] = value.clone()
                continue
            memory = group[0][0].untyped_storage().clone()
            for tensor, value in group:
                view = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
                view.set_(memory, tensor.storage_offset(), tensor.shape, tensor.stride())
                view = view.conj() if tensor.is_conj() else view
                _write(view, value)
                self._copies[id(tensor)] = view

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._copies.get(id(value), value)
        return tuple(map(self, value)) if type(value) is tuple else value


def _write(tensor: Tensor, value: Tensor) -> None:
    """Write a value back where it has changed, into memory that several entries may share."""
    if tensor.device.type == "cpu" and _equal(tensor, value):  # it may be a file that cannot be written
        return
    if tensor.layout == torch.strided and 0 in tensor.stride():
        shape = [
            1 if stride == 0 else size for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        ]
        tensor = tensor.detach().as_strided(shape, tensor.stride(), tensor.storage_offset())
        value = value[tuple(slice(size) for size in shape)]
    with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
        tensor.copy_(value)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether they are equal bit for bit; False where that is not known."""
    bits = _BITS.get(one.element_size())
    known = one.layout == torch.strided and not (one.is_quantized or one.is_conj() or one.is_neg())
    if bits is None or not known or isinstance(one, FakeTensor):
        return False
    return torch.equal(one.detach().view(bits), other.view(bits))


def refill(container: Any, content: Any, replaced: Callable[[Any], Any] = lambda value: value) -> None:
    """Let a list, dict, set or deque hold this instead, past whatever its class makes of that."""
    kind = next(each for each in _CONTAINERS if isinstance(container, each))
    kind.clear(container)
    if issubclass(kind, dict):
        for key, value in content.items():
            kind.__setitem__(container, key, replaced(value))
    elif kind is set:
        set.update(container, content)
    else:
        kind.extend(container, map(replaced, content))


def is_array(value: Any) -> bool:
    """Whether it is a numpy array."""
    return type(value).__module__ == "numpy" and type(value).__name__ == "ndarray"


def is_random(value: Any) -> bool:
    """Whether it is a source of random numbers, of torch, Python or numpy."""
    kind = type(value)
    of_numpy = kind.__module__.startswith("numpy.random") and kind.__name__ in ("Generator", "RandomState")
    return of_numpy or isinstance(value, torch.Generator | random.Random)


def random_state(value: Any) -> tuple[Callable[[Any], Any], Any]:
    """How to set the state of a source of random numbers, and its state."""
    if isinstance(value, random.Random):
        return value.setstate, value.getstate()
    if hasattr(value, "set_state"):
        return value.set_state, value.get_state()
    return partial(setattr, value.bit_generator, "state"), value.bit_generator.state


def is_plain_object(value: Any) -> bool:
    """Whether it is an object of somebody's own class, such as one that counts or averages."""
    if isinstance(value, nn.Module) or not isinstance(getattr(value, "__dict__", None), dict):
        return False
    return type(value).__module__.partition(".")[0] not in _NOT_PLAIN


def version(value: Tensor) -> int:
    """How often it was written into; inference tensors do not count that."""
    return 0 if value.is_inference() else value._version
