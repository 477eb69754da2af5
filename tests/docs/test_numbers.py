"""Every result that README and docs state is what the files in results/ say."""

import itertools
import json
import math
import re
import statistics
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from pages import PAGES, README, ROOT, plain

from bench_table import BENCH, make_table
from fgbench.analysis.cautions import TUNING_NOISE
from fgbench.analysis.claims.claims import audit
from fgbench.analysis.claims.verdicts import Verdict
from fgbench.analysis.readings import MEASURES, read
from fgbench.analysis.records import RunRecord, load_results, read_results
from fgbench.analysis.statistics import Paired, summarise_differences
from fgbench.analysis.tuning import tuning_noise
from fgbench.checks import formula, verify
from fgbench.models.fc import build_fc
from fgbench.models.options import FCOptions
from results_tables import accuracies, interval_text

PAGE = PAGES["docs/results.md"]
COSTS = PAGES["docs/costs.md"]
RESULTS = ROOT / "results"


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


def study_runs(model: str, name: str) -> list[RunRecord]:
    """The three runs as the study sets them."""
    return select(RESULTS / model, STUDY[name])


@pytest.mark.parametrize("name", STUDY)
def test_accuracies_of_the_study_are_those_of_the_runs(name):
    cells = [cell.strip() for cell in row(PAGE, name).split("|")[1:-1]]
    assert cells[1:] == [interval_text(accuracies(study_runs(model, name))) for model in ("fc", "cnn")]


def test_what_the_readme_says_of_the_study_is_what_the_runs_reached():
    reached = [
        interval_text(accuracies(study_runs(model, name))).split()[0]
        for model in ("fc", "cnn")
        for name in ("forward-gradient (the study's)", "backprop")
    ]
    said = "it reaches {} on the FC (backprop {}, 100 epochs) and {} on the CNN (backprop {}, 5 epochs);"
    assert said.format(*reached) in plain(README)


@pytest.mark.parametrize("name", STUDY)
def test_accuracies_on_other_images_are_those_of_the_runs(name):
    cells = []
    for folder, dataset in (
        ("fc_mnist_cifar10", "mnist"),
        ("fc_mnist_cifar10", "cifar10"),
        ("cnn_mnist", "mnist"),
        ("cnn_cifar10", "cifar10"),
    ):
        runs = select(RESULTS / folder, STUDY[name] | {"dataset.name": dataset})
        cells.append(interval_text(accuracies(runs)))
    assert f"| {name} | {' | '.join(cells)} |" in PAGE


def test_the_training_loss_rises_as_stated():
    runs = select(RESULTS / "fc", STUDY["forward-gradient (the study's)"])
    mean = sum(run.metrics.set_index("epoch")["train_loss"] for run in runs) / len(runs)
    lowest = f"falls to {mean.min():.2f} in epoch {mean.idxmin()}"
    accuracy = sum(run.metrics.set_index("epoch")["test_accuracy"] for run in runs) / len(runs)
    reached = f"its test accuracy goes from {accuracy[mean.idxmin()]:.3f} to {accuracy[100]:.3f}"
    assert f"training loss {lowest} and rises to {mean[100]:.2f} in epoch 100, while {reached}" in plain(PAGE)


def mean_accuracies(folder: str) -> dict[str, float]:
    """The mean test accuracy of every trainer of a folder, by the name of its configuration."""
    paths = [path for path in (RESULTS / folder).iterdir() if list(path.glob("s*/metrics.csv"))]
    return {
        path.name.partition("fashion-mnist_")[2]: statistics.mean(accuracies(load_results(path)))
        for path in paths
    }


