"""The loop over a run's epochs: train, evaluate, write the row, save."""

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from fgbench import measure
from fgbench.config.config import Config
from fgbench.datasets.base import Splits
from fgbench.run.build import build_training
from fgbench.run.loop import TrainingState, evaluate, start_next_epoch, train_epoch
from fgbench.run.progress import EpochProgress
from fgbench.run.signals import Interrupted, StopRequest
from fgbench.run.validation import keep_best, reason_to_stop
from fgbench.run.world import World
from fgbench.seeds import derive_generator
from fgbench.storage.metrics import LOSSES, METRICS, Cell
from fgbench.storage.run_directory import RunDirectory
from fgbench.storage.state import save_state

LARGEST_LOSS = 1e6
"""A mean training loss above this counts as diverged; guessing among 10 classes gives 2.3."""


RESUMED = "interrupted and resumed within the epoch"
"""The note on the time of an epoch that was: how busy the machine was before is not known."""


class EpochLoop:
    """Trains a run to its end, writing after every epoch.

    Attributes:
        rows: of metrics.csv, one per completed epoch. A state file holds them too, so that resuming restores
            them whatever has happened to metrics.csv.
        best: the weights of the best epoch so far, if they are kept; see :func:`keep_best`.
        after_epoch: called with every new row once it is written.
    """

    def __init__(
        self,
        config: Config,
        run: str,
        directory: RunDirectory,
        training: TrainingState,
        rows: list[dict[str, Cell]],
        stop: StopRequest,
        world: World | None = None,
        best: dict[str, Any] | None = None,
        after_epoch: Callable[[dict[str, Cell]], None] = lambda row: None,
    ) -> None:
        self.config, self.run, self.directory = config, run, directory
        self.training, self.rows, self.stop = training, rows, stop
        self.world, self.best, self.after_epoch = world or World(), best, after_epoch
        self.cpu_memory_mib: float | None = None
        self._warned = False

    @property
    def diverged(self) -> bool:
        """Whether a loss of the last epoch is not finite, or its mean training loss is above the limit."""
        losses = [self.rows[-1].get(column) for column in LOSSES] if self.rows else []
        return has_diverged(*(loss for loss in losses if isinstance(loss, float)))

    @property
    def ended(self) -> bool:
        """Whether there is no epoch left to train."""
        return self.diverged or self.training.epochs_done == self.config.epochs or bool(self.stopped_early)

    @property
    def stopped_early(self) -> str:
        """Why the run stopped before the config's last epoch; empty if it did not."""
        if self.diverged or self.training.epochs_done == self.config.epochs:
            return ""
        return reason_to_stop(self.rows, self.config.early_stopping)

    def train(self) -> str:
        """Train to the end; returns ``finished`` or ``diverged``.

        Raises:
            Interrupted: a signal asked to stop; the state is saved.
        """
        training = self.training
        if training.device.type == "cpu" and not self.ended:
            self.cpu_memory_mib = cpu_step_memory(self.config, training.splits, self.world)
        while not self.ended:
            row = dict.fromkeys(METRICS) | self.train_epoch()
            self.directory.append_metrics(row)
            self.rows.append(row)
            self.best = keep_best(self.config.saving.best, self.rows, training.model, self.best)
            start_next_epoch(training)
            self.after_epoch(row)
            if self.ended or self.stop.requested or training.epochs_done % self.config.saving.every == 0:
                self.save()
            if self.stop.requested and not self.ended:
                raise Interrupted(self.stop.number, self.directory.path)
            self.directory.write_status("running", epoch=training.epochs_done, epochs=self.config.epochs)
        return "diverged" if self.diverged else "finished"

    def train_epoch(self) -> dict[str, Cell]:
        """Train and evaluate one epoch, or the rest of it; returns its row."""
        training, every = self.training, self.config.saving.every_steps
        first_step, sent_before = training.step, self.world.bytes_sent
        is_resumed, start = training.batches_done > 0, 0.0

        def after_step() -> bool:
            load.end_step()
            self.stop.update()
            self.directory.heartbeat()
            progress.update()
            if every and training.step % every == 0:
                nonlocal start
                measure.synchronize(training.device)
                training.epoch_time_s = time.perf_counter() - start
                with energy.paused():
                    self.save()
                start = time.perf_counter() - training.epoch_time_s
                load.begin_step()
            return self.stop.requested

        with (
            EpochProgress(training, self.config.epochs) as progress,
            measure.PeakMemory(training.device) as peak,
            measure.OtherLoad() as load,
            measure.GpuEnergy(training.device) as energy,
        ):
            start = time.perf_counter() - training.epoch_time_s
            whole = train_epoch(training, after_step)
            measure.synchronize(training.device)
            training.epoch_time_s = time.perf_counter() - start
        if not whole:
            self.save()
            raise Interrupted(self.stop.number, self.directory.path)
        row = _training_columns(training) | {"timing_note": load.reason or (RESUMED if is_resumed else None)}
        row["energy_j"] = None if is_resumed else self.world.total(energy.joules)
        if peak.mib is None:
            row |= {"peak_memory_mib": self.cpu_memory_mib, "memory_source": "cpu-profiler"}
        else:
            row |= {
                "peak_memory_mib": peak.mib - training.splits.bytes / measure.MIB,
                "memory_source": "cuda-allocator",
                "nvml_memory_mib": measure.nvml_process_memory_mib(),
            }
        if self.world.size > 1 and training.step > first_step:
            row["bytes_sent_per_step"] = (self.world.bytes_sent - sent_before) / (training.step - first_step)
        start = time.perf_counter()
        row |= self.world.on_main(lambda: _evaluation_columns(training))
        evaluation_s = time.perf_counter() - start
        before_s = float(self.rows[-1]["elapsed_s"] or 0.0) if self.rows else 0.0
        row |= {"eval_time_s": evaluation_s, "elapsed_s": before_s + training.epoch_time_s + evaluation_s}
        if self.config.diagnostics.every and (training.epochs_done + 1) % self.config.diagnostics.every == 0:
            row |= self._diagnose()
        progress.report(row)
        return self.world.on_main(lambda: row)

    def _diagnose(self) -> dict[str, Cell]:
        """The noise of the trainer's gradient on a batch of training images; layers go to layers.csv."""
        from fgbench.checks.quality import WHOLE, gradient_quality

        training = self.training
        count = min(training.batch_size, len(training.splits.train))
        inputs, labels = training.splits.train.batch(torch.arange(count, device=training.device), None)
        generator = derive_generator(training.device, training.seed, "diagnostics", training.epochs_done)
        found = gradient_quality(
            training.trainer,
            training.model,
            training.loss_fn,
            inputs,
            labels,
            generator,
            self.config.diagnostics.draws,
        )
        whole = found.pop(WHOLE)
        self.directory.write_layers(
            training.epochs_done + 1,
            [
                {
                    "layer": layer,
                    "noise": each.noise,
                    "cosine": each.cosine,
                    "gradient_norm": each.norm,
                    "unexplained": each.unexplained,
                }
                for layer, each in found.items()
            ],
        )
        return {"gradient_cosine": whole.cosine, "gradient_relative_error": math.sqrt(whole.noise)}

    def save(self) -> None:
        """Write a state file to resume from."""
        splits, training = self.training.splits, self.training.state_dict()
        if training["unsaved"] and self.world.is_main and not self._warned:
            self._warned = True
            print(
                f"fgbench: the model keeps {training['unsaved'][0]!r} where no state file can hold it, so "
                "this run cannot be resumed: make it a buffer",
                file=sys.stderr,
            )
        state = {
            "run": self.run,
            "data": splits.fingerprint.to_dict() if splits.fingerprint else None,
            "images": {"shape": list(splits.image_shape), "classes": splits.num_classes},
            "training": training,
            "rows": self.rows,
            "best": self.best,
        }
        if self.world.is_main:
            save_state(self.directory.path, state, self.config.saving.keep)


