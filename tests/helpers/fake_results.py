"""Made-up run directories for tests of what reads them."""

import hashlib
import json
import math
import random
from pathlib import Path

from fgbench.config.source import dump_yaml
from fgbench.storage.run_directory import RunDirectory

COST = {
    "backprop": (3.2, 62.0, 0.90),
    "forward-gradient": (2.1, 74.0, 0.70),
    "zeroth-order": (2.6, 37.0, 0.55),
}


def make_run(
    results,
    trainer="backprop",
    *,
    seed=0,
    epochs=5,
    planned=None,
    state="finished",
    model="fc",
    dataset="fashion-mnist-mini",
    name=None,
    options=None,
    status=None,
    cells=None,
    summary=None,
    **settings,
) -> Path:
    """Write one plausible run directory and return it.

    Args:
        results: the results folder.
        trainer: its name; decides the level of the figures.
        seed: adds noise to the figures.
        epochs: rows in metrics.csv; the last one is not finite if ``state`` is ``diverged``.
        planned: epochs in the config.
        state: of status.json.
        model: its name, or its block.
        dataset: its name, or its block.
        name: of the config; made from the model, dataset and trainer if not given.
        options: more keys for the trainer's block.
        status: more fields for status.json.
        cells: more cells for every row of metrics.csv.
        summary: more of what a finished run's summary.json holds.
        **settings: more keys for the config; blocks are merged.
    """
    model_block = {"name": model} if isinstance(model, str) else {"name": "fc", **model}
    model = model_block["name"]
    named = {"name": dataset} if isinstance(dataset, str) else dataset
    dataset_block = {"name": "fashion-mnist-mini", **named}
    dataset = dataset_block["name"]
    config = {
        "name": name or f"{model}_{dataset}_{trainer}",
        "seed": seed,
        "epochs": planned or (epochs if state == "finished" else 10),
        "batch_size": 64,
        "dataset": {"limit": None} | dataset_block,
        "model": model_block,
        "trainer": {"name": trainer, **(options or {})},
        "optimizer": {"name": "adam", "lr": 0.001},
        "clip_gradient_norm": None,
    }
    for key, value in settings.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    content = json.dumps({key: config[key] for key in config if key not in ("name", "seed")}, sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    run = RunDirectory(Path(results) / config["name"] / f"s{seed}-{digest}").create()
    run.write_config(dump_yaml(config))
    run.write_env({"device": "cpu"})
    chance = random.Random(f"{seed} {digest}")
    time_s, memory_mib, level = COST.get(trainer, (2.9, 50.0, 0.8))
    level += random.Random(digest).uniform(-0.06, 0.06)
    for epoch in range(1, epochs + 1):
        loss = 2.3 * math.exp(-epoch * level / 8) + 1.2 - level + chance.gauss(0, 0.02)
        accuracy = level * (1 - 0.5 * math.exp(-epoch / 4)) + chance.gauss(0, 0.008)
        lost = state == "diverged" and epoch == epochs
        row = {
            "epoch": epoch,
            "train_loss": math.nan if lost else loss,
            "train_accuracy": None if lost else accuracy + 0.01,
            "test_accuracy": None if lost else accuracy,
            "val_accuracy": None if lost else accuracy,
            "lr": 0.001,
            "epoch_time_s": time_s * (1.4 if epoch == 1 else 1) * chance.uniform(0.97, 1.06),
            "peak_memory_mib": memory_mib,
            "memory_source": "cpu-profiler",
        }
        run.append_metrics({**row, **(cells or {})})
    run.write_status(state, epoch=epochs, **(status or {}))
    if state == "finished":
        run.write_summary({"test_accuracy": accuracy, **(summary or {})})
    return run.path
