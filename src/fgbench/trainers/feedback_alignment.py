"""Feedback alignment: the backward pass uses other matrices than the transposed weights."""

import math
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from fgbench.errors import ConfigError
from fgbench.seeds import derive_generator, draw_seed
from fgbench.trainers.base import LossFunction, Reference, StepStats, Trainer
from fgbench.trainers.exact_output import OutputLayer
from fgbench.trainers.feedback_passes import FeedbackPass, FirstLook, SurrogatePass, output_error
from fgbench.trainers.forward_mode.refusals import refuse_hidden
from fgbench.trainers.independence import GivenStatistics
from fgbench.trainers.model_state import ModelState
from fgbench.trainers.options import FeedbackAlignmentOptions
from fgbench.trainers.passes import begin_step, gradient_norm
from fgbench.trainers.replay import RandomStates


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
            ConfigError: a parameter is not one of a linear, convolution or normalisation layer, a part is
                scripted or checkpointed, or (``direct``) a layer's rows are not the samples'.
        """
        refuse_hidden(model, ())
        self.load_state_dict({"seed": draw_seed(generator)})
        self._exact = set()
        states = RandomStates(), ModelState(model)
        try:
            with torch.enable_grad(), GivenStatistics(), FirstLook(self, model) as look:
                outputs = model(inputs)
            if self.options.feedback == "direct":
                look.refuse_foreign_rows(outputs)
            del outputs, look
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
