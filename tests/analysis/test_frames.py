"""``fgbench.read_runs`` and ``read_summaries``, and the forms of ``fgbench compare`` that programs read."""

import csv
import io
import json

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


@pytest.mark.parametrize("form", ["csv", "json"])
def test_compare_says_what_the_summaries_say(results, form):
    summaries = fgbench.read_summaries(results)
    for column in ("test_accuracy", "epoch_time_s", "peak_memory_mib"):
        report = compare_report(load_results(results), [column], form=form)
        rows = json.loads(report) if form == "json" else list(csv.DictReader(io.StringIO(report)))
        [row] = [row for row in rows if row["budget"] == "epochs" and row["trainer"].startswith("forward")]
        means = summaries.groupby("trainer.name")[column].mean()
        assert float(row["mean"]) == pytest.approx(means["forward-gradient"])
        assert float(row["baseline_mean"]) == pytest.approx(means["backprop"])


def test_markdown_has_a_short_name(results):
    records = load_results(results)
    assert compare_report(records, ["test_accuracy"], form="md") == compare_report(
        records, ["test_accuracy"], form="markdown"
    )
