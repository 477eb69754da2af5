"""Reads run directories."""

import hashlib
import json
import logging
import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from fgbench.analysis.bench_steps import Step, load_steps
from fgbench.config.source import flatten, read_yaml
from fgbench.errors import ConfigError, FgbenchError
from fgbench.registry import uses_backwards
from fgbench.storage.metrics import METRICS, TEXT_COLUMNS
from fgbench.storage.run_directory import CONFUSIONS, LAYER_COLUMNS, NO_STATUS, TRIALS, RunDirectory

logger = logging.getLogger(__name__)

IDENTITY = (
    *("name", "seed", "tuned", "tags", "note", "data_dir", "results_dir"),
    *("saving", "diagnostics", "log", "verify"),
)
"""Config keys that do not affect the measurements."""

_FOLDER = re.compile(r"s\d+-([0-9a-f]{8})$")


@dataclass(frozen=True, eq=False)
class RunRecord:
    """The content of one run directory.

    Attributes:
        path: the run directory.
        hash: which configuration it is a seed of.
        config: the resolved config, nested.
        env: machine, versions and settings; empty if unknown.
        status: ``state`` and the rest of status.json; a killed run is interrupted.
        summary: final values; empty for an unfinished run.
        metrics: one row per epoch, all columns of ``METRICS``; missing numbers are NaN, missing strings None.
    """

    path: Path
    hash: str
    config: dict[str, Any]
    env: dict[str, Any]
    status: dict[str, Any]
    summary: dict[str, Any]
    metrics: pd.DataFrame

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.config.get("seed", 0))

    @property
    def state(self) -> str:
        """Running, finished, diverged, interrupted or failed."""
        return str(self.status["state"])

    @property
    def last_epoch(self) -> int:
        """Number of completed epochs."""
        return int(self.metrics["epoch"].iloc[-1]) if len(self.metrics) else 0

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags in its config."""
        given = self.config.get("tags") or ()
        return tuple(map(str, given if isinstance(given, list | tuple) else [given]))

    @property
    def stopped_early(self) -> bool:
        """Whether it finished before its last epoch, because of ``early_stopping``."""
        return self.state == "finished" and bool(self.summary.get("stopped_early"))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config by dotted key, such as ``optimizer.lr``, without the keys in ``IDENTITY``.

        If the config leaves the device open, it is the kind of device the run used.
        """
        content = {key: value for key, value in self.config.items() if key not in IDENTITY}
        if content.get("device") == "auto" and "device" in self.env:
            content["device"] = str(self.env["device"]).partition(":")[0]
        found = dict(flatten(content))
        found.pop("dataset.verify_content", None)  # says what is refused, not what is trained on
        return found

    @property
    def num_classes(self) -> int | None:
        """Number of classes of its dataset; None if unknown."""
        known = {"mnist": 10, "fashion-mnist": 10, "fashion-mnist-mini": 10, "cifar10": 10}
        count = (
            self.data.get("classes")
            or self.config["dataset"].get("classes")
            or known.get(self.component("dataset"))
        )
        return count if isinstance(count, int) else None

    @property
    def data(self) -> dict[str, Any]:
        """What it recorded of its data; empty if nothing."""
        return _block(self.env, "data")

    @property
    def data_digest(self) -> str | None:
        """The digest of its images and labels, in order; None if not recorded."""
        return self.data.get("loaded")

    @property
    def code(self) -> dict[str, str]:
        """The digests of the user's own modules, by component; empty if there are none or unknown."""
        return _block(self.env, "code")

    @property
    def num_test_images(self) -> int | None:
        """On how many images its test accuracy is measured; None if not recorded."""
        counts = _block(self.data, "images").get("test"), self.settings.get("dataset.test_limit")
        return min((each for each in counts if isinstance(each, int) and each > 0), default=None)

    def chance(self, part: str) -> float:
        """The accuracy of guessing on a part of the images (``train``, ``val`` or ``test``); NaN if unknown.

        It is the largest class's share; one of as many equal classes where that was not recorded.
        """
        if not self.num_classes:
            return math.nan
        share = _block(self.data, "largest_class").get(part)
        return max(1 / self.num_classes, share if isinstance(share, float) else 0.0)

    def component(self, kind: str) -> str:
        """Name of the run's ``dataset``, ``model`` or ``trainer``."""
        return str(self.config[kind]["name"])

    @cached_property
    def layers(self) -> pd.DataFrame:
        """The comparisons of every layer's gradient with the true one: the columns of layers.csv."""
        rows = pd.DataFrame(RunDirectory(self.path).read_layers(), columns=list(LAYER_COLUMNS))
        numbers = [column for column in LAYER_COLUMNS if column != "layer"]
        rows[numbers] = rows[numbers].apply(pd.to_numeric, errors="coerce")
        return rows

    @cached_property
    def confusions(self) -> pd.DataFrame | None:
        """The final confusion matrix on the test images: true classes (rows) by predicted classes (columns).

        None for a run that has not finished, or that has none.
        """
        if self.state != "finished":
            return None
        names, counts = RunDirectory(self.path).read_confusions()
        if not counts:
            if self.summary.get("test_class_accuracy") or (self.path / CONFUSIONS).exists():
                logger.warning("%s: no readable %s; its confusions are left out", self.path, CONFUSIONS)
            return None
        return pd.DataFrame(counts, index=names[: len(counts)], columns=names)

    @property
    def uses_backwards(self) -> str:
        """What the trainer uses backwards, a value of ``Backwards``, such as ``nothing``."""
        return str(self.summary.get("uses_backwards") or uses_backwards(self.config["trainer"]))

    @property
    def forward_passes_per_step(self) -> float:
        """Cost of a step in forward passes of its batch, on any machine; NaN if not counted."""
        return _number(self.summary.get("forward_passes_per_step"))

    @property
    def drawing_ms_per_step(self) -> float:
        """Time spent drawing random numbers in a step, in ms on the run's machine; NaN if unknown."""
        return _number(self.summary.get("drawing_ms_per_step"))

    def notes(self, column: str) -> list[str]:
        """The distinct strings in a text column, in order of appearance."""
        return list(dict.fromkeys(self.metrics[column].dropna()))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


