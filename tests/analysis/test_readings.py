"""One reading of a column: whoever tells a run's number tells the same one."""

import math
import re

import pytest
from fake_records import make_record
from fake_results import make_run

from fgbench.analysis.compare import compare
from fgbench.analysis.readings import at_chance, read
from fgbench.analysis.records import load_results
from fgbench.analysis.series import group_series
from fgbench.analysis.tables import summary_table
from fgbench.report.build import build_report
from fgbench.storage.metrics import COLUMNS, counted_epochs, select
from fgbench.storage.run_directory import RunDirectory
from fgbench.storage.summary import summarise

TIMES = (9.0, 4.0, 8.0, 2.0, 8.5)
BUSY = "other processes kept 1.5 of 2 CPU cores busy"
NOTES = (None, None, BUSY, None, BUSY)


def make_disturbed(results, trainer, factor=1.0):
    """A run with a slow first epoch and two that other work disturbed; of the others the median is 3 s."""
    directory = RunDirectory(make_run(results, trainer))
    rows = directory.read_metrics()
    for row, seconds, note in zip(rows, TIMES, NOTES, strict=True):
        row |= {"epoch_time_s": seconds * factor, "timing_note": note}
    directory.write_metrics(rows)
    return rows


def test_figure_table_comparison_and_report_tell_one_time_for_one_run(tmp_path):
    rows = make_disturbed(tmp_path, "backprop")
    make_disturbed(tmp_path, "forward-gradient", 2.0)
    records = load_results(tmp_path)
    assert [read(run, "epoch_time_s") for run in records] == [3.0, 6.0]
    assert summarise(rows)["median"]["epoch_time_s"] == 3.0
    cells = [re.split("  +", line) for line in summary_table(records).splitlines()]
    [head] = [row for row in cells if row[0] == "trainer"]
    times = [row[head.index("time per epoch (s)")] for row in cells[cells.index(head) + 2 :][:2]]
    assert times == ["3.000 *", "6.000 *"]
    [comparison] = compare(records, ["epoch_time_s"])
    assert comparison.values == ((6.0, 3.0),)
    assert bar_values(records) == ["3.00 *", "6.00 *"]
    page = build_report(tmp_path, tmp_path / "report.html").read_text()
    assert "<td>3 *</td>" in page
    assert "<td>6 *</td>" in page


def bar_values(records):
    """What the study's figure writes beside its bars of time."""
    from matplotlib.figure import Figure

    from fgbench.plotting.panels import draw_time
    from fgbench.plotting.style import series_looks

    [series] = group_series(records).values()
    axes = Figure().subplots()
    draw_time(axes, series, series_looks(series))
    return [text.get_text() for text in axes.texts if text.get_text()[0].isdigit()]


@pytest.mark.parametrize(
    ("notes", "counted"),
    [
        ([None], [True]),
        ([BUSY], [True]),
        ([None, None, None], [False, True, True]),
        ([None, BUSY, None], [False, False, True]),
        ([None, BUSY, BUSY], [False, True, True]),
        ([], []),
    ],
)
def test_a_median_counts_warm_epochs_and_disturbed_ones_only_where_no_others_remain(notes, counted):
    assert counted_epochs(notes) == counted


def test_a_run_that_diverged_has_no_accuracy_but_a_cost(tmp_path):
    make_run(tmp_path, state="diverged", cells={"test_accuracy": 0.9})
    [run] = load_results(tmp_path)
    assert math.isnan(read(run, "test_accuracy"))
    assert read(run, "test_accuracy", 4) == 0.9
    assert read(run, "epoch_time_s") > 0
    assert "diverged" in summary_table([run]).splitlines()[3]


@pytest.mark.parametrize(
    ("shares", "accuracies", "guesses"),
    [
        (None, (0.9, 0.9), False),
        ({"train": 0.9, "test": 0.9}, (0.9, 0.9), True),
        ({"train": 0.9, "test": 0.5}, (0.9, 0.5), True),
        ({"train": 0.9, "test": 0.5}, (0.9, 0.6), False),
        ({"train": 0.1, "test": 0.1}, (0.5, 0.5), True),
    ],
)
def test_chance_is_the_share_of_the_largest_class_where_it_is_recorded(shares, accuracies, guesses):
    data = {"classes": 2} | ({"largest_class": shares} if shares else {})
    train, test = accuracies
    run = make_record(env={"data": data}, train_accuracy=train, test_accuracy=test)
    assert at_chance(run, run.last_epoch) == guesses


def test_every_column_can_be_read_and_says_in_words_what_it_is(tmp_path):
    make_run(tmp_path)
    [run] = load_results(tmp_path)
    for name, column in COLUMNS.items():
        assert column.name == name
        assert column.title.startswith(column.label)
        assert len(column.words) == 3
        if name not in select("text"):
            assert isinstance(read(run, name), float)
