"""The style of every figure: one colour per trainer everywhere, one way to save."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import colors
from matplotlib.figure import Figure

from fgbench.analysis.series import Series
from fgbench.errors import ConfigError
from fgbench.registry import TRAINERS
from fgbench.storage.files import atomic_write

Look = dict[str, Any]
"""Keyword arguments of a line: its colour and its dashes."""

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # TrueType: publishers refuse the default
    "svg.hashsalt": "fgbench",  # the same runs give the same bytes
}


@dataclass(frozen=True)
class Sheet:
    """The use for which a figure is drawn.

    Attributes:
        width: in inches.
        columns: of panels.
        titled: whether the figure carries its own title.
        endings: what it is saved as where the user does not say.
        settings: of matplotlib, on top of ``STYLE``.
    """

    width: float
    columns: int
    titled: bool
    endings: tuple[str, ...]
    settings: dict[Any, Any] = field(default_factory=dict)


SHEETS = {
    "screen": Sheet(7.2, 2, True, ("png", "svg")),
    "paper": Sheet(
        *(3.4, 1, False, ("pdf", "svg")),
        {
            "font.size": 7,
            "axes.labelsize": 7,
            "axes.titlesize": 7.5,
            "legend.fontsize": 6.5,
        },
    ),
}
"""``paper`` is as wide as a column of a two-column page, untitled (its caption has the title), and vector."""

FORMATS: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""What a figure can be saved as, and the metadata that would change from day to day."""

# Okabe and Ito (2008): safe for common colour blindness. Black and greys are for users' own trainers.
# The rest, for the later rows, from Tol's "muted" scheme (2021).
_HUES = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#882255",
    "#999933",
    "#332288",
    "#117733",
    "#661100",
    "#AA4466",
)
_OWN_HUES = ("#000000", "#7A7A7A", "#8C6D31")
_SHADES = (0.0, 0.42, -0.45, 0.6, -0.22, 0.22)
_MARKERS = ("o", "s", "^", "D")
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))


def trainer_hue(trainer: str, own: Sequence[str] = ()) -> str:
    """The one colour of a trainer in every figure; ``own`` are the names of users' trainers, in order."""
    names = list(TRAINERS)
    if trainer in names:
        return _HUES[names.index(trainer) % len(_HUES)]
    return _OWN_HUES[list(own).index(trainer) % len(_OWN_HUES) if trainer in own else 0]


def series_looks(series: Sequence[Series]) -> list[Look]:
    """Hue by trainer; shade and dashes by variant."""
    own = sorted({each.trainer for each in series} - set(TRAINERS))
    return [
        {
            "color": _shade(trainer_hue(each.trainer, own), each.variant),
            "linestyle": _DASHES[each.variant % len(_DASHES)],
        }
        for each in series
    ]


def series_marker(series: Series) -> str:
    """The marker of a point that stands for a series, by variant."""
    return _MARKERS[series.variant % len(_MARKERS)]


def plain(text: str) -> str:
    """Text escaped so that matplotlib does not parse formulas."""
    return text.replace("$", r"\$")


def add_title(figure: Figure, title: str) -> None:
    """A title over all panels, at the left."""
    figure.suptitle(plain(title), fontsize=11, fontweight="bold", x=0.012, ha="left")


def figure_format(path: Path) -> str:
    """The format that a file's ending stands for; empty without an ending.

    Raises:
        ConfigError: another ending.
    """
    ending = path.suffix.removeprefix(".").lower()
    if ending and ending not in FORMATS:
        raise ConfigError(
            f"cannot write {path}: a figure's ending is one of {', '.join(FORMATS)}, got {ending!r}"
        )
    return ending


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of its ending.

    Raises:
        FgbenchError: the file cannot be written.
    """
    form = figure_format(path)
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format=form, metadata=FORMATS[form])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot create {path.parent}: {error.strerror}") from error
    atomic_write(path, buffer.getvalue())


def _shade(hue: str, variant: int) -> str:
    """The hue itself for a trainer's first series; lighter and darker ones for the others."""
    shade = _SHADES[variant % len(_SHADES)]
    target = 1.0 if shade > 0 else 0.0
    red, green, blue = (part * (1 - abs(shade)) + target * abs(shade) for part in colors.to_rgb(hue))
    return colors.to_hex((red, green, blue))
