"""A sweep's runs and estimated cost, from a few measured steps of each configuration."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fgbench import measure
from fgbench.analysis.rendering import align
from fgbench.analysis.series import label_configs
from fgbench.errors import FgbenchError
from fgbench.run.build import build_training
from fgbench.run.epochs import cpu_step_memory
from fgbench.run.loop import TrainingState, evaluate, train_epoch
from fgbench.run.plan import Plan
from fgbench.storage.state import first_line

STEPS = 3
"""Timed steps of each configuration, after one that warms up."""
FREE: dict[str, Any] = {"name": True, "results_dir": True, "seed": True, "epochs": True, "optimizer": {"lr"}}
"""Keys that do not affect the cost of an epoch."""
EVALUATED = 500
"""Number of images whose evaluation is timed."""


@dataclass(frozen=True)
class Estimate:
    """The cost of an epoch of a configuration.

    Attributes:
        epoch_s: seconds, evaluation included.
        memory_mib: peak of a step.
        problem: why it could not be measured.
    """

    epoch_s: float = 0.0
    memory_mib: float = 0.0
    problem: str = ""


def describe_sweep(plans: Sequence[Plan], jobs: int, threads: int, *, force: bool = False) -> str:
    """A table of runs with their states, and estimates of time and memory for the remaining ones.

    Args:
        plans: the runs.
        jobs: how many run in parallel.
        threads: CPU threads of each.
        force: whether runs that have ended are repeated.
    """
    estimates: dict[str, Estimate] = {}
    rows, left = [], 0.0
    for plan, label in zip(plans, label_configs([plan.config for plan in plans]), strict=True):
        status = plan.directory.status() if plan.directory.path.exists() else {"state": "new"}
        cells = [label, str(plan.config.seed), str(status["state"])]
        if plan.ended and not force:
            rows.append([*cells, "-", "-"])
            continue
        kind = f"{plan.device} {plan.config.model_dump_json(exclude=FREE)}"
        if kind not in estimates:
            estimates[kind] = measure_plan(plan, threads)
        estimate = estimates[kind]
        if estimate.problem:
            rows.append([*cells, estimate.problem, "-"])
            continue
        made = 0 if plan.ended else len(plan.directory.read_metrics())
        seconds = estimate.epoch_s * (plan.config.epochs - made)
        left += seconds
        rows.append([*cells, format_duration(seconds), f"{estimate.memory_mib:.1f} MiB"])
    done = sum(bool(plan.ended) for plan in plans)
    runs = f"{len(plans)} run{'s' * (len(plans) != 1)}"
    repeated = ", to be repeated" if done and force else ""
    total = f"{runs}, {done} finished{repeated}; about {format_duration(left / jobs)} left"
    beside = f"with {jobs} in parallel" if jobs > 1 else "one after the other"
    return (
        align(["run", "seed", "state", "time", "memory"], rows)
        + f"\n\n{total} {beside}, {threads} thread{'s' * (threads != 1)} each\n"
        + f"From {STEPS} measured steps of each configuration here; parallel runs slow each other down."
    )


def measure_plan(plan: Plan, threads: int) -> Estimate:
    """Build a run and take a few steps of it, in this process."""
    config = plan.config
    if plan.data.startswith("unknown"):
        return Estimate(problem=plan.data)
    try:
        measure.resolve_device(config.device)
        measure.prepare(plan.device, config.threads or threads, keep=config.allocator)
        splits = plan.load_splits()
        training = build_training(config, plan.device, splits)
        with measure.PeakMemory(plan.device) as peak:
            _make_steps(training, 1)
            measure.synchronize(plan.device)
            start = time.perf_counter()
            steps = _make_steps(training, STEPS)
            measure.synchronize(plan.device)
            step_s = (time.perf_counter() - start) / steps
        some = replace(
            splits.test, images=splits.test.images[:EVALUATED], labels=splits.test.labels[:EVALUATED]
        )
        start = time.perf_counter()
        evaluate(training.model, training.loss_fn, some)
        evaluated_s = (time.perf_counter() - start) / max(1, len(some))
        memory = (
            peak.mib - splits.bytes / measure.MIB if peak.mib is not None else cpu_step_memory(config, splits)
        )
    except (FgbenchError, RuntimeError, MemoryError) as error:
        return Estimate(problem=first_line(error))
    images = len(splits.validation) + len(splits.test)
    return Estimate(step_s * training.batches_per_epoch + evaluated_s * images, memory)


def _make_steps(training: TrainingState, count: int) -> int:
    """Take at most ``count`` steps of an epoch; returns how many."""
    training.batches_done = 0
    train_epoch(training, after_step=lambda: training.batches_done >= count)
    return training.batches_done


def format_duration(seconds: float) -> str:
    """Seconds in the unit that suits them.

    >>> format_duration(5400)
    '1.5 h'
    """
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
