"""Directions of which less is kept than their entries: seeds to draw them again from, or rank-one factors."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from fgbench.seeds import derive_generator, draw_seed
from fgbench.trainers.forward_mode import Factors
from fgbench.trainers.passes import gradient_norm
from fgbench.trainers.rank_one import RankOneTangents
from fgbench.trainers.sampling import sample_tangents


class Directions(ABC):
    """The K directions of a step, v_1 to v_K, over all trainable parameters that are not excluded.

    Attributes:
        params: those parameters, by name.
    """

    params: Mapping[str, Tensor]

    @abstractmethod
    def along(self, index: int) -> Callable[[Tensor], Tensor | Factors]:
        """One of them: gives a parameter's share, in its shape or as the factors of one tangent."""

    @abstractmethod
    def dense(self) -> dict[str, Tensor]:
        """All of them entry by entry, shape (K, ...) for each parameter."""

    @abstractmethod
    def weighted_sum(self, weights: Tensor) -> Iterator[tuple[str, Tensor]]:
        """sum_k weights_k v_k, one parameter after the other."""

    @abstractmethod
    def descend(self, weights: Tensor, lr: float) -> Tensor:
        """Move the parameters by -lr sum_k weights_k v_k; returns the length of that sum, shape ()."""


class RankOneDirections(Directions):
    """Those of :class:`RankOneTangents`: vectors of signs, from which everything is done."""

    def __init__(
        self, model: nn.Module, exclude: Collection[str], generators: Sequence[torch.Generator], count: int
    ) -> None:
        self._tangents = tangents = RankOneTangents(model, exclude)
        self._drawn = tangents.join([tangents.sample(each, count) for each in generators])
        self.params = tangents.params

    def along(self, index: int) -> Callable[[Tensor], Tensor | Factors]:
        """Factors of every parameter with two dimensions or more."""
        shares = self._tangents.along(self._tangents.rows(self._drawn, index, index + 1))
        by_id = {id(self.params[name]): share for name, share in shares.items()}

        def share(param: Tensor) -> Tensor | Factors:
            found = by_id[id(param)]
            return found if isinstance(found, Factors) else found[0]

        return share

    def dense(self) -> dict[str, Tensor]:
        """The products of the vectors."""
        return self._tangents.dense(self._drawn)

    def weighted_sum(self, weights: Tensor) -> Iterator[tuple[str, Tensor]]:
        """A matrix product for each parameter."""
        yield from self._tangents.weighted_sum(self._drawn, weights).items()

    def descend(self, weights: Tensor, lr: float) -> Tensor:
        """From the factors: no gradient is formed."""
        self._tangents.add_to_parameters(self._drawn, weights * -lr)
        return self._tangents.norm(self._drawn, weights).to(self._tangents.dtype)


class SeededDirections(Directions):
    """Full directions: a parameter's share of one is drawn again from its seed wherever it is used."""

    def __init__(
        self,
        model: nn.Module,
        exclude: Collection[str],
        guess: str,
        generators: Sequence[torch.Generator],
        count: int,
    ) -> None:
        self.params = {
            name: param
            for name, param in model.named_parameters()
            if param.requires_grad and name not in exclude
        }
        params = list(self.params.values())
        self._directions = [SeededDirection(params, guess, each) for each in generators for _ in range(count)]

    def along(self, index: int) -> Callable[[Tensor], Tensor | Factors]:
        """Drawn where it is asked for."""
        return self._directions[index].of

    def dense(self) -> dict[str, Tensor]:
        """All drawn at once."""
        return {
            name: torch.stack([each.of(param) for each in self._directions])
            for name, param in self.params.items()
        }

    def weighted_sum(self, weights: Tensor) -> Iterator[tuple[str, Tensor]]:
        """One parameter's is there at a time."""
        for name, param in self.params.items():
            total = torch.zeros_like(param)
            for weight, direction in zip(weights, self._directions, strict=True):
                total += weight.to(param.dtype) * direction.of(param)
            yield name, total

    def descend(self, weights: Tensor, lr: float) -> Tensor:
        """One parameter after the other."""
        norms = []
        for name, total in self.weighted_sum(weights):
            self.params[name].sub_(total, alpha=lr)
            norms.append(gradient_norm([total]))
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else weights.new_zeros(()).float()


class SeededDirection:
    """A tangent for all parameters of which only seeds are kept."""

    def __init__(self, params: Sequence[Tensor], guess: str, generator: torch.Generator) -> None:
        self.seed = draw_seed(generator)
        self.guess = "normal" if guess == "sphere" else guess
        self.index = {id(param): index for index, param in enumerate(params)}
        self.scale: Tensor | float = 1.0
        if guess == "sphere":
            entries = sum(param.numel() for param in params)
            self.scale = math.sqrt(entries) / gradient_norm(self.of(param) for param in params)

    def of(self, param: Tensor) -> Tensor:
        """The parameter's share of the tangent, drawn again."""
        generator = derive_generator(param.device, self.seed, "tangent", self.index[id(param)])
        share = sample_tangents({"param": param}, self.guess, generator)["param"]
        return share if isinstance(self.scale, float) else share * self.scale.to(share.dtype)
