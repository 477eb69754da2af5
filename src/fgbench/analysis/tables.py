"""Plain text tables."""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import isfinite, isnan
from statistics import fmean, stdev

from fgbench.analysis.readings import read
from fgbench.analysis.records import RunRecord
from fgbench.analysis.rendering import align
from fgbench.analysis.series import Series, group_series
from fgbench.formatting import format_number
from fgbench.storage.metrics import COLUMNS, Column

SHOWN = tuple(COLUMNS[name] for name in ("test_accuracy", "train_loss", "epoch_time_s", "peak_memory_mib"))
"""Columns of the closing table."""


def summary_table(records: Iterable[RunRecord]) -> str:
    """Final figures of every series, one table for each dataset and model; no newline at the end."""
    blocks = []
    all_records = list(records)
    notes = ["Mean ± standard deviation over seeds, at the last epoch; time: median of warm, quiet epochs."]
    if busy := sorted({note for run in all_records for note in run.notes("timing_note")}):
        more = f" (and {len(busy) - 1} more such notes in timing_note)" if len(busy) > 1 else ""
        notes.append(f"* in some epochs {busy[-1]}{more}")
    for (dataset, model), series in group_series(all_records).items():
        head = ["trainer", "uses backwards", "runs", "epochs", "tuned", *(column.title for column in SHOWN)]
        blocks.append(f"{model} on {dataset}\n" + align(head, list(map(_row, series))))
    return "\n\n".join(blocks) + "\n" + "\n".join(notes)


def describe_runs(series: Series) -> str:
    """How many runs there are, and how many of them diverged or did not finish: ``3 (1 diverged)``."""
    unfinished = Counter(
        "stopped early" if run.stopped_early else run.state
        for run in series.runs
        if run.state != "finished" or run.stopped_early
    )
    counted = ", ".join(
        state if len(series.runs) == 1 else f"{count} {state}" for state, count in unfinished.items()
    )
    return f"{len(series.runs)} ({counted})" if counted else str(len(series.runs))


def _row(series: Series) -> list[str]:
    runs = series.averaged
    epochs = sorted({run.last_epoch for run in runs}) or [0]
    cells = [_mean(runs, column) for column in SHOWN]
    if any(run.notes("timing_note") for run in runs):
        cells[2] += " *"
    tuned = "yes" if all(run.config.get("tuned") for run in series.runs) else "no"
    span = "-".join(map(str, epochs[:1] + epochs[1:][-1:]))
    return [series.label, series.uses_backwards, describe_runs(series), span, tuned, *cells]


def _mean(runs: Sequence[RunRecord], column: Column) -> str:
    """The mean over runs; a dash where nothing was measured, and no mean of those that survived alone."""
    values = [read(run, column) for run in runs]
    if any(run.state == "diverged" and not isfinite(value) for run, value in zip(runs, values, strict=True)):
        return "diverged"
    values = [value for value in values if not isnan(value)]
    if not values:
        return "-"
    spread = f" ± {format_number(stdev(values), column.form)}" if len(values) > 1 else ""
    return f"{format_number(fmean(values), column.form)}{spread}"
