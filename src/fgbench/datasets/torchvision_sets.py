"""MNIST, Fashion-MNIST and CIFAR-10 in full.

torchvision fetches and unpacks them. The files are parsed here, strictly: torchvision's own readers miss
damage, run whatever a pickle says, and want one layout of folders.
"""

from functools import lru_cache
from pathlib import Path

from fgbench.datasets.base import ImageData
from fgbench.datasets.cifar import read_cifar10
from fgbench.datasets.idx import read_idx_folder
from fgbench.datasets.options import DatasetOptions
from fgbench.datasets.search import DataSearch
from fgbench.datasets.sources import SOURCES
from fgbench.errors import DataError

MNIST_CLASSES = [str(digit) for digit in range(10)]
FASHION_MNIST_CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
FIRST_LABELS = {"mnist": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], "fashion-mnist": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]}
"""What the official training labels begin with: the files of the two sets have the same names and sizes."""


def load_mnist(options: DatasetOptions, search: DataSearch) -> ImageData:
    """MNIST: 60,000 + 10,000 images of 1x28x28.

    Raises:
        DataError: its files are missing or damaged, or are those of Fashion-MNIST.

    Source:
        LeCun, Bottou, Bengio, Haffner (1998), "Gradient-based learning applied to document recognition".
    """
    return _load("mnist", search)


def load_fashion_mnist(options: DatasetOptions, search: DataSearch) -> ImageData:
    """Fashion-MNIST: 60,000 + 10,000 images of 1x28x28.

    Raises:
        DataError: its files are missing or damaged, or are those of MNIST.

    Source:
        Xiao, Rasul, Vollgraf (2017), arXiv 1708.07747.
    """
    return _load("fashion-mnist", search)


def load_cifar10(options: DatasetOptions, search: DataSearch) -> ImageData:
    """CIFAR-10: 50,000 + 10,000 images of 3x32x32.

    Raises:
        DataError: its files are missing or damaged.

    Source:
        Krizhevsky (2009), "Learning multiple layers of features from tiny images".
    """
    return _load("cifar10", search)


def _load(name: str, search: DataSearch) -> ImageData:
    path = SOURCES[name].obtain(search)
    return _read(name, path, _stamp(path))


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Changes whenever a file does."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {error.strerror}") from error


@lru_cache(maxsize=1)
def _read(name: str, path: Path, stamp: tuple[tuple[str, int, int], ...]) -> ImageData:
    """Parsed once, for all the runs of a process."""
    if name == "cifar10":
        return read_cifar10(path)
    data = read_idx_folder(path, MNIST_CLASSES if name == "mnist" else FASHION_MNIST_CLASSES)
    for other, first in FIRST_LABELS.items():
        if other != name and data.train_labels[:10].tolist() == first:
            raise DataError(
                f"{path} holds {other}, not {name}; keep them apart, in MNIST/raw and FashionMNIST/raw"
            )
    return data
