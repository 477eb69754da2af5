"""Try to break runs: kills, mutated configs, damaged files, failing writes, races.

Every process is forked from this one, which has imported everything, and goes through the command line.
``python tests/torture/torture.py`` takes about six minutes and writes results/reliability.md;
``--quick`` is a taste of it that writes nothing. Exit code 1 when anything went wrong.
"""

import argparse
import contextlib
import faulthandler
import functools
import io
import itertools
import os
import platform
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
from datetime import UTC, datetime
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a process whose threads have started cannot be forked safely
sys.path.append(str(Path(__file__).parents[1] / "helpers"))

import torch
import torture_inputs as inputs

from fgbench.cli import app as cli
from fgbench.config.config import load_config
from fgbench.measure import describe_environment
from fgbench.registry import TRAINERS
from fgbench.run import runner
from fgbench.storage.run_directory import RunDirectory

MEASURED = ("_time_s", "_time_ms", "per_s", "_mib", "elapsed_s", "memory_source", "timing_note")
PATIENCE_S = 300
PART_S = 1200
HUNG = 124
MEMORY = 6 * 2**30
FULL = {"kills": 100, "configs": 2000, "damages": 60, "full disks": 40, "races": 14}
QUICK = {"kills": 3, "configs": 40, "damages": 3, "full disks": 3, "races": 2}


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


def run(config: Path, results: Path, **options: Callable[[], object]) -> Process:
    """``fgbench run CONFIG`` with its results in a folder."""
    return Process("run", config, "--results", results, "--no-download", **options)


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


def torture_kills(arena: Arena, count: int) -> Tally:
    """SIGKILL at random instants; gone on with, the run equals the undisturbed one."""
    tally, trainers = Tally(), list(TRAINERS)
    for trial in arena.trials(10 * count):
        if tally.outcomes["kills"] >= count:
            break
        trainer = trainers[trial % len(trainers)]
        config, _, seconds = arena.reference(trainer)
        results = arena.new_folder()
        for _ in range(arena.dice.randint(1, 4)):
            process = run(config, results)
            time.sleep(arena.dice.uniform(0, 1.1 * seconds))
            if process.kill():
                tally.outcomes["kills"] += 1
                half = [*results.rglob("*.tmp"), *results.rglob("*.new")]
                tally.outcomes["killed while a file was being written"] += bool(half)
                tally.outcomes["killed with a state saved"] += bool(list(results.rglob("state*.pt")))
        tally.note("runs killed and gone on with to the undisturbed rows", arena.finish(trainer, results))
        shutil.rmtree(results)
    return tally


def torture_configs(arena: Arena, count: int) -> Tally:
    """Mutated configs run, or end with exit code 2, a few lines and nothing written."""
    tally = Tally()
    for _ in arena.trials(count):
        path = arena.new_folder() / "mutant.yaml"
        kind = inputs.write_mutant(path, arena.dice)
        results = path.parent / "results"
        command = ("run", path, "--results", results, "--no-download")
        code, text = call_here(*command, "--dry-run")
        if code == 0:
            wrong = results.exists()
            ended = "valid at --dry-run"
        else:
            told = code == 2 and text.startswith("fgbench: ") and text.count("\n") <= 26 and len(text) < 6000
            wrong = not told or results.exists()
            ended = "refused with exit code 2"
        if code == 0 and arena.dice.random() < 0.2:
            limit = functools.partial(inputs.limit_memory, MEMORY)
            code, text = Process(*command, "--epochs", 1, prepare=limit).wait()
            ended = {0: "ran", 1: "failed with a line", 4: "ran and diverged"}.get(code, f"exit {code}")
            wrong = code not in (0, 1, 4)
        wrong = wrong or "Traceback" in text
        content = path.read_bytes()[:400] if path.is_file() else b""
        tally.note(ended, f"{kind} {content!r}: exit {code}: {text[-1500:]}" if wrong else "")
        shutil.rmtree(path.parent)
    return tally


