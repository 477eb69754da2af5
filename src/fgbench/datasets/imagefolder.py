"""A user's own images, in a folder per class."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fgbench.datasets.base import ImageData
from fgbench.datasets.options import ImageFolderOptions
from fgbench.datasets.search import DataSearch
from fgbench.errors import DataError
from fgbench.paths import expand_path


def load_imagefolder(options: ImageFolderOptions, search: DataSearch) -> ImageData:
    """The images of ``DIR/train/<class>/*`` and ``DIR/test/<class>/*``, stretched to ``size`` x ``size``.

    Classes are the folders of ``train`` in alphabetical order; files in folders below them count too. Every
    file must be an image, hidden ones aside. A relative DIR is looked for in the current folder, then in the
    data folders.

    Raises:
        DataError: a folder is missing or empty, a class is only in ``test``, or a file is no image.
    """
    folder = _find(options.dir, search)
    class_names = _class_names(folder / "train")
    strange = sorted(set(_class_names(folder / "test")) - set(class_names))
    if strange:
        raise DataError(
            f"{folder / 'test'} has classes that {folder / 'train'} has not: {', '.join(strange)}"
        )
    train_images, train_labels = _read_part(folder / "train", class_names, options)
    test_images, test_labels = _read_part(folder / "test", class_names, options)
    return ImageData(train_images, train_labels, test_images, test_labels, class_names)


def read_image(path: Path, size: int, *, grey: bool) -> Tensor:
    """One image as uint8, shape (1, size, size) if grey, else (3, size, size).

    Raises:
        DataError: the file cannot be read as an image; names it.
    """
    mode = "L" if grey else "RGB"
    try:
        with Image.open(path) as file:
            file.draft(mode, (size, size))  # a JPEG need not be unpacked at full size
            image: Image.Image = file
            if file.mode.startswith("I"):  # Pillow cuts 16 bits off at 255 where it should divide
                image = Image.fromarray((np.asarray(file) >> 8).clip(0, 255).astype(np.uint8))
            pixels = np.array(image.convert(mode).resize((size, size), Image.Resampling.BILINEAR))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the image {path}: {error}") from error
    return torch.from_numpy(pixels.reshape(size, size, -1)).permute(2, 0, 1)


def _find(given: str, search: DataSearch) -> Path:
    path = expand_path(given)
    places = dict.fromkeys([path.absolute(), *(folder / path for folder in search.folders())])
    for place in places:
        if os.path.isdir(place / "train") and os.path.isdir(place / "test"):  # noqa: PTH112
            return place
    looked = ", ".join(map(str, places))
    raise DataError(
        f"imagefolder: no folder with train/<class>/* and test/<class>/* in it; looked for {looked}"
    )


def _class_names(folder: Path) -> list[str]:
    try:
        names = sorted(
            path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}") from error
    if not names:
        raise DataError(
            f"{folder} has no folders: images must be in a folder per class, as in {folder / 'cat'}"
        )
    return names


def _image_files(folder: Path) -> list[Path]:
    if not os.path.isdir(folder):  # noqa: PTH112
        return []  # a class without test images
    files: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(place, name) for name in names if not name.startswith(".")]
    if not files:
        raise DataError(f"{folder} has no images")
    return sorted(files)


def _refuse(error: OSError) -> None:
    raise DataError(f"cannot read {error.filename}: {error.strerror}") from error


def _read_part(folder: Path, class_names: list[str], options: ImageFolderOptions) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    for label, name in enumerate(class_names):
        for path in _image_files(folder / name):
            images.append(read_image(path, options.size, grey=options.grey))
            labels.append(label)
    return torch.stack(images), torch.tensor(labels)
