"""A model small enough to try every direction, with a trainer set up for it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fgbench.checks.gradients import kept_generators
from fgbench.errors import ConfigError
from fgbench.models.build import build_model
from fgbench.models.options import LocalMixerOptions
from fgbench.trainers.base import Trainer


class Probe(NamedTuple):
    """A trainer, set up for a model, with a batch of three classes."""

    trainer: Trainer
    model: nn.Module
    inputs: Tensor
    labels: Tensor


def make_probe(trainer: Trainer, device: torch.device, dtype: torch.dtype = torch.float32) -> Probe:
    """The first of three small models that the trainer accepts: convolutional, a chain, ``local-mixer``.

    Args:
        trainer: not set up yet.
        device: of the model and the batch.
        dtype: of both.

    Raises:
        ConfigError: the trainer accepts none.
    """
    with kept_generators(device):
        torch.manual_seed(0)
        inputs = torch.randn(4, 1, 4, 4).to(device, dtype)
        labels = torch.tensor([0, 1, 2, 0], device=device)
        refusal = ConfigError("there is no small model")
        for build in (_with_convolution, _chain, _mixer):
            model = build().to(device, dtype)
            try:
                trainer.set_up(model, inputs, 3, torch.Generator().manual_seed(0))
            except ConfigError as error:
                refusal = error
            else:
                return Probe(trainer, model, inputs, labels)
    raise refusal


def _with_convolution() -> nn.Module:
    """A convolutional model with a normalisation, whose parameters are not those of ``LAYERS``."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.ReLU()),
        nn.Linear(4, 3),
    )


def _chain() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU()),
        nn.Sequential(nn.Linear(6, 4), nn.ReLU()),
        nn.Linear(4, 3),
    )


def _mixer() -> nn.Module:
    options = LocalMixerOptions(channels=4, groups=2, patches=2, blocks=2)
    model = build_model(options, (1, 4, 4), 3, 0, "cpu")
    nn.init.normal_(model[-1][-1].weight, std=0.5)  # type: ignore[index]
    return model
