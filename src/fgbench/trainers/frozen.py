"""The control of forward trainers: only the output layer learns."""

import torch
from torch import Tensor, nn

from fgbench.errors import ConfigError
from fgbench.trainers.base import LossFunction, Reference, StepStats, Trainer
from fgbench.trainers.exact_output import OutputLayer
from fgbench.trainers.exact_stages import LastStages
from fgbench.trainers.options import FrozenOptions
from fgbench.trainers.passes import begin_step, sample_losses, write_gradients
from fgbench.trainers.reference import reference_of_gradient, true_gradient


class Frozen(Trainer):
    """Train the output layer alone, by its exact gradient; everything before it keeps its initial weights.

    With e_i the gradient of sample i's loss with respect to the outputs and x_i the output layer's input,

        dL/dW = mean_i e_i x_i^T,   dL/db = mean_i e_i,

    and no gradient (``param.grad`` is None) for any other parameter, so that weight decay leaves them alone
    too. Running statistics of normalisation layers are updated as in any forward pass. Whatever a trainer
    achieves beyond this one is due to what its estimates have taught the body.

    ``exact_stages`` n trains the last n stages of an ``nn.Sequential`` instead, by backprop that ends there.

    Bias: none in the output layer; the body's gradient is left out. Variance: none, given the batch. Cost: 1
    forward pass; nothing is drawn. Used backwards: nothing (the gradient of the loss with respect to the
    outputs is in closed form).

    Source: random features under a trained read-out, Rahimi and Recht (2007), "Random Features for
    Large-Scale Kernel Machines"; there for kernels, here as a control.

    Example:
        >>> model, inputs, labels = nn.Linear(3, 2), torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
        >>> loss_fn = nn.CrossEntropyLoss(reduction="none")
        >>> stats = Frozen().compute_gradients(model, loss_fn, inputs, labels, torch.Generator())
        >>> model.weight.grad.shape
        torch.Size([2, 3])
    """

    Options = FrozenOptions

    def set_up(self, model: nn.Module, inputs: Tensor, num_classes: int, generator: torch.Generator) -> None:
        """Only checks that the model has an output layer; see :meth:`Trainer.set_up`."""
        self.trained_names(model)

    def trained_names(self, model: nn.Module) -> set[str]:
        """The output layer's; see :meth:`Trainer.trained_names`."""
        if self.options.exact_stages is not None:
            return LastStages(model, self.options.exact_stages).names
        return self._output_layer(model).names

    def _output_layer(self, model: nn.Module) -> OutputLayer:
        layer = OutputLayer(model)
        if not layer.names:
            raise ConfigError(
                f"nothing to train: no parameter of the output layer {layer.name!r} requires a gradient"
            )
        return layer

    def exact_names(self, model: nn.Module) -> set[str]:
        """The output layer's; see :meth:`Trainer.exact_names`."""
        return self.trained_names(model)

    @torch.no_grad()
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
        """Fill ``param.grad`` of the output layer; see :meth:`Trainer.compute_gradients`.

        Raises:
            ConfigError: the model's last layer is not an ``nn.Linear``, or has nothing to train.
        """
        begin_step(model, labels, accumulate=accumulate)
        if self.options.exact_stages is not None:
            stages = LastStages(model, self.options.exact_stages)
            gradients, loss, outputs = stages.gradients(loss_fn, inputs, labels)
        else:
            with self._output_layer(model) as output_layer:
                outputs = model(inputs)
            loss = sample_losses(loss_fn, outputs, labels).mean()
            gradients = output_layer.gradients(loss_fn, outputs, labels)
        by_parameter: dict[Tensor, Tensor] = {
            model.get_parameter(name): each for name, each in gradients.items()
        }
        norm = write_gradients(by_parameter, accumulate=accumulate)
        return StepStats(loss, outputs, loss.new_empty(0), norm)

    def reference(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Reference:
        """The output layer's part of backprop's gradient, and zeros; see :meth:`Trainer.reference`."""
        trained = self.trained_names(model)
        gradient = true_gradient(model, loss_fn, inputs, labels)
        return reference_of_gradient(
            {name: part if name in trained else torch.zeros_like(part) for name, part in gradient.items()}
        )
