"""The directions of a forward gradient, and the derivatives along them in one forward pass."""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from fgbench.trainers.base import LossFunction
from fgbench.trainers.exact_output import OutputLayer
from fgbench.trainers.forward_mode import Factors, ForwardPass
from fgbench.trainers.passes import gradient_norm, sample_losses
from fgbench.trainers.sampling import sample_tangents

if TYPE_CHECKING:
    from fgbench.trainers.compiled import CompiledPass


class JvpResult(NamedTuple):
    """The results of one pass along several tangents.

    Attributes:
        loss: mean loss of the batch, shape ().
        outputs: of the model, shape (B, classes).
        features: input of the output layer, if asked for, else empty.
        derivatives: the directional derivative along each tangent, shape (K,).
    """

    loss: Tensor
    outputs: Tensor
    features: Tensor
    derivatives: Tensor


class Tangents(ABC):
    """Tangents of a model's trainable parameters: how they are drawn and used.

    ``drawn`` stands for K tangents in whatever form the subclass keeps them.

    Args:
        model: whose.
        exclude: names of parameters that have no tangent.

    Attributes:
        params: by name, every trainable parameter not excluded.
        num_entries: entries of a tangent, over all parameters.
    """

    def __init__(self, model: nn.Module, exclude: Collection[str] = ()) -> None:
        self.params = {
            name: param
            for name, param in model.named_parameters()
            if param.requires_grad and name not in exclude
        }
        self.num_entries = sum(param.numel() for param in self.params.values())
        self.dtype = next((param.dtype for param in self.params.values()), torch.float32)

    @abstractmethod
    def sample(self, generator: torch.Generator, count: int) -> Any:
        """Draw ``count`` tangents; drawing in portions gives the same ones."""

    @abstractmethod
    def join(self, sets: list[Any]) -> Any:
        """Several draws as one."""

    @abstractmethod
    def rows(self, drawn: Any, start: int, stop: int) -> Any:
        """Some of the tangents."""

    @abstractmethod
    def along(self, drawn: Any) -> Mapping[str, Factors | Tensor]:
        """The tangents by the parameters' names, shape (K, ...) each."""

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
        count: int,
        output: OutputLayer | None = None,
        compiled: "CompiledPass | None" = None,
        *,
        half: bool = False,
    ) -> JvpResult:
        """One pass along ``count`` tangents together (``half``: in bfloat16); values are computed once."""
        tangents: dict[Tensor, Tensor | Factors] = {
            self.params[name]: tangent for name, tangent in self.along(drawn).items()
        }
        if compiled is not None:
            loss, outputs, found = compiled.derivatives(
                model, loss_fn, inputs, labels, tangents, count, half=half
            )
            return JvpResult(loss, outputs, outputs.new_empty(0), found)
        with ForwardPass(model, tangents, count, half=half) as forward:
            outputs = model(inputs)
            loss = sample_losses(loss_fn, outputs, labels).mean()
            features = outputs.new_empty(0) if output is None else output.input
            return JvpResult(loss, outputs, features, forward.tangent_of(loss))


class FullTangents(Tangents):
    """Tangents with an independent entry for every parameter: a tensor (K, ...) for each, by name."""

    def __init__(self, model: nn.Module, guess: str = "normal", exclude: Collection[str] = ()) -> None:
        super().__init__(model, exclude)
        self.guess = guess

    @override
    def sample(self, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        return sample_tangents(self.params, self.guess, generator, count)

    @override
    def join(self, sets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([drawn[name] for drawn in sets]) for name in sets[0]}

    @override
    def rows(self, drawn: dict[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
        return {name: tangent[start:stop] for name, tangent in drawn.items()}

    @override
    def along(self, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        return drawn

    @override
    def dense(self, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        return drawn

    @override
    def weighted_sum(self, drawn: dict[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
        return {name: _weighted(tangent, weights) for name, tangent in drawn.items()}

    @override
    def add_to_parameters(self, drawn: dict[str, Tensor], weights: Tensor) -> None:
        for name, tangents in drawn.items():
            for tangent, weight in zip(tangents, weights.to(tangents.dtype), strict=True):
                self.params[name].detach().addcmul_(tangent, weight)

    @override
    def norm(self, drawn: dict[str, Tensor], weights: Tensor) -> Tensor:
        if len(weights) > 1:
            return gradient_norm(self.weighted_sum(drawn, weights).values())
        if self.guess == "normal":
            return gradient_norm(tangent[0] for tangent in drawn.values()) * weights[0].abs()
        return weights[0].abs() * math.sqrt(self.num_entries)  # as long as all the others

    @override
    def products(self, drawn: dict[str, Tensor]) -> Tensor:
        rows = [tangent.reshape(len(tangent), -1) for tangent in drawn.values()]
        return torch.stack([(row @ row.T).double() for row in rows]).sum(0)


def _weighted(tangents: Tensor, weights: Tensor) -> Tensor:
    """sum_k weights_k v_k in the memory format of each v_k."""
    if len(tangents) == 1:
        return tangents[0] * weights[0].to(tangents.dtype)
    total = torch.zeros_like(tangents[0])
    for tangent, weight in zip(tangents, weights.to(tangents.dtype), strict=True):
        total.addcmul_(tangent, weight)
    return total