def test_the_sentences_about_fully_connected_networks_are_what_the_runs_and_the_grid_say():
    means = {folder: mean_accuracies(folder) for folder in ("trainers", "mlp")}
    fc, mlp = ({name: f"{mean:.4f}" for name, mean in each.items()} for each in means.values())
    exact = "forward-gradient_exact_output_guess_rademacher_structure_rank1"
    feedback = "feedback-forward-gradient"
    text = plain(PAGE)
    study = fc["forward-gradient_guess_normal_structure_full"]
    assert (
        f"reach {fc['frozen']} on the FC. A forward gradient at a tuned rate with a "
        f"cosine schedule is below them, at {study}," in text
    )
    assert f"is not shown to beat them: {fc[exact]}." in text
    assert f"0.00056 for 0.001, and reaches {study} with it" in text
    said = f"at a tuned rate {study} on the FC (20 epochs), below the {fc['frozen']} of frozen."
    assert said in plain(README)
    said = f"reaches {fc[feedback]} on the FC (backprop {fc['backprop']}) and {mlp[feedback]} on three hidden"
    (control,) = mean_accuracies("mlp/control").values()
    assert f"{said} layers (backprop {mlp['backprop']}, frozen {control:.4f})" in text
    assert f"beats the control by {means['trainers'][feedback] - means['trainers']['frozen']:.4f}" in text
    assert f"at the FC's rates, `results/mlp`) the control falls to {control:.4f}" in text
    assert f"at the FC's rate it has {mlp['frozen']})" in text
    assert f"is {means['mlp'][feedback] - control:.4f} ahead of it and " in text
    assert f"and {means['mlp']['backprop'] - means['mlp'][feedback]:.4f} behind backprop" in text
    said = "reaches {} on the FC (backprop {}, frozen {}), "
    steps = pd.read_csv(BENCH / "bench.csv").set_index(["model", "case"])
    step = steps.loc["fc", feedback]
    said = said.format(fc[feedback], fc["backprop"], fc["frozen"])
    costs = f"at {step['time_to_best_backprop']:.1f} times the time of backprop's step at its fastest and "
    on_cnn = steps.loc["cnn", feedback]
    cnn = f"{on_cnn['time_to_best_backprop']:.1f} and {on_cnn['memory_to_best_backprop']:.1f}"
    costs += f"{step['memory_to_best_backprop']:.1f} times its memory at its leanest "
    costs += f"without recomputation (SGD; CNN: {cnn})"
    assert f"{said}{costs}" in plain(README)
    trials = pd.read_csv(RESULTS / "trainers" / "tuned" / "trainers_grid.csv")
    control = trials[trials["trainer"] == "frozen"]
    short, whole = (
        rows.groupby("value")["val_accuracy"].mean().idxmax()
        for _, rows in control.groupby("epochs", sort=True)
    )
    assert f"would have chosen {short:.2g} for `frozen`" in text
    assert f"where 20 epochs choose {whole:.2g}" in text


def differences(mine: str, other: str) -> Paired:
    """What a trainer on the CNN gains over another one, by seed.

    Args:
        mine: the folder's name within those of the CNN.
        other: likewise.
    """
    first, second = (
        {run.seed: read(run, "test_accuracy") for run in load_results(RESULTS / "cnn_trainers" / folder)}
        for folder in (mine, other)
    )
    return summarise_differences([first[seed] - second[seed] for seed in first.keys() & second.keys()])


def gain(mine: str, other: str, conclusion: str) -> float:
    """The mean of ``differences``, whose 95 % interval has to say ``not shown``, ``better`` or ``worse``."""
    found = differences(mine, other)
    low, high = found.interval
    assert conclusion == ("better" if low > 0 else "worse" if high < 0 else "not shown")
    return found.mean


