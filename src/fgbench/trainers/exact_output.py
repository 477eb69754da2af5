"""The output layer's gradient in closed form from the loss, for trainers without a chain through the network.

The gradient of the loss with respect to the outputs, times the output layer's input: no other layer is
involved, so no error travels back through the network. Fournier et al. (2023, arXiv 2306.06968) give
their last block its true gradient in the same spirit.
"""

from types import TracebackType

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fgbench.errors import ConfigError
from fgbench.trainers.base import LossFunction
from fgbench.trainers.passes import sample_losses


def loss_gradient(loss_fn: LossFunction, outputs: Tensor, labels: Tensor) -> Tensor:
    """Gradient of every sample's loss with respect to its outputs, shape (B, classes), by forward mode.

    One pass of the loss alone over the batch repeated once per class, each copy with its own unit
    tangent: needs no backward engine, and a ``loss_fn`` under which samples do not interact.
    """
    outputs = outputs.detach()
    samples, classes = outputs.shape
    copies = outputs.repeat_interleave(classes, dim=0)
    units = torch.eye(classes, dtype=outputs.dtype, device=outputs.device).repeat(samples, 1)
    with torch.no_grad(), forward_ad.dual_level():
        losses = sample_losses(
            loss_fn, forward_ad.make_dual(copies, units), labels.repeat_interleave(classes, dim=0)
        )
        tangent = forward_ad.unpack_dual(losses).tangent
    return torch.zeros_like(outputs) if tangent is None else tangent.view(samples, classes).to(outputs.dtype)


class OutputLayer:
    """The model's last ``nn.Linear``, whose output is the model's; a context that captures its input.

    Inside the context every forward pass leaves the layer's input in ``input``. Under ``torch.func.jvp``
    read it within the differentiated function and return it as an auxiliary output: outside it would be a
    dead wrapper.

    Attributes:
        layer: the layer.
        names: its trainable parameters' names in the model; leave them out of the tangents.
        input: the layer's input in the latest pass, without its tangent, shape (B, features).

    Raises:
        ConfigError: the model has no such layer, or (on a forward pass) something comes after it.

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
        own = {id(param) for param in self.layer.parameters()}
        uses = [name for name, param in model.named_parameters(remove_duplicate=False) if id(param) in own]
        if len(uses) > len(own):
            raise ConfigError(
                f"exact_output: true: the output layer {self.name!r} shares its weights: {', '.join(uses)}"
            )
        self.names = {
            name for name, param in model.named_parameters() if id(param) in own and param.requires_grad
        }
        self._output: Tensor | None = None

    def __enter__(self) -> "OutputLayer":
        self._hooks = [
            self.layer.register_forward_hook(self._capture),
            self.model.register_forward_hook(self._check_last),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._output = None

    def _capture(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.input = forward_ad.unpack_dual(args[0]).primal
        self._output = output

    def _check_last(self, model: nn.Module, args: tuple[Tensor, ...], outputs: Tensor) -> None:
        if outputs is not self._output:
            raise ConfigError(
                f"exact_output: true needs a model whose outputs are those of its last nn.Linear; "
                f"{self.name!r} has something after it"
            )

    def gradients(
        self, loss_fn: LossFunction, outputs: Tensor, labels: Tensor, features: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The exact gradient of the batch's mean loss with respect to the layer's parameters.

        Args:
            loss_fn: one loss per sample, shape (B,).
            outputs: the model's outputs, shape (B, classes).
            labels: class indices, shape (B,).
            features: the layer's input, shape (B, features); None: what the latest pass left.

        Returns:
            By the parameter's name in the model; the keys are ``names``.
        """
        delta = loss_gradient(loss_fn, outputs, labels) / len(labels)
        features = self.input if features is None else features
        by_id = {id(self.layer.weight): delta.T @ features.to(delta.dtype), id(self.layer.bias): delta.sum(0)}
        return {
            name: by_id[id(param)].to(param.dtype)
            for name, param in self.model.named_parameters()
            if name in self.names
        }
