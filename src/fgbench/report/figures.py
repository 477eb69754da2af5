"""Figures of the report as inline SVG that takes the page's fonts and its light or dark colours."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean
from typing import Any

import matplotlib as mpl
import pandas as pd
from markupsafe import Markup
from matplotlib import colors
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from fgbench.analysis.readings import read
from fgbench.analysis.series import Series
from fgbench.plotting.figures import KINDS, FigureSpec
from fgbench.plotting.panels import Panel, count_runs
from fgbench.plotting.style import STYLE, Look, series_looks, series_marker

MOST_SERIES = 12
"""Largest number of series in a figure; the tables have all."""

WIDTH_INCHES = 4.3
SPARK = (100, 28)
"""Width and height of a sparkline, in its coordinates."""

_DARK_PAPER = (0.078, 0.090, 0.102)
_HEX = re.compile(r"#([0-9a-fA-F]{6})\b")
_SHORTER = re.compile(r"(\d+\.\d{2})\d+")
_SETTINGS: dict[Any, Any] = {
    **STYLE,
    "svg.fonttype": "none",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


_OUTLINES = {
    "o": "M11 4a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
    "s": "M11.5 .5h7v7h-7z",
    "^": "M15 0l4.3 8h-8.6z",
    "D": "M15-.5l4.5 4.5-4.5 4.5-4.5-4.5z",
}
"""The markers of points as paths."""


@dataclass(frozen=True)
class Line:
    """An entry of a legend."""

    label: str
    counts: str
    look: Look
    marker: str = ""

    @property
    def swatch(self) -> Markup:
        """A short piece of the line, or the marker of a point."""
        dashes = self.look["linestyle"]
        colour = themed(self.look["color"])
        if self.marker:
            drawn = f'<path d="{_OUTLINES[self.marker]}" style="stroke:none;fill:{colour}"/>'
        else:
            pattern = " ".join(f"{2 * part:g}" for part in dashes[1]) if isinstance(dashes, tuple) else ""
            drawn = f'<path d="M0 4H30" stroke-dasharray="{pattern}" style="stroke:{colour}"/>'
        return Markup(f'<svg class="swatch" viewBox="0 0 30 8" aria-hidden="true">{drawn}</svg>')


@dataclass(frozen=True)
class Chart:
    """A figure of the report: its panels, side by side if there is room, and one legend.

    Attributes:
        left_out: how many series it does not show.
        data: the numbers it is drawn from, as CSV, by what a row is for.
    """

    kind: str
    title: str
    panels: list[Markup]
    legend: list[Line]
    left_out: int
    data: dict[str, str]


def draw_charts(series: Sequence[Series], prefix: str) -> list[Chart]:
    """Every kind of figure that has something to show of the series of one dataset and model.

    Args:
        series: of one dataset and model.
        prefix: for the ids in the SVG, unlike that of any other call for the same page.
    """
    charts = []
    for name, kind in KINDS.items():
        chosen = kind.choose(series)
        shown = chosen if kind.lines else best_series(chosen)
        if shown:
            charts.append(_draw_chart(name, kind, shown, len(chosen) - len(shown), f"{prefix}-{name}"))
    return charts


def best_series(series: Sequence[Series]) -> list[Series]:
    """``MOST_SERIES`` of them: of each trainer in turn the next best by validation accuracy."""
    ranked = sorted(series, key=lambda each: (-_validation(each), each.label))
    turn: dict[str, int] = {}
    order = []
    for each in ranked:
        turn[each.trainer] = turn.get(each.trainer, 0) + 1
        order.append((turn[each.trainer], each))
    order.sort(key=lambda pair: pair[0])
    kept = {each.label for _, each in order[:MOST_SERIES]}
    return [each for each in series if each.label in kept]


def _validation(series: Series) -> float:
    values = [read(run, "val_accuracy") for run in series.averaged]
    return fmean(value if isfinite(value) else 0.0 for value in values) if values else 0.0


def _draw_chart(name: str, kind: FigureSpec, series: Sequence[Series], left_out: int, prefix: str) -> Chart:
    lines = kind.lines(series) if kind.lines else series
    looks = series_looks(lines)
    height = max(panel.height(len(looks)) for panel in kind.panels)
    drawn = [
        _draw_panel(panel, series, looks, height, f"{prefix}{index}")
        for index, panel in enumerate(kind.panels)
    ]
    numbered = any(has_numbers for _, has_numbers in drawn)
    legend = [
        Line(
            f"{place}  {each.label}" if numbered else each.label,
            "" if kind.lines else count_runs(each),
            look,
            series_marker(each) if kind.points else "",
        )
        for place, (each, look) in enumerate(zip(lines, looks, strict=True), 1)
    ]
    data = {rows: make(series).to_csv(index=False) for rows, make in kind.data.items()}
    return Chart(name, kind.title, [panel for panel, _ in drawn], legend, left_out, data)


def _draw_panel(
    panel: Panel, series: Sequence[Series], looks: Sequence[Look], height: float, prefix: str
) -> tuple[Markup, bool]:
    """A panel, and whether its points have numbers."""
    with mpl.rc_context(_SETTINGS):
        size = WIDTH_INCHES, 0.3 + height
        figure = Figure(figsize=size)  # fixed margins: a layout engine would take most of the page's time
        left = 0.12 if panel.bars else 0.66
        axes = figure.add_axes(
            (left / size[0], 0.56 / size[1], 1 - (left + 0.1) / size[0], 1 - 0.82 / size[1])
        )
        panel.draw(axes, series, looks)
        numbered = panel.finish is not None and panel.finish(axes, series, looks)
        buffer = io.StringIO()
        title = axes.get_title(loc="left")
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), title, prefix), numbered


def _inline(svg: str, title: str, prefix: str) -> Markup:
    """An SVG file as part of a page: own ids, the page's fonts and colours, short numbers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'\b(d|x|y|x1|x2|y1|y2|points)="[^"]*"', lambda found: _SHORTER.sub(r"\1", found[0]), svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", svg)
    svg = _HEX.sub(lambda found: themed(found[0]), svg)
    svg = re.sub(r">\s+<", "><", svg)
    label = f'<svg class="panel" role="img" aria-label="{title}"'
    return Markup(re.sub(r'^<svg\b[^>]*?(viewBox="[^"]*")[^>]*>', rf"{label} \1>", svg))


