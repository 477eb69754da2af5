"""Forward gradients in the space of activations: each layer's output is perturbed, sample by sample."""

from collections.abc import Collection
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from fgbench.trainers.activity_pass import layer_parameters, perturbed_pass, refuse_interacting_layers
from fgbench.trainers.base import LossFunction, Reference, StepStats, Trainer
from fgbench.trainers.exact_output import OutputLayer
from fgbench.trainers.forward_mode.layers import LayerCall
from fgbench.trainers.independence import (
    is_known_independent,
    require_independent_samples,
)
from fgbench.trainers.next_weights import NextLayer, find_next_layers
from fgbench.trainers.options import ActivityForwardGradientOptions
from fgbench.trainers.passes import begin_step, write_gradients
from fgbench.trainers.reference import differentiate_outputs, true_gradient
from fgbench.trainers.replay import OnePass
from fgbench.trainers.sampling import sample_tangents


class ActivityForwardGradient(Trainer):
    """Perturb the output of every linear and convolution layer, independently for every sample.

    One forward-mode pass gives d_i, the directional derivative of sample i's own loss. With u_i the
    perturbation of a layer's output, d_i u_i estimates the gradient there, and its product with the
    layer's input x_i the weight gradient: mean over i of d_i u_i x_i^T. No graph is kept and nothing
    is propagated backwards. Where a ReLU follows the layer directly, entries it switches off have no
    gradient: ``mask`` leaves them out, which keeps the mean and reduces the noise.

    Parameters of other layers (a normalisation's scale and shift) get one tangent v for the whole
    batch in the same pass, and the gradient mean_i(d_i) v. ``exact_output`` leaves the output layer
    unperturbed, which removes its share of the noise.

    ``guess: next-weights``: the gradient at the outputs of a hidden layer is mask * (W^T delta), W being the
    weights of the linear layer that follows. So the signs are projected, sample by sample, on the range of
    mask * W^T: still unbiased, and d_i u_i is noise of as many dimensions as the next layer has outputs, not
    as this one has units: 10 instead of about 500 below 10 classes. Where the next layer is as wide as the
    layer, every direction is open and the signs stay as they are. For chains of linear layers and ReLUs.

    Bias: none. Total variance of a linear layer's weight gradient with Rademacher perturbations:
    sum_i |x_i|^2 (A_i sum_m |delta_mi|^2 - |delta_i|^2) / K, with A_i the number of perturbed entries,
    delta_mi the gradient at the output of layer m for sample i, delta_i at the layer itself; with
    ``next-weights`` A_i is about the dimension of that range. Cost: 2 K forward passes and the weight
    gradients' products (``next-weights``: and for each sample and narrow next layer a product of outputs^2 x
    inputs); drawing a bit for every output; memory is no less than backprop's, as inputs and perturbations
    are kept. Used backwards: nothing; with ``next-weights`` the transposed weights.

    Source: Ren, Kornblith, Liao and Hinton (2023), "Scaling Forward Gradient With Local Losses",
    section 3, arXiv 2210.03310; without its local losses and architecture. ``next-weights``: Singhal et al.
    (2023), "How to guess a gradient", arXiv 2312.04709, whose guess W^T xi is biased, and Wang (2025),
    arXiv 2511.03110, who whitens it; a projection of signs has the same mean and covariance.

    Example:
        >>> model, inputs, labels = nn.Linear(3, 2), torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
        >>> loss_fn = nn.CrossEntropyLoss(reduction="none")
        >>> trainer = ActivityForwardGradient(tangents=2)
        >>> stats = trainer.compute_gradients(model, loss_fn, inputs, labels, torch.Generator())
        >>> stats.directional_derivatives.shape
        torch.Size([2, 4])
    """

    Options = ActivityForwardGradientOptions

    def set_up(self, model: nn.Module, inputs: Tensor, num_classes: int, generator: torch.Generator) -> None:
        """Only checks that this trainer can train the model; see :meth:`Trainer.set_up`."""
        require_independent_samples(model, self.options.name)
        if self.options.exact_output:
            OutputLayer(model)
        self._next_layers(model, layer_parameters(model)[0])

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
        """Fill ``param.grad`` with the estimate; see :meth:`Trainer.compute_gradients`.

        Raises:
            ConfigError: BatchNorm in training mode, or a layer that folds other dimensions into the batch.
        """
        begin_step(model, labels, accumulate=accumulate)
        require_independent_samples(model, self.options.name)
        options = self.options
        output_layer = OutputLayer(model) if options.exact_output else None
        layers, others = layer_parameters(model, output_layer.names if output_layer else ())
        gradients = {id(p): torch.zeros_like(p) for p in model.parameters() if p.requires_grad}
        params = dict(model.named_parameters())
        if not is_known_independent(model):
            refuse_interacting_layers(model, loss_fn, inputs, labels, layers, options.name)
        one_pass = OnePass(model, options.tangents, inputs)
        deltas: dict[int, Tensor] = {}
        derivatives = []

        next_layers = self._next_layers(model, layers)

        def perturb(call: LayerCall, output: Tensor) -> Tensor:
            return self._draw(output, next_layers[call.index] if next_layers else None, generator)

        with output_layer or nullcontext():
            for _ in range(options.tangents):
                tangents = sample_tangents(others, self._entries, generator) if others else {}
                with one_pass:
                    result = perturbed_pass(model, loss_fn, inputs, labels, layers, perturb, tangents)
                derivatives.append(result.derivatives)
                shares = result.derivatives / (options.tangents * len(inputs))
                for index, call in enumerate(result.calls):
                    delta = per_sample(shares, call.perturbation)
                    delta = call.reached(delta) if options.mask else delta
                    deltas[index] = deltas[index] + delta if index in deltas else delta
                for name, tangent in tangents.items():
                    gradients[id(params[name])] += shares.sum() * tangent
        for index, call in enumerate(result.calls):
            for param, gradient in call.gradients(deltas[index]):
                if param in layers:
                    gradients[id(param)] += gradient
        if output_layer:
            for name, gradient in output_layer.gradients(loss_fn, result.outputs, labels).items():
                gradients[id(params[name])] = gradient
        by_parameter: dict[Tensor, Tensor] = {
            param: gradients[id(param)] for param in params.values() if id(param) in gradients
        }
        norm = write_gradients(by_parameter, accumulate=accumulate)
        return StepStats(result.losses.mean(), result.outputs, torch.stack(derivatives), norm)

    def reference(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Reference:
        """d_i = <delta_i, u_i>, delta from a backward pass; see :meth:`Trainer.reference`."""
        options = self.options
        exact = OutputLayer(model).names if options.exact_output else set()
        layers, others = layer_parameters(model, exact)
        true = differentiate_outputs(model, loss_fn, inputs, labels, layers)
        gradient = {name: part for name, part in true.gradient.items() if name in exact}
        gradient |= {name: torch.zeros_like(tangent) for name, tangent in others.items()}
        next_layers = self._next_layers(model, layers)
        totals = [torch.zeros_like(call.output) for call in true.calls]
        derivatives = []
        for _ in range(options.tangents):
            tangents = sample_tangents(others, self._entries, generator) if others else {}
            drawn = [
                self._draw(call.output, next_layers[index] if next_layers else None, generator)
                for index, call in enumerate(true.calls)
            ]
            own = true.derivatives_along(drawn, tangents)
            shares = own / (options.tangents * len(inputs))
            derivatives.append(own)
            for total, mask, each in zip(totals, true.masks, drawn, strict=True):
                total += per_sample(shares, each * mask if options.mask and mask is not None else each)
            for name, tangent in tangents.items():
                gradient[name] += shares.sum() * tangent
        gradient |= true.weight_gradients(totals)
        return Reference(torch.stack(derivatives), torch.stack(derivatives).square().mean().sqrt(), gradient)

    def mean_gradient(
        self, model: nn.Module, loss_fn: LossFunction, inputs: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Backprop's gradient; see :meth:`Trainer.mean_gradient`."""
        return true_gradient(model, loss_fn, inputs, labels)

    @property
    def _entries(self) -> str:
        return "normal" if self.options.guess == "normal" else "rademacher"

    def _next_layers(self, model: nn.Module, layers: Collection[Tensor]) -> list[NextLayer]:
        """For every perturbed layer, the layer that restricts its perturbation; empty if none does."""
        if self.options.guess != "next-weights":
            return []
        return find_next_layers(model, layers, self.options.name)

    def _draw(self, output: Tensor, after: NextLayer | None, generator: torch.Generator) -> Tensor:
        drawn = sample_tangents({"output": output}, self._entries, generator)["output"]
        return drawn if after is None else after.narrow(drawn, output)


def per_sample(numbers: Tensor, values: Tensor) -> Tensor:
    """Every sample's values, shape (B, ...), times that sample's factor, shape (B,)."""
    return numbers.to(values.dtype).view(-1, *[1] * (values.dim() - 1)) * values
