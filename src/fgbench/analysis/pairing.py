"""Which series can be compared, and what else differs between them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from statistics import fmean
from typing import Any

from fgbench.analysis.readings import read
from fgbench.analysis.records import RunRecord
from fgbench.analysis.series import Series, data_words, distinguishing_words, group_series
from fgbench.analysis.settings import default_options, is_off, not_default
from fgbench.options import Backwards
from fgbench.registry import TRAINERS

TUNABLE = ("optimizer.", "schedule.", "clip_gradient_norm")
"""Settings that may differ between two trainers in one experiment, since each has its own best values."""

RATE, EXACT_RATE = "optimizer.lr", "optimizer.exact_lr"

CONTROL = "frozen"
"""The trainer that trains the output layer alone."""

PLACES = ("device", "dataset.dir")
"""Settings that name folders or devices; the kind of device is taken from the environment."""

ENVIRONMENT = ("torch", "cpu", "threads", "device", "gpu", "cuda", "allocations_kept", "deterministic")
"""Keys of env.json whose differences are reported."""

ALWAYS_RECORDED = ("torch", "cpu", "device")
"""Those of them that every version records: where one is missing, the machine is unknown."""


@dataclass(frozen=True)
class Task:
    """The series of one model on one dataset, trained in different ways.

    Attributes:
        title: such as ``cnn on fashion-mnist``; with the options in which tasks of these names differ.
        series: by trainer in the registry's order.
    """

    title: str
    series: tuple[Series, ...]


@dataclass(frozen=True, eq=False)
class Pair:
    """A series and the one it is compared with.

    Attributes:
        rivals: series that could as well be the baseline, where no validation accuracy says which is best.
        runs: their runs of the same seeds, by ascending seed, those of ``series`` first.
    """

    task: str
    series: Series
    baseline: Series
    rivals: int = 0

    @cached_property
    def runs(self) -> tuple[tuple[RunRecord, RunRecord], ...]:
        """Runs of the same seed and the same data: the series' and the baseline's."""
        others = {run.seed: run for run in self.baseline.averaged}
        both = ((run, others[run.seed]) for run in self.series.averaged if run.seed in others)
        return tuple(pair for pair in both if may_pair(*pair))

    @property
    def all_runs(self) -> tuple[RunRecord, ...]:
        """The runs of both."""
        return tuple(run for both in self.runs for run in both)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds both have."""
        return tuple(run.seed for run, _ in self.runs)

    @property
    def other_settings(self) -> list[str]:
        """Differences besides the trainer, such as ``optimizer.lr 0.0001 / 0.001``.

        A frozen body has no learning rate. So rates do not differ where the control's output layer has the
        rate that the series' has by ``optimizer.exact_lr``: with a rate of 0 for its body it would be the
        control. (With anything but nothing backwards, more than the output layer has an exact gradient.)
        """
        mine, other = settings(self.series), settings(self.baseline)
        different = setting_differences(mine, other)
        alone = self.series.uses_backwards == Backwards.NOTHING
        if self.baseline.trainer == CONTROL and alone and mine.get(EXACT_RATE) == other.get(RATE):
            different = [key for key in different if key not in (RATE, EXACT_RATE)]
        return [f"{key} {mine.get(key)} / {other.get(key)}" for key in different]

    @cached_property
    def environments(self) -> list[str]:
        """Differences between the machines and libraries of the paired runs, such as ``torch 2.6 / 2.7``."""
        return environment_differences(self.all_runs)


def environment_differences(runs: Iterable[RunRecord]) -> list[str]:
    """Differences between the machines and libraries of runs, such as ``torch 2.6 / 2.7``.

    A run that was resumed elsewhere counts with all of its machines. What an older version did not record
    does not count, except where one of ``ALWAYS_RECORDED`` is missing.
    """
    envs = [_kind_of_device(env) for run in runs for env in (run.env, *run.env.get("earlier", ()))]
    differences = []
    for key in ENVIRONMENT:
        known = key in ALWAYS_RECORDED
        values = dict.fromkeys(
            str(env.get(key) or "unknown") for env in envs if known or env.get(key) is not None
        )
        if len(values) > 1:
            differences.append(f"{key} {' / '.join(values)}")
    return differences


def may_pair(first: RunRecord, second: RunRecord) -> bool:
    """Whether two runs used the same images in the same order and the same code, as far as is known."""
    digests = {first.data_digest, second.data_digest} - {None}
    both = first.code.keys() & second.code.keys()
    return len(digests) < 2 and all(first.code[name] == second.code[name] for name in both)


