"""What commands share: mapping errors to exit codes, arguments, loading configs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from fgbench.errors import ConfigError, FgbenchError, exit_code_of
from fgbench.own_code import explain_own

if TYPE_CHECKING:
    from fgbench.config.config import Config
    from fgbench.config.overrides import Override


class Commands(TyperGroup):
    """Turns the errors a user can fix into a line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except FgbenchError as error:
            typer.echo(f"fgbench: {error}", err=True)
            raise typer.Exit(exit_code_of(error)) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(exit_code_of(error)) from error
        except Exception as error:
            own = explain_own(error)
            if not (own or isinstance(error, OSError)):
                raise
            typer.echo(f"fgbench: {own or error}", err=True)
            raise typer.Exit(ConfigError.exit_code if own else exit_code_of(error)) from error


SETTINGS: dict[str, Any] = {
    "cls": Commands,
    "no_args_is_help": True,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 110},
}
"""Settings of every group of commands."""


def expanded(param: typer.CallbackParam, path: Path | None) -> Path | None:
    """A path option with ``~`` and variables expanded, which shells do not do in ``--out=~/a.png``.

    Raises:
        ConfigError: a variable is not set.
    """
    from fgbench.paths import expand_path

    try:
        return None if path is None else expand_path(path)
    except ValueError as error:
        raise ConfigError(f"{param.opts[0]}: {error}") from error


def _existing(param: typer.CallbackParam, path: Path | None) -> Path | None:
    """The same for a folder that must be there, so that a mistyped one is not made and filled."""
    folder = expanded(param, path)
    if folder is not None and not folder.is_dir():
        raise ConfigError(
            f"{param.opts[0]}: there is no folder {folder}; `fgbench data --data-dir {folder} fetch NAME` "
            "makes it"
        )
    return folder


ConfigFiles = Annotated[
    list[Path], typer.Argument(metavar="CONFIG", help="Config files (YAML).", show_default=False)
]
ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A config file (YAML).", show_default=False)
]
OptionalConfig = Annotated[
    Path | None, typer.Argument(metavar="CONFIG", help="A config file (YAML).", show_default=False)
]
Overrides = Annotated[
    list[str],
    typer.Option(
        "-o",
        "--override",
        metavar="KEY=VALUE",
        help="Set a key of the config, such as -o epochs=5 or -o optimizer.lr=1e-3; may be repeated.",
        show_default=False,
    ),
]
_DATA_DIR = "The only folder in which to look for datasets."
DataDir = Annotated[Path | None, typer.Option(help=_DATA_DIR, show_default=False, callback=_existing)]
NewDataDir = Annotated[Path | None, typer.Option(help=_DATA_DIR, show_default=False, callback=expanded)]
NoDownload = Annotated[bool, typer.Option("--no-download", help="Never download; fail if data is missing.")]
Seeds = Annotated[
    str | None,
    typer.Option(metavar="0-4", help="Seeds instead of the file's: 0-4, or 0,2,5.", show_default=False),
]
ResultsOption = Annotated[
    Path | None,
    typer.Option(help="Folder of the run directories.", show_default=False, callback=expanded),
]
Log = Annotated[
    list[str],
    typer.Option(
        metavar="NAME",
        help="Also use this logger: tensorboard, or package.module:Class; may be repeated.",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Repeat runs that have already ended.")]


def load_all(
    paths: list[Path], overrides: list[str], variants: "list[list[Override]] | None" = None
) -> "list[Config]":
    """Every config with the overrides and each variant's.

    Raises:
        ConfigError: lists the mistakes in all of them.
    """
    from fgbench.config.config import load_config

    configs, mistakes, printed = [], [], set[str]()

    def say(note: str) -> None:
        if note not in printed:
            typer.echo(f"fgbench: {note}", err=True)
        printed.add(note)

    for path in paths:
        for variant in variants or [[]]:
            try:
                configs.append(load_config(path, [*overrides, *variant], say))
            except ConfigError as error:
                mistakes += [line for line in str(error).splitlines() if line not in mistakes]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return configs


def parse_seeds(text: str) -> list[int]:
    """Seeds from a range or a list.

    >>> parse_seeds("0-2,7")
    [0, 1, 2, 7]

    Raises:
        ConfigError: it is neither, or names more than 10,000 seeds.
    """
    seeds: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(part) > 40:
            raise ConfigError(f"--seeds {text[:60]}: expected a range such as 0-4 or a list such as 0,2,5")
        count = int(last or first) - int(first) + 1
        if not 1 <= count <= 10_000:
            what = "ends before it starts" if count < 1 else "is more than 10,000 seeds"
            raise ConfigError(f"--seeds {text[:60]}: {part.strip()} {what}")
        seeds.update(dict.fromkeys(range(int(first), int(last or first) + 1)))
    return list(seeds)
