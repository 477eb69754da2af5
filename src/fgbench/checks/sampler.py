"""Checks a trainer's random directions: zero mean, unit variance, uncorrelated."""

import copy
import math

import torch
from torch import Tensor, nn

from fgbench.checks.gradients import gradient_of, kept_generators
from fgbench.checks.part import Part
from fgbench.seeds import derive_generator
from fgbench.trainers.base import LossFunction, Trainer
from fgbench.trainers.sampling import Drawn, watching_draws

TITLE = "the directions it draws:"
STEPS = 64
"""Least number of consecutive steps: equal entries have correlation 1 over them, others below ``EQUAL``."""
NUMBERS = 24_000
"""At least so many are drawn: of fewer, a scale that is off by 5 % may be chance."""
SAMPLES = 2
"""Samples of the batch that are used; draws for the others are no different."""
STANDARD_ERRORS = 6.0
"""Largest distance of a mean from its expected value."""
EQUAL = 0.75
"""Largest correlation of two entries; of 64 pairs of signs one in 10^9 exceeds it."""
ENTRIES = 256
"""Largest number of entries compared with each other."""
ROUNDING = 1e-4
"""Additional tolerance of a mean square, in float32."""


class Moments:
    """Watches the draws of one step (see :func:`watching_draws`); each direction's rows count together.

    Attributes:
        sizes: entries of each direction.
        factors: of each direction (1: it has an entry of its own for each).
        means: of each direction's entries.
        squares: mean of each direction's squared entries.
        entries: a few entries of each direction.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.factors: list[int] = []
        self.means: list[float] = []
        self.squares: list[float] = []
        self.entries: list[Tensor] = []
        self._seen: set[tuple[bytes, tuple[torch.Size, ...]]] = set()

    def __call__(self, state: bytes, drawn: Drawn) -> None:
        """Record one draw, unless it was already recorded."""
        draw = (state, tuple(factor.shape for factors in drawn for factor in factors))
        if draw in self._seen:
            return
        self._seen.add(draw)
        for factors in drawn:
            rows = [factor.detach().reshape(len(factor), -1) for factor in factors]
            size = math.prod(row.shape[1] for row in rows)
            self.sizes.append(len(rows[0]) * size)
            self.factors.append(len(rows))
            # the mean of an outer product is the product of its factors' means
            self.means.append(_product([row.mean(1, dtype=torch.float64) for row in rows]).mean().item())
            squares = [row.square().mean(1, dtype=torch.float64) for row in rows]
            self.squares.append(_product(squares).mean().item())
            at = torch.unravel_index(_places(size), [row.shape[1] for row in rows])
            self.entries.append(
                _product([row[:4, place] for row, place in zip(rows, at, strict=True)])
                .flatten()
                .double()
                .cpu()
            )

    def same(self, other: "Moments") -> bool:
        """Whether both recorded the same directions, as far as they were recorded."""
        alike = (self.sizes, self.means, self.squares) == (other.sizes, other.means, other.squares)
        return alike and all(map(torch.equal, self.entries, other.entries))


def _product(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).prod(0)


def _places(size: int) -> Tensor:
    """Indices of the first two of ``size`` entries and of some more, up to the last."""
    return torch.cat([torch.arange(min(2, size)), torch.linspace(0, size - 1, 7).long()[1:]]).unique()


def check_sampler(
    trainer: Trainer, model: nn.Module, loss_fn: LossFunction, inputs: Tensor, labels: Tensor, seed: int
) -> Part:
    """Check the directions that a trainer draws in consecutive steps, on copies.

    They must depend on the generator alone: not on the data, the weights, or another generator. A few entries
    of each are compared with those of the others and of the step before.
    """
    inputs, labels = inputs[:SAMPLES], labels[:SAMPLES]
    generator = derive_generator(inputs.device, seed, "check sampler")
    start = generator.get_state()
    with kept_generators(inputs.device):
        trainer, model = copy.deepcopy((trainer, model))
        other_trainer, other = copy.deepcopy((trainer, model))
        with torch.no_grad():
            for param in other.parameters():
                param.mul_(0.9)
        others = _watch(other_trainer, other, loss_fn, (0.5 * inputs + 0.1, labels.flip(0)), generator)
        generator.set_state(start)
        steps = [_watch(trainer, model, loss_fn, (inputs, labels), generator)]
        if not steps[0].sizes:
            return _without_draws(trainer, model, loss_fn, (inputs, labels), seed)
        for _ in range(max(STEPS, NUMBERS // sum(steps[0].sizes)) - 1):
            steps.append(_watch(trainer, model, loss_fn, (inputs, labels), generator))
    if any(step.sizes != steps[0].sizes for step in steps):
        return Part.not_checked("sampler", TITLE, "it draws other directions in every step")
    return _judge(steps, depends_on_generator=steps[0].same(others))


def _watch(
    trainer: Trainer,
    model: nn.Module,
    loss_fn: LossFunction,
    batch: tuple[Tensor, Tensor],
    generator: torch.Generator,
) -> Moments:
    moments = Moments()
    with watching_draws(moments):
        gradient_of(trainer, model, loss_fn, *batch, generator)
    return moments


def _without_draws(
    trainer: Trainer, model: nn.Module, loss_fn: LossFunction, batch: tuple[Tensor, Tensor], seed: int
) -> Part:
    found = []
    for stream in range(2):
        torch.manual_seed(seed)
        generator = derive_generator(batch[0].device, seed, "check sampler", stream)
        found.append(gradient_of(*copy.deepcopy((trainer, model)), loss_fn, *batch, generator))
    if torch.equal(*found):
        return Part("sampler", [TITLE, "  none: another generator gives the same gradient"], True)
    return Part.not_checked("sampler", TITLE, "its randomness does not come from fgbench.trainers.sampling")


def _judge(steps: list[Moments], *, depends_on_generator: bool) -> Part:
    count, sizes = len(steps), torch.tensor(steps[0].sizes, dtype=torch.float64)
    means = torch.tensor([step.means for step in steps], dtype=torch.float64)
    squares = torch.tensor([step.squares for step in steps], dtype=torch.float64)
    error = (sizes * count).rsqrt()  # of the mean of uncorrelated entries of variance 1
    mean = (means.mean(0).abs() / error).max().item()
    # n m^2 is 1 on average for n uncorrelated entries, more if they are correlated
    spread = ((means.square() * sizes).mean(0) / 3 ** torch.tensor(steps[0].factors)).max().item()
    whole = squares @ sizes / sizes.sum()
    off = torch.cat([(whole.mean() - 1)[None], squares.mean(0) - 1]).abs()
    # all together by the observed spread; a single direction may be short, so by that of a squared normal
    error = torch.cat([whole.std()[None] / count**0.5, 2**0.5 * error])
    square = (off / (STANDARD_ERRORS * error + ROUNDING)).max().item()
    entries = torch.stack([torch.cat(step.entries) for step in steps])
    entries = entries[:, :: -(-entries.shape[1] // ENTRIES)]
    correlation = max(
        _correlations(entries, entries).fill_diagonal_(0).abs().max().item(),
        _correlations(entries[1:], entries[:-1]).abs().max().item(),
    )
    rows = [
        (
            "the same for other data and weights",
            "yes" if depends_on_generator else "NO",
            depends_on_generator,
        ),
        (
            "mean",
            f"0 within {mean:.2g} standard errors (allowed {STANDARD_ERRORS:g})",
            mean <= STANDARD_ERRORS,
        ),
        ("mean square", f"{whole.mean():.6g}, off by {square:.2g} of what is allowed", square <= 1),
        ("entries that move together", f"{spread:.2g} of what is allowed", spread <= 1),
        ("correlation of two entries", f"at most {correlation:.2f} (allowed {EQUAL})", correlation <= EQUAL),
    ]
    lines = [f"  {name:<38}{text}{'' if good else '   WRONG'}" for name, text, good in rows]
    return Part("sampler", [TITLE, *lines], all(good for _, _, good in rows))


def _correlations(left: Tensor, right: Tensor) -> Tensor:
    """Of all pairs of columns, about zero; NaN (of a column of zeros) counts as 1."""
    lengths = left.square().sum(0).sqrt()[:, None] * right.square().sum(0).sqrt()
    return (left.T @ right / lengths).nan_to_num(1.0)
