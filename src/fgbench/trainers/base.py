"""What a trainer is: a rule that fills ``param.grad`` for one batch."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
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


@dataclass(frozen=True)
class StepStats:
    """What a trainer learnt from one batch, detached and on the device.

    Attributes:
        loss: mean loss of the batch before the update, shape ().
        outputs: the model's outputs, shape (B, classes).
        directional_derivatives: d of each tangent (and sample, where a trainer has them); empty for backprop.
        grad_norm: Euclidean norm of the gradient left in ``param.grad``, shape (); NaN where none was formed.
    """

    loss: Tensor
    outputs: Tensor
    directional_derivatives: Tensor
    grad_norm: Tensor

    def __post_init__(self) -> None:
        """Raises: ConfigError: a field is no tensor."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, Tensor):
                raise ConfigError(f"StepStats.{field.name}: got a {type(value).__name__}, expected a tensor")


@dataclass(frozen=True)
class Reference:
    """What a step should give, worked out by other means: what :func:`fgbench.verify` compares it with.

    Attributes:
        derivatives: what ``StepStats.directional_derivatives`` should be, same shape.
        scale: the root mean square of such a derivative over the tangents' chance, shape broadcastable to
            ``derivatives``: |g| for a tangent of unit variance.
        gradient: what ``param.grad`` should be, by the parameter's name; names left out are not compared.
    """

    derivatives: Tensor
    scale: Tensor
    gradient: dict[str, Tensor]


def _whole_step(step: Callable[..., Any]) -> Callable[..., StepStats]:
    """The step, begun without old gradients unless it accumulates, and checked for what it returns."""

    @functools.wraps(step)
    def checked(self: "Trainer", model: nn.Module, *args: Any, **kwargs: Any) -> StepStats:
        if not kwargs.get("accumulate"):
            for param in [*model.parameters(), *self.parameters()]:
                param.grad = None
        stats = step(self, model, *args, **kwargs)
        if not isinstance(stats, StepStats):
            what = "None" if stats is None else f"a {type(stats).__name__}"
            raise ConfigError(f"{type(self).__name__}.{step.__name__} returned {what}, expected StepStats")
        return stats

    return checked


class Trainer(ABC):
    """A rule that fills ``param.grad`` for one batch; subclasses implement ``compute_gradients``.

    A trainer never calls the optimizer, never owns the loop, never reseeds a global generator and never waits
    for the device, so optimizers, clipping and schedules work with all of them, and
    ``trainer.compute_gradients(...)`` stands where ``loss.backward()`` stood.

    What else a trainer can, it says itself: ``has_sgd_step``, ``sharing``, ``needs_independent_samples``,
    ``exact_names``, ``reference``, ``mean_gradient``.

    Args:
        options: the options model, as a config gives it.
        **changes: or its fields, for use as a library: ``ForwardGradient(tangents=4)``.

    Raises:
        ConfigError: an option that it does not have, or a value that is not allowed.
    """

    Options: ClassVar[type[Options]]
    compiled: Any = None
    """The ``CompiledPass`` of a trainer whose steps are compiled; see ``fgbench.trainers.compiled``."""
    sharing: ClassVar[Sharing] = Sharing.NOTHING
    """What workers exchange to share a step; ``DERIVATIVES`` go through the trainer's ``workers``."""
    workers: Workers = Workers()
    """With whom a step is shared; a run sets it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let no step of a subclass add to old gradients unasked, or return other than ``StepStats``."""
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
        """What a step uses backwards; the options model declares it."""
        return declared_backwards(self.options)

    @property
    def needs_independent_samples(self) -> bool:
        """Whether a step takes one derivative per sample, so that samples may not interact in the model.

        The options model declares it; the trainer asks ``fgbench.trainers.independence`` about the model.
        """
        return declared_independence(self.options)

    @property
    def has_sgd_step(self) -> bool:
        """Whether it has an ``sgd_step``; the loop prefers that where the optimizer allows."""
        return type(self).sgd_step is not Trainer.sgd_step

    def set_up(  # noqa: B027
        self, model: nn.Module, inputs: Tensor, num_classes: int, generator: torch.Generator
    ) -> None:
        """Build what depends on the model (auxiliary networks, feedback matrices); nothing by default.

        Called once before the first step, after the initial weights. Must leave the model as it was.

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
        """Fill ``param.grad`` of every parameter in ``trained_names``; it is None before, unless accumulated.

        Args:
            model: the model, in training mode; its running statistics move as after one forward pass.
            loss_fn: one loss per sample, shape (B,).
            inputs: shape (B, ...).
            labels: class indices, shape (B,).
            generator: on the model's device; all of the trainer's chance comes from it.
            accumulate: add to ``param.grad``, as ``loss.backward()`` does, in place of setting it.

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

        It leaves the ``grad`` of every other parameter None, so an optimizer passes it over.
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
        """The same step from the docstring's formula, with g by backprop; None: there is nothing to verify.

        Draws what ``compute_gradients`` draws from ``generator`` in the same state, and shares none of its
        passes along tangents. May be as slow as it likes, may move buffers and global generators (who calls
        it puts them back), may not change the trainer's state. ``fgbench.trainers.reference`` helps.

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
        """What a trainer with a model of the network's Jacobian does not know of it, for diagnostics.

        By layer, and under "" of all together: the share of the outputs' squared change under a perturbation
        of the layer's output that the trainer does not foresee; 1 is what knowing nothing leaves. Empty for a
        trainer without such a model. May move the model's buffers, may not change the trainer's state.

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
        """What ``param.grad`` averages to over the trainer's chance, by name; None: it declares none.

        For directions of zero mean and unit variance, in which the gradient is quadratic; ``fgbench check``
        sums over all of them on a small model.
        """
        return None

    def exact_names(self, model: nn.Module) -> set[str]:
        """Those of ``trained_names`` that get their exact gradient; none by default.

        They may have a learning rate of their own (``optimizer.exact_lr``).
        """
        return set()

    def parameters(self) -> list[nn.Parameter]:
        """The trainer's own parameters; the optimizer updates them in a group of their own."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume bit for bit, as tensors and plain values; empty without state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Resume from what ``state_dict`` gave, after ``set_up``."""
