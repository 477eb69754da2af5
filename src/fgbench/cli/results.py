"""The commands that read runs: ``plot``, ``report``, ``status``, ``compare``, ``claims``, ``export``."""

import sys
from enum import StrEnum
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated

import typer

from fgbench.analysis.formats import Format
from fgbench.cli.arguments import expanded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fgbench.analysis.records import RunRecord

ResultsFolders = Annotated[
    Path,
    typer.Argument(
        help="A folder with run directories, such as results.", show_default=False, callback=expanded
    ),
]
Form = Annotated[Format, typer.Option("--format", help="How the tables are written.")]
Metrics = Annotated[list[str], typer.Option(help="Column of metrics.csv to compare; may be repeated.")]
Out = Annotated[
    Path | None,
    typer.Option(help="File to write to instead of the terminal.", show_default=False, callback=expanded),
]

Tag = Annotated[
    str | None, typer.Option(metavar="NAME", help="Only the runs with this tag.", show_default=False)
]


class FigureStyle(StrEnum):
    """The use a figure is drawn for."""

    screen = "screen"
    paper = "paper"


def plot(
    results: ResultsFolders,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Figure to write: .png, .svg or .pdf; PNG and SVG without an ending.",
            show_default=False,
            callback=expanded,
        ),
    ] = None,
    kind: Annotated[str, typer.Option(help="Which figure, or all; a wrong name lists them.")] = "panels",
    style: Annotated[
        FigureStyle, typer.Option(help="paper: one column wide, untitled, PDF and SVG.")
    ] = FigureStyle.screen,
    tag: Tag = None,
) -> None:
    """Draw accuracy, memory, training loss and time per epoch of the runs in a folder.

    One figure per dataset and model, one colour per trainer, one curve per configuration: the mean over its
    seeds with a band. Unfinished runs are drawn as far as they have come. --kind draws other figures.
    """
    from fgbench.plotting.figures import plot_results

    kinds = None if kind == "all" else [kind]
    for path in plot_results(results, out, kinds, style, tag):
        typer.echo(path)


def report(
    results: ResultsFolders,
    out: Annotated[Path, typer.Option(help="The page to write.", callback=expanded)] = Path("report.html"),
    tag: Tag = None,
) -> None:
    """Write one self-contained HTML page: answer, figures, tables, claims, runs and how they were measured.

    The page needs no other file and no network.
    """
    from fgbench.report.build import build_report

    typer.echo(build_report(results, out, tag))


def compare(
    results: ResultsFolders,
    metric: Metrics = ["test_accuracy", "train_loss"],  # noqa: B006
    baseline: Annotated[
        str, typer.Option(help="The baseline: a trainer, or the label of one series.")
    ] = "backprop",
    accuracy: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Report the time to this validation accuracy.", show_default=False),
    ] = None,
    form: Form = Format.text,
    out: Out = None,
    tag: Tag = None,
) -> None:
    """Compare the trainers in a folder with a baseline, paired by seed, with intervals.

    Each series is compared with the baseline series whose settings are nearest, at equal epochs, equal
    training time and equal memory. Nothing is claimed from one seed.

    Example: fgbench compare results --metric test_accuracy --format markdown
    """
    from fgbench.analysis.compare_tables import compare_report
    from fgbench.analysis.records import read_results

    found = read_results(results, tag)
    _warn_of_unknown_data(found.runs)
    width = get_terminal_size().columns if out is None and sys.stdout.isatty() else None
    _write(compare_report(found.runs, metric, baseline, form, accuracy, found.notes, width), out)


def claims(results: ResultsFolders, form: Form = Format.text, out: Out = None) -> None:
    """Compare published claims with the runs and benchmarks in a folder.

    Every claim is supported or refuted (in part, where some cases are open), mixed, not testable, without a
    difference, or there is not enough data; with the numbers, the seeds, the rule that decided, and the
    device.
    """
    from fgbench.analysis.claims.claims import claims_report
    from fgbench.analysis.records import read_results

    found = read_results(results)
    _warn_of_unknown_data(found.runs)
    _write(claims_report(found, form), out)


def status(results: ResultsFolders, form: Form = Format.text, out: Out = None, tag: Tag = None) -> None:
    """Show the progress of the runs in a folder, their speed and the time left.

    A run whose process has died, or whose last sign of life is ten minutes old, is shown as interrupted.
    """
    from fgbench.analysis.records import read_results
    from fgbench.analysis.status import status_report

    _write(status_report(read_results(results, tag), results, form), out)


def export(
    run: Annotated[
        Path,
        typer.Argument(
            help="A run directory, such as results/NAME/s0-HASH.", show_default=False, callback=expanded
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file to write.", callback=expanded)] = Path("model.pt"),
    best: Annotated[
        bool, typer.Option("--best", help="The weights of its best epoch, kept by saving.best.")
    ] = False,
) -> None:
    """Write a run's last saved weights as a plain state_dict.

    Any PyTorch program reads them with torch.load(FILE, weights_only=True); fgbench.load_model(RUN) gives the
    module with its weights.

    Example: fgbench export demo/demo_bp/s0-f3f5e20c --out model.pt
    """
    from fgbench.run.weights import export_weights

    which = "the best weights" if best else "the weights"
    typer.echo(f"{out}: {which} of {export_weights(run, out, 'best' if best else 'last')}")


def _warn_of_unknown_data(runs: "Sequence[RunRecord]") -> None:
    from fgbench.analysis.pairing import describe_unknown_data

    if warning := describe_unknown_data(runs):
        typer.echo(f"fgbench: {warning}", err=True)


def _write(text: str, out: Path | None) -> None:
    if out is None:
        typer.echo(text)
        return
    from fgbench.storage.files import atomic_write

    atomic_write(out, text + "\n")
    typer.echo(out)
