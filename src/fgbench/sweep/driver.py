"""Runs a sweep: skips, starts and follows its runs, which an executor executes."""

import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from fgbench.config.config import Config, to_yaml
from fgbench.datasets.base import load_splits
from fgbench.datasets.fingerprint import Fingerprint
from fgbench.datasets.search import DataSearch
from fgbench.errors import MissingDataError
from fgbench.run.code import check_code
from fgbench.run.data import check_data, check_ended
from fgbench.run.plan import Plan, describe_missing_data, find_ended, join_remarks, locate
from fgbench.run.signals import StopRequest
from fgbench.storage.run_directory import ENDED
from fgbench.sweep.executor import Executor, Job, RunFlags
from fgbench.sweep.local import last_words

POLL_S = 0.1
LOOK_S = 2.0
"""How often runs of other processes are checked."""


@dataclass(frozen=True)
class Failure:
    """A run that failed, and why."""

    job: Job
    reason: str

    def __str__(self) -> str:
        return f"{self.job.directory.path} failed: {self.reason}\n    log: {self.job.log}"


class SweepOutcome(NamedTuple):
    """The outcome of a sweep.

    Attributes:
        paths: the run directories of all its runs, the skipped ones included.
        failures: the runs that failed.
        stopped: the signal that asked to stop; every run's state is saved. 0 when there was none.
    """

    paths: tuple[Path, ...]
    failures: tuple[Failure, ...]
    stopped: int


def make_plans(
    configs: Sequence[Config],
    search: DataSearch,
    cuda: bool,
    *,
    force: bool = False,
    dry_run: bool = False,
) -> dict[Path, Plan]:
    """The runs by run directory, each with its kind of device, with the checks that are cheap.

    Args:
        configs: one per run.
        search: where to look for data, besides the folder each config names.
        cuda: whether there are GPUs.
        force: runs that have ended are repeated.
        dry_run: nothing will run, so data may be missing.

    Raises:
        ConfigError: the data or the results folder is not available, or a run was made on other data or
            with other code.
    """
    plans: dict[Path, Plan] = {}
    for config in configs:
        kind = config.device.partition(":")[0]
        kind = ("cuda" if cuda else "cpu") if kind == "auto" else kind
        config = config.model_copy(update={"device": kind, "results_dir": config.results_dir.absolute()})
        plan = locate(config, torch.device(kind), replace(search, config_dir=config.data_dir))
        plans.setdefault(plan.directory.path, plan)
    loaded: dict[str, tuple[Fingerprint | None, str]] = {}
    known: dict[str, Fingerprint] = {}
    for path, plan in plans.items():
        code = "" if plan.ended and force else check_code(plan)
        if plan.ended and not force:
            plans[path] = replace(plan, data=join_remarks(check_ended(plan, plan.search, known), code))
            continue
        key = f"{plan.search.named} {plan.config.dataset.model_dump_json()}"
        try:
            if key not in loaded:
                splits = load_splits(plan.config.dataset, plan.config.seed, "cpu", plan.search)
                loaded[key] = splits.fingerprint, str(splits)
        except MissingDataError as error:
            if not dry_run:
                raise
            plans[path] = replace(plan, data=describe_missing_data(error, plan.search))
            continue
        fingerprint, described = loaded[key]
        if fingerprint and not plan.ended:
            check_data(plan, fingerprint)
        plans[path] = replace(plan, data=join_remarks(described, code))
    return plans


def run_sweep(
    plans: dict[Path, Plan],
    executor: Executor,
    flags: RunFlags = RunFlags(),  # noqa: B008
    *,
    fail_fast: bool = False,
) -> SweepOutcome:
    """Run everything that has not ended.

    Args:
        plans: the runs, from :func:`make_plans`.
        executor: executes them; closed at the end.
        flags: flags of the runs.
        fail_fast: stop the others once one has failed.
    """
    todo = [plan for plan in plans.values() if flags.force or not plan.ended]
    if len(todo) < len(plans):
        ended = f"{len(plans) - len(todo)} of {len(plans)} runs"
        print(f"{ended} have ended already, skipped (--force repeats them)")
        notes = Counter(plan.data for plan in plans.values() if plan.ended and not flags.force and plan.data)
        for note, count in notes.items():
            print(f"of {count} of them: {note}")
    jobs = [_make_job(plan, flags) for plan in todo]
    driver = _Driver(jobs, executor, fail_fast=fail_fast)
    try:
        with StopRequest() as stop, driver.progress:
            driver.run(stop)
    finally:
        executor.close()
    return SweepOutcome(tuple(plans), tuple(driver.failures), stop.number)


