"""The last stages of a sequential model, trained by backprop that stops before them."""

import torch
from torch import Tensor, nn

from fgbench.errors import ConfigError
from fgbench.trainers.base import LossFunction
from fgbench.trainers.local.blocks import require_stages
from fgbench.trainers.passes import differentiate, sample_losses


class LastStages:
    """The last n top-level stages of an ``nn.Sequential``.

    Args:
        model: with parameters to train before these stages and in them.
        count: n.

    Attributes:
        names: their trainable parameters' names in the model.

    Raises:
        ConfigError: the model is not sequential, or has nothing to train before or in these stages.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        model = require_stages(model, f"exact_stages: {count}")
        self.model, self.first = model, max(0, len(model) - count)
        last = {id(param) for stage in list(model)[self.first :] for param in stage.parameters()}
        front = {id(param) for stage in list(model)[: self.first] for param in stage.parameters()}
        trained = {name: id(param) for name, param in model.named_parameters() if param.requires_grad}
        self.names = {name for name, key in trained.items() if key in last}
        if last & front or not self.names or len(self.names) == len(trained):
            raise ConfigError(
                f"exact_stages: got {count}, expected fewer than the {len(model)} stages of this model, with "
                "parameters of their own to train and others before them (backprop trains all)"
            )

    def gradients(
        self, loss_fn: LossFunction, inputs: Tensor, labels: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """A pass whose graph begins at these stages: exact gradients by name, loss, outputs, all detached."""
        value = inputs
        with torch.no_grad():
            for stage in list(self.model)[: self.first]:
                value = stage(value)
        params = {name: self.model.get_parameter(name) for name in sorted(self.names)}
        with torch.enable_grad():
            for stage in list(self.model)[self.first :]:
                value = stage(value)
            loss = sample_losses(loss_fn, value, labels).mean()
            found = differentiate([loss], list(params.values()))
        return dict(zip(params, found, strict=True)), loss.detach(), value.detach()
