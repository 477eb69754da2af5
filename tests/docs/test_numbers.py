"""Every result that README and docs state is what the files in results/ say."""

import itertools
import json
import re
import statistics
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from pages import PAGES, README, ROOT, plain

from bench_table import BENCH, make_table
from fgbench.analysis.claims.claims import audit
from fgbench.analysis.claims.verdicts import Verdict
from fgbench.analysis.readings import MEASURES, read
from fgbench.analysis.records import RunRecord, load_results, read_results
from fgbench.analysis.time_to import geometric_mean
from fgbench.checks import formula, verify
from fgbench.models.fc import build_fc
from fgbench.models.options import FCOptions

PAGE = PAGES["docs/results.md"]
COSTS = PAGES["docs/costs.md"]
RESULTS = ROOT / "results"


def accuracy(runs: list[RunRecord]) -> str:
    """Mean and standard deviation over seeds of the test accuracy at the last epoch."""
    assert all(run.state == "finished" for run in runs)
    values = [read(run, "test_accuracy") for run in runs]
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def select(folder: Path, wanted: dict[str, object]) -> list[RunRecord]:
    """The three runs of a series."""
    runs = load_results(folder)
    found = [run for run in runs if all(run.settings.get(key) == value for key, value in wanted.items())]
    assert len(found) == 3
    return found


def row(page: str, start: str) -> str:
    """The line of a page's first table of results that begins so."""
    (table,) = re.findall(r"\| (?:as the study sets it|Fashion-MNIST, Adam).*?\n\n", page, re.DOTALL)
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {start} |")]
    return line


STUDY = {
    "backprop": {"trainer.name": "backprop"},
    "forward-gradient (the study's)": {"trainer.name": "forward-gradient", "trainer.guess": "normal"},
    "forward-gradient, rank-one": {"trainer.structure": "rank1"},
}


@pytest.mark.parametrize("page", [README, PAGE], ids=["README", "results"])
@pytest.mark.parametrize("name", STUDY)
def test_accuracies_of_the_study_are_those_of_the_runs(name, page):
    cells = [cell.strip() for cell in row(page, name).split("|")[1:-1]]
    assert cells[2] == accuracy(select(RESULTS / "cnn", STUDY[name]))
    if name != "forward-gradient, rank-one":
        assert cells[1] == accuracy(select(RESULTS / "fc", STUDY[name]))


def test_the_training_loss_rises_as_stated():
    runs = select(RESULTS / "fc", STUDY["forward-gradient (the study's)"])
    mean = sum(run.metrics.set_index("epoch")["train_loss"] for run in runs) / len(runs)
    lowest = f"falls to {mean.min():.2f} in epoch {mean.idxmin()}"
    assert f"training loss {lowest} and rises to {mean[100]:.2f} in epoch 100" in plain(PAGE)


TRAINERS = {
    "backprop": "backprop",
    "forward-gradient_guess_normal_structure_full": "forward-gradient (the study's)",
    "forward-gradient_guess_rademacher_structure_rank1": "forward-gradient, rank-one",
    "forward-gradient_exact_output_guess_rademacher_structure_rank1": (
        "forward-gradient, rank-one, `exact_output: true`"
    ),
    "guided-forward-gradient": "guided-forward-gradient (uses local backward passes)",
    "zeroth-order": "zeroth-order",
}


def test_the_table_of_tuned_trainers_is_that_of_the_runs():
    folders = [path for path in (RESULTS / "trainers").iterdir() if path.is_dir() and path.name != "tuned"]
    assert {path.name.removeprefix("fc_fashion-mnist_") for path in folders} == set(TRAINERS)
    lines = []
    for path in folders:
        runs = load_results(path)
        assert [run.seed for run in runs] == [0, 1, 2]
        assert {run.last_epoch for run in runs} == {20}
        name = TRAINERS[path.name.removeprefix("fc_fashion-mnist_")]
        memory = statistics.mean(read(run, MEASURES["peak_memory_mib"], 20) for run in runs)
        line = f"| {name} | {runs[0].settings['optimizer.lr']:.2g} | {accuracy(runs)} | {memory:.1f} |"
        lines.append((statistics.mean(read(run, "test_accuracy") for run in runs), line))
    assert "\n".join(line for _, line in sorted(lines, reverse=True)) in PAGE


def test_the_sentences_about_the_cnns_control_are_what_the_runs_and_the_grid_say():
    folder = RESULTS / "cnn_trainers"
    reached = {
        path.name.removeprefix("cnn_fashion-mnist_"): accuracy(load_results(path)).split()[0]
        for path in folder.iterdir()
        if path.is_dir() and path.name != "tuned"
    }
    text = plain(PAGE)
    assert f"a trained output layer reach {reached['frozen']}" in text
    assert float(reached["feedback-forward-gradient"]) < float(reached["frozen"])
    assert (
        f"enough for {reached['feedback-alignment_feedback_sign']} of backprop's {reached['backprop']}"
        in text
    )
    assert f"losses of each block's own for {reached['local-loss']}" in text
    assert "random convolutions reaches {frozen} on".format(**reached) in plain(README)
    signs = f"signs of the transposed weights ({reached['feedback-alignment_feedback_sign']})"
    losses = f"local losses ({reached['local-loss']}) come close to backprop's {reached['backprop']}"
    assert f"{signs} and {losses}" in plain(README)
    trials = pd.read_csv(folder / "tuned" / "cnn_trainers_grid.csv").set_index("trainer")
    control = trials[trials["run"].str.endswith(", frozen")]
    rate = trials.loc["backprop"].query("chosen")["value"].iloc[0]
    at_backprops, own = (
        rows["val_accuracy"].mean() for rows in (control[control["value"] == rate], control.query("chosen"))
    )
    assert f"it had {at_backprops:.4f} there, at its own {own:.4f}" in text


