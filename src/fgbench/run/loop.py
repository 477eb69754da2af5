"""The only loop over batches, shared by every trainer."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fgbench.datasets.base import Split, Splits
from fgbench.run.attributes import Attributes, restore_attributes
from fgbench.run.optimizers import is_plain_sgd
from fgbench.seeds import derive_generator, derive_seed
from fgbench.trainers.base import LossFunction, StepStats, Trainer
from fgbench.trainers.workers import Workers

EVALUATION_BATCH = 500


@dataclass
class TrainingState:
    """Everything that changes while a run trains, and its position in the run.

    Attributes:
        epochs_done: completed epochs.
        batches_done: completed batches of the current epoch.
        sums: over this worker's part of those batches, on the device: losses and correct predictions of
            samples, gradient norms.
        epoch_time_s: seconds spent on those batches.
        epoch_lr: learning rate of the epoch's first step.
    """

    model: nn.Module
    trainer: Trainer
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    splits: Splits
    seed: int
    device: torch.device
    batch_size: int
    clip_gradient_norm: float | None = None
    precision: str = "fp32"
    workers: Workers = field(default_factory=Workers)
    loss_fn: LossFunction = field(default_factory=lambda: nn.CrossEntropyLoss(reduction="none"))
    epochs_done: int = 0
    batches_done: int = 0
    epoch_time_s: float = 0.0
    epoch_lr: float = 0.0
    sums: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        self._attributes = Attributes(self.model)

    @property
    def batches_per_epoch(self) -> int:
        """Steps in an epoch; see :func:`count_batches`."""
        return count_batches(len(self.splits.train), self.batch_size)

    @property
    def step(self) -> int:
        """Steps done since the run started."""
        return self.epochs_done * self.batches_per_epoch + self.batches_done

    @property
    def images_seen(self) -> int:
        """Images in the completed batches of this epoch."""
        return self.batches_done * min(self.batch_size, len(self.splits.train))

    def train_means(self, *, own: bool = False) -> tuple[float, float, float]:
        """Loss, accuracy (0..1) and gradient norm over the batches done; waits for the device.

        Args:
            own: over this worker's part of them only, without communication.
        """
        sums = self.sums if own else self.workers.gather(self.sums).mean(0)
        loss, correct, grad_norm = sums.tolist()
        images = self.images_seen / self.workers.shards
        return loss / images, correct / images, grad_norm / self.batches_done

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume bit for bit; ``epoch`` and ``batch`` count completed ones.

        ``unsaved`` names what the model keeps and no file can hold. Of several workers, the model's state is
        that of the first.
        """
        kept, unsaved = self._attributes.changed(self.model)
        return {
            "model": self.model.state_dict(),
            "attributes": kept,
            "unsaved": unsaved,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "trainer": self.trainer.state_dict(),
            "epoch": self.epochs_done,
            "batch": self.batches_done,
            "epoch_time_s": self.epoch_time_s,
            "epoch_lr": self.epoch_lr,
            "sums": self.workers.gather(self.sums),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        for part in ("model", "optimizer", "schedule", "trainer"):
            getattr(self, part).load_state_dict(state[part])
        restore_attributes(self.model, state.get("attributes", {}))
        self.epochs_done, self.batches_done = state["epoch"], state["batch"]
        self.epoch_time_s, self.epoch_lr = state["epoch_time_s"], state["epoch_lr"]
        self.sums = state["sums"][self.workers.rank].to(self.device)


def count_batches(num_images: int, batch_size: int) -> int:
    """Full batches in an epoch; the images left over after shuffling are not used in that epoch."""
    return max(1, num_images // batch_size)


def train_epoch(training: TrainingState, after_step: Callable[[], bool] | None = None) -> bool:
    """Train the rest of the current epoch.

    Nothing in here synchronises with the device: sums stay there until ``train_means``.

    Args:
        training: updated in place, step by step.
        after_step: called after every step; true to stop there.

    Returns:
        Whether the epoch was finished; the caller starts the next one with ``start_next_epoch``.
    """
    device = training.device
    order, augmentation = _batch_order(training), torch.Generator(device)
    training.model.train()
    if training.batches_done == 0:
        training.epoch_lr = float(training.schedule.get_last_lr()[0])
    step = _choose_step(training)
    with seeded_dropout(device) as seed_dropout:
        while training.batches_done < training.batches_per_epoch:
            inputs, labels = _batch(training, order, augmentation)
            seed_dropout(_dropout_seed(training))
            stats = step(inputs, labels)
            training.schedule.step()
            correct = (stats.outputs.argmax(1) == labels).sum()
            training.sums += torch.stack(
                [stats.loss.double() * len(labels), correct.double(), stats.grad_norm.double()]
            )
            training.batches_done += 1
            if after_step is not None and after_step():
                return training.batches_done == training.batches_per_epoch
    return True


def next_batch(training: TrainingState, seed_dropout: Callable[[int], None]) -> tuple[Tensor, Tensor]:
    """This worker's part of the next batch, with dropout seeded as that step will seed it.

    It is the next epoch's first one if a run was killed after an epoch's last step.
    """
    training.model.train()
    seed_dropout(_dropout_seed(training))
    return _batch(training, _batch_order(training), torch.Generator(training.device))


def _batch_order(training: TrainingState) -> Tensor:
    """The training images' indices in the order of the next step's epoch."""
    epoch = training.step // training.batches_per_epoch
    shuffle = derive_generator("cpu", training.seed, "batch order", epoch)
    return torch.randperm(len(training.splits.train), generator=shuffle).to(training.device)


def _batch(training: TrainingState, order: Tensor, augmentation: torch.Generator) -> tuple[Tensor, Tensor]:
    start = training.step % training.batches_per_epoch * training.batch_size
    augmentation.manual_seed(derive_seed(training.seed, "augmentation", training.step))
    inputs, labels = training.splits.train.batch(order[start : start + training.batch_size], augmentation)
    return training.workers.shard(inputs), training.workers.shard(labels)


def _dropout_seed(training: TrainingState) -> int:
    return derive_seed(training.seed, "dropout", training.step, *training.workers.shard_index)


def seed_tangents(training: TrainingState, generator: torch.Generator) -> torch.Generator:
    """The generator, in the state from which the next step's tangents are drawn."""
    return generator.manual_seed(derive_seed(training.seed, "tangents", training.step))


def autocast(training: TrainingState) -> AbstractContextManager[Any]:
    """A context with the run's precision."""
    if training.precision == "bf16":
        return torch.autocast(training.device.type, dtype=torch.bfloat16)
    return nullcontext()


def takes_sgd_steps(training: TrainingState) -> bool:
    """Whether the trainer has its own SGD step and the optimizer is plain SGD."""
    plain = is_plain_sgd(training.optimizer) and training.clip_gradient_norm is None
    return plain and training.trainer.has_sgd_step


def start_next_epoch(training: TrainingState) -> None:
    """Count the epoch as done and clear its sums."""
    training.epochs_done += 1
    training.batches_done = 0
    training.epoch_time_s = 0.0
    training.sums.zero_()


def _choose_step(training: TrainingState) -> Callable[[Tensor, Tensor], StepStats]:
    """One step on a batch: the trainer's own SGD step if it has one and the optimizer is plain SGD."""
    model, trainer, optimizer = training.model, training.trainer, training.optimizer
    generator = torch.Generator(training.device)
    parameters = [param for param in model.parameters() if param.requires_grad]

    def dense_step(inputs: Tensor, labels: Tensor) -> StepStats:
        with autocast(training):
            tangents = seed_tangents(training, generator)
            stats = trainer.compute_gradients(model, training.loss_fn, inputs, labels, tangents)
        if training.clip_gradient_norm is not None:
            nn.utils.clip_grad_norm_(parameters, training.clip_gradient_norm)
        optimizer.step()
        return stats

    def sgd_step(inputs: Tensor, labels: Tensor) -> StepStats:
        with autocast(training):
            lr = optimizer.param_groups[0]["lr"]
            tangents = seed_tangents(training, generator)
            return trainer.sgd_step(model, training.loss_fn, inputs, labels, tangents, lr)

    if takes_sgd_steps(training):
        # or the schedule warns that the optimizer never stepped
        optimizer._opt_called = True  # type: ignore[attr-defined]
        return sgd_step
    return dense_step


@contextmanager
def seeded_dropout(device: torch.device) -> Iterator[Callable[[int], None]]:
    """Yields a function that seeds the global generators used by dropout; they are restored afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):

        def seed(value: int) -> None:
            torch.default_generator.manual_seed(value)
            for each in devices:
                torch.cuda.default_generators[each.index or 0].manual_seed(value)

        yield seed


@torch.no_grad()
def evaluate(model: nn.Module, loss_fn: LossFunction, split: Split) -> tuple[float, float]:
    """Mean loss and accuracy (0..1) over a split, with the model in evaluation mode; waits for the device."""
    device = split.labels.device
    was_training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for indices in torch.arange(len(split), device=device).split(EVALUATION_BATCH):
        inputs, labels = split.batch(indices, None)
        outputs = model(inputs)
        sums += torch.stack(
            [loss_fn(outputs, labels).double().sum(), (outputs.argmax(1) == labels).sum().double()]
        )
    model.train(was_training)
    loss, correct = (sums / len(split)).tolist()
    return loss, correct
