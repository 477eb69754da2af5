"""Images as tables: a row has a label and the pixels of an image. pandas is imported when one is read."""

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fgbench.datasets.sources import UNLABELLED
from fgbench.errors import DataError

CHUNK = 10_000


def read_table(path: Path, shape: tuple[int, int, int], num_classes: int) -> tuple[Tensor, Tensor]:
    """Images, uint8 of the shape (N, C, H, W), and labels, int64 of shape (N,), from a CSV file.

    The label is in the column ``label``, or in the first one where no header names it.

    Raises:
        DataError: the file is unreadable or damaged, has no labels, or holds other images.
    """
    import pandas as pd

    pixels = int(np.prod(shape))
    images, labels = [], []
    try:
        first = pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0]
        header = None if first.str.fullmatch(r"\s*[-+0-9.e]+\s*").all() else 0
        names = first.str.strip().str.lower().to_list()
        label = names.index("label") if "label" in names else 0
        if len(first) == pixels:
            raise DataError(
                f"{path} {UNLABELLED}; it has {pixels} columns, all pixels, and a file of labelled images "
                "one more"
            )
        if len(first) != pixels + 1:
            raise DataError(
                f"{path} has {len(first)} columns, expected {pixels + 1}: a label and {pixels} pixels"
            )
        for chunk in pd.read_csv(path, header=header, chunksize=CHUNK):
            values = chunk.to_numpy()
            if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
                raise DataError(f"{path} is damaged: not all of its values are whole numbers of 0 to 255")
            labels.append(values[:, label])
            images.append(np.delete(values, label, axis=1).astype(np.uint8, order="C"))
    except DataError:
        raise
    except (ValueError, IndexError, EOFError, zlib.error, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is damaged: {reason}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if not labels:
        raise DataError(f"{path} is damaged: it has no images")
    all_labels = np.concatenate(labels).astype(np.int64)
    if all_labels.max() >= num_classes:
        raise DataError(f"{path} is damaged: a label is {all_labels.max()}, the largest is {num_classes - 1}")
    return torch.from_numpy(np.concatenate(images)).view(-1, *shape), torch.from_numpy(all_labels)