def has_diverged(train_loss: float = 0.0, *others: float) -> bool:
    """Whether training has diverged: a loss is not finite, or the training loss is above the limit."""
    return not all(map(math.isfinite, (train_loss, *others))) or train_loss > LARGEST_LOSS


def _training_columns(training: TrainingState) -> dict[str, Cell]:
    loss, accuracy, grad_norm = training.train_means()
    seconds, images = training.epoch_time_s, training.images_seen
    return {
        "epoch": training.epochs_done + 1,
        "train_loss": loss,
        "train_accuracy": accuracy,
        "lr": training.epoch_lr,
        "epoch_time_s": seconds,
        "batch_time_ms": 1000 * seconds / training.batches_done,
        "samples_per_s": images / seconds,
        "grad_norm": grad_norm,
    }


def _evaluation_columns(training: TrainingState) -> dict[str, Cell]:
    columns: dict[str, Cell] = {}
    for part, split in (("val", training.splits.validation), ("test", training.splits.test)):
        if len(split):
            columns[f"{part}_loss"], columns[f"{part}_accuracy"] = evaluate(
                training.model, training.loss_fn, split
            )
    return columns


def cpu_step_memory(config: Config, splits: Splits, world: World | None = None) -> float:
    """Peak memory of one step, MiB, measured on a second copy of everything: the run is not affected."""
    training = build_training(config, torch.device("cpu"), splits, world)

    def step() -> None:
        training.batches_done = 0
        train_epoch(training, after_step=lambda: True)

    step()  # the optimizer creates its state
    return measure.step_memory(step, training.model, training.optimizer, training.trainer)
