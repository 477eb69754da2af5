"""The data of a figure, run by run."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from fgbench.analysis.readings import passes_over_data, read
from fgbench.analysis.records import RunRecord
from fgbench.analysis.series import Series
from fgbench.plotting.charts import training_time

Data = Callable[[Sequence[Series]], pd.DataFrame]
"""Makes the numbers of series into one table, a row per run or per run and epoch."""

TIME = "training_time_s"
"""Seconds of training alone, evaluation left out, by the end of an epoch."""

PASSES = "forward_passes"
"""Forward passes of all training images that training took."""


def by_epoch(*columns: str) -> Data:
    """Columns of metrics.csv, or ``TIME``, a row for every epoch of every run."""

    def make(series: Sequence[Series]) -> pd.DataFrame:
        tables = []
        for each in series:
            for run in each.runs:
                table = run.metrics.assign(**{TIME: run.metrics["epoch_time_s"].cumsum()})[
                    ["epoch", *columns]
                ]
                table.insert(0, "label", each.label)
                table.insert(1, "seed", run.seed)
                tables.append(table)
        return pd.concat(tables, ignore_index=True)

    return make


def by_run(*columns: str) -> Data:
    """Readings of metrics.csv, ``TIME``, ``PASSES``, settings by dotted key; a row for every averaged run."""

    def cell(run: RunRecord, column: str) -> Any:
        if column == TIME:
            return training_time(run)
        if column == PASSES:
            return passes_over_data(run, run.last_epoch)
        return run.settings.get(column) if "." in column else read(run, column)

    def make(series: Sequence[Series]) -> pd.DataFrame:
        rows = [
            [each.label, run.seed, *(cell(run, column) for column in columns)]
            for each in series
            for run in each.averaged
        ]
        return pd.DataFrame(rows, columns=["label", "seed", *columns])

    return make


def by_layer(*columns: str) -> Data:
    """Columns of layers.csv, a row for every layer of every run at every epoch that looked."""

    def make(series: Sequence[Series]) -> pd.DataFrame:
        tables = [
            run.layers[["epoch", "layer", *columns]].assign(label=each.label, seed=run.seed)
            for each in series
            for run in each.averaged
        ]
        return pd.concat(tables, ignore_index=True)[["label", "seed", "epoch", "layer", *columns]]

    return make
