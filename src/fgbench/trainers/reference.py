"""Steps computed by reverse mode from formulas, with which trainers' forward-mode passes are compared."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from fgbench.trainers.base import LossFunction, Reference
from fgbench.trainers.forward_mode.layers import dense
from fgbench.trainers.passes import sample_losses

LAYERS = {F.linear, F.conv1d, F.conv2d, F.conv3d}
_VIEWS = "Alias Permute ReshapeAlias Slice Squeeze T Transpose UnsafeView Unsqueeze View"
VIEWS = {f"{name}Backward0" for name in _VIEWS.split()} | {"SqueezeBackward1", "SqueezeBackward2"}
"""Nodes of autograd's graph that look at the same memory."""


def true_gradient(
    model: nn.Module, loss_fn: LossFunction, inputs: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """The gradient of the batch's mean loss by name, zeros where the loss does not depend on a parameter."""
    params = {name: param for name, param in model.named_parameters() if param.requires_grad}
    with torch.enable_grad():
        loss = sample_losses(loss_fn, model(inputs), labels).mean()
        if not loss.requires_grad:
            return {name: torch.zeros_like(param) for name, param in params.items()}
        gradient = torch.autograd.grad(loss, list(params.values()), materialize_grads=True)
    return dict(zip(params, gradient, strict=True))


def gradient_by_blocks(
    model: nn.Module,
    blocks: Iterable[tuple[nn.Module, nn.Module]],
    loss_fn: LossFunction,
    inputs: Tensor,
    labels: Tensor,
) -> dict[str, Tensor]:
    """The gradient of each block's own loss by name; nothing is propagated between blocks.

    Args:
        model: gives the names.
        blocks: each with the head for its loss, in the order they run.
        loss_fn: one loss per sample.
        inputs: of the first block.
        labels: shape (B,).
    """
    names = {param: name for name, param in model.named_parameters()}
    gradient: dict[str, Tensor] = {}
    value = inputs
    for block, head in blocks:
        params = [param for param in block.parameters() if param.requires_grad]
        with torch.enable_grad():
            outputs = block(value)
            loss = sample_losses(loss_fn, head(outputs), labels).mean()
            parts = torch.autograd.grad(loss, params, materialize_grads=True)
        gradient |= {names[param]: part for param, part in zip(params, parts, strict=True)}
        value = tree_map(Tensor.detach, outputs)
    return gradient


def reference_of_tangents(
    gradient: Mapping[str, Tensor],
    tangents: Mapping[str, Tensor],
    estimate: Callable[[Tensor, Mapping[str, Tensor]], dict[str, Tensor]],
    derivatives: Tensor | None = None,
) -> Reference:
    """d_k = <g, v_k>, and the estimate from them; parameters without a tangent have their true gradient.

    Args:
        gradient: g, by name.
        tangents: v_1 to v_K by name, each of shape (K, ...).
        estimate: ``(d, tangents) -> gradient by name``, d of shape (K,) in float64.
        derivatives: d, if it is not <g, v> itself, shape (K,).
    """
    if derivatives is None:
        parts = [
            tangent.reshape(len(tangent), -1).double() @ gradient[name].flatten().double()
            for name, tangent in tangents.items()
        ]
        derivatives = torch.stack(parts).sum(0)
    scale = gradient_length(gradient[name] for name in tangents)
    exact = {name: part for name, part in gradient.items() if name not in tangents}
    return Reference(derivatives, scale, estimate(derivatives.double(), tangents) | exact)


def reference_of_gradient(gradient: dict[str, Tensor]) -> Reference:
    """A step without derivatives, given what it should leave in ``param.grad``."""
    nothing = torch.zeros(0)
    return Reference(nothing, nothing, gradient)


def mean_of_tangents(derivatives: Tensor, tangents: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """(1/K) sum_k d_k v_k."""
    return {
        name: torch.tensordot(derivatives / len(derivatives), tangent.double(), 1)
        for name, tangent in tangents.items()
    }


def projection_on_tangents(
    derivatives: Tensor, tangents: Mapping[str, Tensor], rescale: bool = False
) -> dict[str, Tensor]:
    """sum_k c_k v_k with (V V^T) c = d; ``rescale`` multiplies by P/K."""
    if not tangents:
        return {}
    matrix = torch.cat([tangent.double().reshape(len(tangent), -1) for tangent in tangents.values()], dim=1)
    coefficients = torch.linalg.lstsq(matrix @ matrix.T, derivatives[:, None], driver="gelsd").solution[:, 0]
    scale = matrix.shape[1] / len(matrix) if rescale else 1.0
    return {
        name: torch.tensordot(coefficients * scale, tangent.double(), 1) for name, tangent in tangents.items()
    }


def gradient_length(gradients: Any) -> Tensor:
    """Euclidean norm over all tensors together, in float64, shape ()."""
    squares = [gradient.double().square().sum() for gradient in gradients]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros((), dtype=torch.float64)


@dataclass
class OutputCall:
    """One call of a linear or convolution function, differentiated at its output.

    Attributes:
        weight: the weight it was given.
        bias: the bias it was given.
        output: its output, whose first dimension is the batch.
        leaf: zeros that were added to the output: the gradient with respect to them is that at the output.
        node: the graph's node of that addition.
        call: the function again, of weight and bias, at the same input.
        convolution: whether it is one.
    """

    weight: Tensor
    bias: Tensor | None
    output: Tensor
    leaf: Tensor
    node: Any
    call: Callable[[Tensor, Tensor | None], Tensor]
    convolution: bool

    def weight_gradient(self, delta: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The call's parameters with their gradients, from the gradient at the output."""
        given = [each for each in (self.weight, self.bias) if each is not None]
        with torch.enable_grad():
            copies = [each.detach().requires_grad_() for each in given]
            output = self.call(copies[0], copies[1] if len(copies) > 1 else None)
        return list(zip(given, torch.autograd.grad(output, copies, delta.to(output.dtype)), strict=True))


class WatchedOutputs(TorchFunctionMode):
    """A context that records in ``calls`` every call with one of the parameters as its weight or bias."""

    def __init__(self, params: Collection[Tensor]) -> None:
        super().__init__()
        self.params = params
        self.calls: list[OutputCall] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Add zeros to differentiate with respect to; other calls are unchanged."""
        kwargs = kwargs or {}
        if func not in LAYERS or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = dict(zip(names, args, strict=False)) | kwargs
        value, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
        if weight not in self.params and bias not in self.params:
            return func(*args, **kwargs)
        output = func(value, weight, bias, **given)
        leaf = torch.zeros_like(output, requires_grad=True)
        result, fixed = output + leaf, value.detach().clone()
        again: Callable[[Tensor, Tensor | None], Tensor] = lambda w, b: func(fixed, w, b, **given)  # noqa: E731
        self.calls.append(
            OutputCall(weight, bias, output.detach(), leaf, result.grad_fn, again, func is not F.linear)
        )
        return result


@dataclass
class Differentiated:
    """A forward pass with its graph, differentiated at the outputs of layers.

    Attributes:
        params: the parameters to train, by name.
        layers: those of the layers, with their names.
        calls: of the layers, in the order they ran.
        outputs: of the model, shape (B, classes), with the graph.
        losses: one per sample, shape (B,), with the graph.
        gradient: of the mean loss, by name.
        deltas: for each call the gradient of every sample's own loss at its output, shape of the output.
        masks: for each call the mask of the ReLU that is the only consumer of its output; None without one.
    """

    params: dict[str, nn.Parameter]
    layers: Mapping[Tensor, str]
    calls: list[OutputCall]
    outputs: Tensor
    losses: Tensor
    gradient: dict[str, Tensor]
    deltas: list[Tensor]
    masks: list[Tensor | None]

    def derivatives_along(self, perturbations: list[Tensor], tangents: Mapping[str, Tensor]) -> Tensor:
        """<delta_i, u_i> of all layers together, plus the part of the perturbed parameters, shape (B,)."""
        derivatives = torch.zeros_like(self.losses).detach()
        for delta, perturbation in zip(self.deltas, perturbations, strict=True):
            derivatives += (delta * perturbation).flatten(1).sum(1)
        if tangents:
            moving = [self.params[name] for name in tangents]
            derivatives += forward_product(self.losses, moving, list(tangents.values()))
        return derivatives

    def losses_along(self, perturbations: list[Tensor], tangents: Mapping[str, Tensor]) -> Tensor:
        """The derivative of every sample's loss along all perturbations, even if samples interact."""
        return self._along(self.losses, perturbations, tangents)

    def outputs_along(self, perturbations: list[Tensor], tangents: Mapping[str, Tensor]) -> Tensor:
        """The derivative J u of the outputs, shape (B, classes)."""
        return self._along(self.outputs, perturbations, tangents)

    def _along(self, values: Tensor, perturbations: list[Tensor], tangents: Mapping[str, Tensor]) -> Tensor:
        moving: list[Tensor] = [call.leaf for call in self.calls]
        moving += [self.params[name] for name in tangents]
        if not moving:
            return torch.zeros_like(values).detach()
        return forward_product(values, moving, [*perturbations, *tangents.values()])

    def weight_gradients(self, deltas: list[Tensor]) -> dict[str, Tensor]:
        """The gradients of the layers' parameters, given those at the calls' outputs, by name."""
        gradients: dict[str, Tensor] = {
            name: torch.zeros_like(self.params[name]) for name in self.layers.values()
        }
        for call, delta in zip(self.calls, deltas, strict=True):
            for param, part in call.weight_gradient(delta):
                if param in self.layers:
                    gradients[self.layers[param]] += part
        return gradients


def differentiate_outputs(
    model: nn.Module, loss_fn: LossFunction, inputs: Tensor, labels: Tensor, layers: Mapping[Tensor, str]
) -> Differentiated:
    """One pass forward and one back, with the gradients at the outputs of ``layers`` (with names).

    Attention uses the implementation that can be differentiated twice.
    """
    params = {name: param for name, param in model.named_parameters() if param.requires_grad}
    watched = WatchedOutputs(layers)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        with watched:
            outputs = model(inputs)
        losses = sample_losses(loss_fn, outputs, labels)
        leaves: list[Tensor] = [call.leaf for call in watched.calls]
        deltas = torch.autograd.grad(
            losses.sum(), [*leaves, *params.values()], retain_graph=True, materialize_grads=True
        )
    gradient = {name: part / len(labels) for name, part in zip(params, deltas[len(leaves) :], strict=True)}
    return Differentiated(
        params,
        layers,
        watched.calls,
        outputs,
        losses,
        gradient,
        list(deltas[: len(leaves)]),
        relu_masks(watched.calls, losses),
    )


def relu_masks(calls: list[OutputCall], result: Tensor) -> list[Tensor | None]:
    """The mask of the ReLU that is the only consumer of a call's output, or of a view of it all; or None."""
    users: dict[Any, list[Any]] = {}
    nodes, known = [result.grad_fn], {result.grad_fn}
    while nodes:
        node: Any = nodes.pop()
        for below, _ in node.next_functions:
            if below is not None:
                users.setdefault(below, []).append(node)
                if below not in known:
                    known.add(below)
                    nodes.append(below)
    masks: list[Tensor | None] = []
    for call in calls:
        using = users.get(call.node, [])
        while len(using) == 1 and using[0].name() in VIEWS:
            using = users.get(using[0], [])
        alone = len(using) == 1 and using[0].name() == "ReluBackward0"
        seen = using[0]._saved_result if alone else None
        whole = seen is not None and seen.numel() == call.output.numel() and dense(seen)
        masks.append(call.output > 0 if whole and dense(call.output) else None)
    return masks


def forward_product(values: Tensor, leaves: Sequence[Tensor], tangents: Sequence[Tensor]) -> Tensor:
    """The derivative of ``values`` as ``leaves`` move along ``tangents``, by applying reverse mode twice."""
    weights = torch.zeros_like(values, requires_grad=True)
    gradients = torch.autograd.grad(
        values, leaves, weights, create_graph=True, retain_graph=True, allow_unused=True
    )
    pairs = [
        (gradient * tangent.to(gradient.dtype)).sum().to(values.dtype)
        for gradient, tangent in zip(gradients, tangents, strict=True)
        if gradient is not None and gradient.requires_grad
    ]
    if not pairs:
        return torch.zeros_like(values)
    (product,) = torch.autograd.grad(
        torch.stack(pairs).sum(), [weights], retain_graph=True, materialize_grads=True
    )
    return product
