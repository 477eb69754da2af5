"""The progress of the runs in a folder."""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fgbench.analysis.formats import Format
from fgbench.analysis.readings import counted
from fgbench.analysis.records import Results, RunRecord
from fgbench.analysis.rendering import Table, render
from fgbench.formatting import format_number
from fgbench.storage.run_directory import STATES


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        path: its run directory.
        state: one of ``STATES``; one whose process has died is interrupted.
        epoch: epochs done.
        epochs: epochs asked for.
        epoch_s: seconds for an epoch, evaluation included: a median; None if unknown.
        left_s: seconds a running run will take; None for others, or if unknown.
        heard_s: seconds since its last sign of life; None if unknown.
        reason: why it stopped, if known.
        tags: the tags in its config.
    """

    path: Path
    state: str
    epoch: int
    epochs: int
    epoch_s: float | None
    left_s: float | None
    heard_s: float | None
    reason: str
    tags: tuple[str, ...] = ()


def progress(run: RunRecord, now: datetime | None = None) -> Progress:
    """The progress of a run.

    Args:
        run: its record.
        now: the time; the clock's by default.
    """
    steady = run.metrics[counted(run, run.last_epoch)]
    pace = float((steady["epoch_time_s"] + steady["eval_time_s"].fillna(0)).median())
    epoch_s = None if pace != pace else pace
    epochs = int(run.config.get("epochs", run.last_epoch))
    running = run.state == "running" and epoch_s is not None
    return Progress(
        path=run.path,
        state=run.state,
        epoch=run.last_epoch,
        epochs=epochs,
        epoch_s=epoch_s,
        left_s=(epochs - run.last_epoch) * epoch_s if running and epoch_s is not None else None,
        heard_s=_seconds_since(run.status.get("heartbeat"), now or datetime.now(UTC)),
        reason=" ".join(str(run.status.get("reason") or "").split()),
        tags=run.tags,
    )


def status_report(
    results: Results, root: Path, form: Format | str = Format.text, now: datetime | None = None
) -> str:
    """The output of ``fgbench status``: a row for every run, running ones first, and a line of counts."""
    order = {state: index for index, state in enumerate(("running", "interrupted", "failed"))}
    rows = sorted(
        (progress(run, now) for run in results.runs), key=lambda each: order.get(each.state, len(order))
    )
    head = ["run", "state", "epoch", "s/epoch", "time left", "last heard", "tags", "reason"]
    unread = [[_name(path, root), "unreadable", *"-----", why] for path, why in results.unread.items()]
    table = Table("", head, [*unread, *(_cells(each, root) for each in rows)])
    if Format(form).is_data:
        return render([table], form)
    counts = Counter(each.state for each in rows)
    counted = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    line = f"{len(rows)} run{'s' * (len(rows) != 1)}: {counted}."
    if unread:
        line += f" {len(unread)} more cannot be read."
    if left := [each.left_s for each in rows if each.left_s is not None]:
        line += f" The last of those running is done in about {duration(max(left))}."
    if counts["interrupted"]:
        line += " The command that started an interrupted run also resumes it."
    chosen = f"{results.chosen} " if results.chosen else ""
    return f"{render([table], form)}\n\n{chosen}{line}"


def _cells(run: Progress, root: Path) -> list[str]:
    return [
        _name(run.path, root),
        run.state,
        f"{run.epoch}/{run.epochs}",
        "-" if run.epoch_s is None else format_number(run.epoch_s, ".1f"),
        "-" if run.left_s is None else duration(run.left_s),
        "-" if run.heard_s is None else f"{duration(run.heard_s)} ago",
        " ".join(run.tags) or "-",
        run.reason,
    ]


def _name(path: Path, root: Path) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def duration(seconds: float) -> str:
    """A length of time, in its two largest units.

    >>> duration(42), duration(3700), duration(200000)
    ('42 s', '1 h 1 min', '2 d 7 h')
    """
    whole = round(max(0.0, seconds))
    for large, small, size, part in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= size:
            return f"{whole // size} {large} {whole % size // part} {small}"
    return f"{whole} s"


def _seconds_since(timestamp: object, now: datetime) -> float | None:
    try:
        return (now - datetime.fromisoformat(str(timestamp))).total_seconds()
    except (TypeError, ValueError):
        return None
