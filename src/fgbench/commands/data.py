"""``fgbench data``: what data is found where."""

from typing import Annotated

import typer

from fgbench.commands.common import SETTINGS, DataDir

data_app = typer.Typer(**(SETTINGS | {"no_args_is_help": False}))


@data_app.callback(invoke_without_command=True)
def status(ctx: typer.Context, data_dir: DataDir = None) -> None:
    """Show which datasets are found where, and fetch them.

    Looked in, in this order: --data-dir, the config's data_dir, $FGBENCH_DATA_DIR, ./data, ~/.cache/fgbench
    and the folder of Debian's dataset-fashion-mnist.
    """
    ctx.obj = data_dir
    if ctx.invoked_subcommand is None:
        from fgbench.datasets.search import DataSearch
        from fgbench.datasets.status import data_status

        for row in data_status(DataSearch(data_dir, None, download=False)):
            typer.echo(row)


@data_app.command()
def fetch(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A dataset that can be downloaded.", show_default=False)],
) -> None:
    """Download a dataset, unless it is found already, and say where it is."""
    from fgbench.datasets.search import DataSearch
    from fgbench.datasets.status import fetch as fetch_dataset

    typer.echo(fetch_dataset(name, DataSearch(ctx.obj, None, download=True)))
