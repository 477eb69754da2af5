"""Forward gradients of losses that are local to blocks, patches and groups of channels."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fgbench.errors import ConfigError
from fgbench.models.layers import Stages, TokenMean
from fgbench.models.local_mixer import MixerBlock, MixerLayer, Patches, normalize_groups
from fgbench.trainers.base import LossFunction, Reference, StepStats, Trainer
from fgbench.trainers.exact_output import OutputLayer, loss_gradient
from fgbench.trainers.forward_mode.refusals import refuse_hooks
from fgbench.trainers.options import LocalForwardGradientOptions
from fgbench.trainers.passes import accumulating, begin_step, gradient_norm, sample_losses
from fgbench.trainers.reference import forward_product, gradient_by_blocks, true_gradient
from fgbench.trainers.sampling import sample_tangents

EPSILON = 1e-5
"""Of ``torch.nn.functional.layer_norm``."""


class Perturbed(NamedTuple):
    """A layer of a block in one pass; all of shape (B, patches, channels).

    Attributes:
        value: its input.
        product: its output before the second normalisation.
        noise: the perturbation of its normalised outputs.
        active: where the ReLU is active.
    """

    layer: MixerLayer
    value: Tensor
    product: Tensor
    noise: Tensor
    active: Tensor


class Perturbable(NamedTuple):
    """A layer of a block in a pass that keeps a graph; all of shape (B, patches, channels).

    Attributes:
        product: its outputs, with a graph of its weights alone.
        leaf: the zeros that are added to its outputs.
        after: what the ReLU is given.
    """

    layer: MixerLayer
    product: Tensor
    leaf: Tensor
    after: Tensor


class LocalForwardGradient(Trainer):
    """Perturb the activations of every block of ``local-mixer``, weighted by derivatives of its own loss.

    A block's loss is the cross-entropy c of a linear head on the mean m over its P patches' outputs y. It is
    copied for each patch p and group g of channels, and a copy depends on changes of y[p, g] alone, so that
    one forward-mode pass gives for every block, sample i, patch and group

        d_ipg = (1/P) <dc_i/dm[g], y'_i[p, g]>,

    y' being the outputs' tangent under independent noise u on the normalised outputs of every layer, before
    the ReLU. The gradient there is estimated by d u where the ReLU is active, for a layer that mixes patches
    by (sum_g d) u; it is propagated back through the layer's own normalisation, exactly, and to the weights
    by one product. Nothing is sent between blocks. Heads get the exact gradients of their losses.

    ``losses: global`` keeps the perturbation and leaves out the local losses: the model's loss alone, whose
    derivative d_i, of a sample, is that of the whole network and weighs the noise of all its layers. That is
    activity perturbation as the source has it: after the normalisation, which ``activity-forward-gradient``
    perturbs before.

    Bias: none as an estimate of the gradient of the block's own loss, which is not the gradient of the
    model's loss (unless there is one block, or ``losses: global``). Variance: for each sample that of
    activity perturbation with the layers' outputs of one patch and one group alone (``global``: of all
    layers, patches and groups together): about (n + 1) times the squared gradient, n their number. Cost: 2
    forward passes, the weights' gradient products and the heads; drawing one number for every activation
    takes time as well. Used backwards: no weights and no layers but each layer's own normalisation.

    Source: Ren, Kornblith, Liao and Hinton (2023), arXiv 2210.03310, LG-FG-A; with
    ``losses: global`` their FG-A. Their last head has a tenth of
    the learning rate: ``optimizer.exact_lr``.

    Example:
        >>> from fgbench.models.local_mixer import build_local_mixer
        >>> from fgbench.models.options import LocalMixerOptions
        >>> model = build_local_mixer(LocalMixerOptions(channels=8, groups=2, patches=2), (1, 4, 4), 3)
        >>> inputs, labels = torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])
        >>> trainer = LocalForwardGradient()
        >>> trainer.set_up(model, inputs, 3, torch.Generator())
        >>> loss_fn = nn.CrossEntropyLoss(reduction="none")
        >>> stats = trainer.compute_gradients(model, loss_fn, inputs, labels, torch.Generator())
        >>> stats.directional_derivatives.shape
        torch.Size([1, 5, 4, 2])
    """

    Options = LocalForwardGradientOptions

    def __init__(self, options: Any = None, **changes: Any) -> None:
        super().__init__(options, **changes)
        self.heads = nn.ModuleList()

    def set_up(self, model: nn.Module, inputs: Tensor, num_classes: int, generator: torch.Generator) -> None:
        """Build the heads of all local losses but the last; see :meth:`Trainer.set_up`."""
        spans = self._spans(model)
        output = model[-1][-1]  # type: ignore[index]
        place: dict[str, Any] = {"device": output.weight.device, "dtype": output.weight.dtype}
        heads = [nn.Linear(output.in_features, num_classes, **place) for _ in spans[:-1]]
        for head in heads:
            deviation = min(2 / head.in_features**0.5, 0.1)
            drawn = torch.empty(head.weight.shape, device="cpu").normal_(0, deviation, generator=generator)
            with torch.no_grad():
                head.weight.copy_(drawn)
                head.bias.zero_()
        self.heads = nn.ModuleList(heads)

    def exact_names(self, model: nn.Module) -> set[str]:
        """The output layer's; see :meth:`Trainer.exact_names`."""
        return OutputLayer(model).names

    def parameters(self) -> list[nn.Parameter]:
        """The heads' parameters."""
        return list(self.heads.parameters())

    def state_dict(self) -> dict[str, Any]:
        """The heads' state."""
        return self.heads.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.heads.load_state_dict(state)

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
        """Fill ``param.grad``, the heads' too; see :meth:`Trainer.compute_gradients`.

        Raises:
            ConfigError: the model is not a ``local-mixer``, or ``set_up`` has not been called with it.
        """
        begin_step(model, labels, accumulate=accumulate)
        spans = self._spans(model)
        if len(self.heads) != len(spans) - 1:
            raise ConfigError(f"{self.options.name}: call set_up with this model before the first step")
        heads = [*self.heads, model[-1][-1]]  # type: ignore[index]
        value = model[0](inputs)  # type: ignore[index]
        derivatives = []
        with accumulating([*model.parameters(), *self.parameters()], accumulate):
            for span, head in zip(spans, heads, strict=True):
                tangent, layers = torch.zeros_like(value), []
                for block in span:
                    value, tangent, perturbed = self._push(block, value, tangent, generator)
                    layers += perturbed
                mean = value.mean(1)
                outputs = head(mean)
                error = loss_gradient(loss_fn, outputs, labels)
                _fill(head, {"weight": error.T @ mean / len(labels), "bias": error.mean(0)})
                groups = (span[-1].groups, -1)
                moves = torch.einsum(
                    "bpgc,kgc->bpgk", tangent.unflatten(-1, groups), head.weight.unflatten(-1, groups)
                )
                copies = torch.einsum("bpgk,bk->bpg", moves, error) / value.shape[1]
                derivatives.append(self._shared(copies))
                for each in layers:
                    _fill(each.layer, _gradients(each, derivatives[-1]))
        loss = sample_losses(loss_fn, outputs, labels).mean()
        norm = gradient_norm(param.grad for param in model.parameters() if param.grad is not None)
        return StepStats(loss, outputs, torch.stack(derivatives), norm)

    def reference(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Reference:
        """Derivatives and gradients by reverse mode, loss by loss; see :meth:`Trainer.reference`."""
        value = model[0](inputs).detach()  # type: ignore[index]
        names = {param: name for name, param in model.named_parameters()}
        gradient: dict[str, Tensor] = {}
        derivatives = []
        for span, head in zip(self._spans(model), [*self.heads, model[-1][-1]], strict=True):  # type: ignore[index]
            with torch.enable_grad():
                outputs, layers = value, []
                for block in span:
                    outputs, perturbable = self._perturbable(block, outputs)
                    layers += perturbable
                mean = outputs.mean(1)
                losses = sample_losses(loss_fn, head(mean), labels)
            leaves = [each.leaf for each in layers]
            noises = [
                sample_tangents({"noise": leaf}, self.options.guess, generator)["noise"] for leaf in leaves
            ]
            moved = forward_product(outputs, leaves, noises)
            own = [param for param in head.parameters() if param in names]
            (at_mean, *parts) = torch.autograd.grad(losses.sum(), [mean, *own], retain_graph=True)
            gradient |= {names[param]: part / len(labels) for param, part in zip(own, parts, strict=True)}
            products = (moved * at_mean[:, None] / outputs.shape[1]).unflatten(-1, (span[-1].groups, -1))
            derivatives.append(self._shared(products.sum(-1)))
            for (layer, product, _, after), noise in zip(layers, noises, strict=True):
                groups = derivatives[-1].shape[-1]
                own_derivative = derivatives[-1].repeat_interleave(noise.shape[-1] // groups, -1)
                if layer.kind == "token":
                    own_derivative = derivatives[-1].sum(-1, keepdim=True)
                delta = own_derivative * noise * (after > 0) / len(labels)
                params = list(layer.parameters())
                parts = list(torch.autograd.grad(product, params, delta, retain_graph=True))
                gradient |= {names[param]: part for param, part in zip(params, parts, strict=True)}
            value = outputs.detach()
        found = torch.stack(derivatives)
        return Reference(found, found.square().mean().sqrt(), gradient)

    def mean_gradient(
        self, model: nn.Module, loss_fn: LossFunction, inputs: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Every block's gradient of its own loss, or backprop's; see :meth:`Trainer.mean_gradient`."""
        if self.options.losses == "global":
            return true_gradient(model, loss_fn, inputs, labels)
        *hidden, last = self._blocks(model)
        heads = [nn.Sequential(TokenMean(), head) for head in self.heads]
        blocks: list[tuple[nn.Module, nn.Module]] = [*zip(hidden, heads, strict=True)]
        blocks.append((nn.Sequential(last, model[-1]), nn.Identity()))  # type: ignore[index]
        return gradient_by_blocks(model, blocks, loss_fn, model[0](inputs), labels)  # type: ignore[index]

    def _spans(self, model: nn.Module) -> list[list[MixerBlock]]:
        """Consecutive blocks that are trained by one loss."""
        blocks = self._blocks(model)
        return [blocks] if self.options.losses == "global" else [[block] for block in blocks]

    def _shared(self, derivatives: Tensor) -> Tensor:
        """Derivatives of the copies of a loss, shape (B, patches, groups), or their sum, (B, 1, 1)."""
        return derivatives.sum((1, 2), keepdim=True) if self.options.losses == "global" else derivatives

    def _perturbable(self, block: MixerBlock, inputs: Tensor) -> tuple[Tensor, list[Perturbable]]:
        """The block's outputs with zeros added to those of its layers."""
        value, layers = inputs, []
        for place, layer in enumerate(block.layers, 1):
            assert isinstance(layer, MixerLayer)
            alone = layer(value.detach())
            leaf = torch.zeros_like(alone, requires_grad=True)
            value = layer(value) + leaf
            if block.residual and place == len(block.layers):
                value = value + inputs
            layers.append(Perturbable(layer, alone, leaf, value))
            value = value.relu()
        return value, layers

    def _push(
        self, block: MixerBlock, inputs: Tensor, input_tangent: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, list[Perturbed]]:
        """The block's outputs, their tangent under its inputs' and its layers' noise, and the layers."""
        value, tangent = inputs, input_tangent
        layers = []
        for place, layer in enumerate(block.layers, 1):
            assert isinstance(layer, MixerLayer)
            normal = normalize_groups(value, layer.groups)
            tangent = layer.mix(differentiate_normalize(tangent, value, layer.groups))
            product = layer.mix(normal)
            if layer.bias is not None:
                product = product + layer.bias
            value = normalize_groups(product, layer.groups)
            noise = sample_tangents({"noise": value}, self.options.guess, generator)["noise"]
            tangent = differentiate_normalize(tangent, product, layer.groups) + noise
            if block.residual and place == len(block.layers):
                value, tangent = value + inputs, tangent + input_tangent
            active = value > 0
            layers.append(Perturbed(layer, normal, product, noise, active))
            value, tangent = value.relu(), tangent * active
        return value, tangent, layers

    def _blocks(self, model: nn.Module) -> list[MixerBlock]:
        children = list(model.children())
        blocks = [stage for stage in children if type(stage) is MixerBlock]
        layers = [type(layer) for block in blocks for layer in block.layers]
        ends = [children[0], children[-1], *children[-1].children()] if children else []
        if (
            type(model) is not Stages
            or list(map(type, ends)) != [Patches, nn.Sequential, TokenMean, nn.Linear]
            or len(blocks) != len(children) - 2
            or set(layers) != {MixerLayer}
        ):
            raise ConfigError(
                f"trainer {self.options.name} trains model.name: local-mixer alone, by its patches and "
                "groups; trainer local-loss has local losses for any model"
            )
        if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
            raise ConfigError(
                f"trainer {self.options.name} cannot run forward hooks, and this model has some"
            )
        refuse_hooks(model)
        return blocks


def differentiate_normalize(tangent: Tensor, value: Tensor, groups: int) -> Tensor:
    """The derivative of ``normalize_groups`` at ``value`` along ``tangent``; a symmetric linear map."""
    parts, moves = value.unflatten(-1, (groups, -1)), tangent.unflatten(-1, (groups, -1))
    scale = (parts.var(-1, correction=0, keepdim=True) + EPSILON).rsqrt()
    normal = (parts - parts.mean(-1, keepdim=True)) * scale
    along = moves - moves.mean(-1, keepdim=True) - normal * (normal * moves).mean(-1, keepdim=True)
    return (along * scale).flatten(-2)


def _gradients(perturbed: Perturbed, derivatives: Tensor) -> dict[str, Tensor]:
    """The weights' gradient of the batch's mean loss; derivatives: (B, patches, groups) or (B, 1, 1)."""
    layer, noise = perturbed.layer, perturbed.noise
    if layer.kind == "token":
        shares = derivatives.sum(-1, keepdim=True)
    else:
        shares = derivatives.repeat_interleave(noise.shape[-1] // derivatives.shape[-1], -1)
    delta = differentiate_normalize(shares * noise * perturbed.active, perturbed.product, layer.groups)
    return layer.gradients(perturbed.value, delta / len(noise))


def _fill(module: nn.Module, gradients: dict[str, Tensor]) -> None:
    for name, gradient in gradients.items():
        param = module.get_parameter(name)
        if param.requires_grad:
            param.grad = gradient.to(param.dtype)
