"""Measure the layout of the code: the numbers of the table in docs/architecture.md.

    python scripts/code_size.py [FOLDER]

FOLDER: a checkout of any commit, by default this one. Floors: the longest chain of imports between rooms; a
module beside the packages is a room of its own.
"""

import ast
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


def measure(root: Path = ROOT) -> dict[str, int]:
    """Modules, rooms, floors, circles and lines, by what the table calls them."""
    source = root / "src" / "fgbench"
    files = sorted(source.rglob("*.py"))
    lengths = {path: len(path.read_text().splitlines()) for path in files}
    flat = [path for path in source.glob("*.py") if not path.name.startswith("__")]
    imports = {_name(source, path): _imports(path) for path in files}
    below = {
        name: {other for target in targets if (other := _module(target, imports)) and other != name}
        for name, targets in imports.items()
    }
    circles = [circle for circle in _components(below) if len(circle) > 1]
    return {
        "modules beside the rooms": len(flat),
        "rooms": len({path.parent for path in source.glob("*/__init__.py")}),
        "floors": _floors(below),
        "circles of modules": len(circles),
        "lines": sum(lengths.values()),
        "longest file": max(lengths.values()),
        "lines of the README": len((root / "README.md").read_text().splitlines()),
    }


def _name(source: Path, path: Path) -> str:
    return ".".join(path.relative_to(source.parent).with_suffix("").parts).removesuffix(".__init__")


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _module(target: str, modules: dict[str, set[str]]) -> str | None:
    """The module that an imported name is, or is in; not the package itself."""
    parts = target.split(".")
    ends = (".".join(parts[:end]) for end in range(len(parts), 1, -1))
    return next((end for end in ends if end in modules), None)


def _components(below: dict[str, set[str]]) -> list[set[str]]:
    """The strongly connected components."""

    @cache
    def reach(start: str) -> frozenset[str]:
        found, waiting = set(), {start}
        while waiting:
            name = waiting.pop()
            waiting |= below[name] - found
            found |= below[name]
        return frozenset(found)

    groups = {frozenset({name, *(each for each in reach(name) if name in reach(each))}) for name in below}
    return [set(group) for group in groups]


def _floors(below: dict[str, set[str]]) -> int:
    """The longest chain of rooms, each importing from the next; a circle of rooms is one."""
    rooms: dict[str, set[str]] = {}
    for name, others in below.items():
        room = rooms.setdefault(_room(name), set())
        room |= {_room(other) for other in others} - {_room(name)}
    groups = {name: frozenset(group) for group in _components(rooms) for name in group}
    above = {
        group: {groups[other] for name in group for other in rooms[name]} - {group}
        for group in set(groups.values())
    }

    @cache
    def height(group: frozenset[str]) -> int:
        return 1 + max((height(each) for each in above[group]), default=0)

    return max(map(height, above))


def _room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


if __name__ == "__main__":
    for what, value in measure(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT).items():
        print(f"{what:<28}{value:>8,}")
