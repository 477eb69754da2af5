"""What a step costs in forward passes, whatever the machine."""

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode

from fgbench.config.config import Config
from fgbench.datasets.base import Splits
from fgbench.run.build import build_training
from fgbench.run.loop import train_epoch


def count_forward_passes(config: Config, device: torch.device, splits: Splits) -> float | None:
    """Floating-point operations of a step over those of one forward pass of the same batch.

    Counted are matrix products and convolutions, as in ``fgbench bench``; drawing tangents, sums and the
    optimizer take time, but none of these. On a second copy of everything: the run is not disturbed.

    Returns:
        None for a model without such operations.
    """
    training = build_training(config, device, splits)
    inputs, _ = splits.train.batch(
        torch.arange(min(config.batch_size, len(splits.train)), device=device), None
    )
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        copy.deepcopy(training.model).train()(inputs)
    train_epoch(training, after_step=lambda: True)  # what a trainer makes once, such as feedback matrices
    training.batches_done = 0
    with FlopCounterMode(display=False) as step:
        train_epoch(training, after_step=lambda: True)
    passes = forward.get_total_flops()
    return step.get_total_flops() / passes if passes else None
