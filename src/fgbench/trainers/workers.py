"""The workers that share a step: all that a trainer knows of other processes."""

from enum import StrEnum

import torch
from torch import Tensor


class Sharing(StrEnum):
    """What workers exchange to share a trainer's step."""

    NOTHING = "nothing: one process alone trains"
    GRADIENTS = "gradients, averaged by DistributedDataParallel"
    DERIVATIVES = "directional derivatives; every worker draws the same tangents"


class Workers:
    """A single process. ``fgbench.run.parallel`` has several workers.

    A trainer whose ``sharing`` is ``DERIVATIVES`` draws tangents from every one of
    ``generators``, takes derivatives only along those of ``generators[own]``, passes what it measured
    through ``exchange`` and computes the update from all tangents.

    Attributes:
        rank: which of the workers this is, from 0.
        size: how many there are.
        sets: how many sets of tangents there are.
        own: which of them this worker evaluates.
        shards: how many parts a batch is split into.
        shard_index: distinguishes the random streams of this worker's part of a batch.
    """

    rank = 0
    size = 1
    sets = 1
    own = 0
    shards = 1
    shard_index: tuple[int, ...] = ()

    def generators(self, generator: torch.Generator) -> list[torch.Generator]:
        """One generator for each set of tangents, the same on every worker."""
        return [generator]

    def exchange(self, derivatives: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Combine what all workers measured.

        Args:
            derivatives: along this worker's tangents, shape (K,).
            loss: mean loss of this worker's part of the batch, shape ().

        Returns:
            Derivatives along every set of tangents, shape (sets, K), and the mean loss.
        """
        return derivatives[None], loss

    def average(self, values: Tensor) -> Tensor:
        """The mean of ``values`` over all workers, for what derivatives do not provide."""
        return values

    def gather(self, values: Tensor) -> Tensor:
        """``values`` of all workers, shape (size, ...)."""
        return values[None]

    def shard(self, batch: Tensor) -> Tensor:
        """This worker's part of a batch, shape (B / shards, ...)."""
        return batch
