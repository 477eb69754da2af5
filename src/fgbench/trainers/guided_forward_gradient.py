"""Forward gradients along guesses from auxiliary losses, block by block."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from fgbench.errors import ConfigError
from fgbench.trainers.base import LossFunction, Reference, StepStats, Trainer
from fgbench.trainers.forward_mode import ForwardPass
from fgbench.trainers.forward_mode.refusals import constant_parameters, refuse_hidden, refuse_lazy
from fgbench.trainers.independence import (
    is_known_independent,
    refuse_interacting_samples,
    require_independent_samples,
)
from fgbench.trainers.local.auxiliary import (
    Losses,
    auxiliary_gradient,
    build_auxiliary,
    draw_weights,
    last_gradient,
    local_gradient,
)
from fgbench.trainers.local.blocks import (
    Block,
    Value,
    cut_model,
    example_outputs,
    last_names,
    stack_tangents,
)
from fgbench.trainers.local.directions import per_sample, sample_like, unit_per_sample, units_of
from fgbench.trainers.local.guided_reference import guided_reference
from fgbench.trainers.options import GuidedForwardGradientOptions
from fgbench.trainers.passes import accumulating, begin_step, gradient_norm, sample_losses
from fgbench.trainers.sampling import sample_tangents


class GuidedForwardGradient(Trainer):
    """The gradient of each block, projected on a guess.

    The model is cut into L blocks. Every block but the last has a guess g of its part of the gradient t,
    and the estimate is the projection of t on it, which only needs the directional derivative along the
    guess:

        g_hat = (<t, g> / |g|^2) g = d u,   u = g / |g|,   d = <t, u>.

    The last block gets its true gradient. Options:

    * ``guess``: ``local``, the gradient of a small auxiliary network's loss on the block's outputs, which is
      trained along with the model; ``ntk``, of one that is redrawn each step; ``fixed-ntk``, of one that
      keeps its initial weights; ``normal`` or ``rademacher``, random.
    * ``target``, whose derivative d is: ``global``, the loss of the model; ``local``, the auxiliary loss
      itself. A local target with a guess from the same auxiliary loss gives g_hat = t: local learning,
      without forward mode.
    * ``space``: ``weights``, one d per block; ``activations``, t and g are gradients with respect to a
      block's outputs and there is one d per sample; the weight gradient is the block's own vector-Jacobian
      product with g_hat.
    * ``granularity``, in the space of weights: project a ``block``'s weights together or each ``tensor`` by
      itself.

    The global derivatives come from one traversal of the blocks in forward mode: each block pushes the
    tangents of earlier blocks forward and adds its own. At most L tangents are alive (``tensor``: one per
    parameter tensor), ``chunk`` of them in a vectorised pass. Guesses do need backward passes, through one
    block and its auxiliary network at a time and from detached inputs: no graph is ever deeper than that.

    Bias: biased towards the guess; never longer than t. Variance: none beyond the batch's with auxiliary
    guesses. Cost, in forward passes of the model: (L - 1) / 2 for the tangents of earlier blocks, two for
    each block's own, one for its outputs, and a forward and backward pass of each block with
    its auxiliary network (about 3).

    Source: Fournier et al. (2023), arXiv 2306.06968. Differences from the
    authors' published code (github.com/streethagore/ForwardLocalGradient):

    * They compute t with a backward pass through the model and multiply; here d is taken by forward mode.
    * In the space of weights they project each parameter tensor by itself (``granularity: tensor``), for
      every sample (``weight``) or for the batch (``avg-weight``); here for the batch, by default each block
      as one.
    * Along random guesses some of their estimators omit the division by |g|^2; here all are projections.
    * Their model of 16 blocks has no shortcuts; here the shortcut is carried across a cut inside a basic
      block, and the auxiliary network sees the sum of both paths.
    * Their last block normalises its features once more before the classifier; here it is the model's own
      head.
    * Their auxiliary networks normalise over the batch; here those of a model without BatchNorm within a
      sample.
    * Under ``space: activations`` training-mode BatchNorm makes samples interact, so that one derivative per
      sample is not well defined; here it is refused.

    Example:
        >>> model = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 2))
        >>> inputs, labels = torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
        >>> trainer = GuidedForwardGradient(auxiliary="linear")
        >>> trainer.set_up(model, inputs, 2, torch.Generator().manual_seed(0))
        >>> loss_fn = nn.CrossEntropyLoss(reduction="none")
        >>> stats = trainer.compute_gradients(model, loss_fn, inputs, labels, torch.Generator())
        >>> stats.directional_derivatives.shape
        torch.Size([1])
    """

    Options = GuidedForwardGradientOptions

    def __init__(self, options: Any = None, **changes: Any) -> None:
        super().__init__(options, **changes)
        self.auxiliaries = nn.ModuleList()
        self._random = self.options.guess in ("normal", "rademacher")
        local = self.options.target == "local"
        self._local_learning = local and not self._random
        self._has_auxiliaries = local or not self._random
        self._trains_auxiliaries = self.options.guess == "local" or (local and self._random)

    def set_up(self, model: nn.Module, inputs: Tensor, num_classes: int, generator: torch.Generator) -> None:
        """Build the auxiliary networks; see :meth:`Trainer.set_up`."""
        refuse_lazy(model)
        if self.needs_independent_samples:
            require_independent_samples(model, self.options.name)
        hidden = cut_model(model, self.options.blocks)[:-1]
        if not self._has_auxiliaries:
            return
        batch_norm = any(isinstance(module, _BatchNorm) for module in model.modules())
        kind, units = self.options.auxiliary, self.options.hidden
        examples = example_outputs(model, hidden, inputs)
        self.auxiliaries = nn.ModuleList(
            build_auxiliary(kind, each.shape[1:], units, num_classes, batch_norm=batch_norm)
            for each in examples
        )
        draw_weights(self.auxiliaries, generator)
        for auxiliary, example in zip(self.auxiliaries, examples, strict=True):
            auxiliary.to(example.device, example.dtype).to(memory_format=torch.channels_last)
        self.auxiliaries.requires_grad_(self._trains_auxiliaries)

    def exact_names(self, model: nn.Module) -> set[str]:
        """The last block's; see :meth:`Trainer.exact_names`."""
        return last_names(model, self.options.blocks) & self.trained_names(model)

    def parameters(self) -> list[nn.Parameter]:
        """The auxiliary networks' parameters, if these are trained."""
        return [param for param in self.auxiliaries.parameters() if param.requires_grad]

    def state_dict(self) -> dict[str, Any]:
        """The auxiliary networks' state."""
        return self.auxiliaries.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.auxiliaries.load_state_dict(state)

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
        """Fill ``param.grad``, the auxiliary networks' too; see :meth:`Trainer.compute_gradients`."""
        begin_step(model, labels, accumulate=accumulate)
        parts = cut_model(model, self.options.blocks)
        if self._has_auxiliaries and len(self.auxiliaries) != len(parts) - 1:
            raise ConfigError("guided-forward-gradient: call set_up with this model before the first step")
        if self.options.guess == "ntk":
            draw_weights(self.auxiliaries, generator)
        refuse_hidden(model, model.parameters())
        blocks = [Block(model, part, self.options.chunk) for part in parts]

        def losses(outputs: Tensor) -> Tensor:
            return sample_losses(loss_fn, outputs, labels)

        if self.needs_independent_samples:
            require_independent_samples(model, self.options.name)
            if not is_known_independent(model):
                derive = partial(_move_outputs, blocks, inputs, losses)
                refuse_interacting_samples(model, len(inputs), self.options.name, derive)
        if self._local_learning:
            step = self._learn_locally
        else:
            step = self._project_weights if self.options.space == "weights" else self._project_activations
        with accumulating([*model.parameters(), *self.parameters()], accumulate):
            loss, outputs, derivatives = step(blocks, inputs, losses, generator)
        norm = gradient_norm(param.grad for param in model.parameters() if param.grad is not None)
        return StepStats(loss, outputs, derivatives, norm)

    def reference(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Reference | None:
        """The d = <t, u> with t from one graph through the whole model; see :meth:`Trainer.reference`."""
        if self._local_learning:
            return None
        return guided_reference(model, self.auxiliaries, self.options, loss_fn, inputs, labels, generator)

    def _learn_locally(
        self, blocks: list[Block], value: Value, losses: Losses, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each block gets the gradient of its auxiliary loss."""
        *hidden, last = blocks
        for block, auxiliary in zip(hidden, self.auxiliaries, strict=True):
            value, gradient = local_gradient(block, auxiliary, value, losses)
            block.fill(gradient)
        loss, outputs = last_gradient(last, value, losses)
        return loss, outputs, loss.new_empty(0)

    def _project_weights(
        self, blocks: list[Block], value: Value, losses: Losses, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Guesses of the weights' gradients; d has shape (directions of all blocks,)."""
        *hidden, last = blocks
        stack: Value = None
        directions: list[tuple[Block, dict[str, Tensor]]] = []
        derivatives: list[Tensor] = []
        for index, block in enumerate(hidden):
            outputs, guess = self._guess_weights(index, block, value, losses, generator)
            units = units_of(guess, apart=self.options.granularity == "tensor")
            directions += [(block, unit) for unit in units]
            if self.options.target == "local":
                head = self._auxiliary_loss(index, losses)
                with constant_parameters(self.auxiliaries):
                    derivatives += [block.push_weights(value, unit, head) for unit in units]
            else:
                earlier = [] if stack is None else [block.push(value, stack)[1]]
                stack = stack_tangents(earlier + [block.push_weights(value, unit) for unit in units])
            value = outputs
        loss, outputs = last_gradient(last, value, losses)
        if stack is not None:
            derivatives = [last.push(value, stack, lambda y: losses(y).mean())[1]]
        d = torch.cat(derivatives) if derivatives else loss.new_empty(0)
        for (block, unit), derivative in zip(directions, d, strict=True):
            block.fill({name: derivative * entries for name, entries in unit.items()})
        return loss, outputs, d

    def _project_activations(
        self, blocks: list[Block], value: Value, losses: Losses, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Guesses of the gradients with respect to blocks' outputs, per sample; d has shape (L - 1, B)."""
        *hidden, last = blocks
        stack: Value = None
        values: list[Value] = []
        units: list[Value] = []
        derivatives: list[Tensor] = []
        for index, block in enumerate(hidden):
            values.append(value)
            if stack is None:
                value = block(value)
            else:
                value, stack = block.push(value, stack)
            unit = unit_per_sample(self._guess_outputs(index, value, losses, generator))
            units.append(unit)
            if self.options.target == "local":
                derivatives.append(self._along(index, value, unit, losses))
            else:
                own = tree_map(lambda each: each.unsqueeze(0), unit)
                stack = own if stack is None else stack_tangents([stack, own])
        loss, outputs = last_gradient(last, value, losses)
        if stack is not None:
            derivatives = list(last.push(value, stack, losses)[1])
        for block, inputs, unit, derivative in zip(hidden, values, units, derivatives, strict=True):
            cotangent = per_sample(derivative / len(derivative), unit)
            block.fill(block.weight_gradient(inputs, cotangent))
        d = torch.stack(derivatives) if hidden else loss.new_empty(0)
        return loss, outputs, d

    def _along(self, index: int, value: Value, unit: Value, losses: Losses) -> Tensor:
        """The derivatives of the samples' auxiliary losses along a direction of a block's outputs."""
        value = tree_map(torch.clone, value)
        units = [each[None] for each in tree_leaves(unit)]
        given = dict(zip(tree_leaves(value), units, strict=True))
        with torch.no_grad(), ForwardPass(self.auxiliaries[index], given) as forward:
            return forward.tangent_of(losses(self.auxiliaries[index](value)))[0]

    def _auxiliary_loss(self, index: int, losses: Losses) -> Callable[[Value], Tensor]:
        return lambda value: losses(self.auxiliaries[index](value)).mean()

    def _guess_weights(
        self, index: int, block: Block, value: Value, losses: Losses, generator: torch.Generator
    ) -> tuple[Value, dict[str, Tensor]]:
        """The block's outputs, and a guess of its weights' gradients."""
        if not self._random:
            return local_gradient(block, self.auxiliaries[index], value, losses)
        outputs = block(value)
        if self._trains_auxiliaries:
            auxiliary_gradient(self.auxiliaries[index], outputs, losses)
        return outputs, sample_tangents(block.params, self.options.guess, generator)

    def _guess_outputs(self, index: int, outputs: Value, losses: Losses, generator: torch.Generator) -> Value:
        """A guess of the gradient with respect to a block's outputs."""
        if not self._random or self._trains_auxiliaries:
            gradient = auxiliary_gradient(self.auxiliaries[index], outputs, losses)
        if not self._random:
            return gradient
        return sample_like(outputs, self.options.guess, generator)


def _move_outputs(
    blocks: list[Block], value: Value, losses: Losses, perturb: Callable[[Tensor], Tensor]
) -> Tensor:
    """The derivatives of the samples' losses, shape (B,), when every block's outputs are perturbed."""
    *hidden, last = blocks
    stack: Value = None
    for block in hidden:
        value, moved = (block(value), None) if stack is None else block.push(value, stack)
        own = tree_map(lambda each: perturb(each)[None], value)
        stack = own if moved is None else tree_map(torch.add, moved, own)
    return last.push(value, stack, losses)[1][0] if hidden else value.new_zeros(len(value))