def themed(colour: str) -> str:
    """The CSS variable that a colour becomes in the page; ``theme`` defines it."""
    return f"var(--c{colour.lstrip('#').lower()})"


def theme(page: str) -> tuple[str, str]:
    """CSS definitions of the colours used in a page, for light and for dark."""
    used = sorted(set(re.findall(r"var\(--c([0-9a-f]{6})\)", page)))
    light = ";".join(f"--c{colour}:#{colour}" for colour in used)
    return light, ";".join(f"--c{colour}:{_for_dark('#' + colour)}" for colour in used)


def _for_dark(colour: str) -> str:
    """Greys inverted; hues lightened until they contrast with the dark background."""
    red, green, blue = colors.to_rgb(colour)
    if red == green == blue:
        share = 0.9 * (1 - red)
        return colors.to_hex(_mix(_DARK_PAPER, share))
    mixed = (red, green, blue)
    for step in range(1, 20):
        if (_luminance(mixed) + 0.05) / (_luminance(_DARK_PAPER) + 0.05) >= 3.6:
            break
        mixed = _mix((red, green, blue), step / 20)
    return colors.to_hex(mixed)


def _mix(colour: tuple[float, float, float], white: float) -> tuple[float, float, float]:
    red, green, blue = (part + (1 - part) * white for part in colour)
    return red, green, blue


def _luminance(colour: tuple[float, float, float]) -> float:
    """Relative luminance, after WCAG 2."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def sparkline(values: "pd.Series[float]", low: float, high: float) -> str:
    """The path of a small curve in a box of ``SPARK``; broken where a value is missing, at most 50 points."""
    width, height = SPARK
    step = max(1, -(-len(values) // 50))
    kept = values.iloc[sorted({*range(0, len(values), step), len(values) - 1})] if len(values) else values
    span, last = (high - low) or 1.0, max(1, len(kept) - 1)
    parts, pen = [], "M"
    for index, value in enumerate(kept):
        if not isfinite(value):
            pen = "M"
            continue
        y = height - 2 - (min(max(value, low), high) - low) / span * (height - 4)
        parts.append(f"{pen}{index / last * width:.3g} {y:.3g}")
        pen = "L"
    if len(parts) == 1:
        parts.append("h4")
    return "".join(parts)
