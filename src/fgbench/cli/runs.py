"""The commands that train one by one: ``fgbench demo`` and ``run``."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fgbench.cli.arguments import (
    ConfigFiles,
    DataDir,
    Force,
    Log,
    NoDownload,
    Overrides,
    ResultsOption,
    Seeds,
    expanded,
    load_all,
    parse_seeds,
)
from fgbench.cli.output import print_summary
from fgbench.errors import ConfigError

DEMO = Path(__file__).parents[1] / "config" / "demo"
"""The folder of the demo's configs."""


def demo(
    override: Overrides = [],  # noqa: B006
    seeds: Seeds = None,
    results: Annotated[Path, typer.Option(help="Folder of the runs.", callback=expanded)] = Path("demo"),
    force: Force = False,
) -> None:
    """Train with backprop and with forward gradients on images shipped with fgbench, and draw the figure.

    Nothing is downloaded; it takes about a minute on two cores. The two configs are kept with their runs, as
    RESULTS/NAME/sSEED-HASH/config.yaml: a starting point for your own.
    """
    from fgbench.config.overrides import Override

    into = Override("results_dir", str(results), "--results")
    wanted = (
        [[Override("seed", seed, "--seeds")] for seed in parse_seeds(seeds)] if seeds is not None else [[]]
    )
    loaded = load_all(sorted(DEMO.glob("*.yaml")), override, [[into, *seed] for seed in wanted])
    from fgbench.plotting.figures import plot_results
    from fgbench.run.runner import run_configs

    code, paths = run_configs(loaded, download=False, force=force)
    print_summary(paths)
    if code:
        raise typer.Exit(code)
    for figure in plot_results(results):
        typer.echo(figure)
    typer.echo(f"All results on one page: fgbench report {shlex.quote(str(results))}")


def run(
    configs: ConfigFiles,
    override: Overrides = [],  # noqa: B006
    seed: Annotated[int | None, typer.Option(help="Seed of the run.", show_default=False)] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="0-4", help="Several seeds: 0-4, or 0,2,5.", show_default=False)
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Number of epochs.", show_default=False)] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.", show_default=False)] = None,
    data_dir: DataDir = None,
    no_download: NoDownload = False,
    results: ResultsOption = None,
    log: Log = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be run.")] = False,
    force: Force = False,
    no_resume: Annotated[
        bool, typer.Option("--no-resume", help="Restart unfinished runs from the beginning.")
    ] = False,
) -> None:
    """Train as configured, one run per config and seed.

    Each run has a directory RESULTS/NAME/sSEED-HASH with metrics.csv, config.yaml, env.json, status.json and
    summary.json. A finished run is skipped; an unfinished one resumes from its last saved state.

    Example: fgbench run configs/demo_bp.yaml configs/demo_fg.yaml --seeds 0-2 -o optimizer.lr=1e-3
    """
    from fgbench.config.overrides import Override

    if seed is not None and seeds is not None:
        raise ConfigError("--seed and --seeds do not go together")
    flags = [
        Override("seed", seed, "--seed"),
        Override("epochs", epochs, "--epochs"),
        Override("device", device, "--device"),
        Override("results_dir", results and str(results), "--results"),
        Override("log", log or None, "--log"),
    ]
    said = [flag for flag in flags if flag.value is not None]
    variants = (
        [[Override("seed", each, "--seeds")] for each in parse_seeds(seeds)] if seeds is not None else [[]]
    )
    loaded = load_all(configs, override, [[*said, *variant] for variant in variants])
    from fgbench.run.runner import run_configs  # imports torch, so only once the configs are valid

    code, paths = run_configs(
        loaded,
        data_dir=data_dir,
        download=not no_download,
        dry_run=dry_run,
        force=force,
        resume=not no_resume,
    )
    print_summary(paths)
    raise typer.Exit(code)