def torture_files(arena: Arena, count: int) -> Tally:
    """Damaged files are got over, or named; never a traceback, never other numbers."""
    tally = Tally()
    for trial in arena.trials(count):
        trainer, other = arena.any_trainer(), arena.any_trainer()
        results = arena.new_folder(arena.unfinished(trainer))
        names = arena.dice.choice(inputs.TARGETS)
        damage = arena.dice.choice(list(inputs.DAMAGES))
        for name in names:
            for path in results.rglob(name):
                stranger = next(arena.unfinished(other).rglob(name), path)
                inputs.DAMAGES[damage](path, stranger, arena.dice)
        config, rows, _ = arena.reference(trainer)
        code, text = run(config, results).wait()
        case = f"trial {trial}: {trainer}, {damage} {' and '.join(names)}"
        if code == 0:
            same = outcome(results) == rows
            tally.note("ran to the undisturbed rows", "" if same else f"{case}: {outcome(results)}"[:400])
        else:
            told = code == 1 and "Traceback" not in text and "--no-resume" in text
            tally.note("stopped and named the file", "" if told else f"{case}: exit {code}: {text[-1500:]}")
        shutil.rmtree(results)
    return tally


def torture_data(arena: Arena, count: int) -> Tally:
    """Damaged data files are refused, or their damage touches no image."""
    tally = Tally()
    images = inputs.write_images(arena.folder / "images")
    config = inputs.write_config(arena.folder / "data.yaml", "backprop", dataset={"name": "mnist"})
    whole = arena.new_folder()
    code, text = Process("run", config, "--results", whole, "--data-dir", images, "--no-download").wait()
    if code:
        raise SystemExit(f"the undisturbed run on whole data failed: {text}")
    for trial in arena.trials(count):
        folder, results = arena.new_folder(images), arena.new_folder()
        path, stranger = arena.dice.sample(sorted(folder.rglob("*.gz")), 2)
        damage = arena.dice.choice(list(inputs.DAMAGES))
        inputs.DAMAGES[damage](path, stranger, arena.dice)
        code, text = Process(
            "run", config, "--results", results, "--data-dir", folder, "--no-download"
        ).wait()
        case = f"trial {trial}: {damage} {path.name}: exit {code}"
        if code == 0:
            same = outcome(results) == outcome(whole)
            tally.note("ran to the undisturbed rows", "" if same else f"{case}: {outcome(results)}"[:400])
        else:
            told = code == 2 and "Traceback" not in text and not list(results.iterdir())
            tally.note("refused with exit code 2", "" if told else f"{case}: {text[-1500:]}")
    return tally


def torture_writes(arena: Arena, count: int) -> Tally:
    """Writes that fail half-way, at every stage: a clear line, and the run can be gone on with."""
    tally = Tally()
    for trial in arena.trials(count):
        trainer = arena.any_trainer()
        config, _, _ = arena.reference(trainer)
        results = arena.new_folder(arena.dice.choice([None, arena.unfinished(trainer)]))
        if trial % 2:
            how = functools.partial(
                inputs.limit_file_size, arena.dice.choice([0, 40, 300, 1500, 4000, 8000, 12000])
            )
        else:
            how = functools.partial(inputs.fill_disk_after, arena.dice.randint(0, 40))
        code, text = run(config, results, prepare=how).wait()
        told = code == 0 or (code in (1, 2) and "Traceback" not in text and "cannot write" in text)
        wrong = "" if told else f"{how} exit {code}: {text[-1500:]}"
        ended = "wrote all it needed" if code == 0 else "stopped with a line, then gone on with"
        tally.note(ended, wrong or arena.finish(trainer, results))
        shutil.rmtree(results)
    return tally


