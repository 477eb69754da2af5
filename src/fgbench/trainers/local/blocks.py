"""Cutting a model into blocks, and differentiating one block at a time."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from fgbench.errors import ConfigError
from fgbench.models.layers import Stages
from fgbench.trainers.passes import DropoutReplay, forward_mode_statistics, trainable_parameters

Value = Any
"""What passes between blocks: a tensor of shape (B, ...), or a tuple of them (inside a basic block)."""


def cut_model(model: nn.Module, count: int | None = None) -> list[Stages]:
    """The model's stages as ``count`` consecutive blocks, every one with parameters to train.

    A stage without parameters joins the one before it. While there are too many blocks, the one with the
    fewest parameters joins its smaller neighbour; so ResNet-18's stem and head join its first and last basic
    block. Where there are too few, stages with ``halves()``, such as basic blocks, are cut in two.

    Args:
        model: an ``nn.Sequential`` of stages; the blocks hold its modules, not copies.
        count: how many blocks; None: as many as there are stages with parameters.

    Raises:
        ConfigError: the model is not sequential, cannot be cut so finely, or has blocks that share a
        parameter.
    """
    if not isinstance(model, nn.Sequential):
        raise ConfigError(f"a model to cut into blocks must be an nn.Sequential, got {type(model).__name__}")
    groups = _group_stages(model)
    if count is not None and count > len(groups):
        groups = _group_stages(split_stages(model))
        if count > len(groups):
            raise ConfigError(
                f"trainer.blocks: got {count}, but this model can be cut into at most {len(groups)} blocks"
            )
    while count is not None and len(groups) > count:
        sizes = [sum(param.numel() for stage in group for param in stage.parameters()) for group in groups]
        smallest = sizes.index(min(sizes))
        neighbours = [index for index in (smallest - 1, smallest + 1) if 0 <= index < len(groups)]
        left = min(smallest, min(neighbours, key=sizes.__getitem__))
        groups[left : left + 2] = [groups[left] + groups[left + 1]]
    blocks = [Stages(*group) for group in groups]
    shared = sum(len(list(block.parameters())) for block in blocks) - len(list(model.parameters()))
    if shared:
        raise ConfigError(
            f"{shared} parameters are shared between blocks, which cannot be trained one by one"
        )
    return blocks


def split_stages(model: nn.Sequential) -> nn.Sequential:
    """The same model, sharing all layers, each stage that has ``halves()`` being two.

    A cut between the halves of a basic block carries the shortcut along. Parameters are the same objects
    under other names.
    """
    stages: list[nn.Module] = []
    for stage in model:
        halves = getattr(stage, "halves", None)
        stages += halves() if halves else [stage]
    return Stages(*stages)


def last_names(model: nn.Module, count: int | None = None) -> set[str]:
    """Names of the parameters in the last block of :func:`cut_model`."""
    last = {id(param) for param in cut_model(model, count)[-1].parameters()}
    return {name for name, param in model.named_parameters() if id(param) in last}


def _group_stages(model: nn.Sequential) -> list[list[nn.Module]]:
    """The stages, those without parameters to train beside the one before (leading ones beside the first)."""
    groups: list[list[nn.Module]] = [[]]
    trained = False
    for stage in model:
        if trained and trainable_parameters(stage):
            groups.append([])
        groups[-1].append(stage)
        trained = trained or bool(trainable_parameters(stage))
    return groups


class Block:
    """One block of a model during one step: all its passes see the same batch, weights and dropout masks.

    Running statistics move in the first pass and stay in the others.

    Args:
        module: a block of :func:`cut_model`.
        device: where it is.
        chunk: how many tangents one vectorised pass takes at most; None: all.
    """

    def __init__(self, module: nn.Module, device: torch.device, chunk: int | None = None) -> None:
        self.module = module
        self.params = {name: param for name, param in module.named_parameters() if param.requires_grad}
        self.chunk = chunk
        self._device = device
        self._replay = DropoutReplay(module, device)
        self._passes = 0

    def __call__(self, value: Value) -> Value:
        """The block's outputs; with a graph of this block where gradients are enabled."""
        with self._one_pass():
            return self.module(value)

    def push(
        self, value: Value, tangents: Value, head: Callable[[Value], Tensor] | None = None
    ) -> tuple[Value, Value]:
        """Carry tangents of the block's inputs through it, by forward mode.

        Args:
            value: the block's inputs, shape (B, ...).
            tangents: shape (n, B, ...), n at least 1.
            head: applied to the block's outputs.

        Returns:
            The outputs, and their tangents with a first dimension of n. The outputs are computed once per
            vectorised pass, not once per tangent.
        """

        def function(inputs: Value) -> Value:
            outputs = self.module(inputs)
            return outputs if head is None else head(outputs)

        def along(tangent: Value) -> Any:
            return jvp(function, (value,), (tangent,))

        out_dims: Any = (None, 0)
        vectorised = vmap(along, out_dims=out_dims, randomness="same")
        count = len(tree_leaves(tangents)[0])
        pushed = []
        for start in range(0, count, self.chunk or count):
            part = tree_map(lambda each, start=start: each[start : start + (self.chunk or count)], tangents)
            with torch.no_grad(), self._one_pass():
                outputs, part_pushed = vectorised(part)
            pushed.append(part_pushed)
        return outputs, stack_tangents(pushed)

    def push_weights(
        self, value: Value, direction: Mapping[str, Tensor], head: Callable[[Value], Tensor] | None = None
    ) -> Value:
        """The tangent of the (head's) outputs when the weights move along ``direction``, by forward mode.

        Args:
            value: the block's inputs, shape (B, ...).
            direction: by name in ``params``; weights that are left out stay where they are.
            head: applied to the block's outputs.

        Returns:
            A stack of one: shape (1, B, ...).
        """

        def function(params: dict[str, Tensor]) -> Value:
            outputs = functional_call(self.module, params, (value,))
            return outputs if head is None else head(outputs)

        params = {name: param.detach() for name, param in self.params.items()}
        tangents = {  # zeros, not left out: in-place layers need all that meets to be tracked alike
            name: direction[name] if name in direction else torch.zeros_like(param)
            for name, param in params.items()
        }
        with torch.no_grad(), self._one_pass():
            tangent = jvp(function, (params,), (tangents,))[1]
        return tree_map(lambda each: each.unsqueeze(0), tangent)

    def weight_gradient(self, value: Value, cotangent: Value) -> dict[str, Tensor]:
        """The weights' gradient, given the gradient with respect to the block's outputs, by reverse mode."""
        with torch.enable_grad():
            outputs = tree_leaves(self(value))
        pairs = [
            (each, its)
            for each, its in zip(outputs, tree_leaves(cotangent), strict=True)
            if each.requires_grad
        ]
        gradient = torch.autograd.grad(
            [each for each, _ in pairs],
            list(self.params.values()),
            [its for _, its in pairs],
            materialize_grads=True,
        )
        return dict(zip(self.params, gradient, strict=True))

    def fill(self, gradient: Mapping[str, Tensor]) -> None:
        """Set ``.grad``, by name in ``params``."""
        for name, entries in gradient.items():
            self.params[name].grad = entries.to(self.params[name].dtype)

    @contextmanager
    def _one_pass(self) -> Iterator[None]:
        self._passes += 1
        if torch.is_autocast_enabled(self._device.type):
            torch.clear_autocast_cache()  # a weight cast without a graph must not serve a pass that needs one
        with forward_mode_statistics(self.module, update=self._passes == 1), self._replay:
            yield


@torch.no_grad()
def output_shapes(modules: list[Stages], inputs: Tensor) -> list[torch.Size]:
    """The shape of what each of consecutive blocks gives for one sample; changes nothing in them."""
    shapes, value = [], inputs[:2]  # of one sample alone, GroupNorm refuses some shapes
    for module in modules:
        training = {each: each.training for each in module.modules()}
        value = module.eval()(value)
        for each, mode in training.items():
            each.training = mode
        shapes.append(tree_leaves(value)[0].shape[1:])
    return shapes


def stack_tangents(parts: list[Value]) -> Value:
    """Join stacks of shapes (n_k, B, ...) into one, in the images' layout (``torch.cat`` would lose it)."""

    def join(*stacks: Tensor) -> Tensor:
        if len(stacks) == 1 or stacks[0].dim() < 3:
            return torch.cat(stacks)
        return torch.cat([stack.flatten(0, 1) for stack in stacks]).unflatten(0, (-1, stacks[0].shape[1]))

    leaves, structure = zip(*(tree_flatten(part) for part in parts), strict=True)
    return structure[0].unflatten([join(*each) for each in zip(*leaves, strict=True)])
