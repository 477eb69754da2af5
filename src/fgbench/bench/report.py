"""The output of ``fgbench bench``: a table, a CSV, a JSON file, a figure."""

import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from fgbench.formatting import format_number
from fgbench.plotting.style import STYLE, save_figure, trainer_hue
from fgbench.storage.files import atomic_write

NOISY_SPREAD = 0.15
"""A measurement is not trusted if backprop's step time spreads more than this, relative to its median."""


@dataclass(frozen=True)
class BenchRow:
    """One case on one model and batch size; times in seconds, one per round (the same rounds for all cases).

    ``bare_s`` are the times of the step alone, for a case inside the training loop; its memory is not
    measured. ``best_backprop_s`` are the times of backprop in its fastest form, ``best_backprop_mib`` is its
    memory in its leanest form without recomputation, and ``best_backprop`` says which these are. ``gflop``
    counts the operations of matrix products and convolutions, 0 if they cannot be counted.
    ``uses_backwards`` says what the step uses backwards. ``note`` says why a case was not measured; it has no
    times then.
    """

    model: str
    batch_size: int
    case: str
    uses_backwards: str = ""
    times_s: tuple[float, ...] = ()
    forward_s: tuple[float, ...] = ()
    backprop_s: tuple[float, ...] = ()
    bare_s: tuple[float, ...] = ()
    sampling_s: tuple[float, ...] = ()
    update_s: tuple[float, ...] = ()
    gflop: float = 0.0
    peak_memory_mib: float = 0.0
    parameters_mib: float = 0.0
    gradients_mib: float = 0.0
    optimizer_mib: float = 0.0
    tangents_mib: float = 0.0
    activations_mib: float = 0.0
    memory_to_forward: float = 0.0
    memory_to_backprop: float = 0.0
    best_backprop_s: tuple[float, ...] = ()
    best_backprop_mib: float = 0.0
    best_backprop: str = ""
    note: str = ""

    def columns(self) -> dict[str, Any]:
        """The row of the CSV; cells that do not apply are empty."""
        first = {"model": self.model, "batch_size": self.batch_size, "case": self.case}
        first |= {"uses_backwards": self.uses_backwards}
        if not self.times_s:
            return first | {"note": self.note}
        values: dict[str, float | None] = {
            "step_time_ms": 1000 * statistics.median(self.times_s),
            "step_time_spread_ms": 1000 * spread(self.times_s),
            "rounds": len(self.times_s),
            "time_to_forward": ratio(self.times_s, self.forward_s),
            "time_to_backprop": ratio(self.times_s, self.backprop_s),
            "time_to_best_backprop": ratio(self.times_s, self.best_backprop_s)
            if self.best_backprop_s
            else None,
            "sampling_time_ms": 1000 * statistics.median(self.sampling_s) if self.sampling_s else None,
            "update_time_ms": 1000 * statistics.median(self.update_s) if self.update_s else None,
            "time_to_bare_step": ratio(self.times_s, self.bare_s) if self.bare_s else None,
        }
        if self.peak_memory_mib:
            values |= {
                "gflop": self.gflop or None,
                "peak_memory_mib": self.peak_memory_mib,
                "parameters_mib": self.parameters_mib,
                "gradients_mib": self.gradients_mib,
                "optimizer_mib": self.optimizer_mib,
                "tangents_mib": self.tangents_mib,
                "activations_mib": self.activations_mib,
                "memory_to_forward": self.memory_to_forward,
                "memory_to_backprop": self.memory_to_backprop,
                "memory_to_best_backprop": self.peak_memory_mib / self.best_backprop_mib
                if self.best_backprop_mib
                else None,
            }
        rounded = {
            key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()
        }
        return first | rounded | {"best_backprop": self.best_backprop}


def name_best_backprop(rows: Sequence[BenchRow]) -> list[BenchRow]:
    """The rows of one model and batch size, with the best of backprop's forms to compare each with.

    In time the fastest of all; in memory the smallest without recomputation, and the smallest of all.
    """
    forms = [row for row in rows if row.case.partition(",")[0] == "backprop" and row.peak_memory_mib]
    fastest = min(forms, key=lambda row: statistics.median(row.times_s))
    leanest = min((row for row in forms if "recompute" not in row.case), key=lambda row: row.peak_memory_mib)
    least = min(forms, key=lambda row: row.peak_memory_mib)
    names = (
        f"time: {fastest.case}; memory without recomputation: {leanest.case}; "
        f"least memory: {least.case}, {least.peak_memory_mib:.1f} MiB"
    )
    best: dict[str, Any] = {
        "best_backprop_s": fastest.times_s,
        "best_backprop_mib": leanest.peak_memory_mib,
        "best_backprop": names,
    }
    return [row if row.bare_s else replace(row, **best) for row in rows]


def ratio(times: Sequence[float], base: Sequence[float]) -> float:
    """Median over rounds of a time divided by the base's time in the same round."""
    return statistics.median(a / b for a, b in zip(times, base, strict=True))


def spread(times: Sequence[float]) -> float:
    """Distance between the quartiles."""
    if len(times) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return high - low


def noise(rows: Sequence[BenchRow], load: str | None) -> str | None:
    """Why the times cannot be trusted; None if they can."""
    reasons = [load] if load else []
    for row in rows:
        if row.case != "backprop" or not row.times_s:
            continue
        relative = spread(row.times_s) / statistics.median(row.times_s)
        if relative > NOISY_SPREAD:
            reasons.append(
                f"backprop's step time on {row.model} (batch {row.batch_size}) spreads over "
                f"{100 * relative:.0f} % of its median"
            )
    return "; ".join(reasons) or None


