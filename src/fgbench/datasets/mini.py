"""The part of Fashion-MNIST shipped with the package, so that a first run needs no network."""

from functools import lru_cache
from pathlib import Path

from fgbench.datasets.base import ImageData
from fgbench.datasets.forms import IDX_FILES
from fgbench.datasets.idx import read_idx_pair
from fgbench.datasets.official import OFFICIAL
from fgbench.datasets.options import DatasetOptions
from fgbench.datasets.search import DataSearch

FOLDER = Path(__file__).parent / "fashion_mnist_mini"


def load_fashion_mnist_mini(options: DatasetOptions, search: DataSearch) -> ImageData:
    """10,000 training and 2,000 test images of Fashion-MNIST, balanced over the classes; no search needed.

    Raises:
        DataError: the installed files are damaged.

    Source:
        Xiao, Rasul, Vollgraf (2017), arXiv 1708.07747; chosen by ``scripts/make_fashion_mnist_mini.py``.
    """
    return _read()


@lru_cache(maxsize=1)
def _read() -> ImageData:
    files = [FOLDER / f"{stem}.gz" for stem in IDX_FILES]
    names = list(OFFICIAL["fashion-mnist"].class_names)
    return ImageData(
        *read_idx_pair(*files[:2]), *read_idx_pair(*files[2:]), names, source="the installed package"
    )