def test_the_sentences_about_the_cnns_control_are_what_the_runs_and_the_grid_say():
    folder = RESULTS / "cnn_trainers"
    reached = {name: f"{mean:.4f}" for name, mean in mean_accuracies(folder.name).items()}
    (exact,) = (f"{mean:.4f}" for mean in mean_accuracies("cnn_trainers/exact_lr_whole").values())
    (control,) = (f"{mean:.4f}" for mean in mean_accuracies("cnn_trainers/control").values())
    text = plain(PAGE)
    assert (
        f"reach {reached['frozen']} at the best rate of short runs and {control} at that of whole ones"
        in text
    )
    lag = -gain("cnn_fashion-mnist_feedback-forward-gradient", "control", "worse")
    assert f"`feedback-forward-gradient` is {lag:.4f} behind the control" in text
    same_rate = gain("exact_lr", "cnn_fashion-mnist_frozen", "better")
    assert f"it beats the control at that rate by {same_rate:.4f} on the same five seeds" in text
    ahead = gain("exact_lr", "control", "better")
    assert 0 < ahead < TUNING_NOISE
    assert f"ahead of the control at its best rate by {ahead:.4f}, which tuning may decide" in text
    whole = differences("exact_lr_whole", "control")
    interval = "[{:+.4f}, {:+.4f}]".format(*whole.interval)
    assert whole.n == 5
    assert whole.interval[0] > 0
    assert f"it beats the control by {whole.mean:.4f} {interval} on five seeds" in text
    stages = gain("exact_lr_whole", "cnn_fashion-mnist_frozen_exact_stages_2", "not shown")
    assert f"(`exact_stages: 2`, at a rate of short runs) by {stages:.4f} only, on three seeds" in text
    behind = -gain("exact_lr_whole", "cnn_fashion-mnist_backprop", "worse")
    said = f"it beats an untrained body by {whole.mean:.4f} only: {exact} to {control}, {behind:.4f}"
    assert f"{said} behind backprop" in text
    said = f"it reaches {exact} on the CNN (frozen {control}, backprop {reached['backprop']});"
    assert said in plain(README)
    signs = reached["feedback-alignment_feedback_sign"]
    assert f"enough for {signs} of backprop's {reached['backprop']}" in text
    assert f"losses of each block's own for {reached['local-loss']}" in text
    trials = pd.read_csv(folder / "tuned" / "cnn_trainers_grid.csv").set_index("trainer")
    control = trials[trials["run"].str.endswith(", frozen")]
    rate = trials.loc["backprop"].query("chosen")["value"].iloc[0]
    at_backprops, own = (
        rows["val_accuracy"].mean() for rows in (control[control["value"] == rate], control.query("chosen"))
    )
    assert (
        f"in the short runs it had a validation accuracy of {at_backprops:.4f} there, at its own {own:.4f}"
        in text
    )


def test_the_sentences_about_guesses_on_the_cnn_are_what_the_runs_and_the_trials_say():
    folder, name = RESULTS / "cnn_fournier", "cnn_fashion-mnist_"
    control, random = (
        interval_text(accuracies(load_results(folder / f"{name}{each}")))
        for each in ("frozen", "guided-forward-gradient_guess_normal")
    )
    assert f"control goes on to {control} at a rate of 10" in plain(PAGE)
    assert f"random guesses reach {random} at 0.32" in plain(PAGE)
    local = load_results(folder / f"{name}guided-forward-gradient_guess_local")
    assert sorted(run.state for run in local) == ["diverged", "diverged", "finished"]
    (third,) = (read(run, "test_accuracy") for run in local if run.state == "finished")
    assert f"on two of three seeds at 0.032 ({third:.4f} on the third)" in plain(PAGE)
    trials = pd.read_csv(folder / "tuned" / "cnn_fournier_grid.csv")
    low = trials[trials["value"] <= 0.01].groupby(["value", "run"])["val_accuracy"].mean().unstack("run")
    assert (low.max(axis=1) - low.min(axis=1)).max() < 0.005
    high = trials[trials["value"] >= 0.1].set_index(["value", "seed"])
    control, random, local = (
        high[high["run"].str.endswith(each)] for each in ("frozen", "guess=normal", "guess=local")
    )
    (diverged, trained) = (local.loc[0.1, seed] for seed in (100, 101))
    assert diverged["state"] == "diverged"
    reached = control.loc[(0.1, 101), "val_accuracy"]
    said = f"At 0.1 local guesses reach {trained['val_accuracy']:.4f} on one seed, the control {reached:.4f},"
    assert said in plain(PAGE)
    means = (each.groupby("value")["val_accuracy"].mean() for each in (random, control))
    below = next(means) - next(means)  # where both were tried
    assert (below.dropna() < 0).all()


