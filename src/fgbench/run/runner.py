"""One run: build, train epoch by epoch, write the run directory, resume."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from fgbench import measure
from fgbench.config.config import Config, to_yaml
from fgbench.datasets.fingerprint import Fingerprint
from fgbench.datasets.search import DataSearch
from fgbench.errors import FgbenchError
from fgbench.options import declared_backwards
from fgbench.run.build import build_training
from fgbench.run.check import plan_run
from fgbench.run.classes import measure_classes
from fgbench.run.code import own_code
from fgbench.run.cost import measure_step_cost
from fgbench.run.data import check_state, is_known
from fgbench.run.epochs import EpochLoop
from fgbench.run.failures import explain_failure, is_expected
from fgbench.run.loggers import Loggers
from fgbench.run.loop import TrainingState
from fgbench.run.plan import Plan, find_ended
from fgbench.run.signals import Interrupted, StopRequest
from fgbench.run.validation import describe_best
from fgbench.run.verify import verify_next_step
from fgbench.run.world import SharedStopRequest, World
from fgbench.storage.metrics import METRICS, Cell
from fgbench.storage.run_directory import ENDED, RunDirectory
from fgbench.storage.state import StateError, first_line, load_state, state_files
from fgbench.storage.summary import summarise

SHORT = ("fgbench", "python", "torch", "numpy", "threads", "cpu", "gpu", "device")
"""Keys of env.json with values short enough to print when they change."""


class RunsOutcome(NamedTuple):
    """The outcome of a command's runs.

    Attributes:
        code: the command's exit code.
        paths: the run directories, the skipped ones included; none in a dry run, or in a worker that is not
            the first.
    """

    code: int
    paths: tuple[Path, ...] = ()


def run_configs(
    configs: Sequence[Config],
    *,
    data_dir: Path | None = None,
    download: bool = True,
    force: bool = False,
    resume: bool = True,
    dry_run: bool = False,
) -> RunsOutcome:
    """Check all runs, then run them one after the other.

    Under torchrun every worker calls this; the first failure then ends all of them.

    Args:
        configs: one per run.
        data_dir: a folder to look for datasets in first.
        download: whether to fetch a dataset that is not found.
        force: repeat runs that have ended, and take over run directories that another host holds; an
            unfinished run still resumes from its last saved state.
        resume: from the last saved state of a run that has not ended.
        dry_run: stop after the checks; nothing is downloaded, and data may be missing.

    Raises:
        ConfigError: a run cannot be started; nothing has been written.
        Interrupted: a signal asked to stop; the run's state is saved.
    """
    with World.from_environment().joined() as world:
        plans: dict[Path, Plan] = {}
        known: dict[str, Fingerprint] = {}
        for config in configs:
            search = DataSearch(data_dir, config.data_dir, download and not dry_run)
            plan = plan_run(
                config, search, force=force, resume=resume, dry_run=dry_run, world=world, known=known
            )
            plans[plan.directory.path] = plan
        if dry_run:
            for plan in plans.values():
                print(_describe(plan, force=force))
            return RunsOutcome(0)
        code = _run_plans(plans, force=force, resume=resume)
        return RunsOutcome(code, tuple(plans) if world.is_main else ())


def _run_plans(plans: dict[Path, Plan], *, force: bool, resume: bool) -> int:
    codes = [0]
    for plan in plans.values():
        print(_describe(plan, force=force))
        state = None if force else plan.ended
        if not state:
            try:
                state = run(plan, force=force, resume=resume)
            except Interrupted:
                raise
            except FgbenchError as error:
                if plan.world.size > 1:
                    raise
                print(f"fgbench: {error}", file=sys.stderr)
                codes.append(error.exit_code)
                continue
        codes.append(ENDED[state])
    return next((code for code in (2, 1, 4) if code in codes), 0)


def _describe(plan: Plan, *, force: bool) -> str:
    """One line about what a run will do, or that there is nothing to do."""
    path = plan.directory.path
    if plan.ended and not force:
        return f"{path}: {plan.ended} already, skipped (--force repeats it{plan.data and f'; {plan.data}'})"
    return f"{path}: {plan}"


def run(plan: Plan, *, force: bool = False, resume: bool = True) -> str:
    """Run it, or resume it from its last saved state; returns its final state.

    Raises:
        FgbenchError: the run directory is in use or cannot be written, memory ran out, or no state file is
            usable.
        Interrupted: a signal asked to stop; the state is saved.
    """
    with ExitStack() as held:
        with plan.world.agreed():
            directory = plan.directory.create()
            try:
                held.enter_context(directory.lock(force=force))
            except FgbenchError:
                if not force and plan.world.size == 1 and (state := find_ended(directory)):
                    return state  # locked briefly by another process that checks whether it has ended
                raise
        ended = plan.world.on_main(lambda: find_ended(directory))
        if ended and not force:  # ended by another process since it was planned
            return ended
        try:
            state, stop = _run_locked(plan, directory, resume=resume, repeats=bool(ended))
        except Interrupted as interruption:
            directory.write_status("interrupted", reason=interruption.reason)
            raise
        except Exception as error:
            reason = explain_failure(error, plan.config)
            try:
                if not find_ended(directory):  # as a run still is whose repeat could not be built
                    directory.write_status("failed", reason=reason)
            except FgbenchError as second:
                print(f"fgbench: {second}", file=sys.stderr)
            if is_expected(error):
                raise FgbenchError(f"{directory.path}: {reason}") from error
            raise
    if stop.requested:  # too late for this run, but not for the next ones
        raise Interrupted(stop.number, directory.path)
    return state


def _run_locked(
    plan: Plan, directory: RunDirectory, *, resume: bool, repeats: bool
) -> tuple[str, StopRequest]:
    """Train to the end; the result of an ended run stays until its repeat has been built and verified."""
    config, world = plan.config, plan.world
    with world.agreed():
        if not repeats:
            directory.write_status("running", epoch=0, epochs=config.epochs)
        measure.prepare(
            plan.device, config.threads, keep=config.allocator, deterministic=config.deterministic
        )
        training = build_training(config, plan.device, plan.load_splits(), world)
    if (images := len(training.splits.train)) < config.batch_size and world.is_main:
        print(
            f"fgbench: batch_size: {config.batch_size} is more than the {images} training images, so every "
            "epoch is one step with all of them",
            file=sys.stderr,
        )
    rows: list[dict[str, Cell]] = []
    best = None
    if resume and not repeats:
        rows, best = _resume(plan, directory, training)
    world.share_parameters(training.model)
    verified = verify_next_step(training, world) if config.verify and repeats else None
    if (repeats or not resume) and world.is_main:
        for path in state_files(directory.path):  # the first to go: none may be taken for the repeat's
            path.unlink()
    with world.agreed():
        directory.write_status("running", epoch=training.epochs_done, epochs=config.epochs)
        directory.delete_ending()
        directory.write_metrics(rows)
        if directory.read_layers():
            directory.write_layers(len(rows) + 1, [])  # later epochs are repeated
        directory.write_config(to_yaml(config))
        splits = training.splits
        loaded = splits.fingerprint.to_dict() if splits.fingerprint else None
        data = loaded and loaded | {"largest_class": splits.largest_class}
        environment = _describe_environments(plan, directory, data, resumed=training.step > 0)
        directory.write_env(environment)
    with SharedStopRequest(world) if world.size > 1 else StopRequest() as stop:
        loggers = Loggers(config.log if world.is_main else ())
        loop = EpochLoop(config, plan.identity, directory, training, rows, stop, world, best, loggers.log)
        if config.verify and not (repeats or loop.ended):
            verified = verify_next_step(training, world)
        _record_compiled(training, directory)
        cost = measure_step_cost(config, plan.device, training.splits) if world.size == 1 else None
        loggers.start(directory.path, config.model_dump(mode="json"), environment, rows)
        try:
            state = loop.train()
        except BaseException as error:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt)
            loggers.finish("interrupted" if stopped else "failed")
            raise
        _record_compiled(training, directory)
        extra = {
            "uses_backwards": declared_backwards(config.trainer),
            "forward_passes_per_step": cost and cost.forward_passes,
            "drawing_ms_per_step": cost and cost.drawing_ms,
            "verification": verified,
            "stopped_early": loop.stopped_early or None,
            "best_saved": describe_best(config.saving.best, rows),
            "test_class_accuracy": world.on_main(lambda: measure_classes(training, directory, state)),
        }
        summary = summarise(rows) | extra
        directory.write_summary(summary)
        reason = {"reason": loop.stopped_early} if loop.stopped_early else {}
        directory.write_status(state, epoch=training.epochs_done, epochs=config.epochs, **reason)
        for line in reason.values():
            print(line)
        loggers.finish(state, summary)
    return state, stop


def _resume(
    plan: Plan, directory: RunDirectory, training: TrainingState
) -> tuple[list[dict[str, Cell]], dict[str, Any] | None]:
    """Restore ``training`` from the newest usable state file; returns the rows and best weights."""
    saved, warnings = plan.world.on_main(lambda: load_state(directory.path, plan.identity))
    for warning in warnings if plan.world.is_main else ():
        print(f"fgbench: {warning}", file=sys.stderr)
    if saved is None:
        return [], None
    changed = check_state(saved, training.splits)
    if changed:
        raise StateError(
            f"the state file is of a run on other data: {changed}; restore that data, or use --no-resume "
            "to start this run again"
        )
    if unsaved := saved["training"].get("unsaved"):
        raise StateError(
            f"the model keeps {unsaved[0]!r} outside of its state_dict, so this run cannot be resumed: make "
            "it a buffer; --no-resume starts this run again"
        )
    if not is_known(saved.get("data")) and plan.world.is_main:
        print(
            f"fgbench: the data this run started on was not recorded; it resumes with {training.splits}",
            file=sys.stderr,
        )
    try:
        training.load_state_dict(saved["training"])
        rows = [dict.fromkeys(METRICS) | row for row in saved["rows"]]  # an older version had fewer columns
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise StateError(
            f"the state file does not fit this model and trainer ({first_line(error)}): perhaps another "
            "version of fgbench wrote it; --no-resume starts this run again"
        ) from error
    print(f"resumes after epoch {training.epochs_done}, batch {training.batches_done} of the next")
    return rows, saved.get("best")


def _record_compiled(training: TrainingState, directory: RunDirectory) -> None:
    """Record in env.json whether steps run compiled, and report once if they do not."""
    if training.trainer.compiled is None:
        return
    reason = training.trainer.compiled.reason
    env = directory.read_env()
    found = f"no: {reason}" if reason else "yes"
    if env and env.get("compiled") != found:
        directory.write_env({**env, "compiled": found})
        if reason:
            print(f"fgbench: compile: true, but steps run eagerly: {reason}", file=sys.stderr)


def _describe_environments(
    plan: Plan, directory: RunDirectory, data: dict[str, Any] | None, *, resumed: bool
) -> dict[str, Any]:
    """The content of env.json: the current environment and, if it has changed, the previous ones."""
    if not plan.world.is_main:
        return {}
    own = {"workers": plan.world.size, "data": data, "code": own_code(plan.config)}
    now, before = measure.describe_environment(plan.device) | own, directory.read_env()
    if not resumed or not before:
        return now
    earlier = before.pop("earlier", [])
    changed = [key for key in now if key not in ("command", "data", "code") and now[key] != before.get(key)]
    if changed:
        earlier = [*earlier, before]
        values = "".join(f"{key} {before.get(key)} then, {now[key]} now; " for key in changed if key in SHORT)
        print(
            f"fgbench: {', '.join(changed)} changed since this run started ({values}env.json keeps both); "
            "bit for bit holds only for one environment",
            file=sys.stderr,
        )
    return {**now, "earlier": earlier} if earlier else now
