"""Rank-one tangents: the directional derivative for the cost of one more forward pass.

A matrix's tangent is V = u w^T, a kernel's V = u x c x k over outputs, inputs and positions, all vectors of
independent +-1. As a layer's weight, V x is then a number per sample (and position) times u, and only W
applied to the incoming tangent costs a matrix product; where a parameter is used in another way, V is formed
in full. Biases and scales have full Rademacher tangents. Entries stay +-1, zero-mean and uncorrelated, so the
estimate has the mean and the total variance of full Rademacher tangents, (P-1)|gradient|^2.
"""

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn
from typing_extensions import override

from fgbench.trainers.forward_mode import Factors
from fgbench.trainers.sampling import drawing, random_signs
from fgbench.trainers.tangents import Tangents


class RankOneTangents(Tangents):
    """Rank-one tangents of all parameters with two dimensions or more; full Rademacher ones of the rest.

    The draws are rows of signs, shape (K, num_signs): all the vectors of a tangent, concatenated.

    Attributes:
        num_signs: random bits of one tangent.
    """

    def __init__(self, model: nn.Module, exclude: Collection[str] = ()) -> None:
        super().__init__(model, exclude)
        self._lengths = {name: _lengths(param) for name, param in self.params.items()}
        self._all_lengths = [length for lengths in self._lengths.values() for length in lengths]
        self.num_signs = sum(self._all_lengths)

    def sample(self, generator: torch.Generator, count: int) -> Tensor:
        """Signs of ``count`` tangents, shape (count, num_signs); the same rows in whatever portions."""
        row = -(-self.num_signs // 64) * 64
        with drawing(generator) as show:
            signs = random_signs(count * row, generator, self.dtype).view(count, row)[:, : self.num_signs]
            vectors = iter(signs.split(self._all_lengths, dim=1))
            show([tuple(next(vectors) for _ in lengths) for lengths in self._lengths.values()])
        return signs

    def along(self, drawn: Tensor) -> dict[str, Factors | Tensor]:
        """The tangents given by signs of shape (K, num_signs)."""
        vectors = iter(drawn.split(self._all_lengths, dim=1))
        tangents: dict[str, Factors | Tensor] = {}
        for name, param in self.params.items():
            one, *others = (next(vectors).to(param.dtype) for _ in self._lengths[name])
            if others:
                kernel = others[1].unflatten(1, param.shape[2:]) if len(others) > 1 else None
                tangents[name] = Factors(one, others[0], kernel)
            else:
                tangents[name] = one.reshape(len(drawn), *param.shape)
        return tangents

    @override
    def join(self, sets: list[Tensor]) -> Tensor:
        return torch.cat(sets)

    @override
    def rows(self, drawn: Tensor, start: int, stop: int) -> Tensor:
        return drawn[start:stop]

    def dense(self, drawn: Tensor) -> dict[str, Tensor]:
        """The products of the vectors, entry by entry."""
        return {
            name: tangent.dense() if isinstance(tangent, Factors) else tangent
            for name, tangent in self.along(drawn).items()
        }

    def weighted_sum(self, drawn: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """sum_k weights_k v_k, formed once for each parameter."""
        return {
            name: tangent.weighted_sum(weights, self.params[name])
            if isinstance(tangent, Factors)
            else torch.tensordot(weights.to(tangent.dtype), tangent, 1)
            for name, tangent in self.along(drawn).items()
        }

    def add_to_parameters(self, drawn: Tensor, weights: Tensor) -> None:
        """Add sum_k weights_k v_k to the parameters, layer by layer, from the factors."""
        for name, tangent in self.along(drawn).items():
            param = self.params[name].detach()
            if isinstance(tangent, Factors):
                tangent.add_to(param, weights)
            else:
                for row, number in zip(tangent, weights.to(param.dtype), strict=True):
                    param.addcmul_(row, number)

    def norm(self, drawn: Tensor, weights: Tensor) -> Tensor:
        """Euclidean norm of sum_k weights_k v_k, shape (), from the factors."""
        if len(drawn) == 1:
            return weights[0].abs() * math.sqrt(self.num_entries)
        weights = weights.double()
        return (weights @ self.products(drawn) @ weights).clamp(min=0).sqrt().to(self.dtype)

    def products(self, drawn: Tensor) -> Tensor:
        """<v_j, v_k> of all pairs, shape (K, K), float64, from the factors."""
        vectors = iter(drawn.double().split(self._all_lengths, dim=1))
        total = torch.zeros(len(drawn), len(drawn), dtype=torch.float64, device=drawn.device)
        for lengths in self._lengths.values():
            factors = [next(vectors) for _ in lengths]
            total += math.prod(factor @ factor.T for factor in factors)
        return total


def _lengths(param: Tensor) -> tuple[int, ...]:
    """How many signs each vector of a parameter's tangent has: outputs, inputs, positions; or one for all."""
    if param.dim() < 2:
        return (param.numel(),)
    return (*param.shape[:2], *([math.prod(param.shape[2:])] if param.dim() > 2 else []))
