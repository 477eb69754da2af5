"""Configs built on configs: ``extends: other.yaml``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fgbench.config.overrides import NAMED_BLOCKS, expand_names, has
from fgbench.config.source import Location, Source, show, show_item
from fgbench.errors import ConfigError
from fgbench.paths import expand_path
from fgbench.registry import TABLES

KEY = "extends"

OWN = ("name", "tuned", "note")
"""Keys that are not inherited: the name, the note, and how the values were chosen."""


def extend(
    source: Source, path: Path, read: Callable[[Path], Source], within: tuple[Path, ...] = ()
) -> Source:
    """A config's keys merged over those of the config it extends, which may itself extend one.

    Blocks are merged key by key. Where a block names another component, the inherited options that the other
    does not have are dropped, with a note. A place names the file and line, and the ``extends`` that led
    there.

    Args:
        source: the values of a file, bare names or blocks; its ``extends`` is removed.
        path: its file; ``extends`` is relative to its folder.
        read: reads another file.
        within: the files that directly or indirectly extend this one.

    Raises:
        ConfigError: the other file cannot be read, or extends this one.
    """
    expand_names(source)
    if KEY not in source.data:
        return source
    place, value = source.place((KEY,)), source.data.pop(KEY)
    problem = f"{place}: {KEY}: got {show(value)}"
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{problem}, expected one config file")
    try:
        other = path.parent / expand_path(value)
    except ValueError as error:
        raise ConfigError(f"{place}: {KEY}: {error}") from error
    extending = (*within, path.resolve())
    if other.resolve() in extending:
        raise ConfigError(f"{problem}, which extends this file itself: a circle")
    try:
        base = extend(read(other), other, read, extending)
    except ConfigError as error:
        raise ConfigError("\n".join(_via(line, place) for line in str(error).splitlines())) from error
    for key in OWN:
        base.data.pop(key, None)
    places = {location: _via(each, place) for location, each in base.places.items()}
    merged = Source(source.path, base.data, places, [_via(each, place) for each in base.problems], base.notes)
    merged.problems += source.problems
    merged.notes += source.notes
    _put(merged, merged.data, source.data, source, ())
    return merged


def _via(text: str, place: str) -> str:
    """A line or place in another file, followed by the ``extends`` that led there, the nearest first."""
    mark = " (extended in "
    return f"{text[:-1]}, {place})" if mark in text and text.endswith(")") else f"{text}{mark}{place})"


def _put(merged: Source, below: dict[str, Any], block: dict[str, Any], source: Source, at: Location) -> None:
    """Merge the keys of a block over the existing ones, with their places."""
    for key, value in block.items():
        here, there = (*at, key), below.get(key)
        if isinstance(value, dict) and isinstance(there, dict):
            if not at and key in NAMED_BLOCKS and _names_another(key, there, value):
                _drop(merged, key, value, source)
            merged.places[here] = f"{source.place(here)} over {merged.place(here)}"
            _put(merged, there, value, source, here)
            continue
        below[key] = value
        merged.places = {
            location: place for location, place in merged.places.items() if location[: len(here)] != here
        }
        merged.places |= {
            location: place for location, place in source.places.items() if location[: len(here)] == here
        }


def _names_another(kind: str, there: dict[str, Any], block: dict[str, Any]) -> bool:
    """Whether a block names another component than the one that the inherited options belong to."""
    unsaid = None if kind in TABLES else ""  # an optimizer has a default
    return there.get("name", unsaid) not in (None, block.get("name", there.get("name", unsaid)))


def _drop(merged: Source, kind: str, block: dict[str, Any], source: Source) -> None:
    """Remove the options that the named component does not have."""
    there, name = merged.data[kind], block["name"]
    dropped = [
        (key, value)
        for key, value in there.items()
        if key != "name" and key not in block and not has(kind, str(name), key, value)
    ]
    for key, _ in dropped:
        del there[key]
    if dropped:
        options = ", ".join(f"{show_item(f'{kind}.{k}', v)} ({merged.place((kind, k))})" for k, v in dropped)
        merged.notes.append(f"{show_item(kind, name)} ({source.place((kind, 'name'))}) drops {options}")
