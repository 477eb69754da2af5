"""Reads the pixels of an image file."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from fgbench.errors import DataError


def read_picture(path: Path, channels: int, size: int | None = None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels of an image file, upright as its EXIF data says; uint8, shape (channels, height, width).

    Args:
        path: any format that Pillow reads.
        channels: 1 for grey, 3 for colour.
        size: height and width to resize it to; unchanged when None.

    Raises:
        DataError: it cannot be read as an image, or has more than 8 bits per value; names it.
    """
    mode = "L" if channels == 1 else "RGB"
    try:
        with Image.open(path) as file:
            if file.mode[0] in "IF" or re.search(r";(16|32)", str(file.tile)):
                raise DataError(
                    f"{path} has more than 8 bits per value ({file.format}, {file.mode}): fgbench reads "
                    "8-bit images; scale it to 0..255 and save it as one"
                )
            if size is not None:
                file.draft(mode, (size, size))  # a JPEG need not be decoded at full size
            image = ImageOps.exif_transpose(file).convert(mode)
            if size is not None:
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            pixels = np.array(image)
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the image {path}: {error}") from error
    return pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1)
