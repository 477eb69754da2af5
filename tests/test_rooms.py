"""The rooms of the house: imports only go down, and what is heavy stays out of where it is not needed."""

import ast
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "fgbench"
FLOORS = (
    ("errors", "options", "paths", "formatting", "seeds", "own_code"),
    ("registry", "storage", "measure"),
    ("config", "datasets", "models"),
    ("trainers", "analysis"),
    ("checks", "plotting"),
    ("run", "report"),
    ("sweep", "bench"),
    ("cli",),
    ("__init__", "__main__"),
)
"""The rooms from the lowest floor to the highest; a room imports from lower floors alone."""
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}

ROOMS_WITHOUT_TORCH = [
    "errors",
    "options",
    "own_code",
    "paths",
    "registry",
    "config",
    "analysis",
    "plotting",
    "report",
    "cli",
]
ROOMS_WITHOUT_PANDAS = ["storage", "measure", "config", "datasets", "models", "trainers", "checks", "run"]
WITHOUT = {
    "torch": [*ROOMS_WITHOUT_TORCH, "sweep.executor", "sweep.local"],
    "pandas": [*ROOMS_WITHOUT_PANDAS, "sweep.local", "sweep.driver"],
}
"""Rooms and modules that load without these libraries."""


@cache
def modules():
    """Every module by its dotted name below ``fgbench``."""
    names = {path.relative_to(SOURCE).with_suffix("") for path in SOURCE.rglob("*.py")}
    return {".".join(name.parts).removesuffix(".__init__"): SOURCE / f"{name}.py" for name in sorted(names)}


@cache
def imported(path, *, when_loaded=False):
    """What a file imports, by dotted name; ``when_loaded``: without what functions and checkers import."""
    nodes = [ast.parse(path.read_text())]
    names = set()
    while nodes:
        node = nodes.pop()
        if when_loaded and (
            isinstance(node, ast.FunctionDef)
            or (isinstance(node, ast.If) and "TYPE" in ast.unparse(node.test))
        ):
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def inside(names):
    """Those names that are modules of fgbench, as ``modules`` names them."""
    found = set()
    for name in names:
        parts = name.split(".")
        if parts[0] == "fgbench":
            ends = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)]
            found.add(next(end for end in ends if end in modules()))
    return found


@cache
def loaded_with(module):
    """The modules of fgbench that loading one loads, itself included."""
    found, waiting = set(), {module}
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= inside(imported(modules()[name], when_loaded=True)) - found
    return found


@pytest.mark.parametrize("name", modules())
def test_imports_only_go_down(name):
    room = name.partition(".")[0]
    rooms = {each.partition(".")[0] for each in inside(imported(modules()[name]))} - {room}
    upward = {each for each in rooms if LEVEL[each] >= LEVEL[room]}
    assert not upward, f"fgbench.{name} imports from {', '.join(sorted(upward))}, not on a lower floor"


def test_no_modules_import_each_other_in_a_circle():
    for name in modules():
        below = {each for other in inside(imported(modules()[name])) - {name} for each in loaded_with(other)}
        assert name not in below, f"fgbench.{name} is imported by what it imports"


@pytest.mark.parametrize("library", WITHOUT)
def test_rooms_load_without_libraries_they_do_not_need(library):
    for name in modules():
        if any(name == part or name.startswith(f"{part}.") for part in WITHOUT[library]):
            users = {
                each
                for each in loaded_with(name)
                for library_name in imported(modules()[each], when_loaded=True)
                if library_name.split(".")[0] == library
            }
            assert not users, f"fgbench.{name} loads {library}, through {', '.join(sorted(users))}"
