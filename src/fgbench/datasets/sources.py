"""The datasets stored as files: where they are searched for, and where they come from."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fgbench.datasets.class_folders import listing
from fgbench.datasets.download import download_locked
from fgbench.datasets.forms import (
    BINARY_ARCHIVE,
    BINARY_FOLDER,
    CIFAR10_FILES,
    IDX_FILES,
    PICKLED_ARCHIVES,
    PICKLED_FOLDERS,
    Found,
    find_binary,
    find_class_folders,
    find_csv,
    find_idx,
    find_pickled,
)
from fgbench.datasets.official import OFFICIAL
from fgbench.datasets.search import DataSearch
from fgbench.errors import DataError, MissingDataError

SHOWN = 6
"""How many file names of a folder a message lists."""

MAX_LINE = 20_000
"""How many bytes of a table's first line are read."""

UNLABELLED = "has no labels: it was made for a competition, and nothing can be measured on it"

UNREAD = {
    **dict.fromkeys((".npz", ".npy", ".parquet", ".mat", ".h5", ".hdf5", ".pt", ".arrow"), "convert"),
    **dict.fromkeys((".tar", ".tgz", ".tar.gz", ".zip", ".7z", ".rar"), "unpack"),
}
"""What to do with files in unsupported formats, by their suffix."""


@dataclass(frozen=True)
class FileDataset:
    """A dataset stored as files.

    Attributes:
        name: as in a config.
        torchvision_class: the class of ``torchvision.datasets`` that downloads it.
        places: where in a folder the files may be.
        forms: the functions that look for its formats; the first that finds its files wins.
        expected: the names of the files, for messages.
        licence: of the images.
        origin: where it is fetched from, for messages.
        package_folder: where a system package installs it; searched last.
    """

    name: str
    torchvision_class: str
    places: tuple[str, ...]
    forms: tuple[Callable[[str, Path], Found | None], ...]
    expected: str
    licence: str
    origin: str
    package_folder: Path | None = None

    def find(self, search: DataSearch) -> Found | None:
        """The dataset's files, in the first folder that has them all."""
        return next((found for folder in self.folders(search) if (found := self.find_below(folder))), None)

    def find_below(self, folder: Path) -> Found | None:
        """The dataset's files in one folder, in any of the usual layouts and forms."""
        looks = ((folder / place, form) for place in self.places for form in self.forms)
        return next((found for place, form in looks if (found := form(self.name, place))), None)

    def folders(self, search: DataSearch) -> list[Path]:
        """The folders searched for this dataset: the one given by the user, or else all usual ones."""
        package = [self.package_folder] if self.package_folder and search.named is None else []
        return [*search.folders(), *package]

    def obtain(self, search: DataSearch) -> Found:
        """The dataset's files, downloaded if necessary and allowed.

        Raises:
            MissingDataError: they are not found and cannot be downloaded.
            DataError: the folder given by the user contains something else.
        """
        found = self.find(search)
        if found is not None:
            return found
        self._refuse_strange(search)
        if not search.download:
            raise MissingDataError(f"{self._missing(search)}; downloading is switched off", self.name)
        folder = search.download_folder()
        if folder is None:
            raise MissingDataError(
                f"{self._missing(search)}; none of these can be written to download it", self.name
            )
        try:
            download_locked(self.torchvision_class, folder, lambda: self.find_below(folder) is not None)
        except DataError as error:
            raise MissingDataError(f"{self._missing(search)}; {error}", self.name) from error
        found = self.find_below(folder)
        if found is None:
            raise DataError(f"{self._missing(search)}; downloading into {folder} left no such files")
        return found

    def _refuse_strange(self, search: DataSearch) -> None:
        """Refuse a folder given by the user that contains something else.

        Nothing is downloaded into it, and no other copy is used instead.
        """
        if search.named is None:
            return
        strange = [name for name in listing(search.named) if name not in _usual_names()]
        elsewhere = self.find(DataSearch(download=False))
        if strange or elsewhere:
            hint = (
                f"; another copy is in {elsewhere}: it is used where no folder is named" if elsewhere else ""
            )
            raise DataError(f"{self._missing(search)}{hint}")

    def _missing(self, search: DataSearch) -> str:
        looked = ", ".join(f"{folder}{self._state(folder)}" for folder in self.folders(search))
        below = ", ".join(place for place in self.places if place)
        return (
            f"{self.name} not found: looked in {looked}; expected {self.expected}, there or below in {below}"
        )

    def _state(self, folder: Path) -> str:
        """What is in a folder, and what to do with unsupported files in it."""
        if not os.path.isdir(folder):  # noqa: PTH112
            return " (no such folder)"
        if not os.access(folder, os.R_OK | os.X_OK):
            return " (not readable)"
        place = next((below for each in self.places if each and listing(below := folder / each)), folder)
        names = listing(place)
        if not names:
            return " (empty)"
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        holder = "which" if place == folder else str(place.relative_to(folder))
        return f" ({holder} holds {', '.join(names[:SHOWN])}{more}{self._advice(place, names)})"

    def _advice(self, folder: Path, names: list[str]) -> str:
        """What to do with unsupported files in a folder."""
        for name in names:
            todo = next((todo for end, todo in UNREAD.items() if name.lower().endswith(end)), None)
            if todo == "unpack":
                return f"; {name} is not read as it is: unpack it there"
            if todo == "convert":
                return f"; {name} is not read: save its images as train/<class>/*.png and test/<class>/*.png"
        if find_csv in self.forms and "test.csv" in names and "train.csv" not in names:
            if _count_columns(folder / "test.csv") == math.prod(OFFICIAL[self.name].shape):
                return f"; test.csv {UNLABELLED}"
            return "; test.csv without train.csv"
        return ""