def torture_races(arena: Arena, count: int) -> Tally:
    """Processes racing for one run: one runs it, the others say who does."""
    tally = Tally()
    for trial in arena.trials(count):
        trainer = arena.any_trainer()
        config, rows, _ = arena.reference(trainer)
        results = arena.new_folder()
        start = time.monotonic() + 0.1
        wait = lambda start=start: time.sleep(max(0.0, start - time.monotonic()))  # noqa: E731
        racers = [run(config, results, prepare=wait) for _ in range(2 + trial % 7)]
        ends = [(racer.pid, *racer.wait()) for racer in racers]
        ran = [pid for pid, _, text in ends if "resumes" in text or "epoch 1/" in text]
        told = [
            code == 1 and any(f"in use by process {pid} on" in text for pid in ran) for _, code, text in ends
        ]
        late = [code == 0 and pid not in ran for pid, code, _ in ends]
        well = len(ran) == 1 and sum(told) + sum(late) == len(racers) - 1 and outcome(results) == rows
        tally.note("races run by one process", "" if well else f"{trainer}: {ends}"[:800])
        tally.outcomes["processes that were told who holds the run"] += sum(told)
        tally.outcomes["processes that found it finished"] += sum(late)
    return tally


PARTS = {
    "SIGKILL at random instants": (torture_kills, "kills"),
    "Mutated configs": (torture_configs, "configs"),
    "Truncated, bit-flipped, swapped, emptied, missing files of a run": (torture_files, "damages"),
    "The same for data files": (torture_data, "damages"),
    "Writes that fail half-way": (torture_writes, "full disks"),
    "Two to eight processes racing for one run": (torture_races, "races"),
}


def torture(counts: dict[str, int], seed: int, report: Callable[[dict[str, Tally]], object]) -> bool:
    """Run every part, reporting after each; whether nothing went wrong."""
    tallies = {}
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        _import_everything(Path(folder))
        arena = Arena(Path(folder), random.Random(seed))
        for title, (part, count) in PARTS.items():
            start = time.perf_counter()
            tallies[title] = part(arena, counts[count])
            print(
                f"{title}: {dict(tallies[title].outcomes)}, {time.perf_counter() - start:.0f} s", flush=True
            )
            for failure in tallies[title].failures:
                print(f"  WRONG: {failure}", flush=True)
            report(tallies)
    return not any(tally.failures for tally in tallies.values())


def _import_everything(folder: Path) -> None:
    """Make a dry run of every trainer here, for what is imported late; torch starts no threads for it."""
    with contextlib.redirect_stdout(io.StringIO()):
        for name in TRAINERS:
            config = inputs.write_config(folder / "imports.yaml", name)
            runner.run_configs([load_config(config)], dry_run=True)


def to_markdown(tallies: dict[str, Tally], command: str, seconds: float) -> str:
    """The table of counts, and where it comes from."""
    here = describe_environment(torch.device("cpu"))
    lines = [
        "# How hard it was tried to lose a run",
        "",
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {seconds / 60:.0f} minutes on "
        f"{here['cpu_cores']} cores of {here['cpu']} (Python {platform.python_version()}, "
        f"torch {torch.__version__}); commit {(here['git_commit'] or 'unknown')[:10]}. "
        f"Trainers: {', '.join(TRAINERS)}.",
        "",
        "| trial | outcome | count |",
        "|---|---|---:|",
    ]
    for title, tally in tallies.items():
        lines += [f"| {title} | {name} | {number} |" for name, number in tally.outcomes.items()]
        lines.append(f"| {title} | **anything else** | {len(tally.failures)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Parse, torture, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few of each, nothing written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/reliability.md"))
    options = parser.parse_args()
    start = time.perf_counter()
    command = f"python tests/torture/torture.py --seed {options.seed}"

    def write(tallies: dict[str, Tally]) -> None:
        if not options.quick:
            options.out.write_text(to_markdown(tallies, command, time.perf_counter() - start))

    return int(not torture(QUICK if options.quick else FULL, options.seed, write))


if __name__ == "__main__":
    sys.exit(main())
