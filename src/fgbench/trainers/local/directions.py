"""Directions of unit length, for a block's weights or its outputs."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from fgbench.trainers.local.blocks import Value
from fgbench.trainers.passes import gradient_norm
from fgbench.trainers.sampling import sample_tangents


def units_of(guess: dict[str, Tensor], *, apart: bool) -> list[dict[str, Tensor]]:
    """A guess by name as unit directions: one for all tensors together, or one for each (``apart``).

    A zero direction stays zero.
    """
    parts = [{name: guess[name]} for name in guess] if apart else [guess]
    units = []
    for part in parts:
        scale = _inverse(gradient_norm(part.values()))
        units.append({name: entries * scale for name, entries in part.items()})
    return units


def unit_per_sample(direction: Value) -> Value:
    """The direction with every sample scaled to unit length, all tensors together."""
    norms = [torch.linalg.vector_norm(each.flatten(1), dim=1) for each in tree_leaves(direction)]
    scale = _inverse(torch.linalg.vector_norm(torch.stack(norms), dim=0))
    return per_sample(scale, direction)


def per_sample(numbers: Tensor, value: Value) -> Value:
    """Every sample's values times that sample's factor, shape (B,)."""
    return tree_map(lambda each: numbers.to(each.dtype).view(-1, *[1] * (each.dim() - 1)) * each, value)


def sample_like(value: Value, guess: str, generator: torch.Generator) -> Value:
    """A random direction of outputs; see :func:`sample_tangents`."""
    leaves, structure = tree_flatten(value)
    named = {str(number): leaf for number, leaf in enumerate(leaves)}
    return tree_unflatten(list(sample_tangents(named, guess, generator).values()), structure)


def _inverse(norm: Tensor) -> Tensor:
    return torch.where(norm > 0, 1 / norm, torch.zeros_like(norm))
