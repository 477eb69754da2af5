"""The README's table of step times and memory, as ratios, from what ``fgbench bench`` wrote.

    python scripts/bench_table.py [FILE.csv ...]

By default of all bench.csv in results/bench and the folders in it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

BENCH = Path(__file__).parents[1] / "results" / "bench"
NAMES = {"fc": "FC", "cnn": "CNN", "vgg16": "VGG-16", "resnet18": "ResNet-18"}
FORWARD, BACKPROP, TEXTBOOK = "forward only", "backprop", "textbook forward gradient (reference)"
NORMAL, RANK_ONE = "forward-gradient, normal", "forward-gradient, rank-one"
LOOP = ", in the training loop"


def ratios(case: pd.DataFrame) -> dict[str, float]:
    """What one model's rows say; ``case`` has a row per case."""
    time, memory, flop = case["time_to_backprop"], case["memory_to_backprop"], case["gflop"]
    forward = case.loc[FORWARD]
    least = (forward.parameters_mib + 2 * forward.activations_mib) / forward.peak_memory_mib
    return {
        "**rank-one / backprop**, time": time[RANK_ONE],
        "the limit: operations of rank-one / of backprop": flop[RANK_ONE] / flop[BACKPROP],
        "rank-one / two forward passes, time": case["time_to_forward"][RANK_ONE] / 2,
        "four rank-one tangents / one, time (2.5 expected)": time[f"{RANK_ONE}, K=4"] / time[RANK_ONE],
        "normal tangents, with sampling / backprop, time": time[NORMAL],
        "the limit: operations with normal tangents / of backprop": flop[NORMAL] / flop[BACKPROP],
        "rank-one / textbook loop, time": time[RANK_ONE] / time[TEXTBOOK],
        "textbook loop / backprop, time": time[TEXTBOOK],
        "backprop with recomputation / backprop, time": time[f"{BACKPROP}, recompute"],
        "**rank-one / backprop**, memory": memory[RANK_ONE],
        "rank-one / inference, memory": case["memory_to_forward"][RANK_ONE],
        "the limit: a tangent beside each activation": least,
        "normal tangents / backprop, memory": memory[NORMAL],
        "backprop with recomputation / backprop, memory": memory[f"{BACKPROP}, recompute"],
        "training loop / bare step, backprop": case["time_to_bare_step"][BACKPROP + LOOP],
        "training loop / bare step, rank-one": case["time_to_bare_step"][RANK_ONE + LOOP],
    }


def make_table(paths: Sequence[Path]) -> str:
    """The table in Markdown, a column per model."""
    rows = pd.concat([pd.read_csv(path) for path in paths])
    models = [name for name in NAMES if name in set(rows["model"])]
    columns = {NAMES[name]: ratios(rows[rows["model"] == name].set_index("case")) for name in models}
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for label in next(iter(columns.values())):
        cells = [f"{column[label]:.2f}" for column in columns.values()]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(make_table([Path(each) for each in sys.argv[1:]] or sorted(BENCH.glob("**/bench.csv"))))
