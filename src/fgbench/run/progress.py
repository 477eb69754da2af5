"""What a run shows while it trains."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from fgbench.formatting import format_number
from fgbench.run.loop import TrainingState
from fgbench.storage.metrics import Cell

REFRESH_S = 0.5


class EpochProgress:
    """A progress bar over an epoch's batches with loss and accuracy (on a terminal), and a line at its end.

    The values are fetched from the device at most twice a second, never per step.
    """

    def __init__(self, training: TrainingState, epochs: int) -> None:
        self.training = training
        self.title = f"epoch {training.epochs_done + 1}/{epochs}"
        self._due = time.monotonic() + REFRESH_S
        self.bar = tqdm(
            total=training.batches_per_epoch,
            initial=training.batches_done,
            desc=self.title,
            unit="batch",
            leave=False,
            disable=training.workers.rank > 0 or not sys.stderr.isatty(),
        )

    def update(self) -> None:
        """Called after every step; almost always does nothing."""
        if self.bar.disable or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + REFRESH_S
        loss, accuracy, _ = self.training.train_means(own=True)
        self.bar.set_postfix(loss=format_number(loss, ".4f"), accuracy=f"{accuracy:.3f}", refresh=False)
        self.bar.update(self.training.batches_done - self.bar.n)

    def __enter__(self) -> "EpochProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def report(self, row: Mapping[str, Cell]) -> None:
        """Print the line of a finished epoch."""
        loss = float(row["train_loss"] or 0.0)
        words = [f"loss {format_number(loss, '.4f')}", f"accuracy {row['train_accuracy']:.4f}"]
        if row.get("val_accuracy") is not None:
            words.append(f"validation {row['val_accuracy']:.4f}")
        words += [f"test {row['test_accuracy']:.4f}", f"{row['epoch_time_s']:.1f} s"]
        if row.get("peak_memory_mib") is not None:
            words.append(f"{row['peak_memory_mib']:.0f} MiB")
        print(f"{self.title}  " + "  ".join(words), flush=True)
