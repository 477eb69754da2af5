"""The full MNIST, Fashion-MNIST and CIFAR-10, in any supported format.

torchvision downloads and unpacks them. Its readers are not used: they miss damage, unpickle arbitrary code,
and require one layout of folders.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fgbench.datasets.base import ImageData
from fgbench.datasets.cifar import read_binary, read_pickled
from fgbench.datasets.class_folders import class_names, image_files
from fgbench.datasets.forms import Found, label_of
from fgbench.datasets.idx import read_idx_pair
from fgbench.datasets.official import OFFICIAL, Official, check_official
from fgbench.datasets.options import StandardOptions
from fgbench.datasets.pictures import read_picture
from fgbench.datasets.search import DataSearch
from fgbench.datasets.sources import SOURCES
from fgbench.datasets.tables import read_table
from fgbench.errors import DataError

Part = tuple[Tensor, Tensor]

FIRST_LABELS = {"mnist": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], "fashion-mnist": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]}
"""The first official training labels: they distinguish the two sets, whose files have the same names."""


def load_mnist(options: StandardOptions, search: DataSearch) -> ImageData:
    """MNIST: 60,000 + 10,000 images of 1x28x28.

    Raises:
        DataError: its files are missing or damaged, or are those of Fashion-MNIST.

    Source:
        LeCun, Bottou, Bengio, Haffner (1998), "Gradient-based learning applied to document recognition".
    """
    return _load("mnist", options, search)


def load_fashion_mnist(options: StandardOptions, search: DataSearch) -> ImageData:
    """Fashion-MNIST: 60,000 + 10,000 images of 1x28x28.

    Raises:
        DataError: its files are missing or damaged, or are those of MNIST.

    Source:
        Xiao, Rasul, Vollgraf (2017), arXiv 1708.07747.
    """
    return _load("fashion-mnist", options, search)


def load_cifar10(options: StandardOptions, search: DataSearch) -> ImageData:
    """CIFAR-10: 50,000 + 10,000 images of 3x32x32.

    Raises:
        DataError: its files are missing or damaged.

    Source:
        Krizhevsky (2009), "Learning multiple layers of features from tiny images".
    """
    return _load("cifar10", options, search)


def _load(name: str, options: StandardOptions, search: DataSearch) -> ImageData:
    found = SOURCES[name].obtain(search)
    return _read(name, found, _stamp(found), options.verify_content)


def _stamp(found: Found) -> tuple[tuple[str, int, int], ...]:
    """A value that changes whenever a file does."""
    try:
        stats = [(str(path), path.stat()) for path in found.all_files()]
    except OSError as error:
        raise DataError(f"cannot read {error.filename or found.place}: {error.strerror}") from error
    return tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats)


@lru_cache(maxsize=1)
def _read(name: str, found: Found, stamp: tuple[tuple[str, int, int], ...], verify: bool) -> ImageData:
    """Read and cached, for all runs of a process."""
    official = OFFICIAL[name]
    train, test = READERS[found.form](found, name, official)
    for other, first in FIRST_LABELS.items():
        if other != name in FIRST_LABELS and train[1][:10].tolist() == first:
            raise DataError(f"{found} holds {other}, not {name}; keep them apart, each in its own folder")
    data = ImageData(*train, *test, list(official.class_names), source=str(found))
    data.check(str(found))
    object.__setattr__(data, "note", check_official(name, data.fingerprint, verify=verify))
    return data


def _read_idx(found: Found, name: str, official: Official) -> tuple[Part, Part]:
    return read_idx_pair(*found.files[:2]), read_idx_pair(*found.files[2:])


def _read_csv(found: Found, name: str, official: Official) -> tuple[Part, Part]:
    train, test = (read_table(path, official.shape, len(official.class_names)) for path in found.files)
    return train, test


def _read_class_folders(found: Found, name: str, official: Official) -> tuple[Part, Part]:
    train, test = (_read_classes(folder, name, official) for folder in found.files)
    return train, test


def _read_classes(folder: Path, name: str, official: Official) -> Part:
    channels, height, width = official.shape
    images, labels = [], []
    for class_name in class_names(folder):
        for path in image_files(folder / class_name):
            pixels = read_picture(path, channels)
            if pixels.shape != official.shape:
                raise DataError(
                    f"{path} has {pixels.shape[2]}x{pixels.shape[1]} pixels, an image of {name} "
                    f"{width}x{height}; dataset imagefolder reads images of any size"
                )
            images.append(pixels)
            labels.append(label_of(class_name, name))
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


READERS: dict[str, Callable[[Found, str, Official], tuple[Part, Part]]] = {
    "idx files": _read_idx,
    "csv files": _read_csv,
    "class folders": _read_class_folders,
    "pickled batches": lambda found, *_: read_pickled(found),
    "archive of pickled batches": lambda found, *_: read_pickled(found),
    "binary batches": lambda found, *_: read_binary(found),
    "archive of binary batches": lambda found, *_: read_binary(found),
}
"""How each form of :mod:`fgbench.datasets.forms` is read."""
