"""One forward-mode pass in which the output of every linear and convolution layer is perturbed."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fgbench.errors import ConfigError
from fgbench.trainers.base import LossFunction
from fgbench.trainers.forward_mode import ForwardPass
from fgbench.trainers.forward_mode.layers import LayerCall, PerturbedLayers
from fgbench.trainers.independence import GivenStatistics, refuse_interacting_samples
from fgbench.trainers.passes import sample_losses
from fgbench.trainers.replay import OnePass, restoring_state


@dataclass
class PassResult:
    """The results of a perturbed pass.

    Attributes:
        losses: one per sample, shape (B,).
        derivatives: directional derivative of every sample's own loss, shape (B,).
        outputs: shape (B, classes).
        output_tangents: directional derivatives of the outputs, shape (B, classes).
        calls: the perturbed layers, in the order they ran.
    """

    losses: Tensor
    derivatives: Tensor
    outputs: Tensor
    output_tangents: Tensor
    calls: list[LayerCall]


def perturbed_pass(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    labels: Tensor,
    layers: Mapping[Tensor, str],
    perturb: Callable[[LayerCall, Tensor], Tensor],
    tangents: Mapping[str, Tensor],
) -> PassResult:
    """Loss and its directional derivatives under a perturbation of the layers' outputs, by forward mode.

    Args:
        model: must not fold other dimensions into the batch.
        loss_fn: one loss per sample.
        inputs: shape (B, ...).
        labels: shape (B,).
        layers: the weights and biases of the layers to perturb, with names.
        perturb: ``(call, output) -> perturbation``, shape and dtype of the output.
        tangents: weight-space tangents of further parameters, by name.

    Raises:
        ConfigError: a layer's output does not have one row per sample, or forward mode refuses the model.
    """

    def perturb_rows(call: LayerCall, output: Tensor) -> Tensor:
        if len(output) != len(inputs):
            name = layers.get(call.arguments["weight"]) or layers[call.arguments["bias"]]
            raise ConfigError(
                f"the layer of {name!r} folds other dimensions into the batch: {len(output)} rows for "
                f"{len(inputs)} samples; per-sample derivatives need one row each"
            )
        return perturb(call, output)

    watched = PerturbedLayers(layers, perturb_rows)
    params = dict(model.named_parameters())
    given: dict[Tensor, Tensor] = {params[name]: tangent[None] for name, tangent in tangents.items()}
    with torch.no_grad(), ForwardPass(model, given) as forward, watched.watching(forward.mode):
        outputs = model(inputs)
        losses = sample_losses(loss_fn, outputs, labels)
        derivatives, output_tangents = (forward.tangent_of(each)[0] for each in (losses, outputs))
    return PassResult(losses, derivatives, outputs, output_tangents, watched.calls)


def layer_parameters(
    model: nn.Module, leave_out: Iterable[str] = ()
) -> tuple[dict[Tensor, str], dict[str, Tensor]]:
    """The trainable parameters of linear and convolution layers (with names), and all others (by name).

    Raises:
        ConfigError: an embedding's gradient is scaled by how often the whole batch has a token.
    """
    for name, module in model.named_modules():
        if getattr(module, "scale_grad_by_freq", False):
            raise ConfigError(
                f"{name!r} ({type(module).__name__}) scales its gradient by frequency in the batch, so "
                f"samples interact in it: set scale_grad_by_freq=False, or use another trainer"
            )
    leave_out = set(leave_out)
    owned = {
        id(param)
        for module in model.modules()
        if isinstance(module, nn.Linear | _ConvNd) and "weight" in module._parameters
        for param in module.parameters(recurse=False)
        if not getattr(module, "transposed", False)
    }
    params = [
        (n, param) for n, param in model.named_parameters() if param.requires_grad and n not in leave_out
    ]
    return (
        {param: name for name, param in params if id(param) in owned},
        {name: param.detach() for name, param in params if id(param) not in owned},
    )


def refuse_interacting_layers(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    labels: Tensor,
    layers: Mapping[Tensor, str],
    trainer: str,
    *,
    given_statistics: bool = False,
) -> None:
    """Refuse a model in which changing some samples at its layers changes other samples' losses.

    Costs a few passes, which leave no trace; see :func:`refuse_interacting_samples`.

    Raises:
        ConfigError: samples interact.
    """
    one_pass = OnePass(model, 2, inputs)

    def derive(perturb: Callable[[Tensor], Tensor]) -> Tensor:
        def each(call: LayerCall, output: Tensor) -> Tensor:
            return perturb(output)

        with one_pass, GivenStatistics() if given_statistics else nullcontext():
            return perturbed_pass(model, loss_fn, inputs, labels, layers, each, {}).derivatives

    with restoring_state(model):
        refuse_interacting_samples(model, len(inputs), trainer, derive, given_statistics=given_statistics)
