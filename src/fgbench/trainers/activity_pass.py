"""One forward-mode pass in which the output of every linear and convolution layer is perturbed."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fgbench.errors import ConfigError
from fgbench.trainers.base import LossFunction
from fgbench.trainers.passes import sample_losses

LAYERS = {F.linear, F.conv1d, F.conv2d, F.conv3d}
LAYER_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
RELUS = {F.relu, torch.relu, Tensor.relu}
RELUS_IN_PLACE = {F.relu_, torch.relu_, Tensor.relu_}
INERT = {Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride}  # ask a tensor what it is
INERT |= {getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "is_cuda", "layout")}


@dataclass
class LayerCall:
    """One call of a linear or convolution function, with what a weight gradient is made of.

    Attributes:
        arguments: how it was called, by the names in ``LAYER_ARGUMENTS``; tensors without tangents.
        perturbation: what was added to the output's tangent, shape of the output.
        mask: where the ReLU that follows lets the perturbation through; None where none follows
            directly, or where the output also goes elsewhere.
    """

    arguments: dict[str, Any]
    perturbation: Tensor
    mask: Tensor | None = None
    used_elsewhere: bool = False

    def reached(self, change: Tensor) -> Tensor:
        """``change`` of the output where the ReLU that follows lets it through."""
        return change if self.mask is None or self.used_elsewhere else change * self.mask

    def gradients(self, delta: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """Each parameter with its gradient, from the gradient at the output: a product, no chain."""
        weight, bias = self.arguments["weight"], self.arguments.get("bias")
        delta = delta.to(weight.dtype)
        value = self.arguments["input"].to(weight.dtype)
        if "stride" not in self.arguments:
            delta = delta.flatten(0, -2)
            yield weight, delta.T @ value.flatten(0, -2)
            if bias is not None:
                yield bias, delta.sum(0)
            return
        axes = weight.dim() - 2
        stride, padding, dilation = (
            _per_axis(self.arguments[name], axes) for name in ("stride", "padding", "dilation")
        )
        _, weight_gradient, bias_gradient = torch.ops.aten.convolution_backward(
            delta, value, weight, [len(weight)], stride, padding, dilation, False, [0] * axes,
            self.arguments["groups"], [False, True, bias is not None],
        )  # fmt: skip
        yield weight, weight_gradient
        if bias is not None:
            yield bias, bias_gradient


def _per_axis(value: int | tuple[int, ...], axes: int) -> list[int]:
    return [value] * axes if isinstance(value, int) else list(value)


class PerturbedLayers(TorchFunctionMode):
    """Within, perturbs the output of every call that takes a layer's parameters; ``calls`` lists them.

    The tangent of the layer's input goes through the layer alone (one product), to which the
    perturbation is added; PyTorch's own rule would multiply by a tangent of the weights too.
    """

    def __init__(
        self, layers: Mapping[int, str], perturb: Callable[[int, Tensor], Tensor], samples: int
    ) -> None:
        super().__init__()
        self.layers = layers
        self.perturb = perturb
        self.samples = samples
        self.calls: list[LayerCall] = []
        self.outputs: dict[int, tuple[weakref.ref[Tensor], LayerCall]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Perturb layers, watch where their outputs go, leave everything else alone."""
        kwargs = kwargs or {}
        if func in LAYERS:
            arguments = dict(zip(LAYER_ARGUMENTS, args, strict=False)) | kwargs
            if id(arguments["weight"]) in self.layers or id(arguments.get("bias")) in self.layers:
                self._watch(func, (arguments["input"],))
                return self._perturbed(func, arguments)
        if func not in INERT:
            in_place = func in RELUS_IN_PLACE or (
                func is F.relu and (kwargs.get("inplace") or True in args[1:])
            )
            self._watch(func, tree_leaves((args, kwargs)), in_place=in_place)
        return func(*args, **kwargs)

    def _perturbed(self, func: Any, arguments: dict[str, Any]) -> Tensor:
        value, value_tangent = forward_ad.unpack_dual(arguments["input"])
        arguments = _checked(func, arguments | {"input": value})
        output = func(**arguments)
        if len(output) != self.samples:
            raise ConfigError(
                f"the layer of {self._name(arguments)!r} folds other dimensions into the batch: "
                f"{len(output)} rows for {self.samples} samples; per-sample derivatives need one row each"
            )
        call = LayerCall(arguments, self.perturb(len(self.calls), output))
        tangent = call.perturbation.clone()  # later in-place operations may write into it
        if value_tangent is not None:
            tangent += func(**arguments | {"input": value_tangent, "bias": None})
        output = forward_ad.make_dual(output, tangent)
        self.calls.append(call)
        self.outputs[id(output)] = (weakref.ref(output), call)
        return output

    def _watch(self, func: Any, values: Iterable[Any], *, in_place: bool = False) -> None:
        for value in values:
            if id(value) in self.layers:
                raise ConfigError(
                    f"parameter {self.layers[id(value)]!r} is used in {func.__name__}, not only as weight or "
                    f"bias of a linear or convolution layer: this trainer would miss part of its gradient"
                )
            reference, call = self.outputs.get(id(value), (None, None))
            if reference is None or call is None or reference() is not value:
                continue
            if func in RELUS or func in RELUS_IN_PLACE:
                call.mask = forward_ad.unpack_dual(value).primal > 0
            else:
                call.used_elsewhere = True
            if in_place:
                del self.outputs[id(value)]  # from here on it is the ReLU's output

    def _name(self, arguments: dict[str, Any]) -> str:
        return self.layers.get(id(arguments["weight"])) or self.layers[id(arguments["bias"])]


