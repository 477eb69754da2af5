"""The IDX format of MNIST and similar sets: four bytes of type, the sizes, the values; usually gzipped."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fgbench.errors import DataError

NUM_CLASSES = 10


def read_idx(path: Path, num_dimensions: int) -> Tensor:
    """A uint8 tensor from an IDX file, plain or gzipped.

    Args:
        path: a name that ends in ``.gz`` is decompressed, which checks its CRC.
        num_dimensions: 3 for images, 1 for labels.

    Raises:
        DataError: the file cannot be read, is truncated or damaged, or is not an IDX file.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    start = 4 + 4 * num_dimensions
    if len(content) < start or content[:4] != bytes((0, 0, 8, num_dimensions)):
        raise DataError(f"{path} is damaged: no IDX file of bytes in {num_dimensions} dimension(s)")
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    expected, got = math.prod(shape), len(content) - start
    if expected != got or expected == 0:
        sizes = "x".join(map(str, shape))
        raise DataError(f"{path} is damaged: its header promises {sizes} = {expected} values, {got} follow")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).copy()).view(shape)


def read_idx_pair(images_path: Path, labels_path: Path) -> tuple[Tensor, Tensor]:
    """Images, uint8 of shape (N, 1, H, W), and labels, int64 of shape (N,).

    Raises:
        DataError: a file is missing, unreadable or damaged, or the two do not match; names it.
    """
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise DataError(f"{images_path} has {len(images)} images, but {labels_path} has {len(labels)} labels")
    if int(labels.max()) >= NUM_CLASSES:
        raise DataError(
            f"{labels_path} is damaged: a label is {int(labels.max())}, the largest is {NUM_CLASSES - 1}"
        )
    return images[:, None], labels.long()
