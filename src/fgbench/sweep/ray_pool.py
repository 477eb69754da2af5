"""Runs on a Ray cluster: the executor of ``fgbench sweep --ray``."""

import logging
import os
import re
import secrets
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fgbench.errors import ConfigError, FgbenchError
from fgbench.storage.files import atomic_write
from fgbench.storage.run_directory import ENDED, RunDirectory
from fgbench.sweep.executor import Job
from fgbench.sweep.ray_node import OF_A_RUN, JobResult, NodeRunner, pack, unpack

# Read when Ray is imported: otherwise Ray replaces 127.0.0.1 by this machine's external address.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ModuleNotFoundError as error:
    raise ConfigError('--ray needs Ray: pip install "fgbench[ray]"') from error

ANSWER_S = 5.0
CONNECT_S = 30.0
RETRIES = 3
"""How often a run is restarted because its node died."""


def connect(address: str) -> bool:
    """Connect to a Ray cluster; returns whether it has GPUs.

    Args:
        address: ``host:port``, or ``auto`` for the cluster that this machine is in.

    Raises:
        ConfigError: no Ray answers there.
    """
    match = re.fullmatch(r"([^/\s]+):(\d{1,5})", address)
    if address != "auto" and not match:
        raise ConfigError(f"--ray {address}: expected auto or host:port, such as 127.0.0.1:6379")
    try:
        if match:
            socket.create_connection((match[1], int(match[2])), ANSWER_S).close()
        # First in another process: if something else answers, ray.init tries for minutes and aborts.
        code = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False)"
        subprocess.run(
            [sys.executable, "-c", code, address],
            check=True,
            capture_output=True,
            text=True,
            timeout=CONNECT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"--ray {address}: no Ray answers there within {CONNECT_S:g} s") from error
    except (OSError, OverflowError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"--ray {address}: no Ray answers there ({_reason(error)})") from error
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    return bool(ray.cluster_resources().get("GPU"))


class RayPool:
    """Runs on the nodes of the cluster that :func:`connect` has connected to.

    A node that sees the driver's results folder writes its runs there; if it dies, they resume from their
    last saved state on another node. Other nodes send the run directory back when the run has ended or was
    stopped; meanwhile the driver holds it, and if the node dies, the run starts again.

    Args:
        size: how many at once; None for as many as the cluster has room for.
        threads: CPUs of each run, which is also its number of threads.
        gpus: GPUs of each run; below 1, runs share one.

    Raises:
        ConfigError: no node has room for a run.
    """

    def __init__(self, size: int | None, threads: int, gpus: float) -> None:
        if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
            raise ConfigError(f"--gpus-per-run {gpus:g}: expected a part of a GPU, or a whole number of them")
        self.threads, self.gpus = threads, gpus
        self._size = size
        if not self._count_room():
            raise ConfigError(
                f"no node of the Ray cluster has room for a run with {threads} CPUs and {gpus:g} GPUs"
            )
        self._node_runner = ray.remote(NodeRunner).options(
            num_cpus=threads, num_gpus=gpus, max_concurrency=4, scheduling_strategy="SPREAD"
        )
        self._token = f".ray-{secrets.token_hex(8)}"
        self._tokens: set[Path] = set()
        self._free: list[Any] = []
        self._running: dict[Job, _Run] = {}
        self._cancelled: dict[Job, int] = {}
        self._stopped = 0

    @property
    def size(self) -> int:
        """How many runs are submitted at once; if set by the user, some may wait for room on the cluster."""
        return self._size or self._count_room()

    def _count_room(self) -> int:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        by_cpu = [int(node.get("CPU", 0) / self.threads) for node in nodes]
        by_gpu = [int(node.get("GPU", 0) / self.gpus + 1e-6) for node in nodes] if self.gpus else by_cpu
        return sum(map(min, by_cpu, by_gpu))

    def has_room(self) -> bool:
        """Whether another run can be started now."""
        return len(self._running) < self.size

    def start(self, job: Job) -> None:
        """Start a run on any node."""
        job.log.parent.mkdir(parents=True, exist_ok=True)
        token = job.results_dir / self._token
        token.touch()
        self._tokens.add(token)
        self._running[job] = self._place(job)

    def _place(self, job: Job, tries: int = 0) -> "_Run":
        actor: Any = self._free.pop() if self._free else self._node_runner.remote(self.threads, Path.cwd())
        return _Run(job, actor, actor.sees.remote(job.results_dir / self._token), tries)

    def poll(self) -> dict[Job, int]:
        """The runs that have ended, with their exit codes; negative if ended by a signal."""
        ended, self._cancelled = self._cancelled, {}
        self._free.clear()  # actors on which no run was started since; Ray ends them
        for job, run in list(self._running.items()):
            try:
                code = run.follow()
                if code is not None:
                    self._free.append(run.actor)
            except RayTaskError as error:
                code = run.fail(_reason(error))
            except RayError as error:
                code = self._try_again(run, error)
            except FgbenchError as error:
                code = run.fail(str(error))
            if code is not None:
                ended[job] = code
                del self._running[job]
        return ended

    def _try_again(self, run: "_Run", error: RayError) -> int | None:
        run.release()
        if self._stopped:
            return 128 + self._stopped
        if run.tries == RETRIES:
            directory, reason = run.job.directory, f"lost its node {RETRIES + 1} times ({_reason(error)})"
            with suppress(FgbenchError), directory.lock(force=True):
                if directory.status()["state"] == "running":
                    directory.write_status("failed", reason=reason)
            return run.fail(reason)
        tqdm.write(f"{run.job.folder}: lost its node, started again ({run.tries + 1} of {RETRIES})")
        self._running[run.job] = self._place(run.job, run.tries + 1)
        return None

    def progress(self) -> dict[Job, str]:
        """The current runs, and how far they were when last asked."""
        return {job: run.progress() for job, run in self._running.items()}

    def stop(self, number: int) -> None:
        """Send all runs a signal; those waiting for room are cancelled first, or they would take the room."""
        self._stopped = number
        for job in [job for job, run in self._running.items() if run.ended is None]:
            ray.kill(self._running.pop(job).actor)
            self._cancelled[job] = 128 + number
        for run in self._running.values():
            run.actor.stop.remote(number)

    def close(self) -> None:
        """End what is still running, and disconnect from the cluster."""
        for run in self._running.values():
            ray.kill(run.actor)
            run.release()
        self._running.clear()
        for token in self._tokens:
            token.unlink(missing_ok=True)
        ray.shutdown()


