"""Direct feedback alignment whose feedback matrices learn from forward-mode derivatives."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fgbench.errors import ConfigError
from fgbench.trainers.activity_pass import (
    PassResult,
    layer_parameters,
    perturbed_pass,
    refuse_interacting_layers,
)
from fgbench.trainers.base import LossFunction, Reference, StepStats, Trainer
from fgbench.trainers.exact_output import OutputLayer, loss_gradient
from fgbench.trainers.feedback_matrices import (
    corrected,
    draw_signs,
    entries,
    from_rows,
    grid_of,
    layer_name,
    regress,
    to_rows,
    unexplained_shares,
)
from fgbench.trainers.forward_mode.layers import LayerCall
from fgbench.trainers.independence import is_known_independent, require_independent_samples
from fgbench.trainers.options import FeedbackForwardGradientOptions
from fgbench.trainers.passes import begin_step, write_gradients
from fgbench.trainers.reference import differentiate_outputs, gradient_length, true_gradient
from fgbench.trainers.replay import OnePass
from fgbench.trainers.sampling import sample_tangents


class FeedbackForwardGradient(Trainer):
    """Send the output error e_i straight to every layer through a matrix: delta_i = F^T e_i, masked.

    One forward-mode pass perturbs every linear and convolution layer's output by independent +-1 entries
    u_i, where the ReLU that follows lets them through, and gives the outputs' directional derivatives
    y_i = sum_l J_l u_li, J_l the Jacobian of the outputs with respect to layer l's output. Two ways to learn
    the matrices F_l (classes x outputs) from that:

    * ``regression``: least mean squares on what the matrices of all layers together do not explain,
      F_l <- F_l + (mu / B) sum_i r_i u_li^T with r_i = y_i - sum_m F_m u_mi and mu = rate B / (B + n), n the
      active units of a sample over all layers. Once F is the Jacobian the residual is zero, so the
      noise vanishes; a step of order 1 / (B + n) is the largest stable one.
    * ``average``: a running average of y_i u_i^T, F_l <- F_l + (1 - momentum) mean_i[(y_i u_li^T - F_l)
      masked], whose noise is as large as the Jacobian times the number of units.

    A step uses the matrices as they were before it. delta_i gives the weight gradient
    mean_i delta_i x_i^T; the output layer has its exact gradient, parameters of other layers d v with v a
    tangent of theirs in the same pass.

    With ``grid``, a convolution's output is cut into that many patches each way, which share a column of F_l
    and a sign of u_li: an entry is a patch's mean Jacobian. Variation within a patch is lost, but n, and with
    it the number of steps until F is learnt, falls by the square of a patch's side, and so do memory and
    drawing.

    ``correction: beta`` adds a share of the difference between the derivative d_i of the sample's loss and
    the one predicted by the feedback c_i = F^T e_i: delta_i = c_i + beta (d_i - <c_i, u_i>) u_i. It is
    unbiased for beta = 1, at the price of noise: E|delta_i - g_i|^2 = ((1 - beta)^2 + beta^2 (n - 1)) |g_i -
    c_i|^2 for the gradient g_i.

    ``combine: projection`` uses the direction only as a guess: a second pass measures the directional
    derivative d along it, and the gradient is (d / |v|^2) v in the space of activations, so that a wrong
    guess is scaled down or reversed.

    Bias: from the difference between F and the Jacobians, times 1 - beta. Variance: none beyond that of F and
    of the correction. Cost: 2 forward passes (4 with ``projection``) and the products, and drawing a bit for
    every output or patch; memory: a matrix of (classes x outputs or patches) per layer. Used backwards:
    nothing.

    Source: Bacho and Chu (2024), "Low-variance Forward Gradients using Direct Feedback Alignment and
    momentum", arXiv 2212.07282, and their code (github.com/Florian-BACHO/FDFA), for ``average``; least mean
    squares is Widrow and Hoff (1960). Differences: they perturb after the activation function, by normal
    entries; here it is before a ReLU and only where it is active, by +-1. Their code updates F by Adam on the
    same error; here it is the plain average. They differentiate locally through normalisation; here it is
    a layer of its own kind (see above).

    Example:
        >>> model, inputs, labels = nn.Linear(3, 2), torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
        >>> loss_fn = nn.CrossEntropyLoss(reduction="none")
        >>> trainer = FeedbackForwardGradient()
        >>> stats = trainer.compute_gradients(model, loss_fn, inputs, labels, torch.Generator())
        >>> model.weight.grad.shape
        torch.Size([2, 3])
    """

    Options = FeedbackForwardGradientOptions

    def __init__(self, options: Any = None, **changes: Any) -> None:
        super().__init__(options, **changes)
        self.feedback: list[Tensor] = []
        self._names: list[str] | None = None

    def set_up(self, model: nn.Module, inputs: Tensor, num_classes: int, generator: torch.Generator) -> None:
        """Only checks that this trainer can train the model; the first step creates the matrices.

        Raises:
            ConfigError: the model's last layer is not an ``nn.Linear``, or samples interact under a
                correction.
        """
        OutputLayer(model)
        self._check(model)

    def exact_names(self, model: nn.Module) -> set[str]:
        """The output layer's; see :meth:`Trainer.exact_names`."""
        return OutputLayer(model).names

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
        """Fill ``param.grad`` and update the feedback matrices; see :meth:`Trainer.compute_gradients`.

        Raises:
            ConfigError: the model is not the one it started with, or its last layer is not an ``nn.Linear``.
        """
        begin_step(model, labels, accumulate=accumulate)
        self._check(model)
        output_layer = OutputLayer(model)
        layers, others = layer_parameters(model, output_layer.names)
        params = {name: param for name, param in model.named_parameters() if param.requires_grad}
        gradients = {id(param): torch.zeros_like(param) for param in params.values()}
        tangents = sample_tangents(others, "rademacher", generator) if others else {}
        given = not self.needs_independent_samples
        if not is_known_independent(model, given_statistics=given):
            refuse_interacting_layers(
                model, loss_fn, inputs, labels, layers, self.options.name, given_statistics=given
            )
        one_pass = OnePass(model, 1 + (self.options.combine == "projection"), inputs)

        def perturb(call: LayerCall, output: Tensor) -> Tensor:
            return draw_signs(output, grid_of(call, self.options.grid), generator)

        with output_layer, one_pass:
            result = perturbed_pass(model, loss_fn, inputs, labels, layers, perturb, tangents)
        self._match(result, layers)
        closed = output_layer.gradients(loss_fn, result.outputs, labels)
        error = loss_gradient(loss_fn, result.outputs, labels) / len(inputs)
        deltas = [
            call.reached(from_rows(error @ matrix, call.perturbation, grid_of(call, self.options.grid)))
            for matrix, call in zip(self.feedback, result.calls, strict=True)
        ]
        changes = [call.reached(call.perturbation) for call in result.calls]
        self._learn(result, changes)
        if self.options.correction:
            deltas = corrected(deltas, changes, result.derivatives / len(inputs), self.options.correction)
        derivatives = result.derivatives
        scale: Tensor | float = 1.0
        if self.options.combine == "projection":
            with one_pass:
                along = perturbed_pass(
                    model, loss_fn, inputs, labels, layers, lambda call, output: deltas[call.index], {}
                )
            derivatives = along.derivatives.mean()[None]
            squares = sum((delta.square().sum() for delta in deltas), start=error.new_zeros(()))
            scale = derivatives / squares.clamp_min(torch.finfo(squares.dtype).tiny)
        for call, delta in zip(result.calls, deltas, strict=True):
            for param, gradient in call.gradients(delta * scale):
                if param in layers:
                    gradients[id(param)] += gradient
        for name, tangent in tangents.items():
            gradients[id(params[name])] = result.derivatives.mean() * tangent
        for name, gradient in closed.items():
            gradients[id(params[name])] = gradient
        by_parameter: dict[Tensor, Tensor] = {param: gradients[id(param)] for param in params.values()}
        norm = write_gradients(by_parameter, accumulate=accumulate)
        return StepStats(result.losses.mean(), result.outputs, derivatives, norm)

    def reference(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Reference:
        """From d = J u of every loss and F^T e_i, by backward passes; see :meth:`Trainer.reference`."""
        exact = OutputLayer(model).names
        layers, others = layer_parameters(model, exact)
        true = differentiate_outputs(model, loss_fn, inputs, labels, layers)
        samples, options = len(labels), self.options
        tangents = sample_tangents(others, "rademacher", generator) if others else {}
        grids = [grid_of(call, options.grid) for call in true.calls]
        drawn = [
            draw_signs(call.output, grid, generator) for call, grid in zip(true.calls, grids, strict=True)
        ]
        (error,) = torch.autograd.grad(true.losses.sum(), true.outputs, retain_graph=True)
        masks = [
            torch.ones_like(u) if mask is None else mask for u, mask in zip(drawn, true.masks, strict=True)
        ]
        matrices = self.feedback or [
            error.new_zeros(error.shape[1], entries(u.shape, grid))
            for u, grid in zip(drawn, grids, strict=True)
        ]
        deltas = [
            from_rows(error / samples @ matrix.to(error), u, grid) * mask
            for matrix, u, mask, grid in zip(matrices, drawn, masks, grids, strict=True)
        ]
        derivatives = true.losses_along(drawn, tangents)
        changes = [u * mask for u, mask in zip(drawn, masks, strict=True)]
        if options.correction:
            deltas = corrected(deltas, changes, derivatives / samples, options.correction)
        gradient = {name: part for name, part in true.gradient.items() if name in exact}
        gradient |= {name: derivatives.mean() * tangent for name, tangent in tangents.items()}
        length = derivatives.square().mean().sqrt()
        if options.combine == "projection":
            derivatives = true.losses_along(deltas, {}).mean()[None]
            along = gradient_length(deltas)
            length = gradient_length(true.deltas) / samples * along
            scale = derivatives / along.square().clamp_min(torch.finfo(error.dtype).tiny)
            deltas = [delta * scale.to(delta.dtype) for delta in deltas]
        gradient |= true.weight_gradients(deltas)
        return Reference(derivatives, length, gradient)

    def mean_gradient(
        self, model: nn.Module, loss_fn: LossFunction, inputs: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """(1 - beta) feedback + beta g in the layers, g elsewhere; see :meth:`Trainer.mean_gradient`."""
        plain = FeedbackForwardGradient(self.options.model_copy(update={"correction": 0.0}))
        plain.feedback = self.feedback
        chance = torch.Generator(inputs.device)
        guidance = plain.reference(model, loss_fn, inputs, labels, chance).gradient
        true = true_gradient(model, loss_fn, inputs, labels)
        layers, _ = layer_parameters(model, OutputLayer(model).names)
        share = self.options.correction
        return true | {name: guidance[name].lerp(true[name], share) for name in layers.values()}

    def _match(self, result: PassResult, layers: Mapping[Tensor, str]) -> None:
        """Create matrices of zeros, as the authors' code does, or move the existing ones to the device."""
        names = [layer_name(call, layers) for call in result.calls]
        if self._names is not None and names != self._names:
            raise ConfigError(
                f"feedback-forward-gradient has a matrix for every call of a layer, in the order they run, "
                f"but this pass runs others than the first one: {', '.join(names)}, not "
                f"{', '.join(self._names)}"
            )
        self._names = names
        classes = result.outputs.shape[1]
        shapes = [(classes, entries(call.shape, grid_of(call, self.options.grid))) for call in result.calls]
        if not self.feedback:
            self.feedback = [result.outputs.new_zeros(shape) for shape in shapes]
        if [tuple(matrix.shape) for matrix in self.feedback] != shapes:
            raise ConfigError("feedback-forward-gradient: its feedback matrices belong to another model")
        self.feedback = [matrix.to(result.outputs.device) for matrix in self.feedback]

    def _check(self, model: nn.Module) -> None:
        if self.needs_independent_samples:
            require_independent_samples(model, self.options.name)

    def _learn(self, result: PassResult, changes: list[Tensor]) -> None:
        """Update every matrix, by regression or towards this batch's estimate of the Jacobian."""
        samples, tangents = len(result.outputs), result.output_tangents
        rows = [
            to_rows(change, grid_of(call, self.options.grid)).to(tangents.dtype)
            for change, call in zip(changes, result.calls, strict=True)
        ]
        if self.options.learning == "regression":
            regress(self.feedback, rows, tangents, self.options.rate)
            return
        for matrix, row in zip(self.feedback, rows, strict=True):
            estimate = tangents.T @ row / samples
            matrix += (1 - self.options.feedback_momentum) * (estimate - matrix * row.square().mean(0))

    def unexplained(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """|y - F_l u_l|^2 / |y|^2 over the batch, layer by layer; see :meth:`Trainer.unexplained`."""
        layers, _ = layer_parameters(model, OutputLayer(model).names)
        return unexplained_shares(
            self.feedback, model, loss_fn, inputs, labels, layers, generator, self.options.grid
        )

    def state_dict(self) -> dict[str, Any]:
        """The feedback matrices and the names of their layers, in the order these run."""
        return {"feedback": list(self.feedback), "layers": self._names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the feedback matrices; older runs saved no names."""
        self.feedback = [matrix.clone() for matrix in state["feedback"]]
        self._names = state.get("layers")
