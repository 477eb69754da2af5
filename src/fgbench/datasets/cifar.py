"""CIFAR-10's own formats: pickled and binary batches, in a folder or in an archive."""

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fgbench.datasets.forms import CIFAR10_FILES, Found
from fgbench.errors import DataError

NUM_CLASSES = 10
PIXELS = 3 * 32 * 32
Batch = tuple[Tensor, Tensor]


def read_pickled(found: Found) -> tuple[Batch, Batch]:
    """The training and the test part of the Python version, from its batches or their archive.

    Raises:
        DataError: a file is missing, unreadable or damaged; names it.
    """
    return _join(found, CIFAR10_FILES, parse_batch)


def read_binary(found: Found) -> tuple[Batch, Batch]:
    """The training and the test part of the binary version, from its batches or their archive.

    Raises:
        DataError: a file is missing, unreadable or damaged; names it.
    """
    return _join(found, tuple(f"{name}.bin" for name in CIFAR10_FILES), parse_binary_batch)


def parse_batch(content: bytes, place: str) -> Batch:
    """Images, uint8 of shape (N, 3, 32, 32), and labels, shape (N,), of one pickled batch.

    Args:
        content: of the file.
        place: the file, for messages.

    Raises:
        DataError: it is damaged, or is not a batch.
    """
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="latin1").load()
        batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        images, labels = batch["data"].to_numpy(), batch["labels"]
        labels = labels.to_numpy().reshape(-1).tolist() if isinstance(labels, _Array) else labels
        labels = [int(label) for label in labels]
        if images.dtype != np.uint8:
            raise ValueError(f"values of type {images.dtype}")
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{place} is damaged: not a batch of CIFAR-10 ({error})") from error
    if images.ndim != 2 or images.shape[1] != PIXELS or not len(images) == len(labels) > 0:
        shape = "x".join(map(str, images.shape))
        raise DataError(
            f"{place} is damaged: {shape} values and {len(labels)} labels are no batch of CIFAR-10"
        )
    if min(labels) < 0 or max(labels) >= NUM_CLASSES:
        raise DataError(f"{place} is damaged: labels are {min(labels)} to {max(labels)}, not 0 to 9")
    return torch.from_numpy(images).view(-1, 3, 32, 32), torch.tensor(labels)


def parse_binary_batch(content: bytes, place: str) -> Batch:
    """The same for one binary batch: a byte of label and 3072 bytes of pixels for every image."""
    if not content or len(content) % (1 + PIXELS):
        raise DataError(f"{place} is damaged: {len(content)} bytes are no whole number of images")
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXELS)
    if rows[:, 0].max() >= NUM_CLASSES:
        raise DataError(f"{place} is damaged: a label is {rows[:, 0].max()}, the largest is 9")
    images = np.ascontiguousarray(rows[:, 1:]).reshape(-1, 3, 32, 32)
    return torch.from_numpy(images), torch.from_numpy(rows[:, 0].astype(np.int64))


def _join(found: Found, names: tuple[str, ...], parse: Callable[[bytes, str], Batch]) -> tuple[Batch, Batch]:
    is_archive = len(found.files) == 1
    contents = _read_archive(found.files[0], names) if is_archive else _read_files(found.files)
    batches = {name: parse(content, f"{found.place}/{name}") for name, content in contents}
    missing = [name for name in names if name not in batches]
    if missing:
        raise DataError(f"{found.place} is damaged: no {', '.join(missing)} in it")
    images, labels = zip(*(batches[name] for name in names[:-1]), strict=True)
    return (torch.cat(images), torch.cat(labels)), batches[names[-1]]


def _read_files(files: tuple[Path, ...]) -> Iterator[tuple[str, bytes]]:
    for file in files:
        try:
            yield file.name, file.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror}") from error


def _read_archive(archive: Path, names: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                file = tar.extractfile(member)
                name = Path(member.name).name
                if file is not None and name in names:
                    yield name, file.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{archive} is damaged: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {archive}: {error.strerror or error}") from error


class _Dtype:
    """Replaces ``numpy.dtype`` in a pickle; stores its arguments."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name, self.order = name, "|"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def to_numpy(self) -> np.dtype[Any]:
        """The type, if it is an integer type."""
        if self.name[0] not in "iu" or self.order not in "|<>=":
            raise ValueError(f"values of type {self.name!r}")
        return np.dtype(self.order + self.name)


class _Array:
    """Replaces ``numpy.ndarray`` in a pickle; stores its bytes."""

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, str | bytes]) -> None:
        _, self.shape, self.dtype, self.by_columns, self.content = state

    def to_numpy(self) -> np.ndarray[Any, Any]:
        """The array, rows first."""
        content = self.content.encode("latin1") if isinstance(self.content, str) else self.content
        array = np.frombuffer(content, self.dtype.to_numpy())
        return np.array(array.reshape(self.shape, order="F" if self.by_columns else "C"), order="C")


def _scalar(dtype: _Dtype, content: str | bytes) -> int:
    content = content.encode("latin1") if isinstance(content, str) else content
    return int(np.frombuffer(content, dtype.to_numpy())[0])


class _BatchUnpickler(pickle.Unpickler):
    """Reads a pickled batch; a malicious file cannot run code, since only the names below are allowed."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            if name == "_reconstruct":
                return lambda *_: _Array()
            if name == "scalar":
                return _scalar
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return _Dtype
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, _: text.encode("latin1")
        raise pickle.UnpicklingError(f"it names {module}.{name}")
