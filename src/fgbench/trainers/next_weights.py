"""Perturbations based on the next layer's weights: only directions that a gradient can have."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fgbench.errors import ConfigError
from fgbench.models.layers import is_bare, runs_in_order

PASSED = (nn.Flatten, nn.Identity)
RIDGE = 1e-14
"""Ridge added to a Gram matrix so that it can be factorised in float64, as a share of its trace times
rows."""


class NextLayer(NamedTuple):
    """The layer that follows a linear layer.

    Attributes:
        weight: of the next linear layer, shape (outputs, inputs), in float64; None after the last one, and
            if it has at least as many outputs as inputs.
        relu: whether there is a ReLU between.
    """

    weight: Tensor | None
    relu: bool

    def narrow(self, drawn: Tensor, output: Tensor) -> Tensor:
        """Draws, shape (B, inputs), projected on the directions a gradient at ``output`` can have.

        It is mask * (W^T delta) for some delta at the next layer's outputs. Each sample's projection is on
        the range of mask * W^T, of as many dimensions as the next layer has outputs at most. With as
        many outputs as inputs every direction is possible, and the draws are unchanged.

        Raises:
            ConfigError: a sample has several rows.
        """
        weight = self.weight
        if weight is None:
            return drawn
        if output.dim() != 2:
            raise ConfigError(
                f"guess: next-weights needs layers whose outputs are (samples, features), got shape "
                f"{tuple(output.shape)}"
            )
        mask = (output > 0 if self.relu else torch.ones_like(output)).double()
        masked = weight * mask[:, None, :]  # (B, outputs, inputs)
        gram = masked @ weight.T
        trace = gram.diagonal(dim1=1, dim2=2).sum(1)
        ridge = (RIDGE * len(weight) * trace).clamp_min(torch.finfo(gram.dtype).tiny)
        gram.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
        along = masked @ drawn.double()[:, :, None]
        factor, _ = torch.linalg.cholesky_ex(gram)
        parts = torch.cholesky_solve(along, factor)
        return (parts * masked).sum(1).to(drawn.dtype)


def find_next_layers(model: nn.Module, layers: Collection[Tensor], trainer: str) -> list[NextLayer]:
    """The layer that follows each perturbed layer of a chain, in the order they run.

    Args:
        model: ``nn.Sequential``s of linear layers, each alone or with a ReLU behind it.
        layers: the parameters of the perturbed layers.
        trainer: its name, for messages.

    Raises:
        ConfigError: the model has another kind of layer, so a gradient may lie outside that range.
    """
    found, linear, relu = [], None, False
    for module in [*_chain(model, trainer), None]:
        if isinstance(module, nn.ReLU):
            relu = True
        elif isinstance(module, nn.Linear) or module is None:
            if linear is not None and any(param in layers for param in linear.parameters()):
                narrows = module is not None and len(module.weight) < module.weight.shape[1]
                found.append(NextLayer(module.weight.detach().double() if module and narrows else None, relu))
            linear, relu = module, False
    return found


def _chain(model: nn.Module, trainer: str) -> Iterator[nn.Module]:
    """The layers of nested sequences, in order."""
    if runs_in_order(model):
        for module in model:
            yield from _chain(module, trainer)
        return
    bare = is_bare(model)
    idle = type(model) is nn.Dropout and (model.p == 0 or not model.training)
    if not bare or not (idle or type(model) in (nn.Linear, nn.ReLU, *PASSED)):
        raise ConfigError(
            f"trainer {trainer}: guess: next-weights needs every layer's outputs to go to the next linear "
            f"layer through a ReLU at most, as in model fc without dropout; this model has a "
            f"{type(model).__name__}{'' if bare else ' with hooks, or a forward of its own'}"
        )
    if not idle:
        yield model
