"""``fgbench config``: show and check configs."""

import typer

from fgbench.cli.arguments import SETTINGS, ConfigFile, ConfigFiles, Overrides, load_all

config_app = typer.Typer(help="Show and check configs, and print their schema.", **SETTINGS)


@config_app.command()
def show(config: ConfigFile, override: Overrides = []) -> None:  # noqa: B006
    """Print the whole config, defaults and overrides included."""
    from fgbench.config.config import load_config, to_yaml

    typer.echo(to_yaml(load_config(config, override)), nl=False)


@config_app.command()
def validate(configs: ConfigFiles, override: Overrides = []) -> None:  # noqa: B006
    """Check configs and report every mistake in them."""
    load_all(configs, override)
    for path in configs:
        typer.echo(f"{path}: valid")


@config_app.command()
def schema() -> None:
    """Print the JSON Schema of configs, for editors and other programs."""
    import json

    from fgbench.config.schema import config_schema

    typer.echo(json.dumps(config_schema(), indent=2))
