"""The config as JSON Schema, for editors and other programs."""

from typing import Any

from fgbench.config.config import Config
from fgbench.config.overrides import NAMED_BLOCKS
from fgbench.registry import TABLES, options_model


def config_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a config file, where ``name`` selects a component's options."""
    schema = Config.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    definitions.pop("Options", None)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    for kind, table in TABLES.items():
        for name in table:
            definitions[f"{kind}:{name}"] = _options_schema(kind, name, definitions)
        own = {
            "type": "object",
            "properties": {"name": {"type": "string", "pattern": "^.+:.+$"}},
            "required": ["name"],
        }
        blocks = [{"$ref": f"#/$defs/{kind}:{name}"} for name in table]
        names = {"anyOf": [{"enum": list(table)}, {"type": "string", "pattern": "^.+:.+$"}]}
        block = {"oneOf": [*blocks, own], "discriminator": {"propertyName": "name"}}
        description = schema["properties"][kind]["description"]
        schema["properties"][kind] = {"description": description, "anyOf": [names, block]}
    for kind in NAMED_BLOCKS:
        if kind not in TABLES:
            block = schema["properties"][kind]
            names = definitions[block["$ref"].rpartition("/")[2]]["properties"]["name"]
            schema["properties"][kind] = {
                "description": block.get("description", ""),
                "anyOf": [names, block],
            }
    return schema


def _options_schema(kind: str, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    schema = options_model(kind, name).model_json_schema()
    definitions.update(schema.pop("$defs", {}))
    schema["properties"]["name"] = {"const": name}
    schema["required"] = ["name", *(key for key in schema.get("required", []) if key != "name")]
    return schema
