"""The output layer's gradient in closed form from the loss, for trainers without a backward pass.

The gradient of the loss with respect to the outputs, times the output layer's input: no other layer is
involved, so no error is propagated back through the network. Fournier et al. (2023, arXiv 2306.06968) give
their last block its true gradient in the same spirit.
"""

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fgbench.errors import ConfigError
from fgbench.trainers.base import LossFunction
from fgbench.trainers.forward_mode import ForwardPass
from fgbench.trainers.passes import sample_losses


def loss_gradient(loss_fn: LossFunction, outputs: Tensor, labels: Tensor) -> Tensor:
    """Gradient of every sample's loss with respect to its outputs, shape (B, classes), by forward mode.

    One pass of the loss alone, along one tangent per class: needs no autograd, but a ``loss_fn`` in which
    samples do not interact.
    """
    outputs = outputs.detach().clone()
    samples, classes = outputs.shape
    units = torch.eye(classes, dtype=outputs.dtype, device=outputs.device)
    units = units[:, None, :].expand(classes, samples, classes)
    with ForwardPass(nn.Identity(), {outputs: units}, classes) as forward:
        return forward.tangent_of(sample_losses(loss_fn, outputs, labels)).T.to(outputs.dtype)


class OutputLayer:
    """The model's last ``nn.Linear``, whose output is the model's; a context that captures its input.

    Inside the context every forward pass stores the layer's input in ``input``, and is refused if the
    outputs are anything but W x + b, computed once, with the layer's own weight and bias.

    Attributes:
        layer: the layer.
        names: its trainable parameters' names in the model; leave them out of the tangents.
        input: the layer's input in the latest pass, shape (B, features).

    Raises:
        ConfigError: the model has no such layer, or (on a forward pass) its output is not the model's.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> inputs, labels = torch.ones(5, 3), torch.tensor([0, 1, 0, 1, 0])
        >>> with OutputLayer(model) as output, torch.no_grad():
        ...     outputs = model(inputs)
        ...     gradients = output.gradients(nn.CrossEntropyLoss(reduction="none"), outputs, labels)
        >>> {name: tuple(gradient.shape) for name, gradient in gradients.items()}
        {'2.weight': (2, 4), '2.bias': (2,)}
    """

    input: Tensor

    def __init__(self, model: nn.Module) -> None:
        linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise ConfigError(
                "exact_output: true needs a model whose last layer is an nn.Linear; this one has none"
            )
        self.model = model
        self.name, self.layer = linear[-1]
        weight = self.layer._parameters.get("weight")
        if weight is None:
            raise ConfigError(
                f"exact_output: true needs an output layer that owns its weight; that of {self.name!r} is "
                f"computed from other parameters"
            )
        self.weight, self.bias = weight, self.layer._parameters.get("bias")
        own = {id(param) for param in self.layer.parameters()}
        uses = [name for name, param in model.named_parameters(remove_duplicate=False) if id(param) in own]
        if len(uses) > len(own):
            raise ConfigError(
                f"exact_output: true: the output layer {self.name!r} shares its weights: {', '.join(uses)}"
            )
        self.names = {
            name for name, param in model.named_parameters() if id(param) in own and param.requires_grad
        }

    def __enter__(self) -> "OutputLayer":
        self._seen = _LayerUse(self.weight, self.bias)
        self._hooks = [
            self.model.register_forward_pre_hook(self._begin),
            self.model.register_forward_hook(self._check),
        ]
        self._seen.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._seen.__exit__(kind, error, traceback)
        for hook in self._hooks:
            hook.remove()
        del self._seen

    def _begin(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        self._seen.watching = True

    def _check(self, model: nn.Module, args: tuple[Any, ...], outputs: Tensor) -> None:
        """Store the layer's input, after checking that the outputs are W x + b."""
        self._seen.watching = False
        why = self._seen.find_mismatch(outputs)
        if why is not None:
            raise ConfigError(
                f"exact_output: true needs a model whose outputs are those of its last nn.Linear; "
                f"{self.name!r} {why}"
            )
        self.input = self._seen.calls[0][0]
        self._seen.calls.clear()

    def gradients(
        self, loss_fn: LossFunction, outputs: Tensor, labels: Tensor, features: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The exact gradient of the batch's mean loss with respect to the layer's parameters.

        Args:
            loss_fn: one loss per sample, shape (B,).
            outputs: the model's outputs, shape (B, classes).
            labels: class indices, shape (B,).
            features: the layer's input, shape (B, features); None: that of the latest pass.

        Returns:
            By the parameter's name in the model; the keys are ``names``.
        """
        delta = loss_gradient(loss_fn, outputs, labels) / len(labels)
        features = self.input if features is None else features
        by_id = {id(self.weight): delta.T @ features.to(delta.dtype), id(self.bias): delta.sum(0)}
        return {
            name: by_id[id(param)].to(param.dtype)
            for name, param in self.model.named_parameters()
            if name in self.names
        }


class _LayerUse(TorchFunctionMode):
    """Records every function call that receives a layer's weight or bias, while it is ``watching``.

    Attributes:
        watching: whether the model is running.
        elsewhere: another function that computed something from one of them.
        calls: calls of ``F.linear`` with both: input, output, and their version counters at that time.
    """

    keeps_no_inputs = True  # layers may free theirs

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.calls: list[tuple[Tensor, Tensor, int, int]] = []
        self.elsewhere: str | None = None
        self.watching = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self.watching:
            return result
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if not any(each is self.weight or each is self.bias for each in given):
            return result
        if func is F.linear:
            names = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
            if names["weight"] is self.weight and names.get("bias") is self.bias:
                input = names["input"]
                self.calls.append((input, result, input._version, result._version))
                return result
        if any(isinstance(each, Tensor) for each in tree_leaves(result)):
            self.elsewhere = getattr(func, "__name__", str(func))
        return result

    def find_mismatch(self, outputs: Any) -> str | None:
        """Why the outputs are not the layer's; None if they are."""
        if self.elsewhere is not None:
            return f"gives its parameters to {self.elsewhere}, not only to F.linear"
        if len(self.calls) != 1:
            return f"ran {len(self.calls)} times, expected once"
        input, output, input_version, output_version = self.calls[0]
        if not isinstance(outputs, Tensor) or outputs.dim() != 2 or input.dim() != 2:
            return "does not give one row per sample"
        same = outputs.data_ptr() == output.data_ptr() and outputs.stride() == output.stride()
        if not same or outputs.shape != output.shape or outputs._version != output_version:
            return "has something after it"
        if input._version != input_version:
            return "has an input that is overwritten"
        return None