def test_the_sentences_about_the_cnn_on_all_images_are_what_the_runs_say():
    names = ("cnn_fashion-mnist_feedback-forward-gradient", "cnn_fashion-mnist_backprop", "control")
    feedback, backprop, control = (load_results(RESULTS / "cnn_best" / name) for name in names)
    reached = [f"{statistics.mean(accuracies(runs)):.4f}" for runs in (feedback, control, backprop)]
    lead, lag = (
        summarise_differences([a - b for a, b in zip(accuracies(feedback), accuracies(other), strict=True)])
        for other in (control, backprop)
    )
    assert 0 < lead.interval[0] < lead.mean < TUNING_NOISE
    assert lag.interval[1] < 0
    said = "to {}, {:.4f} behind backprop and {:.4f} [{:+.4f}, {:+.4f}] above the control"
    assert said.format(reached[0], -lag.mean, lead.mean, *lead.interval) in plain(PAGE)
    assert "on all images {} to {}, which tuning may decide (backprop {})".format(*reached) in plain(PAGE)
    said = "on all images, with one rate, {} (frozen {}, backprop {}), a lead that tuning may decide"
    assert said.format(*reached) in plain(README)
    (stopped,) = load_results(RESULTS / "cnn_best_rate")
    assert stopped.last_epoch == 2
    assert (
        f"seed 0 had a validation loss of {read(stopped, 'val_loss', 1):.0f} after its first epoch"
        in plain(PAGE)
    )


def test_the_sentences_about_the_best_trainer_on_cifar10_are_what_the_runs_say():
    names = ("cnn_fashion-mnist_feedback-forward-gradient", "cnn_fashion-mnist_backprop", "control")
    feedback, backprop, control = (
        accuracies(load_results(RESULTS / "cnn_best_cifar10" / name)) for name in names
    )
    reached = [f"{statistics.mean(values):.4f}" for values in (feedback, control, backprop)]
    lead, lag = (
        summarise_differences([a - b for a, b in zip(feedback, other, strict=True)])
        for other in (control, backprop)
    )
    assert lead.interval[0] > TUNING_NOISE
    assert lag.interval[1] < 0
    said = "beats the control at its best rate by {:.4f} [{:+.4f}, {:+.4f}]".format(lead.mean, *lead.interval)
    assert said in plain(PAGE)
    assert f"It is {-lag.mean:.4f} behind backprop" in plain(PAGE)
    assert "{} to {}, and far behind backprop, {} (3 epochs)".format(*reached) in plain(PAGE)
    said = "on CIFAR-10 {} (frozen {}, backprop {}; 3 epochs, one rate)".format(*reached)
    assert said in plain(README)


def test_what_learning_the_matrices_adds_is_what_the_runs_say():
    folder = RESULTS / "trainers_more"
    learnt = accuracies(load_results(RESULTS / "trainers" / "fc_fashion-mnist_feedback-forward-gradient"))
    direct, random = (
        accuracies(load_results(folder / f"fc_fashion-mnist_feedback-alignment_feedback_{name}"))
        for name in ("direct", "random")
    )
    over_direct, over_random = (
        summarise_differences([a - b for a, b in zip(learnt, other, strict=True)])
        for other in (direct, random)
    )
    assert over_direct.interval[0] < 0 < over_random.interval[0]
    numbers = [(each.mean, *each.interval) for each in (over_direct, over_random)]
    first, second = ("by {:.4f} [{:+.4f}, {:+.4f}]".format(*each) for each in numbers)
    said = f"ahead of the first {first}, which three seeds do not show, and of the second {second}"
    assert said in plain(PAGE)
    assert f"Fixed random matrices reach {statistics.mean(direct):.4f} on the FC" in plain(PAGE)


