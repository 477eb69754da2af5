"""The command ``fgbench``: parse, call, print, exit code. Commands import what they need when they run."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fgbench.cli import results, runs
from fgbench.cli.arguments import (
    SETTINGS,
    ConfigFiles,
    DataDir,
    NoDownload,
    OptionalConfig,
    Overrides,
    load_all,
    parse_seeds,
)
from fgbench.cli.bench import bench
from fgbench.cli.config import config_app
from fgbench.cli.data import data_app
from fgbench.errors import ConfigError

HELP = """
Train networks with and without a backward pass, and measure what each way costs and gains.

Exit codes: 0 done, 1 a run failed, 2 wrong usage or config, 3 some runs of a sweep failed, 4 diverged,
130 Ctrl-C, 143 SIGTERM.
"""

app = typer.Typer(help=HELP, add_completion=False, pretty_exceptions_enable=False, **SETTINGS)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"fgbench {version('fgbench')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that belong to no command."""


@app.command()
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
    results: Annotated[
        Path | None, typer.Option(help="Folder of the run directories.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be run.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Run again what is finished already.")] = False,
    no_resume: Annotated[bool, typer.Option("--no-resume", help="Start unfinished runs anew.")] = False,
) -> None:
    """Train as the configs say, one run per config and seed.

    Each run has a directory RESULTS/NAME/sSEED-HASH with metrics.csv, config.yaml, env.json, status.json and
    summary.json. A finished run is skipped; an unfinished one goes on from its last saved state.

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
    ]
    said = [flag for flag in flags if flag.value is not None]
    variants = (
        [[Override("seed", each, "--seeds")] for each in parse_seeds(seeds)] if seeds is not None else [[]]
    )
    loaded = load_all(configs, override, [[*said, *variant] for variant in variants])
    from fgbench.run.runner import run_configs  # imports torch, so only when the configs are right

    code, paths = run_configs(
        loaded,
        data_dir=data_dir,
        download=not no_download,
        dry_run=dry_run,
        force=force,
        resume=not no_resume,
    )
    runs.print_summary(paths)
    raise typer.Exit(code)


class FigureKind(StrEnum):
    """What ``fgbench plot`` can draw."""

    panels = "panels"
    time = "time"
    tradeoff = "tradeoff"
    cosine = "cosine"
    lr = "lr"
    depth = "depth"
    all = "all"


class FigureStyle(StrEnum):
    """What a figure is drawn for."""

    screen = "screen"
    paper = "paper"


@app.command(short_help="Draw the runs of a folder as figures.")
def plot(
    results: Annotated[
        Path, typer.Argument(help="A folder with run directories, such as results.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Figure to write: .png, .svg or .pdf; PNG and SVG without an ending.", show_default=False
        ),
    ] = None,
    kind: Annotated[FigureKind, typer.Option(help="Which figure.")] = FigureKind.panels,
    style: Annotated[
        FigureStyle, typer.Option(help="paper: one column wide, untitled, PDF and SVG.")
    ] = FigureStyle.screen,
) -> None:
    """Draw accuracy, memory, training loss and time per epoch of the runs in a folder.

    One figure per dataset and model, one colour per trainer, one curve per configuration: the mean over its
    seeds with a band. Unfinished runs are drawn as far as they have come. --kind draws other figures.
    """
    from fgbench.plotting.figures import plot_results

    kinds = None if kind is FigureKind.all else [kind]
    for path in plot_results(results, out, kinds, style):
        typer.echo(path)


@app.command(short_help="Write one HTML page about the runs of a folder.")
def report(
    results: Annotated[
        Path, typer.Argument(help="A folder with run directories, such as results.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
) -> None:
    """Write one self-contained HTML page: the answer, figures, tables, claims, runs, how it was measured.

    The page needs no other file and no network.
    """
    from fgbench.report.build import build_report

    typer.echo(build_report(results, out))


class Listing(StrEnum):
    """What ``fgbench list`` can list."""

    datasets = "datasets"
    models = "models"
    trainers = "trainers"
    keys = "keys"


@app.command("list", short_help="List datasets, models, trainers or config keys.")
def list_(
    what: Annotated[Listing, typer.Argument(help="Which table.", show_default=False)],
    name: Annotated[
        str | None, typer.Argument(help="One of its names, for its options.", show_default=False)
    ] = None,
) -> None:
    """List the datasets, models or trainers there are, the options of one, or the keys of a config.

    Example: fgbench list trainers forward-gradient
    """
    from fgbench.config import describe as catalog

    if what is Listing.keys:
        typer.echo(catalog.describe_keys())
        return
    kind = what.removesuffix("s")
    typer.echo(catalog.describe_component(kind, name) if name else catalog.describe_table(kind))


@app.command(short_help="Check a config's gradients, or the installation.")
def check(
    config: OptionalConfig = None,
    override: Overrides = [],  # noqa: B006
    draws: Annotated[int, typer.Option(min=2, help="How many gradients of the trainer to average.")] = 64,
    data_dir: DataDir = None,
    no_download: NoDownload = False,
) -> None:
    """Compare a config's derivatives and its trainer's gradients with the truth.

    On the config's own model and a batch of its data: the directional derivative by forward mode, reverse
    mode and central differences, and the mean, error and cosine of the trainer's gradients with their
    standard errors beside the expected values. Exit code 1 where they differ. It can find a mistake; it
    cannot prove that there is none.

    Without a config: an installation check with versions, devices, data and one step of every trainer.
    """
    from fgbench.config.config import load_config

    if config is None and override:
        raise ConfigError("-o changes a config, and none is given")
    loaded = None if config is None else load_config(config, override)
    from fgbench.checks.check import check as check_config
    from fgbench.datasets.search import DataSearch

    config_dir = loaded.data_dir if loaded else None
    report, ok = check_config(loaded, DataSearch(data_dir, config_dir, not no_download), draws)
    typer.echo(report)
    raise typer.Exit(0 if ok else 1)


app.command(short_help="Measure step times and memory of every trainer.")(bench)
app.command(short_help="Make every run of a sweep file.")(runs.sweep)
app.command(short_help="Tune every configuration of a sweep file.")(runs.tune)
app.command(short_help="Show how far the runs of a folder are.")(results.status)
app.command(short_help="Compare trainers, paired by seed.")(results.compare)
app.command(short_help="Hold published claims against one's runs.")(results.claims)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")


def main() -> None:
    """The entry point of ``fgbench`` and ``python -m fgbench``."""
    if "" not in sys.path:
        sys.path.append("")  # a user's own package.module:Class in the folder they work in
    app(prog_name="fgbench")
