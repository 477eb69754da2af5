"""Option blocks of the datasets."""

import math
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from fgbench.options import Options
from fgbench.paths import expand_path

SideLength = Annotated[int, Field(ge=1, le=4096)]
MAX_SYNTHETIC_BYTES = 2**28


class DatasetOptions(Options):
    """Options every dataset has; a user's own dataset brings a subclass of this."""

    limit: PositiveInt | None = None
    """At most this many training images, balanced over the classes, taken before the split; all when null."""
    test_limit: PositiveInt | None = None
    """At most this many test images, balanced over the classes; the whole official test set when null."""
    augment: bool = False
    """Random crop with padding 4 and horizontal flip of the training images."""
    validation_fraction: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Part of the training images that is held out for validation, chosen at random from the seed."""


def _check_path(path: str) -> str:
    """Find that it can be expanded; it is kept as it was said, so that all machines call a run the same."""
    expand_path(path)
    return path


class StandardOptions(DatasetOptions):
    """Options of ``mnist``, ``fashion-mnist`` and ``cifar10``."""

    verify_content: bool = True
    """Refuse as damaged what has as many images as the official set but other ones."""


class ImageFolderOptions(DatasetOptions):
    """Options of ``imagefolder``."""

    name: str = "imagefolder"
    dir: Annotated[str, AfterValidator(_check_path)] = Field(min_length=1)
    """The folder that holds `train/<class>/*` and `test/<class>/*`, and perhaps `val/<class>/*`."""
    size: SideLength = 32
    """Height and width every image is resized to."""
    grey: bool = False
    """One channel instead of three."""


class SyntheticOptions(DatasetOptions):
    """Options of ``synthetic``."""

    name: str = "synthetic"
    shape: tuple[SideLength, SideLength, SideLength] = (1, 28, 28)
    """Channels, height and width."""
    classes: int = Field(default=10, ge=2, le=100_000)
    """How many classes, each a random pattern under noise."""
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
