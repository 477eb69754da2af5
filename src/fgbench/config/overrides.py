"""Values set on the command line, in a sweep or in code, which replace those of a config file."""

import json
import re
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from fgbench.config.optimizer import OptimizerOptions, ScheduleOptions
from fgbench.config.source import Location, Source, parse_value, show_item, show_key
from fgbench.errors import ConfigError
from fgbench.registry import TABLES, options_model

NAMED_BLOCKS = (*TABLES, "optimizer", "schedule")
"""Blocks that may be given as a bare name: ``trainer: backprop``."""


class Override(NamedTuple):
    """A value for a dotted key, and its place for messages (``--epochs``)."""

    key: str
    value: Any
    place: str

    def __str__(self) -> str:
        """How messages name it: what the user wrote, or its key and value with their place."""
        return (
            self.place if self.place.startswith("-") else f"{show_item(self.key, self.value)} ({self.place})"
        )


def parse_override(text: str) -> Override:
    """An override from ``key.sub=value``, the value being YAML.

    >>> parse_override("optimizer.lr=1e-3")
    Override(key='optimizer.lr', value=0.001, place='-o optimizer.lr=1e-3')

    Raises:
        ConfigError: it is not of that form.
    """
    key, equals, value = text.partition("=")
    place = f"-o {show_key(text)}"
    if not equals or not re.fullmatch(r"\w[\w-]*(\.\w[\w-]*)*", key):
        raise ConfigError(f"{place}: expected key=value or key.sub=value, such as -o optimizer.lr=0.01")
    return Override(key, parse_value(value, place), place)


def apply_override(source: Source, override: Override) -> None:
    """Set a value as if the file had it, and note which values of the file are dropped.

    The bare name of another component or optimizer (``optimizer=sgd``) keeps those options of its block that
    the new one has too. A block replaces the whole previous block.
    """
    key, value, place = override
    location: Location = (key,)
    before = source.data.get(key)
    places = {inner: said for inner, said in source.places.items() if inner[:1] == location}
    source.override(key, value, place)
    expand_names(source)
    if not isinstance(before, dict) or not isinstance(value, str | dict):
        return
    kept: dict[str, Any] = {}
    if isinstance(value, str) and key in NAMED_BLOCKS:
        kept = {name: each for name, each in before.items() if name != "name" and has(key, value, name, each)}
        source.data[key] |= kept
        source.places |= {inner: said for inner, said in places.items() if inner[1:2] and inner[1] in kept}
    said = value if isinstance(value, dict) else {}
    dropped = [
        f"{show_item(f'{key}.{name}', each)} ({places.get((key, name), source.path)})"
        for name, each in before.items()
        if name != "name" and name not in kept and name not in said
    ]
    if dropped:
        source.notes.append(f"{override} drops {', '.join(dropped)}")


def has(kind: str, name: str, key: str, value: Any) -> bool:
    """Whether the component or optimizer ``name`` has an option ``key`` for which ``value`` is allowed."""
    others: dict[str, type[BaseModel]] = {"optimizer": OptimizerOptions, "schedule": ScheduleOptions}
    try:
        model = others[kind] if kind in others else options_model(kind, name)
        model.model_validate_json(json.dumps({"name": name, key: value}), strict=True)
    except ValidationError as error:
        used_by = getattr(model, "USED_BY", {}).get(key, (name,))
        return name in used_by and all(key not in each["loc"] for each in error.errors())
    except (
        Exception
    ):  # no such name, or a module of the user's that raises: reported when the whole is checked
        return False
    return True


def expand_names(source: Source) -> None:
    """Turn bare names into blocks: ``trainer: backprop`` into ``trainer: {name: backprop}``."""
    for kind in NAMED_BLOCKS:
        value = source.data.get(kind)
        if isinstance(value, str):
            source.data[kind] = {"name": value}
            source.places[kind, "name"] = source.place((kind,))
