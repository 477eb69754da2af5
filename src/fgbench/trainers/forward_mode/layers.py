"""Perturbing what the layers of a model put out, and watching where it goes."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fgbench.errors import ConfigError
from fgbench.trainers.forward_mode.operations import signature, tensors
from fgbench.trainers.forward_mode.shadows import RefusedError
from fgbench.trainers.forward_mode.tangent_mode import TangentMode

aten = torch.ops.aten
LAYERS = {F.linear, F.conv1d, F.conv2d, F.conv3d}
ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass
class LayerCall:
    """One call of a linear or convolution function, with what a weight gradient is made of.

    Attributes:
        arguments: how it was called, by the names in ``ARGUMENTS``.
        shape: of its output.
        index: how many calls ran before.
        perturbation: what was added to the tangent of its output, shape of the output.
        mask: where the ReLU that takes the output lets a change through, shape of the output; None where no
            ReLU does, or something else uses the output too. Final once the pass is over.
        used_elsewhere: whether anything but one ReLU uses the output.
    """

    arguments: dict[str, Any]
    shape: torch.Size
    index: int = 0
    perturbation: Tensor = field(init=False, repr=False)
    used_elsewhere: bool = False
    _relu: Tensor | None = field(default=None, repr=False)
    _version: int = 0

    @property
    def convolution(self) -> bool:
        """Whether it is one, so that outputs have positions."""
        return "stride" in self.arguments

    @property
    def mask(self) -> Tensor | None:
        """See above."""
        return None if self.used_elsewhere else self._relu

    def reached(self, change: Tensor) -> Tensor:
        """``change`` of the output where the ReLU that follows lets it through."""
        return change if self.mask is None else change * self.mask

    def gradients(self, delta: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """Each parameter with its gradient, from the gradient at the output: a product, no chain.

        Raises:
            ConfigError: the model has written over the layer's input since.
        """
        weight, bias, value = (self.arguments[name] for name in ("weight", "bias", "input"))
        if value._version != self._version:
            raise ConfigError("the model writes into a layer's input in place, which its gradient needs")
        delta, value = delta.to(weight.dtype), value.to(weight.dtype)
        if not self.convolution:
            delta = delta.flatten(0, -2)
            yield weight, delta.T @ value.flatten(0, -2)
            if bias is not None:
                yield bias, delta.sum(0)
            return
        _, weight_gradient, bias_gradient = _convolution_backward(
            self.arguments, delta, value, weight, [False, True, bias is not None]
        )
        yield weight, weight_gradient
        if bias is not None:
            yield bias, bias_gradient


class PerturbedLayers(TorchFunctionMode):
    """Within a ``ForwardPass``, catches every call of a layer, and may perturb its output.

    Whether a ReLU, and only a ReLU, takes an output is decided by memory, operation by operation: through
    whatever views, or in place on the output itself. A layer's parameter that is used in any other way is
    refused.

    Args:
        layers: the layers' parameters, with their names.
        perturb: ``(call, output) -> perturbation`` of the output's shape.

    Attributes:
        calls: of the pass, in the order they ran.

    Example:
        >>> layer = torch.nn.Linear(3, 2)
        >>> ones = PerturbedLayers({layer.weight: "weight"}, lambda call, y: torch.ones_like(y))
        >>> from fgbench.trainers.forward_mode import ForwardPass
        >>> with ForwardPass(layer, {}) as forward, ones.watching(forward.mode):
        ...     outputs = layer(torch.ones(4, 3)).relu()
        ...     change = forward.tangent_of(outputs)
        >>> bool((change[0] == ones.calls[0].mask).all())
        True
    """

    def __init__(self, layers: Mapping[Tensor, str], perturb: Callable[[LayerCall, Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = layers
        self._memory = {param.untyped_storage()._cdata: name for param, name in layers.items()}
        self.perturb = perturb
        self.calls: list[LayerCall] = []
        self._inside = False
        self._outputs: dict[int, Watched] = {}

    def watching(self, mode: TangentMode) -> "PerturbedLayers":
        """The context, for a pass that has begun."""
        self._shadows, self._mode = mode.shadows, mode
        mode.observers.append(self._observe)
        return self

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Catch layers, leave everything else alone."""
        kwargs = kwargs or {}
        if func not in LAYERS or not torch.is_grad_enabled():  # a layer without a graph is not trained
            return func(*args, **kwargs)
        arguments = layer_arguments(func, args, kwargs)
        if not any(
            each is param for each in (arguments["weight"], arguments["bias"]) for param in self.layers
        ):
            return func(*args, **kwargs)
        self._refuse_computed(arguments)
        self._inside = True
        try:
            output: Tensor = func(**arguments)
        finally:
            self._inside = False
        call = LayerCall(arguments, output.shape, len(self.calls), _version=arguments["input"]._version)
        self.calls.append(call)
        self._watch(call, output)
        with torch.no_grad():  # what is computed here has no tangent
            call.perturbation = self.perturb(call, output)
            self._shadows.get_or_allocate(output).add_(call.perturbation)
        return output

    def _refuse_computed(self, arguments: dict[str, Any]) -> None:
        """Refuse what is made of a layer's parameter, where a layer's own is expected."""
        for name in ("input", "weight", "bias"):
            value = arguments[name]
            if value is None or (name != "input" and isinstance(value, nn.Parameter)):
                continue
            key = value.untyped_storage()._cdata
            if key in self._memory and self._leaves_gradient(value):
                raise RefusedError(self._misused(key))

    def _misused(self, key: int) -> str:
        return (
            f"parameter {self._memory[key]!r} is used otherwise than as weight or bias of a linear or "
            f"convolution layer, so this trainer would miss part of its gradient"
        )

    def _watch(self, call: LayerCall, output: Tensor) -> None:
        storage, outputs = output.untyped_storage(), self._outputs
        key = storage._cdata
        reference = weakref.ref(storage, lambda _: outputs.pop(key, None))
        outputs[key] = Watched(
            call, output.stride(), int(output.storage_offset()), dense(output), weakref.ref(output), reference
        )

    def _observe(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        view, written = signature(func) if isinstance(func, torch._ops.OpOverload) else (False, [])
        if view:
            return
        for value in tensors(args, kwargs):
            key = value.untyped_storage()._cdata
            if key in self._memory and not self._inside and self._leaves_gradient(value):
                raise RefusedError(self._misused(key))
            watched = self._outputs.get(key)
            if watched is not None:
                self._follow(watched, func, value, in_place=bool(written))

    def _leaves_gradient(self, value: Tensor) -> bool:
        graph = torch.is_grad_enabled() or self._mode.is_in_unseen_function()
        return graph and not self._shadows.is_detached(value)

    def _follow(self, watched: "Watched", func: Any, value: Tensor, *, in_place: bool) -> None:
        call = watched.call
        differentiable = self._leaves_gradient(value)
        if not differentiable and not in_place:
            return  # a look that leaves no gradient
        whole = watched.dense and value.numel() == call.shape.numel() and dense(value)
        if in_place:  # in a graph, what is done to a view no longer says that it is a ReLU
            whole = whole and value is watched.output()
        if not (differentiable and whole and func in (aten.relu.default, aten.relu_.default)):
            call.used_elsewhere = True
            return
        if call._relu is None:
            call._relu = value.as_strided(call.shape, watched.stride, watched.offset) > 0
        if in_place:  # from here on it is the ReLU's output
            self._outputs.pop(value.untyped_storage()._cdata)


class Watched(NamedTuple):
    """An output whose use is followed, as long as its storage is there."""

    call: LayerCall
    stride: tuple[int, ...]
    offset: int
    dense: bool
    output: "weakref.ref[Tensor]"
    storage: "weakref.ref[Any]"


def dense(value: Tensor) -> bool:
    """Whether a view covers memory without gaps or overlaps, as far as is cheap to know."""
    return value.is_contiguous() or (
        value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
    )


def layer_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """How one of ``LAYERS`` is called, by the names in ``ARGUMENTS``: of a convolution, all of them.

    Raises:
        ConfigError: a convolution whose padding is not the same on both sides.
    """
    arguments = {"bias": None} | dict(zip(ARGUMENTS, args, strict=False)) | kwargs
    return arguments if func is F.linear else _complete(arguments)


def input_gradient(arguments: dict[str, Any], weight: Tensor, delta: Tensor) -> Tensor:
    """The gradient at a layer's input, from the one at its output, if ``weight`` were the layer's."""
    weight = weight.to(delta.dtype)
    if "stride" not in arguments:
        return delta @ weight
    value = arguments["input"].to(delta.dtype)
    return _convolution_backward(arguments, delta, value, weight, [True, False, False])[0]


def _convolution_backward(
    arguments: dict[str, Any], delta: Tensor, value: Tensor, weight: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input, the weight and the bias; those not ``wanted`` are undefined."""
    axes = weight.dim() - 2
    stride, padding, dilation = (
        _per_axis(arguments[name], axes) for name in ("stride", "padding", "dilation")
    )
    gradients: tuple[Tensor, Tensor, Tensor] = aten.convolution_backward(
        delta, value, weight, [len(weight)], stride, padding, dilation, False, [0] * axes,
        arguments["groups"], wanted,
    )  # fmt: skip
    return gradients


def _per_axis(value: int | tuple[int, ...], axes: int) -> list[int]:
    return [value] * axes if isinstance(value, int) else list(value)


def _complete(arguments: dict[str, Any]) -> dict[str, Any]:
    """A convolution's arguments with every default filled in, and padding as numbers."""
    arguments = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | arguments
    if arguments["padding"] == "valid":
        return arguments | {"padding": 0}
    if arguments["padding"] == "same":
        kernel = arguments["weight"].shape[2:]
        dilation = _per_axis(arguments["dilation"], len(kernel))
        lost = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if any(each % 2 for each in lost):
            raise ConfigError(
                "a convolution with padding='same' and an even kernel pads unevenly: give it another padding"
            )
        return arguments | {"padding": tuple(each // 2 for each in lost)}
    return arguments
