"""One run: build, train epoch by epoch, write the run directory, resume."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fgbench import measure
from fgbench.config.config import Config, config_hash, load_config, run_folder, to_yaml
from fgbench.datasets.base import Splits, load_splits
from fgbench.datasets.search import DataSearch
from fgbench.errors import ConfigError, FgbenchError
from fgbench.options import declared_backwards
from fgbench.run.build import build_training
from fgbench.run.epochs import EpochLoop
from fgbench.run.loop import Training
from fgbench.run.signals import Interrupted, StopRequest
from fgbench.run.verify import verify_next_step
from fgbench.run.world import ForeignRunDirectory, SharedStopRequest, World, is_lost_worker
from fgbench.storage.run_directory import ENDED, Cell, RunDirectory, run_path
from fgbench.storage.state import StateError, first_line, load_state, state_files
from fgbench.storage.summary import summarise


class RunsOutcome(NamedTuple):
    """What became of the runs of a command.

    Attributes:
        code: the command's exit code.
        paths: the run directories, the skipped ones included; none in a dry run, or in a worker that is not
            the first.
    """

    code: int
    paths: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A run on the device it will use."""

    config: Config
    device: torch.device
    search: DataSearch
    world: World = field(default_factory=World)

    @property
    def identity(self) -> str:
        """Which run this is: ``s<seed>-<hash8>``."""
        return f"s{self.config.seed}-{config_hash(self.config, self.device.type, self.world.size)}"

    @property
    def directory(self) -> RunDirectory:
        """Where it is kept."""
        folder = run_folder(self.config, self.device.type, self.world.size)
        kind = RunDirectory if self.world.is_main else ForeignRunDirectory
        return kind(run_path(self.config.results_dir, folder))

    @property
    def ended(self) -> str | None:
        """The state of a run that has finished or diverged, its files whole; all workers must ask."""
        return self.world.on_main(self._ended)

    def _ended(self) -> str | None:
        directory, status = self.directory, self.directory.status()
        whole = status["state"] in ENDED and len(directory.read_metrics()) == status.get("epoch")
        if not whole or not directory.read_summary():
            return None
        try:
            load_config(directory.path / "config.yaml")
        except ConfigError:
            return None
        return str(status["state"])

    def load_splits(self) -> Splits:
        """The run's images, on its device."""
        return load_splits(self.config.dataset, self.config.seed, self.device, self.search)


def run_configs(
    configs: Sequence[Config],
    *,
    data_dir: Path | None = None,
    download: bool = True,
    force: bool = False,
    resume: bool = True,
    dry_run: bool = False,
) -> RunsOutcome:
    """Check all runs, then make them one after the other.

    Under torchrun every worker calls this; the first failure then ends them all.

    Args:
        configs: one per run.
        data_dir: a folder to look for datasets in first.
        download: whether to fetch a dataset that is not found.
        force: repeat runs that have ended, and take over run directories that another host holds; an
            unfinished run still goes on from its last saved state.
        resume: go on from the last saved state of a run that has not ended.
        dry_run: stop after the checks.

    Raises:
        ConfigError: a run cannot be made; nothing has been written.
        Interrupted: a signal asked to stop; the run's state is saved.
    """
    with World.from_environment().joined() as world:
        plans = {}
        for config in configs:
            plan = plan_run(config, DataSearch(data_dir, config.data_dir, download), force=force, world=world)
            plans[plan.directory.path] = plan
        if dry_run:
            for path, plan in plans.items():
                print(f"{path}: {_describe(plan)}")
            return RunsOutcome(0)
        code = _run_plans(plans, force=force, resume=resume)
        return RunsOutcome(code, tuple(plans) if world.is_main else ())


def _run_plans(plans: dict[Path, Plan], *, force: bool, resume: bool) -> int:
    codes = [0]
    for path, plan in plans.items():
        state = None if force else plan.ended
        if state:
            print(f"{path}: {state} already, skipped (--force repeats it)")
        else:
            print(f"{path}: {_describe(plan)}")
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


def plan_run(config: Config, search: DataSearch, *, force: bool = False, world: World | None = None) -> Plan:
    """Check that a run can be made, without writing anything.

    Raises:
        ConfigError: the device, the data or the output place are not there, the parts do not go together, or
            do not fit into memory.
    """
    world = world or World()
    with world.agreed():
        plan = Plan(config, world.resolve_device(config.device), search, world)
        plan.directory.check_place()
    if force or not plan.ended:
        for is_turn in (world.local_rank == 0, world.local_rank > 0):  # one per machine fetches missing data
            with world.agreed():
                if is_turn:
                    _check_build(plan)
    return plan


def _check_build(plan: Plan) -> None:
    try:
        build_training(plan.config, plan.device, plan.load_splits(), plan.world)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise ConfigError(_explain(error, plan.config)) from error


