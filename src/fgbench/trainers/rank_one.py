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
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, jvp

from fgbench.trainers.base import LossFunction
from fgbench.trainers.dual_pass import DualPass, Factors, Watch, as_matrix, in_memory_order
from fgbench.trainers.exact_output import OutputLayer
from fgbench.trainers.passes import forward_mode_statistics, sample_losses
from fgbench.trainers.tangents import Pass, along_all, random_signs


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


class RankOneTangents:
    """Which of a model's parameters have rank-one tangents, and what is done with the signs they are made of.

    Signs are rows of +-1, shape (K, num_signs): all the vectors of a tangent one after the other.

    Args:
        model: watched during one forward pass, which leaves it as it was.
        inputs: a batch.
        exclude: names of parameters that have no tangent.

    Attributes:
        slots: by name, every trainable parameter not excluded.
        num_signs: random bits of one tangent.
        out_of_sight: names of parameters that no torch function is given directly.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, exclude: Collection[str] = ()) -> None:
        watch = Watch()
        devices = [inputs.device] if inputs.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices),
            forward_mode_statistics(model, update=False),
            torch.no_grad(),
            watch,
        ):
            model(inputs)
        self.exclude = frozenset(exclude)
        self.calls = watch.calls
        self.slots: dict[str, Slot] = {}
        self.out_of_sight: list[str] = []
        for name, param in self._trainable(model).items():
            lengths: tuple[int, ...] = (param.numel(),)
            if id(param) in watch.weights and id(param) not in watch.others and param.is_floating_point():
                lengths = (*param.shape[:2], *([param[0, 0].numel()] if param.dim() == 4 else []))
            elif id(param) not in watch.weights | watch.others:
                self.out_of_sight.append(name)
            self.slots[name] = Slot(param, lengths)
        self.lengths = [length for slot in self.slots.values() for length in slot.lengths]
        self.num_signs = sum(self.lengths)
        self.num_entries = sum(slot.param.numel() for slot in self.slots.values())
        self.dtype = next((slot.param.dtype for slot in self.slots.values()), torch.float32)

    def fits(self, model: nn.Module) -> bool:
        """Whether the model still has the parameters it had."""
        params = [slot.param for slot in self.slots.values()]
        now = list(self._trainable(model).values())
        return len(now) == len(params) and all(a is b for a, b in zip(now, params, strict=True))

    def _trainable(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return {
            name: param
            for name, param in model.named_parameters()
            if param.requires_grad and name not in self.exclude
        }

    def sample(self, generator: torch.Generator, count: int) -> Tensor:
        """Signs of ``count`` tangents, shape (count, num_signs); the same rows however they are asked for."""
        row = -(-self.num_signs // 64) * 64
        return random_signs(count * row, generator, self.dtype).view(count, row)[:, : self.num_signs]

    def tangents(self, signs: Tensor) -> dict[str, Factors | Tensor]:
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

    def derivatives(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        signs: Tensor,
        output: OutputLayer | None = None,
    ) -> Pass:
        """One pass along every row of signs together; see :class:`Pass`."""

        def function(duals: dict[str, Tensor], tangents: dict[str, Factors | Tensor]) -> tuple[Tensor, Any]:
            by_id = {id(self.slots[name].param): tangent for name, tangent in tangents.items()}
            with DualPass(by_id, self.calls if len(signs) == 1 else None):
                outputs = functional_call(model, duals, (inputs,)) if duals else model(inputs)
                loss = sample_losses(loss_fn, outputs, labels).mean()
            return loss, (outputs, outputs.new_empty(0) if output is None else output.input)

        values = {name: self.slots[name].param.detach() for name in self.out_of_sight}
        if len(signs) == 1:  # without functorch's layers, which cost time at every operation
            with forward_ad.dual_level():
                tangents = self.tangents(signs[0])
                duals = {name: forward_ad.make_dual(value, tangents[name]) for name, value in values.items()}
                loss, (outputs, features) = function(duals, tangents)
                loss, derivative = forward_ad.unpack_dual(loss)
                derivative = torch.zeros_like(loss) if derivative is None else derivative
                return Pass(loss, forward_ad.unpack_dual(outputs).primal, features, derivative[None])
        start = inputs.new_zeros(())  # jvp wants an argument even when every parameter is in sight

        def along(row: Tensor) -> Pass:
            tangents = self.tangents(row)
            directions = {name: tangents[name] for name in values}
            result: Any = jvp(
                lambda duals, _: function(duals, tangents), (values, start), (directions, start), has_aux=True
            )
            loss, derivative, (outputs, features) = result
            return Pass(loss, outputs, features, derivative)

        return along_all(along, signs)

    def weighted_sum(self, signs: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """sum_k weights_k v_k, formed once for each parameter."""
        total = {}
        for name, tangent in self.tangents(signs).items():
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
        for name, tangent in self.tangents(signs).items():
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
