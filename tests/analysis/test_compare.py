"""``fgbench compare``: what is held against what, at which budget, and what may be said."""

import csv
import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from fake_records import make_record, make_seeds
from fake_results import make_run
from typer.testing import CliRunner

from fgbench.analysis.compare import compare, compare_pair, find_measure, pair_all
from fgbench.analysis.compare_tables import compare_report, cost_table
from fgbench.analysis.pairing import describe_unknown_data, make_tasks, may_pair
from fgbench.analysis.readings import read
from fgbench.analysis.series import group_series
from fgbench.analysis.time_to import time_to_accuracy, time_to_same_loss
from fgbench.cli.app import app
from fgbench.errors import ConfigError

BACKPROP = [0.90, 0.92, 0.91]
FORWARD = [0.70, 0.73, 0.71]


def at(records, budget="epochs", column="test_accuracy", **given):
    [found] = [each for each in compare(records, [column], **given) if each.budget == budget]
    return found


def only_pair(records):
    [[pair]] = pair_all(make_tasks(records))
    return pair


def test_differences_are_paired_by_seed():
    records = make_seeds("backprop", BACKPROP) + list(reversed(make_seeds("forward-gradient", FORWARD)))
    found = at(records)
    assert found.paired.mean == pytest.approx((-0.20 - 0.19 - 0.20) / 3)
    assert found.wins == (0, 3)
    assert found.conclusion == "worse"


def test_only_seeds_that_both_have_are_compared():
    records = [*make_seeds("backprop", BACKPROP), make_record("forward-gradient", 1, test_accuracy=0.5)]
    found = at(records)
    assert found.pair.seeds == (1,)
    assert found.values == ((0.5, 0.92),)


def test_two_seeds_claim_nothing_and_are_no_test():
    records = make_seeds("backprop", [0.9, 0.91]) + make_seeds("forward-gradient", [0.1, 0.11])
    found = at(records)
    assert found.conclusion == "no claim from 2 seeds"
    assert found.p_adjusted is None


def test_one_seed_claims_nothing_and_says_how_many_would():
    records = make_seeds("backprop", [0.9]) + make_seeds("forward-gradient", [0.1])
    assert at(records).conclusion == "no claim from 1 seed"
    report = compare_report(records, ["test_accuracy"])
    assert "3.3 standard deviations over seeds with 3" in report
    assert "worse" not in report


def test_a_difference_lost_in_noise_tells_the_seeds_that_would_show_it():
    found = at(make_seeds("backprop", [0.90, 0.90, 0.90]) + make_seeds("forward-gradient", [0.7, 0.95, 0.8]))
    assert found.conclusion == f"not shown (about {found.paired.seeds_needed} seeds might)"
    assert found.paired.seeds_needed > 3


def test_p_values_are_adjusted_over_all_comparisons_and_their_number_is_told():
    records = make_seeds("backprop", BACKPROP)
    records += make_seeds("forward-gradient", FORWARD) + make_seeds("zeroth-order", [0.5, 0.52, 0.5])
    comparisons = compare(records, ["test_accuracy"])
    raw = sorted(each.paired.p_value for each in comparisons if each.budget != "memory" and each.paired)
    assert len(raw) == 4
    smallest = min(each.p_adjusted for each in comparisons if each.p_adjusted is not None)
    assert smallest == pytest.approx(4 * raw[0])
    assert "4 tests were made" in compare_report(records, ["test_accuracy"])


def test_what_is_said_of_a_task_does_not_depend_on_other_tasks():
    records = make_seeds("backprop", BACKPROP) + make_seeds("forward-gradient", FORWARD)
    noisy = [0.5, 0.9, 0.7]
    others = [
        run
        for model in ("cnn", "vgg16", "resnet18")
        for run in make_seeds("backprop", BACKPROP, model=model)
        + make_seeds("zeroth-order", noisy, model=model)
    ]
    [alone] = [each for each in compare(records) if each.budget == "epochs"]
    [among] = [
        each
        for each in compare(records + others)
        if each.budget == "epochs" and each.pair.task == alone.pair.task
    ]
    assert among.p_adjusted == alone.p_adjusted < 0.05


