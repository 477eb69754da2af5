"""The command ``fgbench``: parse, call, print, exit code. Commands import what they need when they run."""

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from fgbench.cli import bench, info, results, runs, sweeps
from fgbench.cli.arguments import SETTINGS
from fgbench.cli.output import tolerate_closed_pipes

HELP = """
Train networks with and without a backward pass, and measure what each way costs and gains.

Exit codes: 0 done, 1 a run failed, 2 wrong usage or config, 3 some runs of a sweep failed, 4 diverged,
130 Ctrl-C, 143 SIGTERM.
"""

COMMANDS: dict[str, tuple[Callable[..., Any], str]] = {
    "demo": (runs.demo, "Train two small networks, with and without backprop, and draw them."),
    "run": (runs.run, "Train as the configs say, one run per config and seed."),
    "plot": (results.plot, "Draw the runs of a folder as figures."),
    "report": (results.report, "Write one HTML page about the runs of a folder."),
    "list": (info.list_, "List datasets, models, trainers or config keys."),
    "check": (bench.check, "Check a config's gradients, or the installation."),
    "bench": (bench.bench, "Measure step times and memory of every trainer."),
    "sweep": (sweeps.sweep, "Run every config of a sweep file."),
    "tune": (sweeps.tune, "Tune every configuration of a sweep file."),
    "status": (results.status, "Show the progress of the runs of a folder."),
    "compare": (results.compare, "Compare trainers, paired by seed."),
    "claims": (results.claims, "Compare published claims with the runs of a folder."),
    "export": (results.export, "Write the trained weights of a run as a file."),
    "config show": (info.show_config, "Print the whole config, with defaults and overrides."),
    "config validate": (info.validate_config, "Check configs and report every mistake in them."),
    "config schema": (
        info.config_schema,
        "Print the JSON Schema of configs, for editors and other programs.",
    ),
    "data fetch": (info.fetch_data, "Download a dataset, unless it is already there."),
}
"""Every command: the function it calls, and its line in the list of commands. Arguments and help come from
the function's signature and docstring."""


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"fgbench {version('fgbench')}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that belong to no command."""


def _build_app() -> typer.Typer:
    app = typer.Typer(help=HELP, add_completion=False, pretty_exceptions_enable=False, **SETTINGS)
    app.callback()(_root)
    groups = {
        "": app,
        "config": typer.Typer(help="Show and check configs, and print their schema.", **SETTINGS),
        "data": typer.Typer(**(SETTINGS | {"no_args_is_help": False})),
    }
    groups["data"].callback(invoke_without_command=True)(info.data)
    for name, (function, line) in COMMANDS.items():
        group, _, word = name.rpartition(" ")
        groups[group].command(word, short_help=line)(function)
    for name, group_app in groups.items():
        if name:
            app.add_typer(group_app, name=name)
    return app


app = _build_app()


def main() -> None:
    """The entry point of ``fgbench`` and ``python -m fgbench``."""
    if "" not in sys.path:
        sys.path.append("")  # for a user's package.module:Class in the current folder
    tolerate_closed_pipes()
    app(prog_name="fgbench")