@dataclass(frozen=True)
class Results:
    """The content of a results folder.

    Attributes:
        runs: every readable run, in order of path.
        unread: the unreadable run directories, and why.
        steps: benchmarks by ``fgbench bench`` there.
        chosen: how the runs were selected; empty for all.
    """

    runs: list[RunRecord]
    unread: dict[Path, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    chosen: str = ""

    @property
    def notes(self) -> list[str]:
        """Remarks on the runs: how they were selected, which are unreadable, which have not finished."""
        left_out = [f"Left out: {path}: {reason}" for path, reason in self.unread.items()]
        unfinished = [
            f"Not finished: {run.path}: {run.state}, epoch {run.last_epoch} of {run.config.get('epochs')}"
            for run in self.runs
            if run.state not in ("finished", "diverged")
        ]
        return [*([self.chosen] if self.chosen else []), *left_out, *unfinished]


def read_results(path: str | Path, tag: str | None = None) -> Results:
    """Every run directory and benchmark at or below ``path``; a warning names unreadable ones.

    Trials of tuning are left out, unless ``path`` is within their folder.

    Args:
        path: a results folder, or any folder in it.
        tag: leave out the runs that do not have it.

    Raises:
        ConfigError: no such folder, or no run in it, or none with the tag.
    """
    root = Path(path)
    if not root.is_dir():
        problem = "is a file" if root.exists() else "no such folder"
        raise ConfigError(f"{root}: {problem}, expected a folder with runs")
    runs, unread = [], {}
    for folder in sorted(
        {file.parent for name in ("config.yaml", "metrics.csv", "status.json") for file in root.rglob(name)}
    ):
        if f"/{TRIALS}/" in f"/{folder.relative_to(root).as_posix()}/":
            continue
        try:
            runs.append(_load_run(folder))
        except FgbenchError as error:
            unread[folder] = str(error).partition("\n")[0].removeprefix(f"{folder}/")
            logger.warning("%s: %s; this run is left out", folder, unread[folder])
    if not runs:
        raise ConfigError(f"no runs in {root}: `fgbench run CONFIG --results {root}` writes one")
    steps = load_steps(root)
    return Results(runs, unread, steps) if tag is None else _choose(runs, unread, steps, tag, root)


def _choose(
    runs: list[RunRecord], unread: dict[Path, str], steps: list[Step], tag: str, root: Path
) -> Results:
    chosen = [run for run in runs if tag in run.tags]
    if not chosen:
        tags = sorted({each for run in runs for each in run.tags})
        there = f"the tags there are {', '.join(tags)}" if tags else "no run there has any (the key tags)"
        raise ConfigError(f"--tag {tag[:60]}: no run in {root} has it; {there}")
    return Results(chosen, unread, steps, f"Of the {len(runs)} runs, the {len(chosen)} tagged {tag}.")


def load_results(path: str | Path, tag: str | None = None) -> list[RunRecord]:
    """The runs of ``read_results``."""
    return read_results(path, tag).runs


def _load_run(folder: Path) -> RunRecord:
    directory = RunDirectory(folder)
    if not (folder / "config.yaml").exists():
        raise ConfigError("has no config.yaml")
    source = read_yaml(folder / "config.yaml")
    source.raise_problems()
    metrics = pd.DataFrame(directory.read_metrics(), columns=list(METRICS))
    config = source.data
    named = all(
        isinstance(config.get(kind), dict) and config[kind].get("name")
        for kind in ("dataset", "model", "trainer")
    )
    if not named or not isinstance(config.get("seed", 0), int):
        raise ConfigError("config.yaml is not the config of a run")
    planned = config.get("epochs", 1)
    if type(planned) is not int or planned < 1:
        raise ConfigError(f"config.yaml: epochs: expected a whole number from 1, got {planned!r:.60}")
    numbers = [column for column in METRICS if column not in TEXT_COLUMNS]
    metrics = metrics.astype(dict.fromkeys(numbers, float) | {"epoch": int})
    match = _FOLDER.search(folder.resolve().name)
    identity = match[1] if match else _content_hash(config)
    status, epochs = directory.status(), config.get("epochs")
    if config.get("early_stopping"):
        epochs = status.get("epoch", epochs)
    if status["state"] == "finished" and isinstance(epochs, int) and len(metrics) < epochs:
        damage = f"metrics.csv is damaged after epoch {len(metrics)} of {epochs}"
        logger.warning("%s: %s; the command that made the run repairs it", folder, damage)
        status = status | {"state": "failed", "reason": damage}
    env, summary = directory.read_env(), directory.read_summary()
    if status.get("reason") == NO_STATUS:
        logger.warning("%s: %s; the run counts as interrupted", folder, NO_STATUS)
    if len(metrics) and not env:
        logger.warning("%s: no readable env.json; its machine and its data count as unknown", folder)
    if status["state"] == "finished" and not summary:
        logger.warning("%s: no readable summary.json; what a step costs is left out", folder)
    return RunRecord(folder, identity, config, env, status, summary, metrics)


def _block(content: dict[str, Any], key: str) -> dict[str, Any]:
    """What is below a key; empty where that is no block."""
    block = content.get(key)
    return block if isinstance(block, dict) else {}


def _content_hash(config: dict[str, Any]) -> str:
    """The hash for a run directory that was renamed."""
    content = {key: value for key, value in config.items() if key not in IDENTITY}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
