"""The columns of metrics.csv: what each holds, and how it is reduced to one number."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Cell = int | float | str | None


@dataclass(frozen=True)
class Column:
    """A column of metrics.csv: one value per epoch.

    Attributes:
        name: in the file.
        label: its name in tables and figures.
        kind: what it measures: how well the network has learnt, how good its gradient was, what an epoch
            cost, or the conditions it was trained under.
        reading: how a run's value up to an epoch is read: ``last``: the value at that epoch (none for a
            diverged run); ``latest``: the last one measured until then (none for a diverged run);
            ``median``: over the epochs that :func:`counted_epochs` counts; ``peak``: the largest.
        form: format of a value.
        better: the better direction; empty where there is none and the column is not compared.
        unit: empty for a bare number.
        words: how tables say better, worse or the same.
    """

    name: str
    label: str
    kind: Literal["learnt", "gradient", "time", "energy", "memory", "traffic", "setting", "text"]
    reading: Literal["last", "latest", "median", "peak"] = "last"
    form: str = ".4f"
    better: Literal["higher", "lower", ""] = ""
    unit: str = ""
    words: tuple[str, str, str] = ("better", "worse", "the same")

    @property
    def title(self) -> str:
        """The label with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def learns(self) -> bool:
        """Whether it measures how well a network has learnt, not what that cost."""
        return self.reading in ("last", "latest")

    @property
    def timed(self) -> bool:
        """Whether it is measured over a time span, so that other work on the machine disturbs it."""
        return self.kind in ("time", "energy")

    def gain(self, difference: float) -> float:
        """The difference, with the sign that makes an improvement positive."""
        return difference if self.better == "higher" else -difference


_ACCURATE = ("more accurate", "less accurate", "as accurate")

COLUMNS: dict[str, Column] = {
    column.name: column
    for column in (
        Column("epoch", "epoch", "setting", form="d"),
        Column("train_loss", "training loss", "learnt", better="lower"),
        Column("train_accuracy", "training accuracy", "learnt", better="higher"),
        Column("val_loss", "validation loss", "learnt", better="lower"),
        Column("val_accuracy", "validation accuracy", "learnt", better="higher"),
        Column("test_loss", "test loss", "learnt", better="lower"),
        Column("test_accuracy", "test accuracy", "learnt", better="higher", words=_ACCURATE),
        Column("lr", "learning rate", "setting", form="g"),
        Column(
            *("epoch_time_s", "time per epoch", "time", "median", ".3f", "lower", "s"),
            words=("faster", "slower", "as fast"),
        ),
        Column("eval_time_s", "evaluation time", "time", "median", ".3f", unit="s"),
        Column("batch_time_ms", "time per batch", "time", "median", ".3f", "lower", "ms"),
        Column("samples_per_s", "samples per second", "time", "median", ".0f", "higher"),
        Column(
            *("peak_memory_mib", "peak memory", "memory", "peak", ".1f", "lower", "MiB"),
            words=("less memory", "more memory", "as much memory"),
        ),
        Column("memory_source", "what measured the memory", "text"),
        Column("grad_norm", "norm of the gradient", "gradient"),
        Column("elapsed_s", "time since the start", "time", "last", ".1f", unit="s"),
        Column("nvml_memory_mib", "process memory", "memory", "peak", ".0f", "lower", "MiB"),
        Column("bytes_sent_per_step", "bytes sent per step", "traffic", "median", ".0f", "lower"),
        Column("gradient_cosine", "cosine to the true gradient", "gradient", "latest", better="higher"),
        Column("gradient_relative_error", "relative error of the gradient", "gradient", "latest"),
        Column(
            *("energy_j", "energy of the GPUs per epoch", "energy", "median", ".1f", "lower", "J"),
            words=("less energy", "more energy", "as much energy"),
        ),
        Column("timing_note", "why a time may be disturbed", "text"),
    )
}
"""Every column, in the order of the file. Accuracies are fractions in 0..1; a cell that does not apply is
empty, never 0."""


def select(*kinds: str, reading: str = "") -> tuple[str, ...]:
    """The names of the columns of the given kinds, and of the given reading if any."""
    return tuple(
        name
        for name, column in COLUMNS.items()
        if column.kind in kinds and (not reading or column.reading == reading)
    )


METRICS = tuple(COLUMNS)
TEXT_COLUMNS = select("text")
LOSSES = tuple(name for name in select("learnt") if name.endswith("loss"))


def counted_epochs(notes: Sequence[str | None]) -> list[bool]:
    """Which of a run's epochs enter a median.

    The first is left out, because it includes the warm-up; so are those timed while other work kept the
    machine busy, as long as any epochs remain. A single epoch always counts.

    Args:
        notes: ``timing_note`` of each epoch from the first; None where the machine was quiet.
    """
    warm = [index > 0 or len(notes) == 1 for index in range(len(notes))]
    quiet = [is_warm and not note for is_warm, note in zip(warm, notes, strict=True)]
    return quiet if any(quiet) else warm
