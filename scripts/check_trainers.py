"""Run ``fgbench check`` for every trainer on every model, and write a table of verdicts.

    python scripts/check_trainers.py --out results/checks.md

Full-size models on a batch of the shipped images, few draws: a mistake of the derivative shows, a small bias
may not.
"""

import argparse
import time
from pathlib import Path

from fgbench.checks.check import check
from fgbench.config.config import Config
from fgbench.datasets.search import DataSearch
from fgbench.registry import MODELS, TRAINERS

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("results/checks.md"))
parser.add_argument("--draws", type=int, default=8)
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
arguments = parser.parse_args()

rows = []
for model in arguments.models:
    block = {"name": model} | ({"normalization": "group"} if model in ("vgg16", "resnet18") else {})
    for trainer in TRAINERS:
        config = Config.model_validate(
            {
                "dataset": {"name": "fashion-mnist-mini"},
                "model": block,
                "trainer": {"name": trainer},
                "batch_size": arguments.batch_size,
            }
        )
        start = time.perf_counter()
        text, ok = check(config, DataSearch(None, None, False), arguments.draws)
        verdict = text.rpartition("verdict: ")[2] if ok else "INCONSISTENT"
        rows.append(f"| {model} | {trainer} | {verdict} |")
        print(f"{model} {trainer}: {verdict}, {time.perf_counter() - start:.0f} s", flush=True)
        if not ok:
            print(text, flush=True)

arguments.out.parent.mkdir(parents=True, exist_ok=True)
table = "| model | trainer | verdict |\n|---|---|---|\n" + "\n".join(rows)
arguments.out.write_text(
    "# `fgbench check` for every trainer on every model\n\n"
    "`python scripts/check_trainers.py`: full-size models (group normalisation in vgg16 and resnet18), "
    f"a batch of {arguments.batch_size} shipped images, {arguments.draws} draws.\n\n{table}\n"
)
