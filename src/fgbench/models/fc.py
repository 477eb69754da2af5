"""The fully connected network."""

from torch import nn

from fgbench.models.layers import Stages
from fgbench.models.options import FCOptions


def build_fc(options: FCOptions, image_shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """Hidden layers of ReLU units and a linear output layer; each is a stage.

    Two hidden layers of 1024 are the MLP of Baydin et al. (2022), arXiv 2202.08587; no hidden layer is their
    logistic regression. Weights are drawn from the global generator, as PyTorch draws them.
    """
    channels, height, width = image_shape
    features = channels * height * width
    stages: list[list[nn.Module]] = []
    for _ in range(options.layers):
        stages.append([nn.Linear(features, options.hidden), nn.ReLU(inplace=True)])
        if options.dropout:
            stages[-1].append(nn.Dropout(options.dropout))
        features = options.hidden
    stages.append([nn.Linear(features, num_classes)])
    stages[0].insert(0, nn.Flatten())
    return Stages(*(nn.Sequential(*stage) for stage in stages))
