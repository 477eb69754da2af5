"""Compares a trainer's gradient with the true one, and a directional derivative computed in three ways."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fgbench.errors import ConfigError
from fgbench.seeds import derive_generator
from fgbench.trainers.backprop import Backprop
from fgbench.trainers.base import LossFunction, Trainer
from fgbench.trainers.exact_output import OutputLayer
from fgbench.trainers.forward_mode import ForwardPass
from fgbench.trainers.passes import sample_losses, trainable_parameters
from fgbench.trainers.replay import OnePass, RandomStates
from fgbench.trainers.sampling import sample_tangents

STANDARD_ERRORS = 4.0
"""Largest distance of a mean from its expected value."""
EPSILON = 1e-10
"""Half the distance of the central difference, in float64: so small that no ReLU switches in between."""


@dataclass(frozen=True)
class Derivatives:
    """One directional derivative in three ways, and the gradient's norm for comparison.

    Attributes:
        forward: by the pass that forward trainers use; or why that refuses this model.
        reverse: by backprop.
        central: by differences.
        norm: |g|.
    """

    forward: float | str
    reverse: float
    central: float
    norm: float

    @property
    def agree(self) -> bool:
        """Whether the available ones agree up to rounding and the error of the difference."""
        exact = isinstance(self.forward, str) or abs(self.forward - self.reverse) <= 1e-8 * self.norm
        return exact and abs(self.central - self.reverse) <= 1e-4 * self.norm

    def lines(self) -> list[str]:
        """The three, one under the other, with their distance from reverse mode."""
        names = {
            "forward mode": self.forward,
            "reverse mode": self.reverse,
            "central differences": self.central,
        }
        return [
            f"  {name:<28}not checked: {value}"
            if isinstance(value, str)
            else f"  {name:<28}{value:>22.12e}   off by {abs(value - self.reverse):.1e}"
            for name, value in names.items()
        ]


def directional_derivatives(
    model: nn.Module, loss_fn: LossFunction, inputs: Tensor, labels: Tensor, seed: int
) -> Derivatives:
    """The mean loss's derivative along one normal tangent, by forward and reverse mode and by differences.

    On a copy of the model in float64, whose dropout masks are the same each time.
    """
    with kept_generators(inputs.device):
        model = copy.deepcopy(model).double()
        inputs = inputs.double() if inputs.is_floating_point() else inputs
        params = {name: param for name, param in model.named_parameters() if param.requires_grad}
        generator = derive_generator(inputs.device, seed, "check direction")
        tangent = sample_tangents(trainable_parameters(model), "normal", generator)
        one_pass = OnePass(model, 4)

        def loss_at(step: float) -> float:
            moved = {name: torch.add(param, tangent[name], alpha=step) for name, param in params.items()}
            with one_pass, torch.no_grad():
                losses = sample_losses(loss_fn, functional_call(model, moved, (inputs,)), labels)
            return losses.mean().item()

        forward: float | str
        try:
            with (
                one_pass,
                ForwardPass(model, {params[name]: tangent[name][None] for name in params}) as along,
            ):
                loss = sample_losses(loss_fn, model(inputs), labels).mean()
                forward = along.tangent_of(loss).item()
        except ConfigError as refusal:
            forward = str(refusal)
        central = (loss_at(EPSILON) - loss_at(-EPSILON)) / (2 * EPSILON)
        with one_pass:
            gradient = gradient_of(Backprop(), model, loss_fn, inputs, labels, torch.Generator())
    flat = torch.cat([value.flatten() for value in tangent.values()])
    return Derivatives(forward, (gradient @ flat).item(), central, gradient.norm().item())


@dataclass(frozen=True)
class Moment:
    """A sampled mean and the value it should have (None: unknown, only shown)."""

    name: str
    values: Tensor
    expected: float | None
    spread: float = 0.0
    """Standard deviation of one value, where known: small samples of heavy tails underestimate it."""

    @property
    def mean(self) -> float:
        """Over the draws."""
        return self.values.mean().item()

    @property
    def standard_error(self) -> float:
        """Of the mean."""
        deviation = self.values.std().item() if len(self.values) > 1 else 0.0
        return max(deviation, self.spread) / math.sqrt(len(self.values))

    @property
    def consistent(self) -> bool:
        """Whether it is finite and within sampling error of the expected value (plus 1e-4 for rounding)."""
        if not math.isfinite(self.mean):
            return False
        allowed = STANDARD_ERRORS * self.standard_error
        return self.expected is None or abs(self.mean - self.expected) <= allowed + 1e-4 * max(
            1, self.expected
        )

    def line(self) -> str:
        """One line of the report."""
        measured = f"{self.mean:.4g} +- {self.standard_error:.2g}"
        return f"  {self.name:<28}{measured:>22}   {'-' if self.expected is None else f'{self.expected:.4g}'}"


@dataclass(frozen=True)
class Sampled:
    """Sampled gradients g_hat of a trainer compared with the true g; tensors of shape (draws,), float64.

    Attributes:
        projections: <g_hat, g> / |g|^2.
        errors: |g_hat - g|^2 / |g|^2.
        cosines: between g_hat and g.
        norm: |g|.
        squares: each parameter's share of |g|^2, by name.
    """

    projections: Tensor
    errors: Tensor
    cosines: Tensor
    norm: float
    squares: dict[str, float]

    def figures(self, expected: "Expected") -> list[Moment]:
        """The rows of the report."""
        draws = expected.tangents
        spread = math.sqrt(2 / draws) if draws else 0.0
        error = expected.error
        return [
            Moment("mean of <g_hat,g>/|g|^2", self.projections, expected.projection, spread),
            Moment("mean of |g_hat-g|^2/|g|^2", self.errors, error, (error or 0.0) * spread),
            Moment("mean cosine of g_hat and g", self.cosines, expected.cosine),
        ]


def sample_gradients(
    trainer: Trainer,
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    labels: Tensor,
    seed: int,
    draws: int,
) -> Sampled:
    """Independent gradients of a trainer on one batch, compared with the true one; works on copies."""
    with kept_generators(inputs.device):
        model, trainer = copy.deepcopy((model, trainer))
        states = RandomStates()
        true = gradient_of(Backprop(), model, loss_fn, inputs, labels, torch.Generator()).double()
        sizes = {name: param.numel() for name, param in trainable_parameters(model).items()}
        parts = dict(zip(sizes, true.split(list(sizes.values())), strict=True))
        rows = []
        for draw in range(draws):
            generator = derive_generator(inputs.device, seed, "check", draw)
            states.restore()  # the dropout masks of the true gradient
            estimate = gradient_of(trainer, model, loss_fn, inputs, labels, generator).double()
            dot, square = estimate @ true, true @ true
            error = (estimate - true).square().sum() / square
            rows.append(torch.stack([dot / square, error, dot / (estimate.norm() * square.sqrt())]))
    projections, errors, cosines = torch.stack(rows).cpu().T
    squares = {name: part.square().sum().item() for name, part in parts.items()}
    return Sampled(projections, errors, cosines, true.norm().item(), squares)


@dataclass(frozen=True)
class Expected:
    """Theoretical values for a trainer's gradient; None where unknown."""

    projection: float | None = None
    error: float | None = None
    cosine: float | None = None
    tangents: int | None = None


