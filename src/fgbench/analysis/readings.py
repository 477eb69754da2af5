"""What can be compared, and how it is read from a run at an epoch or at a time. Imports no torch."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fgbench.analysis.records import RunRecord

NAN = float("nan")

NEGLIGIBLE = {"accuracy": 0.005, "loss": 0.01}
NEGLIGIBLE_RATIO = 1.02
"""A difference, or a ratio of costs, whose whole interval is within this of none counts as none."""

CHANCE_MARGIN = 0.02
"""An accuracy this little above that of guessing counts as chance: two standard errors on 1,000 images."""


@dataclass(frozen=True)
class Measure:
    """A column of metrics.csv that one trainer can be better at than another.

    Attributes:
        column: its name in metrics.csv.
        title: with its unit.
        better: the better direction.
        reading: ``last``: the value at an epoch, which a diverged run has none of; ``median``: of the epochs
            up to it without the first (warm-up) and those timed beside other work; ``peak``: up to it.
        form: how a value is written.
    """

    column: str
    title: str
    better: Literal["higher", "lower"]
    reading: Literal["last", "median", "peak"]
    form: str

    @property
    def learns(self) -> bool:
        """Whether it tells how well a network has learnt, not what that cost."""
        return self.reading == "last"

    @property
    def timed(self) -> bool:
        """Whether it comes from a clock, which other work on the machine disturbs."""
        return self.column in ("epoch_time_s", "batch_time_ms", "samples_per_s")

    def gain(self, difference: float) -> float:
        """The difference, positive where it is for the better."""
        return difference if self.better == "higher" else -difference


MEASURES: dict[str, Measure] = {
    measure.column: measure
    for measure in (
        Measure("test_accuracy", "test accuracy", "higher", "last", ".4f"),
        Measure("val_accuracy", "validation accuracy", "higher", "last", ".4f"),
        Measure("train_accuracy", "training accuracy", "higher", "last", ".4f"),
        Measure("test_loss", "test loss", "lower", "last", ".4f"),
        Measure("val_loss", "validation loss", "lower", "last", ".4f"),
        Measure("train_loss", "training loss", "lower", "last", ".4f"),
        Measure("gradient_cosine", "cosine to the true gradient", "higher", "last", ".4f"),
        Measure("epoch_time_s", "time per epoch (s)", "lower", "median", ".3f"),
        Measure("batch_time_ms", "time per batch (ms)", "lower", "median", ".3f"),
        Measure("samples_per_s", "samples per second", "higher", "median", ".0f"),
        Measure("peak_memory_mib", "peak memory (MiB)", "lower", "peak", ".1f"),
        Measure("nvml_memory_mib", "process memory (MiB)", "lower", "peak", ".0f"),
        Measure("bytes_sent_per_step", "bytes sent per step", "lower", "median", ".0f"),
    )
}


def negligible(measure: Measure) -> float:
    """The largest difference, or logarithm of a ratio, that is as good as none."""
    return NEGLIGIBLE.get(measure.column.rpartition("_")[2], math.log(NEGLIGIBLE_RATIO))


def read(run: RunRecord, measure: Measure, epoch: int) -> float:
    """The run's value at the end of ``epoch``; NaN where there is none, as for loss once it has diverged."""
    count = _count_epochs(run, epoch)
    values = run.metrics[measure.column].to_numpy(float)[:count]
    if measure.reading == "last":
        ended = epoch > run.last_epoch or has_diverged(run, epoch)
        return NAN if ended or not count else float(values[-1])
    if measure.reading == "median":
        quiet = _quiet(run, epoch)
        values = values[quiet] if quiet.any() else values[-max(1, count - 1) :]
    known = values[~np.isnan(values)]
    if not len(known):
        return NAN
    return float(known.max() if measure.reading == "peak" else np.median(known))


def _count_epochs(run: RunRecord, epoch: int) -> int:
    return int(np.searchsorted(run.metrics["epoch"].to_numpy(), epoch, side="right"))


def _quiet(run: RunRecord, epoch: int) -> np.ndarray:
    """Which of the epochs up to ``epoch`` were timed warm and with the machine to themselves."""
    quiet = run.metrics["timing_note"].isna().to_numpy(copy=True)[: _count_epochs(run, epoch)]
    if len(quiet) > 1:
        quiet[0] = False
    return quiet


def quiet_epochs(run: RunRecord, epoch: int) -> int:
    """How many epochs up to ``epoch`` were timed warm and with the machine to themselves."""
    return int(_quiet(run, epoch).sum())


def disturbed_epochs(run: RunRecord, epoch: int) -> int:
    """How many epochs up to ``epoch`` were timed while other work kept the machine busy."""
    return int(run.metrics.loc[run.metrics["epoch"] <= epoch, "timing_note"].notna().sum())


def has_diverged(run: RunRecord, epoch: int) -> bool:
    """Whether the run's loss was no number any more by the end of ``epoch``."""
    return run.state == "diverged" and epoch >= run.last_epoch


def at_chance(run: RunRecord, epoch: int) -> bool:
    """Whether no accuracy measured at ``epoch`` is above that of guessing, by more than ``CHANCE_MARGIN``.

    False where nothing was measured, or the number of classes is unknown.
    """
    classes = run.num_classes
    accuracies = [read(run, MEASURES[f"{part}_accuracy"], epoch) for part in ("train", "val", "test")]
    known = [value for value in accuracies if not math.isnan(value)]
    return bool(known and classes and max(known) <= 1 / classes + CHANCE_MARGIN)


def training_time(run: RunRecord) -> np.ndarray:
    """Seconds of training alone, evaluation left out, by the end of every epoch."""
    return run.metrics["epoch_time_s"].to_numpy(float).cumsum()


def epochs_within(run: RunRecord, seconds: float) -> int:
    """The last epoch that was finished within so many seconds of training; 0 for none."""
    done = run.metrics["epoch"][training_time(run) <= seconds * (1 + 1e-9)]
    return int(done.iloc[-1]) if len(done) else 0


def time_to(run: RunRecord, measure: Measure, target: float) -> float:
    """Seconds of training by the end of the first epoch that is as good as ``target``; infinite for none."""
    gains = run.metrics[measure.column].to_numpy(float) - target
    reached = gains >= 0 if measure.better == "higher" else gains <= 0
    return float(training_time(run)[reached.argmax()]) if reached.any() else math.inf


def best(run: RunRecord, measure: Measure) -> float:
    """The best value over all epochs; NaN where there is none."""
    values = run.metrics[measure.column].to_numpy(float)
    known = values[np.isfinite(values)]
    if not len(known):
        return NAN
    return float(known.max() if measure.better == "higher" else known.min())
