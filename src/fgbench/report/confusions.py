"""Confusion matrices of the trained networks of a series."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import pandas as pd

from fgbench.analysis.series import Series

MOST_CLASSES = 20
"""A matrix with more classes is not shown; it is in confusion.csv of every run."""


@dataclass(frozen=True)
class ConfusionMatrix:
    """The confusions of a series, summed over its runs.

    Attributes:
        label: of the series.
        trainer: of the series.
        seeds: of the runs summed over; those that have no counts are not among them.
        answers: the names of the columns.
        rows: of every true class the name, its number of images (of all runs) and the share of them taken
            for each answer, in 0..1; None for a class without images.
    """

    label: str
    trainer: str
    seeds: list[int]
    answers: list[str]
    rows: list[tuple[str, int, list[float | None]]]


def find_confusions(series: Sequence[Series]) -> list[ConfusionMatrix]:
    """The matrix of every series whose runs have kept one of the same few classes."""
    return [
        found
        for each in series
        if (found := _sum_up(each)) is not None and len(found.answers) <= MOST_CLASSES
    ]


def _sum_up(series: Series) -> ConfusionMatrix | None:
    counted = [run for run in series.averaged if run.confusions is not None]
    tables = [run.confusions for run in counted if run.confusions is not None]
    if not tables or any(not _alike(table, tables[0]) for table in tables):
        return None
    total = reduce(lambda one, other: one + other, tables)
    rows = []
    for name, counts in zip(map(str, total.index), total.to_numpy(), strict=True):
        images = int(counts.sum())
        rows.append((name, images, [int(count) / images if images else None for count in counts]))
    return ConfusionMatrix(
        series.label, series.trainer, [run.seed for run in counted], list(map(str, total.columns)), rows
    )


def _alike(table: pd.DataFrame, other: pd.DataFrame) -> bool:
    return table.columns.equals(other.columns) and table.index.equals(other.index)
