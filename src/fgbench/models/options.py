"""Option blocks of the models."""

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from fgbench.options import Options

MOST_LAYERS = 1000
"""A deeper model takes minutes to build; a mistyped number is refused at once."""


class FCOptions(Options):
    """Options of ``fc``."""

    name: str = "fc"
    hidden: PositiveInt = 1024
    """Units of each hidden layer."""
    layers: int = Field(1, ge=0, le=MOST_LAYERS)
    """Hidden layers; 0 is logistic regression."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Probability with which a hidden unit is dropped."""


class CNNOptions(Options):
    """Options of ``cnn``."""

    name: str = "cnn"
    width: PositiveInt = 64
    """Filters of each convolution."""
    hidden: PositiveInt = 1024
    """Units of the hidden linear layer."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Probability with which a unit of the hidden linear layer is dropped."""


class DeepOptions(Options):
    """Options that the deep convolutional models share."""

    stem: Literal["small", "imagenet"] = "small"
    """`small`: for images of about 32x32; `imagenet`: the first and last layers of torchvision's model."""
    normalization: Literal["batch", "group", "none"] = "batch"
    """What follows each convolution: BatchNorm, GroupNorm (at most 32 groups) or nothing."""
    width: PositiveInt = 64
    """Filters of the first convolution; the others keep their proportion to it."""


class VGGOptions(DeepOptions):
    """Options of ``vgg16``."""

    name: str = "vgg16"
    dropout: float | None = Field(None, ge=0.0, lt=1.0)
    """Probability with which a unit of the head is dropped; null: 0.5 with `stem: imagenet`, else 0."""


class ResNetOptions(DeepOptions):
    """Options of ``resnet18``."""

    name: str = "resnet18"


class ViTOptions(Options):
    """Options of ``vit``."""

    name: str = "vit"
    patch: PositiveInt = 4
    """Height and width of the patches that become tokens."""
    width: PositiveInt = 128
    """Features of a token; a multiple of `heads`."""
    depth: int = Field(4, ge=1, le=MOST_LAYERS)
    """Transformer blocks."""
    heads: PositiveInt = 4
    """Attention heads of each block."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Probability with which a feature is dropped."""

    @model_validator(mode="after")
    def _check(self) -> "ViTOptions":
        if self.width % self.heads:
            raise ValueError(f"width: {self.width} is not a multiple of heads: {self.heads}")
        return self


class LocalMixerOptions(Options):
    """Options of ``local-mixer``."""

    name: str = "local-mixer"
    channels: PositiveInt = 512
    """Features of a patch; a multiple of `groups`."""
    groups: PositiveInt = 16
    """Groups of channels that some layers keep separate."""
    patches: PositiveInt = 1
    """Patches along each side of an image."""
    blocks: int = Field(1, ge=1, le=MOST_LAYERS)
    """Blocks, each with its own loss under local trainers."""

    @model_validator(mode="after")
    def _check(self) -> "LocalMixerOptions":
        if self.channels % self.groups:
            raise ValueError(f"channels: {self.channels} is not a multiple of groups: {self.groups}")
        return self


__all__ = ["CNNOptions", "FCOptions", "LocalMixerOptions", "ResNetOptions", "VGGOptions", "ViTOptions"]
