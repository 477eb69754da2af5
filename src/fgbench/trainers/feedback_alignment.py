"""Feedback alignment: the backward pass uses other matrices than the transposed weights."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from fgbench.errors import ConfigError
from fgbench.seeds import derive_generator, draw_seed
from fgbench.trainers.base import LossFunction, Reference, StepStats, Trainer
from fgbench.trainers.exact_output import OutputLayer
from fgbench.trainers.forward_mode.layers import LAYERS, input_gradient, layer_arguments
from fgbench.trainers.forward_mode.refusals import refuse_lazy
from fgbench.trainers.options import FeedbackAlignmentOptions
from fgbench.trainers.passes import begin_step, gradient_norm, require_tensor, sample_losses
from fgbench.trainers.replay import ModelState, RandomStates

NORMALISATIONS = {F.batch_norm, F.instance_norm, F.group_norm, F.layer_norm, F.rms_norm}
SUMS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}
WITHOUT_MATRIX = NORMALISATIONS | SUMS | {F.embedding}
"""Where a parameter may go besides layers: no error passes back through a matrix there."""


class FeedbackAlignment(Trainer):
    """Send errors back through matrices B that are not the transposed weights; the weights align with them.

    With delta the error (dL/dy) at the output y = W x + b of a linear or convolution layer, backprop gives
    W^T delta to the layer's input x. Here, in every layer but the first, x gets instead, by ``feedback``,

    * ``random``: B^T delta, B of the shape of W, drawn once;
    * ``sign``: (s sign W)^T delta, the weights' signs at one size s;
    * ``direct``: B^T e, e = dL/d outputs of the sample, B (classes x inputs) drawn once.

    Everything else is as in backprop: dL/dW = sum_i delta_i x_i^T, and the exact derivatives of what lies
    between layers (activation functions, pooling, normalisation with its scale and shift, sums). The output
    layer's own gradient is exact, since its delta is e. B is normal with the variance 2 / (inputs + outputs)
    of Glorot and Bengio (2010), s its standard deviation; drawn from a seed, which is all the state holds.

    Bias: biased in every layer but the output layer, by the angle between B and W^T; with ``random`` and
    ``direct`` about 90 degrees at first, less once the weights have aligned. Variance: none, given the batch
    and B. Cost: about 3 forward passes as backprop, ``direct`` about 2 and a product of (classes x inputs)
    per layer; nothing is drawn but B, once. Used backwards: fixed random matrices; ``sign``: the signs of the
    transposed weights.

    Source: ``random``: Lillicrap, Cownden, Tweed and Akerman (2016), "Random synaptic feedback weights
    support error backpropagation for deep learning", arXiv 1411.0247; ``sign``: uniform sign-concordant
    feedback of Liao, Leibo and Poggio (2016), arXiv 1510.05067, without their batch manhattan; ``direct``:
    Noekland (2016), arXiv 1609.01596, who adds B^T e where a layer's output has passed its activation
    function; here it is where the next layer takes it, so after a pool too.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> inputs, labels = torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
        >>> loss_fn = nn.CrossEntropyLoss(reduction="none")
        >>> trainer = FeedbackAlignment(feedback="direct")
        >>> stats = trainer.compute_gradients(model, loss_fn, inputs, labels, torch.Generator())
        >>> model[0].weight.grad.shape
        torch.Size([4, 3])
    """

    Options = FeedbackAlignmentOptions

    def __init__(self, options: Any = None, **changes: Any) -> None:
        super().__init__(options, **changes)
        self.seed = 0
        self._matrices: dict[str, Tensor] = {}
        self._exact: set[str] = set()

    def set_up(self, model: nn.Module, inputs: Tensor, num_classes: int, generator: torch.Generator) -> None:
        """Draw the matrices' seed, and check with one pass that this trainer can train the model.

        Raises:
            ConfigError: a parameter is not one of a linear, convolution or normalisation layer.
        """
        refuse_lazy(model)
        self.load_state_dict({"seed": draw_seed(generator)})
        self._exact = set()
        states = RandomStates(), ModelState(model)
        try:
            with torch.no_grad(), FeedbackPass(self, model):
                model(inputs)
            with torch.no_grad(), suppress(ConfigError), OutputLayer(model) as output:
                model(inputs)
                self._exact = output.names
        finally:
            for each in states:
                each.restore()

    def exact_names(self, model: nn.Module) -> set[str]:
        """The output layer's, if ``set_up`` found that its outputs are the model's; else none."""
        return self._exact & self.trained_names(model)

    def state_dict(self) -> dict[str, Any]:
        """The seed that the matrices are drawn from."""
        return {"seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the seed; the matrices are drawn again when they are needed."""
        self.seed = int(state["seed"])
        self._matrices.clear()

    def compute_gradients(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        *,
        accumulate: bool = False,
    ) -> StepStats:
        """Fill ``param.grad``; see :meth:`Trainer.compute_gradients`.

        Raises:
            ConfigError: a parameter is not one of a linear, convolution or normalisation layer.
        """
        begin_step(model, labels, accumulate=accumulate)
        with torch.enable_grad():
            with FeedbackPass(self, model) as feedback:
                outputs = model(inputs)
            loss, feedback.error = output_error(loss_fn, outputs, labels)
            if outputs.requires_grad:
                outputs.backward(feedback.error)
        params = [param for param in model.parameters() if param.requires_grad]
        for param in params:
            if param.grad is None:
                param.grad = torch.zeros_like(param)
        norm = gradient_norm(param.grad for param in params if param.grad is not None)
        return StepStats(loss, outputs.detach(), loss.new_empty(0), norm)

    def stand_in(self, key: str, weight: Tensor) -> Tensor:
        """What replaces a weight in the backward pass, of its shape and dtype."""
        if self.options.feedback == "random":
            return self._matrix(key, weight.shape, weight)
        inputs, outputs = nn.init._calculate_fan_in_and_fan_out(weight)
        return weight.detach().sign() * math.sqrt(2 / (inputs + outputs))

    def send(self, error: Tensor, key: str, value: Tensor) -> Tensor:
        """B^T e of every sample, shape of ``value``, from errors of shape (B, classes).

        Raises:
            ConfigError: not one row per sample, or the outputs are not vectors.
        """
        if error.dim() != 2 or len(value) != len(error):
            raise ConfigError(
                f"{self.options.name}: feedback: direct needs a row for every sample at the outputs and at "
                f"each layer; at {key.split()[0]!r} it has {len(value)} for {len(error)} samples"
            )
        shape = torch.Size((error.shape[1], value[0].numel()))
        return (error @ self._matrix(key, shape, error)).view(value.shape)

    def _matrix(self, key: str, shape: torch.Size, like: Tensor) -> Tensor:
        """The fixed matrix of a layer, drawn in float32, on the device and in the dtype of ``like``."""
        if key not in self._matrices:
            drawn = torch.empty(shape, device="cpu", dtype=torch.float32)
            nn.init.xavier_normal_(drawn, generator=derive_generator("cpu", self.seed, f"feedback {key}"))
            self._matrices[key] = drawn.to(like.device)
        if self._matrices[key].shape != shape:
            raise ConfigError(f"{self.options.name}: its matrices belong to another model")
        return self._matrices[key].to(like)

    def reference(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Reference:
        """The gradient of a sum with parts held fixed, by plain autograd; see :meth:`Trainer.reference`.

        ``random`` and ``sign``: of L where every layer is W stop(x) + b + B x - stop(B x). ``direct``: of
        <outputs, stop(e)> + sum_l <x_l, stop(B_l^T e)> where every layer is W stop(x) + b.
        """
        surrogate = SurrogatePass(self, model)
        params = {name: param for name, param in model.named_parameters() if param.requires_grad}
        with torch.enable_grad():
            with surrogate:
                outputs = model(inputs)
            _, error = output_error(loss_fn, outputs, labels)
            total = (outputs * error).sum()
            for key, value in surrogate.inputs:
                total = total + (value * self.send(error, key, value)).sum()
            parts = torch.autograd.grad(total, list(params.values()), materialize_grads=True)
        none = total.detach().new_empty(0)
        return Reference(none, none.new_ones(()), dict(zip(params, parts, strict=True)))


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

    def __init__(self, trainer: FeedbackAlignment, model: nn.Module) -> None:
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


class SurrogatePass(LayerCalls):
    """Every layer is a function whose ordinary autograd derivative equals the feedback.

    Attributes:
        inputs: of all layers, each with the key of its matrix, for ``direct``.
    """

    def __init__(self, trainer: FeedbackAlignment, model: nn.Module) -> None:
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
