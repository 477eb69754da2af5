"""The commands that train nothing and read no runs: ``fgbench list``, ``config`` and ``data``."""

from enum import StrEnum
from typing import Annotated

import typer

from fgbench.cli.arguments import ConfigFile, ConfigFiles, NewDataDir, Overrides, load_all


class Listing(StrEnum):
    """What ``fgbench list`` can list."""

    datasets = "datasets"
    models = "models"
    trainers = "trainers"
    keys = "keys"


def list_(
    what: Annotated[Listing, typer.Argument(help="Which table.", show_default=False)],
    name: Annotated[
        str | None, typer.Argument(help="A name in it, to show its options.", show_default=False)
    ] = None,
) -> None:
    """List all datasets, models or trainers, the options of one, or the keys of a config.

    Example: fgbench list trainers forward-gradient
    """
    from fgbench.config import describe as catalog

    if what is Listing.keys:
        typer.echo(catalog.describe_keys())
        return
    kind = what.removesuffix("s")
    typer.echo(catalog.describe_component(kind, name) if name else catalog.describe_table(kind))


def show_config(config: ConfigFile, override: Overrides = []) -> None:  # noqa: B006
    """Print the whole config, with defaults and overrides."""
    from fgbench.config.config import load_config, to_yaml

    typer.echo(to_yaml(load_config(config, override)), nl=False)


def validate_config(configs: ConfigFiles, override: Overrides = []) -> None:  # noqa: B006
    """Check configs and report every mistake in them."""
    load_all(configs, override)
    for path in configs:
        typer.echo(f"{path}: valid")


def config_schema() -> None:
    """Print the JSON Schema of configs, for editors and other programs."""
    import json

    from fgbench.config import schema

    typer.echo(json.dumps(schema.config_schema(), indent=2))


def data(ctx: typer.Context, data_dir: NewDataDir = None) -> None:
    """Show which datasets are found where, and fetch them.

    With --data-dir (or a config's data_dir) only that folder is searched; otherwise $FGBENCH_DATA_DIR,
    ./data, ~/.cache/fgbench and the folder of Debian's dataset-fashion-mnist.
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
    typer.echo("\nsearched:")
    for folder in looked_in(search):
        typer.echo(f"    {folder}")


def fetch_data(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A dataset that can be downloaded.", show_default=False)],
) -> None:
    """Download a dataset, unless it is already there, and print where it is.

    It goes to the first writable folder of those that `fgbench data` lists.
    """
    from fgbench.datasets.search import DataSearch
    from fgbench.datasets.status import fetch as fetch_dataset

    typer.echo(fetch_dataset(name, DataSearch(ctx.obj)))
