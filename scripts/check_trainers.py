"""Run ``fgbench check`` for every trainer on every model, and write a table of verdicts.

    python scripts/check_trainers.py --out results/checks.md

Full-size models on a batch of the shipped images, few draws: the sampled figures are rough, the exact parts
are those of ``fgbench check``.
"""

import argparse
import subprocess
import time
from pathlib import Path

from fgbench.checks.check import check
from fgbench.config.config import Config
from fgbench.datasets.search import DataSearch
from fgbench.errors import ConfigError
from fgbench.registry import MODELS, TRAINERS

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("results/checks.md"))
parser.add_argument("--draws", type=int, default=8)
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
arguments = parser.parse_args()

RANK_ONE = {"name": "forward-gradient", "structure": "rank1", "guess": "rademacher"}
BLOCKS = [({"name": name}, name) for name in TRAINERS] + [
    (RANK_ONE, "forward-gradient, rank-one"),
    (RANK_ONE | {"name": "zeroth-order"}, "zeroth-order, rank-one"),
    (
        {"name": "activity-forward-gradient", "guess": "next-weights"},
        "activity-forward-gradient, next weights",
    ),
]
COMMIT = subprocess.run(
    ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
).stdout.strip()
SETTING = f"a batch of {arguments.batch_size} shipped images, {arguments.draws} draws"
HEAD = f"""# `fgbench check` for every trainer on every model

`python scripts/check_trainers.py`, at commit {COMMIT or "unknown"}: full-size models (group normalisation in
vgg16 and resnet18), {SETTING}.

Consistent: derivatives and gradient are those of the trainer's formula entry by entry, its sampler and the
exact mean of its gradient are what it says. A part without anything to compare with is named.

| model | trainer | verdict |
|---|---|---|
"""


def verdict_of(config: Config) -> str:
    """The last line of a check, or why there is none."""
    try:
        text, ok = check(config, DataSearch(None, None, False), arguments.draws)
    except ConfigError as refusal:
        return f"refused: {refusal}"
    if not ok:
        print(text, flush=True)
    return text.rpartition("verdict: ")[2].replace("inconsistent", "INCONSISTENT")


table = HEAD
for model in arguments.models:
    model_block = {"name": model} | ({"normalization": "group"} if model in ("vgg16", "resnet18") else {})
    for trainer_block, name in BLOCKS:
        config = Config.model_validate(
            {
                "dataset": {"name": "fashion-mnist-mini"},
                "model": model_block,
                "trainer": trainer_block,
                "batch_size": arguments.batch_size,
            }
        )
        start = time.perf_counter(), time.process_time()
        verdict = verdict_of(config)
        seconds = f"{time.perf_counter() - start[0]:.0f} s, {time.process_time() - start[1]:.0f} of them CPU"
        print(f"{model} {name}: {verdict} ({seconds})", flush=True)
        table += f"| {model} | {name} | {verdict} |\n"
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(table)
