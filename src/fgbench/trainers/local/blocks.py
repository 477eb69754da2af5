"""Cutting a model into blocks, and differentiating one block at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from fgbench.errors import ConfigError
from fgbench.models.layers import Stages, is_bare, runs_in_order
from fgbench.trainers.forward_mode import ForwardPass
from fgbench.trainers.passes import differentiate, trainable_parameters
from fgbench.trainers.replay import OnePass, restoring_state

Value = Any
"""What is passed between blocks: a tensor of shape (B, ...), or a tuple of them (inside a basic block)."""


def cut_model(model: nn.Module, count: int | None = None) -> list[Stages]:
    """The model's stages as ``count`` consecutive blocks, each with trainable parameters.

    A stage without parameters joins the one before it. While there are too many blocks, the one with the
    fewest parameters joins its smaller neighbour; so ResNet-18's stem and head join its first and last basic
    block. Where there are too few, stages with ``halves()``, such as basic blocks, are cut in two.

    Args:
        model: an ``nn.Sequential`` of stages; the blocks hold its modules, not copies.
        count: how many blocks; None: as many as there are stages with parameters.

    Raises:
        ConfigError: the model is not sequential, cannot be cut into so many blocks, or its blocks share a
        parameter.
    """
    model = require_stages(model, "a trainer of blocks")
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


def require_stages(model: nn.Module, what: str) -> nn.Sequential:
    """The model, refused unless it runs its stages one after the other and does nothing else.

    Args:
        model: any module.
        what: what needs that; the beginning of the message.

    Raises:
        ConfigError: it is not an ``nn.Sequential``, overrides ``forward``, or has hooks.
    """
    kind = type(model).__name__
    if not isinstance(model, nn.Sequential):
        raise ConfigError(f"{what} needs an nn.Sequential of stages, got {kind}")
    if not runs_in_order(model):
        raise ConfigError(
            f"{what} needs stages that run one after the other, got {kind} with its own forward, or hooks "
            f"around it: put them on its stages"
        )
    return model


def split_stages(model: nn.Sequential) -> nn.Sequential:
    """The same model, sharing all layers, each stage that has ``halves()`` being two.

    A cut between the halves of a basic block passes the shortcut along. Parameters are the same objects
    under other names.
    """
    stages: list[nn.Module] = []
    for stage in model:
        halves = getattr(stage, "halves", None) if is_bare(stage) else None
        stages += halves() if halves else [stage]
    return Stages(*stages)


def last_names(model: nn.Module, count: int | None = None) -> set[str]:
    """Names of the parameters in the last block of :func:`cut_model`."""
    last = {id(param) for param in cut_model(model, count)[-1].parameters()}
    return {name for name, param in model.named_parameters() if id(param) in last}


def _group_stages(model: nn.Sequential) -> list[list[nn.Module]]:
    """Groups of stages: one without trainable parameters joins the group before (or the first)."""
    groups: list[list[nn.Module]] = [[]]
    trained = False
    for stage in model:
        if trained and trainable_parameters(stage):
            groups.append([])
        groups[-1].append(stage)
        trained = trained or bool(trainable_parameters(stage))
    return groups


class Block:
    """One block of a model during one step: all its passes see the same batch, weights and random numbers.

    Every pass has its own copy of the block's inputs, which the block may write into. Afterwards buffers,
    counters and random states are as the first pass left them.

    Args:
        model: the whole model.
        module: a block of :func:`cut_model`.
        chunk: how many tangents one pass takes at most; None: all.
    """

    def __init__(self, model: nn.Module, module: nn.Module, chunk: int | None = None) -> None:
        self.module = module
        self.params: dict[str, nn.Parameter] = {
            name: param for name, param in module.named_parameters() if param.requires_grad
        }
        self.chunk = chunk
        self._model = model
        self._one_pass = OnePass(module)

    @torch.no_grad()
    def __call__(self, value: Value) -> Value:
        """The block's outputs, without a graph."""
        with self._inputs(value) as inputs:
            return require_rows(self.module(inputs))

    def push(
        self, value: Value, tangents: Value, head: Callable[[Value], Tensor] | None = None
    ) -> tuple[Value, Value]:
        """Push tangents of the block's inputs through it, by forward mode.

        Args:
            value: the block's inputs, shape (B, ...).
            tangents: shape (n, B, ...), n at least 1.
            head: applied to the block's outputs.

        Returns:
            The (head's) outputs, and their tangents with a first dimension of n. The outputs are computed
            once per ``chunk``, not once per tangent.
        """
        stacks = tree_leaves(tangents)
        count, pushed = len(stacks[0]), []
        for start in range(0, count, self.chunk or count):
            parts = [stack[start : start + (self.chunk or count)] for stack in stacks]
            with self._inputs(value) as inputs:
                given = dict(zip(tree_leaves(inputs), parts, strict=True))
                outputs, carried = self._forward(inputs, given, len(parts[0]), head)
            pushed.append(carried)
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
        given: dict[Tensor, Tensor] = {self.params[name]: part[None] for name, part in direction.items()}
        with self._inputs(value) as inputs:
            return self._forward(inputs, given, 1, head)[1]

    def gradient(
        self, value: Value, head: Callable[[Value], Tensor], others: Sequence[Tensor] = ()
    ) -> tuple[Value, Tensor, dict[str, Tensor], list[Tensor]]:
        """The block's outputs, the loss ``head`` computes from them, and its gradient, by reverse mode.

        Returns:
            Outputs and loss, detached; the gradient by name in ``params``, and that of ``others``.
        """
        with self._inputs(value) as inputs, torch.enable_grad():
            outputs = require_rows(self.module(inputs))
            loss = head(outputs)
            gradients = differentiate([loss], [*self.params.values(), *others])
        own = dict(zip(self.params, gradients, strict=False))
        return tree_map(Tensor.detach, outputs), loss.detach(), own, gradients[len(own) :]

    def weight_gradient(self, value: Value, cotangent: Value) -> dict[str, Tensor]:
        """The weights' gradient, given the gradient with respect to the block's outputs, by reverse mode."""
        with self._inputs(value) as inputs, torch.enable_grad():
            outputs = tree_leaves(self.module(inputs))
            gradients = differentiate(outputs, list(self.params.values()), tree_leaves(cotangent))
        return dict(zip(self.params, gradients, strict=True))

    def fill(self, gradient: Mapping[str, Tensor]) -> None:
        """Set ``.grad``, by name in ``params``."""
        for name, entries in gradient.items():
            self.params[name].grad = entries.to(self.params[name].dtype)

    def _forward(
        self,
        inputs: Value,
        given: dict[Tensor, Tensor],
        count: int,
        head: Callable[[Value], Tensor] | None,
    ) -> tuple[Value, Value]:
        with torch.no_grad(), ForwardPass(self._model, given, count) as forward:
            outputs = require_rows(self.module(inputs))
            outputs = outputs if head is None else head(outputs)
            return outputs, tree_map(forward.tangent_of, outputs)

    @contextmanager
    def _inputs(self, value: Value) -> Iterator[Value]:
        """Around a pass of this block: a copy of its inputs."""
        device = tree_leaves(value)[0].device.type
        if torch.is_autocast_enabled(device):
            torch.clear_autocast_cache()  # a weight cast without a graph must not serve a pass that needs one
        with self._one_pass:
            yield tree_map(torch.clone, value)


