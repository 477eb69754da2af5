"""Runs in separate processes, in parallel on this machine."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from fgbench.config.config import load_config
from fgbench.config.overrides import Override
from fgbench.errors import FgbenchError, exit_code_of
from fgbench.storage.files import atomic_write
from fgbench.sweep.executor import Job


class LocalPool:
    """Runs in processes on this machine.

    Processes are forked from a server that has only imported torch. If the driver dies, they save and end.

    Args:
        size: how many at once.
        threads: CPU threads of each.
        gpus: CUDA devices to assign, one per run, as CUDA_VISIBLE_DEVICES names them.
    """

    def __init__(self, size: int, threads: int, gpus: Sequence[str] = ()) -> None:
        self.size, self.threads, self.gpus = size, threads, gpus
        self._free = list(reversed(range(size)))
        self._running: dict[Job, tuple[BaseProcess, int]] = {}
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["fgbench.run.runner", "torch._dynamo"])

    def has_room(self) -> bool:
        """Whether fewer than ``size`` runs are active."""
        return bool(self._free)

    def start(self, job: Job) -> None:
        """Start a run in the next free slot."""
        slot = self._free.pop()
        environment = {"OMP_NUM_THREADS": str(self.threads)}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        path = job.log.with_suffix(".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, job.config)
        process = self._context.Process(
            target=_run_child, args=(job, path, environment, self.threads), name=job.folder.name
        )
        process.start()
        self._running[job] = (process, slot)

    def poll(self) -> dict[Job, int]:
        """The runs that have ended, with their exit codes; negative if ended by a signal."""
        ended = {}
        for job, (process, slot) in list(self._running.items()):
            if process.exitcode is not None:
                ended[job] = process.exitcode
                process.join()
                self._free.append(slot)
                del self._running[job]
        return ended

    def progress(self) -> dict[Job, str]:
        """The current runs, and their epochs according to their run directories."""
        return {job: describe_progress(job.directory.status()) for job in self._running}

    def stop(self, number: int) -> None:
        """Send all runs a signal."""
        for process, _ in self._running.values():
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, number)

    def close(self) -> None:
        """Kill what is still running."""
        for process, _ in self._running.values():
            process.kill()
            process.join()
        self._running.clear()


def share_threads(size: int) -> int:
    """CPU threads for each of ``size`` parallel runs: OMP_NUM_THREADS, or an equal share of the cores."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(said) if said.isdecimal() and int(said) else max(1, cores // size)


def describe_progress(status: Mapping[str, object]) -> str:
    """How far a run is: ``epoch 3/10``."""
    if status["state"] != "running":
        return "starts"
    epoch, epochs = int(str(status.get("epoch", 0))), int(str(status.get("epochs", 0)))
    return f"epoch {min(epoch + 1, epochs)}/{epochs}"


def last_words(path: Path) -> str:
    """The last message in a log, or else its last line; empty if there is none."""
    try:
        lines = path.read_bytes()[-4000:].decode(errors="replace").split("\n")
    except OSError:
        return ""
    said = [line.strip() for line in lines if line.strip()] or [""]
    messages = [line.removeprefix("fgbench: ") for line in said if line.startswith("fgbench: ")]
    return (messages or said)[-1]


def _run_child(job: Job, config: Path, environment: dict[str, str], threads: int) -> None:
    """In the new process: execute the run, with its output in the job's log, then exit."""
    os.setsid()  # or the terminal's Ctrl-C would arrive twice, and the second ends a run without saving
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a driver in the background may ignore it
    os.environ.update(environment)
    with job.log.open("ab", buffering=0) as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    threading.Thread(target=_end_with_driver, daemon=True).start()
    sys.argv = ["fgbench", "run", str(config), *job.flags.arguments]  # env.json keeps it
    print(f"$ {' '.join(sys.argv)}", flush=True)
    if "" not in sys.path:
        sys.path.append("")  # for a user's package.module:Class in the current folder
    from fgbench import measure
    from fgbench.run.runner import run_configs

    measure.set_threads(threads)
    try:
        loaded = load_config(config, [Override("results_dir", str(job.results_dir), "the sweep")])
        code = run_configs([loaded], **job.flags._asdict()).code
    except (FgbenchError, OSError, KeyboardInterrupt) as error:
        if not isinstance(error, KeyboardInterrupt):
            print(f"fgbench: {error}", file=sys.stderr, flush=True)
        code = exit_code_of(error)
    sys.exit(code)


def _end_with_driver() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