@dataclass
class _Run:
    """A submitted run, as the driver sees it.

    Attributes:
        actor: the :class:`NodeRunner`.
        placed: whether its node sees the driver's results folder, once it is on a node.
        tries: how many of its nodes have died.
        ended: its result; None before it has been started.

    A run directory that the run's node does not see is held by the driver: locked, with status running.
    """

    job: Job
    actor: Any
    placed: Any
    tries: int
    ended: Any = None
    _asked: Any = None
    _progress: str = "waits for room"
    _directory: RunDirectory | None = None
    _held: ExitStack = field(default_factory=ExitStack)
    _status: bytes = b""

    def follow(self) -> int | None:
        """Advance it if possible; returns the exit code once the run has ended.

        Raises:
            RayError: its node died, or something failed there.
            FgbenchError: the run directory is in use or cannot be written.
        """
        if self.ended is None:
            if not _is_ready(self.placed):
                return None
            files = None if ray.get(self.placed) else self._hold()
            self.ended = self.actor.make.remote(self.job, files, self.tries > 0)
        if self._directory:
            self._directory.heartbeat()
        if not _is_ready(self.ended):
            return None
        result: JobResult = ray.get(self.ended)
        if self._directory:
            self._gather(self._directory, result)
            self.release()
        return result.code

    def progress(self) -> str:
        """How far it is; requests an update without waiting for it."""
        with suppress(RayError):  # follow handles it
            if self._asked is not None and _is_ready(self._asked):
                asked, self._asked = self._asked, None
                self._progress = ray.get(asked)
            if self._asked is None:
                self._asked = self.actor.progress.remote()
        return self._progress

    def _hold(self) -> dict[str, bytes]:
        """Hold the run directory for a node that does not see it; returns the files to resume from."""
        directory = self.job.directory.create()
        self._held.enter_context(directory.lock())
        files = pack(directory)
        self._status = files.pop("status.json", b"")
        repeat = self.job.flags.force and directory.status()["state"] in ENDED
        directory.write_status("running")
        self._directory = directory
        return {} if repeat else files

    def _gather(self, directory: RunDirectory, result: JobResult) -> None:
        """Write the files a node sent; until all are written, the run directory's status is running."""
        _append(self.job.log, result.log)
        files = dict(result.files or {})
        if not files:
            return
        status, self._status = files.pop("status.json", self._status), b""
        if "config.yaml" in files:
            files["config.yaml"] = self.job.config.encode()  # which has the driver's results folder
        unpack(directory, files)
        for path in directory.path.iterdir():
            if path.suffix in OF_A_RUN and path.name not in {*files, "status.json"}:
                path.unlink()  # of the run that this one replaces
        self._status = status

    def release(self) -> None:
        """Release the run directory if it is held: with the node's files, or else as it was before."""
        if self._directory is None:
            return
        path = self._directory.path / "status.json"
        self._directory = None
        with self._held:
            path.unlink(missing_ok=True)
            if self._status:
                atomic_write(path, self._status)

    def fail(self, reason: str) -> int:
        """Log why the run failed; returns its exit code."""
        _append(self.job.log, f"fgbench: {reason}\n".encode())
        self.release()
        return FgbenchError.exit_code


def _is_ready(answer: Any) -> bool:
    return bool(ray.wait([answer], timeout=0)[0])


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def _reason(error: Exception) -> str:
    """An error's message in one line; that of the innermost error if it holds a traceback."""
    text = str(getattr(error, "stderr", None) or error).strip()
    return re.findall(r"^(?:[\w.]+(?:Error|Exception): )?(.+)", text, re.MULTILINE)[-1][:200]