@pytest.mark.parametrize(
    ("costs", "conclusion"), [((101, 100.5, 101), "about the same"), ((140, 141, 142), "worse")]
)
def test_a_cost_within_two_percent_is_about_the_same(costs, conclusion):
    records = make_seeds("backprop", BACKPROP, peak_memory_mib=100.0)
    records += [
        make_record("forward-gradient", seed, peak_memory_mib=cost) for seed, cost in enumerate(costs)
    ]
    assert at(records, column="peak_memory_mib").conclusion == conclusion


def test_an_accuracy_within_half_a_point_is_about_the_same():
    records = make_seeds("backprop", BACKPROP) + make_seeds("forward-gradient", [a - 0.001 for a in BACKPROP])
    assert at(records).conclusion == "about the same"


def test_differences_that_cancel_are_not_called_the_same():
    records = make_seeds("backprop", [0.5, 0.5, 0.5]) + make_seeds("forward-gradient", [0.25, 0.75, 0.5])
    assert at(records).paired.mean == 0
    assert at(records).conclusion == "not shown"


def test_equal_costs_are_about_the_same_even_if_they_are_zero():
    records = make_seeds("backprop", BACKPROP, bytes_sent_per_step=0.0)
    records += make_seeds("forward-gradient", FORWARD, bytes_sent_per_step=0.0)
    assert at(records, column="bytes_sent_per_step").conclusion == "about the same"


def test_times_taken_beside_other_work_throughout_are_not_concluded_from():
    busy = {"timing_note": "other processes kept 1.0 of 2 CPU cores busy"}
    records = make_seeds("backprop", BACKPROP)
    records += make_seeds("forward-gradient", FORWARD, epoch_time_s=3.0, **busy)
    assert at(records, column="epoch_time_s").conclusion == "no claim: timed beside other work"
    assert at(records).conclusion == "worse"


def test_a_run_that_was_resumed_on_another_machine_is_not_one_of_the_last_alone():
    records = make_seeds("backprop", BACKPROP)
    elsewhere = {"earlier": [{"cpu": "Old CPU", "torch": "2.7.0", "threads": 2, "device": "cpu"}]}
    records += make_seeds("forward-gradient", FORWARD, epoch_time_s=3.0, env=elsewhere)
    told = at(records, column="epoch_time_s").conclusion
    assert told == "no claim: different environments (cpu Some CPU / Old CPU)"
    assert at(records).conclusion == "worse"


def test_a_baseline_is_the_strongest_by_how_it_ends():
    records = make_seeds("backprop", BACKPROP, val_accuracy=[0.7, 0.8, 0.9])
    records += make_seeds("backprop", [0.3, 0.3, 0.3], optimizer__lr=0.1, val_accuracy=[0.7, 0.95, 0.3])
    records += make_seeds("forward-gradient", FORWARD, optimizer__lr=0.5)
    found = next(each for each in compare(records) if each.pair.series.trainer == "forward-gradient")
    assert found.pair.baseline.runs[0].settings["optimizer.lr"] == 0.001


def test_a_sum_of_times_is_disturbed_by_any_epoch_that_is_in_it():
    """In the time of backprop's 5 epochs the other trains 20, disturbed from the sixth on."""
    busy = [None] * 5 + ["other processes kept 1.0 of 2 CPU cores busy"] * 15
    records = [
        make_record(name, seed, epochs=epochs, epoch_time_s=time, test_accuracy=accuracy, timing_note=note)
        for name, epochs, time, accuracy, note in (
            ("backprop", 5, 4.0, 0.8, None),
            ("forward-gradient", 20, 1.0, 0.9, busy),
        )
        for seed in range(3)
    ]
    for each in records:
        each.config["epochs"] = 5
    records = [replace(run, hash=run.component("trainer")) for run in records]
    assert at(records, "time").epochs == ((20, 5),) * 3
    assert at(records, "time").conclusion == "no claim: timed beside other work"
    assert at(records, "epochs").conclusion != at(records, "time").conclusion


