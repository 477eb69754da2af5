"""Verifies a run's first step before it trains."""

from dataclasses import asdict
from typing import Any

import torch

from fgbench.checks.verify import compare_step
from fgbench.errors import FgbenchError
from fgbench.run.loop import (
    TrainingState,
    autocast,
    next_batch,
    seed_tangents,
    seeded_dropout,
    takes_sgd_steps,
)
from fgbench.run.world import World
from fgbench.trainers.backprop import Backprop
from fgbench.trainers.base import Trainer


def verify_next_step(training: TrainingState, world: World) -> dict[str, Any]:
    """Compare the next step, in the form used for training, with its formula; changes nothing.

    Plain backprop is the formula.

    Returns:
        The entry for ``summary.json``.

    Raises:
        FgbenchError: it is wrong; all workers raise.
    """
    sgd_step, failure, found = takes_sgd_steps(training), None, None
    with seeded_dropout(training.device) as seed_dropout:
        inputs, labels = next_batch(training, seed_dropout)
        with autocast(training):
            try:
                found = compare_step(
                    training.trainer, training.model, training.loss_fn, inputs, labels,
                    seed_tangents(training, torch.Generator(training.device)), sgd_step=sgd_step,
                    exact=not _is_plain_backprop(training.trainer),
                )  # fmt: skip
            except FgbenchError as error:
                failure = error
    with world.agreed():
        if failure is not None:
            raise FgbenchError(f"{failure}; nothing was trained (verify: false trains anyway)")
    assert found is not None
    form = "sgd_step" if sgd_step else "compute_gradients"
    return {"step": training.step, "form": form, "precision": training.precision, **asdict(found)}


def _is_plain_backprop(trainer: Trainer) -> bool:
    return isinstance(trainer, Backprop) and trainer.compiled is None and not trainer.options.recompute
