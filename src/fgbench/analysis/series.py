"""Runs grouped into series: one configuration, averaged over its seeds."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from fgbench.analysis.records import IDENTITY, RunRecord
from fgbench.analysis.settings import default_options, differing, is_off, not_default, setting_word
from fgbench.config.config import Config
from fgbench.config.source import flatten
from fgbench.registry import TRAINERS
from fgbench.storage.run_directory import ENDED

PARTS = ("dataset.limit", "dataset.test_limit")
"""Settings that select a part of a dataset: accuracy on a part is not accuracy on the whole."""

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
        """The runs over which means are taken: those that have ended or, if none has, all that have started.

        A diverged run has ended: a mean over the other runs alone would favour its trainer.
        """
        begun = tuple(run for run in self.runs if len(run.metrics))
        return tuple(run for run in begun if run.state in ENDED) or begun

    def curve(self, column: str) -> pd.DataFrame:
        """``column`` of the averaged runs: a row per epoch, a column per seed; NaN beyond a run's end."""
        return pd.DataFrame({run.seed: run.metrics.set_index("epoch")[column] for run in self.averaged})


def group_series(records: Iterable[RunRecord]) -> dict[tuple[str, str], list[Series]]:
    """The series of every (dataset, model): by trainer in the registry's order, then by what differs.

    A dataset's name includes the part that is used and the options in which a model's datasets differ:
    ``fashion-mnist, limit=2000``.
    Of two runs of one configuration and seed, the finished one is used, or else the one with more epochs; of
    one configuration with two versions of a user's own code, each is a series.
    """
    groups: dict[tuple[str, str], dict[str, dict[int, RunRecord]]] = {}
    all_records = list(records)
    words = distinguishing_words(all_records, "dataset")
    for record in all_records:
        dataset = ", ".join([record.component("dataset"), *words[record.path]])
        by_hash = groups.setdefault((dataset, record.component("model")), {})
        seeds = by_hash.setdefault(f"{record.hash} {record.code}", {})
        if record.seed not in seeds or _progress(record) > _progress(seeds[record.seed]):
            seeds[record.seed] = record
    series = {
        group: [tuple(seeds[seed] for seed in sorted(seeds)) for seeds in by_hash.values()]
        for group, by_hash in sorted(groups.items())
    }
    return {
        (dataset, ", ".join([model, *_shared_words([runs[0] for runs in all_runs])])): _labelled(all_runs)
        for (dataset, model), all_runs in series.items()
    }


def _shared_words(runs: Sequence[RunRecord]) -> list[str]:
    """The model options shared by all runs that differ from the defaults; labels have the others."""
    differ = differing([run.settings for run in runs])
    settings, defaults = runs[0].settings, default_options("model", runs[0].component("model"))
    return [
        setting_word(key, settings[key], default=defaults.get(key))
        for key in not_default("model", settings)
        if key not in differ
    ]


