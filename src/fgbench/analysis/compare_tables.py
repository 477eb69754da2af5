"""Comparisons as tables."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from fgbench.analysis.budgets import common_epoch
from fgbench.analysis.compare import Comparison, compare, p_value
from fgbench.analysis.compare_cells import (
    budget_text,
    cost_ratio_text,
    difference_text,
    effect_size_text,
    mean_texts,
    p_text,
    step_cost_text,
    time_to_accuracy_text,
    time_to_text,
)
from fgbench.analysis.control import ABSENT, CONTROL, AgainstControl, controls_of
from fgbench.analysis.formats import Format
from fgbench.analysis.pairing import Pair
from fgbench.analysis.readings import MEASURES, disturbed_epochs
from fgbench.analysis.records import RunRecord
from fgbench.analysis.rendering import Table, render
from fgbench.analysis.statistics import BOOTSTRAP_FROM
from fgbench.analysis.time_to import time_to_accuracy, time_to_same_loss

ONE_SEED = (
    "One seed says nothing about the next. At 80 % power a paired t-test finds a difference of 3.3 standard "
    "deviations over seeds with 3 of them, of 1.7 with 5, of 1.0 with 10."
)
FLAT_HEAD = (
    *(
        "task",
        "metric",
        "budget",
        "limit",
        "trainer",
        "uses_backwards",
        "baseline",
        "baseline_uses_backwards",
    ),
    *("seeds", "n", "mean", "baseline_mean"),
    *("difference", "t_low", "t_high", "bootstrap_low", "bootstrap_high", "p", "p_holm", "d_z"),
    *("d_z_corrected", "wins", "losses", "seeds_needed", "conclusion", "other_settings", "environments"),
    *("forward_passes_per_step", "drawing_ms_per_step", "beats_frozen"),
)


def compare_report(
    records: Iterable[RunRecord],
    columns: Sequence[str],
    baseline: str = "backprop",
    form: Format | str = Format.text,
    accuracy: float | None = None,
    notes: Sequence[str] = (),
    width: int | None = None,
) -> str:
    """What ``fgbench compare`` prints.

    Args:
        records: the runs.
        columns: of metrics.csv, those to compare.
        baseline: a trainer, or the label of one series.
        form: how to write it; CSV is one row for every comparison, in full precision.
        accuracy: report the time to this validation accuracy.
        notes: lines to stand at the end, such as those about runs that are left out.
        width: of the terminal; see ``render``.

    Raises:
        ConfigError: as ``compare``.
    """
    records = list(records)
    comparisons = compare(records, columns, baseline)
    controls = controls_of(records)
    if Format(form).is_data:
        return render([Table("", FLAT_HEAD, [_flat_row(each, controls) for each in comparisons])], form)
    tables, missing = [], []
    for _, same_task in groupby(comparisons, key=lambda each: each.pair.task):
        group = list(same_task)
        for measure, same_measure in groupby(group, key=lambda each: each.measure):
            same_columns = list(same_measure)
            tables.append(measure_table([each for each in same_columns if each.budget == "epochs"]))
            if measure.learns:
                tables.append(budget_table(same_columns))
        pairs = list(dict.fromkeys(each.pair for each in group))
        tables += control_tables(pairs, controls)
        missing += control_notes(pairs, controls)
        tables.append(cost_table(pairs, accuracy))
    lines = [*summary_lines(comparisons), *missing, *notes]
    if Format(form) is Format.latex:
        lines = [f"% {line}" for line in lines]
    between = "\n\n" if Format(form) in (Format.markdown, Format.md) else "\n"
    return "\n\n".join([*filter(None, [render(tables, form, width)]), between.join(lines)])


def measure_table(comparisons: Sequence[Comparison]) -> Table:
    """One measure of one task at equal epochs, a row for each series."""
    head = [
        "trainer",
        "uses backwards",
        "conclusion",
        "difference [95 %]",
        "mean",
        "baseline",
        "seeds",
        "wins",
        "d_z",
        "p (Holm)",
    ]
    rows = [
        [
            *(each.pair.series.label, each.pair.series.uses_backwards, each.conclusion),
            *(difference_text(each), *mean_texts(each)),
            *(
                str(len(each.values)),
                f"{each.wins[0]}/{len(each.values)}",
                effect_size_text(each),
                p_text(each),
            ),
        ]
        for each in comparisons
    ]
    first = comparisons[0]
    return Table(f"{first.pair.task}: {first.measure.title}, at equal epochs", head, rows)


def budget_table(comparisons: Sequence[Comparison]) -> Table:
    """One measure of one task at equal epochs, training time, memory and forward passes, side by side."""
    rows = [
        [pair.series.label, pair.series.uses_backwards, *map(budget_text, budgets)]
        for pair, budgets in groupby(comparisons, key=lambda each: each.pair)
    ]
    first = comparisons[0]
    title = f"{first.pair.task}: {first.measure.title}, difference to {first.pair.baseline.trainer} (95 %)"
    budgets = ["equal epochs", "equal training time", "equal memory", "equal forward passes"]
    notes = ["Forward passes are those of all training images, by operations counted; drawing is time alone."]
    return Table(title, ["trainer", "uses backwards", *budgets], rows, notes)


def control_tables(pairs: Sequence[Pair], controls: Mapping[Path, AgainstControl]) -> list[Table]:
    """Whether each series of one task beats the frozen control; none where there is no control at all."""
    compared = _with_control(pairs, controls)
    if all(each.comparison is None for each in compared):
        return []
    title = f"{pairs[0].task}: does it beat {CONTROL} ({MEASURES['test_accuracy'].title}, at equal epochs)"
    head = [
        "trainer",
        "uses backwards",
        f"beats {CONTROL}",
        "difference [95 %]",
        "mean",
        CONTROL,
        "rates",
        "seeds",
    ]
    rows = []
    for each in compared:
        found = each.comparison
        numbers = [difference_text(found), *mean_texts(found)] if found else ["-"] * 3
        seeds = str(len(found.values)) if found else "-"
        row = [each.series.label, each.series.uses_backwards, each.verdict, *numbers, each.rates, seeds]
        rows.append(row)
    notes = [
        f"{CONTROL}: the body stays as drawn, the output layer learns; of the learning rates it was run with "
        f"here, the best by validation accuracy, with the same epochs and seeds. Rates: the trainer's / "
        f"{CONTROL}'s."
    ]
    return [Table(title, head, rows, notes)]


def control_notes(pairs: Sequence[Pair], controls: Mapping[Path, AgainstControl]) -> list[str]:
    """A line where series of one task have no control; none where all have."""
    compared = _with_control(pairs, controls)
    without = [each.series.label for each in compared if each.comparison is None]
    if not without:
        return []
    of = "" if len(without) == len(compared) else f" for {'; '.join(without)}"
    made = f"`fgbench run CONFIG -o trainer={CONTROL}` makes one"
    return [f"{pairs[0].task}: {ABSENT}{of}, so whether the body has learnt anything is open; {made}."]


def _with_control(pairs: Sequence[Pair], controls: Mapping[Path, AgainstControl]) -> list[AgainstControl]:
    return [controls[path] for pair in pairs if (path := pair.series.runs[0].path) in controls]


def cost_table(pairs: Sequence[Pair], accuracy: float | None = None) -> Table:
    """Time and memory of the series of one task as multiples of their baseline's; descriptive, not tested."""
    head = [
        "trainer",
        "uses backwards",
        "time/epoch",
        "peak memory",
        "forward passes/step",
        "drawing, ms/step",
        "time to same val. loss (T_f/T_b)",
        "time to val. accuracy",
    ]
    rows = [
        [
            pair.series.label,
            pair.series.uses_backwards,
            cost_ratio_text(pair, MEASURES["epoch_time_s"]),
            cost_ratio_text(pair, MEASURES["peak_memory_mib"]),
            step_cost_text(pair, "forward_passes_per_step", ".3g"),
            step_cost_text(pair, "drawing_ms_per_step", ".2f"),
            time_to_text(time_to_same_loss(pair)),
            time_to_accuracy_text(time_to_accuracy(pair, accuracy)),
        ]
        for pair in pairs
    ]
    notes = [
        "Geometric means over seeds; times are of training alone, read at the ends of epochs; no claim where "
        "other work disturbed them or machines differ.",
        "Forward passes: a step's operations over those of one forward pass of its batch (in brackets the "
        "baseline's); drawing random numbers is time and none of them.",
    ]
    notes += [conditions(pair) for pair in pairs]
    return Table(f"{pairs[0].task}: cost, × {pairs[0].baseline.trainer}", head, rows, notes)