def test_the_sentences_about_perturbed_activities_and_guesses_are_what_the_runs_and_the_trials_say():
    folder = RESULTS / "trainers_rest"
    reached = accuracies(load_results(folder / "fc_fashion-mnist_activity-forward-gradient_exact_output"))
    control = accuracies(load_results(RESULTS / "trainers" / "fc_fashion-mnist_frozen"))
    lag = summarise_differences([b - a for a, b in zip(reached, control, strict=True)])
    assert lag.interval[0] > 0
    said = f"{lag.mean:.4f} [{lag.interval[0]:+.4f}, {lag.interval[1]:+.4f}] behind the control"
    assert said in plain(PAGE)
    said = f"reaches {statistics.mean(reached):.4f} with the exact gradient of the output layer"
    assert f"which perturbs the activities, {said}" in plain(PAGE)
    rank_one = "fc_fashion-mnist_forward-gradient_exact_output_guess_rademacher_structure_rank1"
    others = accuracies(load_results(RESULTS / "trainers" / rank_one))
    gap = summarise_differences([a - b for a, b in zip(reached, others, strict=True)])
    assert gap.interval[0] < 0 < gap.interval[1]
    said = f"directions with that gradient ({gap.mean:+.4f} [{gap.interval[0]:+.4f}, {gap.interval[1]:+.4f}])"
    assert said in plain(PAGE)

    def whole(name: str, run: str) -> pd.Series:
        trials = pd.read_csv(RESULTS / name)
        trials = trials[
            trials["run"].str.startswith(f"fc on fashion-mnist, {run}") & (trials["epochs"] == 20)
        ]
        return trials.groupby("value")["val_accuracy"].mean()

    guided = whole("trainers_rest/guided/tuned/guided_grid.csv", "guided")
    assert guided.idxmax() == guided.index.min() == 0.001334
    others = (
        whole("trainers/tuned/trainers_grid.csv", name)[0.001334] for name in ("backprop", "local-loss")
    )
    backprop, local = (f"{value:.4f}" for value in others)
    said = f"its validation accuracy is {guided.max():.4f}, where backprop's is {backprop} and `local-loss`,"
    assert said in plain(PAGE)
    assert f"has {local}, on the same two seeds" in plain(PAGE)


def test_what_learning_the_matrices_adds_on_three_hidden_layers_is_what_the_runs_say():
    folder, name = RESULTS / "mlp_feedback", "fc_fashion-mnist_feedback-"
    learnt = accuracies(load_results(folder / f"{name}forward-gradient"))
    best, same, leads = {}, [], []
    for kind in ("direct", "random"):
        best[kind] = accuracies(load_results(folder / f"{name}alignment_feedback_{kind}"))
        others = (
            best[kind],
            accuracies(load_results(folder / "fc_rate" / f"{name}alignment_feedback_{kind}")),
        )
        for found, other in zip((leads, same), others, strict=True):
            lead = summarise_differences([a - b for a, b in zip(learnt, other, strict=True)])
            found.append("{:.4f} [{:+.4f}, {:+.4f}]".format(lead.mean, *lead.interval))
    reached = {kind: f"{statistics.mean(values):.4f}" for kind, values in best.items()}
    said = f"they reach {statistics.mean(learnt):.4f}, fixed ones {reached['direct']} (`direct`) and"
    assert f"{said} {reached['random']}" in plain(PAGE)
    assert f"a lead of {leads[0]} and {leads[1]} on seeds 0-2" in plain(PAGE)
    assert f"At one rate, the FC's, it is {same[0]} and {same[1]}" in plain(PAGE)
    assert f"and {reached['direct']} on three hidden layers, less than learnt ones at every" in plain(PAGE)
    trials = pd.read_csv(folder / "tuned" / "mlp_feedback_grid.csv")
    means = trials.groupby(["run", "value"])["val_accuracy"].mean().unstack("run").filter(like="feedback")
    ahead = means.pop("fc on fashion-mnist, feedback-forward-gradient") - means.max(axis=1)
    assert f"validation accuracy, by {ahead.min():.4f} or more" in plain(PAGE)


