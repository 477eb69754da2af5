"""Steps shared by several workers, one process each, started by torchrun.

Backprop exchanges its gradients through DistributedDataParallel. Forward gradients and zeroth-order exchange
none: every worker can draw every tangent again from the seeds, so directional derivatives and the loss are
all that is sent ("Just One Byte", Zelikman et al., 2023, arXiv 2306.10015; FedKSeed, Qin et al., 2023, arXiv
2312.06353). Only ``exact_output`` also averages the output layer's gradient.

BatchNorm uses the statistics of a worker's own part of the batch, and the running statistics that count are
those of rank 0, as usual with DistributedDataParallel. With ``parallel: data`` each part of the batch has
dropout masks of its own, so a model with dropout does not equal one process with the whole batch.
"""

import warnings
import weakref

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from fgbench.errors import ConfigError
from fgbench.run.world import World
from fgbench.seeds import derive_generator, draw_seed
from fgbench.trainers.backprop import Backprop, recomputing
from fgbench.trainers.base import LossFunction, StepStats, Trainer
from fgbench.trainers.passes import accumulating
from fgbench.trainers.workers import Sharing, Workers


class _Several(Workers):
    """Workers that exchange numbers through the process group."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rank, self.size = world.rank, world.size

    @override
    def average(self, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        self.world.bytes_sent += total.nbytes
        dist.all_reduce(total)
        return total / self.size

    @override
    def gather(self, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values)
        return torch.stack(parts)


class DataWorkers(_Several):
    """Each has its part of the batch and the same tangents: together they equal one large batch."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.shards = world.size
        self.shard_index = (world.rank,)

    def exchange(self, derivatives: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        """The means over the parts of the batch; see :meth:`Workers.exchange`."""
        numbers = self.average(torch.cat([derivatives, loss[None]]))
        return numbers[None, :-1], numbers[-1]

    def shard(self, batch: Tensor) -> Tensor:
        """This worker's part of a batch; see :meth:`Workers.shard`."""
        part = len(batch) // self.size
        return batch[self.rank * part : (self.rank + 1) * part]


class TangentWorkers(_Several):
    """Each has the whole batch and its own tangents: N times the tangents for the same passes."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.sets, self.own = world.size, world.rank

    def generators(self, generator: torch.Generator) -> list[torch.Generator]:
        """One for each worker, from one seed; see :meth:`Workers.generators`."""
        seed = draw_seed(generator)
        return [derive_generator(generator.device, seed, "worker", rank) for rank in range(self.size)]

    def exchange(self, derivatives: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Every worker's derivatives, shape (N, K); see :meth:`Workers.exchange`."""
        numbers = torch.cat([derivatives, loss[None]])
        self.world.bytes_sent += numbers.nbytes
        gathered = self.gather(numbers)
        return gathered[:, :-1], gathered[:, -1].mean()


class DataParallelBackprop(Trainer):
    """Backprop on each worker's part of the batch, the gradients averaged by DistributedDataParallel.

    ``StepStats.loss`` is the mean over this worker's part; everything else is as in :class:`Backprop`.

    Source: Li et al. (2020), arXiv 2006.15704.
    """

    Options = Backprop.Options

    def __init__(self, backprop: Trainer, world: World) -> None:
        super().__init__(backprop.options)
        self.world = world
        self._plain = Backprop(recompute=False)
        self._parallel: tuple[weakref.ref[nn.Module], DistributedDataParallel] | None = None

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
        """Fill ``param.grad`` with the workers' mean gradient; see :meth:`Trainer.compute_gradients`."""
        if self._parallel is None or self._parallel[0]() is not model:
            self._parallel = weakref.ref(model), self._wrap(model)
        with accumulating(list(model.parameters()), accumulate):
            return self._plain.compute_gradients(self._parallel[1], loss_fn, inputs, labels, generator)

    def _wrap(self, model: nn.Module) -> DistributedDataParallel:
        module = _Recomputed(model) if self.options.recompute else model
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            # Buffers are not exchanged: training reads none, and those of rank 0 are evaluated and saved.
            parallel = DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)
        parallel.register_comm_hook(self.world, _average_bucket)
        return parallel


class _Recomputed(nn.Module):
    """The model with its activations recomputed, for a wrapper that only calls ``forward``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """The model's outputs."""
        return recomputing(self.model, inputs)


def _average_bucket(world: World, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DistributedDataParallel's default averaging of gradients, which also counts the bytes."""
    values = bucket.buffer().div_(world.size)
    world.bytes_sent += values.nbytes
    return dist.all_reduce(values, async_op=True).get_future().then(lambda done: done.value()[0])


def distribute(trainer: Trainer, world: World, batch_size: int) -> tuple[Trainer, Workers]:
    """The trainer as the workers of a run use it together, and how they share a step.

    Args:
        trainer: any; returned unchanged when there is one process.
        world: the processes.
        batch_size: images of a step, over all workers.

    Raises:
        ConfigError: the batch cannot be split evenly, or this trainer cannot share a step.
    """
    if world.size == 1:
        return trainer, Workers()
    if trainer.sharing is Sharing.NOTHING:
        raise ConfigError(
            f"trainer.name: {trainer.options.name} cannot train on {world.size} workers; under torchrun "
            "expected backprop, forward-gradient or zeroth-order"
        )
    if getattr(trainer.options, "parallel", "data") == "tangents":
        workers: Workers = TangentWorkers(world)
    elif batch_size % world.size:
        raise ConfigError(
            f"batch_size: {batch_size} images cannot be split evenly over {world.size} workers; expected a "
            f"multiple of {world.size} (batch_size counts the images of all workers together)"
        )
    else:
        workers = DataWorkers(world)
    if trainer.sharing is Sharing.GRADIENTS:
        if trainer.compiled is not None:
            raise ConfigError(
                f"compile: true with backprop expected one process, not {world.size} workers, which exchange "
                "gradients while they are formed; set compile: false"
            )
        return DataParallelBackprop(trainer, world), workers
    trainer.workers = workers
    return trainer, workers
