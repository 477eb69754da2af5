"""What every trainer needs around a forward pass: running statistics, replayed dropout, checked losses."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from fgbench.errors import ConfigError
from fgbench.trainers.base import LossFunction


def trainable_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that require a gradient, by name, detached."""
    return {name: param.detach() for name, param in model.named_parameters() if param.requires_grad}


def sample_losses(loss_fn: LossFunction, outputs: Tensor, labels: Tensor) -> Tensor:
    """One loss per sample, shape (B,).

    Raises:
        ConfigError: ``loss_fn`` returned anything else.
    """
    losses = loss_fn(outputs, labels)
    if losses.shape != labels.shape[:1]:
        raise ConfigError(
            f"loss_fn returned shape {tuple(losses.shape)}, expected one loss per sample, shape "
            f'({labels.shape[0]},): give it reduction="none"'
        )
    return losses


def mean_loss(
    model: nn.Module, loss_fn: LossFunction, inputs: Tensor, labels: Tensor
) -> Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]]:
    """The batch's mean loss as a function of the parameters, ``params -> (loss, outputs)``."""

    def function(params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        outputs = functional_call(model, params, (inputs,))
        return sample_losses(loss_fn, outputs, labels).mean(), outputs

    return function


def gradient_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Euclidean norm over all tensors together, shape ()."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients))))


@contextmanager
def forward_mode_statistics(model: nn.Module, *, update: bool = True) -> Iterator[None]:
    """Let BatchNorm run under ``torch.func``, its statistics moved once or (``update=False``) not at all.

    Under ``torch.func.jvp`` BatchNorm fails only at ``num_batches_tracked += 1``, which would change a
    captured tensor: the counter is hidden for the pass and advanced afterwards. With ``update=False`` the
    momentum is 0 for the pass, so a second pass over the same batch leaves the statistics as the first one
    left them.
    """
    kept = [
        (module, counter, module.momentum)
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training
        if (counter := module.num_batches_tracked) is not None
    ]
    for norm, counter, momentum in kept:
        norm.num_batches_tracked = None
        if not update:
            norm.momentum = 0.0
        elif momentum is None:  # a cumulative average
            norm.momentum = 1.0 / (int(counter) + 1)
    try:
        yield
    finally:
        for norm, counter, momentum in kept:
            norm.num_batches_tracked = counter
            norm.momentum = momentum
            if update:
                counter += 1


class DropoutReplay:
    """Gives several passes over one batch the same dropout masks.

    ``with replay:`` around each pass; every pass after the first starts from the generator state of the
    first. Does nothing for a model without active dropout.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.active = any(
            isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0
            for module in model.modules()
        )
        self.generators = [torch.default_generator] if self.active else []
        if self.active and device.type == "cuda":
            self.generators.append(torch.cuda.default_generators[device.index or 0])
        self.states: list[Tensor] | None = None

    def __enter__(self) -> None:
        if self.states is None:
            self.states = [generator.get_state() for generator in self.generators]
        else:
            for generator, state in zip(self.generators, self.states, strict=True):
                generator.set_state(state)

    def __exit__(self, *_: object) -> None:
        pass