def test_two_forms_of_one_estimator_differ_as_the_trials_say():
    def validation(name, run):
        trials = pd.read_csv(RESULTS / name / "tuned" / f"{name}_grid.csv")
        whole = trials[trials["run"].str.contains(run, regex=False) & (trials["epochs"] == 20)]
        return whole.groupby("value")["val_accuracy"].mean()

    gaps = validation("trainers_more", "zeroth-order") - validation("trainers", "guess=normal")
    low, middle, high = (f"{gaps[rate]:+.4f}" for rate in (0.0005623, 0.001334, 0.003162))
    assert f"by {low} at 0.00056, {middle} at 0.0013 and {high} at 0.0032" in plain(PAGE)


def test_the_runs_whose_first_step_was_not_compared_with_backprop_are_named():
    unseen: dict[str, set[str]] = {}
    for run in (run for run in load_results(RESULTS) if run.state == "finished"):
        verdict = (run.summary.get("verification") or {}).get("verdict")
        if verdict != "verified" and not (verdict and run.component("trainer") == "backprop"):
            unseen.setdefault(run.path.relative_to(RESULTS).parts[0], set()).add(run.component("trainer"))
    exact = {"frozen", "local-loss", "feedback-alignment"}
    some = sorted(name for name, trainers in unseen.items() if trainers <= exact)
    assert sorted(set(unseen) - set(some)) == ["deep", "fmnist", "timing"]
    named = ", ".join(f"`{name}`" for name in some[:-1]) + f" and `{some[-1]}`"
    said = f"and of `frozen`, `local-loss` and `feedback-alignment` those in {named}, are older than that"
    assert f"(those in `fmnist`, `deep` and `timing`, {said}" in PAGE.replace("\n", " ")


DEEP = {
    "backprop": {"trainer.name": "backprop", "trainer.recompute": False},
    "backprop, `recompute: true`": {"trainer.recompute": True},
    "forward-gradient (the study's)": STUDY["forward-gradient (the study's)"],
    "forward-gradient, rank-one": STUDY["forward-gradient, rank-one"],
    "frozen, the control": {"trainer.name": "frozen"},
}


@pytest.mark.parametrize("name", DEEP)
def test_the_table_of_deep_networks_is_that_of_the_runs(name):
    cells, folder = [], RESULTS / ("deep_control" if name.startswith("frozen") else "deep")
    for model in ("vgg16", "resnet18"):
        runs = select(folder, DEEP[name] | {"model.name": model})
        memory = statistics.mean(read(run, MEASURES["peak_memory_mib"], run.last_epoch) for run in runs)
        cells += [interval_text(accuracies(runs)), f"{memory:.0f}"]
    assert f"| {name} | {' | '.join(cells)} |" in PAGE


