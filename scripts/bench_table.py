"""The README's table of step times and memory, as ratios, from what ``fgbench bench`` wrote.

    python scripts/bench_table.py [FILE.csv ...]

By default of all bench.csv in results/bench and the folders in it.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

BENCH = Path(__file__).parents[1] / "results" / "bench"
NAMES = {"fc": "FC", "cnn": "CNN", "vgg16": "VGG-16", "resnet18": "ResNet-18", "vit": "ViT"}
FORWARD, BACKPROP, TEXTBOOK = "forward only", "backprop", "textbook forward gradient (reference)"
NORMAL, RANK_ONE, ZEROTH = "forward-gradient, normal", "forward-gradient, rank-one", "zeroth-order, rank-one"
BF16, FOUR = f"{RANK_ONE}, bf16 tangents", f"{RANK_ONE}, K=4"
COMPILED, LOOP = ", compiled", ", in the training loop"


def ratios(case: pd.DataFrame) -> dict[str, float | str]:
    """What one model's rows say; ``case`` has a row per case."""
    time, memory, flop = case["time_to_backprop"], case["memory_to_backprop"], case["gflop"]
    best_time, best_memory = case["time_to_best_backprop"], case["memory_to_best_backprop"]
    forward = case.loc[FORWARD]
    least = (forward.parameters_mib + 2 * forward.activations_mib) / forward.peak_memory_mib
    bare = case[[name.partition(",")[0] == BACKPROP and not name.endswith(LOOP) for name in case.index]]
    return {
        "**rank-one, compiled / best backprop**, time": best_time[RANK_ONE + COMPILED],
        "the same with bfloat16 tangents": best_time[BF16 + COMPILED],
        "rank-one / best backprop, time": best_time[RANK_ONE],
        "**rank-one / backprop**, both eager, time": time[RANK_ONE],
        "the limit: operations of rank-one / of backprop": flop[RANK_ONE] / flop[BACKPROP],
        "rank-one / two forward passes, time": case["time_to_forward"][RANK_ONE] / 2,
        "four rank-one tangents / one, compiled, time (2.5 expected)": time[FOUR + COMPILED]
        / time[RANK_ONE + COMPILED],
        "four rank-one tangents / one, eager, time": time[FOUR] / time[RANK_ONE],
        "normal tangents, with sampling / backprop, both eager, time": time[NORMAL],
        "the limit: operations with normal tangents / of backprop": flop[NORMAL] / flop[BACKPROP],
        "rank-one / textbook loop, time": time[RANK_ONE] / time[TEXTBOOK],
        "textbook loop / backprop, time": time[TEXTBOOK],
        "zeroth-order, rank-one / two forward passes, time": case["time_to_forward"][ZEROTH] / 2,
        "the same, compiled": case["time_to_forward"][ZEROTH + COMPILED] / 2,
        "backprop with recomputation / backprop, time": time[f"{BACKPROP}, recompute"],
        "**rank-one / best backprop without recomputation**, memory": best_memory[RANK_ONE],
        "rank-one, compiled / the same, memory": best_memory[RANK_ONE + COMPILED],
        "rank-one / backprop at its leanest, memory": memory[RANK_ONE] / bare["memory_to_backprop"].min(),
        "rank-one / backprop, both eager, memory": memory[RANK_ONE],
        "rank-one / inference, memory": case["memory_to_forward"][RANK_ONE],
        "the limit: a tangent beside each activation": least,
        "normal tangents / backprop, both eager, memory": memory[NORMAL],
        "zeroth-order, rank-one / inference, memory": case["memory_to_forward"][ZEROTH],
        "backprop with recomputation / backprop, memory": memory[f"{BACKPROP}, recompute"],
        "training loop / bare step, backprop": case["time_to_bare_step"][BACKPROP + LOOP],
        "training loop / bare step, rank-one": case["time_to_bare_step"][RANK_ONE + LOOP],
        "backprop's fastest form": _form(bare["step_time_ms"]),
        "its leanest without recomputation": _form(
            bare[~bare.index.str.contains("recompute")]["peak_memory_mib"]
        ),
        "its leanest of all": _form(bare["peak_memory_mib"]),
    }


def _form(values: pd.Series) -> str:
    """Which form of backprop has the least, without the word backprop."""
    return str(values.idxmin()).partition(", ")[2] or "eager"


def make_table(paths: Sequence[Path]) -> str:
    """The table in Markdown, a column per model."""
    rows = pd.concat([pd.read_csv(path) for path in paths])
    models = [name for name in NAMES if name in set(rows["model"])]
    columns = {NAMES[name]: ratios(rows[rows["model"] == name].set_index("case")) for name in models}
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for label in next(iter(columns.values())):
        cells = [_cell(column[label]) for column in columns.values()]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: float | str) -> str:
    """A word as it is, a number with two digits, nothing where nothing was measured."""
    if isinstance(value, str):
        return value
    return "" if math.isnan(value) else f"{value:.2f}"


if __name__ == "__main__":
    print(make_table([Path(each) for each in sys.argv[1:]] or sorted(BENCH.glob("**/bench.csv"))))
