"""Made-up runs in memory, with figures a test chooses."""

import hashlib
import json
from pathlib import Path

import pandas as pd

from fgbench.analysis.records import IDENTITY, RunRecord
from fgbench.storage.metrics import METRICS, TEXT_COLUMNS

ENV = {"torch": "2.7.0", "cpu": "Some CPU", "threads": 2, "device": "cpu"}


def make_record(
    trainer="backprop",
    seed=0,
    *,
    epochs=None,
    state="finished",
    env=(),
    trainer_options=(),
    summary=(),
    **given,
):
    """One run. Columns of metrics.csv are a value, or a list of one per epoch; other names are config keys.

    ``optimizer__lr=0.1`` sets ``optimizer.lr``; ``summary`` is what summary.json holds. A diverged run's last
    loss is NaN.
    """
    columns = {name: given.pop(name) for name in list(given) if name in METRICS}
    length = epochs or max([len(value) for value in columns.values() if isinstance(value, list)], default=3)
    config = {
        "name": f"{trainer}",
        "seed": seed,
        "epochs": length,
        "batch_size": 64,
        "dataset": {"name": given.pop("dataset", "fashion-mnist")},
        "model": {"name": given.pop("model", "fc")},
        "trainer": {"name": trainer, **dict(trainer_options)},
        "optimizer": {"name": "adam", "lr": 0.001},
    }
    for key, value in given.items():
        block, _, inner = key.partition("__")
        if inner:
            config.setdefault(block, {})[inner] = value
        else:
            config[key] = value
    metrics = pd.DataFrame(index=range(length), columns=list(METRICS))
    metrics["epoch"] = range(1, length + 1)
    for name, value in {"epoch_time_s": 1.0, "lr": 0.001, **columns}.items():
        metrics[name] = value
    numbers = [name for name in METRICS if name not in TEXT_COLUMNS]
    metrics = metrics.astype(dict.fromkeys(numbers, float) | {"epoch": int})
    metrics[list(TEXT_COLUMNS)] = (
        metrics[list(TEXT_COLUMNS)].astype(object).where(metrics[list(TEXT_COLUMNS)].notna(), None)
    )
    if state == "diverged":
        metrics.loc[length - 1, "train_loss"] = float("nan")
    content = {key: value for key, value in config.items() if key not in IDENTITY}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    return RunRecord(
        Path(f"results/{trainer}/s{seed}-{digest}"),
        digest,
        config,
        ENV | dict(env),
        {"state": state},
        dict(summary),
        metrics,
    )


def make_seeds(trainer, accuracies, **given):
    """A run for each accuracy, of seeds 0, 1, ..., with it as test accuracy at the end."""
    return [
        make_record(trainer, seed, test_accuracy=[0.1, 0.2, accuracy], **given)
        for seed, accuracy in enumerate(accuracies)
    ]


def many_records():
    """500 runs: five trainers, twenty learning rates, five seeds."""
    trainers = ("backprop", "forward-gradient", "guided-forward-gradient", "zeroth-order", "lab.rules:Mine")
    return [
        make_record(
            *(trainer, seed),
            epochs=100,
            optimizer__lr=lr / 10_000,
            test_accuracy=0.5 + 0.01 * seed + lr / 100,
            val_accuracy=0.5 + 0.01 * seed + lr / 100,
            train_loss=[2 / (1 + epoch) for epoch in range(100)],
            peak_memory_mib=60.0,
        )
        for trainer in trainers
        for lr in range(1, 21)
        for seed in range(5)
    ]
