"""What a model keeps besides its ``state_dict``, such as running tensors and counters, to resume it too."""

import hashlib
from collections import deque
from collections.abc import Iterator
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from fgbench.trainers.replay import is_plain_object

_OF_EVERY_MODULE = {"training", *vars(nn.Module())}
_SIMPLE = (bool, int, float, str, NoneType)


def attribute_digests(model: nn.Module) -> dict[str, str]:
    """Of everything that a model keeps and its ``state_dict`` does not, by dotted name."""
    saved = {
        tensor.untyped_storage()._cdata
        for tensor in model.state_dict(keep_vars=True).values()
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided
    }
    found = {}
    for name, value in _attributes(model):
        digest = hashlib.sha256()
        for part in _parts(value, saved):
            digest.update(part)
        found[name] = digest.hexdigest()
    return found


def changed_attributes(model: nn.Module, before: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """What has changed since ``attribute_digests`` gave ``before``.

    Returns:
        By name, what is made of tensors and plain values, as a state file can hold it; the names of the rest.
    """
    kept: dict[str, Any] = {}
    rest = []
    now, values = attribute_digests(model), dict(_attributes(model))
    for name, digest in now.items():
        if digest != before.get(name):
            try:
                kept[name] = _plain(values[name])
            except TypeError:
                rest.append(name)
    return kept, rest


def restore_attributes(model: nn.Module, kept: dict[str, Any]) -> None:
    """Put back what ``changed_attributes`` returned; tensors and containers keep their identity."""
    for name, value in kept.items():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        found = module._buffers if attribute in module._buffers else vars(module)
        found[attribute] = _filled(found.get(attribute), value)


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


def _parts(value: Any, saved: set[int], *, inside: bool = False) -> Iterator[bytes]:
    """Bytes that differ where values do; nothing of what is saved, or cannot be looked into."""
    if isinstance(value, _SIMPLE):
        yield repr(value).encode()
    elif isinstance(value, nn.Parameter):
        return
    elif isinstance(value, Tensor):
        if value.layout == torch.strided and value.untyped_storage()._cdata not in saved:
            yield f"{value.dtype} {tuple(value.shape)}".encode()
            yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, torch.Generator):
        yield value.get_state().numpy().tobytes()
    elif isinstance(value, dict):
        for key, each in value.items():
            yield repr(key).encode()
            yield from _parts(each, saved, inside=inside)
    elif isinstance(value, list | tuple | deque):
        yield str(len(value)).encode()
        for each in value:
            yield from _parts(each, saved, inside=inside)
    elif isinstance(value, set):
        yield from sorted(repr(each).encode() for each in value)
    elif not inside and is_plain_object(value):
        yield from _parts(vars(value), saved, inside=True)


def _plain(value: Any) -> Any:
    """A copy that a state file can hold.

    Raises:
        TypeError: it cannot.
    """
    if isinstance(value, _SIMPLE):
        return value
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.layout == torch.strided:
        return value.detach().cpu().clone()
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    if type(value) in (set, deque):
        return list(map(_plain, value))
    if type(value) is dict and all(isinstance(key, _SIMPLE) for key in value):
        return {key: _plain(each) for key, each in value.items()}
    raise TypeError(type(value).__name__)


@torch.no_grad()
def _filled(found: Any, value: Any) -> Any:
    if isinstance(found, Tensor) and isinstance(value, Tensor) and found.shape == value.shape:
        found.copy_(value)
        return found
    if isinstance(found, list | deque) and isinstance(value, list):
        found.clear()
        found.extend(value)
        return found
    if isinstance(found, set | dict):
        found.clear()
        found.update(value)
        return found
    return value
