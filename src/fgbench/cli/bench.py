"""The command ``fgbench bench``."""

from pathlib import Path
from typing import Annotated

import typer


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Names of `fgbench list models`; all by default."),
    ] = None,
    batch_size: Annotated[list[int], typer.Option(help="Images per step; may be repeated.")] = [64],  # noqa: B006
    quick: Annotated[
        bool, typer.Option("--quick", help="Under a minute: fc and cnn unless told, fewer rounds and cases.")
    ] = False,
    rounds: Annotated[
        int | None, typer.Option(min=3, help="How often each case has its turn.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; PyTorch's choice by default.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the CSV, the JSON and the figure.")] = Path("bench"),
) -> None:
    """Measure step time and peak memory of every trainer, side by side in one process.

    Forward pass alone, backprop with and without recomputation, the textbook forward-gradient loop and every
    trainer take turns, so a drift of the machine touches all alike. All take plain SGD steps.

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
