"""Choose the images of fashion-mnist-mini from the full Fashion-MNIST, as they are shipped in the package.

    apt-get install dataset-fashion-mnist && python scripts/make_fashion_mnist_mini.py

Writes 10,000 training and 2,000 test images, as many of each class, in the order of the
full set; the same files every time.
"""

import gzip
from pathlib import Path

import torch
from torch import Tensor

from fgbench.datasets.base import choose_balanced
from fgbench.datasets.forms import IDX_FILES
from fgbench.datasets.mini import FOLDER
from fgbench.datasets.options import StandardOptions
from fgbench.datasets.search import DataSearch
from fgbench.datasets.standard_sets import load_fashion_mnist
from fgbench.seeds import derive_generator


def write_idx(path: Path, values: Tensor) -> None:
    """Write uint8 values as a packed IDX file that is the same byte for byte every time."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    content = bytes((0, 0, 8, values.ndim)) + sizes + values.contiguous().numpy().tobytes()
    path.write_bytes(gzip.compress(content, compresslevel=9, mtime=0))


def main() -> None:
    """Write the four files."""
    data = load_fashion_mnist(StandardOptions(name="fashion-mnist"), DataSearch())
    train = choose_balanced(data.train_labels, 10_000, derive_generator("cpu", 0, "mini train")).sort().values
    test = choose_balanced(data.test_labels, 2_000, derive_generator("cpu", 0, "mini test")).sort().values
    parts = (
        data.train_images[train, 0],
        data.train_labels[train],
        data.test_images[test, 0],
        data.test_labels[test],
    )
    FOLDER.mkdir(exist_ok=True)
    for stem, values in zip(IDX_FILES, parts, strict=True):
        path = FOLDER / f"{stem}.gz"
        write_idx(path, values.to(torch.uint8))
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
