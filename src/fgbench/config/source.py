"""YAML as configs use it: plain values, each with the place it came from.

A strict subset: blocks, lists, text, numbers, true, false and null. Numbers are those of YAML 1.2, so
``1e-3`` is a number and ``on`` is text. Repeated keys, aliases and tags are errors, so no file can run code
or grow in memory.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fgbench.errors import ConfigError

MAX_BYTES = 128 * 1024
MAX_PROBLEMS = 25

Location = tuple[str | int, ...]
Place = Callable[[int], str]
"""How messages name a line of the text."""

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*$")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")
_UNUSABLE = object()
_NULL = re.compile(r"(?:~|null|Null|NULL|)$")


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # a few nested aliases can stand for gigabytes
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would read as something other than text."""


for _name, _pattern, _first in (
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("bool", _BOOL, "tTfF"),
    ("null", _NULL, ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, list(_first))
    _Dumper.add_implicit_resolver(_TAG + _name, _pattern, list(_first))


@dataclass
class Source:
    """The values of a config and where each comes from.

    Attributes:
        path: the file, as the user named it.
        data: the values: nested dictionaries and lists of plain values.
        places: ``file:line`` or ``-o key=value`` of every value, by location.
        problems: the mistakes found so far, each with its place.
        notes: what overrides dropped, a line each, for the user to know.
    """

    path: str
    data: dict[str, Any]
    places: dict[Location, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_problem(self, location: Location, text: str) -> None:
        """Note a problem at a location: its place, its dotted key and what is wrong."""
        key = ".".join(show_key(part) for part in location)
        line = ": ".join(part for part in (self.place(location), key, text) if part)
        if line not in self.problems:
            self.problems.append(line)

    def place(self, location: Location) -> str:
        """The place of the value at a location, or else of the block around it."""
        for length in range(len(location), 0, -1):
            if location[:length] in self.places:
                return self.places[location[:length]]
        return self.path

    def override(self, key: str, value: Any, label: str) -> None:
        """Set the value at a dotted key as if the file had it; ``label`` is its place in messages."""
        location = tuple(key.split("."))
        block = self.data
        for length in range(1, len(location)):
            child = block.get(location[length - 1])
            if child is None:
                child = block[location[length - 1]] = {}
                self.places[location[:length]] = label
            if not isinstance(child, dict):
                outer = ".".join(location[:length])
                self.problems.append(f"{label}: {key}: {outer} is {show(child)}, not a block of keys")
                return
            block = child
        block[location[-1]] = value
        for inner in [each for each in self.places if each[: len(location)] == location]:
            del self.places[inner]
        self.places[location] = label

    def raise_problems(self) -> None:
        """Raise every problem noted, as one error.

        Raises:
            ConfigError: there is at least one.
        """
        if self.problems:
            lines = sorted(self.problems, key=self._line_number)
            more = [f"... and {len(lines) - MAX_PROBLEMS} more"] if len(lines) > MAX_PROBLEMS else []
            raise ConfigError("\n".join(lines[:MAX_PROBLEMS] + more))

    def _line_number(self, problem: str) -> float:
        number = problem.removeprefix(f"{self.path}:").partition(":")[0]
        return int(number) if number.isdigit() else float("inf")


def read_yaml(path: Path) -> Source:
    """Read a file whose top level is a block of keys.

    Raises:
        ConfigError: it cannot be read, or is not such YAML; one line with the file and line number.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read: {problem}{_advice(path)}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES // 1024} KiB, which no config is")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from error
    source = Source(str(path), {})
    data = _parse(text, source, lambda line: f"{path}:{line}")
    if not isinstance(data, dict):
        source.raise_problems()
        got = "nothing" if data is None else show(data)
        raise ConfigError(f"{path}: holds {got}, expected keys and values such as `epochs: 5`")
    source.data = data
    return source


def _advice(path: Path) -> str:
    """A hint on what was probably meant by a file that cannot be read: an override, or a file nearby."""
    if "=" in path.name and not path.exists():
        return f"; a value for a key is set by -o {show_key(str(path))}"
    try:
        if path.is_dir():
            return f"; name the files in it, such as {path / '*.yaml'}"
        folders = dict.fromkeys([path.parent, Path(), Path("configs"), Path("configs/sweeps")])
        files = [file for folder in folders for file in sorted(folder.glob("*.yaml"))]
    except OSError:
        return ""
    same = [file for file in files if path.stem.lower() == file.stem.lower()]
    near = difflib.get_close_matches(path.stem, [file.stem for file in files], n=1, cutoff=0.75)
    same += [file for file in files if file.stem in near]
    return f" (did you mean {same[0]}?)" if same else ""


def parse_value(text: str, label: str) -> Any:
    """The value that a piece of YAML stands for.

    Raises:
        ConfigError: it is not YAML, or uses what configs do not allow; the message starts with ``label``.
    """
    source = Source(label, {})
    value = _parse(text, source, lambda line: label)
    source.raise_problems()
    return value


def dump_yaml(data: dict[str, Any]) -> str:
    """YAML that ``read_yaml`` and any other reader parse to the same values, inner blocks on a line each."""
    return yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=1000, allow_unicode=True
    )


def flatten(block: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested blocks by dotted key, such as ``optimizer.lr``."""
    for key, value in block.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def show(value: Any) -> str:
    """A value as an error message shows it: short, on one line, as YAML spells it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "a block of keys"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def show_item(key: str, value: Any) -> str:
    """A key and its value as a message shows them.

    >>> show_item("betas", [0.9, 0.99])
    'betas: [0.9, 0.99]'
    """
    text = json.dumps(value, ensure_ascii=False).replace('"', "")
    return f"{show_key(key)}: {text if len(text) <= 60 else f'{text[:57]}...'}"


def show_key(key: str | int) -> str:
    """A key as an error message shows it: unchanged if it is short and printable."""
    text = str(key)
    return text if text and text.isprintable() and len(text) <= 60 else show(text)


def _parse(text: str, source: Source, place: Place) -> Any:
    try:
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _build(node, (), source, place)
    except RecursionError:
        problem = "nested too deeply"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        if mark is not None:
            where = place(mark.line + 1)
            if error.context == "expected a single document in the stream":
                raise ConfigError(f"{where}: a second document begins (---), expected one") from error
            raise ConfigError(f"{where}: not valid YAML: {error.problem}") from error
        problem = f"not valid YAML: {error.problem}"
    except yaml.YAMLError as error:
        problem = f"not valid YAML: {str(error).splitlines()[0]}"
    raise ConfigError(f"{source.path}: {problem}")


def _build(node: yaml.Node, location: Location, source: Source, place: Place) -> Any:
    source.places[location] = place(node.start_mark.line + 1)
    if node.tag == _TAG + "map" and isinstance(node, yaml.MappingNode):
        items = [
            (key, _build(child, (*location, key), source, place))
            for key, child in _items(node, location, source, place)
        ]
        return {key: value for key, value in items if value is not _UNUSABLE}
    if node.tag == _TAG + "seq" and isinstance(node, yaml.SequenceNode):
        values = [_build(child, (*location, index), source, place) for index, child in enumerate(node.value)]
        return [value for value in values if value is not _UNUSABLE]
    if not isinstance(node, yaml.ScalarNode):
        source.add_problem(location, f"the tag {show_key(node.tag)} is not allowed")
        return _UNUSABLE
    try:
        return _scalar(node.tag.removeprefix(_TAG), node.value)
    except ValueError as error:
        source.add_problem(location, str(error))
        return _UNUSABLE


def _items(
    node: yaml.MappingNode, location: Location, source: Source, place: Place
) -> Iterator[tuple[str, yaml.Node]]:
    seen: dict[str, int] = {}
    for key_node, child in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            source.problems.append(f"{place(line)}: a key must be a word, not a block or a list")
            continue
        key = key_node.value
        if key in seen:
            dotted = ".".join(show_key(part) for part in (*location, key))
            source.problems.append(f"{place(line)}: {dotted}: given twice (first in line {seen[key]})")
            continue
        seen[key] = line
        yield key, child


def _scalar(kind: str, text: str) -> Any:
    if kind == "null":
        return None
    if kind == "bool" and _BOOL.match(text):
        return text.lower() == "true"
    if kind == "int" and _INT.match(text):
        if len(text) > 100:
            raise ValueError(f"a number of {len(text)} digits is too long")
        return int(text)
    if kind == "float" and _FLOAT.match(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if kind == "str":
        text = text.encode("utf-16-le", "surrogatepass").decode(
            "utf-16-le", "surrogatepass"
        )  # as JSON spells emoji
        if not text.isprintable():
            raise ValueError(f"got {show(text)}, which holds characters that cannot be printed")
        return text
    raise ValueError(f"the tag {show_key(kind)} is not allowed here")
