"""Option blocks of the datasets."""

import math
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from fgbench.options import Options
from fgbench.paths import expand_path

SideLength = Annotated[int, Field(ge=1, le=4096)]
MAX_SYNTHETIC_BYTES = 2**28


class DatasetOptions(Options):
    """Options of every dataset; a user's own dataset has a subclass of this."""

    limit: PositiveInt | None = None
    """Largest number of training images, balanced over the classes, before the split; all when null."""
    test_limit: PositiveInt | None = None
    """Largest number of test images, balanced over the classes; the whole official test set when null."""
    augment: bool = False
    """Random crop with padding 4 and horizontal flip of the training images."""
    validation_fraction: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Fraction of the training images held out for validation, chosen at random from the seed."""


def _check_path(path: str) -> str:
    """Check that it can be expanded; it is stored as written, so that a run is the same on all machines."""
    expand_path(path)
    return path


class StandardOptions(DatasetOptions):
    """Options of ``mnist``, ``fashion-mnist`` and ``cifar10``."""

    verify_content: bool = True
    """Refuse as damaged files with the official number of images but other content."""


class ImageFolderOptions(DatasetOptions):
    """Options of ``imagefolder``."""

    name: str = "imagefolder"
    dir: Annotated[str, AfterValidator(_check_path)] = Field(min_length=1)
    """The folder that contains `train/<class>/*` and `test/<class>/*`, and optionally `val/<class>/*`."""
    size: SideLength = 32
    """Height and width to which every image is resized."""
    grey: bool = False
    """One channel instead of three."""


class SyntheticOptions(DatasetOptions):
    """Options of ``synthetic``."""

    name: str = "synthetic"
    shape: tuple[SideLength, SideLength, SideLength] = (1, 28, 28)
    """Channels, height and width."""
    classes: int = Field(default=10, ge=2, le=100_000)
    """Number of classes, each a random pattern with noise."""
    train: PositiveInt = 1000
    """Number of training images."""
    test: PositiveInt = 200
    """Number of test images."""

    @model_validator(mode="after")
    def _check(self) -> "SyntheticOptions":
        if (self.train + self.test + self.classes) * math.prod(self.shape) > MAX_SYNTHETIC_BYTES:
            raise ValueError(
                f"more than {MAX_SYNTHETIC_BYTES} bytes of images: lower train, test, classes or shape"
            )
        return self


__all__ = ["DatasetOptions", "ImageFolderOptions", "StandardOptions", "SyntheticOptions"]
