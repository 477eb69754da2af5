"""Panels about the layers of a network: noise and alignment of their gradients."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from fgbench.analysis.series import Series
from fgbench.plotting.style import Look, plain


def draw_layer_noise(axes: Axes, series: Sequence[Series], looks: Sequence[Look]) -> set[str]:
    """Relative noise R of the gradient, smallest to largest of the layers and of all together."""
    axes.set(title="Noise of the gradient", ylabel="E|estimate - gradient|² / |gradient|²")
    axes.set_yscale("log")
    return _draw_layers(axes, series, looks, "noise")


def draw_layer_cosine(axes: Axes, series: Sequence[Series], looks: Sequence[Look]) -> set[str]:
    """Cosine of the gradient and the true one, layer by layer."""
    axes.set(title="Alignment of the gradient", ylabel="cosine to the true gradient")
    return _draw_layers(axes, series, looks, "cosine")


def _draw_layers(axes: Axes, series: Sequence[Series], looks: Sequence[Look], column: str) -> set[str]:
    """A line for every layer of every series, named where it ends; the mean while all seeds have one."""
    axes.set_xlabel("epoch")
    for each, look in zip(series, looks, strict=True):
        layers = pd.concat([run.layers for run in each.averaged])
        names = list(dict.fromkeys(layers["layer"]))
        for place, name in enumerate(names):
            by_epoch = layers[layers["layer"] == name].groupby("epoch")[column]
            curve = by_epoch.mean()[by_epoch.size() == len(each.averaged)]
            if curve.empty:
                continue
            faint = {"alpha": 1 - 0.7 * place / len(names), "linewidth": 1.0}
            axes.plot(curve.index, curve, **(look | faint))
            axes.annotate(
                plain(name),
                (curve.index[-1], curve.iloc[-1]),
                xytext=(3, 0),
                textcoords="offset points",
                fontsize=5,
                color=look["color"],
                va="center",
            )
    return set()
