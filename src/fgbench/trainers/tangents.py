"""The directions a forward gradient is taken along, and the derivatives along them in one forward pass."""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, jvp, vmap

from fgbench.trainers.base import LossFunction
from fgbench.trainers.dual_pass import DualPass, Factors
from fgbench.trainers.exact_output import OutputLayer
from fgbench.trainers.passes import forward_mode_statistics, gradient_norm, sample_losses
from fgbench.trainers.sampling import sample_tangents
from fgbench.trainers.watch import Watch


class Pass(NamedTuple):
    """What one pass along several tangents gives.

    Attributes:
        loss: mean loss of the batch, shape ().
        outputs: of the model, shape (B, classes).
        features: input of the output layer, where asked for, else empty.
        derivatives: the directional derivative along each tangent, shape (K,).
    """

    loss: Tensor
    outputs: Tensor
    features: Tensor
    derivatives: Tensor


class Tangents(ABC):
    """Tangents of a model's trainable parameters: how they are drawn, and what is done with them.

    ``drawn`` stands for K tangents in whatever form the subclass keeps them.

    Args:
        model: watched during one forward pass, which leaves it as it was.
        inputs: a batch.
        exclude: names of parameters that have no tangent.

    Attributes:
        params: by name, every trainable parameter not excluded.
        num_entries: of a tangent, all parameters together.
        watch: how the model's forward pass uses its parameters.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, exclude: Collection[str] = ()) -> None:
        self.exclude = frozenset(exclude)
        self.params = self._trainable(model)
        self.num_entries = sum(param.numel() for param in self.params.values())
        self.dtype = next((param.dtype for param in self.params.values()), torch.float32)
        self.watch = Watch()
        devices = (
            [inputs.device] if torch.cuda.is_initialized() and inputs.is_cuda else []
        )  # not if simulated
        with (
            torch.random.fork_rng(devices),
            forward_mode_statistics(model, update=False),
            torch.no_grad(),
            self.watch,
        ):
            model(inputs)
        self._out_of_sight = [
            name for name, param in self.params.items() if not self.watch.saw(param)
        ]  # no torch function is given them directly

    def fits(self, model: nn.Module) -> bool:
        """Whether the model still has the parameters it had."""
        params, now = list(self.params.values()), list(self._trainable(model).values())
        return len(now) == len(params) and all(a is b for a, b in zip(now, params, strict=True))

    def _trainable(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return {
            name: param
            for name, param in model.named_parameters()
            if param.requires_grad and name not in self.exclude
        }

    @abstractmethod
    def sample(self, generator: torch.Generator, count: int) -> Any:
        """Draw ``count`` tangents; asking in portions gives the same ones."""

    @abstractmethod
    def join(self, sets: list[Any]) -> Any:
        """Several draws as one."""

    @abstractmethod
    def rows(self, drawn: Any, start: int, stop: int) -> Any:
        """Some of the tangents."""

    @abstractmethod
    def count(self, drawn: Any) -> int:
        """How many there are."""

    @abstractmethod
    def first(self, drawn: Any) -> Any:
        """The first of the tangents, as ``along`` takes one."""

    @abstractmethod
    def along(self, one: Any) -> Mapping[str, Factors | Tensor]:
        """One tangent by the parameters' names."""

    @abstractmethod
    def dense(self, drawn: Any) -> dict[str, Tensor]:
        """The tangents entry by entry, shape (K, ...) for each parameter."""

    @abstractmethod
    def weighted_sum(self, drawn: Any, weights: Tensor) -> dict[str, Tensor]:
        """sum_k weights_k v_k for each parameter."""

    @abstractmethod
    def add_to_parameters(self, drawn: Any, weights: Tensor) -> None:
        """Add sum_k weights_k v_k to the parameters in place."""

    @abstractmethod
    def norm(self, drawn: Any, weights: Tensor) -> Tensor:
        """Euclidean norm of sum_k weights_k v_k, shape ()."""

    @abstractmethod
    def products(self, drawn: Any) -> Tensor:
        """<v_j, v_k> of all pairs, shape (K, K), float64."""

    def derivatives(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        drawn: Any,
        output: OutputLayer | None = None,
    ) -> Pass:
        """One pass along all tangents together; the values are computed once."""
        values = {name: self.params[name].detach() for name in self._out_of_sight}
        calls = self.watch.calls if self.count(drawn) == 1 else None

        def function(
            duals: dict[str, Tensor], tangents: Mapping[str, Factors | Tensor]
        ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            with DualPass({id(self.params[name]): each for name, each in tangents.items()}, calls):
                outputs = functional_call(model, duals, (inputs,)) if duals else model(inputs)
                loss = sample_losses(loss_fn, outputs, labels).mean()
            return loss, (outputs, outputs.new_empty(0) if output is None else output.input)

        if calls is not None:  # without functorch's layers, which cost time at every operation
            with forward_ad.dual_level():
                tangents: Any = self.along(self.first(drawn))
                duals = {name: forward_ad.make_dual(value, tangents[name]) for name, value in values.items()}
                loss, (outputs, features) = function(duals, tangents)
                loss, derivative = forward_ad.unpack_dual(loss)
                derivative = torch.zeros_like(loss) if derivative is None else derivative
                return Pass(loss, forward_ad.unpack_dual(outputs).primal, features, derivative[None])
        start = inputs.new_zeros(())  # jvp wants an argument even when every parameter is in sight

        def along(one: Any) -> tuple[Tensor, ...]:
            tangents: Any = self.along(one)
            directions = {name: tangents[name] for name in values}
            result: Any = jvp(
                lambda duals, _: function(duals, tangents), (values, start), (directions, start), has_aux=True
            )
            loss, derivative, (outputs, features) = result
            return loss, outputs, features, derivative

        out_dims: Any = (None, None, None, 0)
        return Pass(*vmap(along, out_dims=out_dims, randomness="same")(drawn))


class FullTangents(Tangents):
    """Tangents with an entry of their own for every parameter: a tensor (K, ...) for each, by name."""

    def __init__(
        self, model: nn.Module, inputs: Tensor, guess: str = "normal", exclude: Collection[str] = ()
    ) -> None:
        super().__init__(model, inputs, exclude)
        self.guess = guess

    def sample(self, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        """See :func:`sample_tangents`."""
        return sample_tangents(self.params, self.guess, generator, count)

    def join(self, sets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Several draws as one."""
        return {name: torch.cat([drawn[name] for drawn in sets]) for name in sets[0]}

    def rows(self, drawn: dict[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
        """Some of the tangents."""
        return {name: tangent[start:stop] for name, tangent in drawn.items()}

    def count(self, drawn: dict[str, Tensor]) -> int:
        """How many there are."""
        return max(map(len, drawn.values()), default=1)

    def first(self, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        """The first of them."""
        return {name: tangent[0] for name, tangent in drawn.items()}

    def along(self, one: dict[str, Tensor]) -> dict[str, Tensor]:
        """One tangent by name, as it is."""
        return one

    def dense(self, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tangents, as they are."""
        return drawn

    def weighted_sum(self, drawn: dict[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
        """sum_k weights_k v_k for each parameter."""
        return {name: _weighted(tangent, weights) for name, tangent in drawn.items()}

    def add_to_parameters(self, drawn: dict[str, Tensor], weights: Tensor) -> None:
        """Add sum_k weights_k v_k to the parameters in place."""
        for name, tangents in drawn.items():
            for tangent, weight in zip(tangents, weights.to(tangents.dtype), strict=True):
                self.params[name].detach().addcmul_(tangent, weight)

    def norm(self, drawn: dict[str, Tensor], weights: Tensor) -> Tensor:
        """Euclidean norm of sum_k weights_k v_k, shape ()."""
        if len(weights) > 1:
            return gradient_norm(self.weighted_sum(drawn, weights).values())
        if self.guess == "normal":
            return gradient_norm(self.first(drawn).values()) * weights[0].abs()
        return weights[0].abs() * math.sqrt(self.num_entries)  # as long as all the others

    def products(self, drawn: dict[str, Tensor]) -> Tensor:
        """<v_j, v_k> of all pairs, shape (K, K), float64."""
        rows = [tangent.reshape(len(tangent), -1) for tangent in drawn.values()]
        return torch.stack([(row @ row.T).double() for row in rows]).sum(0)


def _weighted(tangents: Tensor, weights: Tensor) -> Tensor:
    """sum_k weights_k v_k in the memory format of each v_k."""
    if len(tangents) == 1:
        return tangents[0] * weights.to(tangents.dtype)
    total = torch.zeros_like(tangents[0])
    for tangent, weight in zip(tangents, weights.to(tangents.dtype), strict=True):
        total.addcmul_(tangent, weight)
    return total
