"""Settings of runs: which are relevant, and how labels show them."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from fgbench.registry import TABLES, options_model


@cache
def default_options(kind: str, name: str) -> Mapping[str, Any]:
    """The defaults of a component's options by dotted key, such as ``trainer.tangents``.

    Empty for a user's own component, which is not imported just to read results.

    Args:
        kind: ``dataset``, ``model`` or ``trainer``.
        name: of the component.
    """
    if name not in TABLES[kind]:
        return {}
    fields = options_model(kind, name).model_fields
    return {f"{kind}.{key}": field.default for key, field in fields.items() if key != "name"}


def is_off(value: Any) -> bool:
    """Whether a setting with this value has no effect."""
    return value is None or value is False


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys with more than one value; a device that was left open and not recorded counts as none."""
    keys = dict.fromkeys(key for each in settings for key in each)
    values = {key: {repr(each.get(key)) for each in settings} for key in keys}
    return [key for key in keys if len(values[key] - ({"'auto'"} if key == "device" else set())) > 1]


def not_default(kind: str, settings: Mapping[str, Any]) -> list[str]:
    """The options of a run's component that are not at their defaults, by dotted key.

    Args:
        kind: ``dataset``, ``model`` or ``trainer``.
        settings: of the run, by dotted key.
    """
    defaults = default_options(kind, str(settings.get(f"{kind}.name")))
    return [
        key
        for key, value in settings.items()
        if key.startswith(f"{kind}.")
        and key != f"{kind}.name"
        and not _same(value, defaults.get(key))
        and not (is_off(value) and is_off(defaults.get(key)))
    ]


def _same(value: Any, default: Any) -> bool:
    """Whether a value read from a file is a default: lists there are tuples here."""
    return (list(value) if isinstance(value, list | tuple) else value) == (
        list(default) if isinstance(default, list | tuple) else default
    )


def setting_word(key: str, value: Any, keys: Sequence[str] = (), default: Any = None) -> str:
    """How a label shows a setting: ``tangents=4``; a switch by its name alone, nothing if it is off.

    If it is off but on by default, that is shown: ``mask=false``.
    """
    if is_off(value) and is_off(default):
        return ""
    name = _short(key)
    if [_short(other) for other in keys].count(name) > 1:
        name = key
    if is_off(value):
        return f"{name}={'null' if value is None else 'false'}"
    if value is True:
        return name
    return f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"


def _short(key: str) -> str:
    return key.removesuffix(".name").rpartition(".")[2]