def _checked(func: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with every default filled in, and padding as numbers."""
    if func is F.linear:
        return arguments
    arguments = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1} | arguments
    if arguments["padding"] == "valid":
        return arguments | {"padding": 0}
    if arguments["padding"] == "same":
        kernel = arguments["weight"].shape[2:]
        total = [
            d * (k - 1) for k, d in zip(kernel, _per_axis(arguments["dilation"], len(kernel)), strict=True)
        ]
        if any(each % 2 for each in total):
            raise ConfigError("a convolution with padding='same' and an even kernel cannot be perturbed")
        return arguments | {"padding": tuple(each // 2 for each in total)}
    return arguments


@dataclass
class PassResult:
    """What a perturbed pass gives.

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
    layers: Mapping[int, str],
    perturb: Callable[[int, Tensor], Tensor],
    tangents: Mapping[str, Tensor],
) -> PassResult:
    """Loss and its directional derivatives under a perturbation of the layers' outputs, by forward mode.

    Args:
        model: may not fold other dimensions into the batch.
        loss_fn: one loss per sample.
        inputs: shape (B, ...).
        labels: shape (B,).
        layers: which layers: the ids of their weights and biases, with names.
        perturb: ``(index of the call, output) -> perturbation``, shape and dtype of the output.
        tangents: weight-space tangents of further parameters, by name.
    """
    params = dict(model.named_parameters())
    mode = PerturbedLayers(layers, perturb, len(inputs))
    with torch.no_grad(), forward_ad.dual_level():
        duals = {
            name: forward_ad.make_dual(params[name].detach(), tangent) for name, tangent in tangents.items()
        }
        with mode:
            outputs = functional_call(model, duals, (inputs,))
        mode._watch(loss_fn, tree_leaves(outputs))
        losses, derivatives = forward_ad.unpack_dual(sample_losses(loss_fn, outputs, labels))
        outputs, output_tangents = forward_ad.unpack_dual(outputs)
    return PassResult(
        losses,
        torch.zeros_like(losses) if derivatives is None else derivatives,
        outputs,
        torch.zeros_like(outputs) if output_tangents is None else output_tangents,
        mode.calls,
    )


def layer_parameters(
    model: nn.Module, leave_out: Iterable[str] = ()
) -> tuple[dict[int, str], dict[str, Tensor]]:
    """The trainable parameters of linear and convolution layers (id -> name), and all others (by name)."""
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
        {id(param): name for name, param in params if id(param) in owned},
        {name: param.detach() for name, param in params if id(param) not in owned},
    )