def run(plan: Plan, *, force: bool = False, resume: bool = True) -> str:
    """Make a run, or go on with it from where it was left; returns its state in the end.

    Raises:
        FgbenchError: the run directory is in use or cannot be written, memory ran out, or no state file is
            usable.
        Interrupted: a signal asked to stop; the state is saved.
    """
    with ExitStack() as held:
        with plan.world.agreed():
            directory = plan.directory.create()
            held.enter_context(directory.lock(force=force))
        if state := plan.ended:
            if not force:  # by another process, since the plan was made
                return state
            resume = False
        try:
            return _run_locked(plan, directory, resume=resume)
        except Interrupted as interruption:
            if not plan.ended:
                directory.write_status("interrupted", reason=interruption.reason)
            raise
        except Exception as error:
            reason = _explain(error, plan.config)
            try:
                directory.write_status("failed", reason=reason)
            except FgbenchError as second:
                print(f"fgbench: {second}", file=sys.stderr)
            if (
                isinstance(error, FgbenchError | OSError)
                or _is_out_of_memory(error)
                or _is_nondeterministic(error)
                or is_lost_worker(error)
            ):
                raise FgbenchError(f"{directory.path}: {reason}") from error
            raise


def _run_locked(plan: Plan, directory: RunDirectory, *, resume: bool) -> str:
    config, world = plan.config, plan.world
    with world.agreed():
        directory.write_status("running", epoch=0, epochs=config.epochs)
        measure.prepare(
            plan.device, config.threads, keep=config.allocator, deterministic=config.deterministic
        )
        training = build_training(config, plan.device, plan.load_splits(), world)
    rows: list[dict[str, Cell]] = []
    if resume:
        rows = _go_on(plan, directory, training)
    elif world.is_main:
        for path in state_files(directory.path):
            path.unlink()
    with world.agreed():
        directory.write_metrics(rows)
        directory.write_config(to_yaml(config))
        directory.write_env(_describe_environments(plan, directory, resumed=training.step > 0))
        directory.write_status("running", epoch=training.epoch, epochs=config.epochs)
    world.share_parameters(training.model)
    with SharedStopRequest(world) if world.size > 1 else StopRequest() as stop:
        loop = EpochLoop(config, plan.identity, directory, training, rows, stop, world)
        verified = verify_next_step(training, world) if config.verify and not loop.ended else None
        state = loop.train()
        extra = {"uses_backwards": declared_backwards(config.trainer), "verification": verified}
        directory.write_summary(summarise(rows) | extra)
        directory.write_status(state, epoch=training.epoch, epochs=config.epochs)
    if stop.requested:  # too late for this run, in time for those after it
        raise Interrupted(stop.number, directory.path)
    return state


def _go_on(plan: Plan, directory: RunDirectory, training: Training) -> list[dict[str, Cell]]:
    """Put ``training`` where the newest usable state file left it; returns the rows up to there."""
    saved, warnings = plan.world.on_main(lambda: load_state(directory.path, plan.identity))
    for warning in warnings if plan.world.is_main else ():
        print(f"fgbench: {warning}", file=sys.stderr)
    if saved is None:
        return []
    try:
        training.load_state_dict(saved["training"])
        rows: list[dict[str, Cell]] = saved["rows"]
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise StateError(
            f"the state file does not fit this model and trainer ({first_line(error)}): perhaps another "
            "version of fgbench wrote it; --no-resume starts this run anew"
        ) from error
    print(f"goes on after epoch {training.epoch}, batch {training.batch} of the next")
    return rows


def _describe_environments(plan: Plan, directory: RunDirectory, *, resumed: bool) -> dict[str, Any]:
    """What env.json holds: where the run is made now and, if that has changed, where it was before."""
    if not plan.world.is_main:
        return {}
    now, before = (
        measure.describe_environment(plan.device) | {"workers": plan.world.size},
        directory.read_env(),
    )
    if not resumed or not before:
        return now
    earlier = before.pop("earlier", [])
    changed = [key for key in now if key != "command" and now[key] != before.get(key)]
    if changed:
        earlier = [*earlier, before]
        print(
            f"fgbench: {', '.join(changed)} changed since this run began (env.json keeps both); "
            "bit for bit holds only for one environment",
            file=sys.stderr,
        )
    return {**now, "earlier": earlier} if earlier else now


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _is_nondeterministic(error: Exception) -> bool:
    return "does not have a deterministic implementation" in str(error)


def _explain(error: Exception, config: Config) -> str:
    """One line for the user: what went wrong and what to lower or mend."""
    text = first_line(error)
    if isinstance(error, FgbenchError):
        return str(error)
    if is_lost_worker(error):
        return "another worker stopped, and with it this run; that worker's own message says why"
    if _is_out_of_memory(error):
        knobs = [name for name in ("chunk", "tangents") if hasattr(config.trainer, name)]
        lower = " or ".join(["batch_size", *(f"trainer.{name}" for name in knobs)])
        return (
            f"out of memory with batch_size {config.batch_size}, model {config.model.name} and trainer "
            f"{config.trainer.name}: lower {lower}, or take a smaller model ({text})"
        )
    if _is_nondeterministic(error):
        return f"deterministic: true is more than PyTorch can give here ({text}); set it to false"
    return f"{type(error).__name__}: {text}"


def _describe(plan: Plan) -> str:
    config = plan.config
    return (
        f"{config.model.name} on {config.dataset.name} with {config.trainer.name}, "
        f"seed {config.seed}, {config.epochs} epochs, {plan.device}"
        + (f", {plan.world.size} workers" if plan.world.size > 1 else "")
    )
