"""Rank-one tangents: the directional derivative for the price of one more forward pass.

A linear layer's tangent is V = u w^T, a convolution's V = u x c x k over outputs, inputs and kernel
positions, all vectors of independent +-1. V x is then a number per sample (and position) times u, and only W
applied to the incoming tangent costs a matrix product. Everything else (biases, normalisation, weights used
in any other way) has a full Rademacher tangent. Entries stay +-1, zero-mean and uncorrelated, so the
estimate has the mean and the total variance of full Rademacher tangents, (P-1)|gradient|^2.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fgbench.trainers.dual_pass import Factors, as_matrix, in_memory_order
from fgbench.trainers.sampling import random_signs
from fgbench.trainers.tangents import Tangents


@dataclass(frozen=True)
class Slot:
    """A parameter, and the lengths of its sign vectors: u, w or u, c, k; or one sign for every entry."""

    param: nn.Parameter
    lengths: tuple[int, ...]

    def tangent(self, vectors: tuple[Tensor, ...]) -> Factors | Tensor:
        """What the sign vectors, shapes (..., length), make."""
        vectors = tuple(vector.to(self.param.dtype) for vector in vectors)
        if len(vectors) == 1:
            return in_memory_order(vectors[0], self.param)
        kernel = vectors[2].unflatten(-1, self.param.shape[2:]) if len(vectors) == 3 else None
        return Factors(vectors[0], vectors[1], kernel)


class RankOneTangents(Tangents):
    """Rank-one tangents wherever a parameter is only a layer's weight; full Rademacher ones elsewhere.

    Drawn are rows of signs, shape (K, num_signs): all the vectors of a tangent one after the other.

    Attributes:
        slots: by name, every trainable parameter not excluded.
        num_signs: random bits of one tangent.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, exclude: Collection[str] = ()) -> None:
        super().__init__(model, inputs, exclude)
        self.slots: dict[str, Slot] = {}
        for name, param in self.params.items():
            lengths: tuple[int, ...] = (param.numel(),)
            if self.watch.only_weight(param) and param.is_floating_point():
                lengths = (*param.shape[:2], *([param[0, 0].numel()] if param.dim() == 4 else []))
            self.slots[name] = Slot(param, lengths)
        self.lengths = [length for slot in self.slots.values() for length in slot.lengths]
        self.num_signs = sum(self.lengths)

    def sample(self, generator: torch.Generator, count: int) -> Tensor:
        """Signs of ``count`` tangents, shape (count, num_signs); the same rows however they are asked for."""
        row = -(-self.num_signs // 64) * 64
        return random_signs(count * row, generator, self.dtype).view(count, row)[:, : self.num_signs]

    def count(self, signs: Tensor) -> int:
        """How many there are."""
        return len(signs)

    def first(self, signs: Tensor) -> Tensor:
        """The signs of the first."""
        return signs[0]

    def along(self, signs: Tensor) -> dict[str, Factors | Tensor]:
        """The tangents that signs (..., num_signs) make."""
        vectors = iter(signs.split(self.lengths, dim=-1))
        return {
            name: slot.tangent(tuple(next(vectors) for _ in slot.lengths))
            for name, slot in self.slots.items()
        }

    def join(self, sets: list[Tensor]) -> Tensor:
        """Several sets of tangents as one."""
        return torch.cat(sets)

    def rows(self, signs: Tensor, start: int, stop: int) -> Tensor:
        """Some of the tangents."""
        return signs[start:stop]

    def dense(self, signs: Tensor) -> dict[str, Tensor]:
        """The products of the vectors, entry by entry."""
        products = {}
        for name, tangent in self.along(signs).items():
            if isinstance(tangent, Factors):
                matrix = tangent.rows[:, :, None] * tangent.inputs[:, None, :]
                kernel = tangent.kernel
                tangent = matrix if kernel is None else matrix[..., None, None] * kernel[:, None, None]
            products[name] = tangent
        return products

    def weighted_sum(self, signs: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """sum_k weights_k v_k, formed once for each parameter."""
        total = {}
        for name, tangent in self.along(signs).items():
            param = self.slots[name].param
            scale = weights.to(param.dtype)
            if isinstance(tangent, Factors):
                matrix = (tangent.rows * scale[:, None]).T @ tangent.columns(param)
                total[name] = matrix.as_strided(param.shape, param.stride())
            else:
                total[name] = torch.tensordot(scale, tangent, 1)
        return total

    def add_to_parameters(self, signs: Tensor, weights: Tensor) -> None:
        """Add sum_k weights_k v_k to the parameters, layer by layer, from the factors."""
        for name, tangent in self.along(signs).items():
            param = self.slots[name].param.detach()
            scale = weights.to(param.dtype)
            if not isinstance(tangent, Factors):
                for row, number in zip(tangent, scale, strict=True):
                    param.addcmul_(row, number)
            elif len(signs) == 1:
                as_matrix(param).addr_(tangent.rows[0] * scale, tangent.columns(param)[0])
            else:
                as_matrix(param).addmm_((tangent.rows * scale[:, None]).T, tangent.columns(param))

    def norm(self, signs: Tensor, weights: Tensor) -> Tensor:
        """Euclidean norm of sum_k weights_k v_k, shape (), from the factors."""
        if len(signs) == 1:
            return weights[0].abs() * math.sqrt(self.num_entries)
        weights = weights.double()
        return (weights @ self.products(signs) @ weights).clamp(min=0).sqrt().to(self.dtype)

    def products(self, signs: Tensor) -> Tensor:
        """<v_j, v_k> of all pairs, shape (K, K), float64, from the factors."""
        vectors = iter(signs.double().split(self.lengths, dim=1))
        total = torch.zeros(len(signs), len(signs), dtype=torch.float64, device=signs.device)
        for slot in self.slots.values():
            factors = [next(vectors) for _ in slot.lengths]
            total += math.prod(factor @ factor.T for factor in factors)
        return total
