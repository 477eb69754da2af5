"""The exact gradient by reverse mode."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fgbench.errors import ConfigError
from fgbench.models.layers import runs_in_order
from fgbench.trainers.base import LossFunction, Reference, StepStats, Trainer
from fgbench.trainers.options import BackpropOptions
from fgbench.trainers.passes import begin_step, gradient_norm, sample_losses, write_gradients
from fgbench.trainers.reference import reference_of_gradient, true_gradient
from fgbench.trainers.replay import OnePass
from fgbench.trainers.workers import Sharing


class Backprop(Trainer):
    """The exact gradient of the batch's mean loss by reverse mode: the baseline.

    With ``recompute=True`` a sequential model keeps only the activations between its stages and recomputes
    the rest in the backward pass (Chen et al., 2016, arXiv 1604.06174), with the same random numbers and
    buffers; buffers are updated once.

    Bias: none. Variance: none, given the batch. Cost: about 3 forward passes, 4 with ``recompute``.

    Source: Rumelhart, Hinton and Williams (1986).

    Example:
        >>> model, inputs, labels = nn.Linear(3, 2), torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
        >>> loss_fn = nn.CrossEntropyLoss(reduction="none")
        >>> stats = Backprop().compute_gradients(model, loss_fn, inputs, labels, torch.Generator())
        >>> model.weight.grad.shape
        torch.Size([2, 3])
    """

    Options = BackpropOptions
    sharing = Sharing.GRADIENTS

    def exact_names(self, model: nn.Module) -> set[str]:
        """All; see :meth:`Trainer.exact_names`."""
        return self.trained_names(model)

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
        """Fill ``param.grad`` with the exact gradient; see :meth:`Trainer.compute_gradients`."""
        begin_step(model, labels, accumulate=accumulate)
        parameters = [param for param in model.parameters() if param.requires_grad]
        if self.compiled is not None:
            loss, outputs, gradients = self.compiled.gradient(model, loss_fn, inputs, labels, parameters)
            found: dict[Tensor, Tensor] = dict(zip(parameters, gradients, strict=True))
            norm = write_gradients(found, accumulate=accumulate)
            return StepStats(loss, outputs, loss.new_empty(0), norm)
        with torch.enable_grad():
            outputs = recomputing(model, inputs) if self.options.recompute else model(inputs)
            loss = sample_losses(loss_fn, outputs, labels).mean()
            loss.backward()
        for param in parameters:
            if param.grad is None:
                param.grad = torch.zeros_like(param)
        norm = gradient_norm(param.grad for param in parameters if param.grad is not None)
        return StepStats(loss.detach(), outputs.detach(), loss.new_empty(0), norm)

    def reference(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Reference:
        """The gradient without recomputation; see :meth:`Trainer.reference`."""
        return reference_of_gradient(true_gradient(model, loss_fn, inputs, labels))


def recomputing(model: nn.Module, inputs: Tensor) -> Tensor:
    """A forward pass that keeps only the tensors between the model's stages."""
    stages = list(model) if runs_in_order(model) else [model]
    once = [OnePass(stage, with_graph=True) for stage in stages]

    def run(index: int, value: Tensor) -> Tensor:
        with once[index]:
            return stages[index](value)

    value = inputs
    for index in range(len(stages)):
        given, version = value, value._version
        value = checkpoint(run, index, value, use_reentrant=False)
        if given._version != version:
            raise ConfigError(
                f"recompute: true needs stages that do not modify their inputs; stage {index} does"
            )
    return value
