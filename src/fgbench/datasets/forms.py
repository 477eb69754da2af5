"""Finds MNIST, Fashion-MNIST and CIFAR-10 in the formats in which they are stored as files.

A format's function looks into one folder and returns the dataset's files, or None if some are missing; it
opens none of them.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from fgbench.datasets.class_folders import class_names, find_parts, image_files
from fgbench.datasets.official import OFFICIAL
from fgbench.errors import DataError

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CIFAR10_FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
PICKLED_FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-py-target/cifar-10-batches-py")
PICKLED_ARCHIVES = (
    "cifar-10-python.tar.gz",
    "cifar-10-batches-py.tar.gz",
    "cifar-10-batches-py-target_archive",
)
BINARY_FOLDER = "cifar-10-batches-bin"
BINARY_ARCHIVE = "cifar-10-binary.tar.gz"


@dataclass(frozen=True)
class Found:
    """A dataset's files.

    Attributes:
        form: the format of the files; a key of the readers.
        place: the folder or the archive, for messages.
        files: in the order their reader expects; for class folders, the folders of both parts.
    """

    form: str
    place: Path
    files: tuple[Path, ...]

    def __str__(self) -> str:
        return f"{self.place} ({self.form})"

    def all_files(self) -> list[Path]:
        """Every file that is read.

        Raises:
            DataError: a folder cannot be read.
        """
        return [file for path in self.files for file in (image_files(path) if path.is_dir() else [path])]


def find_idx(name: str, folder: Path) -> Found | None:
    """The four IDX files, preferably gzipped, since only those have a checksum."""
    files = [_idx_file(folder, stem) for stem in IDX_FILES]
    return Found("idx files", folder, tuple(map(Path, filter(None, files)))) if all(files) else None


def _idx_file(folder: Path, stem: str) -> Path | None:
    """An IDX file under any usual name: also with a dot for the last dash, or in a folder of its own name."""
    stems = [stem, stem.replace("-idx", ".idx")]
    if stem.startswith("t10k"):
        stems += [each.replace("t10k", "test") for each in stems]
    names = [name for each in stems for name in (f"{each}.gz", each, f"{each}/{each}")]
    return next((folder / name for name in names if _is_file(folder / name)), None)


def find_csv(name: str, folder: Path) -> Found | None:
    """Two tables with a label and the pixels of an image in every row."""
    for stem in (f"{name}_", f"{name.replace('-', '_')}_", ""):
        files = [
            next((path for end in ("", ".gz") if _is_file(path := folder / f"{stem}{part}.csv{end}")), None)
            for part in ("train", "test")
        ]
        if all(files):
            return Found("csv files", folder, tuple(filter(None, files)))
    return None


def find_class_folders(name: str, folder: Path) -> Found | None:
    """Images in a folder per class, the classes under the dataset's own names or by number."""
    try:
        parts = find_parts(folder)
        known = all(label_of(each, name) is not None for part in parts.values() for each in class_names(part))
    except DataError:
        return None
    if not parts or not known or "validation" in parts:
        return None
    return Found("class folders", folder, (parts["train"], parts["test"]))


def label_of(folder_name: str, dataset: str) -> int | None:
    """The label for a class's folder: ``Ankle_boot``, ``ankle boot`` or ``9``; None if there is none.

    >>> label_of("T-shirt", "fashion-mnist")
    0
    """
    asked = _letters(folder_name)
    for label, name in enumerate(OFFICIAL[dataset].class_names):
        if asked in (str(label), _letters(name), _letters(name.partition("/")[0])):
            return label
    return None


def find_pickled(name: str, folder: Path) -> Found | None:
    """CIFAR-10's Python version: in a folder, in the archive it is distributed as, or as Keras keeps it."""
    for place in (*(folder / below for below in PICKLED_FOLDERS), folder):
        files = tuple(place / file for file in CIFAR10_FILES)
        if all(map(_is_file, files)):
            return Found("pickled batches", place, files)
    archive = next((path for each in PICKLED_ARCHIVES if _is_file(path := folder / each)), None)
    return Found("archive of pickled batches", archive, (archive,)) if archive else None


def find_binary(name: str, folder: Path) -> Found | None:
    """CIFAR-10's binary version, in a folder or in the archive it is distributed as."""
    for place in (folder / BINARY_FOLDER, folder):
        files = tuple(place / f"{file}.bin" for file in CIFAR10_FILES)
        if all(map(_is_file, files)):
            return Found("binary batches", place, files)
    archive = folder / BINARY_ARCHIVE
    return Found("archive of binary batches", archive, (archive,)) if _is_file(archive) else None


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113  (a name that is impossible is no file, not an error)


def _letters(text: str) -> str:
    return re.sub("[^a-z0-9]", "", text.lower())