def summary_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """How many comparisons there were, and what that means for the intervals."""
    tested = [each for each in comparisons if p_value(each) is not None]
    families = len({(each.pair.task, each.measure) for each in tested})
    lines = []
    if tested:
        many = f", in {families} families: one for each metric of a task" if families > 1 else ""
        number = "the number in its family" if families > 1 else "that"
        lines.append(
            f"{len(tested)} tests were made{many}. "
            f"p values are adjusted for {number} (Holm), the intervals are not."
            + (
                f" From {BOOTSTRAP_FROM} seeds on, the CSV form has BCa bootstrap intervals."
                if any(each.paired and each.paired.bootstrap for each in comparisons)
                else ""
            )
        )
    if any(len(each.pair.runs) == 1 for each in comparisons):
        lines.append(ONE_SEED)
    if not comparisons:
        lines = ["Nothing to compare: no task has both the baseline and another series."]
    return lines


def conditions(pair: Pair) -> str:
    """What a series was compared with, and what else differed."""
    planned = max((run.config.get("epochs", 0) for both in pair.runs for run in both), default=0)
    epoch = common_epoch(pair)
    notes = [f"{pair.series.label} against {pair.baseline.label}"]
    notes.append(f"epoch {epoch}" + (f" of {planned}" if planned > epoch else ""))
    if stopped := [run.last_epoch for both in pair.runs for run in both if run.stopped_early]:
        notes.append(f"{len(stopped)} stopped early, in epoch {' '.join(map(str, sorted(set(stopped))))}")
    notes.append(f"seeds {', '.join(map(str, pair.seeds)) or 'none'}")
    if other := pair.other_settings:
        notes.append(f"also different: {', '.join(other)}")
    if environments := pair.environments:
        notes.append(f"ENVIRONMENTS DIFFER: {', '.join(environments)}")
    if disturbed := sum(disturbed_epochs(run, epoch) for both in pair.runs for run in both):
        notes.append(f"{disturbed} epochs timed while other work kept the machine busy")
    return "; ".join(notes)


def _flat_row(comparison: Comparison, controls: Mapping[Path, AgainstControl]) -> list[Any]:
    pair, paired = comparison.pair, comparison.paired
    means = [fmean(side) for side in zip(*comparison.values, strict=True)] or [math.nan, math.nan]
    interval = (paired and paired.interval) or (None, None)
    bootstrap = (paired and paired.bootstrap) or (None, None)
    cells = [
        *(pair.task, comparison.measure.name, comparison.budget, comparison.limit),
        *(pair.series.label, pair.series.uses_backwards, pair.baseline.label, pair.baseline.uses_backwards),
        *(" ".join(map(str, pair.seeds)), len(pair.runs), *means),
        *(paired and paired.mean, *interval, *bootstrap, paired and paired.p_value, comparison.p_adjusted),
        *(paired and paired.effect_size, paired and paired.corrected_effect_size, *comparison.wins),
        *(paired and paired.seeds_needed, comparison.conclusion, "; ".join(pair.other_settings)),
        "; ".join(pair.environments),
        *(pair.series.runs[0].forward_passes_per_step, pair.series.runs[0].drawing_ms_per_step),
        control.verdict if (control := controls.get(pair.series.runs[0].path)) else None,
    ]
    return [None if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in cells]
