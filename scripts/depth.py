"""Time and memory of a training step by depth: an MLP of 1 to 100 hidden layers.

    python scripts/depth.py [--width 1024] [--depths 1 2 5 10 20 50 100] [--repeats 7] [--threads 2]

Backprop and forward gradients (full and rank-one Rademacher tangents) take steps of plain SGD on one batch of
64 made-up 28x28 images, by turns in one process, so that a busy moment meets them all. Writes depth.csv,
depth.json (the machine), depth.png and depth.svg to results/baydin/.

Source: the depth experiment of Baydin et al. (2022), arXiv 2202.08587.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from fgbench import measure  # first: it keeps the profiler's lines off the terminal

# isort: split
import matplotlib as mpl
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from fgbench.config.optimizer import OptimizerOptions
from fgbench.models.build import build_model
from fgbench.models.options import FCOptions
from fgbench.plotting.style import STYLE, add_title, save_figure, trainer_hue
from fgbench.run.optimizers import build_optimizer
from fgbench.trainers.backprop import Backprop
from fgbench.trainers.base import Trainer
from fgbench.trainers.forward_gradient import ForwardGradient

RESULTS = Path(__file__).parents[1] / "results" / "baydin"
TRAINERS: dict[str, Callable[[], Trainer]] = {
    "backprop": Backprop,
    "forward-gradient, full": lambda: ForwardGradient(guess="rademacher"),
    "forward-gradient, rank1": lambda: ForwardGradient(guess="rademacher", structure="rank1"),
}
DASHES = {"backprop": "-", "forward-gradient, full": "-", "forward-gradient, rank1": "--"}
BATCH = 64
LR = 1e-6
"""So small that no depth diverges; the time of a step does not depend on it."""


def make_step(
    trainer: Trainer, model: nn.Module, inputs: Tensor, labels: Tensor
) -> tuple[Callable[[], object], torch.optim.Optimizer]:
    """A step of plain SGD as the training loop takes it, and the optimizer whose memory counts."""
    optimizer = build_optimizer(OptimizerOptions(name="sgd", lr=LR), model)
    loss_fn, generator = nn.CrossEntropyLoss(reduction="none"), torch.Generator().manual_seed(0)
    if trainer.has_sgd_step:
        return lambda: trainer.sgd_step(model, loss_fn, inputs, labels, generator, LR), optimizer

    def step() -> None:
        trainer.compute_gradients(model, loss_fn, inputs, labels, generator)
        optimizer.step()

    return step, optimizer


def measure_depth(depth: int, width: int, repeats: int) -> list[dict[str, object]]:
    """One row per trainer: the median time of a step, its quartiles, and its peak memory."""
    torch.manual_seed(0)
    inputs, labels = torch.randn(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))
    options = FCOptions(layers=depth, hidden=width)
    steps, memory, times = {}, {}, {name: [] for name in TRAINERS}
    for name, make in TRAINERS.items():
        model = build_model(options, (1, 28, 28), 10, seed=0, device="cpu")
        step, optimizer = make_step(make(), model, inputs, labels)
        step()
        memory[name] = measure.step_memory(step, model, optimizer)
        steps[name] = step
    with measure.OtherLoad() as load:
        for _ in range(repeats):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                times[name].append((time.perf_counter() - start) * 1e3)
    rows = []
    for name in TRAINERS:
        low, median, high = statistics.quantiles(times[name], n=4)
        rows.append(
            {
                "depth": depth,
                "width": width,
                "parameters": sum(param.numel() for param in model.parameters()),
                "trainer": name,
                "step_time_ms": median,
                "step_time_ms_q25": low,
                "step_time_ms_q75": high,
                "peak_memory_mib": memory[name],
                "repeats": repeats,
                "timing_note": load.reason,
            }
        )
    return rows


def draw(rows: pd.DataFrame) -> Figure:
    """Time and memory by depth, and both relative to backprop; hollow where the machine was busy."""
    panels = {"step_time_ms": "time of a step, ms", "peak_memory_mib": "peak memory of a step, MiB"}
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    for (column, label), (absolute, relative) in zip(panels.items(), figure.subplots(2, 2).T, strict=True):
        baseline = rows[rows.trainer == "backprop"].set_index("depth")[column]
        for name, dashes in DASHES.items():
            its = rows[rows.trainer == name].set_index("depth")
            look = {
                "color": trainer_hue(name.split(",")[0]),
                "linestyle": dashes,
                "marker": "o",
                "markersize": 3,
            }
            busy = its.timing_note.notna() & (column == "step_time_ms")
            for axes, values in ((absolute, its[column]), (relative, its[column] / baseline)):
                axes.plot(its.index, values, label=name, **look)
                axes.plot(its.index[busy], values[busy], "o", color="white", markersize=1.5, zorder=3)
        absolute.set(xscale="log", yscale="log", ylabel=label)
        relative.set(xscale="log", ylim=(0, None), ylabel="relative to backprop")
        for axes in (absolute, relative):
            axes.set_xlabel("hidden layers")
            axes.set_xticks(rows.depth.unique(), map(str, rows.depth.unique()), minor=False)
            axes.set_xticks([], minor=True)
        absolute.legend()
    add_title(figure, f"A step of plain SGD by depth: hidden layers of {rows.width.iloc[0]} units, batch 64")
    return figure


def main() -> None:
    """Measure every depth and write it down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=1024, help="units of a hidden layer")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 5, 10, 20, 50, 100])
    parser.add_argument("--repeats", type=int, default=7, help="timed steps of each trainer at each depth")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = torch.device("cpu")
    measure.set_threads(options.threads)
    measure.keep_allocations()
    rows = []
    for depth in options.depths:
        rows += measure_depth(depth, options.width, options.repeats)
        print(pd.DataFrame(rows[-len(TRAINERS) :]).to_string(index=False), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows)
    frame.to_csv(options.out / "depth.csv", index=False, float_format="%.5g")
    (options.out / "depth.json").write_text(json.dumps(measure.describe_environment(device), indent=2) + "\n")
    with mpl.rc_context(STYLE):
        figure = draw(frame)
        for ending in ("png", "svg"):
            save_figure(figure, options.out / f"depth.{ending}")


if __name__ == "__main__":
    main()
