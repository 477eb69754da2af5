"""The run directory: the files of a run, written atomically, and a lock against other processes.

A run directory is the only interface between running and analysing; ``fgbench.analysis.series`` reads whole
folders of them.
"""

import csv
import errno
import fcntl
import io
import json
import math
import os
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fgbench.errors import ConfigError, FgbenchError
from fgbench.storage.files import append_line, atomic_write, refuse
from fgbench.storage.liveness import is_alive, read_holder, seconds_since
from fgbench.storage.metrics import METRICS, Cell
from fgbench.storage.rows import csv_line, from_text, intact_rows, row_line, to_text

LAYER_COLUMNS = ("epoch", "layer", "noise", "cosine", "gradient_norm", "unexplained")
"""Columns of layers.csv, a row per epoch and layer: R = E|g_hat - g|^2 / |g|^2, the cosine of g_hat and g,
|g|, and the share of the outputs' squared change under a perturbation of the layer that feedback matrices do
not explain (NaN for trainers without any)."""

CONFUSIONS = "confusion.csv"
"""The confusion matrix of the trained model on the test images: true classes by predicted classes."""

NO_STATUS = "no readable status.json"
"""Why a run without one counts as interrupted."""

STATES = ("running", "finished", "diverged", "interrupted", "failed")

TRIALS = "tuned/trials"
"""The folder, inside the results folder, of the runs that tuning chose among; they are not results."""

ENDED = {"finished": 0, "diverged": 4}
"""States of runs that are over, and the command's exit code for each."""

STALE_AFTER_S = 600.0
"""A running run whose heartbeat is older than this counts as killed."""

HEARTBEAT_EVERY_S = 30.0


def run_path(results_dir: str | Path, folder: str | Path) -> Path:
    """The path of a run directory, ``folder`` being relative to the results folder.

    Raises:
        ConfigError: ``folder`` leads out of the results folder.
    """
    parts = Path(folder).parts
    if not parts or Path(folder).is_absolute() or ".." in parts or "\0" in str(folder):
        raise ConfigError(
            f"run folder {str(folder)!r} must be a path inside the results folder {results_dir}"
        )
    return Path(results_dir, folder)


