"""The convolutional network."""

import math

from torch import nn

from fgbench.models.layers import Stages, output_shape
from fgbench.models.options import CNNOptions


def build_cnn(options: CNNOptions, image_shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """Two 3x3 convolutions and a 2x2 max pool, twice; then two linear layers. Each layer is a stage.

    Weights are drawn from the global generator, as PyTorch draws them.

    Source: Baydin et al. (2022), arXiv 2202.08587, with 64 filters and 1024 hidden units.
    """
    width = options.width
    stages = [
        nn.Sequential(nn.Conv2d(image_shape[0], width, 3, padding=1), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
    ]
    features = math.prod(output_shape(nn.Sequential(*stages), image_shape))
    head = [nn.Flatten(), nn.Linear(features, options.hidden), nn.ReLU(inplace=True)]
    if options.dropout:
        head.append(nn.Dropout(options.dropout))
    return Stages(*stages, nn.Sequential(*head), nn.Sequential(nn.Linear(options.hidden, num_classes)))