@pytest.mark.parametrize("note", [None, "other processes kept 1.0 of 2 CPU cores busy"])
def test_ratios_of_times_taken_beside_other_work_are_not_printed(note):
    records = [
        make_record(
            name,
            seed,
            val_loss=[2.0, 1.0],
            val_accuracy=[0.2, 0.8],
            epoch_time_s=time,
            timing_note=note,
            peak_memory_mib=100.0,
            summary={"drawing_ms_per_step": 0.25},
        )
        for name, time in (("backprop", 1.0), ("forward-gradient", 3.0))
        for seed in range(3)
    ]
    [row] = cost_table([only_pair(records)]).rows
    ratios = ["no claim"] * 3 if note else ["3.00×", "3.00× (6 s / 2 s)", "3.00× (6 s / 2 s) to 0.80"]
    assert [row[2], *row[-2:]] == ratios
    assert row[3] == "1.00×"
    assert row[5] == ("no claim" if note else "0.25 (0.25)")


def test_a_median_over_the_first_epoch_alone_is_not_concluded_from():
    records = make_seeds("backprop", BACKPROP) + make_seeds("forward-gradient", FORWARD, epoch_time_s=3.0)
    assert at(records, column="epoch_time_s").conclusion == "worse"
    first = [replace(run, metrics=run.metrics[:1], config=run.config | {"epochs": 1}) for run in records]
    assert at(first, column="epoch_time_s").conclusion.startswith("no claim: only the first epoch was timed")


def test_a_machine_that_is_not_recorded_is_another_one():
    records = make_seeds("backprop", BACKPROP, epoch_time_s=1.0)
    records += make_seeds("forward-gradient", FORWARD, epoch_time_s=3.0, peak_memory_mib=1.0)
    records[0] = replace(records[0], env={})
    assert "cpu Some CPU / unknown" in at(records, column="epoch_time_s").conclusion


def test_at_equal_memory_the_machines_have_to_be_the_same():
    records = make_seeds("backprop", BACKPROP, peak_memory_mib=9.0)
    records += make_seeds("forward-gradient", FORWARD, peak_memory_mib=8.0, env={"torch": "2.8.0"})
    assert at(records, "memory").conclusion == "no claim: different environments (torch 2.8.0 / 2.7.0)"
    assert at(records).conclusion == "worse"


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_end_of_a_schedule_is_not_held_against_the_middle_of_one(schedule):
    cheap = [
        make_record(
            "frozen",
            seed,
            test_accuracy=[0.5, 0.6, 0.7, 0.8],
            schedule={"name": schedule},
            summary={"forward_passes_per_step": 1.0},
        )
        for seed in range(3)
    ]
    dear = [
        make_record(
            "backprop",
            seed,
            test_accuracy=[0.5, 0.6 + seed / 100, 0.8, 0.9],
            schedule={"name": schedule},
            summary={"forward_passes_per_step": 2.0},
        )
        for seed in range(3)
    ]
    found = at(cheap + dear, "passes")
    assert found.epochs == ((4, 2),) * 3
    falling = schedule == "cosine"
    said = "no claim: read at different points of the schedule of learning rates" if falling else "better"
    assert found.conclusion == said
    assert (found.p_adjusted is None) == falling
    assert "(4 passes, epochs 4 / 2)" in compare_report(cheap + dear, ["test_accuracy"])


def test_a_step_that_costs_a_percent_more_loses_no_epoch_at_equal_forward_passes():
    [found] = [
        each
        for each in compare(counted("backprop", 2.0, [0.5, 0.9]) + counted("local-loss", 2.03, [0.5, 0.8]))
        if each.budget == "passes"
    ]
    assert set(found.epochs) == {(2, 2)}


def test_a_lower_loss_is_better():
    records = [make_record("backprop", seed, train_loss=0.5 + seed / 100) for seed in range(3)]
    records += [make_record("forward-gradient", seed, train_loss=0.3 + seed / 99) for seed in range(3)]
    found = at(records, column="train_loss")
    assert found.conclusion == "better"
    assert found.wins == (3, 0)


