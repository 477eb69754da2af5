"""``fgbench.read_runs`` and ``read_summaries``, and the forms of ``fgbench compare`` that programs read."""

import csv
import io
import json
import math
import re

import pytest
from fake_results import make_run

import fgbench
from fgbench.analysis.compare_tables import compare_report
from fgbench.analysis.records import load_results


@pytest.fixture
def results(tmp_path):
    for seed in range(3):
        make_run(tmp_path, seed=seed)
        make_run(tmp_path, "forward-gradient", seed=seed, options={"tangents": 4})
    make_run(tmp_path, "zeroth-order", state="diverged", planned=5)
    return tmp_path


def test_runs_have_a_row_for_every_epoch_with_settings_and_units(results):
    runs = fgbench.read_runs(results)
    assert len(runs) == 7 * 5
    one = runs[(runs["label"] == "forward-gradient, tangents=4") & (runs["seed"] == 1)]
    assert list(one["epoch"]) == [1, 2, 3, 4, 5]
    assert set(one["trainer.tangents"]) == {4}
    assert set(one["optimizer.lr"]) == {0.001}
    assert one["epoch_time_s"].dtype == float
    assert set(runs[runs["trainer.name"] == "zeroth-order"]["state"]) == {"diverged"}


def test_summaries_have_a_row_for_every_run_and_none_of_what_diverged(results):
    summaries = fgbench.read_summaries(results)
    assert len(summaries) == 7
    assert set(summaries[summaries["trainer.name"] == "backprop"]["uses_backwards"]) == {"everything"}
    lost = summaries[summaries["state"] == "diverged"]
    assert lost["test_accuracy"].isna().all()
    assert lost["peak_memory_mib"].notna().all()


@pytest.mark.parametrize(("note", "quiet"), [(None, 4), ("other processes kept 1.0 of 2 CPU cores busy", 0)])
def test_summaries_tell_of_how_many_quiet_epochs_their_times_are(tmp_path, note, quiet):
    make_run(tmp_path, cells={"timing_note": note} if note else {})
    assert list(fgbench.read_summaries(tmp_path)["quiet_epochs"]) == [quiet]


MEASURED = {"test_accuracy": 4, "train_loss": 4, "epoch_time_s": 3, "peak_memory_mib": 1}
"""Columns to compare, and the decimals that tables for people have of them."""


def compared(results, column, form):
    """Of every series its mean and its baseline's at equal epochs, as ``fgbench compare`` writes them."""
    report = compare_report(load_results(results), [column], form=form)
    if form in ("csv", "json"):
        rows = json.loads(report) if form == "json" else csv.DictReader(io.StringIO(report))
        return {
            row["trainer"]: (row["mean"], row["baseline_mean"]) for row in rows if row["budget"] == "epochs"
        }
    split = {"md": r"\s*\|\s*", "latex": r"\s*(?:&|\\\\)\s*", "text": r"\s\s+"}[form]
    lines = [re.split(split, line.strip().strip("|").strip()) for line in report.splitlines()]
    start, head = next((place, cells) for place, cells in enumerate(lines) if "baseline" in cells)
    rows = [dict(zip(head, cells, strict=False)) for cells in lines[start + 1 : start + 6]]
    return {row["trainer"]: (row["mean"], row["baseline"]) for row in rows if len(row) >= 9}


@pytest.mark.parametrize("form", ["csv", "json", "md", "latex", "text"])
@pytest.mark.parametrize("column", MEASURED)
def test_every_form_of_compare_says_what_the_summaries_say(results, form, column):
    summaries = fgbench.read_summaries(results)
    means = summaries.groupby("label")[column].agg(lambda values: values.mean(skipna=False))
    found = compared(results, column, form)
    assert set(found) >= {"forward-gradient, tangents=4", "zeroth-order"}
    for label in ("forward-gradient, tangents=4", "zeroth-order"):
        seeds = summaries[summaries["label"] == label]["seed"]
        paired = summaries[(summaries["label"] == "backprop") & summaries["seed"].isin(seeds)]
        for told, expected in zip(found[label], (means[label], paired[column].mean()), strict=True):
            if math.isnan(expected):
                assert told in ("", None, "-")
            elif form in ("csv", "json"):
                assert float(told) == pytest.approx(expected, rel=1e-12)
            else:
                assert told == f"{expected:.{MEASURED[column]}f}"


def test_runs_of_different_length_are_compared_at_an_epoch_that_all_have(tmp_path):
    for seed in range(2):
        make_run(tmp_path, seed=seed, epochs=5, planned=5)
        make_run(tmp_path, "forward-gradient", seed=seed, epochs=3, planned=5, state="interrupted")
    rows = list(
        csv.DictReader(io.StringIO(compare_report(load_results(tmp_path), ["train_loss"], form="csv")))
    )
    [row] = [row for row in rows if row["budget"] == "epochs"]
    runs = fgbench.read_runs(tmp_path)
    means = runs[runs["epoch"] == float(row["limit"])].groupby("label")["train_loss"].mean()
    assert float(row["limit"]) == 3
    assert float(row["mean"]) == pytest.approx(means["forward-gradient"])
    assert float(row["baseline_mean"]) == pytest.approx(means["backprop"])


def test_a_difference_without_spread_is_json_that_any_program_reads(results):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    report = compare_report(load_results(results), ["peak_memory_mib"], form="json")
    row = json.loads(report, parse_constant=refuse)[0]
    assert row["difference"] == row["t_low"] == row["t_high"]
    assert row["d_z"] is None  # infinite


def test_markdown_has_a_short_name(results):
    records = load_results(results)
    assert compare_report(records, ["test_accuracy"], form="md") == compare_report(
        records, ["test_accuracy"], form="markdown"
    )
