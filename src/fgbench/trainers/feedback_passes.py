"""The passes of feedback alignment: layers that send back other errors than the transposed weights would."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from fgbench.errors import ConfigError
from fgbench.trainers.base import LossFunction
from fgbench.trainers.forward_mode.layers import LAYERS, input_gradient, layer_arguments
from fgbench.trainers.independence import foreign_rows, halves
from fgbench.trainers.passes import require_tensor, sample_losses

NORMALISATIONS = {F.batch_norm, F.instance_norm, F.group_norm, F.layer_norm, F.rms_norm}
SUMS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}
WITHOUT_MATRIX = NORMALISATIONS | SUMS | {F.embedding}
"""Functions besides layers that may receive a parameter: no error is sent back through a matrix there."""


class Feedback(Protocol):
    """What the passes need of the trainer: its options and its matrices."""

    options: Any

    def stand_in(self, key: str, weight: Tensor) -> Tensor:
        """What replaces a weight in the backward pass, of its shape and dtype."""

    def send(self, error: Tensor, key: str, value: Tensor) -> Tensor:
        """B^T e of every sample, shape of ``value``, from errors of shape (B, classes)."""


class PassBack(torch.autograd.Function):
    """A layer's output, unchanged; its backward pass sends ``gradient_of(delta)`` to the layer's input."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, value: Tensor, gradient_of: Callable[[Tensor], Tensor]) -> Tensor:
        """The output, connected to the layer's input (it was computed from a detached one)."""
        ctx.mark_dirty(output)
        ctx.gradient_of = gradient_of
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, Tensor, None]:
        """Delta for the weights, and the feedback's version of it for the input."""
        return delta, ctx.gradient_of(delta), None


class LayerCalls(TorchFunctionMode):
    """A forward pass in which ``layer`` replaces every linear and convolution layer.

    Args:
        trainer: whose matrices.
        model: must use its parameters in layers, normalisations and sums only.

    Raises:
        ConfigError: another function receives a parameter, and might propagate errors back through it.
    """

    def __init__(self, trainer: Feedback, model: nn.Module) -> None:
        super().__init__()
        self.trainer, self.direct = trainer, trainer.options.feedback == "direct"
        self.params: dict[Tensor, str] = {param: name for name, param in model.named_parameters()}
        self.calls: dict[str, int] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace layers; leave other functions unchanged, or refuse them."""
        kwargs = kwargs or {}
        if func in LAYERS:
            arguments = layer_arguments(func, args, kwargs)
            name = self.params.get(arguments["weight"])
            if name is None:
                self.refuse(f"a weight given to {func.__name__}, which is computed")
            self.calls[name] = self.calls.get(name, 0) + 1
            return self.layer(func, arguments, f"{name} {self.calls[name]}" if self.direct else name)
        result = func(*args, **kwargs)
        if func not in WITHOUT_MATRIX and any(isinstance(each, Tensor) for each in tree_leaves(result)):
            for each in tree_leaves((args, kwargs)):
                if isinstance(each, nn.Parameter) and each in self.params:
                    self.refuse(f"{self.params[each]!r}, given to {getattr(func, '__name__', func)}")
        return result

    def refuse(self, what: str) -> NoReturn:
        """Raises: ConfigError: always."""
        raise ConfigError(
            f"trainer {self.trainer.options.name} trains models of linear, convolution and normalisation "
            f"layers only: it cannot treat {what}"
        )

    def layer(self, func: Any, arguments: dict[str, Any], key: str) -> Tensor:
        """The output of a layer; ``key`` is that of its matrix."""
        raise NotImplementedError


class FeedbackPass(LayerCalls):
    """Every layer sends back the trainer's feedback for its error.

    Attributes:
        error: dL/d outputs, shape (B, classes); to be set before the backward pass.
    """

    error: Tensor

    @override
    def layer(self, func: Any, arguments: dict[str, Any], key: str) -> Tensor:
        value = arguments["input"]
        if not value.requires_grad:  # the first layer's input needs no gradient
            output: Tensor = func(**arguments)
            return output
        held = value.detach()

        def gradient_of(delta: Tensor) -> Tensor:
            if self.direct:
                gradient = self.trainer.send(self.error, key, held)
            else:
                gradient = input_gradient(
                    arguments | {"input": held}, self.trainer.stand_in(key, arguments["weight"]), delta
                )
            return gradient.to(held.dtype)

        joined: Tensor = PassBack.apply(func(**arguments | {"input": held}), value, gradient_of)
        return joined


class FirstLook(LayerCalls):
    """Every layer as it is; a layer in a checkpointed part is refused, since that runs again on the way back.

    Attributes:
        inputs: of all layers that an error is sent to, each with the key of its matrix.
    """

    def __init__(self, trainer: Feedback, model: nn.Module) -> None:
        super().__init__(trainer, model)
        self.inputs: list[tuple[str, Tensor]] = []

    @override
    def layer(self, func: Any, arguments: dict[str, Any], key: str) -> Tensor:
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
                self.refuse(f"{key.split()[0]!r} in a part that is checkpointed")
            frame = frame.f_back
        if torch._C._functorch.is_functorch_wrapped_tensor(arguments["input"]):
            self.refuse(f"{key.split()[0]!r} in a function that torch.func transforms")
        if arguments["input"].requires_grad:
            self.inputs.append((key, arguments["input"]))
        output: Tensor = func(**arguments)
        return output

    def refuse_foreign_rows(self, outputs: Any) -> None:
        """Refuse a model in which a row of a layer's input changes other samples' outputs.

        Raises:
            ConfigError: names the layer.
        """
        if not isinstance(outputs, Tensor) or isinstance(outputs, FakeTensor) or not outputs.requires_grad:
            return
        inputs = [(key, value) for key, value in self.inputs if value.shape[:1] == outputs.shape[:1]]
        generator = torch.Generator("cpu").manual_seed(0)
        for half in halves(len(outputs), generator) if inputs else ():
            weights = torch.randn(outputs.shape, generator=generator, device="cpu")
            weights[~half] = 0
            gradients = torch.autograd.grad(
                outputs, [value for _, value in inputs], weights.to(outputs), True, materialize_grads=True
            )
            for (key, _), gradient in zip(inputs, gradients, strict=True):
                if bool(gradient[~half.to(gradient.device)].any()):
                    name = self.trainer.options.name
                    raise ConfigError(foreign_rows(name, f"the input of {key.split()[0]!r}"))


class SurrogatePass(LayerCalls):
    """Every layer is a function whose ordinary autograd derivative equals the feedback.

    Attributes:
        inputs: of all layers, each with the key of its matrix, for ``direct``.
    """

    def __init__(self, trainer: Feedback, model: nn.Module) -> None:
        super().__init__(trainer, model)
        self.inputs: list[tuple[str, Tensor]] = []

    @override
    def layer(self, func: Any, arguments: dict[str, Any], key: str) -> Tensor:
        value, weight = arguments["input"], arguments["weight"]
        output: Tensor = func(**arguments | {"input": value.detach()})
        if not value.requires_grad:
            return output
        if self.direct:
            self.inputs.append((key, value))
            return output
        carried = func(**arguments | {"weight": self.trainer.stand_in(key, weight), "bias": None})
        return output + carried - carried.detach()


def output_error(loss_fn: LossFunction, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean loss, shape (), and its gradient e with respect to the outputs, shape (B, classes)."""
    require_tensor(outputs)
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        # a view: FLOP counters hook a module's inputs, and a leaf cannot be hooked
        loss = sample_losses(loss_fn, leaf.view_as(leaf), labels).mean()
        (error,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), error
