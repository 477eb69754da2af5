"""One run: build, train epoch by epoch, write the run directory, resume."""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fgbench import measure
from fgbench.analysis.records import load_results
from fgbench.analysis.tables import summary_table
from fgbench.building import build_training
from fgbench.check import gradient_quality
from fgbench.config import Config, config_hash, run_folder, to_yaml
from fgbench.datasets.base import Splits, load_splits
from fgbench.datasets.search import DataSearch
from fgbench.errors import FgbenchError
from fgbench.progress import EpochProgress
from fgbench.results import Cell, RunDirectory, run_path
from fgbench.saving import load_state, save_state, state_files
from fgbench.signals import Interrupted, StopRequest
from fgbench.streams import derive_generator
from fgbench.summary import summarise
from fgbench.training import Training, evaluate, start_next_epoch, train_epoch

ENDED = {"finished": 0, "diverged": 4}
"""States of runs that have nothing more to do, and the command's exit code for each."""


@dataclass(frozen=True)
class Plan:
    """A run on the device it will use."""

    config: Config
    device: torch.device
    search: DataSearch

    @property
    def identity(self) -> str:
        """Which run this is: ``s<seed>-<hash8>``."""
        return f"s{self.config.seed}-{config_hash(self.config, self.device.type)}"

    @property
    def directory(self) -> RunDirectory:
        """Where it is kept."""
        return RunDirectory(run_path(self.config.results_dir, run_folder(self.config, self.device.type)))

    @property
    def ended(self) -> bool:
        """Whether the run directory says that it has finished or diverged."""
        return self.directory.status()["state"] in ENDED

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
) -> int:
    """Check all runs, then make them one after the other, and print a closing table.

    Args:
        configs: one per run.
        data_dir: a folder to look for datasets in first.
        download: whether to fetch a dataset that is not found.
        force: repeat runs that have ended, and take over run directories that another host holds.
        resume: go on from the last saved state of a run that has not ended.
        dry_run: stop after the checks.

    Returns:
        The command's exit code.

    Raises:
        ConfigError: a run cannot be made; nothing has been written.
        Interrupted: a signal asked to stop; the run's state is saved.
    """
    plans = {}
    for config in configs:
        plan = plan_run(config, DataSearch(data_dir, config.data_dir, download), force=force)
        plans[plan.directory.path] = plan
    if dry_run:
        for path, plan in plans.items():
            print(f"{path}: {_describe(plan)}")
        return 0
    codes = [0]
    for path, plan in plans.items():
        if plan.ended and not force:
            state = plan.directory.status()["state"]
            print(f"{path}: {state} already, skipped (--force repeats it)")
        else:
            print(f"{path}: {_describe(plan)}")
            try:
                state = run(plan, force=force, resume=resume)
            except Interrupted:
                raise
            except FgbenchError as error:
                print(f"fgbench: {error}", file=sys.stderr)
                codes.append(error.exit_code)
                continue
        codes.append(ENDED[state])
    records = [record for path in plans if (path / "config.yaml").exists() for record in load_results(path)]
    if records:
        print(f"\n{summary_table(records)}")
    return next((code for code in (2, 1, 4) if code in codes), 0)


def plan_run(config: Config, search: DataSearch, *, force: bool = False) -> Plan:
    """Check that a run can be made, without writing anything.

    Raises:
        ConfigError: the device, the data or the output place are not there, or the parts do not go together.
    """
    plan = Plan(config, measure.resolve_device(config.device), search)
    plan.directory.check_place()
    if force or not plan.ended:
        build_training(config, plan.device, plan.load_splits())
    return plan


