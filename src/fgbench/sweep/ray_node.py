"""Runs on a node of a Ray cluster: in the driver's results folder if the node sees it, else elsewhere.

Imports neither torch nor Ray.
"""

import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fgbench.errors import FgbenchError
from fgbench.storage.files import atomic_write
from fgbench.storage.liveness import is_alive
from fgbench.storage.run_directory import RunDirectory
from fgbench.sweep.executor import Job
from fgbench.sweep.local import LocalPool

OF_A_RUN = (".csv", ".json", ".pt", ".yaml")
"""How the names of a run's own files end; what its loggers write is in folders."""

POLL_S = 0.1
RELEASE_S = 120.0
"""How long to wait for a run that is saving because its node died; file servers keep locks for a while."""

STOP_AGAIN_S = 5.0
"""When to send SIGTERM after a signal that a starting process has lost."""


@dataclass(frozen=True)
class JobResult:
    """How a run ended.

    Attributes:
        code: its exit code.
        log: its output; empty if the driver sees the log itself.
        files: the content of its run directory; None if the driver sees the run directory itself.
    """

    code: int
    log: bytes = b""
    files: Mapping[str, bytes] | None = None


class NodeRunner:
    """A process on a node that executes runs, one after the other.

    It ends with its driver or its node; the run then saves and ends too. Methods are called from separate
    threads: ``make`` blocks for as long as the run takes.

    Args:
        threads: CPU threads of a run.
        folder: the driver's working directory; used here too, if it exists.
    """

    def __init__(self, threads: int, folder: Path) -> None:
        if folder.is_dir():
            os.chdir(folder)
        self.pool = LocalPool(1, threads)
        self.stopped = 0

    def sees(self, path: Path) -> bool:
        """Whether a file of the driver is also writable here."""
        return os.access(path, os.W_OK)

    def make(self, job: Job, files: Mapping[str, bytes] | None, again: bool) -> JobResult:
        """Execute a run to its end.

        Args:
            job: the run.
            files: the content of its run directory so far; None to run in place.
            again: another node has started it and died.
        """
        if files is None:
            if again and job.directory.path.exists():
                claim_directory(job.directory, lambda: bool(self.stopped))
            return JobResult(self._run(job))
        job = _move_apart(job)
        try:
            unpack(job.directory, files)
            code = self._run(job)
            return JobResult(code, job.log.read_bytes() if job.log.exists() else b"", pack(job.directory))
        finally:
            shutil.rmtree(job.results_dir, ignore_errors=True)

    def _run(self, job: Job) -> int:
        if not self.stopped:
            self.pool.start(job)
        if self.stopped:  # before or while the process was started: the run has not begun
            self.pool.close()
            return 128 + self.stopped
        due = 0.0
        while not (ended := self.pool.poll()):
            if self.stopped and time.monotonic() > due:
                self.pool.stop(signal.SIGTERM if due else self.stopped)
                due = time.monotonic() + STOP_AGAIN_S
            time.sleep(POLL_S)
        code, directory = ended[job], job.directory
        if code < 0 and directory.path.exists() and directory.status()["state"] == "interrupted":
            directory.write_status("interrupted", reason=f"killed by signal {-code}")
        return code

    def progress(self) -> str:
        """How far the run is, and where."""
        return f"{next(iter(self.pool.progress().values()), 'starts')} on {socket.gethostname()}"

    def stop(self, number: int) -> None:
        """Send the run a signal: it saves and ends. No other run is started after it."""
        self.stopped = number


def claim_directory(directory: RunDirectory, give_up: Callable[[], bool]) -> None:
    """Take over the run directory of a node that died, once the rest of its run has released it."""
    end = time.monotonic() + RELEASE_S
    while time.monotonic() < end and not give_up():
        try:
            with directory.lock(force=True):
                if directory.status()["state"] == "running":
                    directory.write_status("interrupted", reason="its node died")
                return
        except FgbenchError:
            time.sleep(POLL_S)


def pack(directory: RunDirectory) -> dict[str, bytes]:
    """The files of a run directory by their path in it; empty if it does not exist."""
    if not directory.path.is_dir():
        return {}
    return {
        path.relative_to(directory.path).as_posix(): path.read_bytes()
        for path in directory.path.rglob("*")
        if path.is_file() and (path.suffix in OF_A_RUN or path.parent != directory.path)
    }


def unpack(directory: RunDirectory, files: Mapping[str, bytes]) -> None:
    """Write the files of a run directory; the status, which says whether the others are complete, is last."""
    if files:
        directory.create()
    for name in sorted(files, key=lambda name: name == "status.json"):
        path = directory.path / name
        path.parent.mkdir(exist_ok=True)
        atomic_write(path, files[name])


def _move_apart(job: Job) -> Job:
    """The same run in a temporary results folder; removes those of killed drivers and their runs."""
    for folder in Path(tempfile.gettempdir()).glob("fgbench-ray-*-*"):
        pid = folder.name.split("-")[2]
        if not is_alive(pid):
            shutil.rmtree(folder, ignore_errors=True)
    results_dir = Path(tempfile.mkdtemp(prefix=f"fgbench-ray-{os.getpid()}-"))
    return replace(job, results_dir=results_dir)
