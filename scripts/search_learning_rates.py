"""Find a learning rate for each config of configs/trainers by validation accuracy, on part of the images.

    python scripts/search_learning_rates.py --results search

Every config gets the same candidates, images and epochs. Prints a table and writes it to
RESULTS/learning_rates.csv; the best rates are what the configs in configs/trainers are set to.
"""

import argparse
from pathlib import Path

import pandas as pd

from fgbench.analysis.records import load_results
from fgbench.config import load_config
from fgbench.runner import run_configs

CANDIDATES = ("1e-4", "3e-4", "1e-3", "3e-3", "1e-2")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--configs", type=Path, default=Path("configs/trainers"))
parser.add_argument("--results", type=Path, default=Path("search"))
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--limit", type=int, default=20_000, help="training images")
arguments = parser.parse_args()

rows = []
for path in sorted(arguments.configs.glob("*.yaml")):
    for rate in CANDIDATES:
        changes = [f"optimizer.lr={rate}", f"epochs={arguments.epochs}", f"dataset.limit={arguments.limit}"]
        folder = arguments.results / rate
        run_configs([load_config(path, [*changes, f"results_dir={folder}"])])
        (record,) = load_results(folder / path.stem)
        rows.append((path.stem, float(rate), record.final("val_accuracy"), record.state))

table = pd.DataFrame(rows, columns=["config", "lr", "val_accuracy", "state"])
table.to_csv(arguments.results / "learning_rates.csv", index=False)
print(table.pivot(index="config", columns="lr", values="val_accuracy").round(4).to_string())
print("\nbest:\n" + table.loc[table.groupby("config")["val_accuracy"].idxmax()].to_string(index=False))
