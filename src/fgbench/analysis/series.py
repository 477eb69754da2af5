"""Runs grouped into series: one configuration, averaged over its seeds. Imports no torch."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from fgbench.analysis.records import IDENTITY, RunRecord, flatten
from fgbench.config.config import Config
from fgbench.registry import TRAINERS
from fgbench.storage.run_directory import ENDED

PARTS = ("dataset.limit", "dataset.test_limit")
"""Settings that make another dataset of one: no accuracy on a part is an accuracy on the whole."""

_UNLABELLED = ("dataset.name", "dataset.dir", "model.name", "trainer.name")


@dataclass(frozen=True, eq=False)
class Series:
    """The runs of one configuration, one per seed, by ascending seed.

    Attributes:
        label: the trainer, and the config keys in which the series of its dataset and model differ.
        variant: place among the series of the same trainer, dataset and model, from 0.
        runs: at least one.
    """

    label: str
    variant: int
    runs: tuple[RunRecord, ...]

    @property
    def trainer(self) -> str:
        """Name of the trainer."""
        return self.runs[0].component("trainer")

    @property
    def uses_backwards(self) -> str:
        """What the trainer uses backwards; see :attr:`RunRecord.uses_backwards`."""
        return self.runs[0].uses_backwards

    @cached_property
    def averaged(self) -> tuple[RunRecord, ...]:
        """The runs a mean is taken over: those that have ended or, while none has, all that have begun.

        A diverged run has ended: a mean over the survivors alone would flatter its trainer.
        """
        begun = tuple(run for run in self.runs if len(run.metrics))
        return tuple(run for run in begun if run.state in ENDED) or begun

    def curve(self, column: str) -> pd.DataFrame:
        """``column`` of the averaged runs: a row per epoch, a column per seed; NaN beyond a run's end."""
        return pd.DataFrame({run.seed: run.metrics.set_index("epoch")[column] for run in self.averaged})


def group_series(records: Iterable[RunRecord]) -> dict[tuple[str, str], list[Series]]:
    """The series of every (dataset, model): by trainer in the registry's order, then by what differs.

    A dataset is named with the part of it that is used and the options in which a model's datasets differ:
    ``fashion-mnist, limit=2000``.
    Of two runs of one configuration and seed the finished one counts, or else the one that got furthest.
    """
    groups: dict[tuple[str, str], dict[str, dict[int, RunRecord]]] = {}
    all_records = list(records)
    words = words_apart(all_records, "dataset")
    for record in all_records:
        dataset = ", ".join([record.component("dataset"), *words[record.path]])
        by_hash = groups.setdefault((dataset, record.component("model")), {})
        seeds = by_hash.setdefault(record.hash, {})
        if record.seed not in seeds or _progress(record) > _progress(seeds[record.seed]):
            seeds[record.seed] = record
    return {
        group: _labelled([tuple(seeds[seed] for seed in sorted(seeds)) for seeds in by_hash.values()])
        for group, by_hash in sorted(groups.items())
    }


def words_apart(records: Sequence[RunRecord], *kinds: str) -> dict[Path, list[str]]:
    """For every run, what tells its dataset (or model) from others of that name: ``limit=2000``.

    Args:
        records: the runs.
        kinds: ``dataset``, ``model`` or both. Compared are runs with the same name of both.
    """
    alike: dict[tuple[str, str], list[RunRecord]] = {}
    for run in records:
        alike.setdefault((run.component("dataset"), run.component("model")), []).append(run)
    prefixes = tuple(f"{kind}." for kind in kinds)
    words = {}
    for runs in alike.values():
        options = [
            {
                key: value
                for key, value in run.settings.items()
                if key.startswith(prefixes) and key not in _UNLABELLED and not is_off(value)
            }
            for run in runs
        ]
        keys = dict.fromkeys([*PARTS, *differing(options)])
        for run, own in zip(runs, options, strict=True):
            words[run.path] = [word for key in keys if (word := setting_word(key, own.get(key)))]
    return words


