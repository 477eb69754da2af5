"""The results of tuning, by either sampler: the best values of every configuration, and a table."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgbench.analysis.rendering import align
from fgbench.config.config import Config, check_config, to_yaml
from fgbench.config.overrides import Override
from fgbench.config.source import Source
from fgbench.formatting import format_number
from fgbench.storage.files import atomic_write


@dataclass(frozen=True)
class Tuned:
    """What tuning found for one configuration.

    Attributes:
        path: the config file written.
        trials: number of trials, including those that diverged or were stopped.
        diverged: trials whose loss became infinite or NaN.
        values: the best trial's, by dotted key.
        score: its metric; the mean over seeds where there are several.
        stopped: trials that were stopped early.
        noise: largest less smallest accuracy that each tuning seed's own choice of values gives; NaN where
            one seed's choice diverges with another, None where there is one seed.
        at_edge: whether the best value is the last one tried in its direction.
    """

    label: str
    path: Path
    trials: int
    diverged: int
    values: dict[str, Any]
    score: float
    stopped: int = 0
    noise: float | None = None
    at_edge: bool = False


def distinct_configs(configs: Sequence[Config], keys: Sequence[str]) -> list[Config]:
    """One config for each group that differs only in the seed and the tuned keys."""
    found: dict[str, Config] = {}
    for config in configs:
        data = config.model_dump(mode="json")
        for key in ("seed", *keys):
            *blocks, last = key.split(".")
            inner = data
            for part in blocks:
                inner = inner.get(part) or {}
            inner.pop(last, None)
        found.setdefault(repr(data), config)
    return list(found.values())


def with_values(config: Config, values: dict[str, Any], tuned: str | None = None) -> Config:
    """The config with other values for dotted keys.

    Raises:
        ConfigError: an unknown key, or a value that is not allowed.
    """
    overrides = [Override(key, value, f"tune.keys.{key}") for key, value in values.items()]
    source = Source("the tuned config", config.model_dump(mode="json", exclude_unset=True) | {"tuned": tuned})
    return check_config(source, overrides)


def short_name(label: str) -> str:
    """The name of a run, from a label; a long one ends in a digest of what is cut off."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", label.replace(" on ", "_"))
    return name if len(name) <= 100 else f"{name[:91]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def write_tuned(config: Config, label: str, values: dict[str, Any], origin: str, folder: Path) -> Path:
    """Write the tuned config; ``origin`` records in it how its values were chosen."""
    name = short_name(label)
    path = folder / f"{name}.yaml"
    named = config.model_copy(update={"name": name})
    atomic_write(path, to_yaml(with_values(named, {"name": name, **values}, origin)))
    return path


def describe_tuned(tuned: Tuned) -> str:
    """One line about one configuration."""
    summary = f"{_values(tuned)}, score {format_number(tuned.score, '.4f')}, {tuned.trials} trials"
    if tuned.at_edge:
        summary += ", the best value is the last one tried: the best may lie beyond it"
    return f"{summary}; {tuned.path}"


def tuning_table(results: Sequence[Tuned]) -> str:
    """A row for every configuration: the trials, the best values and their score."""
    head = ["run", "trials", "diverged", "stopped early", "best", "score", "noise of tuning"]
    rows = [
        [
            *(each.label, str(each.trials), str(each.diverged), str(each.stopped)),
            *(_values(each), format_number(each.score, ".4f"), _noise(each)),
        ]
        for each in results
    ]
    return align(head, rows)


def _noise(tuned: Tuned) -> str:
    if tuned.noise is None:
        return "-"
    return format_number(tuned.noise, ".4f") if tuned.noise == tuned.noise else "a choice diverges"


def _values(tuned: Tuned) -> str:
    return ", ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in tuned.values.items()
    )
