"""Noise of a trainer's gradient and its alignment with the true one, layer by layer."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fgbench.checks.gradients import kept_generators
from fgbench.trainers.backprop import Backprop
from fgbench.trainers.base import LossFunction, Trainer
from fgbench.trainers.replay import RandomStates

WHOLE = ""
"""The key of all layers together."""


@dataclass(frozen=True)
class Quality:
    """A trainer's gradient g_hat of a layer compared with the true one g, over the trainer's randomness.

    Attributes:
        noise: R = E|g_hat - g|^2 / |g|^2, the relative noise (a bias counts too); NaN where g is 0.
        cosine: mean cosine of the angle between them, in -1..1; 0 where either is 0.
        norm: |g|.
        unexplained: share of the outputs' squared change under a perturbation of the layer that the trainer's
            feedback matrices leave unexplained; NaN without any (see :meth:`Trainer.unexplained`).
    """

    noise: float
    cosine: float
    norm: float
    unexplained: float = float("nan")


def gradient_quality(
    trainer: Trainer,
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    draws: int = 1,
) -> dict[str, Quality]:
    """The quality of a trainer's gradient on one batch: by layer, and under ``WHOLE`` for all together.

    Works on copies: the model, its gradients and running statistics, the trainer's state and the global
    generators do not change. Every draw is a step from the same state.

    Args:
        trainer: set up.
        model: in training mode.
        loss_fn: one loss per sample.
        inputs: shape (B, ...).
        labels: shape (B,).
        generator: on the model's device; the trainer's source of randomness.
        draws: how many gradients of the trainer.
    """
    states = RandomStates()
    with kept_generators(inputs.device):
        true = _gradients(Backprop(), model, loss_fn, inputs, labels, generator)
        squares = {layer: torch.zeros((), dtype=torch.float64, device=inputs.device) for layer in true}
        cosines = {layer: square.clone() for layer, square in squares.items()}
        for _ in range(draws):
            states.restore()  # the dropout masks of the true gradient
            estimate = _gradients(trainer, model, loss_fn, inputs, labels, generator)
            for layer, g in true.items():
                squares[layer] += (estimate[layer] - g).square().sum()
                cosine = torch.cosine_similarity(estimate[layer], g, dim=0, eps=0)
                cosines[layer] += cosine.nan_to_num(0.0).clamp(-1, 1)  # rounding may exceed the range
        states.restore()
        copied, copied_trainer = copy.deepcopy((model, trainer))
        unexplained = copied_trainer.unexplained(copied, loss_fn, inputs, labels, generator)
    return {
        layer: Quality(
            (squares[layer] / draws / g.square().sum()).item() if g.any() else float("nan"),
            (cosines[layer] / draws).item(),
            g.norm().item(),
            unexplained.get(layer, float("nan")),
        )
        for layer, g in true.items()
    }


def _gradients(
    trainer: Trainer,
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    labels: Tensor,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The trainer's ``param.grad`` on a copy, by layer and as a whole, as float64 vectors."""
    model, trainer = copy.deepcopy((model, trainer))
    trainer.compute_gradients(model, loss_fn, inputs, labels, generator)
    layers: dict[str, list[Tensor]] = {WHOLE: []}
    for name, param in model.named_parameters():
        if param.requires_grad:
            gradient = torch.zeros_like(param) if param.grad is None else param.grad
            for layer in (WHOLE, name.rpartition(".")[0] or name):
                layers.setdefault(layer, []).append(gradient.detach().double().flatten())
    return {layer: torch.cat(parts) for layer, parts in layers.items()}