DEEP = {
    "backprop": {"trainer.name": "backprop", "trainer.recompute": False},
    "backprop, `recompute: true`": {"trainer.recompute": True},
    "forward-gradient (the study's)": STUDY["forward-gradient (the study's)"],
    "forward-gradient, rank-one": STUDY["forward-gradient, rank-one"],
}


@pytest.mark.parametrize("name", DEEP)
def test_the_table_of_deep_networks_is_that_of_the_runs(name):
    cells = []
    for model in ("vgg16", "resnet18"):
        runs = select(RESULTS / "deep", DEEP[name] | {"model.name": model})
        memory = statistics.mean(read(run, MEASURES["peak_memory_mib"], run.last_epoch) for run in runs)
        cells += [accuracy(runs), f"{memory:.0f}"]
    assert f"| {name} | {' | '.join(cells)} |" in PAGE


def test_the_verdicts_counted_are_those_of_the_audit():
    results = read_results(RESULTS)
    counts = Counter(audited.finding.verdict for audited in audit(results.runs, results.steps))
    text = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    for page in (README, PAGE):
        assert text in plain(page)
        assert f"{sum(counts.values())} published claims" in plain(page)


def test_the_table_of_step_times_is_the_benchmarks():
    assert make_table(sorted(BENCH.glob("**/bench.csv"))) in COSTS


def test_the_other_numbers_about_steps_are_the_benchmarks():
    rows = pd.concat(pd.read_csv(path) for path in BENCH.glob("**/bench.csv"))
    forwards = rows[rows["case"] == "backprop"]["time_to_forward"]
    text = plain(COSTS)
    assert f"backprop takes {forwards.min():.1f} to {forwards.max():.1f} forward passes" in text
    depths = pd.read_csv(RESULTS / "baydin" / "depth.csv")
    assert f"the drawing of {depths['parameters'].min():,} normal numbers" in text


def test_the_benchmark_was_quiet():
    paths = list(BENCH.glob("**/bench.json"))
    assert paths
    for path in paths:
        report = json.loads(path.read_text())
        assert report["noise"] is None, path
        assert report["environment"]["git_dirty"] is False, path


def test_the_epochs_beside_the_usual_loop_are_those_measured():
    table = pd.read_csv(BENCH / "epoch.csv")
    assert table["timing_note"].isna().all()
    for optimizer, rows in table.groupby("optimizer"):
        own, usual = (rows[f"{loop}_train_s"] + rows[f"{loop}_test_s"] for loop in ("fgbench", "dataloader"))
        cells = [f"{own.min():.2f}", f"{own.median():.2f}", f"{usual.min():.2f}", f"{usual.median():.2f}"]
        cells += [f"{usual.min() / own.min():.1f}", f"{usual.median() / own.median():.1f}"]
        assert f"| {optimizer} | {' | '.join(cells)} |" in COSTS


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
    text = plain(PAGE)
    assert (
        "rank-one takes {} of backprop's time and {} of its memory on the FC, {} and {} on the CNN".format(
            *rank_one
        )
        in text
    )
    assert "the study's forward gradient {} and {}, {} and {}.".format(*study) in text


def test_the_bounds_of_what_is_proven_are_those_that_are_checked():
    text = plain(PAGES["docs/trainers.md"])
    assert f"within {verify.TOLERANCE:.0%} of".replace("%", " %") in text
    assert f"(bfloat16: {verify.TOLERANCE_BF16:.0%})".replace("%", " %") in text
    assert f"requires {formula.EXACT:.0e}".replace("e-0", "e-") in text


def test_the_size_of_the_fc_network_is_the_models():
    model = build_fc(FCOptions(), (1, 28, 28), 10)
    count = sum(param.numel() for param in model.parameters())
    assert f"P is {count:,}" in plain(PAGES["docs/trainers.md"])


def test_what_is_said_of_a_step_is_what_was_measured():
    rows = pd.concat(pd.read_csv(path) for path in BENCH.glob("**/bench.csv")).set_index(["case", "model"])
    models = ("fc", "cnn", "vgg16", "resnet18")
    time, memory = (
        [f"{rows.loc[('forward-gradient, rank-one, compiled', model), column]:.2f}" for model in models]
        for column in ("time_to_best_backprop", "memory_to_best_backprop")
    )
    said = "takes {} (FC), {} (CNN), {} (VGG-16) and {} (ResNet-18) of the time of backprop at its fastest, "
    said = said.format(*time) + "{}, {}, {} and {} of its memory at its leanest".format(*memory)
    for page in (README, PAGE):
        assert said in plain(page)
