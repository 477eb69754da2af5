"""What ``fgbench list`` prints: the registry and the options models in words."""

import textwrap
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from fgbench.config.config import Config
from fgbench.config.source import show
from fgbench.registry import TABLES, Component, find, options_model

WIDTH = 100


def describe_table(kind: str) -> str:
    """Every dataset, model or trainer: summary and source, and for trainers also bias, cost and so on."""
    return "\n".join(line for name, component in TABLES[kind].items() for line in _describe(name, component))


def describe_component(kind: str, name: str) -> str:
    """One dataset, model or trainer with its options: type, default and meaning.

    Raises:
        ConfigError: there is no component of that name.
    """
    component, model = find(kind, name), options_model(kind, name)
    fields = {key: field for key, field in model.model_fields.items() if key != "name"}
    options = (
        [f"  options of {kind}:", *_describe_fields(model, fields, "  ")] if fields else ["  no options"]
    )
    return "\n".join([*_describe(name, component), *options])


def describe_keys() -> str:
    """Every key of a config except the options of datasets, models and trainers."""
    return "\n".join(_describe_fields(Config, Config.model_fields, ""))


def _describe(name: str, component: Component) -> Iterator[str]:
    yield name
    yield from _wrap(component.summary, "    ")
    facts = {
        "source": component.source,
        "bias": component.bias,
        "cost in forward passes": component.cost,
        "uses backwards": component.backwards,
    }
    for label, text in facts.items():
        if text:
            yield from _wrap(f"{label}: {text}", "    ")


def _describe_fields(model: type[BaseModel], fields: dict[str, Any], indent: str) -> Iterator[str]:
    properties = model.model_json_schema()["properties"]
    for key, field in fields.items():
        blocks = [each for each in (type(field.default), *get_args(field.annotation)) if _is_block(each)]
        if blocks:
            inner = blocks[0]
            yield f"{indent}{key}:{' null, or a block of keys (default null)' * (field.default is None)}"
            yield from _wrap(field.description or "", indent + "    ")
            yield from _describe_fields(inner, inner.model_fields, indent + "    ")
            continue
        if "$ref" in str(properties[key]):
            allowed, default = "a name, or a block with name and options", "required"
        else:
            allowed = _allowed(properties[key])
            default = "required" if field.is_required() else f"default {_show_default(properties[key])}"
        yield f"{indent}{key}: {allowed} ({default})"
        yield from _wrap(field.description or "", indent + "    ")


def _is_block(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _allowed(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        return " | ".join(_allowed(each) for each in schema["anyOf"])
    kinds = {"integer": "whole number", "boolean": "true | false", "string": "text", "array": "list"}
    kind = schema.get("type", "value")
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[bound]}" for bound, sign in bounds.items() if bound in schema]
    return " ".join([kinds.get(kind, kind), *limits])


def _show_default(schema: dict[str, Any]) -> str:
    default = schema.get("default")
    return (
        default if isinstance(default, str) else str(default) if isinstance(default, list) else show(default)
    )


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), WIDTH, initial_indent=indent, subsequent_indent=indent)