def test_the_table_of_deep_networks_with_group_normalization_is_that_of_the_runs():
    folder = RESULTS / "deep_group"
    kept = {"backprop": "", "feedback-forward-gradient": "feedback", "frozen": "control"}
    cells: dict[str, list[str]] = {name: [] for name in (*kept, "lead")}
    low, ahead = [], []
    for model in ("vgg16", "resnet18"):
        found = {
            name: accuracies(load_results(folder / part / f"{model}_fashion-mnist_{name}"))
            for name, part in kept.items()
        }
        over_control = {
            name: summarise_differences([a - b for a, b in zip(values, found["frozen"], strict=True)])
            for name, values in found.items()
        }
        assert over_control["feedback-forward-gradient"].interval[0] < 0  # what the text says: none is shown
        ahead.append(over_control["backprop"])
        assert ahead[-1].interval[0] < 0  # "do not show even that"
        for name, values in found.items():
            cells[name].append(interval_text(values))
        lead = [a - b for a, b in zip(found["feedback-forward-gradient"], found["frozen"], strict=True)]
        cells["lead"].append(interval_text(lead, "+.4f"))
        trials = pd.read_csv(folder / "feedback" / "tuned" / "deep_group_feedback_grid.csv")
        high = trials[trials["run"].str.startswith(model) & (trials["value"] > 0.0003)]
        low.append(high.groupby("value")["val_accuracy"].mean().max())
    said = [f"{each.mean:.4f} [{each.interval[0]:+.4f}, {each.interval[1]:+.4f}]" for each in ahead]
    assert f"Backprop is {said[0]} ahead of the control on VGG-16 and {said[1]} on ResNet-18" in plain(PAGE)
    trials = pd.read_csv(folder / "tuned" / "deep_group_grid.csv")
    means = trials[trials["trainer"] == "backprop"].groupby(["task", "value"])["val_accuracy"].mean()
    high = [means[f"{model} on fashion-mnist"][0.001] for model in ("vgg16", "resnet18")]
    assert "the study's, its validation accuracy is {:.2f} and {:.2f}".format(*high) in plain(PAGE)
    trials = pd.read_csv(folder / "control" / "tuned" / "deep_group_control_grid.csv")
    noise = tuning_noise(trials[trials["run"].str.startswith("resnet18")])
    assert f"is {noise:.2f} apart in test accuracy" in plain(PAGE)
    rows = (
        "backprop",
        "feedback-forward-gradient",
        "frozen, the control",
        "lead of feedback over the control",
    )
    for name, values in zip(rows, cells.values(), strict=True):
        assert f"| {name} | {' | '.join(values)} |" in PAGE
    told = {
        PAGE: "no lead over an untrained body is shown (2,000 images, 75 steps; nor is backprop's)",
        README: "it is not shown to beat frozen (2,000 images, 75 steps; nor is backprop)",
    }
    for page, words in told.items():
        assert f"on VGG-16 and ResNet-18 with group normalisation {words}".lower() in plain(page).lower()
    assert "falls to {:.2f} on VGG-16 and to {:.2f} on ResNet-18".format(*low) in plain(PAGE)


def test_the_sentences_about_vgg16_on_cifar10_are_what_the_runs_say():
    folder = RESULTS / "deep_group" / "cifar10"
    backprop, feedback, control = (
        accuracies(load_results(folder / f"vgg16_fashion-mnist_{name}"))
        for name in ("backprop", "feedback-forward-gradient", "frozen")
    )
    best = accuracies(load_results(folder / "control" / "vgg16_cifar10_frozen"))
    reached = [interval_text(each) for each in (backprop, feedback, control, best)]
    first, second, third, fourth = reached
    assert f"backprop reaches {first}, feedback {second} and the control {third}; at" in plain(PAGE)
    assert f"in whole runs, the control has {fourth}" in plain(PAGE)
    leads = [[a - b for a, b in zip(each, best, strict=True)] for each in (feedback, backprop)]
    assert all(summarise_differences(lead).interval[0] < 0 for lead in leads)
    of_feedback, of_backprop = (interval_text(lead, "+.4f") for lead in leads)
    assert f"of feedback is {of_feedback} and of backprop {of_backprop}: neither is shown" in plain(PAGE)


MIXER = {
    "backprop": {"trainer.name": "backprop"},
    "local-forward-gradient": {"trainer.name": "local-forward-gradient"},
    "local-forward-gradient, losses: global": {"trainer.losses": "global"},
    "activity-forward-gradient, exact output layer": {"trainer.exact_output": True},
    "activity-forward-gradient": {"trainer.name": "activity-forward-gradient", "trainer.exact_output": False},
    "frozen, the control": {"trainer.name": "frozen"},
}


@pytest.mark.parametrize("name", MIXER)
def test_the_table_of_ren_and_others_networks_is_that_of_the_runs(name):
    cells = []
    for channels in (256, 512):
        folder = RESULTS / ("local_mixer_global" if name.endswith("global") else "local_mixer")
        runs = select(folder, MIXER[name] | {"model.channels": channels})
        cells.append(interval_text([100 * (1 - accuracy) for accuracy in accuracies(runs)], ".2f"))
    assert f"| {name} | {cells[0]} | {cells[1]} |" in PAGE


