"""What a model keeps besides its ``state_dict``, such as running tensors and counters, to resume it too."""

import hashlib
import pickle
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fgbench.trainers.model_state import SIMPLE, is_array, is_plain_object, is_random, random_state, refill

_OF_EVERY_MODULE = {"training", *vars(nn.Module())}
_STORED = {*SIMPLE, torch.Size, torch.device, torch.dtype}
"""What a state file can hold as it is."""
_DEQUE, _BUFFER = "deque of at most", "buffer"
"""Keys of what stands for these."""


class Attributes:
    """What a model keeps and its ``state_dict`` does not, as it was when this was made.

    As far as :class:`ModelState` follows it. Holds digests only.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> model.seen = [1]
        >>> attributes = Attributes(model)
        >>> model.seen.append(2)
        >>> attributes.changed(model)
        ({'seen': [1, 2]}, [])
    """

    def __init__(self, model: nn.Module) -> None:
        self._before = _digests(dict(_attributes(model)), _saved(model))

    def changed(self, model: nn.Module) -> tuple[dict[str, Any], list[str]]:
        """What has changed since then.

        Returns:
            By dotted name, what is made of tensors and plain values, as a state file can hold it; the names
            of the rest.
        """
        values, saved = dict(_attributes(model)), _saved(model)
        kept: dict[str, Any] = {}
        rest = [name for name in self._before if name not in values]
        for name, digest in _digests(values, saved).items():
            if digest == self._before.get(name):
                continue
            module, attribute = _place(model, name)
            try:
                value = _stored(values[name], saved)
            except (TypeError, RecursionError):
                rest.append(name)
            else:
                kept[name] = {_BUFFER: value} if attribute in module._buffers else value
        return kept, rest


@torch.no_grad()
def restore_attributes(model: nn.Module, kept: dict[str, Any]) -> None:
    """Put back what :meth:`Attributes.changed` returned; tensors and containers keep their identity."""
    device = next((param.device for param in model.parameters()), torch.device("cpu"))
    for name, value in kept.items():
        module, attribute = _place(model, name)
        is_buffer = isinstance(value, dict) and _BUFFER in value
        if is_buffer and attribute not in module._buffers:  # it came into being
            vars(module).pop(attribute, None)
            module.register_buffer(attribute, None, persistent=False)
        found = module._buffers if is_buffer else vars(module)
        found[attribute] = _filled(found.get(attribute), value[_BUFFER] if is_buffer else value, device)


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def _attributes(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        own = type(module).get_extra_state is not nn.Module.get_extra_state  # it says itself what to save
        if own or isinstance(module, torch.jit.ScriptModule):
            continue
        prefix = f"{path}." if path else ""
        for name, value in module._buffers.items():
            if name in module._non_persistent_buffers_set:
                yield prefix + name, value
        for name, value in vars(module).items():
            if name not in _OF_EVERY_MODULE:
                yield prefix + name, value


def _saved(model: nn.Module) -> set[int]:
    """The memory of what is in the ``state_dict``."""
    return {
        tensor.untyped_storage()._cdata
        for tensor in model.state_dict(keep_vars=True).values()
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided
    }


def _digests(values: dict[str, Any], saved: set[int]) -> dict[str, str]:
    """By name; nothing of what cannot be looked into."""
    found = {}
    for name, value in values.items():
        parts = list(_parts(value, saved, set()))
        if parts:
            digest = hashlib.sha256()
            for part in parts:
                digest.update(part)
            found[name] = digest.hexdigest()
    return found


def _parts(value: Any, saved: set[int], seen: set[int], *, inside: bool = False) -> Iterator[Any]:
    """Bytes that differ where values do."""
    if isinstance(value, (*SIMPLE, torch.Size, torch.device, torch.dtype)):
        yield repr(value).encode()
    elif id(value) in seen:
        return
    elif isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)} {value.layout}".encode()
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            return
        if value.untyped_storage()._cdata in saved:
            yield b"in the state_dict"
        elif not isinstance(value, nn.Parameter):
            plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
            yield plain.flatten().view(torch.uint8).numpy()
    elif is_random(value):
        _, state = random_state(value)
        yield state.numpy() if isinstance(state, Tensor) else pickle.dumps(state)
    elif is_array(value):
        yield value.tobytes()
    elif isinstance(value, set):
        yield from sorted(repr(each).encode() for each in value)
        yield b"set"
    elif isinstance(value, dict | list | tuple | deque):
        seen.add(id(value))
        yield f"{type(value).__name__} of {len(value)}".encode()
        if isinstance(value, dict):
            yield repr(list(value)).encode()
        for each in value.values() if isinstance(value, dict) else value:
            yield from _parts(each, saved, seen, inside=inside)
    elif not inside and is_plain_object(value):
        seen.add(id(value))
        yield from _parts(vars(value), saved, seen, inside=True)


def _stored(value: Any, saved: set[int]) -> Any:
    """A copy that a state file can hold.

    Raises:
        TypeError: it cannot, or would no longer share memory with what is saved besides.
    """
    kind = type(value)
    if kind in _STORED:
        return value
    if kind.__module__ == "numpy" and issubclass(kind, SIMPLE):
        return value.item()
    if kind is Tensor and value.layout == torch.strided and value.untyped_storage()._cdata not in saved:
        return value.detach().cpu().clone()
    if kind in (list, tuple, set):
        return kind(_stored(each, saved) for each in value)
    if kind is deque:
        return {_DEQUE: value.maxlen, "holding": [_stored(each, saved) for each in value]}
    if kind in (dict, OrderedDict) and all(type(key) in SIMPLE for key in value):
        return kind((key, _stored(each, saved)) for key, each in value.items())
    raise TypeError(kind.__name__)


def _filled(found: Any, value: Any, device: torch.device) -> Any:
    """``value`` in its place: in ``found`` if that can hold it."""
    value = _moved(value, device)
    if type(found) is Tensor and type(value) is Tensor:
        alike = (found.dtype, found.shape) == (value.dtype, value.shape)
        if alike and 0 not in found.stride() and not found.is_inference():
            found.copy_(value)
            return found
        return value
    if type(found) is type(value) and isinstance(value, list | dict | set | deque):
        refill(found, value)
        return found
    return value


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict) and _DEQUE in value:
        return deque((_moved(each, device) for each in value["holding"]), value[_DEQUE])
    if isinstance(value, dict):
        return type(value)((key, _moved(each, device)) for key, each in value.items())
    return type(value)(_moved(each, device) for each in value) if type(value) in (list, tuple) else value
