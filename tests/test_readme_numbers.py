"""Every result the README states is what the files in results/ say."""

import re
import statistics
from pathlib import Path

import pytest

from bench_table import BENCH, make_table
from fgbench.analysis.records import RunRecord, load_results

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "results"


def final(path: Path) -> str:
    """Mean and standard deviation over seeds of the test accuracy at the last epoch."""
    runs: list[RunRecord] = load_results(path)
    values = [run.final("test_accuracy") for run in runs]
    assert all(run.state == "finished" for run in runs)
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def series(folder: Path, **wanted: object) -> str:
    runs = [
        run
        for run in load_results(folder)
        if all(run.settings.get(key.replace("__", ".")) == value for key, value in wanted.items())
    ]
    assert len(runs) == 3
    values = [run.final("test_accuracy") for run in runs]
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def row(start: str) -> str:
    """The line of the README's first table of results that begins so."""
    (table,) = re.findall(r"\| as the study sets it .*?\n\n", README, re.DOTALL)
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {start} |")]
    return line


STUDY = {
    "backprop": {"trainer__name": "backprop"},
    "forward-gradient (the study's)": {"trainer__name": "forward-gradient", "trainer__guess": "normal"},
    "forward-gradient, rank-one": {"trainer__structure": "rank1"},
}


@pytest.mark.parametrize("name", STUDY)
def test_accuracies_of_the_study_are_those_of_the_runs(name):
    cells = [cell.strip() for cell in row(name).split("|")[1:-1]]
    assert cells[2] == series(RESULTS / "cnn", **STUDY[name])
    if name != "forward-gradient, rank-one":
        assert cells[1] == series(RESULTS / "fmnist", **STUDY[name])


def test_the_hundred_epochs_are_those_of_the_runs():
    longest = final(RESULTS / "fc" / "fc_fmnist_fg"), final(RESULTS / "fc" / "fc_fmnist_bp")
    assert "ends\nat a test accuracy of {} (one seed; backprop {}, three seeds;".format(*longest) in README


def test_accuracies_of_the_trainers_are_those_of_the_runs():
    folders = sorted(path for path in (RESULTS / "trainers").iterdir() if path.is_dir())
    assert len(folders) == 9
    stated = re.findall(r"^\| .*\| ([0-9.e-]+) \| (0\.\d{4}) \|$", README, re.MULTILINE)
    actual = {(f"{load_results(path)[0].settings['optimizer.lr']:g}", final(path)) for path in folders}
    assert set(stated) == actual


def test_the_table_of_step_times_is_the_benchmarks():
    assert make_table(sorted(BENCH.glob("**/bench.csv"))) in README
