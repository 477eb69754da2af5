"""Synthetic images of any size, for tests and timing."""

import torch
from torch import Tensor

from fgbench.datasets.base import ImageData
from fgbench.datasets.options import SyntheticOptions
from fgbench.datasets.search import DataSearch
from fgbench.seeds import derive_generator

NOISE = 40.0
CHUNK = 1024


def load_synthetic(options: SyntheticOptions, search: DataSearch) -> ImageData:
    """A random pattern per class under normal noise; the same images every time.

    Patterns are uniform in 64..192, the noise has a standard deviation of 40 of 255. Class sizes differ by at
    most one.
    """
    generator = derive_generator("cpu", 0, "synthetic images")
    patterns = 64 + 128 * torch.rand(options.classes, *options.shape, generator=generator)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % options.classes
        images = torch.empty(count, *options.shape, dtype=torch.uint8)
        for part, which in zip(
            images.split(CHUNK), labels.split(CHUNK), strict=True
        ):  # in chunks, since floats take memory
            noise = NOISE * torch.randn(part.shape, generator=generator)
            part.copy_(noise.add_(patterns[which]).round_().clamp_(0, 255))
        return images, labels

    class_names = [str(number) for number in range(options.classes)]
    return ImageData(*draw(options.train), *draw(options.test), class_names, source="a random generator")
