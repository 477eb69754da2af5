"""Comparison with the control: does a trainer learn more than an output layer on an untrained body."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fgbench.analysis.compare import Comparison, compare_pair, p_value
from fgbench.analysis.pairing import (
    CONTROL,
    TUNABLE,
    Pair,
    Task,
    make_tasks,
    setting_differences,
    settings,
    strongest,
    trainer_options,
)
from fgbench.analysis.readings import MEASURES
from fgbench.analysis.records import RunRecord
from fgbench.analysis.series import Series
from fgbench.analysis.statistics import adjust_holm
from fgbench.formatting import format_number

UNCOMPARED = (CONTROL, "backprop")
"""Trainers that are not compared with the control: the control itself, and backprop."""

MEASURE = MEASURES["test_accuracy"]

ABSENT = "no frozen run with its settings here"
NO_CONTROL = "no control: its last block may have more than the output layer"

OF_THE_MACHINE = ("device type", "threads", "allocator", "deterministic")
"""Settings that change times, but accuracies by no more than rounding."""


@dataclass(frozen=True)
class AgainstControl:
    """A series, and whether it beats the control: test accuracy at equal epochs, paired by seed.

    Attributes:
        comparison: with the control; None where no control was run as the series was.
    """

    series: Series
    comparison: Comparison | None

    @property
    def beats(self) -> bool:
        """Whether it is shown to be more accurate."""
        return self.comparison is not None and self.comparison.conclusion == "better"

    @property
    def verdict(self) -> str:
        """The verdict as text: ``yes (+0.0213)``, ``no (-0.0312)``, or why there is none."""
        found = self.comparison
        if found is None:
            return NO_CONTROL if _has_own_blocks(self.series) else ABSENT
        if found.paired is None:
            return found.conclusion
        answer = {"better": "yes", "worse": "no", "about the same": "no, about the same"}
        size = format_number(found.paired.mean, f"+{MEASURE.form}")
        return f"{answer.get(found.conclusion, found.conclusion)} ({size})"

    @cached_property
    def rates(self) -> str:
        """The learning rate of the series and of its control, each its own: ``0.0001 / 0.001``."""
        if self.comparison is None:
            return "-"
        both = (self.series, self.comparison.pair.baseline)
        return " / ".join(f"{_rate(each):g}" for each in both)


def compare_with_control(tasks: Iterable[Task]) -> dict[Path, AgainstControl]:
    """For every series but the control's and backprop's: does it beat the control.

    The control of a series has the same model, data, epochs and every other setting but those of the machine
    and those that are tuned, which it has at its own best: of several rates the one with the highest
    validation accuracy at the end. Where the series' last stages are trained by backprop, so are the
    control's; where they are the last of ``blocks``, whose layers a run does not record, there is none.

    Returns:
        By the path of the series' first run. p values are adjusted (Holm) over the series of a task.
    """
    found: dict[Path, AgainstControl] = {}
    for task in tasks:
        controls = [each for each in task.series if each.trainer == CONTROL]
        others = [each for each in task.series if each.trainer not in UNCOMPARED]
        pairs = [find_control(task.title, each, controls) for each in others]
        comparisons = [compare_pair(pair, MEASURE) if pair else None for pair in pairs]
        adjusted = adjust_holm([p_value(each) if each else None for each in comparisons])
        for each, comparison, p in zip(others, comparisons, adjusted, strict=True):
            judged = replace(comparison, p_adjusted=p) if comparison else None
            found[each.runs[0].path] = AgainstControl(each, judged)
    return found


def controls_of(records: Iterable[RunRecord]) -> dict[Path, AgainstControl]:
    """``compare_with_control`` of all runs."""
    return compare_with_control(make_tasks(records))


def find_control(task: str, series: Series, candidates: Sequence[Series]) -> Pair | None:
    """A series with the control that it has to beat, among series of the task; None where there is none."""
    if _has_own_blocks(series):
        return None
    stages = _stages(series)
    able = [each for each in candidates if _stages(each) == stages and _differ_in_tuning(series, each)]
    shared = [each for each in able if len(Pair(task, series, each).runs) > 1]
    return strongest(task, series, shared or able)


def _stages(series: Series) -> Any:
    """How many last stages are trained by backprop; None: the output layer alone, in closed form."""
    return trainer_options(series).get("trainer.exact_stages")


def _has_own_blocks(series: Series) -> bool:
    """Whether backprop trains the last of blocks that are not the model's own stages."""
    guided = series.trainer == "guided-forward-gradient"
    return guided and trainer_options(series).get("trainer.blocks") is not None


def _differ_in_tuning(first: Series, second: Series) -> bool:
    different = setting_differences(settings(first), settings(second))
    return all(key.startswith(TUNABLE) or key in OF_THE_MACHINE for key in different)


def _rate(series: Series) -> float:
    optimizer: Mapping[str, Any] = series.runs[0].config.get("optimizer") or {}
    rate = optimizer.get("lr")
    return float(rate) if isinstance(rate, int | float) else float("nan")
