"""The commands that test trainers: ``fgbench check`` for correctness, ``fgbench bench`` for speed."""

from pathlib import Path
from typing import Annotated

import typer

from fgbench.cli.arguments import DataDir, NoDownload, OptionalConfig, Overrides, expanded
from fgbench.errors import ConfigError


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
    standard errors beside the expected values. Exit code 1 where they differ. It can find a mistake, but
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


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Models, as `fgbench list models` names them; all by default."),
    ] = None,
    batch_size: Annotated[list[int], typer.Option(help="Images per step; may be repeated.")] = [64],  # noqa: B006
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Under a minute: only fc and cnn by default, fewer rounds and cases."),
    ] = False,
    rounds: Annotated[
        int | None, typer.Option(min=3, help="How often each case is timed.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; PyTorch's choice by default.", show_default=False)
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the CSV, the JSON and the figure.", callback=expanded)
    ] = Path("bench"),
) -> None:
    """Measure step time and peak memory of every trainer, alternating in one process.

    A forward pass alone, backprop with and without recomputation, the textbook forward-gradient loop and
    every trainer take turns, so a drift of the machine affects all alike. All take plain SGD steps.

    Example: fgbench bench fc cnn --batch-size 64
    """
    from fgbench.bench.bench import run_bench
    from fgbench.registry import MODELS

    chosen = models or (["fc", "cnn"] if quick else list(MODELS))
    typer.echo(
        run_bench(
            chosen,
            batch_size,
            quick=quick,
            out=out,
            device=device,
            threads=threads,
            rounds=rounds,
            say=typer.echo,
        )
    )
