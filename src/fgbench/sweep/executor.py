"""Jobs, and the executors to which the sweep driver submits them."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from fgbench.storage.run_directory import RunDirectory


class RunFlags(NamedTuple):
    """Flags of runs, in addition to their configs.

    Attributes:
        data_dir: a folder to look for datasets in first.
        download: whether to fetch a dataset that is not found.
        force: repeat runs that have ended.
    """

    data_dir: Path | None = None
    download: bool = True
    force: bool = False

    @property
    def arguments(self) -> list[str]:
        """The same as arguments of ``fgbench run``, for logs and env.json."""
        return [
            *(["--data-dir", str(self.data_dir)] if self.data_dir else []),
            *([] if self.download else ["--no-download"]),
            *(["--force"] if self.force else []),
        ]


@dataclass(frozen=True)
class Job:
    """A run to execute.

    Attributes:
        config: the resolved config, as YAML text.
        results_dir: the results folder, absolute; it overrides the config's.
        folder: the run directory within it.
        flags: flags of the run.
    """

    config: str
    results_dir: Path
    folder: Path
    flags: RunFlags

    @property
    def directory(self) -> RunDirectory:
        """The run directory."""
        return RunDirectory(self.results_dir / self.folder)

    @property
    def log(self) -> Path:
        """Where the run's output goes; the config it is started with is next to it."""
        return self.results_dir / "logs" / self.folder.with_suffix(".log")


class Executor(Protocol):
    """Something that executes runs. The driver calls ``poll`` repeatedly, and ``start`` if there is room."""

    threads: int
    """CPU threads of each run."""

    @property
    def size(self) -> int:
        """How many runs can be executed at once."""

    def has_room(self) -> bool:
        """Whether another run can be started now."""

    def start(self, job: Job) -> None:
        """Start a run."""

    def poll(self) -> dict[Job, int]:
        """The runs that have ended since the last call, with their exit codes."""

    def progress(self) -> dict[Job, str]:
        """The current runs, and how far they are."""

    def stop(self, number: int) -> None:
        """Send the runs a signal: they save and end."""

    def close(self) -> None:
        """End at once whatever is still running."""
