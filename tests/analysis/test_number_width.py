"""No number takes more than ten characters, however large it has become, in no table, page or figure."""

import re
from dataclasses import replace

import pytest
from fake_records import make_record
from fake_results import make_run

from fgbench.analysis.claims.claims import claims_report
from fgbench.analysis.compare_tables import compare_report
from fgbench.analysis.records import Results, read_results
from fgbench.analysis.status import status_report
from fgbench.analysis.tables import summary_table
from fgbench.bench.report import BenchRow, draw, table
from fgbench.plotting.figures import plot_results
from fgbench.report.build import render
from fgbench.sweep.tuned import Tuned, describe_tuned, tuning_table

HUGE = {"train_loss": 3.6e31, "epoch_time_s": 4.5e11, "peak_memory_mib": 5.4e12}
COLUMNS = ["train_loss", "test_accuracy", "epoch_time_s", "peak_memory_mib"]


@pytest.fixture
def records():
    usual = [
        make_record(seed=seed, train_loss=0.5, test_accuracy=0.9, peak_memory_mib=60) for seed in range(3)
    ]
    huge = [
        make_record(
            "forward-gradient",
            seed,
            **{key: value * (1 + seed / 9) for key, value in HUGE.items()},
            test_accuracy=0.1,
        )
        for seed in range(3)
    ]
    return usual + huge


def long_numbers(text):
    return re.findall(r"\d[\d.,]{10,}", text)


def test_numbers_that_are_too_long_are_found():
    assert long_numbers("loss 3600000000000000000000000000000.0000 and 1,234,567,890") == [
        "3600000000000000000000000000000.0000",
        "1,234,567,890",
    ]
    assert long_numbers("0.2500 [-1234.567, 3.6e+31], s0-12345678") == []


@pytest.mark.parametrize("form", ["text", "markdown", "latex"])
def test_comparisons_and_claims_write_short_numbers(records, form):
    text = compare_report(records, COLUMNS, form=form)
    assert "e+31" in text
    assert long_numbers(text) == []
    assert long_numbers(claims_report(Results(records), form)) == []


def test_the_page_and_the_closing_table_write_short_numbers(records, monkeypatch):
    text = render(Results(records), "")
    shown = re.sub(r"<(script|style|svg|pre)\b.*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL)
    assert "e+31" in shown
    assert long_numbers(shown) == []
    assert long_numbers(summary_table(records)) == []


def test_figures_write_short_numbers(tmp_path):
    make_run(tmp_path, seed=0)
    make_run(tmp_path, "forward-gradient", cells=HUGE)
    paths = plot_results(tmp_path)
    for path in paths:
        if path.suffix == ".svg":
            assert long_numbers(" ".join(re.findall(r"<!-- (.*?) -->", path.read_text()))) == []
    assert long_numbers(status_report(read_results(tmp_path), tmp_path)) == []


def test_what_tuning_prints_is_short(tmp_path):
    tuned = Tuned("a", tmp_path / "a.yaml", 6, 1, {"optimizer.lr": 1.234e-05}, 3.6e31, noise=2.5e20)
    for text in (tuning_table([tuned]), describe_tuned(tuned).replace(str(tmp_path), "")):
        assert "3.6e+31" in text
        assert long_numbers(text) == []


def test_benchmarks_write_short_numbers():
    plain = BenchRow(
        "fc", 64, "backprop", times_s=(1e-3,) * 3, forward_s=(1e-3,) * 3, backprop_s=(1e-3,) * 3,
        peak_memory_mib=9, memory_to_backprop=1,
    )  # fmt: skip
    slow = replace(plain, case="mine", times_s=(4e9,) * 3, peak_memory_mib=3e12, memory_to_backprop=3e11)
    assert long_numbers(table([plain, slow])) == []
    texts = [text.get_text() for axes in draw([plain, slow]).axes for text in axes.texts]
    assert any("e+" in text for text in texts)
    assert long_numbers(" ".join(texts)) == []