def require_rows(value: Value) -> Value:
    """Refuse what cannot be passed between blocks.

    Raises:
        ConfigError: it is not a floating-point tensor or a tuple of them.
    """
    parts = value if isinstance(value, tuple) and value else (value,)
    for part in parts:
        if not isinstance(part, Tensor) or not part.is_floating_point():
            found = f"{part.dtype} tensor" if isinstance(part, Tensor) else type(part).__name__
            raise ConfigError(
                f"a block of the model returns a {found}; expected a floating-point tensor or a tuple of them"
            )
    return value


@torch.no_grad()
def example_outputs(model: nn.Module, modules: list[Stages], inputs: Tensor) -> list[Tensor]:
    """The outputs of each of consecutive blocks in evaluation mode (the first part, if several).

    Leaves the blocks unchanged.

    Raises:
        ConfigError: a block's outputs have a shape no auxiliary network takes.
    """
    examples, value = [], inputs
    with restoring_state(model):  # training modes too
        for number, module in enumerate(modules, 1):
            value = require_rows(module.eval()(tree_map(torch.clone, value)))
            example = tree_leaves(value)[0]
            if not 2 <= example.dim() <= 4 or len(example) != len(inputs):
                raise ConfigError(
                    f"block {number} of the model gives shape {tuple(example.shape)} for {len(inputs)} "
                    f"samples; expected (samples, features), (samples, tokens, features) or (samples, "
                    f"channels, height, width)"
                )
            examples.append(example)
    return examples


def stack_tangents(parts: list[Value]) -> Value:
    """Join stacks of shapes (n_k, B, ...) into one, in the images' layout (``torch.cat`` would lose it)."""

    def join(*stacks: Tensor) -> Tensor:
        if len(stacks) == 1 or stacks[0].dim() < 3:
            return torch.cat(stacks)
        return torch.cat([stack.flatten(0, 1) for stack in stacks]).unflatten(0, (-1, stacks[0].shape[1]))

    leaves, structure = zip(*(tree_flatten(part) for part in parts), strict=True)
    return structure[0].unflatten([join(*each) for each in zip(*leaves, strict=True)])
