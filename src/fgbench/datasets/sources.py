"""The datasets kept as files in known formats: what the files are called, and finding them. No torch."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fgbench.datasets.download import download_locked
from fgbench.datasets.search import DataSearch
from fgbench.errors import DataError

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
CIFAR10_FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


@dataclass(frozen=True)
class Source:
    """A dataset kept as files.

    Attributes:
        name: as in a config.
        torchvision_class: the class of ``torchvision.datasets`` that downloads it.
        places: where in a folder the files may lie.
        find_in: the files in such a place: a folder or an archive, or None where one is missing.
        expected: what the files are called, for messages.
        licence: of the images.
        origin: where it is fetched from, for people.
        package_folder: where a package of the system puts it; looked in last.
    """

    name: str
    torchvision_class: str
    places: tuple[str, ...]
    find_in: Callable[[Path], Path | None]
    expected: str
    licence: str
    origin: str
    package_folder: Path | None = None

    def find(self, search: DataSearch) -> Path | None:
        """Where the dataset's files are, in the first folder that has them all."""
        return next((found for folder in self.folders(search) if (found := self.find_below(folder))), None)

    def find_below(self, folder: Path) -> Path | None:
        """Where the dataset's files are in one folder, in any of the usual layouts."""
        return next((found for place in self.places if (found := self.find_in(folder / place))), None)

    def folders(self, search: DataSearch) -> list[Path]:
        """Where this dataset is looked for."""
        return [*search.folders(), *([self.package_folder] if self.package_folder else [])]

    def obtain(self, search: DataSearch) -> Path:
        """Where the dataset's files are, downloaded if need be and allowed.

        Raises:
            DataError: they are found nowhere and cannot be downloaded.
        """
        found = self.find(search)
        if found is not None:
            return found
        if not search.download:
            raise DataError(f"{self._missing(search)}; downloading is switched off")
        folder = search.download_folder()
        if folder is None:
            raise DataError(f"{self._missing(search)}; none of these can be written to download it")
        try:
            download_locked(self.torchvision_class, folder, lambda: self.find_below(folder) is not None)
        except DataError as error:
            raise DataError(f"{self._missing(search)}; {error}") from error
        found = self.find_below(folder)
        if found is None:
            raise DataError(f"{self._missing(search)}; downloading into {folder} left no such files")
        return found

    def _missing(self, search: DataSearch) -> str:
        looked = ", ".join(f"{folder}{_state(folder)}" for folder in self.folders(search))
        below = ", ".join(place for place in self.places if place)
        return (
            f"{self.name} not found: looked in {looked}; expected {self.expected}, there or below in {below}"
        )


def idx_file(folder: Path, stem: str) -> Path | None:
    """The file of that name; rather packed than not, since only a packed one carries a checksum."""
    return next((path for path in (folder / f"{stem}.gz", folder / stem) if os.path.isfile(path)), None)  # noqa: PTH113


def _find_idx(folder: Path) -> Path | None:
    return folder if all(idx_file(folder, stem) for stem in IDX_FILES) else None


def _find_cifar10(folder: Path) -> Path | None:
    for batches in (folder / "cifar-10-batches-py", folder):
        if all(os.path.isfile(batches / name) for name in CIFAR10_FILES):  # noqa: PTH113
            return batches
    archive = folder / CIFAR10_ARCHIVE
    return archive if os.path.isfile(archive) else None  # noqa: PTH113


def _state(folder: Path) -> str:
    if not os.path.isdir(folder):  # noqa: PTH112
        return " (no such folder)"
    return "" if os.access(folder, os.R_OK | os.X_OK) else " (not readable)"


_IDX_EXPECTED = f"{', '.join(IDX_FILES)} (each also as .gz)"

SOURCES = {
    source.name: source
    for source in (
        Source(
            "mnist",
            "MNIST",
            ("MNIST/raw", "MNIST", "mnist", ""),
            _find_idx,
            _IDX_EXPECTED,
            "CC BY-SA 3.0",
            "ossci-datasets.s3.amazonaws.com/mnist, 11 MB",
        ),
        Source(
            "fashion-mnist",
            "FashionMNIST",
            ("FashionMNIST/raw", "FashionMNIST", "fashion-mnist", ""),
            _find_idx,
            _IDX_EXPECTED,
            "MIT",
            "fashion-mnist.s3-website.eu-central-1.amazonaws.com, 31 MB; also Debian's dataset-fashion-mnist",
            Path("/usr/share/datasets/fashion-mnist"),
        ),
        Source(
            "cifar10",
            "CIFAR10",
            ("", "cifar10"),
            _find_cifar10,
            f"cifar-10-batches-py with {CIFAR10_FILES[0]} to _5 and test_batch, or {CIFAR10_ARCHIVE}",
            "none stated",
            "www.cs.toronto.edu/~kriz/cifar.html, 170 MB",
        ),
    )
}