def write_report(rows: Sequence[BenchRow], environment: dict[str, Any], load: str | None, out: Path) -> str:
    """Write ``bench.csv``, ``.json`` (with the environment), ``.png`` and ``.svg``; returns what to print."""
    noisy = noise(rows, load)
    out.mkdir(parents=True, exist_ok=True)
    columns = [row.columns() for row in rows]
    keys = list(dict.fromkeys(key for each in columns for key in each))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*keys, *([] if "note" in keys else ["note"])], lineterminator="\n")
    writer.writeheader()
    writer.writerows(columns)
    atomic_write(out / "bench.csv", text.getvalue())
    document = {"environment": environment, "noise": noisy, "rows": columns}
    atomic_write(out / "bench.json", json.dumps(document, indent=1) + "\n")
    figure = draw(rows)
    for ending in ("png", "svg"):
        save_figure(figure, out / f"bench.{ending}")
    lines = [f"written: {out}/bench.csv, bench.json, bench.png, bench.svg"]
    if noisy:
        lines.append(f"TOO NOISY TO TRUST: {noisy}")
    return "\n".join(lines)


def table(rows: Sequence[BenchRow]) -> str:
    """All cases, a block for each model and batch size.

    Ratios are to a forward pass (R), to backprop as it is usually written, to backprop in its best form
    (which a line below says) and, inside the training loop, to the bare step.
    """
    head = (
        "",
        "step ms",
        "+-",
        "R",
        "/backprop",
        "/best",
        "/bare",
        "sampling",
        "update",
        "GFLOP",
        "MiB",
        "/forward",
        "/backprop",
        "/best",
        "uses backwards",
    )
    lines = []
    for (model, size), group in groupby(rows, key=lambda row: (row.model, row.batch_size)):
        body: list[tuple[str, ...]] = [(f"{model}, batch {size}", *head[1:])]
        best = ""
        for row in group:
            best = best or row.best_backprop
            values = row.columns()
            cells = [
                _cell(values.get(key), digits)
                for key, digits in (
                    ("step_time_ms", 2),
                    ("step_time_spread_ms", 2),
                    ("time_to_forward", 2),
                    ("time_to_backprop", 2),
                    ("time_to_best_backprop", 2),
                    ("time_to_bare_step", 2),
                    ("sampling_time_ms", 2),
                    ("update_time_ms", 2),
                    ("gflop", 2),
                    ("peak_memory_mib", 1),
                    ("memory_to_forward", 2),
                    ("memory_to_backprop", 2),
                    ("memory_to_best_backprop", 2),
                )
            ]
            cells.append(row.uses_backwards)
            body.append((row.case, *cells) if row.times_s else (row.case, f"not measured: {row.note}"))
        widths = [max(len(line[i]) for line in body if len(line) > 2) for i in range(len(head))]
        for line in body:
            cells = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=False)]
            shown = cells if len(line) > 2 else line[1:]
            lines.append("  ".join([line[0].ljust(widths[0]), *shown]).rstrip())
        lines += [f"best backprop: {best}", ""] if best else [""]
    return "\n".join(lines)


def _cell(value: Any, digits: int) -> str:
    return "" if value is None else format_number(value, f".{digits}f")


def draw(rows: Sequence[BenchRow]) -> Figure:
    """Bars of step time and peak memory against backprop's, a column of panels for each model."""
    groups = [
        (key, list(group))
        for key, group in groupby(
            (row for row in rows if row.times_s and not row.bare_s),
            key=lambda row: (row.model, row.batch_size),
        )
    ]
    cases = list(dict.fromkeys(row.case for _, group in groups for row in group))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.2 + 2.6 * len(groups), 1.2 + 0.4 * len(cases)), layout="constrained")
        axes = figure.subplots(2, len(groups), squeeze=False, sharey=True)
        for column, ((model, size), group) in enumerate(groups):
            for row_axes, key, label in (
                (axes[0][column], "time_to_backprop", "step time / backprop's"),
                (axes[1][column], "memory_to_backprop", "peak memory / backprop's"),
            ):
                values = {row.case: float(row.columns()[key]) for row in group}
                _draw_bars(row_axes, cases, values)
                row_axes.set_xlabel(label)
                row_axes.tick_params(axis="y", labelleft=column == 0)
            axes[0][column].set_title(f"{model}, batch {size}")
        axes[0][0].set_yticks(range(len(cases)), cases)
        axes[0][0].invert_yaxis()
    return figure


def _draw_bars(axes: Any, cases: Sequence[str], values: dict[str, float]) -> None:
    """A bar for each case with its value; an arrow where the bar exceeds the panel."""
    limit = 1.15 * min(max(values.values()), 4)
    for place, case in enumerate(cases):
        value = values.get(case)
        axes.barh(place, value or 0, color=_hue(case), height=0.7)
        inside = value is None or value < 0.9 * limit
        axes.annotate(
            "not measured"
            if value is None
            else format_number(value, ".2f") + (" →" if value > limit else ""),
            (min(value or 0, limit), place),
            xytext=(2 if inside else -2, 0),
            textcoords="offset points",
            ha="left" if inside else "right",
            va="center",
            fontsize=6,
            color="black" if inside else "white",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.3} if inside else None,
        )
    axes.axvline(1, color="0.3", linewidth=0.7, linestyle="--", zorder=0.5)
    axes.set_xlim(0, limit)
    axes.grid(axis="y", visible=False)


def _hue(case: str) -> str:
    if case.startswith(("forward only", "textbook")):
        return "#7A7A7A"
    return trainer_hue(case.split(",")[0])