def run(plan: Plan, *, force: bool = False, resume: bool = True) -> str:
    """Make a run, or go on with it from where it was left; returns its state in the end.

    Raises:
        FgbenchError: the run directory is in use or cannot be written, memory ran out, or no state file is
        usable. Interrupted: a signal asked to stop; the state is saved.
    """
    directory = plan.directory.create()
    with directory.lock(force=force):
        try:
            return _run_locked(plan, directory, resume=resume and not force)
        except Interrupted as interruption:
            directory.write_status("interrupted", reason=interruption.reason)
            raise
        except Exception as error:
            reason = _explain(error, plan.config)
            try:
                directory.write_status("failed", reason=reason)
            except FgbenchError as second:
                print(f"fgbench: {second}", file=sys.stderr)
            if isinstance(error, FgbenchError | OSError | MemoryError) or reason.startswith("out of memory"):
                raise FgbenchError(f"{directory.path}: {reason}") from error
            raise


def _run_locked(plan: Plan, directory: RunDirectory, *, resume: bool) -> str:
    config = plan.config
    measure.prepare(plan.device, config.threads, keep=config.allocator, deterministic=config.deterministic)
    splits = plan.load_splits()
    training = build_training(config, plan.device, splits)
    saved, warnings = load_state(directory.path, plan.identity) if resume else (None, [])
    for warning in warnings:
        print(f"fgbench: {warning}", file=sys.stderr)
    directory.write_status("running", epoch=training.epoch, epochs=config.epochs)
    if saved is None:
        for path in state_files(directory.path):
            path.unlink()
    else:
        training.load_state_dict(saved["training"])
        print(f"goes on after epoch {training.epoch}, batch {training.batch} of the next")
    directory.truncate_metrics(training.epoch)
    directory.write_config(to_yaml(config))
    directory.write_env(measure.environment(plan.device))
    with StopRequest() as stop:
        state = _Loop(plan, directory, training, stop, saved["elapsed_s"] if saved else 0.0).train()
    directory.write_summary(summarise(directory.read_metrics()))
    directory.write_status(state, epoch=training.epoch, epochs=config.epochs)
    return state


class _Loop:
    """The loop over a run's epochs, and what it needs at hand."""

    def __init__(
        self, plan: Plan, directory: RunDirectory, training: Training, stop: StopRequest, elapsed_s: float
    ) -> None:
        self.plan, self.config, self.directory = plan, plan.config, directory
        self.training, self.stop, self.elapsed_s = training, stop, elapsed_s
        self.cpu_memory_mib = _cpu_step_memory(plan, training.splits) if plan.device.type == "cpu" else None

    def train(self) -> str:
        """Train to the end; returns ``finished`` or ``diverged``."""
        training, saving = self.training, self.config.saving
        diverged = False
        while training.epoch < self.config.epochs and not diverged:
            row = self.train_epoch()
            self.directory.append_metrics(row)
            start_next_epoch(training)
            diverged = not math.isfinite(float(row["train_loss"] or 0.0))
            ended = diverged or training.epoch == self.config.epochs
            if ended or self.stop.requested or training.epoch % saving.every == 0:
                self.save()
            if self.stop.requested and not ended:
                raise Interrupted(self.stop.number, self.directory.path)
            self.directory.write_status("running", epoch=training.epoch, epochs=self.config.epochs)
        return "diverged" if diverged else "finished"

    def train_epoch(self) -> dict[str, Cell]:
        """Train and evaluate one epoch, or the rest of it; returns its row."""
        training, every = self.training, self.config.saving.every_steps
        start = time.perf_counter() - training.epoch_time_s
        learning_rate = float(training.schedule.get_last_lr()[0])

        def after_step() -> bool:
            self.directory.beat()
            progress.update()
            if every and training.step % every == 0:
                nonlocal start
                measure.synchronize(training.device)
                training.epoch_time_s = time.perf_counter() - start
                self.save()
                start = time.perf_counter() - training.epoch_time_s
            return self.stop.requested

        with (
            EpochProgress(training, self.config.epochs) as progress,
            measure.PeakMemory(training.device) as peak,
            measure.OtherLoad() as load,
        ):
            whole = train_epoch(training, after_step)
            measure.synchronize(training.device)
        training.epoch_time_s = time.perf_counter() - start
        if not whole:
            self.save()
            raise Interrupted(self.stop.number, self.directory.path)
        on_gpu = peak.mib is not None
        row = _training_columns(training, learning_rate) | {
            "peak_memory_mib": peak.mib - training.splits.mib if on_gpu else self.cpu_memory_mib,
            "memory_source": "cuda-allocator" if on_gpu else "cpu-profiler",
            "nvml_memory_mib": measure.nvml_process_memory_mib() if on_gpu else None,
            "timing_note": load.reason,
        }
        start = time.perf_counter()
        row |= _evaluation_columns(training)
        row["eval_time_s"] = time.perf_counter() - start
        self.elapsed_s += training.epoch_time_s + row["eval_time_s"]
        row["elapsed_s"] = self.elapsed_s
        if self.config.diagnostics.every and (training.epoch + 1) % self.config.diagnostics.every == 0:
            row |= _diagnostic_columns(training)
        progress.report(row)
        return row

    def save(self) -> None:
        """Write a state file to go on from."""
        state = {
            "run": self.plan.identity,
            "training": self.training.state_dict(),
            "elapsed_s": self.elapsed_s,
        }
        save_state(self.directory.path, state, self.config.saving.keep)