def test_runs_of_different_length_are_read_at_the_last_common_epoch():
    records = [make_record("backprop", seed, test_accuracy=[0.5, 0.6, 0.9]) for seed in range(3)]
    records += [make_record("forward-gradient", seed, test_accuracy=[0.5, 0.6]) for seed in range(3)]
    found = at(records)
    assert found.limit == 2
    assert found.paired.mean == 0
    assert "epochs 2 / 3" in compare_report(records, ["test_accuracy"])


def test_a_gradient_is_compared_at_the_last_epoch_at_which_both_measured_it():
    none = math.nan
    measured = {"backprop": [none, 0.9, none, 1.0, none], "forward-gradient": [0.3, 0.2, 0.1, none, none]}
    records = [make_record(name, gradient_cosine=cosines) for name, cosines in measured.items()]
    found = at(records, column="gradient_cosine")
    assert (found.limit, found.epochs, found.values) == (2.0, ((2, 2),), ((0.2, 0.9),))
    assert at(records, "time", "gradient_cosine").limit == 5.0
    assert [read(run, "gradient_cosine") for run in records] == [1.0, 0.1]


def test_a_gradient_that_both_never_measured_at_one_epoch_is_not_compared():
    none = math.nan
    records = make_seeds("backprop", BACKPROP, gradient_cosine=[none, 0.9, none])
    records += make_seeds("forward-gradient", FORWARD, gradient_cosine=[0.3, none, 0.1])
    assert at(records, column="gradient_cosine").conclusion == "not measured at equal epochs"
    records = make_seeds("backprop", BACKPROP) + make_seeds("forward-gradient", FORWARD, gradient_cosine=0.1)
    assert at(records, column="gradient_cosine").conclusion == "not measured"


def test_at_equal_time_each_is_read_at_the_last_epoch_it_has_finished():
    fast = [
        make_record("forward-gradient", s, test_accuracy=[0.3, 0.4, 0.5], epoch_time_s=1.0) for s in range(3)
    ]
    slow = [make_record("backprop", s, test_accuracy=[0.2, 0.8, 0.9], epoch_time_s=1.6) for s in range(3)]
    found = at(fast + slow, "time")
    assert found.limit == 3.0
    assert found.epochs == ((3, 1),) * 3
    assert found.values == ((0.5, 0.2),) * 3


def test_at_equal_time_a_first_epoch_that_takes_too_long_has_no_value():
    fast = [make_record("forward-gradient", s, test_accuracy=0.5, epoch_time_s=1.0) for s in range(3)]
    slow = [make_record("backprop", s, test_accuracy=0.9, epoch_time_s=5.0) for s in range(3)]
    found = at(fast + slow, "time")
    assert found.paired is None
    assert found.conclusion == "no epoch within the budget"


def test_at_equal_memory_only_what_fits_is_compared():
    records = make_seeds("backprop", BACKPROP, peak_memory_mib=60.0)
    records += make_seeds("backprop", BACKPROP, peak_memory_mib=40.0, trainer_options={"recompute": True})
    records += make_seeds("forward-gradient", FORWARD, peak_memory_mib=86.0)
    recompute, forward = (each for each in compare(records) if each.budget == "memory")
    assert recompute.pair.series.label == "backprop, recompute"
    assert recompute.paired.mean == 0
    assert forward.paired is None
    assert "86.0 MiB" in forward.conclusion


@pytest.mark.parametrize("lost", [1, 3])
def test_no_mean_is_taken_over_the_runs_that_survived(lost):
    records = make_seeds("backprop", BACKPROP)
    records += [
        make_record("forward-gradient", s, test_accuracy=0.99, state="diverged" if s < lost else "finished")
        for s in range(3)
    ]
    found = at(records)
    assert found.paired is None
    assert found.conclusion == f"diverged: {lost} of 3; baseline 0"
    assert found.wins == (3 - lost, lost)


