"""Results as pandas DataFrames, for analyses of your own."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from fgbench.analysis.readings import MEASURES, quiet_epochs, read
from fgbench.analysis.records import RunRecord, load_results
from fgbench.analysis.series import group_series


def read_runs(path: str | Path) -> pd.DataFrame:
    """Every epoch of every run at or below a folder.

    Args:
        path: a results folder, or any folder in it.

    Returns:
        A row per run and epoch. First the run: ``run`` (its directory), ``label`` (of its series), ``seed``,
        ``state``, ``uses_backwards``; then its settings by dotted key, such as ``optimizer.lr``;
        then the columns of metrics.csv, units in their names, accuracies as fractions in 0..1. Missing
        numbers are NaN.

    Raises:
        ConfigError: no such folder, or no run in it.

    Example:
        >>> runs = fgbench.read_runs("results")                                             # doctest: +SKIP
        >>> runs.groupby(["label", "epoch"])["test_accuracy"].mean()                        # doctest: +SKIP
    """
    records = load_results(path)
    labels = _labels(records)
    columns = list(dict.fromkeys(key for run in records for key in _identity(run, labels)))
    rows = [_identity(run, labels) | epoch for run in records for epoch in run.metrics.to_dict("records")]
    metrics = list(records[0].metrics.columns)
    return pd.DataFrame(rows, columns=[*columns, *metrics])


def read_summaries(path: str | Path) -> pd.DataFrame:
    """A summary of every run at or below a folder, read as `fgbench compare` reads it.

    Args:
        path: a results folder, or any folder in it.

    Returns:
        A row per run: the run and its settings, as in ``read_runs``; ``tags``, a tuple of words;
        ``epochs`` done; and every
        column that can be compared: for losses and accuracies the value at the last epoch (NaN for a run that
        diverged), for times the median over undisturbed epochs after the first, for memory the peak;
        ``quiet_epochs``, how many epochs such a median is of: 0 where other work disturbed all, and the
        times, then of disturbed epochs, are not to be compared.

    Raises:
        ConfigError: no such folder, or no run in it.
    """
    records = load_results(path)
    labels = _labels(records)
    rows = [
        _identity(run, labels)
        | {"tags": run.tags, "epochs": run.last_epoch}
        | {name: read(run, measure, run.last_epoch) for name, measure in MEASURES.items()}
        | {"quiet_epochs": quiet_epochs(run, run.last_epoch)}
        for run in records
    ]
    columns = list(dict.fromkeys(key for run in records for key in _identity(run, labels)))
    return pd.DataFrame(rows, columns=[*columns, "tags", "epochs", *MEASURES, "quiet_epochs"])


def _labels(records: Iterable[RunRecord]) -> dict[Path, str]:
    return {
        run.path: each.label
        for series in group_series(records).values()
        for each in series
        for run in each.runs
    }


def _identity(run: RunRecord, labels: dict[Path, str]) -> dict[str, Any]:
    """What identifies a run; a second copy of a run has no label."""
    identity = {
        "run": str(run.path),
        "label": labels.get(run.path, run.component("trainer")),
        "seed": run.seed,
        "state": run.state,
        "uses_backwards": run.uses_backwards,
    }
    settings = {key: value for key, value in run.settings.items() if key != "epochs"}
    return identity | {"planned_epochs": run.config.get("epochs")} | settings