def describe_unknown_data(records: Iterable[RunRecord]) -> str:
    """One line about runs that did not record their data; empty if all did."""
    all_records = list(records)
    unknown = [str(run.path) for run in all_records if run.data_digest is None]
    if not unknown:
        return ""
    more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    return (
        f"{len(unknown)} of {len(all_records)} runs did not record their data: taken to be that of the "
        f"others, if these agree: {unknown[0]}{more}"
    )


def make_tasks(records: Iterable[RunRecord]) -> list[Task]:
    """The records grouped by task: data, and dataset and model with all their options."""
    all_records = list(records)
    by_task: dict[str, list[RunRecord]] = {}
    data = data_words(all_records)
    for record in all_records:
        by_task.setdefault(f"{_task_settings(record)} {data[record.path]}", []).append(record)
    words = distinguishing_words(all_records, "dataset", "model")
    tasks = []
    for group in by_task.values():
        first = group[0]
        names = f"{first.component('model')} on {first.component('dataset')}"
        [series] = group_series(group).values()
        tasks.append(Task(", ".join([names, *words[first.path]]), tuple(series)))
    return sorted(tasks, key=lambda task: task.title)


def _task_settings(run: RunRecord) -> dict[str, Any]:
    return {
        key: value
        for key, value in sorted(run.settings.items())
        if key.startswith(("dataset.", "model.")) and key not in PLACES and not is_off(value)
    }


def settings(series: Series) -> dict[str, Any]:
    """The settings besides the trainer that have an effect, and the kind of device it ran on."""
    run = series.runs[0]
    kept = {
        key: value
        for key, value in run.settings.items()
        if not key.startswith("trainer.") and key not in PLACES and not is_off(value)
    }
    device = _kind_of_device(run.env)["device"]
    return kept | ({"device type": device} if device else {})


def _kind_of_device(env: dict[str, Any]) -> dict[str, Any]:
    """An env.json with only the kind of device: cuda:0 and cuda:1 of one GPU model are equal."""
    device = str(env.get("device") or env.get("device_type") or "").partition(":")[0]
    return env | {"device": device or None}


def setting_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """The keys in which two results of ``settings`` differ."""
    return [key for key in {**first, **second} if first.get(key) != second.get(key)]


def trainer_options(series: Series) -> dict[str, Any]:
    """The trainer's block by dotted key; options unknown to an older version have their defaults."""
    known = series.runs[0].settings
    return dict(default_options("trainer", series.trainer)) | {
        key: value for key, value in known.items() if key.startswith("trainer.")
    }


def closest_to_defaults(candidates: Iterable[Series]) -> list[Series]:
    """Of series of one trainer, those whose trainer's options are nearest their defaults."""
    all_ = list(candidates)
    fewest = min(map(_deviations, all_), default=0)
    return [each for each in all_ if _deviations(each) == fewest]


def nearest(task: str, series: Series, candidates: Iterable[Series]) -> Pair | None:
    """A series with the candidate to compare it with; None if there is none.

    It differs in the fewest settings besides the trainer's; among those it ends with the best validation
    accuracy, which makes it the strongest baseline.
    """
    mine = settings(series)
    distances = {
        each: len(setting_differences(mine, settings(each))) for each in candidates if each is not series
    }
    return strongest(task, series, [each for each in distances if distances[each] == min(distances.values())])


def strongest(task: str, series: Series, candidates: Sequence[Series]) -> Pair | None:
    """A series with the candidate that ends with the best validation accuracy; None if there is none."""
    if not candidates:
        return None
    rivals = len(candidates) - 1 if any(map(lacks_validation, candidates)) else 0
    return Pair(task, series, max(candidates, key=mean_validation_accuracy), rivals)


def _deviations(series: Series) -> int:
    """Number of the trainer's options that differ from their defaults."""
    return len(not_default("trainer", series.runs[0].settings)) if series.trainer in TRAINERS else 0


def mean_validation_accuracy(series: Series) -> float:
    """Mean over seeds of the validation accuracy at the last epoch; 0 where one has none, or has diverged."""
    values = [read(run, "val_accuracy") for run in series.averaged]
    return 0.0 if not values or any(map(isnan, values)) else fmean(values)


def lacks_validation(series: Series) -> bool:
    """Whether a run that has not diverged ends without a validation accuracy, for want of such images."""
    return any(run.state != "diverged" and isnan(read(run, "val_accuracy")) for run in series.averaged)
