"""Image data as loaded, and its splits on the training device."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from fgbench.datasets.augmentation import crop_and_flip
from fgbench.datasets.fingerprint import Fingerprint, take_fingerprint
from fgbench.datasets.options import DatasetOptions
from fgbench.datasets.search import DataSearch
from fgbench.errors import ConfigError, DataError
from fgbench.options import Options
from fgbench.registry import load
from fgbench.seeds import derive_generator


@dataclass(frozen=True)
class ImageData:
    """The result of a loader: every image as read, before any limit or split.

    Attributes:
        train_images: uint8, shape (N, C, H, W).
        train_labels: int64 class indices, shape (N,).
        test_images: uint8, shape (M, C, H, W).
        test_labels: int64, shape (M,).
        class_names: one per class.
        source: where they were read from, for messages.
        note: a remark for the user, for example that they are not the official set.
        validation: images and labels for validation; None if a part of the training images is held out.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: list[str]
    source: str = ""
    note: str = ""
    validation: tuple[Tensor, Tensor] | None = None

    @property
    def parts(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Images and labels by part."""
        own = {"validation": self.validation} if self.validation is not None else {}
        return {
            "train": (self.train_images, self.train_labels),
            **own,
            "test": (self.test_images, self.test_labels),
        }

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint of these images."""
        arrays = {name: (images.numpy(), labels.numpy()) for name, (images, labels) in self.parts.items()}
        return take_fingerprint(self.source, arrays, len(self.class_names))

    def check(self, source: str) -> None:
        """Check types, shapes and labels.

        Raises:
            DataError: one is not as documented above; names ``source``.
        """
        if len(self.class_names) < 2:
            raise DataError(
                f"{source}: only one class ({', '.join(self.class_names)}), expected at least two: every "
                "model would be right; are the class folders one level deeper?"
            )
        if len(set(self.class_names)) < len(self.class_names):
            raise DataError(f"{source}: two classes of one name ({', '.join(self.class_names)})")
        for part, (images, labels) in self.parts.items():
            if len(images) == 0:
                raise DataError(f"{source}: no {part} images")
            if images.dtype != torch.uint8 or images.ndim != 4 or 0 in images.shape:
                got = f"{images.dtype} of shape {tuple(images.shape)}"
                raise DataError(
                    f"{source}: {part} images must be torch.uint8 of shape (N, C, H, W), got {got}"
                )
            if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
                got = f"{labels.dtype} of shape {tuple(labels.shape)}"
                raise DataError(
                    f"{source}: {part} labels must be torch.int64 of shape ({len(images)},), got {got}"
                )
            if labels.min() < 0 or labels.max() >= len(self.class_names):
                got = f"{int(labels.min())} to {int(labels.max())}"
                raise DataError(
                    f"{source}: {part} labels must be 0 to {len(self.class_names) - 1}, got {got}"
                )
            if images.shape[1:] != self.train_images.shape[1:]:
                shapes = f"{tuple(self.train_images.shape[1:])} and {tuple(images.shape[1:])}"
                raise DataError(f"{source}: train and {part} images differ in shape: {shapes}")
        if self.train_labels.min() == self.train_labels.max():
            only = self.class_names[int(self.train_labels[0])]
            raise DataError(f"{source}: all training images are of one class ({only}), expected two or more")


@dataclass(frozen=True)
class Split:
    """Images and labels on the training device, from which batches are taken there.

    Attributes:
        images: uint8, shape (N, H, W, C), contiguous.
        labels: int64, shape (N,).
        mean: per channel, in units of 0..1, shape (C,).
        std: per channel, in units of 0..1, shape (C,).
        augment: whether a batch drawn with a generator is cropped and flipped at random.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    augment: bool = False
    _scale: Tensor = field(init=False, repr=False)
    _shift: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        scale = 1 / (255 * self.std)
        # Expanded to every pixel: broadcasting over three channels takes five times as long on a CPU.
        shape = self.images.shape[1:]
        object.__setattr__(self, "_scale", scale.expand(shape).contiguous())
        object.__setattr__(self, "_shift", (-255 * self.mean * scale).expand(shape).contiguous())

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Normalised images and labels, computed on the device.

        Args:
            indices: which images, int64 on the device, shape (B,).
            generator: on the device; the source of the augmentation's randomness. None: no augmentation.

        Returns:
            inputs, float32 of shape (B, C, H, W) in channels_last strides, and labels of shape (B,).
        """
        images = self.images.index_select(0, indices)
        if self.augment and generator is not None:
            images = crop_and_flip(images, generator)
        inputs = torch.addcmul(self._shift, images.float(), self._scale)
        return inputs.permute(0, 3, 1, 2), self.labels.index_select(0, indices)


@dataclass(frozen=True)
class Splits:
    """The three parts of a dataset on the device."""

    train: Split
    validation: Split
    test: Split
    class_names: list[str]
    fingerprint: Fingerprint | None = None
    note: str = ""

    def __str__(self) -> str:
        """The numbers of images and classes, and the source."""
        counts = " + ".join(f"{len(part):,}" for part in (self.train, self.validation, self.test))
        source = f", from {self.fingerprint.source}" if self.fingerprint else ""
        note = f" ({self.note})" if self.note else ""
        return f"{counts} images, {self.num_classes} classes{source}{note}"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        height, width, channels = self.train.images.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def largest_class(self) -> dict[str, float]:
        """The share of the largest class among the images of each part that has any."""
        parts = {"train": self.train, "val": self.validation, "test": self.test}
        return {
            name: int(part.labels.cpu().bincount().max()) / len(part)
            for name, part in parts.items()
            if len(part)
        }

    @property
    def bytes(self) -> int:
        """Memory of the images and labels on the device."""
        return sum(s.images.nbytes + s.labels.nbytes for s in (self.train, self.validation, self.test))


def load_data(options: Options, search: DataSearch) -> ImageData:
    """Load a dataset and check the result.

    Args:
        options: the option block of a dataset.
        search: where to look for files.

    Raises:
        DataError: the files are missing, unreadable or damaged, or the images or labels are invalid.
        ConfigError: there is no such dataset, or a user's own dataset is invalid.
    """
    loader = load("dataset", options.name)
    if not isinstance(options, DatasetOptions):
        raise ConfigError(f"{options.name}: its Options must be a fgbench.datasets.options.DatasetOptions")
    data = loader(options, search)
    if not isinstance(data, ImageData):
        raise ConfigError(
            f"{options.name}: must return a fgbench.datasets.base.ImageData, got {type(data).__name__}"
        )
    data.check(options.name)
    return data if data.source else replace(data, source=options.name)


def load_splits(options: Options, seed: int, device: torch.device | str, search: DataSearch) -> Splits:
    """Load a dataset and move its three parts to the device.

    The limit, then the split, are drawn from the seed alone, so every trainer and model sees the same parts.
    The validation part has ``round(N * validation_fraction)`` of the N training images, unless the data
    has validation images. Mean and standard deviation are those of the training part.

    Args:
        options: the option block of a dataset.
        seed: the run's.
        device: where batches will be computed.
        search: where to look for files.

    Raises:
        DataError: the files are missing, unreadable or damaged, or too few to split.
        ConfigError: there is no such dataset, or a user's own dataset is invalid.
    """
    data = load_data(options, search)
    assert isinstance(options, DatasetOptions)
    kept = choose_balanced(data.train_labels, options.limit, derive_generator("cpu", seed, "limit"))
    tested = choose_balanced(
        data.test_labels, options.test_limit, derive_generator("cpu", seed, "test limit")
    )
    shuffled = kept[torch.randperm(len(kept), generator=derive_generator("cpu", seed, "split"))]
    num_validation = 0 if data.validation is not None else _count_validation(len(kept), options)
    held_out = shuffled[:num_validation]
    trained = _channels_last(data.train_images, shuffled[num_validation:])
    mean, std = channel_statistics(trained)

    def split(images: Tensor, labels: Tensor, *, augment: bool = False) -> Split:
        return Split(images.to(device), labels.to(device), mean.to(device), std.to(device), augment)

    if data.validation is not None:
        if options.validation_fraction != type(options).model_fields["validation_fraction"].default:
            raise DataError(
                f"{options.name}: {data.source} brings validation images, so leave out "
                "dataset.validation_fraction"
            )
        images, labels = data.validation
        validation = split(_channels_last(images, torch.arange(len(images))), labels)
    else:
        validation = split(_channels_last(data.train_images, held_out), data.train_labels[held_out])
    return Splits(
        split(trained, data.train_labels[shuffled[num_validation:]], augment=options.augment),
        validation,
        split(_channels_last(data.test_images, tested), data.test_labels[tested]),
        list(data.class_names),
        data.fingerprint,
        data.note,
    )


def choose_balanced(labels: Tensor, limit: int | None, generator: torch.Generator) -> Tensor:
    """Indices of at most ``limit`` samples, balanced over the classes, or of all when None.

    A class with too few samples contributes all of them. A larger limit starts with the samples of a smaller
    one.

    Args:
        labels: int64, shape (N,).
        limit: how many to take.
        generator: on the CPU.

    Returns:
        Indices, shape (min(N, limit),).
    """
    if limit is None or limit >= len(labels):
        return torch.arange(len(labels))
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = torch.argsort(labels[shuffled], stable=True)
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(by_class)
    rank[by_class] = torch.arange(len(labels)) - starts.repeat_interleave(counts)
    turn = torch.randperm(len(counts), generator=generator)[labels[shuffled]]
    return shuffled[torch.argsort(rank * len(counts) + turn)[:limit]]


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel in units of 0..1, from exact counts of the 256 values.

    A constant channel gets the standard deviation 1.

    Args:
        images: uint8, shape (N, H, W, C).

    Returns:
        Two float32 tensors of shape (C,).
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack(
        [torch.bincount(channel.reshape(-1), minlength=256) for channel in images.unbind(-1)]
    )
    weights = counts.double() / counts.sum(1, keepdim=True)
    mean = weights @ values
    std = ((weights @ values.square()) - mean.square()).clamp(min=0).sqrt()
    constant = (counts > 0).sum(1) == 1
    return mean.float(), torch.where(constant, 1.0, std).float()


def _count_validation(num_images: int, options: DatasetOptions) -> int:
    if not options.validation_fraction:
        return 0
    if num_images < 2:
        raise DataError(f"{options.name}: {num_images} training image cannot be split in two")
    return min(max(round(num_images * options.validation_fraction), 1), num_images - 1)


def _channels_last(images: Tensor, indices: Tensor) -> Tensor:
    return images.index_select(0, indices).permute(0, 2, 3, 1).contiguous()