def test_a_run_that_diverged_early_does_not_shorten_the_comparison():
    records = [make_record("backprop", s, test_accuracy=[0.1, 0.2, 0.3]) for s in range(2)]
    records += [make_record("forward-gradient", 0, test_accuracy=[0.1], state="diverged")]
    records += [make_record("forward-gradient", 1, test_accuracy=[0.1, 0.2, 0.4], epochs=3)]
    [[first, second]] = pair_all(make_tasks(records))  # two series: their planned epochs differ
    assert compare_pair(first, find_measure("test_accuracy")).limit == 3
    assert compare_pair(second, find_measure("test_accuracy")).limit == 3


def test_different_data_or_models_are_never_compared():
    records = make_seeds("backprop", BACKPROP, dataset__limit=1000) + make_seeds("forward-gradient", FORWARD)
    assert compare(records) == []
    assert "Nothing to compare" in compare_report(records, ["test_accuracy"])
    titles = [task.title for task in make_tasks(records)]
    assert titles == ["fc on fashion-mnist", "fc on fashion-mnist, limit=1000"]


def test_the_baseline_is_the_plain_variant_with_the_nearest_settings():
    records = make_seeds("backprop", BACKPROP, optimizer__lr=0.1)
    records += make_seeds("backprop", BACKPROP, optimizer__lr=0.01)
    records += make_seeds("backprop", BACKPROP, optimizer__lr=0.001, trainer_options={"recompute": True})
    records += make_seeds("forward-gradient", FORWARD, optimizer__lr=0.01)
    found = {each.pair.series.label: each.pair for each in compare(records)}
    assert found["forward-gradient, lr=0.01"].baseline.label == "backprop, lr=0.01"
    assert found["forward-gradient, lr=0.01"].other_settings == []
    assert "optimizer.lr 0.001 / 0.01" in found["backprop, recompute, lr=0.001"].other_settings


def test_among_equally_near_baselines_the_strongest_is_taken():
    records = make_seeds("backprop", BACKPROP, optimizer__lr=0.1, val_accuracy=0.5)
    records += make_seeds("backprop", BACKPROP, optimizer__lr=0.01, val_accuracy=0.9)
    records += make_seeds("forward-gradient", FORWARD, optimizer__lr=0.001)
    assert {each.pair.baseline.label for each in compare(records)} == {"backprop, lr=0.01"}


def test_any_series_can_be_the_baseline_by_its_label():
    records = make_seeds("backprop", BACKPROP)
    records += make_seeds("forward-gradient", FORWARD, trainer_options={"tangents": 1})
    records += make_seeds("forward-gradient", FORWARD, trainer_options={"tangents": 4})
    found = compare(records, baseline="forward-gradient, tangents=4")
    assert {each.pair.series.label for each in found} == {"backprop", "forward-gradient, tangents=1"}


def test_an_unknown_baseline_or_metric_names_what_there_is():
    records = make_seeds("backprop", BACKPROP)
    with pytest.raises(ConfigError, match="backdrop: no such series; there are backprop"):
        compare(records, baseline="backdrop")
    with pytest.raises(ConfigError, match=r"accuracy: expected one of .*test_accuracy"):
        compare(records, ["accuracy"])


def test_a_metric_named_twice_is_compared_once():
    records = make_seeds("backprop", BACKPROP) + make_seeds("forward-gradient", FORWARD)
    once = compare_report(records, ["test_accuracy"])
    assert compare_report(records, ["test_accuracy", "test_accuracy"]) == once


def on(digests):
    """The env.json of runs that saw this data; None for one that did not record it."""
    return [{"data": {"loaded": digest}} if digest else {} for digest in digests]


def test_runs_on_unknown_data_are_paired_as_if_it_were_the_others_and_that_is_said():
    runs = [make_record(seed=seed, test_accuracy=0.9, env=env) for seed, env in enumerate(on("aaa"))]
    others = [
        make_record("forward-gradient", seed, test_accuracy=0.7, env=env)
        for seed, env in enumerate(on(["a", "a", None]))
    ]
    assert at(runs + others).pair.seeds == (0, 1, 2)
    assert describe_unknown_data(runs + others) == (
        "1 of 6 runs did not record their data: taken to be that of the others, if these agree: "
        f"{others[2].path}"
    )
    assert describe_unknown_data(runs) == ""


