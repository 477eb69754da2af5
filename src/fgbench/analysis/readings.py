"""The measures that can be compared, and how they are read from a run at an epoch or a time."""

import math

import numpy as np

from fgbench.analysis.records import RunRecord
from fgbench.storage.metrics import COLUMNS, Column, counted_epochs

NAN = float("nan")

NEGLIGIBLE = {"accuracy": 0.005, "loss": 0.01}
NEGLIGIBLE_RATIO = 1.02
"""A difference, or a ratio of costs, whose whole interval is within this of none counts as none.

Conventions of this project; 0.005 of accuracy is 50 of 10,000 test images.
"""

PASSES_TOLERANCE = 1.02
"""A run fits a budget of forward passes that it exceeds by no more than this factor, so that no whole epoch
is lost for the few operations that one loss takes more than another."""

CHANCE_MARGIN = 0.02
"""An accuracy within this of guessing counts as chance level: two standard errors on 1,000 images."""


MEASURES: dict[str, Column] = {name: column for name, column in COLUMNS.items() if column.better}
"""The columns by which trainers are compared."""


def negligible(measure: Column) -> float:
    """The largest difference, or logarithm of a ratio, that counts as negligible."""
    return NEGLIGIBLE.get(measure.name.rpartition("_")[2], math.log(NEGLIGIBLE_RATIO))


def read(run: RunRecord, column: Column | str, epoch: int | None = None) -> float:
    """A run's value of a column: the one number that figures, tables, verdicts and reports all give.

    Args:
        run: the run.
        column: the column, which defines how it is read.
        epoch: up to which epoch; by default the last. A run that stopped early keeps its final value.

    Returns:
        The value; NaN if there is none, as for an accuracy after the run has diverged.
    """
    measure = COLUMNS[column] if isinstance(column, str) else column
    epoch = run.last_epoch if epoch is None else epoch
    count = _count_epochs(run, epoch)
    values = run.metrics[measure.name].to_numpy(float)[:count]
    if measure.learns:
        ended = (epoch > run.last_epoch and not run.stopped_early) or has_diverged(run, epoch)
        values = values[~np.isnan(values)] if measure.reading == "latest" else values
        return NAN if ended or not len(values) else float(values[-1])
    if measure.reading == "median":
        values = values[counted(run, epoch)]
    known = values[~np.isnan(values)]
    if not len(known):
        return NAN
    return float(known.max() if measure.reading == "peak" else np.median(known))


def epochs_measured(run: RunRecord, column: Column, epoch: int) -> set[int]:
    """The epochs up to ``epoch`` at which a column was measured."""
    known = run.metrics["epoch"][run.metrics[column.name].notna()]
    return {each for each in known.to_list() if each <= epoch}


def _count_epochs(run: RunRecord, epoch: int) -> int:
    return int(np.searchsorted(run.metrics["epoch"].to_numpy(), epoch, side="right"))


def counted(run: RunRecord, epoch: int) -> np.ndarray:
    """Which of the epochs up to ``epoch`` a median counts; see :func:`counted_epochs`."""
    notes = run.metrics["timing_note"].to_list()[: _count_epochs(run, epoch)]
    return np.array(counted_epochs([note if isinstance(note, str) else None for note in notes]), dtype=bool)


def quiet_epochs(run: RunRecord, epoch: int) -> int:
    """How many epochs up to ``epoch`` were timed after the warm-up on an otherwise idle machine."""
    disturbed = run.metrics["timing_note"].notna().to_numpy()[: _count_epochs(run, epoch)]
    return int((counted(run, epoch) & ~disturbed).sum())


def disturbed_epochs(run: RunRecord, epoch: int) -> int:
    """How many epochs up to ``epoch`` were timed while other work kept the machine busy."""
    return int(run.metrics.loc[run.metrics["epoch"] <= epoch, "timing_note"].notna().sum())


def has_diverged(run: RunRecord, epoch: int) -> bool:
    """Whether the run had diverged by the end of ``epoch``."""
    return run.state == "diverged" and epoch >= run.last_epoch


def at_chance(run: RunRecord, epoch: int) -> bool:
    """Whether no accuracy measured at ``epoch`` is above that of guessing, by more than ``CHANCE_MARGIN``.

    False where nothing was measured, or the number of classes is unknown.
    """
    gains = [read(run, f"{part}_accuracy", epoch) - run.chance(part) for part in ("train", "val", "test")]
    known = [gain for gain in gains if not math.isnan(gain)]
    return bool(known) and max(known) <= CHANCE_MARGIN


def training_time(run: RunRecord) -> np.ndarray:
    """Seconds of training alone, evaluation left out, by the end of every epoch."""
    return run.metrics["epoch_time_s"].to_numpy(float).cumsum()


def epochs_within(run: RunRecord, seconds: float) -> int:
    """The last epoch finished within this many seconds of training; 0 if none."""
    done = run.metrics["epoch"][training_time(run) <= seconds * (1 + 1e-9)]
    return int(done.iloc[-1]) if len(done) else 0


def passes_over_data(run: RunRecord, epoch: int) -> float:
    """The cost of training up to the end of ``epoch``, in forward passes of all training images.

    An epoch costs as many of these as a step costs forward passes of its batch; NaN if not counted.
    """
    return epoch * run.forward_passes_per_step


def epochs_within_passes(run: RunRecord, passes: float) -> int:
    """The last epoch finished within this many forward passes of all training images; 0 if none.

    ``PASSES_TOLERANCE`` more count as as many.
    """
    done = [int(e) for e in run.metrics["epoch"] if passes_over_data(run, e) <= passes * PASSES_TOLERANCE]
    return done[-1] if done else 0


def time_to(run: RunRecord, measure: Column, target: float) -> float:
    """Seconds of training by the end of the first epoch that is as good as ``target``; infinite for none."""
    gains = run.metrics[measure.name].to_numpy(float) - target
    reached = gains >= 0 if measure.better == "higher" else gains <= 0
    return float(training_time(run)[reached.argmax()]) if reached.any() else math.inf


def best(run: RunRecord, measure: Column) -> float:
    """The best value over all epochs; NaN where there is none."""
    values = run.metrics[measure.name].to_numpy(float)
    known = values[np.isfinite(values)]
    if not len(known):
        return NAN
    return float(known.max() if measure.better == "higher" else known.min())