def expected_values(trainer: Trainer, model: nn.Module, sampled: Sampled) -> Expected:
    """The means that :func:`sample_gradients` should find, for the trainers whose theory is known.

    With P parameters estimated by K tangents, |g|^2 in units of itself: mean 1 and squared error (P+1)/K
    for ``normal``, (P-1)/K otherwise; projection: mean K/P and error 1 - K/P (``rescale``: 1 and P/K -
    1). The cosine of full tangents is sqrt(2) Gamma((K+1)/2) / (Gamma(K/2) sqrt(P)) for P much larger
    than K.
    """
    options = trainer.options
    if options.name == "backprop":
        return Expected(1.0, 0.0, 1.0)
    exact = OutputLayer(model).names if getattr(options, "exact_output", False) else set()
    if options.name == "activity-forward-gradient":
        return Expected(1.0)
    if options.name not in ("forward-gradient", "zeroth-order") or getattr(options, "clip_derivative", None):
        return Expected()
    count = sum(p.numel() for name, p in trainable_parameters(model).items() if name not in exact)
    share = sum(square for name, square in sampled.squares.items() if name not in exact) / sampled.norm**2
    tangents = options.tangents
    if getattr(options, "combine", "mean") == "projection":
        kept = min(1.0, tangents / count)
        if options.rescale:
            return Expected(1.0, share * (1 / kept - 1), None, tangents)
        return Expected(1 - share * (1 - kept), share * (1 - kept), None, tangents)
    error = share * (count + (1 if options.guess == "normal" else -1)) / tangents
    cosine = None
    if not exact and getattr(options, "structure", "full") == "full" and count > 1000 * tangents:
        gamma = math.lgamma((tangents + 1) / 2) - math.lgamma(tangents / 2)
        cosine = math.exp(gamma) * math.sqrt(2 / count)
    return Expected(1.0, error, cosine, tangents)


def gradient_of(
    trainer: Trainer,
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    labels: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The gradient a trainer leaves in ``param.grad``, as one vector, shape (P,)."""
    trainer.compute_gradients(model, loss_fn, inputs, labels, generator)
    params = [param for param in model.parameters() if param.requires_grad]
    gradients = [torch.zeros_like(param) if param.grad is None else param.grad for param in params]
    return torch.cat([gradient.flatten() for gradient in gradients])


@contextmanager
def kept_generators(device: torch.device) -> Iterator[None]:
    """Restore the global generators afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
