"""Every result the README states is what the files in results/ say."""

import csv
import itertools
import json
import re
import statistics
from pathlib import Path

import pytest

from bench_table import BENCH, make_table
from fgbench.analysis.measures import MEASURES, read
from fgbench.analysis.records import RunRecord, load_results
from fgbench.analysis.speed import geometric_mean

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "results"


def accuracy(runs: list[RunRecord]) -> str:
    """Mean and standard deviation over seeds of the test accuracy at the last epoch."""
    assert all(run.state == "finished" for run in runs)
    values = [run.final("test_accuracy") for run in runs]
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def select(folder: Path, wanted: dict[str, object]) -> list[RunRecord]:
    """The three runs of a series."""
    runs = load_results(folder)
    found = [run for run in runs if all(run.settings.get(key) == value for key, value in wanted.items())]
    assert len(found) == 3
    return found


def row(start: str) -> str:
    """The line of the README's first table of results that begins so."""
    (table,) = re.findall(r"\| as the study sets it .*?\n\n", README, re.DOTALL)
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {start} |")]
    return line


STUDY = {
    "backprop": {"trainer.name": "backprop"},
    "forward-gradient (the study's)": {"trainer.name": "forward-gradient", "trainer.guess": "normal"},
    "forward-gradient, rank-one": {"trainer.structure": "rank1"},
}


@pytest.mark.parametrize("name", STUDY)
def test_accuracies_of_the_study_are_those_of_the_runs(name):
    cells = [cell.strip() for cell in row(name).split("|")[1:-1]]
    assert cells[2] == accuracy(select(RESULTS / "cnn", STUDY[name]))
    if name != "forward-gradient, rank-one":
        assert cells[1] == accuracy(select(RESULTS / "fmnist", STUDY[name]))


def test_the_hundred_epochs_are_those_of_the_runs():
    longest = (accuracy(load_results(RESULTS / "fc" / name)) for name in ("fc_fmnist_fg", "fc_fmnist_bp"))
    assert "ends\nat a test accuracy of {} (one seed; backprop {}, three seeds;".format(*longest) in README


TRAINERS = {
    "fc_activity": "activity-forward-gradient",
    "fc_activity_exact": "activity-forward-gradient, `exact_output: true`",
    "fc_backprop": "backprop",
    "fc_feedback": "feedback-forward-gradient",
    "fc_forward_gradient": "forward-gradient, normal",
    "fc_forward_gradient_exact": "forward-gradient, rank-one, `exact_output: true`",
    "fc_forward_gradient_rank1": "forward-gradient, rank-one",
    "fc_guided": "guided-forward-gradient (local guess, global target; uses local backward passes)",
    "fc_zeroth_order": "zeroth-order",
}


def test_accuracies_of_the_trainers_are_those_of_the_runs():
    folders = [path for path in (RESULTS / "trainers").iterdir() if path.is_dir()]
    assert {path.name for path in folders} == set(TRAINERS)
    for path in folders:
        runs = load_results(path)
        assert (
            f"| {TRAINERS[path.name]} | {runs[0].settings['optimizer.lr']:g} | {accuracy(runs)} |" in README
        )


def test_the_table_of_step_times_is_the_benchmarks():
    assert make_table(sorted(BENCH.glob("**/bench.csv"))) in README


def test_the_benchmark_was_quiet():
    for path in BENCH.glob("**/bench.json"):
        assert json.loads(path.read_text())["noise"] is None, path


def test_the_epochs_beside_the_usual_loop_are_those_measured():
    rows = list(csv.DictReader((BENCH / "epoch.csv").open()))
    own, usual = ([float(row[column]) for row in rows] for column in ("fgbench_s", "dataloader_s"))
    stated = f"took {min(own):.1f} to {max(own):.1f} s against {min(usual):.1f} to {max(usual):.1f} s"
    assert stated in " ".join(README.split())


def test_the_costs_with_adam_are_those_of_the_timed_runs():
    costs = {}
    for model, (name, wanted) in itertools.product(("fc", "cnn"), STUDY.items()):
        runs = select(RESULTS / "timing", wanted | {"model.name": model})
        assert all(run.metrics["timing_note"].isna().all() for run in runs)
        costs[model, name] = [
            [read(run, MEASURES[measure], run.last_epoch) for run in sorted(runs, key=lambda run: run.seed)]
            for measure in ("epoch_time_s", "peak_memory_mib")
        ]

    def ratio(model: str, name: str, measure: int) -> str:
        pairs = zip(costs[model, name][measure], costs[model, "backprop"][measure], strict=True)
        return f"{geometric_mean([mine / other for mine, other in pairs]):.2f}"

    rank_one, study = (
        [ratio(model, name, measure) for model in ("fc", "cnn") for measure in (0, 1)]
        for name in ("forward-gradient, rank-one", "forward-gradient (the study's)")
    )
    text = " ".join(README.split())
    assert (
        "rank-one takes {} of backprop's time and {} of its memory on the FC, {} and {} on the CNN".format(
            *rank_one
        )
        in text
    )
    assert "the study's forward gradient {} and {}, {} and {}.)".format(*study) in text
