"""Compares one step's derivatives and gradient with those computed by other means."""

import contextlib
import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fgbench.errors import ConfigError, FgbenchError
from fgbench.trainers.base import LossFunction, Reference, Trainer
from fgbench.trainers.model_state import ModelState
from fgbench.trainers.passes import require_trainable
from fgbench.trainers.reference import gradient_length
from fgbench.trainers.replay import RandomStates
from fgbench.trainers.rounding import allowance, largest, moved_by_rounding

TOLERANCE = 1e-2
"""Largest error of a derivative in float32, as a share of its root mean square."""
TOLERANCE_BF16 = 5e-2
"""The same where values or tangents are in bfloat16, whose own rounding is 0.4 %."""


@dataclass(frozen=True)
class Verification:
    """The errors of one step, as shares of a derivative's root mean square.

    Attributes:
        verdict: ``verified``, or why there was nothing to compare.
        derivatives: how many directional derivatives were compared.
        derivative_error: the largest of their errors.
        gradient_error: that of the gradient, in the same unit.
        tolerance: the largest error allowed.
    """

    verdict: str
    derivatives: int = 0
    derivative_error: float | None = None
    gradient_error: float | None = None
    tolerance: float | None = None


def verify(
    trainer: Trainer,
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    labels: Tensor,
    generator: torch.Generator | None = None,
    *,
    sgd_step: bool = False,
    tolerance: float | None = None,
) -> Verification:
    """Compare one step of a trainer with its own formula, using the true gradient g from backprop.

    A forward gradient's d with <g, v>; a perturbation of activations u_i with <delta_i, u_i>; a central
    difference with the losses of two shifted copies; and the gradient computed from it. Everything is
    restored afterwards: parameters, buffers, gradients, the trainer's state, all generators.

    Args:
        trainer: set up for the model.
        model: in training mode.
        loss_fn: one loss per sample, shape (B,).
        inputs: shape (B, ...).
        labels: shape (B,).
        generator: the trainer's source of randomness; a new one when None.
        sgd_step: compare the step that forms no gradient (the trainer must have one).
        tolerance: share of a derivative's root mean square; None: 1e-2, 5e-2 with bfloat16, and up to five
            times that where backprop's own derivatives move as far by rounding.

    Raises:
        FgbenchError: the step is wrong; says how in one line.
        ConfigError: the trainer cannot train the model.

    Example:
        >>> model, inputs, labels = nn.Linear(3, 2), torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
        >>> loss_fn = nn.CrossEntropyLoss(reduction="none")
        >>> from fgbench import ForwardGradient
        >>> verify(ForwardGradient(tangents=4), model, loss_fn, inputs, labels).verdict
        'verified'
    """
    return compare_step(
        trainer, model, loss_fn, inputs, labels, generator, sgd_step=sgd_step, tolerance=tolerance
    )


def compare_step(
    trainer: Trainer,
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    labels: Tensor,
    generator: torch.Generator | None = None,
    *,
    sgd_step: bool = False,
    tolerance: float | None = None,
    exact: bool = True,
) -> Verification:
    """:func:`verify`; without ``exact``, trainers whose step has no directional derivatives are left out."""
    require_trainable(model, labels)
    generator = generator or torch.Generator(inputs.device).manual_seed(0)
    adaptive = tolerance is None
    if tolerance is None:
        half = torch.is_autocast_enabled(inputs.device.type) or next(model.parameters()).element_size() < 4
        half = half or getattr(trainer.options, "tangent_precision", None) == "bf16"
        tolerance = TOLERANCE_BF16 if half else TOLERANCE
    with put_back(trainer, model, inputs.device, generator):
        states, start = RandomStates(), generator.get_state()

        def reference_at(inputs: Tensor) -> Reference | None:
            with put_back(trainer, model, inputs.device), _refusing_reentrant_checkpoints():
                return trainer.reference(model, loss_fn, inputs, labels, generator)

        def restart() -> None:
            generator.set_state(start)
            states.restore()

        with put_back(trainer, model, inputs.device):  # first: it refuses what the formula is not made for
            step = _step(trainer, model, loss_fn, inputs.clone(), labels, generator, sgd_step=sgd_step)
        restart()
        reference = reference_at(inputs.clone())
        if reference is None or not (exact or reference.derivatives.numel()):
            return Verification("nothing to verify")
        if not all(part.isfinite().all() for part in (reference.derivatives, *reference.gradient.values())):
            return Verification("nothing to verify: the true gradient is not finite")
        found = _compare(trainer.options.name, *step, reference)
        if adaptive and inputs.is_floating_point() and not found.worst <= tolerance:
            restart()
            moved = reference_at(moved_by_rounding(inputs))
            assert moved is not None
            rounding = _compare(trainer.options.name, moved.derivatives, moved.gradient, reference).worst
            tolerance = allowance(tolerance, rounding)
        return found.judge(trainer.options.name, tolerance)