def test_runs_on_other_images_are_another_task_and_another_series():
    folders = {"easy": "aaa", "hard": "bbb"}
    records = [
        make_record(
            *(trainer, seed),
            test_accuracy=accuracy - 0.4 * (digest == "bbb"),
            env=on([digest])[0],
            dataset__dir=folder,
        )
        for folder, digest in folders.items()
        for trainer, accuracy in (("backprop", 0.9), ("forward-gradient", 0.7))
        for seed in range(3)
    ]
    found = {each.pair.task: each.pair for each in compare(records) if each.budget == "epochs"}
    assert list(found) == ["fc on fashion-mnist, dir=easy", "fc on fashion-mnist, dir=hard"]
    for pair, folder in zip(found.values(), folders, strict=True):
        assert pair.seeds == (0, 1, 2)
        assert {run.settings["dataset.dir"] for run in pair.all_runs} == {folder}


def test_seeds_on_data_that_has_changed_are_not_averaged_with_the_others():
    records = [make_record(seed=seed, env=env) for seed, env in enumerate(on("aabb"))]
    other = replace(make_record(seed=0, env=on("b")[0]), path=Path("results/other/s0"))
    records.append(other)  # it does not replace the one on other images
    groups = group_series(records)
    assert [dataset for dataset, _ in groups] == ["fashion-mnist, data=a", "fashion-mnist, data=b"]
    assert [[run.seed for run in series.runs] for (series,) in groups.values()] == [[0, 1], [0, 2, 3]]


def test_seeds_of_code_that_has_changed_are_not_averaged_with_the_others():
    records = [
        make_record("lab:Mine", seed, env={"code": {"lab:Mine": digest}}) for seed, digest in enumerate("aab")
    ]
    ((old, new),) = group_series(records).values()
    assert [run.seed for run in old.runs] == [0, 1]
    assert old.label.endswith(", code a")
    assert new.label.endswith(", code b")
    other_model = [
        make_record(seed=0, env={"code": {"lab:Net": "a"}}),
        make_record(seed=0, env={"code": {"lab:Net": "b"}}),
    ]
    assert not may_pair(*other_model)
    assert may_pair(records[0], other_model[0])
    trained = make_record("forward-gradient", 0, env={"code": {"lab:Net": "b"}})
    assert at([other_model[0], trained]).conclusion == "other images or code"


@pytest.mark.parametrize("trainer", ["backprop", "frozen"])
def test_of_several_rates_none_is_the_baseline_where_no_validation_images_tell_the_best(trainer):
    def at_rates(**given):
        rates = [make_seeds(trainer, [0.1] * 3, optimizer__lr=1e-6, **given.get("low", {}))]
        rates += [make_seeds(trainer, [0.8, 0.81, 0.82], optimizer__lr=1e-2, **given.get("high", {}))]
        others = make_seeds("forward-gradient", [0.6, 0.6, 0.61], optimizer__lr=1e-3)
        [[pair]] = pair_all(make_tasks(sum(rates, others)), trainer)
        return pair

    blind = at_rates()
    assert blind.rivals == 1
    assert compare_pair(blind, find_measure("test_accuracy")).conclusion == (
        f"no claim: one of 2 {trainer} series, and no validation images to choose it by"
    )
    seen = at_rates(low={"val_accuracy": 0.1}, high={"val_accuracy": 0.8})
    assert (seen.rivals, seen.baseline.label) == (0, f"{trainer}, lr=0.01")


def test_a_run_that_did_not_record_its_data_is_named(tmp_path):
    unknown = make_run(tmp_path, "backprop")
    make_run(tmp_path, "forward-gradient")
    done = CliRunner().invoke(app, ["compare", str(tmp_path)])
    said = "2 of 2 runs did not record their data: taken to be that of the others, if these agree"
    assert f"{said}: {unknown} and 1 more" in done.stderr


