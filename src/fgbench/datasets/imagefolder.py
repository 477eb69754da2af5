"""A user's own images, in a folder per class."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fgbench.datasets.base import ImageData
from fgbench.datasets.class_folders import EXPECTED, PARTS, class_names, find_parts, image_files, listing
from fgbench.datasets.options import ImageFolderOptions
from fgbench.datasets.pictures import read_picture
from fgbench.datasets.search import DataSearch
from fgbench.errors import DataError
from fgbench.paths import expand_path


def load_imagefolder(options: ImageFolderOptions, search: DataSearch) -> ImageData:
    """The images of ``DIR/train/<class>/*`` and ``DIR/test/<class>/*``, resized to ``size`` x ``size``.

    Classes are the folders of ``train`` in alphabetical order; files in folders below them count too, and
    links to folders are followed. Every file must be an image of 8 bits, except hidden ones and
    those with an ending that no image has. Images of a folder ``val`` are the validation images, or the test
    images where there is no ``test``. A relative DIR is searched in the data folder that the user names, or
    else in the current folder and then in the usual ones.

    Raises:
        DataError: a folder is missing or empty, a class is not in ``train``, or a file is not an image.
    """
    folder = _find(options.dir, search)
    parts = find_parts(folder)
    names = class_names(parts["train"])
    for part in parts.values():
        strange = sorted(set(class_names(part)) - set(names))
        if strange:
            raise DataError(f"{part} has classes that {parts['train']} has not: {', '.join(strange)}")
    read = {part: _read_part(place, names, options) for part, place in parts.items()}
    tested = parts["test"].name
    return ImageData(
        *read["train"],
        *read["test"],
        names,
        source=str(folder) if tested.lower() in PARTS["test"] else f"{folder} (tested on {tested}/)",
        validation=read.get("validation"),
    )


def _find(given: str, search: DataSearch) -> Path:
    try:
        path = expand_path(given)
    except ValueError as error:
        raise DataError(f"dataset.dir: {error}") from error
    here = [path.absolute()] if search.named is None else []
    places = dict.fromkeys([*here, *(folder / path for folder in search.folders())])
    for place in places:
        if find_parts(place):
            return place
    looked = ", ".join(f"{place}{_holds(place)}" for place in places)
    raise DataError(f"imagefolder: no folder with {EXPECTED} in it; looked for {looked}")


def _holds(folder: Path) -> str:
    names = listing(folder)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f" (which holds {', '.join(names[:5])}{more})" if names else ""


def _read_part(folder: Path, names: list[str], options: ImageFolderOptions) -> tuple[Tensor, Tensor]:
    channels = 1 if options.grey else 3
    images, labels = [], []
    for label, name in enumerate(names):
        for path in image_files(folder / name):
            images.append(read_picture(path, channels, options.size))
            labels.append(label)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)
