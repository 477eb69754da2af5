"""The commands for many runs: ``fgbench sweep`` and ``tune``."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fgbench.cli.arguments import (
    DataDir,
    Force,
    Log,
    NoDownload,
    Overrides,
    ResultsOption,
    Seeds,
    parse_seeds,
)
from fgbench.cli.output import print_summary
from fgbench.errors import ConfigError

if TYPE_CHECKING:
    from fgbench.config.config import Config
    from fgbench.config.sweep import Sweep
    from fgbench.datasets.search import DataSearch
    from fgbench.run.plan import Plan
    from fgbench.sweep.executor import Executor

SOME_FAILED = 3
"""Exit code of a sweep some of whose runs failed."""

SweepPath = Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep file (YAML).", show_default=False)]


def sweep(
    file: SweepPath,
    override: Overrides = [],  # noqa: B006
    seeds: Seeds = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Runs in parallel; by default one per GPU, or one; with --ray as many as have room.",
            show_default=False,
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Run on a Ray cluster: HOST:PORT, or auto.", show_default=False),
    ] = None,
    cpus_per_run: Annotated[
        int | None,
        typer.Option(min=1, help="With --ray: CPUs per run; 1 by default.", show_default=False),
    ] = None,
    gpus_per_run: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="With --ray: GPUs per run, such as 0.5; 1 by default if there are any.",
            show_default=False,
        ),
    ] = None,
    data_dir: DataDir = None,
    no_download: NoDownload = False,
    results: ResultsOption = None,
    log: Log = [],  # noqa: B006
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the runs, with an estimate of time and memory.")
    ] = False,
    force: Force = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop the others once a run fails.")] = False,
) -> None:
    """Run a whole sweep: a base config, axes over any of its keys, exclusions and seeds.

    Finished runs are skipped, unfinished ones resume. Runs that fail are listed at the end with their logs
    (RESULTS/logs), and the exit code is 3; the others continue. Ctrl-C stops all of them with their states
    saved.

    Example: fgbench sweep configs/sweeps/learning_rate.yaml --jobs 2 -o epochs=5
    """
    loaded = _load(file, override, seeds, results, log)
    _check_exclusive(loaded, file, jobs, ray)
    if ray is None and (cpus_per_run, gpus_per_run) != (None, None):
        raise ConfigError("--cpus-per-run and --gpus-per-run go with --ray")
    from fgbench.datasets.search import DataSearch
    from fgbench.run.signals import Interrupted
    from fgbench.storage.run_directory import RunDirectory
    from fgbench.sweep.driver import make_plans, run_sweep
    from fgbench.sweep.executor import RunFlags

    pool = _Pool(jobs, ray, cpus_per_run, gpus_per_run, loaded.exclusive)
    search = DataSearch(data_dir, None, not (no_download or dry_run))
    plans = make_plans(loaded.configs, search, pool.cuda, force=force, dry_run=dry_run)
    executor = pool.start(plans.values())
    if dry_run:
        from fgbench.sweep.estimate import describe_sweep

        described = describe_sweep(list(plans.values()), executor.size, executor.threads, force=force)
        typer.echo(described)
        return
    flags = RunFlags(data_dir.absolute() if data_dir else None, not no_download, force)
    paths, failures, stopped = run_sweep(plans, executor, flags, fail_fast=fail_fast)
    print_summary(paths)
    if stopped:
        raise Interrupted(stopped, f"sweep {file.stem}")
    states = Counter(RunDirectory(path).status()["state"] for path in paths if path.exists())
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    typer.echo(f"\n{len(paths)} runs: {counts}")
    for failure in failures:
        typer.echo(f"fgbench: {failure}", err=True)
    raise typer.Exit(SOME_FAILED if failures else 0)


class _Pool:
    """Where many runs are executed: in processes on this machine, or on a Ray cluster.

    Attributes:
        cuda: whether runs may use a GPU.
    """

    def __init__(
        self,
        jobs: int | None,
        ray: str | None,
        cpus_per_run: int | None = None,
        gpus_per_run: float | None = None,
        exclusive: bool = False,
    ) -> None:
        import torch

        self.jobs, self.ray, self.exclusive = jobs, ray, exclusive
        self.cpus_per_run, self.gpus_per_run = cpus_per_run, gpus_per_run
        self.gpus = torch.cuda.device_count()
        self.cuda = self.gpus > 0
        if ray is not None:
            from fgbench.sweep.ray_pool import connect

            self.cuda = connect(ray) and gpus_per_run != 0

    def start(self, plans: "Iterable[Plan]") -> "Executor":
        """An executor for the runs."""
        from fgbench.sweep.local import LocalPool, share_threads

        on_gpu = any(plan.device.type == "cuda" for plan in plans)
        if self.ray is not None:
            from fgbench.sweep.ray_pool import RayPool

            gpus = float(on_gpu) if self.gpus_per_run is None else self.gpus_per_run
            return RayPool(self.jobs, self.cpus_per_run or 1, gpus)
        jobs = self.jobs or (max(1, self.gpus) if on_gpu and not self.exclusive else 1)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = visible.split(",") if visible else [str(index) for index in range(self.gpus)]
        return LocalPool(jobs, share_threads(jobs), names if on_gpu else ())


def tune(
    file: SweepPath,
    override: Overrides = [],  # noqa: B006
    seeds: Seeds = None,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1, help="Trials of each configuration, instead of the file's number.", show_default=False
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="With sampler: grid: runs in parallel, as for sweep.", show_default=False),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="With sampler: grid: run on a Ray cluster.", show_default=False),
    ] = None,
    data_dir: DataDir = None,
    no_download: NoDownload = False,
    results: ResultsOption = None,
) -> None:
    """Search for the best learning rate of every configuration in a sweep, on its validation images.

    The file's block tune says what is tuned and how. With sampler: tpe all configurations have the same
    number of trials and epochs, with the first seed; trials that fall behind are stopped early. With sampler:
    grid all are run at the same values with several seeds that are not reported; values are added if the best
    is at an edge; with screen: N all values have N epochs first, and the best ones a whole run. The same
    command resumes after an interruption. It writes RESULTS/tuned/*.yaml, for fgbench
    run, and the trials; for a grid also the whole curve, as a table and as a figure.

    Example: fgbench tune configs/sweeps/learning_rate.yaml --trials 10
    """
    loaded = _load(file, override, seeds, results)
    from fgbench.config.sweep import TuneOptions
    from fgbench.datasets.search import DataSearch

    search = DataSearch(data_dir, None, not no_download)
    if loaded.tune is not None and loaded.tune.sampler == "grid":
        if trials is not None:
            raise ConfigError(
                "--trials has no meaning for sampler: grid; tune.points is its number of values"
            )
        _check_exclusive(loaded, file, jobs, ray)
        _tune_grid(loaded, search, jobs, ray, data_dir)
        return
    if (jobs, ray) != (None, None):
        raise ConfigError(
            "--jobs and --ray go with sampler: grid; trials of other samplers depend on earlier ones"
        )
    from dataclasses import replace

    from fgbench.sweep.tune import tune_sweep
    from fgbench.sweep.tuned import tuning_table

    if trials is not None:
        options = loaded.tune or TuneOptions()
        loaded = replace(loaded, tune=options.model_copy(update={"trials": trials}))
    found = tune_sweep(loaded, search, typer.echo)
    typer.echo(f"\n{tuning_table(found)}")


def _tune_grid(
    loaded: "Sweep", search: "DataSearch", jobs: int | None, ray: str | None, data_dir: Path | None
) -> None:
    """Tune on a grid, executing the runs like those of a sweep, and draw the curves."""
    from fgbench.errors import FgbenchError
    from fgbench.plotting.tuning import plot_tuning
    from fgbench.run.signals import Interrupted
    from fgbench.sweep.driver import make_plans, run_sweep
    from fgbench.sweep.executor import RunFlags
    from fgbench.sweep.grid import tune_grid
    from fgbench.sweep.tuned import tuning_table

    pool = _Pool(jobs, ray, exclusive=loaded.exclusive)
    flags = RunFlags(data_dir.absolute() if data_dir else None, search.download, False)

    def make_runs(configs: "Sequence[Config]") -> tuple[Path, ...]:
        plans = make_plans(configs, search, pool.cuda)
        paths, failures, stopped = run_sweep(plans, pool.start(plans.values()), flags)
        if stopped:
            raise Interrupted(stopped, f"tuning {loaded.name}")
        if failures:
            raise FgbenchError("\n".join(map(str, failures)))
        return paths

    found = tune_grid(loaded, make_runs, typer.echo)
    typer.echo(f"\n{tuning_table(found)}")
    for path in plot_tuning(loaded.configs[0].results_dir / "tuned" / f"{loaded.name}_grid.csv"):
        typer.echo(path)


def _check_exclusive(loaded: "Sweep", file: Path, jobs: int | None, ray: str | None) -> None:
    if loaded.exclusive and (jobs or 1) > 1:
        raise ConfigError(f"{file}: exclusive: true runs one at a time, but --jobs is {jobs}")
    if loaded.exclusive and ray is not None:
        raise ConfigError(f"{file}: exclusive: true runs one at a time on this machine, not with --ray")


def _load(
    file: Path, override: list[str], seeds: str | None, results: Path | None, log: Sequence[str] = ()
) -> "Sweep":
    from fgbench.config.overrides import Override
    from fgbench.config.sweep import load_sweep

    said = [Override("results_dir", str(results), "--results")] if results else []
    said += [Override("log", [*log], "--log")] if log else []
    return load_sweep(file, [*override, *said], None if seeds is None else parse_seeds(seeds))
