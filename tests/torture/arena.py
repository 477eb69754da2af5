"""Where torture.py works: forked processes that run the command line, undisturbed runs, and counts."""

import contextlib
import faulthandler
import functools
import io
import itertools
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torture_inputs as inputs

from fgbench.cli import app as cli
from fgbench.registry import TRAINERS
from fgbench.storage.run_directory import RunDirectory

MEASURED = ("_time_s", "_time_ms", "per_s", "_mib", "elapsed_s", "memory_source", "timing_note")
PATIENCE_S = 300
PART_S = 3600
HUNG = 124
MEMORY = 6 * 2**30


@dataclass
class Tally:
    """What a part tried, how it ended, and what went wrong."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def note(self, outcome: str, problem: str = "") -> None:
        """Count a trial, and keep its problem if it has one."""
        if problem:
            self.failures.append(f"{outcome}: {problem}")
        else:
            self.outcomes[outcome] += 1


class Process:
    """A forked process that runs the command line; what it prints comes through a pipe."""

    def __init__(self, *arguments: object, prepare: Callable[[], object] = lambda: None) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            os._exit(_call(list(map(str, arguments)), prepare))
        os.close(writer)
        self.reader = os.fdopen(reader, "rb")
        self.code: int | None = None

    def wait(self) -> tuple[int, str]:
        """Exit code (negative: the signal that ended it) and output."""
        text = self.reader.read().decode(errors="replace")
        self.reader.close()
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return (HUNG if "Timeout (" in text else self.code), text

    def kill(self) -> bool:
        """End it at once; whether it was still running."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()
        return self.code == -signal.SIGKILL


def _call(arguments: list[str], prepare: Callable[[], object]) -> int:
    faulthandler.dump_traceback_later(
        PATIENCE_S, exit=True, file=sys.stderr
    )  # no part takes that for success
    prepare()
    try:
        return _command(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def call_here(*arguments: object) -> tuple[int, str]:
    """Exit code and output of the command line in this process, with bounds on its time and memory."""
    text = io.StringIO()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(PATIENCE_S)
    try:
        inputs.limit_memory(MEMORY)
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            code = _command(list(map(str, arguments)))
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
    return code, text.getvalue()


def _command(arguments: list[str]) -> int:
    try:
        sys.argv = ["fgbench", *arguments]
        cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 70
    return 0


def run(config: Path, results: Path, *flags: object, **options: Callable[[], object]) -> Process:
    """``fgbench run CONFIG`` with its results in a folder."""
    return Process("run", config, "--results", results, "--no-download", *flags, **options)


def outcome(results: Path) -> list[dict] | str:
    """The rows of the only run in a folder, without times and memory; or its state if it has not finished."""
    folders = [path.parent for path in results.rglob(".lock")]
    if len(folders) != 1:
        return f"{len(folders)} runs"
    directory = RunDirectory(folders[0])
    state = directory.status()["state"]
    rows = directory.read_metrics()
    if state != "finished" or directory.read_summary().get("epochs") != len(rows):
        return state
    return [{key: row[key] for key in row if not key.endswith(MEASURED)} for row in rows]


@dataclass(eq=False)
class Arena:
    """A folder to work in, the trials' dice, and undisturbed runs to compare with."""

    folder: Path
    dice: random.Random

    @functools.cache  # noqa: B019
    def reference(self, trainer: str) -> tuple[Path, list[dict], float]:
        """A config, the rows of its undisturbed run and how long that took."""
        config = inputs.write_config(self.folder / f"{trainer}.yaml", trainer)
        start = time.perf_counter()
        code, text = run(config, self.folder / "undisturbed" / trainer).wait()
        seconds = time.perf_counter() - start
        rows = outcome(self.folder / "undisturbed" / trainer)
        if code or isinstance(rows, str):
            raise SystemExit(f"the undisturbed run of {trainer} failed: {text}")
        return config, rows, seconds

    @functools.cache  # noqa: B019
    def unfinished(self, trainer: str) -> Path:
        """A results folder with a run that was killed when it had two state files."""
        config, _, _ = self.reference(trainer)
        results = self.folder / "unfinished" / trainer
        process = run(config, results)
        while not list(results.rglob("state-1.pt")):
            time.sleep(0.001)
        process.kill()
        return results

    def trials(self, count: int) -> Iterator[int]:
        """Numbers of trials, until there were so many or their time is up."""
        end = time.monotonic() + PART_S
        return itertools.takewhile(lambda _: time.monotonic() < end, range(count))

    def any_trainer(self) -> str:
        """A trainer by chance."""
        return self.dice.choice(list(TRAINERS))

    def new_folder(self, template: Path | None = None) -> Path:
        """An empty results folder, or a copy of one."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        return shutil.copytree(template, folder, dirs_exist_ok=True) if template else folder

    def finish(self, trainer: str, results: Path) -> str:
        """Go on with a run; what is wrong with its end."""
        config, rows, _ = self.reference(trainer)
        code, text = run(config, results).wait()
        if code == 0 and (end := outcome(results)) == rows:
            return ""
        return f"{trainer} in {results}: " + (
            f"exit {code}: {text[-300:]}" if code else f"differs: {end}"[:300]
        )