def _usual_names() -> set[str]:
    """The names of the known datasets' folders in a common folder."""
    places = [place for source in SOURCES.values() for place in source.places]
    names = [*places, *PICKLED_FOLDERS, *PICKLED_ARCHIVES, BINARY_FOLDER, BINARY_ARCHIVE]
    return {name.partition("/")[0] for name in names}


def _count_columns(table: Path) -> int:
    try:
        with table.open(errors="replace") as file:
            return file.readline(MAX_LINE).count(",") + 1
    except OSError:
        return 0


_CLASS_FOLDERS = "train/<class>/*.png and test/<class>/*.png"


def _expected_idx(name: str) -> str:
    return (
        f"{', '.join(IDX_FILES)} (each also as .gz), or {name}_train.csv and {name}_test.csv, "
        f"or {_CLASS_FOLDERS}"
    )


SOURCES = {
    source.name: source
    for source in (
        FileDataset(
            "mnist",
            "MNIST",
            ("MNIST/raw", "MNIST", "mnist", "mnist_png", ""),
            (find_idx, find_csv, find_class_folders),
            _expected_idx("mnist"),
            "CC BY-SA 3.0",
            "ossci-datasets.s3.amazonaws.com/mnist, 11 MB",
        ),
        FileDataset(
            "fashion-mnist",
            "FashionMNIST",
            ("FashionMNIST/raw", "FashionMNIST", "fashion-mnist", "fashion_mnist", ""),
            (find_idx, find_csv, find_class_folders),
            _expected_idx("fashion-mnist"),
            "MIT",
            "fashion-mnist.s3-website.eu-central-1.amazonaws.com, 31 MB; also Debian's dataset-fashion-mnist",
            Path("/usr/share/datasets/fashion-mnist"),
        ),
        FileDataset(
            "cifar10",
            "CIFAR10",
            ("", "cifar10", "CIFAR10", "cifar-10", "CIFAR-10-images"),
            (find_pickled, find_binary, find_class_folders),
            f"cifar-10-batches-py with {CIFAR10_FILES[0]} to _5 and test_batch, cifar-10-batches-bin with "
            f"the same as .bin, cifar-10-python.tar.gz, or {_CLASS_FOLDERS}",
            "none stated",
            "www.cs.toronto.edu/~kriz/cifar.html, 170 MB",
        ),
    )
}