class RunDirectory:
    """One run's files. Reading needs nothing; writing needs ``create``, and should happen under ``lock``.

    Args:
        path: the folder.
        writes: whether this process of the run is the one that writes; in the others, every method that would
            change or lock the folder does nothing.
    """

    def __init__(self, path: str | Path, *, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes
        self.host = socket.gethostname()
        self._last_status: dict[str, Any] = {}
        self._last_beat = 0.0

    def check_place(self) -> None:
        """Check that the folder exists or can be created, without creating it.

        Raises:
            ConfigError: a file is in the way, or the path is not writable.
        """
        if not self.writes:
            return
        for place in (self.path, *self.path.parents):
            try:
                mode = place.stat().st_mode  # one look: another process may make the folder between two
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise ConfigError(f"cannot keep results in {self.path}: {error.strerror}: {place}") from error
            if not stat.S_ISDIR(mode):
                raise ConfigError(f"cannot keep results in {self.path}: {place} is a file, not a folder")
            if not os.access(place, os.W_OK | os.X_OK):
                raise ConfigError(f"cannot keep results in {self.path}: no permission to write in {place}")
            return

    def create(self) -> "RunDirectory":
        """Create the folder.

        Raises:
            ConfigError: a file is in the way, or the path is not writable.
        """
        self.check_place()
        try:
            if self.writes:
                self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot create {self.path}: {error.strerror}") from error
        return self

    @contextmanager
    def lock(self, *, force: bool = False) -> Iterator[None]:
        """Lock the run directory; the death of the process releases it.

        Args:
            force: take it even though another host seems to be running it.

        Raises:
            FgbenchError: another process holds it; names the host and the process.
        """
        if not self.writes:
            yield
            return
        try:
            file = (self.path / ".lock").open("a+")
        except OSError as error:
            refuse(self.path / ".lock", error)
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FgbenchError(
                    f"{self.path} is in use by {read_holder(file)}; this run was left alone"
                ) from None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    refuse(self.path / ".lock", error)
            with suppress(OSError):  # the name is for messages; the lock holds without it
                file.truncate(0)
                os.write(file.fileno(), f"process {os.getpid()} on {self.host}\n".encode())
            status = self.status()
            if status["state"] == "running" and status.get("host") != self.host and not force:
                raise FgbenchError(
                    f"{self.path} is in use by process {status.get('pid')} on {status.get('host')}, "
                    f"last heard of at {status.get('heartbeat')}; --force takes it over"
                )
            for leftover in self.path.glob("*.tmp"):
                leftover.unlink(missing_ok=True)
            yield

    def write_config(self, text: str) -> None:
        """Write the resolved config, as YAML text."""
        self._write("config.yaml", text)

    def write_env(self, env: Mapping[str, Any]) -> None:
        """Write machine, versions and settings, as ``describe_environment`` gives them."""
        self._write_json("env.json", env)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the final values; those that are not finite, which JSON has no number for, as null."""
        self._write_json("summary.json", summary)

    def delete_ending(self) -> None:
        """Delete what only a run that has ended has: summary.json and confusion.csv."""
        if self.writes:
            for name in ("summary.json", CONFUSIONS):
                (self.path / name).unlink(missing_ok=True)

    def write_status(self, state: str, **fields: Any) -> None:
        """Write the run's status, with this host, this process and the time.

        Args:
            state: one of ``STATES``.
            **fields: anything else worth recording, such as ``reason``, ``epoch``, ``epochs``.
        """
        if state not in STATES:
            raise ValueError(f"state {state!r}: expected one of {', '.join(STATES)}")
        self._last_status = {"state": state, **fields, "host": self.host, "pid": os.getpid()}
        heartbeat = datetime.now(UTC).isoformat(timespec="seconds")
        self._write_json("status.json", {**self._last_status, "heartbeat": heartbeat})
        self._last_beat = time.monotonic()

    def heartbeat(self) -> None:
        """Update the heartbeat if it is due; cheap enough to call after every step."""
        if self._last_status and time.monotonic() - self._last_beat >= HEARTBEAT_EVERY_S:
            fields = {key: value for key, value in self._last_status.items() if key not in ("host", "pid")}
            self.write_status(**fields)

    def status(self) -> dict[str, Any]:
        """The run's status; a run that says running but was killed reads as interrupted, with the reason.

        Returns:
            The keys of ``write_status`` and ``heartbeat`` (ISO 8601, UTC); always ``state``.
        """
        status = self._read_json("status.json")
        if status.get("state") not in STATES:
            return {**status, "state": "interrupted", "reason": NO_STATUS}
        if status["state"] != "running":
            return status
        reason = ""
        if seconds_since(status.get("heartbeat")) > STALE_AFTER_S:
            reason = f"no sign of life since {status.get('heartbeat')}"
        elif status.get("host") == self.host and not is_alive(status.get("pid")):
            reason = f"process {status.get('pid')} on {self.host} was killed"
        return {**status, "state": "interrupted", "reason": reason} if reason else status

    def append_metrics(self, row: Mapping[str, Cell]) -> None:
        """Append an epoch's row to metrics.csv and flush it to the disk; floats read back bit for bit.

        Args:
            row: values by column; missing or None columns stay empty.

        Raises:
            FgbenchError: the disk is full or the file cannot be written; the earlier rows are intact.
        """
        if unknown := set(row) - set(METRICS):
            raise ValueError(f"metrics.csv has no column {', '.join(sorted(unknown))}")
        if not self.writes:
            return
        path = self.path / "metrics.csv"
        if not path.exists():
            self.write_metrics([])
        append_line(path, row_line(row).encode())

    def read_metrics(self) -> list[dict[str, Cell]]:
        """The rows of metrics.csv up to the first incomplete or damaged one; empty cells are None.

        A byte-order mark or other line endings, from a spreadsheet, an editor or git, make no difference.
        """
        return [
            {column: from_text(column, text) for column, text in row.items()} for row in self._intact_rows()
        ]

    def write_metrics(self, rows: Iterable[Mapping[str, Cell]]) -> None:
        """Replace metrics.csv by these rows."""
        self._write("metrics.csv", "".join([csv_line(METRICS), *map(row_line, rows)]))

    def write_layers(self, epoch: int, rows: Iterable[Mapping[str, Cell]]) -> None:
        """Write the diagnostics of an epoch's layers after those of earlier epochs.

        Args:
            epoch: from 1.
            rows: with the columns of ``LAYER_COLUMNS`` except the epoch.
        """
        kept = self.read_layers(epoch - 1)
        new = [{"epoch": epoch} | {key: to_text(value) for key, value in row.items()} for row in rows]
        text = io.StringIO()
        writer = csv.DictWriter(text, LAYER_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *new])
        self._write("layers.csv", text.getvalue())

    def read_layers(self, last: int | None = None) -> list[dict[str, str]]:
        """What ``write_layers`` wrote, as strings, up to the epoch ``last``; empty if there is no file."""
        path = self.path / "layers.csv"
        if not path.exists():
            return []
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["epoch"]]
        return [row for row in rows if last is None or int(row["epoch"]) <= last]

    def write_confusions(self, names: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
        """Write confusion.csv, or delete it if there are no counts.

        Args:
            names: of the classes.
            counts: of test images, a row for every true class; a column for every predicted class, and one
                for every other output of the model.
        """
        if not counts:
            if self.writes:
                (self.path / CONFUSIONS).unlink(missing_ok=True)
            return
        others = [f"output {index}" for index in range(len(names), len(counts[0]))]
        rows = [[name, *map(str, row)] for name, row in zip(names, counts, strict=True)]
        self._write(CONFUSIONS, "".join(map(csv_line, [["class", *names, *others], *rows])))

    def read_confusions(self) -> tuple[list[str], list[list[int]]]:
        """What ``write_confusions`` wrote: names of the columns, and counts; empty if there is no file."""
        try:
            with (self.path / CONFUSIONS).open(newline="", encoding="utf-8") as file:
                head, *rows = csv.reader(file)
            return head[1:], [[int(cell) for _, cell in zip(head[1:], row[1:], strict=True)] for row in rows]
        except (OSError, ValueError, csv.Error):
            return [], []

    def _intact_rows(self) -> list[dict[str, str]]:
        try:
            content = (self.path / "metrics.csv").read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise FgbenchError(f"cannot read {self.path / 'metrics.csv'}: {error.strerror}") from error
        return intact_rows(content)

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(_as_json(content), indent=2, ensure_ascii=False, allow_nan=False, default=str)
        self._write(name, text + "\n")

    def _write(self, name: str, text: str) -> None:
        if self.writes:
            atomic_write(self.path / name, text)

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self.path / name).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def read_env(self) -> dict[str, Any]:
        """What ``write_env`` wrote; empty if there is no file."""
        return self._read_json("env.json")

    def read_summary(self) -> dict[str, Any]:
        """What ``write_summary`` wrote; empty if there is no file."""
        return self._read_json("summary.json")


def _as_json(value: Any) -> Any:
    """The same with None for every float that is not finite."""
    if isinstance(value, Mapping):
        return {key: _as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
