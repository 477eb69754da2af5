"""Users' own components (``package.module:Class``): the files they are made of, and errors raised in them."""

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple


class _Own(NamedTuple):
    target: Any
    files: list[Path]
    digest: str


_known: dict[str, _Own] = {}
_FGBENCH = Path(__file__).parent


def record(name: str, target: Any) -> None:
    """Note the files of a component that has been imported, as they are now."""
    if name not in _known or _known[name].target is not target:
        files = _files(name, target)
        content = hashlib.sha256(b"\0".join(path.read_bytes() for path in files))
        _known[name] = _Own(target, files, content.hexdigest()[:8] if files else "")


def digest(name: str) -> str:
    """Eight hexadecimal digits of the SHA-256 of a recorded component's files; empty if it has none."""
    return _known[name].digest


def explain_own(error: BaseException) -> str:
    """An error that was raised in a user's component, in a line with its place; empty for other errors.

    Libraries that the component calls count as the line that calls them, fgbench does not.
    """
    own = {path for each in _known.values() for path in each.files}
    place, traceback = "", error.__traceback__
    while traceback is not None:
        path = Path(traceback.tb_frame.f_code.co_filename)
        if path in own:
            place = f"{path}:{traceback.tb_lineno}"
        elif path.is_relative_to(_FGBENCH):
            place = ""
        traceback = traceback.tb_next
    return place and f"{place}: {type(error).__name__}: {' '.join(str(error).split())}"


def _files(name: str, target: Any) -> list[Path]:
    """The file that a component is in, and those beside it or in its package that it imports."""
    module = name.partition(":")[0]
    top, root = module.partition(".")[0], _root(module)
    todo = [module, getattr(target, "__module__", module)]
    found: dict[str, Path] = {}
    while todo:
        each = todo.pop()
        path = _file(each)
        if path is not None and each not in found:
            found[each] = path
            todo += [other for other in _imports(sys.modules[each], path) if _is_own(other, top, root)]
    return sorted(set(found.values()))


def _is_own(module: str, top: str, root: Path | None) -> bool:
    first, path = module.partition(".")[0], _file(module)
    if path is None or first == "fgbench":
        return False
    beside = root is not None and path.is_relative_to(root) and "site-packages" not in path.parts
    return first == top or beside


def _root(module: str) -> Path | None:
    """The folder that the module's top package, or the module itself, is in."""
    path = _file(module)
    return path and path.parents[module.count(".")]


def _file(module: str) -> Path | None:
    path = Path(getattr(sys.modules.get(module), "__file__", None) or "")
    return path if path.is_file() else None


def _imports(module: ModuleType, path: Path) -> Iterator[str]:
    """What a module imports as it is loaded, and what could be names in such modules."""
    if path.suffix != ".py":
        return
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Import):
            yield from _parents(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(source, module.__package__ or "")
            yield from _parents([base, *(f"{base}.{alias.name}" for alias in node.names)])


def _parents(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        parts = name.split(".")
        yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))
