"""Minimise Beale's and Rosenbrock's functions with forward gradients and with backprop.

    python scripts/baydin_functions.py

Both take the same number of steps of the same learning rate from the same point, forward gradients with five
seeds (``--seeds 1``: with one). Writes functions.csv (values along the way), functions.png and functions.svg
to results/baydin/. The starting points and learning rates are this script's own.

Source: the test functions of Baydin et al. (2022), arXiv 2202.08587.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from fgbench.plotting.style import STYLE, add_title, save_figure, trainer_hue
from fgbench.seeds import derive_generator
from fgbench.trainers.backprop import Backprop
from fgbench.trainers.base import Trainer
from fgbench.trainers.forward_gradient import ForwardGradient

RESULTS = Path(__file__).parents[1] / "results" / "baydin"
POINTS = 200
"""Rows of the CSV per run."""


def beale(x: Tensor, y: Tensor) -> Tensor:
    """Minimum 0 at (3, 1/2)."""
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def rosenbrock(x: Tensor, y: Tensor) -> Tensor:
    """Minimum 0 at (1, 1)."""
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


@dataclass(frozen=True)
class Problem:
    """A function, where minimising starts, and what the figure shows of it."""

    function: Callable[[Tensor, Tensor], Tensor]
    start: tuple[float, float]
    minimum: tuple[float, float]
    lr: float
    steps: int
    window: tuple[float, float, float, float]


PROBLEMS = {
    "Beale": Problem(beale, (0.0, 0.0), (3.0, 0.5), 1e-2, 1_000, (-0.5, 3.5, -1.0, 1.5)),
    "Rosenbrock": Problem(rosenbrock, (-1.0, 0.0), (1.0, 1.0), 5e-4, 5_000, (-1.6, 1.6, -0.6, 1.6)),
}


class Point(nn.Module):
    """A model whose only parameter is a point and whose output is the function's value there."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.function = problem.function
        self.position = nn.Parameter(torch.tensor(problem.start, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        """The value, shape (1, 1); the inputs are not used."""
        return self.function(*self.position).view(1, 1)


def value_itself(outputs: Tensor, labels: Tensor) -> Tensor:
    """The loss of a model whose output is what is to be minimised, shape (1,)."""
    return outputs.squeeze(1)


def minimise(problem: Problem, trainer: Trainer, seed: int) -> Iterator[dict[str, float]]:
    """One row every so many steps: step, value, x, y."""
    model, inputs, labels = Point(problem), torch.zeros(1, 1), torch.zeros(1, dtype=torch.long)
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)
    generator = derive_generator("cpu", seed, "tangents")
    for step in range(problem.steps + 1):
        if step % (problem.steps // POINTS) == 0:
            x, y = model.position.tolist()
            yield {"step": step, "value": float(model(inputs).detach()), "x": x, "y": y}
        trainer.compute_gradients(model, value_itself, inputs, labels, generator)
        optimizer.step()


def draw_paths(axes: Axes, problem: Problem, runs: pd.DataFrame) -> None:
    """The plane with the paths of all runs."""
    left, right, bottom, top = problem.window
    x, y = np.meshgrid(np.linspace(left, right, 200), np.linspace(bottom, top, 200))
    heights = problem.function(torch.tensor(x), torch.tensor(y)).numpy()
    axes.contour(x, y, np.log10(heights + 1e-3), levels=14, colors="0.85", linewidths=0.6)
    for (trainer, _), run in runs.groupby(["trainer", "seed"]):
        axes.plot(
            run.x, run.y, color=trainer_hue(str(trainer)), linewidth=1.0, zorder=3 - (trainer != "backprop")
        )
    axes.plot(*problem.start, "o", color="black", markersize=4, zorder=4)
    axes.plot(*problem.minimum, "*", color="black", markersize=8, zorder=4)
    axes.set(xlim=(left, right), ylim=(bottom, top), xlabel="x", ylabel="y")
    axes.grid(False)


def draw_values(axes: Axes, runs: pd.DataFrame) -> None:
    """The value by step: each run thin, the median of a trainer's seeds thick."""
    for trainer, its in runs.groupby("trainer"):
        hue = trainer_hue(str(trainer))
        for _, run in its.groupby("seed"):
            axes.plot(run.step, run.value, color=hue, linewidth=0.5, alpha=0.5)
        seeds = its.seed.nunique()
        label = f"{trainer}, median of {seeds} seeds" if seeds > 1 else trainer
        median = its.groupby("step").value.median()
        axes.plot(median.index, median, color=hue, label=label)
    axes.set(yscale="log", xlabel="step", ylabel="f(x, y)", xlim=(None, 1.08 * runs.step.max()))
    axes.legend()


def main() -> None:
    """Run everything and write it down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    arguments = parser.parse_args()
    rows = []
    for name, problem in PROBLEMS.items():
        for seed in range(arguments.seeds):
            rows += [
                {"function": name, "lr": problem.lr, "trainer": trainer.options.name, "seed": seed, **row}
                for trainer in ([Backprop(), ForwardGradient()] if seed == 0 else [ForwardGradient()])
                for row in minimise(problem, trainer, seed)
            ]
    runs = pd.DataFrame(rows)
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs.to_csv(arguments.out / "functions.csv", index=False, float_format="%.6g")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 5.6), layout="constrained")
        add_title(figure, "Gradient descent on two test functions, from the dot to the star")
        for (name, problem), (paths, values) in zip(PROBLEMS.items(), figure.subplots(2, 2), strict=True):
            its = runs[runs.function == name]
            draw_paths(paths, problem, its)
            draw_values(values, its)
            paths.set_title(name)
            values.set_title(f"{name}, learning rate {problem.lr:g}")
        for ending in ("png", "svg"):
            save_figure(figure, arguments.out / f"functions.{ending}")
    last = runs[runs.step == runs.groupby("function").step.transform("max")]
    print(last.groupby(["function", "trainer"]).value.describe()[["count", "min", "50%", "max"]].to_string())


if __name__ == "__main__":
    main()
