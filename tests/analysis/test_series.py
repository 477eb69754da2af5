"""Reading run directories, grouping them into series, and the table of final figures."""

import math
import shutil

import pytest
from fake_results import make_run

from fgbench.analysis.pairing import make_tasks
from fgbench.analysis.readings import read
from fgbench.analysis.records import load_results
from fgbench.analysis.series import group_series
from fgbench.analysis.tables import summary_table
from fgbench.errors import ConfigError


def labels(results):
    return [each.label for series in group_series(load_results(results)).values() for each in series]


def only_series(results):
    [[series]] = group_series(load_results(results)).values()
    return series


def test_a_series_is_one_configuration_over_its_seeds(tmp_path):
    for seed in (2, 0, 1):
        make_run(tmp_path, seed=seed)
    series = only_series(tmp_path)
    assert series.label == "backprop"
    assert list(series.curve("test_accuracy").columns) == [0, 1, 2]
    assert list(series.curve("test_accuracy").index) == [1, 2, 3, 4, 5]


def test_different_settings_are_never_averaged(tmp_path):
    for tangents in (16, 1, 4):
        make_run(tmp_path, "forward-gradient", options={"tangents": tangents})
    make_run(tmp_path, "backprop")
    assert labels(tmp_path) == ["backprop", *(f"forward-gradient, tangents={k}" for k in (1, 4, 16))]


def test_labels_tell_the_trainers_unusual_options_and_the_other_keys_that_differ(tmp_path):
    make_run(tmp_path, "backprop", optimizer={"name": "sgd", "lr": 0.1}, options={"recompute": False})
    make_run(tmp_path, "backprop", optimizer={"name": "sgd", "lr": 0.1}, options={"recompute": True})
    make_run(tmp_path, "zeroth-order", optimizer={"name": "adam", "lr": 1e-5}, options={"tangents": 3})
    assert labels(tmp_path) == [
        "backprop, optimizer=sgd, lr=0.1",
        "backprop, recompute, optimizer=sgd, lr=0.1",
        "zeroth-order, tangents=3, optimizer=adam, lr=1e-05",
    ]


def test_an_option_that_all_series_of_a_trainer_share_is_in_their_labels(tmp_path):
    unusual = {"guess": "rademacher", "structure": "rank1", "exact_output": True, "combine": "mean"}
    make_run(tmp_path, "backprop")
    make_run(tmp_path, "forward-gradient", options=unusual | {"tangents": 2})
    make_run(tmp_path, "activity-forward-gradient", options={"mask": False, "guess": "rademacher"})
    assert labels(tmp_path) == [
        "backprop",
        "forward-gradient, exact_output, tangents=2, guess=rademacher, structure=rank1",
        "activity-forward-gradient, mask=false",
    ]
    _, _, _, _, row, *_ = summary_table(load_results(tmp_path)).splitlines()
    assert row.startswith("forward-gradient, exact_output, tangents=2, guess=rademacher, structure=rank1")


def test_an_option_that_all_runs_of_a_model_share_is_in_its_title(tmp_path):
    for trainer in ("backprop", "zeroth-order"):
        make_run(tmp_path, trainer, model={"name": "fc", "layers": 3})
    assert list(group_series(load_results(tmp_path))) == [("fashion-mnist-mini", "fc, layers=3")]
    assert [task.title for task in make_tasks(load_results(tmp_path))] == [
        "fc on fashion-mnist-mini, layers=3"
    ]


def test_options_an_older_version_did_not_write_count_as_their_defaults(tmp_path):
    make_run(tmp_path, "forward-gradient", options={"tangents": 1}, name="old")
    make_run(
        tmp_path, "forward-gradient", options={"tangents": 1, "exact_output": False}, optimizer={"lr": 0.1}
    )
    assert labels(tmp_path) == ["forward-gradient, lr=0.001", "forward-gradient, lr=0.1"]


