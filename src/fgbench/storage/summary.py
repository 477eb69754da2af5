"""A run's summary, from its rows."""

from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import median
from typing import Any

from fgbench.storage.metrics import COLUMNS, Cell, counted_epochs, select

FINAL = select("learnt")
MEDIANS = select("time", "energy", reading="median")
PEAKS = select("memory", reading="peak")


def summarise(rows: Sequence[dict[str, Cell]]) -> dict[str, Any]:
    """Final values, those at the best validation epoch, medians of times and peaks of memory.

    Args:
        rows: of metrics.csv, at least one. Medians are over the epochs that ``counted_epochs`` counts.

    Returns:
        Plain values, None where a column is empty.
    """
    last, notes = rows[-1], [str(row["timing_note"] or "") for row in rows]
    counted = [row for row, counts in zip(rows, counted_epochs(notes), strict=True) if counts]
    best = best_row(rows, "val_accuracy")
    return {
        "epochs": last["epoch"],
        "final": {column: last[column] for column in FINAL},
        "best_validation": best and {column: best[column] for column in ("epoch", *FINAL)},
        "median": {column: _over(median, counted, column) for column in MEDIANS},
        "peak": {column: _over(max, rows, column) for column in PEAKS},
        "memory_source": last["memory_source"],
        "total_time_s": last["elapsed_s"],
        "timing_notes": list(dict.fromkeys(row["timing_note"] for row in rows if row["timing_note"])),
    }


def best_row(
    rows: Sequence[Mapping[str, Cell]], metric: str, min_delta: float = 0.0
) -> Mapping[str, Cell] | None:
    """The first row that no later one improves on by more than ``min_delta``; None if no value is finite."""
    best: Mapping[str, Cell] | None = None
    for row in rows:
        value = row[metric]
        if not isinstance(value, float) or not isfinite(value):
            continue
        if best is None or COLUMNS[metric].gain(value - float(best[metric] or 0.0)) > min_delta:
            best = row
    return best


def _over(statistic: Any, rows: Sequence[dict[str, Cell]], column: str) -> float | None:
    values = [row[column] for row in rows if row[column] is not None]
    return statistic(values) if values else None
