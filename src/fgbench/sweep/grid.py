"""Tuning on a grid: the same log-spaced values for every configuration, whole runs, several seeds."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from fgbench.analysis.readings import read
from fgbench.analysis.records import RunRecord, load_results
from fgbench.analysis.series import label_configs
from fgbench.analysis.tuning import tuning_noise
from fgbench.config.config import Config
from fgbench.config.source import show_item
from fgbench.config.sweep import Sweep, TuneOptions
from fgbench.errors import ConfigError
from fgbench.storage.files import atomic_write
from fgbench.storage.run_directory import TRIALS
from fgbench.sweep.tuned import (
    Tuned,
    describe_tuned,
    distinct_configs,
    short_name,
    with_values,
    write_tuned,
)

EXTENSION = 3
"""Values added beyond an edge at a time."""
MAX_EXTENSIONS = 4
"""How often; a best value that is still at an edge is reported as such."""
LEAST_FACTOR = 1.001
"""From a value to the next one; below it, some have the same four digits."""
CURVE = ("val_accuracy", "val_loss", "test_accuracy", "test_loss")

Runs = Callable[[Sequence[Config]], Sequence[Path]]
"""Runs the configs that have not ended, and returns their run directories in the same order."""


@dataclass(eq=False)
class _Curve:
    """One configuration at every value tried; place i of the grid is ``low * factor ** i``."""

    config: Config
    label: str
    places: set[int]
    records: dict[tuple[int, int], RunRecord] = field(default_factory=dict)
    """By place and seed."""


@dataclass(frozen=True)
class _Grid:
    key: str
    low: float
    factor: float
    options: TuneOptions

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.options.seeds)

    def value(self, place: int) -> float:
        return float(f"{self.low * self.factor**place:.4g}")

    def score(self, record: RunRecord) -> float:
        """The run's final value; NaN if it diverged."""
        return read(record, self.options.metric) if record.state == "finished" else math.nan

    def mean(self, curve: _Curve, place: int) -> float:
        """The mean over seeds; NaN if one of them diverged."""
        return fmean(self.score(curve.records[place, seed]) for seed in self.seeds)

    def best(self, curve: _Curve) -> int | None:
        """The place with the best mean, the smaller value if equal; None if every one diverged."""
        sign = 1 if self.options.metric == "val_accuracy" else -1
        means = {place: sign * self.mean(curve, place) for place in sorted(curve.places)}
        finite = {place: mean for place, mean in means.items() if math.isfinite(mean)}
        return max(finite, key=finite.__getitem__, default=None)

    def beyond(self, curve: _Curve, extension: int) -> set[int]:
        """The places to add: beyond the edge where the best is, or below all if every one diverged."""
        low, high, best = min(curve.places), max(curve.places), self.best(curve)
        new: set[int] = set()
        if best is None or best == low:
            new.update(range(low - extension, low))
        if best == high:
            new.update(range(high + 1, high + 1 + extension))
        return new


def tune_grid(sweep: Sweep, make_runs: Runs, say: Callable[[str], None] = print) -> list[Tuned]:
    """Try every configuration of a sweep at the same values, and write tuned configs and the whole curve.

    A value's score is the mean over the tuning seeds, which are not among the sweep's own, of the metric at
    the end of whole runs; a value that diverges with any seed is not chosen. If the best value is at an edge,
    the grid is extended beyond it. Trials are ordinary runs in RESULTS/tuned/trials: ended ones are not
    repeated, unfinished ones resume.

    Returns:
        One for each configuration. Its ``noise`` is the spread, over tuning seeds s, of the accuracy on the
        test images (the validation images where there are none), averaged over all tuning seeds, at the value
        that s alone would have chosen on its validation images.

    Raises:
        ConfigError: the block tune does not describe a grid, or a configuration diverged at every value.
    """
    grid = _read_grid(sweep)
    configs = distinct_configs(sweep.configs, [grid.key])
    _check(sweep, grid, configs)
    first = set(range(grid.options.points))
    labels = label_configs(configs)
    curves = [_Curve(config, label, first) for config, label in zip(configs, labels, strict=True)]
    folder = configs[0].results_dir / "tuned"
    path = folder / f"{sweep.name}_grid.csv"
    screened: list[_Curve] = []
    if grid.options.screen:
        short = {"epochs": grid.options.screen}
        screened = [replace(each, config=each.config.model_copy(update=short), records={}) for each in curves]
        _search(
            grid, screened, make_runs, EXTENSION, say, lambda: atomic_write(path, _table(grid, screened, []))
        )
        for curve, seen in zip(curves, screened, strict=True):
            best = _best(grid, seen)
            curve.places = {best - 1, best, best + 1}
    reach = 1 if screened else EXTENSION
    wanted = _search(
        grid, curves, make_runs, reach, say, lambda: atomic_write(path, _table(grid, screened, curves))
    )
    results, table = [], pd.read_csv(path)
    for curve, more in zip(curves, wanted, strict=True):
        noise = tuning_noise(table[table["run"] == curve.label], grid.options.metric)
        results.append(_conclude(grid, curve, folder, noise, at_edge=bool(more)))
        say(f"{curve.label}: {describe_tuned(results[-1])}")
    say(f"every trial: {path}")
    return results