def _progress(record: RunRecord) -> tuple[bool, int, str]:
    return record.state == "finished", record.last_epoch, str(record.status.get("heartbeat"))


def _labelled(groups: list[tuple[RunRecord, ...]]) -> list[Series]:
    """A label for every configuration: no two alike, nothing in them that all share."""
    settings = [
        {key: value for key, value in runs[0].settings.items() if key not in _UNLABELLED} for runs in groups
    ]
    trainers = [runs[0].component("trainer") for runs in groups]
    common = differing([{k: v for k, v in each.items() if not k.startswith("trainer.")} for each in settings])
    labelled = []
    for runs, trainer, setting in zip(groups, trainers, settings, strict=True):
        same_trainer = [each for each, name in zip(settings, trainers, strict=True) if name == trainer]
        keys = [key for key in differing(same_trainer) if key.startswith("trainer.")] + common
        words = [word for key in keys if (word := setting_word(key, setting.get(key), keys))]
        labelled.append(
            (_order(trainer, [setting.get(key) for key in keys]), ", ".join([trainer, *words]), runs)
        )
    labelled.sort(key=lambda each: each[0])
    alike = Counter(label for _, label, _ in labelled)
    variants: Counter[str] = Counter()
    series = []
    for _, label, runs in labelled:
        told = label if alike[label] == 1 else f"{label}, {_environment(runs[0])}"
        trainer = runs[0].component("trainer")
        series.append(Series(told, variants[trainer], runs))
        variants[trainer] += 1
    return series


def is_off(value: Any) -> bool:
    """Whether a setting with this value does nothing."""
    return value is None or value is False


def differing(settings: list[dict[str, Any]]) -> list[str]:
    """The keys with more than one value."""
    keys = dict.fromkeys(key for each in settings for key in each)
    return [key for key in keys if len({repr(each.get(key)) for each in settings}) > 1]


def setting_word(key: str, value: Any, keys: Sequence[str] = ()) -> str:
    """How a label tells a setting: ``tangents=4``; a switch by its name alone, what is off not at all."""
    if is_off(value):
        return ""
    name = _short(key)
    if [_short(other) for other in keys].count(name) > 1:
        name = key
    if value is True:
        return name
    return f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"


def _short(key: str) -> str:
    return key.removesuffix(".name").rpartition(".")[2]


def _order(trainer: str, values: list[Any]) -> tuple[Any, ...]:
    names = list(TRAINERS)
    place = names.index(trainer) if trainer in names else len(names)
    numeric = [(isinstance(v, str), v if isinstance(v, int | float) else 0.0, str(v)) for v in values]
    return place, trainer, numeric


def _environment(run: RunRecord) -> str:
    """What tells apart two configurations whose configs read the same."""
    told = [str(run.env[key]) for key in ("device_type", "device") if isinstance(run.env.get(key), str)][:1]
    return ", ".join([*told, run.hash])


def label_configs(configs: Sequence[Config]) -> list[str]:
    """A label for each: model, dataset, trainer and the other keys in which they differ, seed apart."""
    dumps = [config.model_dump(mode="json") for config in configs]
    settings = [
        dict(flatten({key: value for key, value in each.items() if key not in (*IDENTITY, "device")}))
        for each in dumps
    ]
    named = ("model.name", "dataset.name", "trainer.name")
    parts = {key for key in differing(settings) if key not in named}
    groups: dict[str, list[dict[str, Any]]] = {}
    heads = [f"{each.model.name} on {each.dataset.name}, {each.trainer.name}" for each in configs]
    for head, setting in zip(heads, settings, strict=True):
        groups.setdefault(head, []).append(setting)
    keys = {head: [key for key in differing(group) if key in parts] for head, group in groups.items()}
    return [
        ", ".join(
            [head, *filter(None, (setting_word(key, setting.get(key), keys[head]) for key in keys[head]))]
        )
        for head, setting in zip(heads, settings, strict=True)
    ]