@pytest.mark.parametrize("terminal", [80, 120])
def test_a_table_wider_than_the_terminal_has_a_line_for_every_cell(terminal):
    records = make_seeds("backprop", BACKPROP) + make_seeds("forward-gradient", FORWARD)
    wide = compare_report(records, ["test_accuracy"])
    assert max(map(len, wide.splitlines())) > terminal
    report = compare_report(records, ["test_accuracy"], width=terminal)
    assert "\n\n\n" not in report
    narrow = report.splitlines()
    table = narrow[narrow.index("forward-gradient") : narrow.index("")]
    assert table[:2] == ["forward-gradient", "  uses backwards     nothing"]
    assert max(map(len, table)) <= terminal
    assert compare_report(records, ["test_accuracy"], width=1000) == wide
    markdown = compare_report(records, ["test_accuracy"], form="markdown")
    assert compare_report(records, ["test_accuracy"], form="markdown", width=terminal) == markdown


def test_environments_that_differ_are_named():
    records = make_seeds("backprop", BACKPROP)
    records += make_seeds("forward-gradient", FORWARD, env={"torch": "2.6.0", "threads": 8})
    report = compare_report(records, ["test_accuracy"])
    assert "ENVIRONMENTS DIFFER: torch 2.6.0 / 2.7.0, threads 8 / 2" in report


def test_two_gpus_of_one_model_are_the_same_environment():
    records = make_seeds("backprop", BACKPROP, env={"device": "cuda:0"})
    records += make_seeds("forward-gradient", FORWARD, env={"device": "cuda:1"})
    assert only_pair(records).environments == []


def test_times_are_medians_of_warm_epochs_that_nothing_disturbed():
    busy = [None, None, "other processes", None]
    records = [
        make_record("backprop", epoch_time_s=[9.0, 2.0, 50.0, 4.0], timing_note=busy),
        make_record("forward-gradient", epoch_time_s=[9.0, 2.0, 2.0, 2.0]),
    ]
    assert at(records, column="epoch_time_s").values == ((2.0, 3.0),)
    assert "1 epochs timed while other work" in compare_report(records, ["epoch_time_s"])


def test_time_to_the_same_loss_is_to_the_lowest_that_both_reach():
    records = [
        make_record("backprop", val_loss=[0.6, 0.4, 0.3], epoch_time_s=1.0),
        make_record("forward-gradient", val_loss=[0.9, 0.6, 0.7], epoch_time_s=2.0),
    ]
    reached = time_to_same_loss(only_pair(records))
    assert reached.targets == (0.6,)
    assert reached.seconds == ((4.0, 1.0),)
    assert reached.ratio == 4.0


def test_time_to_accuracy_is_to_one_that_all_reach_or_to_the_one_asked_for():
    records = [
        make_record("backprop", val_accuracy=[0.5, 0.82, 0.9], epoch_time_s=1.0),
        make_record("forward-gradient", val_accuracy=[0.5, 0.6, 0.83], epoch_time_s=1.0),
    ]
    pair = only_pair(records)
    assert time_to_accuracy(pair).targets == pytest.approx((0.8,))
    assert time_to_accuracy(pair).seconds == ((3.0, 2.0),)
    assert time_to_accuracy(pair, 0.9).seconds == ((math.inf, 3.0),)
    assert "reached by 0 of 1; baseline 1 of 1 to 0.90" in compare_report(
        records, ["val_accuracy"], accuracy=0.9
    )
    assert time_to_accuracy(only_pair([make_record("backprop"), make_record("zeroth-order")])) is None


def test_what_both_reach_in_their_first_epoch_is_not_timed():
    records = [
        make_record("backprop", val_accuracy=[0.11, 0.5], val_loss=[2.0, 1.0], epoch_time_s=4.0),
        make_record("forward-gradient", val_accuracy=[0.12, 0.10], val_loss=[2.1, 2.3], epoch_time_s=2.0),
    ]
    assert time_to_accuracy(only_pair(records)).in_first_epoch
    assert "both within an epoch" in compare_report(records, ["test_accuracy"])


