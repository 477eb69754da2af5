"""Central differences of the loss along random directions: no derivative rule of any kind is used."""

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from fgbench.seeds import derive_generator, draw_seed
from fgbench.trainers.base import LossFunction, Reference, StepStats, Trainer
from fgbench.trainers.exact_output import OutputLayer
from fgbench.trainers.forward_mode.shifted import ShiftedParameters
from fgbench.trainers.options import ZerothOrderOptions
from fgbench.trainers.passes import begin_step, gradient_norm, sample_losses, write_gradient
from fgbench.trainers.reference import (
    mean_of_tangents,
    reference_of_tangents,
    true_gradient,
)
from fgbench.trainers.replay import OnePass
from fgbench.trainers.sampling import sample_tangents
from fgbench.trainers.workers import Sharing


class ZerothOrder(Trainer):
    """Two forward passes at theta + epsilon v and theta - epsilon v give d; the gradient is d v.

    Neither v nor the shifted parameters are ever there for the whole model: a layer's share of v is
    drawn again from its seed where it is used, and the parameters themselves are never shifted in
    place (shifting them there and back leaves rounding behind). ``sgd_step`` forms no gradient either.

    Bias: O(epsilon^2). Variance: that of ``forward-gradient`` with the same guess, (P+1)|g|^2 / K for
    ``normal`` and (P-1)|g|^2 / K otherwise, up to O(epsilon^2). Cost: 2 K forward passes, and drawing v
    three times. Running statistics move once, at theta + epsilon v_1; loss and outputs are the mean of
    the last two passes. Both are off by no more than O(epsilon) and O(epsilon^2).

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

        def keep(param: Tensor, gradient: Tensor) -> Tensor:
            write_gradient(param, gradient, accumulate=accumulate)
            return gradient if param.grad is None else param.grad

        return self._step(model, loss_fn, inputs, labels, generator, keep)

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
        """A plain SGD step of size ``lr``, one parameter at a time; no gradient is kept."""
        begin_step(model, labels)

        def descend(param: Tensor, gradient: Tensor) -> Tensor:
            param.sub_(gradient, alpha=lr)
            return gradient

        return self._step(model, loss_fn, inputs, labels, generator, descend)

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
        options = self.options
        exact = OutputLayer(model).names if options.exact_output else set()
        params = {n: param for n, param in model.named_parameters() if param.requires_grad and n not in exact}
        directions = [
            SeededDirection(list(params.values()), options.guess, each)
            for each in self.workers.generators(generator)
            for _ in range(options.tangents)
        ]
        tangents = {
            name: torch.stack([each.of(param) for each in directions]) for name, param in params.items()
        }
        one_pass = OnePass(model, 2 * len(directions) + 1, inputs)
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

        step = options.epsilon
        derivatives = [(loss_at(k, step) - loss_at(k, -step)) / (2 * step) for k in range(len(directions))]
        move(0, 0.0)
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

    def _step(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        use: Callable[[Tensor, Tensor], Tensor],
    ) -> StepStats:
        """Evaluate, then hand ``use`` one parameter at a time with its gradient."""
        options = self.options
        output_layer = OutputLayer(model) if options.exact_output else None
        exact = output_layer.names if output_layer else set()
        params = {name: param for name, param in model.named_parameters() if param.requires_grad}
        moved = [param for name, param in params.items() if name not in exact]
        one_pass = OnePass(model, 2 * options.tangents, inputs)
        generators = self.workers.generators(generator)
        directions = [
            SeededDirection(moved, options.guess, each)
            for each in generators
            for _ in range(options.tangents)
        ]
        own = self.workers.own * options.tangents
        measured = []
        with output_layer or nullcontext():
            for direction in directions[own : own + options.tangents]:
                losses, outputs, features = [], [], []
                for sign in (1.0, -1.0):
                    with one_pass, ShiftedParameters(model, moved, direction.of, sign * options.epsilon):
                        outputs.append(model(inputs))
                        losses.append(sample_losses(loss_fn, outputs[-1], labels).double().mean())
                    features += [output_layer.input] if output_layer else []
                measured.append((losses[0] - losses[1]) / (2 * options.epsilon))
        centre = (outputs[0] + outputs[1]) / 2
        rows, loss = self.workers.exchange(torch.stack(measured), (losses[0] + losses[1]) / 2)
        derivatives, loss = rows.flatten(), loss.to(centre.dtype)
        closed = {}
        if output_layer:
            closed = output_layer.gradients(loss_fn, centre, labels, (features[0] + features[1]) / 2)
            closed = {name: self.workers.average(gradient) for name, gradient in closed.items()}
        norms = []
        for name, param in params.items():
            if name in closed:
                gradient = closed[name]
            else:
                gradient = torch.zeros_like(param)
                for derivative, direction in zip(derivatives, directions, strict=True):
                    gradient += (derivative / len(directions)).to(param.dtype) * direction.of(param)
            norms.append(gradient_norm([use(param, gradient)]))
        norm = torch.linalg.vector_norm(torch.stack(norms))
        return StepStats(loss, centre, derivatives.to(loss.dtype), norm)


class SeededDirection:
    """A tangent for all parameters of which only seeds are kept."""

    def __init__(self, params: list[nn.Parameter], guess: str, generator: torch.Generator) -> None:
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
