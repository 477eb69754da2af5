"""The cost of a step: in forward passes, whatever the machine, and in time spent drawing."""

import copy
from statistics import median
from typing import NamedTuple

import torch

from fgbench import measure
from fgbench.config.config import Config
from fgbench.datasets.base import Splits
from fgbench.run.build import build_training
from fgbench.run.loop import TrainingState, train_epoch
from fgbench.trainers.sampling import DrawingClock

DRAWING_STEPS = 5
"""Steps over which the median time spent drawing is taken; before training, so outside timed epochs."""


class StepCost(NamedTuple):
    """The cost of a step.

    Attributes:
        forward_passes: floating-point operations of a step over those of one forward pass of the same batch;
            None for a model without such operations.
        drawing_ms: time spent drawing random numbers in a step, ms; 0 for a trainer that draws none.
    """

    forward_passes: float | None
    drawing_ms: float


def measure_step_cost(config: Config, device: torch.device, splits: Splits) -> StepCost:
    """The cost of a config's steps, measured on a second copy of everything: the run is not affected.

    Only matrix products and convolutions count as operations, as in ``fgbench bench``; drawing, sums and the
    optimizer take time, but do not count.
    """
    training = build_training(config, device, splits)
    inputs, _ = splits.train.batch(
        torch.arange(min(config.batch_size, len(splits.train)), device=device), None
    )
    model = copy.deepcopy(training.model).train()
    with torch.no_grad():
        passes = measure.count_operations(lambda: model(inputs))
    draws = _time_drawing(training) > 0  # this step also does a trainer's one-time work
    operations = measure.count_operations(lambda: _step(training))
    seconds = [_time_drawing(training) for _ in range(DRAWING_STEPS if draws else 0)]
    return StepCost(operations / passes if passes else None, 1000 * median(seconds) if seconds else 0.0)


def _time_drawing(training: TrainingState) -> float:
    """Seconds spent drawing in one step."""
    with DrawingClock() as clock:
        _step(training)
    return clock.seconds


def _step(training: TrainingState) -> None:
    train_epoch(training, after_step=lambda: True)
    training.batches_done = 0
