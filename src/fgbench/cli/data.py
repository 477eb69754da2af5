"""``fgbench data``: what data is found where."""

from typing import Annotated

import typer

from fgbench.cli.arguments import SETTINGS, DataDir

data_app = typer.Typer(**(SETTINGS | {"no_args_is_help": False}))


@data_app.callback(invoke_without_command=True)
def status(ctx: typer.Context, data_dir: DataDir = None) -> None:
    """Show which datasets are found where, and fetch them.

    Looked in, in this order: --data-dir, the config's data_dir, $FGBENCH_DATA_DIR, ./data, ~/.cache/fgbench
    and the folder of Debian's dataset-fashion-mnist.
    """
    ctx.obj = data_dir
    if ctx.invoked_subcommand is not None:
        return
    from fgbench.datasets.search import DataSearch
    from fgbench.datasets.status import data_status, looked_in

    search = DataSearch(data_dir, download=False)
    for row in data_status(search):
        size = "" if row.size_mib is None else f" ({row.size_mib:.1f} MiB)"
        how = f"not found: `fgbench data fetch {row.name}` gets it from {row.origin}"
        typer.echo(f"{row.name}\n    {row.summary}; licence: {row.licence}")
        typer.echo(f"    {f'{row.found}{size}' if row.found else how}")
    typer.echo("\nlooked in:")
    for folder in looked_in(search):
        typer.echo(f"    {folder}")


@data_app.command(short_help="Download a dataset, unless it is there already.")
def fetch(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A dataset that can be downloaded.", show_default=False)],
) -> None:
    """Download a dataset, unless it is found already, and say where it is.

    It goes to the first of the folders of `fgbench data` that can be written.
    """
    from fgbench.datasets.search import DataSearch
    from fgbench.datasets.status import fetch as fetch_dataset

    typer.echo(fetch_dataset(name, DataSearch(ctx.obj)))
