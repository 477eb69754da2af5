"""Images in a folder per class, below a folder per part: the names of such folders."""

import os
from pathlib import Path

from PIL import Image

from fgbench.errors import DataError

PARTS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
EXPECTED = "train/<class>/* and test/<class>/* (also training, testing, val, validation)"


def find_parts(folder: Path) -> dict[str, Path]:
    """The folders of the parts by name: ``train``, ``test``, and ``validation`` if there are all three.

    Without a test folder, the validation images are used for testing. Empty without a training part and one
    to test on.

    Raises:
        DataError: two folders could be the same part.
    """
    below = [folder / name for name in listing(folder) if os.path.isdir(folder / name)]  # noqa: PTH112
    parts: dict[str, Path] = {}
    for part, names in PARTS.items():
        found = [place for place in below if place.name.lower() in names]
        if len(found) > 1:
            raise DataError(f"{folder}: both {found[0].name} and {found[1].name} could be its {part} images")
        if found:
            parts[part] = found[0]
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    return parts if {"train", "test"} <= parts.keys() else {}


def class_names(folder: Path) -> list[str]:
    """The folders of the classes, links to folders included, in alphabetical order.

    Raises:
        DataError: there are none, or the folder cannot be read.
    """
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}") from error
    if not names:
        raise DataError(
            f"{folder} has no folders: images must be in a folder per class, as in {folder / 'cat'}"
        )
    return names


def image_files(folder: Path) -> list[Path]:
    """The images in a class's folder and below it; links to folders are followed.

    Hidden files and those with an ending that no image has, such as ``Thumbs.db``, are left out.

    Raises:
        DataError: there are none, or a folder cannot be read.
    """
    if not os.path.isdir(folder):  # noqa: PTH112
        return []  # a class without test images
    files: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(place, name) for name in names if not name.startswith(".") and _is_image(name)]
    if not files:
        raise DataError(f"{folder} has no images")
    return sorted(files)


def _is_image(name: str) -> bool:
    """Whether the ending is one of an image, or there is none."""
    ending = Path(name).suffix.lower()
    return not ending or ending in Image.registered_extensions()


def listing(folder: Path) -> list[str]:
    """The names in a folder, except hidden ones, sorted; empty if it is not a folder or cannot be read."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))  # noqa: PTH208
    except (OSError, ValueError):  # ValueError: no possible name of a folder
        return []


def _refuse(error: OSError) -> None:
    raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
