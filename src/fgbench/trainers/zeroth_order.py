"""Central differences of the loss along random directions: no derivative rule of any kind is used."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fgbench.errors import ConfigError
from fgbench.trainers.base import LossFunction, Reference, StepStats, Trainer
from fgbench.trainers.directions import Directions, RankOneDirections, SeededDirections
from fgbench.trainers.exact_output import OutputLayer
from fgbench.trainers.forward_mode import Factors
from fgbench.trainers.forward_mode.shifted import shifted_parameters
from fgbench.trainers.options import ZerothOrderOptions
from fgbench.trainers.passes import begin_step, gradient_norm, sample_losses, write_gradient
from fgbench.trainers.reference import (
    mean_of_tangents,
    reference_of_tangents,
    true_gradient,
)
from fgbench.trainers.replay import OnePass
from fgbench.trainers.workers import Sharing


class ZerothOrder(Trainer):
    """Two forward passes at theta + epsilon v and theta - epsilon v give d; the gradient is d v.

    Neither v nor the shifted parameters are ever there for the whole model: a layer's share of v is
    drawn again from its seed where it is used, and the parameters themselves are never shifted in
    place (shifting them there and back leaves rounding behind). ``sgd_step`` forms no gradient either.

    With ``structure="rank1"`` v is that of ``forward-gradient``, u w^T of signs for a weight W. A layer
    computes W x + epsilon u (w^T x): there is no shifted weight, and P numbers are never drawn. A weight used
    in any other way (sliced, cast by autocast, in arithmetic) is shifted as a copy for that use.

    What is differentiated is the loss as it is computed without a graph: what backprop takes as constant
    (``detach``, the row of ``padding_idx``) or gives a backward pass of its own moves it too. A model with
    hooks on gradients is refused.

    Bias: O(epsilon^2). Variance: that of ``forward-gradient`` with the same guess, (P+1)|g|^2 / K for
    ``normal`` and (P-1)|g|^2 / K otherwise, up to O(epsilon^2). Cost: 2 K forward passes, and drawing v
    three times (rank-one: the factors once). Running statistics move once, at theta + epsilon v_1; loss and
    outputs are the mean of the last two passes. Both are off by no more than O(epsilon) and O(epsilon^2).

    After ``compile_steps`` (``compile: true``) a pass is one compiled graph; full directions are then there
    for the whole model.

    Source: Malladi et al. (2023), "Fine-Tuning Language Models with Just Forward Passes", algorithm 1,
    arXiv 2305.17333, which shifts parameters in place; Spall (1992) for the estimate itself.

    Example:
        >>> model, inputs, labels = nn.Linear(3, 2), torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
        >>> loss_fn = nn.CrossEntropyLoss(reduction="none")
        >>> stats = ZerothOrder().compute_gradients(model, loss_fn, inputs, labels, torch.Generator())
        >>> model.weight.grad.shape
        torch.Size([2, 3])
    """

    Options = ZerothOrderOptions
    sharing = Sharing.DERIVATIVES

    def set_up(self, model: nn.Module, inputs: Tensor, num_classes: int, generator: torch.Generator) -> None:
        """Only looks whether this trainer can train the model; see :meth:`Trainer.set_up`."""
        if self.options.exact_output:
            OutputLayer(model)

    def exact_names(self, model: nn.Module) -> set[str]:
        """The output layer's, with ``exact_output``; see :meth:`Trainer.exact_names`."""
        return OutputLayer(model).names if self.options.exact_output else set()

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
        """Fill ``param.grad`` with the estimate; see :meth:`Trainer.compute_gradients`."""
        begin_step(model, labels, accumulate=accumulate)
        measured = self._measure(model, loss_fn, inputs, labels, generator)
        with torch.autocast(inputs.device.type, enabled=False):
            gradients = chain(measured.directions.weighted_sum(measured.weights), measured.exact.items())
            norms = []
            for name, gradient in gradients:
                param = model.get_parameter(name)
                write_gradient(param, gradient, accumulate=accumulate)
                norms.append(gradient_norm([gradient if param.grad is None else param.grad]))
        return measured.stats(torch.linalg.vector_norm(torch.stack(norms)))

    @torch.no_grad()
    def sgd_step(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        lr: float,
    ) -> StepStats:
        """A plain SGD step of size ``lr``; no gradient is kept, and of rank-one directions none is formed."""
        begin_step(model, labels)
        measured = self._measure(model, loss_fn, inputs, labels, generator)
        with torch.autocast(inputs.device.type, enabled=False):
            norms = [measured.directions.descend(measured.weights, lr)]
            for name, gradient in measured.exact.items():
                model.get_parameter(name).sub_(gradient, alpha=lr)
                norms.append(gradient_norm([gradient]))
        return measured.stats(torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0])

    @torch.no_grad()
    def reference(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Reference:
        """The differences again, by moving the parameters; see :meth:`Trainer.reference`."""
        directions = self._directions(model, generator)
        params, tangents = directions.params, directions.dense()
        count = self.options.tangents * self.workers.sets
        one_pass = OnePass(model, 2 * count + 2, inputs)
        centre = {name: param.clone() for name, param in params.items()}

        def move(index: int, step: float) -> None:
            torch.clear_autocast_cache()  # of weights cast elsewhere
            for name, param in params.items():
                param.copy_(torch.add(centre[name], tangents[name][index], alpha=step))

        def loss_at(index: int, step: float) -> Tensor:
            move(index, step)
            with one_pass:
                losses = sample_losses(loss_fn, model(inputs), labels)
            return self.workers.average(losses.double().mean())

        step = self.options.epsilon
        pairs = [(loss_at(k, step), loss_at(k, -step)) for k in range(count)]
        derivatives = [(above - below) / (2 * step) for above, below in pairs]
        again = loss_at(0, step)
        move(0, 0.0)
        if not torch.isclose(again, pairs[0][0], rtol=1e-5, equal_nan=True):
            raise ConfigError(
                "the model gives another loss for the same images, parameters and random numbers: it keeps "
                "something between passes that is no buffer, so differences of losses are no derivatives"
            )
        with one_pass:
            gradient = true_gradient(model, loss_fn, inputs, labels)
        gradient = {name: self.workers.average(part) for name, part in gradient.items()}
        return reference_of_tangents(gradient, tangents, mean_of_tangents, torch.stack(derivatives))

    def mean_gradient(
        self, model: nn.Module, loss_fn: LossFunction, inputs: Tensor, labels: Tensor
    ) -> dict[str, Tensor] | None:
        """Backprop's gradient, for small epsilon; see :meth:`Trainer.mean_gradient`."""
        if self.options.guess == "sphere":  # its length depends on all that is drawn
            return None
        return true_gradient(model, loss_fn, inputs, labels)

    def _directions(self, model: nn.Module, generator: torch.Generator) -> Directions:
        """Those of all workers together."""
        options, generators = self.options, self.workers.generators(generator)
        exact = self.exact_names(model)
        if options.structure == "rank1":
            return RankOneDirections(model, exact, generators, options.tangents)
        return SeededDirections(model, exact, options.guess, generators, options.tangents)

    def _measure(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> "Measured":
        """Two passes along each of this worker's directions; what all workers learnt."""
        options = self.options
        output_layer = OutputLayer(model) if options.exact_output else None
        directions = self._directions(model, generator)
        moved = list(directions.params.values())
        one_pass = OnePass(model, 2 * options.tangents, inputs)
        own = self.workers.own * options.tangents
        measured = []
        with output_layer or nullcontext():
            for index in range(own, own + options.tangents):
                direction = directions.along(index)
                losses, outputs, features = [], [], []
                for sign in (1.0, -1.0):
                    step = sign * options.epsilon
                    with one_pass:
                        loss, output = self._loss_at(model, loss_fn, inputs, labels, moved, direction, step)
                    losses.append(loss)
                    outputs.append(output)
                    features += [output_layer.input] if output_layer else []
                measured.append((losses[0] - losses[1]) / (2 * options.epsilon))
        centre = (outputs[0] + outputs[1]) / 2
        rows, loss = self.workers.exchange(torch.stack(measured), (losses[0] + losses[1]) / 2)
        exact = {}
        if output_layer:
            exact = output_layer.gradients(loss_fn, centre, labels, (features[0] + features[1]) / 2)
            exact = {name: self.workers.average(gradient) for name, gradient in exact.items()}
        return Measured(directions, rows.flatten(), exact, loss.to(centre.dtype), centre)

    def _loss_at(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        params: Sequence[Tensor],
        direction: Callable[[Tensor], Tensor | Factors],
        step: float,
    ) -> tuple[Tensor, Tensor]:
        """The mean loss, float64, and the outputs, a step along a direction away."""
        if self.compiled is not None:
            shares = {param: direction(param) for param in params}
            shifts = {
                param: share.times_number(step) if isinstance(share, Factors) else share * step
                for param, share in shares.items()
            }
            return self.compiled.shifted_loss(model, loss_fn, inputs, labels, shifts)
        with shifted_parameters(model, params, direction, step):
            outputs = model(inputs)
            return sample_losses(loss_fn, outputs, labels).double().mean(), outputs


class Measured(NamedTuple):
    """What the passes of a step tell.

    Attributes:
        directions: of all workers, K.
        derivatives: along them, shape (K,), float64.
        exact: gradients in closed form, by name.
        loss: at the centre, shape ().
        outputs: at the centre, shape (B, classes).
    """

    directions: Directions
    derivatives: Tensor
    exact: dict[str, Tensor]
    loss: Tensor
    outputs: Tensor

    @property
    def weights(self) -> Tensor:
        """What each direction is multiplied with, shape (K,)."""
        return self.derivatives / len(self.derivatives)

    def stats(self, norm: Tensor) -> StepStats:
        """With the norm of the gradient."""
        return StepStats(self.loss, self.outputs, self.derivatives.to(self.loss.dtype), norm)
