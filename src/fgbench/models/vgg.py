"""VGG-16."""

from torch import nn

from fgbench.models.layers import GlobalAveragePool, Stages, initialize, normalize
from fgbench.models.options import VGGOptions

WIDTHS = (1, 2, 4, 8, 8)
"""Filters of each group of convolutions, as multiples of the first group's."""
CONVOLUTIONS = (2, 2, 3, 3, 3)
"""Convolutions of each group; a 2x2 max pool follows."""
SMALLEST = 32
"""Five pools leave nothing of a smaller image, so smaller ones get a border of zeros."""


def build_vgg16(options: VGGOptions, image_shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """Thirteen 3x3 convolutions, each a stage with what follows it, and a head.

    Images below 32x32 are padded to 32x32. ``stem: imagenet`` has the head of torchvision's ``vgg16_bn``
    (with ``normalization: none``, ``vgg16``): average pool to 7x7, two hidden linear layers of 4096, output.
    ``stem: small`` has the usual head for small images: average pool to 1x1, then one linear layer from 512
    features to the classes. Weights are drawn from the global generator, as torchvision draws them.

    Source: Simonyan and Zisserman (2014), arXiv 1409.1556, configuration D.
    """
    channels = image_shape[0]
    stages: list[list[nn.Module]] = []
    for width, convolutions in zip(WIDTHS, CONVOLUTIONS, strict=True):
        for _ in range(convolutions):
            convolution = nn.Conv2d(channels, width * options.width, 3, padding=1)
            channels = convolution.out_channels
            stages.append([convolution, *normalize(options.normalization, channels), nn.ReLU(inplace=True)])
        stages[-1].append(nn.MaxPool2d(2))
    stages[0][:0] = _pad(image_shape)
    model = Stages(*(nn.Sequential(*stage) for stage in stages + _head(options, channels, num_classes)))
    initialize(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    return model


def _pad(image_shape: tuple[int, int, int]) -> list[nn.Module]:
    """The layer that pads an image to at least 32x32, if needed."""
    missing_h, missing_w = (max(0, SMALLEST - size) for size in image_shape[1:])
    if not missing_h + missing_w:
        return []
    left, top = missing_w // 2, missing_h // 2
    return [nn.ZeroPad2d((left, missing_w - left, top, missing_h - top))]


def _head(options: VGGOptions, channels: int, num_classes: int) -> list[list[nn.Module]]:
    imagenet = options.stem == "imagenet"
    rate = options.dropout if options.dropout is not None else 0.5 * imagenet

    def dropout() -> list[nn.Module]:
        return [nn.Dropout(rate)] if rate else []

    if not imagenet:
        return [[GlobalAveragePool(), *dropout(), nn.Linear(channels, num_classes)]]
    hidden = 64 * options.width
    flat = [nn.AdaptiveAvgPool2d(7), nn.Flatten()]
    return [
        [*flat, nn.Linear(channels * 7 * 7, hidden), nn.ReLU(inplace=True), *dropout()],
        [nn.Linear(hidden, hidden), nn.ReLU(inplace=True), *dropout()],
        [nn.Linear(hidden, num_classes)],
    ]