def _search(
    grid: _Grid,
    curves: Sequence[_Curve],
    make_runs: Runs,
    extension: int,
    say: Callable[[str], None],
    write: Callable[[], None],
) -> list[set[int]]:
    """Train at the places of all curves, and beyond an edge while the best is there.

    Returns:
        The places that each would still have wanted.
    """
    wanted = [curve.places for curve in curves]
    for extensions in range(MAX_EXTENSIONS + 1):
        _make(grid, curves, wanted, make_runs)
        write()
        wanted = [grid.beyond(curve, extension) for curve in curves]
        if not any(wanted) or extensions == MAX_EXTENSIONS:
            break
        for curve, more in zip(curves, wanted, strict=True):
            if more:
                values = ", ".join(f"{grid.value(place):g}" for place in sorted(more))
                epochs = f" with {curve.config.epochs} epochs" if grid.options.screen else ""
                say(f"{curve.label}: the best {grid.key}{epochs} is at an edge; trying {values} too")
            curve.places = curve.places | more
    return wanted


def _read_grid(sweep: Sweep) -> _Grid:
    """The grid that the sweep's block tune describes."""
    options = sweep.tune or TuneOptions()
    ranges: dict[str, Any] = sweep.ranges
    [(key, span), *others] = ranges.items()
    if others or not isinstance(span, tuple):
        got = ", ".join(show_item(key, span) for key, span in ranges.items())
        raise ConfigError(
            f"tune.keys: got {got}; sampler: grid expects one key with a range and no list, such as "
            "optimizer.lr: {log: [1e-4, 1e-1]}"
        )
    low, high = span
    factor = (high / low) ** (1 / (options.points - 1))
    if factor < LEAST_FACTOR:
        raise ConfigError(
            f"tune.keys.{key}: got {options.points} values from {low} to {high}, expected each at least "
            "0.1 % above the one before: values have four digits"
        )
    return _Grid(key, low, factor, options)


def _check(sweep: Sweep, grid: _Grid, configs: Sequence[Config]) -> None:
    reported = {config.seed for config in sweep.configs} & set(grid.seeds)
    if reported:
        raise ConfigError(
            f"tune.seeds: {', '.join(map(str, sorted(reported)))} is among the seeds that are reported; "
            "expected others, or the reported runs are those that were chosen for being good"
        )
    for config in configs:
        if (grid.options.screen or 0) >= config.epochs:
            raise ConfigError(
                f"tune.screen: got {grid.options.screen}, expected fewer than epochs: {config.epochs}"
            )
        if getattr(config.dataset, "validation_fraction", None) == 0:
            raise ConfigError(
                "dataset.validation_fraction: got 0, expected above 0: tuning chooses on validation images"
            )


def _make(grid: _Grid, curves: Sequence[_Curve], wanted: Sequence[set[int]], make_runs: Runs) -> None:
    """Run all curves at the wanted places."""
    trials = {}
    for curve, places in zip(curves, wanted, strict=True):
        for place in sorted(places):
            for seed in grid.seeds:
                config = with_values(curve.config, {grid.key: grid.value(place)})
                changes = {
                    "seed": seed,
                    "name": short_name(curve.label),
                    "results_dir": config.results_dir / TRIALS,
                }
                trials[id(curve), place, seed] = config.model_copy(update=changes)
    paths = make_runs(list(trials.values()))
    read = {trial: load_results(path)[0] for trial, path in zip(trials, paths, strict=True)}
    for curve in curves:
        curve.records |= {(place, seed): run for (own, place, seed), run in read.items() if own == id(curve)}


def _best(grid: _Grid, curve: _Curve) -> int:
    """Raises: ConfigError: the curve diverged everywhere."""
    best = grid.best(curve)
    if best is None:
        raise ConfigError(
            f"{curve.label}: diverged at every {grid.key} from {grid.value(min(curve.places)):g} to "
            f"{grid.value(max(curve.places)):g}; lower the range, or look into RESULTS/{TRIALS}"
        )
    return best


def _conclude(grid: _Grid, curve: _Curve, folder: Path, noise: float, *, at_edge: bool) -> Tuned:
    best = _best(grid, curve)
    seeds = ", ".join(map(str, grid.seeds))
    metric, epochs = grid.options.metric, curve.config.epochs
    origin = f"{metric} after {epochs} epochs, grid of {len(curve.places)}, seeds {seeds}"
    if grid.options.screen:
        origin += f"; values by a first look of {grid.options.screen} epochs at {grid.options.points}"
    values = {grid.key: grid.value(best)}
    path = write_tuned(curve.config, curve.label, values, origin, folder)
    diverged = sum(run.state == "diverged" for run in curve.records.values())
    score, trials = grid.mean(curve, best), len(curve.records)
    return Tuned(curve.label, path, trials, diverged, values, score, noise=noise, at_edge=at_edge)


def _table(grid: _Grid, screened: Sequence[_Curve], curves: Sequence[_Curve]) -> str:
    """The whole curve of every configuration as CSV: a row for every trial, those of a first look before."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "task", "trainer", "key", "value", "seed", "state", "epochs", "chosen", *CURVE])
    for curve in [*screened, *curves]:
        best = grid.best(curve) if curve in curves else None
        task = f"{curve.config.model.name} on {curve.config.dataset.name}"
        for (place, seed), run in sorted(curve.records.items(), key=lambda each: each[0]):
            cells = (read(run, column) for column in CURVE)
            fixed = [curve.label, task, curve.config.trainer.name, grid.key, grid.value(place)]
            shown = ["" if math.isnan(cell) else repr(cell) for cell in cells]
            writer.writerow(list(chain(fixed, [seed, run.state, curve.config.epochs, place == best], shown)))
    return text.getvalue()
