"""The exact mean of a trainer's gradient over its randomness, without sampling: one entry at a time."""

import math

import torch
from torch import Tensor, nn

from fgbench.checks.gradients import gradient_of
from fgbench.checks.part import Part
from fgbench.checks.probe import Probe, make_probe
from fgbench.checks.verify import put_back
from fgbench.errors import ConfigError
from fgbench.trainers.base import Trainer
from fgbench.trainers.sampling import Drawn, watching_draws

TITLE = "the exact mean of its gradient, over every direction of a small model, in float64:"
TOLERANCE = 1e-7
"""Largest distance of the mean from the declared one, in float64, as a share of its norm."""
FEW = {"tangents": 2, "epsilon": 1e-6}
"""Options at most so large: every tangent costs steps, and a difference is a derivative for small steps."""
LOSS = nn.CrossEntropyLoss(reduction="none")

Entry = tuple[bytes, int, int, int]
"""A random number drawn in a step: the generator's state, the direction, its row, and the entry in it."""


def check_mean(trainer: Trainer, device: torch.device) -> Part:
    """Average a trainer's gradient over all its randomness on a small model; compare with its declared mean.

    For a gradient that is quadratic in directions v with zero mean and E[v v^T] = I, such as d v, that is

        E[g_hat] = g_hat(0) + sum_j ((g_hat(e_j) + g_hat(-e_j)) / 2 - g_hat(0))

    over the unit vectors e_j of everything drawn; for the factors of an outer product, over all their pairs.
    """
    few = {name: min(most, getattr(trainer.options, name, most)) for name, most in FEW.items()}
    options = trainer.options.model_copy(
        update={name: value for name, value in few.items() if hasattr(trainer.options, name)}
    )
    try:
        probe = make_probe(type(trainer)(options), device, torch.float64)
    except ConfigError as error:
        return Part.not_checked("mean", TITLE, f"on a small model: {error}")
    for seed in range(2):  # so that what the trainer learns itself is not zero
        gradient_of(*_arguments(probe), torch.Generator(device).manual_seed(seed))
    declared = probe.trainer.mean_gradient(probe.model, LOSS, probe.inputs, probe.labels)
    recorder = _Recorder()
    first = _gradient(probe, recorder)
    if not recorder.entries:
        if torch.equal(first, _gradient(probe, recorder, seed=1)):
            return Part(
                "mean", [TITLE, "  nothing to average: another generator gives the same gradient"], True
            )
        return Part.not_checked("mean", TITLE, "its randomness does not come from fgbench.trainers.sampling")
    if declared is None:
        return Part.not_checked("mean", TITLE, "this trainer declares none")
    at_zero = _gradient(probe, _OneEntry(None))
    mean = at_zero.clone()
    for entry in sorted(recorder.entries):
        both = [_gradient(probe, _OneEntry(entry, sign)) for sign in (1.0, -1.0)]
        mean += (both[0] + both[1]) / 2 - at_zero
    names = [name for name, param in probe.model.named_parameters() if param.requires_grad]
    expected = torch.cat([declared[name].flatten() for name in names])
    off = ((mean - expected).norm() / expected.norm()).item()
    count = f"{len(recorder.entries):,} directions"
    text = f"  off by {off:.1e} of its length over {count} (allowed {TOLERANCE:g})"
    return Part("mean", [TITLE, text], off <= TOLERANCE)


def _arguments(probe: Probe) -> tuple[Trainer, nn.Module, nn.CrossEntropyLoss, Tensor, Tensor]:
    return probe.trainer, probe.model, LOSS, probe.inputs, probe.labels


def _gradient(probe: Probe, watcher: "_Recorder | _OneEntry", seed: int = 0) -> Tensor:
    generator = torch.Generator(probe.inputs.device).manual_seed(seed)
    with put_back(probe.trainer, probe.model, probe.inputs.device), watching_draws(watcher):
        return gradient_of(*_arguments(probe), generator)


class _Recorder:
    """Collects every entry that a step draws; draws from equal states are the same."""

    def __init__(self) -> None:
        self.entries: set[Entry] = set()

    def __call__(self, state: bytes, drawn: Drawn) -> None:
        for index, factors in enumerate(drawn):
            rows, size = len(factors[0]), math.prod(factor[0].numel() for factor in factors)
            self.entries |= {(state, index, row, at) for row in range(rows) for at in range(size)}


class _OneEntry:
    """Overwrites all draws with zeros, and one entry with a number."""

    def __init__(self, entry: Entry | None, value: float = 0.0) -> None:
        self.entry, self.value = entry, value

    def __call__(self, state: bytes, drawn: Drawn) -> None:
        for index, factors in enumerate(drawn):
            for factor in factors:
                factor.zero_()
            if self.entry is not None and self.entry[:2] == (state, index):
                _, _, row, at = self.entry
                value = self.value
                if at >= math.prod(factor[0].numel() for factor in factors):
                    continue
                for factor in reversed(factors):
                    at, own = divmod(at, factor[0].numel())
                    place = torch.unravel_index(torch.tensor(own), factor.shape[1:])
                    factor[row][place] = value
                    value = 1.0
