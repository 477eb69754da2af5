"""What a trainer is: a rule that fills ``param.grad`` for one batch."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fgbench.config.mistakes import explain
from fgbench.errors import ConfigError
from fgbench.options import Backwards, Options, declared_backwards, declared_independence
from fgbench.trainers.workers import Sharing, Workers

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""``loss_fn(outputs, labels)`` returns one loss per sample, shape (B,)."""


_NONE, _UNMEASURED = torch.empty(0), torch.tensor(torch.nan)


@dataclass(frozen=True)
class StepStats:
    """What a trainer measured on one batch, detached and on the device.

    Attributes:
        loss: mean loss of the batch before the update, shape ().
        outputs: the model's outputs, shape (B, classes).
        directional_derivatives: d of each tangent (and sample, for per-sample trainers); empty for backprop,
            and if not given.
        grad_norm: Euclidean norm of the gradient left in ``param.grad``, shape (); NaN where none was formed.
            Measured after the step if not given.
    """

    loss: Tensor
    outputs: Tensor
    directional_derivatives: Tensor = _NONE
    grad_norm: Tensor = _UNMEASURED

    def __post_init__(self) -> None:
        """Raises: ConfigError: a field is no tensor."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, Tensor):
                raise ConfigError(f"StepStats.{field.name}: got a {type(value).__name__}, expected a tensor")
            if value.requires_grad:
                object.__setattr__(self, field.name, value.detach())
        if self.directional_derivatives is _NONE:
            object.__setattr__(self, "directional_derivatives", self.loss.new_empty(0))


@dataclass(frozen=True)
class Reference:
    """What a step should give, computed by other means: what :func:`fgbench.verify` compares it with.

    Attributes:
        derivatives: what ``StepStats.directional_derivatives`` should be, same shape.
        scale: the root mean square of such a derivative over random tangents, shape broadcastable to
            ``derivatives``: |g| for a tangent of unit variance.
        gradient: what ``param.grad`` should be, by the parameter's name; names left out are not compared.
    """

    derivatives: Tensor
    scale: Tensor
    gradient: dict[str, Tensor]


def _whole_step(step: Callable[..., Any]) -> Callable[..., StepStats]:
    """The step, started without old gradients unless it accumulates, its return checked and filled in."""

    @functools.wraps(step)
    def checked(self: "Trainer", model: nn.Module, *args: Any, **kwargs: Any) -> StepStats:
        if not kwargs.get("accumulate"):
            for param in [*model.parameters(), *self.parameters()]:
                param.grad = None
        stats = step(self, model, *args, **kwargs)
        if not isinstance(stats, StepStats):
            what = "None" if stats is None else f"a {type(stats).__name__}"
            raise ConfigError(f"{type(self).__name__}.{step.__name__} returned {what}, expected StepStats")
        if stats.grad_norm is _UNMEASURED:
            gradients = [param.grad for param in model.parameters() if param.grad is not None]
            norm = nn.utils.get_total_norm(gradients) if gradients else torch.full_like(stats.loss, torch.nan)
            return replace(stats, grad_norm=norm)
        return stats

    return checked


class Trainer(ABC):
    """A rule that fills ``param.grad`` for one batch; subclasses implement ``compute_gradients``.

    A trainer never calls the optimizer, never owns the loop, never reseeds a global generator and never waits
    for the device, so optimizers, clipping and schedules work with all of them, and
    ``trainer.compute_gradients(...)`` is a drop-in for ``loss.backward()``.

    A trainer declares what else it can do: ``has_sgd_step``, ``sharing``, ``needs_independent_samples``,
    ``exact_names``, ``reference``, ``mean_gradient``.

    Args:
        options: an instance of the options model, as a config gives it.
        **changes: or its fields, for use as a library: ``ForwardGradient(tangents=4)``.

    Raises:
        ConfigError: an unknown option, or a value that is not allowed.
    """

    Options: ClassVar[type[Options]]
    compiled: Any = None
    """The ``CompiledPass`` of a trainer whose steps are compiled; see ``fgbench.trainers.compiled``."""
    sharing: ClassVar[Sharing] = Sharing.NOTHING
    """What workers exchange to share a step; ``DERIVATIVES`` go through the trainer's ``workers``."""
    workers: Workers = Workers()
    """The workers that share a step; set by the run."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Wrap the subclass's steps: they never add to old gradients unasked, and return ``StepStats``."""
        super().__init_subclass__(**kwargs)
        for name in {"compute_gradients", "sgd_step"} & vars(cls).keys():
            setattr(cls, name, _whole_step(vars(cls)[name]))

    def __init__(self, options: Any = None, **changes: Any) -> None:
        try:
            self.options: Any = self.Options(**changes) if options is None else options
        except ValidationError as error:
            raise explain(error, changes, self.Options, type(self).__name__) from error

    @property
    def uses_backwards(self) -> Backwards:
        """What a step uses backwards; declared by the options model."""
        return declared_backwards(self.options)

    @property
    def needs_independent_samples(self) -> bool:
        """Whether a step takes one derivative per sample, so that samples must not interact in the model.

        Declared by the options model; ``fgbench.trainers.independence`` checks the model.
        """
        return declared_independence(self.options)

    @property
    def has_sgd_step(self) -> bool:
        """Whether it has an ``sgd_step``; the loop prefers that if the optimizer allows it."""
        return type(self).sgd_step is not Trainer.sgd_step

    def set_up(  # noqa: B027
        self, model: nn.Module, inputs: Tensor, num_classes: int, generator: torch.Generator
    ) -> None:
        """Build what depends on the model (auxiliary networks, feedback matrices); nothing by default.

        Called once before the first step, after the weights are initialised. Must not change the model.

        Args:
            model: the model on its device.
            inputs: a batch to take shapes from, shape (B, C, H, W).
            num_classes: number of outputs.
            generator: a CPU generator for initial values.

        Raises:
            ConfigError: this trainer cannot train this model.
        """

    @abstractmethod
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
        """Fill ``param.grad`` of every parameter in ``trained_names``; it starts as None unless accumulating.

        Args:
            model: the model, in training mode; its running statistics are updated as by one forward pass.
            loss_fn: one loss per sample, shape (B,).
            inputs: shape (B, ...).
            labels: class indices, shape (B,).
            generator: on the model's device; the only source of the trainer's randomness.
            accumulate: add to ``param.grad``, as ``loss.backward()`` does, instead of setting it.

        Raises:
            ConfigError: ``loss_fn`` returns a scalar, or the model is one this trainer cannot train.
        """

    def sgd_step(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        lr: float,
    ) -> StepStats:
        """A step of plain SGD without forming a dense gradient, for trainers that have one.

        Args:
            model: see ``compute_gradients``.
            loss_fn: one loss per sample.
            inputs: shape (B, ...).
            labels: shape (B,).
            generator: on the model's device.
            lr: the learning rate.
        """
        raise NotImplementedError

    def trained_names(self, model: nn.Module) -> set[str]:
        """The parameters this trainer gives a gradient, by name; all that require one by default.

        The ``grad`` of every other parameter stays None, so the optimizer skips it.
        """
        return {name for name, param in model.named_parameters() if param.requires_grad}

    def reference(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Reference | None:
        """The same step by the docstring's formula, with g from backprop; None: there is nothing to verify.

        Draws what ``compute_gradients`` draws from ``generator`` in the same state, but shares none of its
        forward-mode passes. May be slow and may change buffers and global generators (the caller restores
        them), but not the trainer's state. ``fgbench.trainers.reference`` helps.

        Args:
            model: see ``compute_gradients``.
            loss_fn: one loss per sample.
            inputs: shape (B, ...).
            labels: shape (B,).
            generator: in the state it was in before ``compute_gradients``.
        """
        return None

    def unexplained(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """How much of the network's Jacobian a trainer that models it does not explain, for diagnostics.

        By layer, and under "" for all together: the share of the outputs' squared change under a perturbation
        of the layer's output that the trainer does not predict; 1 when it knows nothing. Empty for a trainer
        without such a model. May change the model's buffers, but not the trainer's state.

        Args:
            model: see ``compute_gradients``.
            loss_fn: one loss per sample.
            inputs: shape (B, ...).
            labels: shape (B,).
            generator: on the model's device.
        """
        return {}

    def mean_gradient(
        self, model: nn.Module, loss_fn: LossFunction, inputs: Tensor, labels: Tensor
    ) -> dict[str, Tensor] | None:
        """The expectation of ``param.grad`` over the trainer's randomness, by name; None: not declared.

        For trainers whose gradient is quadratic in directions of zero mean and unit variance; ``fgbench
        check`` sums over all directions of a small model.
        """
        return None

    def exact_names(self, model: nn.Module) -> set[str]:
        """The parameters in ``trained_names`` that get their exact gradient; none by default.

        They may have a learning rate of their own (``optimizer.exact_lr``).
        """
        return set()

    def parameters(self) -> list[nn.Parameter]:
        """The trainer's own parameters; the optimizer updates them in a separate group."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume bit for bit, as tensors and plain values; empty without state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Resume from what ``state_dict`` gave, after ``set_up``."""
