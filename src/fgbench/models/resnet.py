"""ResNet-18."""

from torch import Tensor, nn

from fgbench.models.layers import GlobalAveragePool, Stages, hand_over, initialize, normalize
from fgbench.models.options import ResNetOptions

WIDTHS = (1, 2, 4, 8)
"""Filters of each pair of basic blocks, as multiples of the first pair's."""


def build_resnet18(
    options: ResNetOptions, image_shape: tuple[int, int, int], num_classes: int
) -> nn.Sequential:
    """A stem, eight basic blocks and a head: ten stages.

    ``stem: imagenet`` is torchvision's 7x7 convolution of stride 2 and max pool; ``stem: small`` a 3x3
    convolution of stride 1 without a pool. With ``normalization: none`` the convolutions have biases and the
    second one of each block starts at zero, so that every block starts as its shortcut and the features keep
    their scale (Zhang et al., 2019, arXiv 1901.09321). Weights are drawn from the global generator, as
    torchvision draws them.

    Source: He et al. (2015), arXiv 1512.03385, tables 1 and 6.
    """
    kind, channels = options.normalization, options.width
    bias = kind == "none"
    if options.stem == "imagenet":
        convolution = nn.Conv2d(image_shape[0], channels, 7, stride=2, padding=3, bias=bias)
        pool: list[nn.Module] = [nn.MaxPool2d(3, stride=2, padding=1)]
    else:
        convolution = nn.Conv2d(image_shape[0], channels, 3, padding=1, bias=bias)
        pool = []
    stages: list[nn.Module] = [
        nn.Sequential(convolution, *normalize(kind, channels), nn.ReLU(inplace=True), *pool)
    ]
    for width in WIDTHS:
        for stride in (1 if width == 1 else 2, 1):
            stages.append(BasicBlock(channels, width * options.width, stride, kind))
            channels = width * options.width
    head = nn.Sequential(GlobalAveragePool(), nn.Linear(channels, num_classes))
    model = Stages(*stages, head)
    initialize(model)
    if kind == "none":
        for name, param in model.named_parameters():
            if name.endswith("second.0.weight"):
                nn.init.zeros_(param)
    return model


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them: relu(second(first(x)) + shortcut(x)).

    Args:
        in_channels: feature maps of the input.
        out_channels: feature maps of the output.
        stride: of the first convolution; 2 halves height and width.
        normalization: ``batch``, ``group`` or ``none``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, normalization: str) -> None:
        super().__init__()
        norm, bias = normalization, normalization == "none"
        self.first = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=bias),
            *normalize(norm, out_channels),
            nn.ReLU(inplace=True),
        )
        self.second = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias), *normalize(norm, out_channels)
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                *_project(in_channels, out_channels, stride, bias), *normalize(norm, out_channels)
            )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """Features of shape (B, C, H, W) to (B, C', H/stride, W/stride)."""
        box = [features]
        for layer in (
            *self.first,
            *self.second,
        ):  # one by one, to free each layer's input as soon as possible
            box.append(hand_over(layer, box))
        residual = box.pop()
        residual += self.shortcut(features)
        return self.relu(residual)

    def halves(self) -> tuple[nn.Module, nn.Module]:
        """The same block as two stages that share its layers; a pair passes between them."""
        return FirstHalf(self), SecondHalf(self)


def _project(in_channels: int, out_channels: int, stride: int, bias: bool) -> list[nn.Module]:
    """A 1x1 convolution of the given stride.

    The backward pass of a strided 1x1 convolution of few channels in channels_last layout writes outside its
    memory on a CPU (https://github.com/uxlfoundation/oneDNN/issues/6035), so there the stride comes first.
    """
    if stride > 1 and in_channels < 16:
        return [nn.AvgPool2d(1, stride), nn.Conv2d(in_channels, out_channels, 1, bias=bias)]
    return [nn.Conv2d(in_channels, out_channels, 1, stride, bias=bias)]


class FirstHalf(nn.Module):
    """A basic block up to its second convolution: x -> (first(x), shortcut(x)). Shares the block's layers."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.first, self.shortcut = block.first, block.shortcut

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features to the pair that ``SecondHalf`` takes."""
        return self.first(features), self.shortcut(features)


class SecondHalf(nn.Module):
    """The rest of the block: (residual, shortcut) -> relu(second(residual) + shortcut). Shares its layers."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.second, self.relu = block.second, block.relu

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        """The pair of ``FirstHalf`` to the block's outputs."""
        return self.relu(self.second(pair[0]) + pair[1])
