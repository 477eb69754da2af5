"""CIFAR-10's Python format: pickled batches, in a folder or in the archive they are distributed as."""

import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fgbench.datasets.base import ImageData
from fgbench.datasets.sources import CIFAR10_FILES
from fgbench.errors import DataError

CLASS_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
OFFICIAL_BATCH = 10_000
OFFICIAL_MD5 = {  # as in torchvision.datasets.CIFAR10, whose import takes seconds
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


def read_cifar10(path: Path) -> ImageData:
    """The five training batches and the test batch, from their folder or their archive.

    A batch of 10,000 images, as in the official set, must have the official MD5 sum. A smaller one (a subset
    of one's own) is only checked for its form.

    Raises:
        DataError: a file is missing, unreadable or damaged; names it.
    """
    batches = _read_archive(path) if path.is_file() else _read_folder(path)
    parts = {name: parse_batch(content, f"{path}/{name}") for name, content in batches}
    missing = [name for name in CIFAR10_FILES if name not in parts]
    if missing:
        raise DataError(f"{path} is damaged: no {', '.join(missing)} in it")
    train = [parts[name] for name in CIFAR10_FILES[:-1]]
    test_images, test_labels = parts["test_batch"]
    return ImageData(
        torch.cat([images for images, _ in train]),
        torch.cat([labels for _, labels in train]),
        test_images,
        test_labels,
        CLASS_NAMES,
    )


def parse_batch(content: bytes, place: str) -> tuple[Tensor, Tensor]:
    """Images, uint8 of shape (N, 3, 32, 32), and labels, shape (N,), of one pickled batch.

    Args:
        content: of the file.
        place: the file, for messages.

    Raises:
        DataError: it is damaged, or holds anything but a batch.
    """
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="latin1").load()
        images = batch["data"].to_numpy()
        labels = [int(label) for label in batch["labels"]]
    except Exception as error:  # what a damaged pickle raises is anybody's guess
        raise DataError(f"{place} is damaged: not a batch of CIFAR-10 ({error})") from error
    if images.ndim != 2 or images.shape[1] != 3 * 32 * 32 or not len(images) == len(labels) > 0:
        shape = "x".join(map(str, images.shape))
        raise DataError(
            f"{place} is damaged: {shape} values and {len(labels)} labels are no batch of CIFAR-10"
        )
    if min(labels) < 0 or max(labels) >= len(CLASS_NAMES):
        raise DataError(f"{place} is damaged: labels are {min(labels)} to {max(labels)}, not 0 to 9")
    if len(labels) == OFFICIAL_BATCH:
        _check_md5(content, place)
    return torch.from_numpy(images).view(-1, 3, 32, 32), torch.tensor(labels)


def _check_md5(content: bytes, place: str) -> None:
    official = OFFICIAL_MD5[Path(place).name]
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != official:
        raise DataError(f"{place} is damaged: its MD5 sum is {md5}, not {official}")


def _read_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for name in CIFAR10_FILES:
        try:
            yield name, (folder / name).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {folder / name}: {error.strerror}") from error


def _read_archive(archive: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                file = tar.extractfile(member)
                name = Path(member.name).name
                if file is not None and name in CIFAR10_FILES:
                    yield name, file.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{archive} is damaged: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {archive}: {error.strerror or error}") from error


class _Dtype:
    """Stands for ``numpy.dtype`` in a pickle; remembers what it was made from."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands for ``numpy.ndarray`` in a pickle; remembers its bytes."""

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, str | bytes]) -> None:
        _, self.shape, self.dtype, self.by_columns, self.content = state

    def to_numpy(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The array of bytes, rows first."""
        if self.dtype.name != "u1":
            raise ValueError(f"values of type {self.dtype.name!r}")
        content = self.content.encode("latin1") if isinstance(self.content, str) else self.content
        array = np.frombuffer(content, np.uint8).reshape(self.shape, order="F" if self.by_columns else "C")
        return np.array(array, order="C")


class _BatchUnpickler(pickle.Unpickler):
    """Reads a pickled batch; a hostile file can run nothing, since it can name nothing but what is below."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return lambda *_: _Array()
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return _Dtype
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, _: text.encode("latin1")
        raise pickle.UnpicklingError(f"it names {module}.{name}")