def distinguishing_words(records: Sequence[RunRecord], *kinds: str) -> dict[Path, list[str]]:
    """For every run, the part of its dataset that is used and the relevant options (also of its model).

    These are the ones that differ from their defaults or between runs: ``limit=2000``. With ``dataset``, the
    last word says which data it was, as in ``data_words``.

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
        shown = dict.fromkeys([*PARTS, *differing(options)])
        for run in runs:
            unusual = [key for kind in kinds for key in not_default(kind, run.settings)]
            keys = [key for key in {**shown, **dict.fromkeys(unusual)} if key not in _UNLABELLED]
            defaults = {
                key: value
                for kind in kinds
                for key, value in default_options(kind, run.component(kind)).items()
            }
            words[run.path] = [
                word
                for key in keys
                if (word := setting_word(key, run.settings.get(key), default=defaults.get(key)))
            ]
    if "dataset" in kinds:
        for path, word in data_words(records).items():
            words[path] += [word] if word else []
    return words


def data_words(records: Iterable[RunRecord]) -> dict[Path, str]:
    """For every run, which data it saw: ``dir=cats``, ``data=cac57380``.

    Empty unless runs of one dataset with the same options saw different images or labels.
    """
    alike: dict[str, list[RunRecord]] = {}
    for run in records:
        options = {key: value for key, value in run.settings.items() if key.startswith("dataset.")}
        options.pop("dataset.dir", None)
        alike.setdefault(repr(sorted(options.items())), []).append(run)
    words = {}
    for runs in alike.values():
        seen = {run.data_digest: str(run.settings.get("dataset.dir")) for run in runs if run.data_digest}
        named = len({(run.data_digest, run.settings.get("dataset.dir")) for run in runs})
        by_folder = named == len(set(seen.values())) == len(seen)
        for run in runs:
            digest = run.data_digest
            word = f"dir={seen[digest]}" if by_folder and digest else f"data={(digest or 'unknown')[:8]}"
            words[run.path] = word if len(seen) > 1 else ""
    return words


def _progress(record: RunRecord) -> tuple[bool, int, str]:
    return record.state == "finished", record.last_epoch, str(record.status.get("heartbeat"))


def _labelled(groups: list[tuple[RunRecord, ...]]) -> list[Series]:
    """A unique label for every configuration.

    It names every option of the trainer that differs from its default, even if all have it, the options in
    which series of one trainer differ, and the other settings in which any of the series do.
    """
    settings = [
        {key: value for key, value in runs[0].settings.items() if key not in _UNLABELLED} for runs in groups
    ]
    trainers = [runs[0].component("trainer") for runs in groups]
    common = differing([{k: v for k, v in each.items() if not k.startswith("trainer.")} for each in settings])
    labelled = []
    for runs, trainer, setting in zip(groups, trainers, settings, strict=True):
        defaults = default_options("trainer", trainer)
        own = [
            dict(defaults) | {k: v for k, v in each.items() if k.startswith("trainer.")}
            for each, name in zip(settings, trainers, strict=True)
            if name == trainer
        ]
        shown = dict.fromkeys([*differing(own), *not_default("trainer", runs[0].settings)])
        options = [key for key in {**defaults, **setting} if key in shown]
        values = {**defaults, **setting}
        words = [
            word
            for key in [*options, *common]
            if (word := setting_word(key, values.get(key), [*options, *common], defaults.get(key)))
        ]
        order = _order(trainer, [values.get(key) for key in [*differing(own), *common]])
        labelled.append((order, ", ".join([trainer, *words]), runs))
    labelled.sort(key=lambda each: each[0])
    alike = Counter(label for _, label, _ in labelled)
    variants: Counter[str] = Counter()
    series = []
    for _, label, runs in labelled:
        unique = label if alike[label] == 1 else f"{label}, {_environment(runs[0])}"
        trainer = runs[0].component("trainer")
        series.append(Series(unique, variants[trainer], runs))
        variants[trainer] += 1
    return series


def _order(trainer: str, values: list[Any]) -> tuple[Any, ...]:
    names = list(TRAINERS)
    place = names.index(trainer) if trainer in names else len(names)
    numeric = [(isinstance(v, str), v if isinstance(v, int | float) else 0.0, str(v)) for v in values]
    return place, trainer, numeric


def _environment(run: RunRecord) -> str:
    """What distinguishes two configurations with equal configs."""
    machine = [str(run.env[key]) for key in ("device_type", "device") if isinstance(run.env.get(key), str)][
        :1
    ]
    return ", ".join([*machine, run.hash, *(f"code {digest[:8]}" for digest in run.code.values())])


def label_configs(configs: Sequence[Config]) -> list[str]:
    """A label for each: model, dataset, trainer, its options not at their defaults and what else differs."""
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
    labels = []
    for head, setting in zip(heads, settings, strict=True):
        shown = list(dict.fromkeys([*keys[head], *not_default("trainer", setting)]))
        defaults = default_options("trainer", str(setting["trainer.name"]))
        words = (setting_word(key, setting.get(key), shown, defaults.get(key)) for key in shown)
        labels.append(", ".join([head, *filter(None, words)]))
    return labels