def _training_columns(training: Training, learning_rate: float) -> dict[str, Cell]:
    loss, accuracy, grad_norm = training.train_means()
    seconds, images = training.epoch_time_s, training.images_seen
    return {
        "epoch": training.epoch + 1,
        "train_loss": loss,
        "train_accuracy": accuracy,
        "lr": learning_rate,
        "epoch_time_s": seconds,
        "batch_time_ms": 1000 * seconds / training.batch,
        "samples_per_s": images / seconds,
        "grad_norm": grad_norm,
    }


def _evaluation_columns(training: Training) -> dict[str, Cell]:
    columns: dict[str, Cell] = {}
    for part, split in (("val", training.splits.validation), ("test", training.splits.test)):
        if len(split):
            columns[f"{part}_loss"], columns[f"{part}_accuracy"] = evaluate(
                training.model, training.loss_fn, split
            )
    return columns


def _diagnostic_columns(training: Training) -> dict[str, Cell]:
    """Cosine and relative error of the trainer's gradient against the true one, on a batch of training
    images.
    """
    count = min(training.batch_size, len(training.splits.train))
    inputs, labels = training.splits.train.batch(torch.arange(count, device=training.device), None)
    generator = derive_generator(training.device, training.seed, "diagnostics", training.epoch)
    cosine, error = gradient_quality(
        training.trainer, training.model, training.loss_fn, inputs, labels, generator
    )
    return {"gradient_cosine": cosine, "gradient_relative_error": error}


def _cpu_step_memory(plan: Plan, splits: Splits) -> float:
    """Peak memory of one step on the CPU, MiB, of a second copy of everything: the run itself is not
    disturbed.
    """
    training = build_training(plan.config, plan.device, splits)

    def step() -> None:
        training.batch = 0
        train_epoch(training, after_step=lambda: True)

    step()  # the optimizer makes its state
    return measure.step_memory(step, measure.resident_bytes(training.model, training.optimizer))


def _explain(error: Exception, config: Config) -> str:
    """One line for the user: what went wrong and what to lower or mend."""
    text = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        chunk = ", trainer.chunk" if hasattr(config.trainer, "chunk") else ""
        return (
            f"out of memory with batch_size {config.batch_size} and model {config.model.name}: "
            f"lower batch_size{chunk} or take a smaller model ({text[:120]})"
        )
    return text if isinstance(error, FgbenchError) else f"{type(error).__name__}: {text}"


def _describe(plan: Plan) -> str:
    config = plan.config
    return (
        f"{config.model.name} on {config.dataset.name} with {config.trainer.name}, "
        f"seed {config.seed}, {config.epochs} epochs, {plan.device}"
    )