def test_csv_has_one_full_row_for_every_comparison():
    records = make_seeds("backprop", BACKPROP) + make_seeds("forward-gradient", FORWARD)
    rows = list(csv.DictReader(io.StringIO(compare_report(records, ["test_accuracy"], form="csv"))))
    assert [row["budget"] for row in rows] == ["epochs", "time", "memory", "passes"]
    assert float(rows[0]["difference"]) == pytest.approx(-0.59 / 3)
    assert rows[0]["seeds"] == "0 1 2"
    assert float(rows[0]["t_low"]) < float(rows[0]["difference"]) < float(rows[0]["t_high"])


def test_markdown_and_latex_escape_what_they_would_misread():
    records = make_seeds("backprop", BACKPROP)
    records += make_seeds("my_pkg.a|b:C&D", FORWARD)
    assert r"my\_pkg.a\|b:C&D" in compare_report(records, ["test_accuracy"], form="markdown")
    latex = compare_report(records, ["test_accuracy"], form="latex")
    assert r"my\_pkg.a|b:C\&D" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 3


def test_the_command_reads_a_folder_and_writes_a_file(tmp_path):
    for seed in range(3):
        make_run(tmp_path / "results", seed=seed)
        make_run(tmp_path / "results", "forward-gradient", seed=seed)
    out = tmp_path / "compare.md"
    arguments = ["compare", str(tmp_path / "results"), "--format", "markdown", "--out", str(out)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert "| forward-gradient | " in out.read_text()


def test_the_command_refuses_what_it_does_not_know(tmp_path):
    make_run(tmp_path)
    assert CliRunner().invoke(app, ["compare", str(tmp_path), "--metric", "x"]).exit_code == 2
    assert CliRunner().invoke(app, ["compare", str(tmp_path), "--baseline", "x"]).exit_code == 2
    assert CliRunner().invoke(app, ["compare", str(tmp_path / "none")]).exit_code == 2


def counted(trainer, passes, accuracies, **given):
    """Three seeds whose accuracy rises epoch by epoch, at so many forward passes a step."""
    summary = {"forward_passes_per_step": passes, "drawing_ms_per_step": 0.25}
    return [make_record(trainer, s, test_accuracy=accuracies, summary=summary, **given) for s in range(3)]


def test_at_equal_forward_passes_each_run_is_read_where_the_cheaper_one_has_stopped():
    records = counted("backprop", 3.0, [0.5, 0.7, 0.8, 0.85]) + counted(
        "forward-gradient", 2.0, [0.1, 0.2, 0.3, 0.4]
    )
    found = at(records, "passes")
    assert found.limit == 8.0  # four epochs of two passes
    assert found.epochs == ((4, 2),) * 3
    assert found.values == ((0.4, 0.7),) * 3
    assert found.conclusion == "worse"
    assert at(records).values == ((0.4, 0.85),) * 3
    dear = at(records[:3] + counted("forward-gradient", 20.0, [0.9]), "passes")
    assert (dear.limit, dear.epochs[0]) == (12.0, (0, 4))
    assert dear.conclusion == "no epoch within the budget"
    assert (
        at(make_seeds("backprop", BACKPROP) + records[3:], "passes").conclusion
        == "forward passes not counted"
    )


def test_forward_passes_drawing_and_what_goes_backwards_stand_in_the_tables():
    records = counted("backprop", 2.5, [0.5, 0.9]) + counted("forward-gradient", 3.0, [0.4, 0.5])
    report = compare_report(records, ["test_accuracy"])
    assert "3 (2.5)" in report
    assert "0.25 (0.25)" in report
    assert "equal forward passes" in report
    heads = [line for line in report.splitlines() if line.startswith("trainer ")]
    assert len(heads) == 3
    assert all("uses backwards" in line for line in heads)
    assert sum(line.startswith("forward-gradient") and "nothing" in line for line in report.splitlines()) == 3
    [row] = [
        row
        for row in csv.DictReader(io.StringIO(compare_report(records, ["test_accuracy"], form="csv")))
        if row["budget"] == "passes"
    ]
    assert (row["uses_backwards"], row["baseline_uses_backwards"]) == ("nothing", "everything")
    assert (row["forward_passes_per_step"], row["drawing_ms_per_step"]) == ("3.0", "0.25")