def test_the_sentences_about_that_network_are_what_the_runs_say():
    names = ("local-forward-gradient", "backprop", "frozen, the control")
    error = {}
    for channels in (256, 512):
        found = [
            accuracies(select(RESULTS / "local_mixer", MIXER[name] | {"model.channels": channels}))
            for name in names
        ]
        error[channels] = [100 * (1 - statistics.mean(each)) for each in found]
    local, backprop, frozen = error[512]
    trials = pd.read_csv(RESULTS / "local_mixer_control" / "tuned" / "local_mixer_control_grid.csv")
    means = trials.groupby(["run", "value"])["val_accuracy"].mean()
    small, large = ((rates.max(), rates.xs(0.1, level="value").item()) for _, rates in means.groupby("run"))
    said = "validation accuracy is {:.4f}, for {:.4f} at this one, and {:.4f} for {:.4f} on S/1/1"
    assert said.format(*large, *small) in plain(PAGE)
    runs = select(RESULTS / "local_mixer_global", {"model.channels": 512})
    alone = 100 * (1 - statistics.mean(accuracies(runs)))
    assert f"FG-A) the same perturbation leaves {alone:.2f} % there" in plain(PAGE)
    ahead = f"{frozen - local:.2f} below the error of the control"
    assert f"within {local - backprop:.2f} points of backprop and {ahead}" in plain(PAGE)
    assert f"leave {local:.2f} % of MNIST wrong (backprop {backprop:.2f}, frozen {frozen:.2f};" in plain(PAGE)
    said = f"leaves {local:.2f} % of MNIST wrong, backprop {backprop:.2f}, frozen {frozen:.2f} ("
    assert f"{said}20 of their 200 epochs, their rate for all)" in plain(README)


def test_the_sentences_about_200_epochs_of_that_network_are_what_the_runs_say():
    runs = {
        (run.component("trainer"), run.settings["model.channels"]): 100 * (1 - read(run, "test_accuracy"))
        for run in load_results(RESULTS / "local_mixer_200")
        if run.seed == 0 and run.last_epoch == 200
    }
    small, large = (runs["local-forward-gradient", channels] for channels in (256, 512))
    assert small < 3.24
    assert large < 3.76
    assert f"leaves {small:.2f} % wrong on S/1/1, where local losses are the same trainer, and" in plain(PAGE)
    assert f"and {large:.2f} % on M/1/16, below what Ren et al. report" in plain(PAGE)
    control = "The control has {:.2f} and {:.2f} % there".format(
        *(runs["frozen", size] for size in (256, 512))
    )
    assert control in plain(PAGE)


def test_the_verdicts_counted_are_those_of_the_audit():
    results = read_results(RESULTS)
    audits = audit(results.runs, results.steps)
    counts = Counter(audited.finding.verdict for audited in audits)
    published = sum(audited.claim.source != "this project's own question" for audited in audits)
    assert 0 < published < len(audits)
    text = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    for page in (README, PAGE):
        assert text in plain(page)
        assert f"{len(audits)} claims" in plain(page)
        assert f"{published} of them published" in plain(page)


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
        found = summarise_differences([math.log(mine / other) for mine, other in pairs])
        low, high = map(math.exp, found.interval)
        interval = "" if measure else f" [{low:.2f}, {high:.2f}]"  # memory does not vary
        return f"{math.exp(found.mean):.2f}{interval}"

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
    said = "takes {} (FC: no difference shown), {} (CNN), {} (VGG-16) and {} (ResNet-18) of the time of "
    said = said.format(
        *time
    ) + "backprop at its fastest, {}, {}, {} and {} of its memory at its leanest".format(*memory)
    for page in (README, PAGE):
        assert said in plain(page)
