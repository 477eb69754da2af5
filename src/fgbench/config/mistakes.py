"""Reports every mistake in a config at once: where, what was got and what is allowed."""

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fgbench.config.source import Location, Source, show
from fgbench.errors import ConfigError
from fgbench.registry import TABLES, options_model

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""Names of runs, which are names of folders."""

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a block of keys",
    "model_type": "a block of keys",
    "model_attributes_type": "a block of keys",
    "string_pattern_mismatch": "at most 100 letters, digits, dots, - and _, a letter or digit first",
}

Model = TypeVar("Model", bound=BaseModel)


def validate_source(source: Source, model: type[Model]) -> Model:
    """The values of a source as an instance of ``model``.

    Pydantic reports every invalid value at once; invalid combinations of valid values are reported only once
    each value is valid.

    Raises:
        ConfigError: all mistakes, one a line.
    """
    data = source.data
    try:
        valid = model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        for mistake in (_read(each, data, model) for each in error.errors(include_url=False)):
            source.add_problem(mistake.location, mistake.text + _whole_block_hint(mistake, source))
    source.raise_problems()
    return valid


def explain(error: ValidationError, data: dict[str, Any], model: type[BaseModel], path: str) -> ConfigError:
    """Pydantic's errors in this project's wording, one a line; ``path`` is where the values come from."""
    source = Source(path, data)
    for mistake in (_read(each, data, model) for each in error.errors(include_url=False)):
        source.add_problem(mistake.location, mistake.text)
    return ConfigError("\n".join(source.problems))


class _Mistake(NamedTuple):
    location: Location
    kind: str
    text: str


def _read(error: ErrorDetails, data: dict[str, Any], model: type[BaseModel]) -> _Mistake:
    """Pydantic's error in this project's wording."""
    kind, location, value, context = error["type"], error["loc"], error["input"], error.get("ctx", {})
    if kind == "missing" and isinstance(location[-1], int):
        text = f"got a list of {len(value)}, expected at least {location[-1] + 1}"
        return _Mistake(location[:-1], kind, text)
    if kind == "missing":
        table = TABLES.get(str(location[-1]))
        expected = f", expected one of {', '.join(table)}, or package.module:Class" if table else ""
        return _Mistake(location, kind, f"missing{expected}")
    if kind == "component":
        return _Mistake(location, kind, context["text"])
    location = _user_location(location, data)
    if kind == "extra_forbidden":
        allowed = list(_allowed_keys(data, location[:-1], model))
        inner = _inner_key(str(location[-1]), location[:-1], data, model)
        hint = _hint(inner or _nearest(location[-1], allowed))
        return _Mistake(location, kind, f"unknown key{hint}; allowed: {', '.join(allowed)}")
    if kind == "too_short":
        what = "block" if isinstance(value, dict) else "list"
        return _Mistake(
            location, kind, f"got a {what} of {len(value)}, expected at least {context['min_length']}"
        )
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context["expected"]) or [context["expected"]]
        near = _nearest(value, allowed)
        return _Mistake(location, kind, f"got {show(value)}, expected {' | '.join(allowed)}{_hint(near)}")
    if kind in ("value_error", "combination"):
        return _Mistake(location, kind, str(context.get("error") or context.get("text")))
    expected = _EXPECTED.get(kind, error["msg"].removeprefix("Input should be ")).format(**context)
    if expected == "a block of keys" and location[-1] in TABLES:
        expected = "a name or a block of keys"
    quotes = " (put it in quotes)" if kind == "string_type" and isinstance(value, int | float) else ""
    return _Mistake(location, kind, f"got {show(value)}, expected {expected}{quotes}")


def _whole_block_hint(mistake: _Mistake, source: Source) -> str:
    """A hint on how to change the name without keeping options that only the component in the file has."""
    head = str(mistake.location[0]) if mistake.location else ""
    override = source.place((head, "name"))
    if mistake.kind != "extra_forbidden" or head not in TABLES or not override.startswith(f"-o {head}.name="):
        return ""
    return f"; -o {head}={source.data[head]['name']} drops what it does not have"


def _allowed_keys(data: dict[str, Any], location: Location, model: type[BaseModel]) -> Iterable[str]:
    """The keys of the block at a location."""
    inner: Any = model
    for part in location:
        if part in TABLES and isinstance(data.get(part), dict) and "name" in data[part]:
            try:
                inner = options_model(str(part), data[str(part)]["name"])
            except Exception:  # a name that is a mistake of its own
                return ()
            continue
        field = getattr(inner, "model_fields", {}).get(part)
        kinds = (field.annotation, *get_args(field.annotation)) if field else ()
        inner = next((each for each in kinds if isinstance(each, type) and issubclass(each, BaseModel)), None)
    return getattr(inner, "model_fields", {})


def _inner_key(key: str, location: Location, data: dict[str, Any], model: type[BaseModel]) -> str | None:
    """The dotted key for a key placed outside its block: ``optimizer.lr`` for ``lr``."""
    for block in _allowed_keys(data, location, model):
        if key in _allowed_keys(data, (*location, block), model):
            return f"{block}.{key}"
    return None


def _user_location(location: Location, data: Any) -> Location:
    """The location without the parts pydantic appends for members of a union, which no user wrote."""
    for length, part in enumerate(location):
        if not (part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int)):
            return location[:length]
        data = data[part]
    return location


def _nearest(word: Any, words: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(str(word)[:100], list(words), n=1)), None)


def _hint(near: str | None) -> str:
    return f" (did you mean {near!r}?)" if near else ""