def test_a_part_of_a_dataset_is_a_dataset_of_its_own(tmp_path):
    make_run(tmp_path, "backprop")
    make_run(tmp_path, "forward-gradient")
    make_run(tmp_path, "backprop", dataset={"limit": 2000, "test_limit": 1000})
    make_run(tmp_path, "backprop", model="cnn", dataset={"limit": 2000})
    groups = group_series(load_results(tmp_path))
    assert {group: [each.label for each in series] for group, series in groups.items()} == {
        ("fashion-mnist-mini", "fc"): ["backprop", "forward-gradient"],
        ("fashion-mnist-mini, limit=2000", "cnn"): ["backprop"],
        ("fashion-mnist-mini, limit=2000, test_limit=1000", "fc"): ["backprop"],
    }


def test_labels_of_configs_that_read_the_same_still_differ(tmp_path):
    first = make_run(tmp_path)
    shutil.copytree(first, first.with_name("s0-00000000"))
    assert len(set(labels(tmp_path))) == 2


def test_keys_that_only_one_version_of_fgbench_knows_do_not_hide_a_difference(tmp_path):
    make_run(tmp_path)
    make_run(tmp_path, clip_gradient_norm=1.0)
    assert labels(tmp_path) == ["backprop", "backprop, clip_gradient_norm=1"]


def test_of_two_runs_with_one_seed_the_finished_one_counts(tmp_path):
    make_run(tmp_path, name="again", epochs=2, planned=5, state="interrupted")
    make_run(tmp_path, name="before", epochs=5, planned=5)
    assert [run.path.parent.name for run in only_series(tmp_path).runs] == ["before"]


def test_a_renamed_run_directory_is_still_of_its_series(tmp_path):
    for seed in (0, 1):
        run = make_run(tmp_path, seed=seed)
        run.rename(run.with_name(f"my run {seed}"))
    assert len(only_series(tmp_path).runs) == 2


def test_a_mean_covers_diverged_runs_and_leaves_out_unfinished_ones(tmp_path):
    make_run(tmp_path, seed=0, planned=10, epochs=10)
    make_run(tmp_path, seed=1, planned=10, epochs=3, state="diverged")
    make_run(tmp_path, seed=2, planned=10, epochs=4, state="running")
    assert [run.seed for run in only_series(tmp_path).averaged] == [0, 1]


def test_medians_leave_out_the_first_epoch_unless_it_is_all_there_is(tmp_path):
    for epochs in (1, 3):
        make_run(tmp_path / str(epochs), epochs=epochs)
    one, three = (only_series(tmp_path / str(epochs)).runs[0] for epochs in (1, 3))
    assert read(one, "epoch_time_s") == one.metrics["epoch_time_s"][0]
    assert read(three, "epoch_time_s") == three.metrics["epoch_time_s"][1:].mean()


@pytest.mark.parametrize(
    "content", ["", "[1]", "a: {b", "dataset: x", "\0", "&a [*a]", "trainer: {name: backprop}\n"]
)
def test_foreign_and_damaged_folders_are_named_and_left_out(tmp_path, caplog, content):
    make_run(tmp_path)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.yaml").write_text(content)
    assert len(load_results(tmp_path)) == 1
    assert "foreign" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize("lost", ["metrics.csv", "status.json", "env.json"])
def test_a_run_with_a_lost_file_is_still_read(tmp_path, lost):
    run = make_run(tmp_path)
    (run / lost).unlink()
    [record] = load_results(tmp_path)
    assert record.last_epoch == (0 if lost == "metrics.csv" else 5)
    assert summary_table([record])


@pytest.mark.parametrize("damage", ["", "garbage\n", None])
def test_a_finished_run_whose_metrics_are_damaged_is_told_and_not_averaged(tmp_path, caplog, damage):
    run = make_run(tmp_path)
    make_run(tmp_path, seed=1)
    metrics = run / "metrics.csv"
    metrics.write_text(metrics.read_text().rpartition("5,")[0] if damage is None else damage)
    [series] = [each for group in group_series(load_results(tmp_path)).values() for each in group]
    assert [each.seed for each in series.averaged] == [1]
    assert f"metrics.csv is damaged after epoch {4 if damage is None else 0} of 5" in caplog.text