@contextlib.contextmanager
def _refusing_reentrant_checkpoints() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "use_reentrant=True" not in str(error):
            raise
        raise ConfigError(
            "the model checkpoints a part with use_reentrant=True, which PyTorch cannot "
            "differentiate for a comparison: set use_reentrant=False there, or verify: false"
        ) from error


def _step(
    trainer: Trainer,
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    *,
    sgd_step: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Take a step; returns its derivatives and the gradient it left, or moved the parameters along."""
    params = {name: param for name, param in model.named_parameters() if param.requires_grad}
    if not sgd_step:
        stats = trainer.compute_gradients(model, loss_fn, inputs, labels, generator)
        return stats.directional_derivatives, {
            name: torch.zeros_like(param) if param.grad is None else param.grad
            for name, param in params.items()
        }
    before = {name: param.detach().clone() for name, param in params.items()}
    stats = trainer.sgd_step(model, loss_fn, inputs, labels, generator, 1.0)
    return stats.directional_derivatives, {
        name: before[name] - param.detach() for name, param in params.items()
    }


@dataclass(frozen=True)
class _Errors:
    """What a step gave, what it should have given, and how far apart they are; see :class:`Verification`."""

    derivatives: Tensor
    true: Tensor
    errors: Tensor
    gradient_error: float

    @property
    def worst(self) -> float:
        """The largest error; NaN where one is."""
        return largest((self._derivative_error, self.gradient_error))

    @property
    def _derivative_error(self) -> float:
        return float(self.errors.max()) if self.errors.numel() else 0.0

    def judge(self, name: str, tolerance: float) -> Verification:
        """The verdict on a trainer of this name.

        Raises:
            FgbenchError: an error is beyond the tolerance.
        """
        if not self._derivative_error <= tolerance:
            index = int(self.errors.nan_to_num(torch.inf).argmax())
            raise FgbenchError(
                f"{name}: its directional derivative is {self.derivatives.flatten()[index]:.6g}, but "
                f"backprop says {self.true.flatten()[index]:.6g}: off by "
                f"{self.errors.flatten()[index]:.2g} of its usual size, at most {tolerance:.2g} is rounding. "
                f"Its gradient would be wrong on this model"
            )
        if not self.gradient_error <= tolerance:
            raise FgbenchError(
                f"{name}: its derivatives are right, but the gradient it makes of them is off by "
                f"{self.gradient_error:.2g}, at most {tolerance:.2g} is rounding. It would be wrong on this "
                f"model"
            )
        return Verification(
            "verified", self.true.numel(), self._derivative_error, self.gradient_error, tolerance
        )


def _compare(name: str, derivatives: Tensor, gradient: dict[str, Tensor], reference: Reference) -> _Errors:
    derivatives, true = derivatives.double(), reference.derivatives.double()
    if derivatives.shape != true.shape:
        raise FgbenchError(
            f"{name}: its step reports derivatives of shape {tuple(derivatives.shape)}, expected "
            f"{tuple(true.shape)}"
        )
    errors = share((derivatives - true).abs(), reference.scale.double())
    length = gradient_length(reference.gradient.values())
    distance = gradient_length(gradient[each] - part for each, part in reference.gradient.items())
    gradient_error = float(share(distance, length))
    if true.numel() and reference.scale.any():
        # a small derivative makes a short gradient: its error is that of one of usual size
        usual = share(true.square().mean().sqrt(), reference.scale.double().mean())
        gradient_error *= float(usual.clamp(max=1))
    return _Errors(derivatives, true, errors, gradient_error)


def share(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``; 0 where ``part`` is 0."""
    return torch.where(part == 0, part, part / whole)


@contextlib.contextmanager
def put_back(
    trainer: Trainer, model: nn.Module, device: torch.device, generator: torch.Generator | None = None
) -> Iterator[None]:
    """Restore parameters, buffers, gradients, modes, the trainer's state and generators afterwards.

    Tensors keep their identity. Attributes of modules (a counter, a running average) are restored too; see
    :class:`ModelState`.
    """
    gradients = _take_gradients([*model.parameters(), *trainer.parameters()])
    params, kept = [(each, each.detach().clone()) for each in model.parameters()], ModelState(model)
    state = copy.deepcopy(trainer.state_dict())
    generator_state = generator.get_state() if generator else None
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        kept.restore()
        with torch.no_grad():
            for param, before in params:
                param.copy_(before)
        trainer.load_state_dict(state)
        for param, gradient in gradients:
            param.grad = gradient
        if generator is not None and generator_state is not None:
            generator.set_state(generator_state)


def _take_gradients(params: Iterable[nn.Parameter]) -> list[tuple[nn.Parameter, Tensor | None]]:
    """Every parameter with its gradient, which is detached from it: a step might write into it."""
    taken = []
    for param in params:
        taken.append((param, param.grad))
        param.grad = None
    return taken
