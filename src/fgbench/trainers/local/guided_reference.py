"""A step of ``guided-forward-gradient`` from one graph through the whole model, by reverse mode alone."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from fgbench.trainers.base import LossFunction, Reference
from fgbench.trainers.local.auxiliary import draw_weights
from fgbench.trainers.local.blocks import Value, cut_model
from fgbench.trainers.local.directions import per_sample, sample_like, unit_per_sample, units_of
from fgbench.trainers.passes import differentiate, sample_losses
from fgbench.trainers.reference import gradient_length
from fgbench.trainers.sampling import sample_tangents

FLOOR = 1e-3
"""Smallest share of the model's gradient that a part counts for: a bias before BatchNorm has none."""


class OneGraph:
    """A forward pass of the whole model, block after block, with its graph.

    Attributes:
        names: of the model's parameters, by identity.
        params: each block's parameters to train, by name in the model.
        values: each block's outputs; each is its own node of the graph.
    """

    def __init__(self, model: nn.Module, count: int | None, inputs: Tensor) -> None:
        blocks = cut_model(model, count)
        names = {id(param): name for name, param in model.named_parameters()}
        self.params = [
            {names[id(param)]: param for param in block.parameters() if param.requires_grad}
            for block in blocks
        ]
        self.values: list[Value] = []
        value: Value = inputs
        for block in blocks:
            value = tree_map(_place, block(tree_map(torch.clone, value)))
            self.values.append(value)

    def gradient(self, outputs: Sequence[Tensor], params: Sequence[Tensor], *weights: Tensor) -> list[Tensor]:
        """The gradient of some outputs, weighted or each by itself."""
        return differentiate(outputs, params, weights or None, retain_graph=True)


def _place(value: Tensor) -> Tensor:
    return value.clone() if value.requires_grad else value.clone().requires_grad_()


def guided_reference(
    model: nn.Module,
    auxiliaries: nn.ModuleList,
    options: Any,
    loss_fn: LossFunction,
    inputs: Tensor,
    labels: Tensor,
    generator: torch.Generator,
) -> Reference:
    """The derivatives d = <t, u> and the estimate d u; see :class:`GuidedForwardGradient`.

    Args:
        model: see :meth:`Trainer.reference`.
        auxiliaries: networks of all blocks but the last; none if they are not used.
        options: of the trainer.
        loss_fn: one loss per sample.
        inputs: shape (B, ...).
        labels: shape (B,).
        generator: in the state it was in before the step.
    """
    if options.guess == "ntk":
        auxiliaries = copy.deepcopy(auxiliaries)
        draw_weights(auxiliaries, generator)
    with torch.enable_grad():
        graph = OneGraph(model, options.blocks, inputs)
        losses = sample_losses(loss_fn, graph.values[-1], labels)
        local = [
            sample_losses(loss_fn, auxiliary(value), labels)
            for auxiliary, value in zip(auxiliaries, graph.values, strict=False)
        ]
    last = graph.params[-1]
    exact = dict(zip(last, graph.gradient([losses.mean()], list(last.values())), strict=True))
    project = _project_weights if options.space == "weights" else _project_activations
    found = project(graph, losses, local, options, generator)
    if not found.derivatives:
        return Reference(losses.new_empty(0), losses.new_ones(()), exact)
    lengths, entries = torch.stack(found.lengths), losses.new_tensor(found.entries, dtype=torch.float64)
    lengths = lengths.clamp_min(FLOOR * gradient_length([lengths, *exact.values()]))
    derivatives = torch.stack(found.derivatives)
    scale = (lengths / entries.sqrt()).view(-1, *[1] * (derivatives.dim() - 1))
    return Reference(derivatives, scale, found.gradient | exact)


@dataclass
class Projected:
    """The blocks' projections; each list has one item for every d (or row of d, one per sample).

    Attributes:
        derivatives: d.
        lengths: |t|.
        entries: what |t|^2 is divided by to give the mean square of d; 1 if u is not random.
        gradient: by name.
    """

    derivatives: list[Tensor] = field(default_factory=list)
    lengths: list[Tensor] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)
    gradient: dict[str, Tensor] = field(default_factory=dict)


def _project_weights(
    graph: OneGraph, losses: Tensor, local: list[Tensor], options: Any, generator: torch.Generator
) -> Projected:
    found = Projected()
    for index, params in enumerate(graph.params[:-1]):

        def of(loss: Tensor, params: dict[str, nn.Parameter] = params) -> dict[str, Tensor]:
            return dict(zip(params, graph.gradient([loss.mean()], list(params.values())), strict=True))

        target = of(losses if options.target == "global" else local[index])
        random = options.guess in ("normal", "rademacher")
        guess = sample_tangents(params, options.guess, generator) if random else of(local[index])
        for unit in units_of(guess, apart=options.granularity == "tensor"):
            d = torch.stack([(target[name] * each).double().sum() for name, each in unit.items()]).sum()
            found.derivatives.append(d)
            found.lengths.append(gradient_length(target[name] for name in unit))
            found.entries.append(sum(each.numel() for each in unit.values()) if random else 1)
            found.gradient |= {name: d * each for name, each in unit.items()}
    return found


def _project_activations(
    graph: OneGraph, losses: Tensor, local: list[Tensor], options: Any, generator: torch.Generator
) -> Projected:
    found = Projected()
    for index, (value, params) in enumerate(zip(graph.values[:-1], graph.params[:-1], strict=True)):
        leaves = tree_leaves(value)
        target = graph.gradient([(losses if options.target == "global" else local[index]).sum()], leaves)
        random = options.guess in ("normal", "rademacher")
        if random:
            guess = sample_like(leaves, options.guess, generator)
        else:
            guess = graph.gradient([local[index].mean()], leaves)
        unit = unit_per_sample(guess)
        pairs = [(t * u).flatten(1).sum(1) for t, u in zip(target, unit, strict=True)]
        d = torch.stack(pairs).sum(0)
        found.derivatives.append(d)
        found.lengths.append(gradient_length(target))
        found.entries.append(len(d) * (sum(each[0].numel() for each in leaves) if random else 1))
        own = graph.gradient(leaves, list(params.values()), *per_sample(d / len(d), unit))
        found.gradient |= dict(zip(params, own, strict=True))
    return found
