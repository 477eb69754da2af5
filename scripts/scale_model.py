"""Time of a data-parallel step over 1 to 10,000 workers, on paper: measured steps, named links.

    python scripts/scale_model.py [--models fc cnn] [--batch 64] [--repeats 15] [--threads 2]
    python scripts/scale_model.py --redraw

Steps, and the drawing and adding of one tangent, are measured on this machine; sending is computed. Every
worker takes a batch of its own size (weak scaling). Writes scale_model.csv, scale_model.json (the machine),
scale_model.png and scale_model.svg to results/scale/.

Source of the all-reduce costs: Thakur, Rabenseifner and Gropp (2005), "Optimization of Collective
Communication Operations in MPICH".
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fgbench import measure  # first: it keeps the profiler's lines off the terminal

# isort: split
import matplotlib as mpl
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from fgbench.config.optimizer import OptimizerOptions
from fgbench.models.build import build_model
from fgbench.plotting.style import STYLE, save_figure, trainer_hue
from fgbench.registry import options_model
from fgbench.run.optimizers import build_optimizer
from fgbench.trainers.backprop import Backprop
from fgbench.trainers.forward_gradient import ForwardGradient

RESULTS = Path(__file__).parents[1] / "results" / "scale"
WORKERS = [1, 2, 4, 8, 16, 32, 64, 100, 200, 500, 1000, 2000, 5000, 10_000]
LR = 1e-6
STOP_BYTES = 1  # the signal that goes round with every step
FULL, RANK_ONE = {"guess": "rademacher"}, {"guess": "rademacher", "structure": "rank1"}
JOINED = 16  # tangents drawn and added together when the cost of one is measured


class Link(NamedTuple):
    """What two workers send to each other over."""

    name: str
    bytes_per_s: float
    latency_s: float


LINKS = (
    Link("100 Gbit/s InfiniBand, 2 µs", 12.5e9, 2e-6),
    Link("1 Gbit/s Ethernet, 50 µs", 125e6, 50e-6),
    Link("50 Mbit/s home uplink, 20 ms", 6.25e6, 20e-3),
)


class Costs(NamedTuple):
    """Of one model, in seconds: steps of one worker, and drawing and adding one more tangent."""

    backprop_s: float
    full_s: float
    rank_one_s: float
    regeneration_s: float
    parameter_bytes: int


def all_reduce_s(workers: int, size: float, link: Link) -> float:
    """Ring or tree, whichever takes less: a ring is best for gradients, a tree for a few bytes."""
    if workers == 1:
        return 0.0
    ring = 2 * (workers - 1) * (link.latency_s + size / workers / link.bytes_per_s)
    tree = 2 * math.ceil(math.log2(workers)) * (link.latency_s + size / link.bytes_per_s)
    return min(ring, tree)


def all_gather_s(workers: int, size: float, link: Link) -> float:
    """Recursive doubling: every worker gets the bytes of all others."""
    if workers == 1:
        return 0.0
    return math.ceil(math.log2(workers)) * link.latency_s + (workers - 1) * size / link.bytes_per_s


def step_times(costs: Costs, workers: int, link: Link) -> dict[str, tuple[float, float]]:
    """By method: seconds of a step, and the bytes a worker hands over in it."""
    gradients, scalars = costs.parameter_bytes + STOP_BYTES, 2 * 4 + STOP_BYTES
    few = all_reduce_s(workers, scalars, link)
    own = all_gather_s(workers, scalars, link) + (workers - 1) * costs.regeneration_s
    times = {
        "backprop": (costs.backprop_s + all_reduce_s(workers, gradients, link), gradients),
        "forward-gradient, full": (costs.full_s + few, scalars),
        "forward-gradient, rank-one": (costs.rank_one_s + few, scalars),
        "forward-gradient, rank-one, own tangents": (costs.rank_one_s + own, scalars),
    }
    return {name: (seconds, sent if workers > 1 else 0) for name, (seconds, sent) in times.items()}


def measure_costs(name: str, batch: int, repeats: int) -> Costs:
    """Medians over turns on made-up 28x28 images; every trainer has its turn in each round."""
    device = torch.device("cpu")
    inputs = torch.randn(batch, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,))
    loss_fn, generator = nn.CrossEntropyLoss(reduction="none"), torch.Generator().manual_seed(0)
    model = build_model(options_model("model", name)(name=name), (1, 28, 28), 10, 0, device)
    optimizer = build_optimizer(OptimizerOptions(name="sgd", lr=LR), model)
    backprop, full, rank_one = Backprop(), ForwardGradient(**FULL), ForwardGradient(**RANK_ONE)
    tangents = rank_one.tangents_for(model)

    def backprop_step() -> None:
        backprop.compute_gradients(model, loss_fn, inputs, labels, generator)
        optimizer.step()

    @torch.no_grad()
    def regenerate() -> None:
        tangents.add_to_parameters(tangents.sample(generator, JOINED), torch.zeros(JOINED))

    steps: list[Callable[[], object]] = [
        backprop_step,
        lambda: full.sgd_step(model, loss_fn, inputs, labels, generator, LR),
        lambda: rank_one.sgd_step(model, loss_fn, inputs, labels, generator, LR),
        regenerate,
    ]
    times: list[list[float]] = [[] for _ in steps]
    for turn in range(repeats + 2):
        for step, kept in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            if turn >= 2:
                kept.append(time.perf_counter() - start)
    medians = [statistics.median(each) for each in times]
    size = sum(param.nbytes for param in model.parameters())
    return Costs(*medians[:3], medians[3] / JOINED, size)


def draw(table: pd.DataFrame, costs: dict[str, Costs], batch: int, machine: str, load: str | None) -> Figure:
    """A row of panels per model, a column per link."""
    looks = {
        "backprop": {"color": trainer_hue("backprop"), "linestyle": "-"},
        "forward-gradient, full": {"color": trainer_hue("forward-gradient"), "linestyle": (0, (4, 1.5))},
        "forward-gradient, rank-one": {"color": trainer_hue("forward-gradient"), "linestyle": "-"},
        "forward-gradient, rank-one, own tangents": {"color": trainer_hue("zeroth-order"), "linestyle": "-"},
    }
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.1 * len(costs) + 1.75))
        axes = figure.subplots(len(costs), len(LINKS), sharex=True, sharey="row", squeeze=False)
        for index, (model, cost) in enumerate(costs.items()):
            for axis, link in zip(axes[index], LINKS, strict=True):
                part = table[(table.model == model) & (table.link == link.name)]
                for method, look in looks.items():
                    curve = part[part.method == method]
                    axis.plot(curve.workers, 1000 * curve.step_time_s, label=method, **look)
                axis.set(xscale="log", yscale="log")
                if index == 0:
                    axis.set_title(link.name, fontsize=8)
                if index == len(costs) - 1:
                    axis.set_xlabel("workers")
            axes[index, 0].set_ylabel(f"{model} ({cost.parameter_bytes / 1e6:.1f} MB)\ntime of a step (ms)")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        bottom = 1.75 / figure.get_figheight()
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, bottom - 0.36 / figure.get_figheight())}
        figure.legend(handles, labels, ncols=2, **place)
        measured = "; ".join(
            f"{model}: backprop {1000 * c.backprop_s:.1f}, full {1000 * c.full_s:.1f}, "
            f"rank-one {1000 * c.rank_one_s:.1f}, one more tangent {1000 * c.regeneration_s:.2f}"
            for model, c in costs.items()
        )
        text = (
            f"Measured (ms; {machine}, batch {batch} per worker):\n{measured}.\n"
            + (f"Noisy: {load}.\n" if load else "")
            + "Computed: all-reduce by the faster of a ring, 2(N-1)(latency + bytes/(N bandwidth)), and a "
            "tree, 2 log2(N)(latency + bytes/bandwidth);\nno overlap with computing, no congestion, no "
            "stragglers, full bandwidth for each worker. Own tangents: all-gather, then N-1 tangents drawn\n"
            "and added by everyone. A worker sends the gradient with backprop, 9 bytes otherwise. "
            "The time of a step, not of training: a forward\ngradient is far noisier, so it needs more or "
            "smaller steps."
        )
        figure.text(0.02, 0.012, text, fontsize=6.2, va="bottom", linespacing=1.35)
        figure.subplots_adjust(left=0.1, right=0.985, top=0.94, bottom=bottom, hspace=0.12, wspace=0.08)
    return figure


def main() -> None:
    """Measure, compute, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", nargs="+", default=["fc", "cnn"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--redraw", action="store_true", help="from the figures measured before")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    device = torch.device("cpu")
    measure.prepare(device, arguments.threads)
    torch.manual_seed(0)
    if arguments.redraw:
        environment = json.loads((arguments.out / "scale_model.json").read_text())
        costs = {model: Costs(**cost) for model, cost in environment.pop("measured").items()}
        arguments.batch = environment.pop("batch_per_worker")
    else:
        with measure.OtherLoad() as load:
            costs = {
                name: measure_costs(name, arguments.batch, arguments.repeats) for name in arguments.models
            }
        environment = measure.describe_environment(device) | {"other_load": load.reason}
    rows = [
        {
            "model": model,
            "link": link.name,
            "method": method,
            "workers": workers,
            "step_time_s": seconds,
            "bytes_sent_per_step": sent,
        }
        for model, cost in costs.items()
        for link in LINKS
        for workers in WORKERS
        for method, (seconds, sent) in step_times(cost, workers, link).items()
    ]
    table = pd.DataFrame(rows)
    arguments.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.out / "scale_model.csv", index=False, float_format="%.6g")
    measured = {model: cost._asdict() for model, cost in costs.items()}
    (arguments.out / "scale_model.json").write_text(
        json.dumps(
            {"batch_per_worker": arguments.batch, "measured": measured, **environment}, indent=2, default=str
        )
        + "\n"
    )
    machine = f"{environment['cpu']}, {environment['threads']} threads"
    figure = draw(table, costs, arguments.batch, machine, environment["other_load"])
    for ending in ("png", "svg"):
        save_figure(figure, arguments.out / f"scale_model.{ending}")
    for name, cost in costs.items():
        print(name, {key: round(value, 6) for key, value in cost._asdict().items()})
    shown = table[table.workers.isin([1, 8, 100, 1000, 10_000])]
    wide = shown.pivot_table(
        index=["model", "link", "method"], columns="workers", values="step_time_s", sort=False
    )
    print((1000 * wide).round(1).to_string())
    if environment["other_load"]:
        print(f"fgbench: {environment['other_load']}: the times may be too long")


if __name__ == "__main__":
    main()