def _make_job(plan: Plan, flags: RunFlags) -> Job:
    results_dir = plan.config.results_dir
    return Job(to_yaml(plan.config), results_dir, plan.directory.path.relative_to(results_dir), flags)


class _Driver:
    """Starts jobs while there is room, and follows them until they end."""

    def __init__(self, jobs: list[Job], executor: Executor, *, fail_fast: bool) -> None:
        self.executor, self.fail_fast = executor, fail_fast
        self.waiting = list(jobs)
        self.elsewhere: list[Job] = []
        self.running: set[Job] = set()
        self.failures: list[Failure] = []
        self.progress = _Progress(len(jobs))
        self._look_due = 0.0

    def run(self, stop: StopRequest) -> None:
        sent = 0
        while self.waiting or self.running or self.elsewhere:
            if stop.requested and sent != stop.number:
                sent = stop.number
                self.waiting, self.elsewhere = [], []
                self.progress.say("stopping; the runs save their states")
                self.executor.stop(sent)
            for job, code in self.executor.poll().items():
                self.running.discard(job)
                self._settle(job, code, stopping=bool(sent))
            if self.failures and self.fail_fast and not sent:
                sent = signal.SIGTERM
                self.waiting, self.elsewhere = [], []
                self.executor.stop(sent)
            self._look_elsewhere()
            while self.waiting and self.executor.has_room():
                self._start(self.waiting.pop(0))
            self.progress.show(self.executor.progress)
            time.sleep(POLL_S)

    def _start(self, job: Job) -> None:
        if self._is_made_elsewhere(job):
            self.elsewhere.append(job)
            self.progress.say(f"{job.folder}: another process is running it")
            return
        self.running.add(job)
        self.executor.start(job)

    def _settle(self, job: Job, code: int, *, stopping: bool) -> None:
        if code in ENDED.values():
            state = job.directory.status()["state"]
            self.progress.finish(f"{job.folder}: {state}")
        elif stopping:
            return
        elif self._is_made_elsewhere(job):
            self.elsewhere.append(job)
        else:
            reason = last_words(job.log) or "no output"
            self.failures.append(Failure(job, f"{reason} (exit code {code})"))
            self.progress.finish(f"{job.folder}: failed: {reason}")

    def _look_elsewhere(self) -> None:
        """Handle runs that another process has ended or released."""
        if not self.elsewhere or time.monotonic() < self._look_due:
            return
        self._look_due = time.monotonic() + LOOK_S
        for job in [job for job in self.elsewhere if not self._is_made_elsewhere(job)]:
            self.elsewhere.remove(job)
            if state := find_ended(job.directory):
                self.progress.finish(f"{job.folder}: {state} by another process")
            else:
                self.waiting.append(job)

    def _is_made_elsewhere(self, job: Job) -> bool:
        return bool(job.directory.status()["state"] == "running")


class _Progress:
    """One bar over all runs and a line per current run; without a terminal, a line per event."""

    REFRESH_S = 0.5

    def __init__(self, total: int) -> None:
        hidden = not sys.stderr.isatty()
        self.bar = tqdm(total=total, unit="run", disable=hidden, position=0)
        self.lines: list[Any] = []
        self._due = 0.0

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        for line in self.lines:
            line.close()
        self.bar.close()

    def say(self, text: str) -> None:
        tqdm.write(text) if not self.bar.disable else print(text, flush=True)

    def finish(self, text: str) -> None:
        self.say(text)
        self.bar.update()

    def show(self, progress: Callable[[], dict[Job, str]]) -> None:
        if self.bar.disable or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self.REFRESH_S
        texts = [f"  {job.folder}: {text}" for job, text in progress().items()]
        while len(self.lines) < len(texts):
            self.lines.append(tqdm(total=0, bar_format="{desc}", leave=False, position=len(self.lines) + 1))
        for line, text in zip(self.lines, texts + [""] * len(self.lines), strict=False):
            line.set_description_str(text)