@pytest.mark.parametrize("damage", ["", "[1]", None])
@pytest.mark.parametrize("lost", ["status.json", "env.json", "summary.json"])
def test_a_lost_file_of_a_finished_run_is_named_once(tmp_path, caplog, lost, damage):
    run = make_run(tmp_path)
    make_run(tmp_path, seed=1)
    (run / lost).unlink() if damage is None else (run / lost).write_text(damage)
    load_results(tmp_path)
    [told] = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"{run}: no readable {lost}; ")


@pytest.mark.parametrize("damage", ["class,cat,dog\ncat,3", None])
def test_lost_confusions_of_a_finished_run_are_named_where_they_are_read(tmp_path, caplog, damage):
    run = make_run(tmp_path, summary={"test_class_accuracy": {"cat": 0.5, "dog": 0.5}})
    if damage:
        (run / "confusion.csv").write_text(damage)
    make_run(tmp_path, seed=1)  # by a version that kept none
    assert [record.confusions for record in load_results(tmp_path)] == [None, None]
    assert [record.getMessage() for record in caplog.records] == [
        f"{run}: no readable confusion.csv; its confusions are left out"
    ]


@pytest.mark.parametrize("lost", ["backprop", "forward-gradient"])
def test_an_unknown_device_is_no_other_device(tmp_path, lost):
    for trainer in ("backprop", "forward-gradient"):
        run = make_run(tmp_path, trainer, device="auto")
        if trainer == lost:
            (run / "env.json").unlink()
    [series] = group_series(load_results(tmp_path)).values()
    assert [each.label for each in series] == ["backprop", "forward-gradient"]


def test_no_runs_is_one_clear_line(tmp_path):
    with pytest.raises(ConfigError, match=r"no runs in .*fgbench run"):
        load_results(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        load_results(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        load_results(tmp_path / "file")


def test_the_table_shows_mean_and_spread_with_units(tmp_path):
    for seed, accuracy in enumerate((0.70, 0.72, 0.74)):
        make_run(tmp_path, seed=seed, cells={"test_accuracy": accuracy, "peak_memory_mib": None})
    title, head, _, row, _ = summary_table(load_results(tmp_path)).splitlines()
    assert title == "fc on fashion-mnist-mini"
    assert "time per epoch (s)" in head
    assert "peak memory (MiB)" in head
    assert "0.7200 ± 0.0200" in row
    assert head.split()[:3] == ["trainer", "uses", "backwards"]
    assert row.split()[:4] == ["backprop", "everything", "3", "5"]
    assert row.split()[-1] == "-"


def test_the_table_makes_no_mean_of_the_survivors_of_a_divergence(tmp_path):
    make_run(tmp_path, seed=0, planned=5)
    make_run(tmp_path, seed=1, planned=5, epochs=2, state="diverged")
    row = summary_table(load_results(tmp_path)).splitlines()[3]
    assert "2 (1 diverged)" in row
    assert row.split().count("diverged") == 2
    assert "nan" not in row


def test_the_table_flags_times_taken_on_a_busy_machine(tmp_path):
    make_run(tmp_path, cells={"timing_note": "another process kept the GPU busy"})
    *_, row, _, note = summary_table(load_results(tmp_path)).splitlines()
    assert " * " in row
    assert note == "* in some epochs another process kept the GPU busy"


def test_many_notes_about_a_busy_machine_are_one_line(tmp_path):
    for seed in range(3):
        busy = f"other processes kept 1.{seed} of 2 CPU cores busy"
        make_run(tmp_path, seed=seed, cells={"timing_note": busy})
    *_, about, note = summary_table(load_results(tmp_path)).splitlines()
    assert about.startswith("Mean")
    assert note == (
        "* in some epochs other processes kept 1.2 of 2 CPU cores busy (and 2 more such notes in timing_note)"
    )


def test_missing_numbers_read_as_nan(tmp_path):
    make_run(tmp_path, cells={"grad_norm": None})
    assert math.isnan(read(load_results(tmp_path)[0], "grad_norm"))


def test_a_device_left_open_is_the_one_the_run_was_made_on(tmp_path):
    make_run(tmp_path, device="auto", name="open")
    make_run(tmp_path, "forward-gradient", device="cpu", name="said")
    records = load_results(tmp_path)
    assert {record.settings["device"] for record in records} == {"cpu"}
    assert "device" not in summary_table(records)
