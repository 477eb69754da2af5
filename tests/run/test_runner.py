"""Properties of runs: what they write, and that nothing is lost."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from interrupts import interrupt_at
from run_directories import only_run
from small_models import model_for

from fgbench.config.config import Config
from fgbench.datasets.search import DataSearch
from fgbench.errors import ConfigError, FgbenchError
from fgbench.measure import OtherLoad
from fgbench.registry import TRAINERS
from fgbench.run import epochs, runner
from fgbench.run.loop import TrainingState
from fgbench.run.plan import locate
from fgbench.run.progress import EpochProgress
from fgbench.run.runner import run_configs
from fgbench.run.signals import Interrupted
from fgbench.storage.metrics import METRICS
from fgbench.storage.state import load_state, save_state

MEASURED = {
    "epoch_time_s",
    "eval_time_s",
    "batch_time_ms",
    "samples_per_s",
    "peak_memory_mib",
    "memory_source",
    "elapsed_s",
    "timing_note",
}


def make_config(results: Path, **changes) -> Config:
    settings = {
        "name": "tiny",
        "dataset": {
            "name": "synthetic",
            "shape": [1, 8, 8],
            "classes": 3,
            "train": 60,
            "test": 12,
            "augment": True,
        },
        "model": {"name": "fc", "hidden": 6},
        "trainer": {"name": "backprop"},
        "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
        "schedule": {"name": "cosine"},
        "batch_size": 8,
        "epochs": 3,
        "results_dir": str(results),
    } | changes
    return Config.model_validate(settings)


def reproducible_rows(results: Path) -> list[dict]:
    return [
        {key: value for key, value in row.items() if key not in MEASURED}
        for row in only_run(results).read_metrics()
    ]


def test_a_run_directory_tells_everything(tmp_path: Path) -> None:
    assert run_configs([make_config(tmp_path)]).code == 0
    run = only_run(tmp_path)
    rows = run.read_metrics()
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert tuple(rows[0]) == METRICS
    for row in rows:
        assert 0 <= row["test_accuracy"] <= 1
        assert row["memory_source"] == "cpu-profiler"
        assert row["peak_memory_mib"] > 0
        assert row["nvml_memory_mib"] is None
        assert row["samples_per_s"] == pytest.approx(48 / row["epoch_time_s"])
    assert rows[0]["lr"] == pytest.approx(0.01)
    assert run.status()["state"] == "finished"
    summary = run.read_summary()
    assert summary["uses_backwards"] == "everything"
    assert 2 < summary["forward_passes_per_step"] < 3
    assert summary["final"]["test_accuracy"] == rows[-1]["test_accuracy"]
    best = max(rows, key=lambda row: row["val_accuracy"])
    assert summary["best_validation"]["val_accuracy"] == best["val_accuracy"]
    assert {"torch", "cpu", "threads", "git_commit"} <= set(run.read_env())
    assert (run.path / "config.yaml").exists()


def test_the_end_tells_every_class_apart(tmp_path: Path) -> None:
    assert run_configs([make_config(tmp_path)]).code == 0
    run = only_run(tmp_path)
    names, counts = run.read_confusions()
    assert names == ["0", "1", "2"]
    assert sum(map(sum, counts)) == 12
    right = [row[place] for place, row in enumerate(counts)]
    summary = run.read_summary()
    assert sum(right) / 12 == summary["final"]["test_accuracy"]
    accuracies = {name: hits / sum(row) for name, hits, row in zip(names, right, counts, strict=True)}
    assert summary["test_class_accuracy"] == accuracies


def test_a_run_that_diverged_keeps_nothing_of_its_classes(tmp_path: Path) -> None:
    config = make_config(tmp_path, optimizer={"name": "sgd", "lr": 1e30}, schedule={"name": "constant"})
    run_configs([config])
    only_run(tmp_path).write_confusions(["a", "b"], [[1, 2], [3, 4]])  # of an earlier run in its place
    assert run_configs([config], force=True).code == 4
    assert only_run(tmp_path).read_confusions() == ([], [])
    assert only_run(tmp_path).read_summary()["test_class_accuracy"] is None


def test_a_finished_run_is_skipped_unless_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_configs([make_config(tmp_path)])
    before = (only_run(tmp_path).path / "metrics.csv").read_bytes()
    capsys.readouterr()
    assert run_configs([make_config(tmp_path)]).code == 0
    assert "already, skipped" in (said := capsys.readouterr().out)
    run_configs([make_config(tmp_path)], dry_run=True)
    assert capsys.readouterr().out == said
    run_configs([make_config(tmp_path)], dry_run=True, force=True)
    assert "already, skipped" not in capsys.readouterr().out
    assert (only_run(tmp_path).path / "metrics.csv").read_bytes() == before
    first = reproducible_rows(tmp_path)
    assert run_configs([make_config(tmp_path)], force=True).code == 0
    assert (only_run(tmp_path).path / "metrics.csv").read_bytes() != before
    assert reproducible_rows(tmp_path) == first


def stop_at(name: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run end where it calls this function of its module."""

    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(runner, name, stop)


@pytest.mark.parametrize("place", ["build_training", "to_yaml"])
def test_a_repeat_that_is_killed_before_it_trains_is_never_given_the_old_result(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path)
    run_configs([config])
    stop_at(place, KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_configs([config], force=True)
    monkeypatch.undo()
    assert run_configs([config], force=True).code == 0
    assert "resumes" not in capsys.readouterr().out
    assert len(only_run(tmp_path).read_metrics()) == 3


def test_a_repeat_leaves_nothing_of_the_old_end_once_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_configs([make_config(tmp_path)])
    interrupt_at(2, monkeypatch)
    with pytest.raises(Interrupted):
        run_configs([make_config(tmp_path)], force=True)
    run = only_run(tmp_path)
    assert (run.read_summary(), run.read_confusions(), run.read_metrics()) == ({}, ([], []), [])


@pytest.mark.parametrize("place", ["build_training", "verify_next_step"])
def test_a_repeat_that_cannot_be_built_or_is_wrong_leaves_the_ended_run_as_it_was(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_configs([make_config(tmp_path)])
    folder = only_run(tmp_path).path
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}
    stop_at(place, ConfigError("no memory left, or wrong"), monkeypatch)
    assert run_configs([make_config(tmp_path)], force=True).code == 1
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}
    assert after == before


def test_a_run_that_another_process_looks_at_is_finished_all_the_same(tmp_path: Path) -> None:
    config = make_config(tmp_path, epochs=1)
    plan = locate(config, torch.device("cpu"), DataSearch())
    run_configs([config])
    with only_run(tmp_path).lock():
        assert runner.run(plan) == "finished"
        with pytest.raises(FgbenchError, match="in use by process"):
            runner.run(plan, force=True)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_an_interrupted_run_goes_on_bit_for_bit(
    trainer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_for(trainer, {"name": "fc", "hidden": 6, "dropout": 0.2})
    changes = {"trainer": {"name": trainer}, "model": model}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_configs([make_config(whole, **changes)])
    interrupt_at(9, monkeypatch)
    with pytest.raises(Interrupted) as interruption:
        run_configs([make_config(cut, **changes)])
    assert interruption.value.exit_code == 143
    assert only_run(cut).status()["state"] == "interrupted"
    monkeypatch.undo()
    assert run_configs([make_config(cut, **changes)]).code == 0
    assert reproducible_rows(cut) == reproducible_rows(whole)


def test_states_saved_within_an_epoch_change_nothing(tmp_path: Path) -> None:
    run_configs([make_config(tmp_path / "a")])
    run_configs([make_config(tmp_path / "b", saving={"every_steps": 2, "keep": 3})])
    assert reproducible_rows(tmp_path / "a") == reproducible_rows(tmp_path / "b")


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_run_cut_off_between_an_epochs_last_step_and_its_end_resumes_bit_for_bit(
    epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_configs([make_config(whole)])

    evaluate = epochs._evaluation_columns

    def evaluate_or_fail(training: TrainingState) -> dict:
        if training.epochs_done + 1 == epoch:
            raise MemoryError
        return evaluate(training)

    monkeypatch.setattr(epochs, "_evaluation_columns", evaluate_or_fail)
    saving = {"every_steps": 6}
    assert run_configs([make_config(cut, saving=saving)]).code == 1
    monkeypatch.undo()
    assert only_run(cut).status()["state"] == "failed"
    assert run_configs([make_config(cut, saving=saving)]).code == 0
    assert reproducible_rows(cut) == reproducible_rows(whole)


def test_ctrl_c_stops_at_the_next_step_and_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(2, monkeypatch, signal.SIGINT)
    with pytest.raises(Interrupted) as interruption:
        run_configs([make_config(tmp_path)])
    assert interruption.value.exit_code == 130
    assert (only_run(tmp_path).path / "state.pt").exists()


def test_the_time_of_an_epoch_that_was_interrupted_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OtherLoad, "__exit__", lambda *_: None)  # a quiet machine
    with monkeypatch.context() as patch:
        interrupt_at(8, patch, signal.SIGINT)
        with pytest.raises(Interrupted):
            run_configs([make_config(tmp_path)])
    assert run_configs([make_config(tmp_path)]).code == 0
    notes = [row["timing_note"] for row in only_run(tmp_path).read_metrics()]
    assert notes == [None, epochs.RESUMED, None]


def test_a_diverged_run_keeps_its_row_and_exits_with_4(tmp_path: Path) -> None:
    config = make_config(tmp_path, optimizer={"name": "sgd", "lr": 1e30}, schedule={"name": "constant"})
    assert run_configs([config]).code == 4
    run = only_run(tmp_path)
    assert run.status()["state"] == "diverged"
    assert not math.isfinite(run.read_metrics()[-1]["train_loss"])


def test_seeds_have_runs_of_their_own_and_settings_have_hashes_of_their_own(tmp_path: Path) -> None:
    configs = [make_config(tmp_path, seed=seed, epochs=epochs) for seed in (0, 1) for epochs in (1, 2)]
    assert run_configs(configs).code == 0
    names = sorted(path.parent.name for path in tmp_path.rglob("metrics.csv"))
    assert [name[:3] for name in names] == ["s0-", "s0-", "s1-", "s1-"]
    assert {name[3:] for name in names[:2]} == {name[3:] for name in names[2:]}


def test_results_in_the_way_of_a_file_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(ConfigError, match="is a file"):
        run_configs([make_config(tmp_path / "fine", seed=1), make_config(tmp_path / "results")])
    assert sorted(tmp_path.iterdir()) == [tmp_path / "results"]


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_configs([make_config(tmp_path / "results")], dry_run=True).code == 0
    assert "backprop" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_running_out_of_memory_says_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 99 bytes")

    monkeypatch.setattr("fgbench.run.epochs.train_epoch", exhausted)
    assert run_configs([make_config(tmp_path)]).code == 1
    message = capsys.readouterr().err
    assert "batch_size 8" in message
    assert only_run(tmp_path).status()["state"] == "failed"
    assert "lower batch_size" in only_run(tmp_path).status()["reason"]


def test_diagnostics_fill_their_columns_and_do_not_disturb_the_run(tmp_path: Path) -> None:
    run_configs([make_config(tmp_path / "with", diagnostics={"every": 2})])
    run_configs([make_config(tmp_path / "without")])
    diagnosed, plain = reproducible_rows(tmp_path / "with"), reproducible_rows(tmp_path / "without")
    assert [row["gradient_cosine"] is None for row in diagnosed] == [True, False, True]
    assert diagnosed[1]["gradient_cosine"] == pytest.approx(1.0, abs=1e-5)
    layers = only_run(tmp_path / "with").read_layers()
    assert [(row["epoch"], row["layer"]) for row in layers] == [("2", "0.1"), ("2", "1.0")]
    assert all(float(row["noise"]) < 1e-9 for row in layers)
    run_configs([make_config(tmp_path / "with", diagnostics={"every": 3})], force=True, resume=False)
    assert {row["epoch"] for row in only_run(tmp_path / "with").read_layers()} == {"3"}
    for mine, other in zip(diagnosed, plain, strict=True):
        assert mine["train_loss"] == other["train_loss"]


def test_metrics_after_the_saved_state_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path / "cut", saving={"every": 2})
    interrupt_at(2 * 6 + 1, monkeypatch)
    with pytest.raises(Interrupted):
        run_configs([config])
    monkeypatch.undo()
    run = only_run(tmp_path / "cut")
    assert len(run.read_metrics()) == 2
    run.append_metrics({"epoch": 3, "train_loss": 99.0})
    with (run.path / "metrics.csv").open("a") as file:
        file.write("4,0.1")
    run_configs([config])
    run_configs([make_config(tmp_path / "whole")])
    assert reproducible_rows(tmp_path / "cut") == reproducible_rows(tmp_path / "whole")
    assert json.loads((run.path / "summary.json").read_text())["epochs"] == 3


def test_damaged_metrics_are_restored_from_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(2 * 6 + 1, monkeypatch)
    with pytest.raises(Interrupted):
        run_configs([make_config(tmp_path / "damaged")])
    monkeypatch.undo()
    path = only_run(tmp_path / "damaged").path / "metrics.csv"
    header, first, second = path.read_text().splitlines()
    path.write_text(f"{header}\n{first.replace('1,', '1,9', 1)}\n{second[:9]}")
    run_configs([make_config(tmp_path / "damaged")])
    run_configs([make_config(tmp_path / "whole")])
    assert reproducible_rows(tmp_path / "damaged") == reproducible_rows(tmp_path / "whole")


@pytest.mark.parametrize("name", ["status.json", "metrics.csv", "summary.json", "config.yaml", "env.json"])
def test_a_finished_run_that_lost_a_file_comes_to_the_same_end_again(name: str, tmp_path: Path) -> None:
    run_configs([make_config(tmp_path)])
    before = (only_run(tmp_path).path / "metrics.csv").read_bytes()
    (only_run(tmp_path).path / name).write_bytes(b"\0garbage")
    assert run_configs([make_config(tmp_path)]).code == 0
    (run_folder,) = tmp_path.rglob("state.pt")
    assert (run_folder.parent / "metrics.csv").read_bytes() == before


def test_a_run_killed_after_it_diverged_does_not_train_on(tmp_path: Path) -> None:
    config = make_config(tmp_path, optimizer={"name": "sgd", "lr": 1e30}, schedule={"name": "constant"})
    run_configs([config])
    rows = len(only_run(tmp_path).read_metrics())
    only_run(tmp_path).write_status("interrupted")
    assert run_configs([config]).code == 4
    assert len(only_run(tmp_path).read_metrics()) == rows
    assert only_run(tmp_path).status()["state"] == "diverged"


def test_force_takes_a_run_over_from_another_host_without_losing_its_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_at(9, monkeypatch)
    with pytest.raises(Interrupted):
        run_configs([make_config(tmp_path)])
    monkeypatch.undo()
    run = only_run(tmp_path)
    run.host = "elsewhere"
    run.write_status("running", epoch=1)
    assert run_configs([make_config(tmp_path)]).code == 1
    assert "elsewhere" in capsys.readouterr().err
    assert run_configs([make_config(tmp_path)], force=True).code == 0
    assert "resumes after epoch 1" in capsys.readouterr().out


def test_a_state_that_does_not_fit_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_at(9, monkeypatch)
    with pytest.raises(Interrupted):
        run_configs([make_config(tmp_path)])
    monkeypatch.undo()
    run = only_run(tmp_path)
    state, _ = load_state(run.path, run.path.name)
    state["training"]["model"].popitem()
    save_state(run.path, state, keep=1)
    assert run_configs([make_config(tmp_path)]).code == 1
    message = capsys.readouterr().err
    assert "does not fit" in message
    assert "--no-resume" in message
    assert message.count("\n") == 1
    assert run_configs([make_config(tmp_path)], resume=False).code == 0


def test_a_change_of_environment_is_told_and_both_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_at(9, monkeypatch)
    with pytest.raises(Interrupted):
        run_configs([make_config(tmp_path)])
    monkeypatch.undo()
    run = only_run(tmp_path)
    run.write_env({**run.read_env(), "torch": "0.1"})
    run_configs([make_config(tmp_path)])
    assert "torch changed since this run started" in capsys.readouterr().err
    assert [env["torch"] for env in run.read_env()["earlier"]] == ["0.1"]


def test_a_second_ctrl_c_ends_at_once_and_the_run_can_be_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(self: EpochProgress) -> None:
        if self.training.step == 8:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(EpochProgress, "update", twice)
    with pytest.raises(KeyboardInterrupt):
        run_configs([make_config(tmp_path / "cut")])
    monkeypatch.undo()
    assert len(only_run(tmp_path / "cut").read_metrics()) == 1
    run_configs([make_config(tmp_path / "cut")])
    run_configs([make_config(tmp_path / "whole")])
    assert reproducible_rows(tmp_path / "cut") == reproducible_rows(tmp_path / "whole")


def test_a_signal_in_a_runs_last_moment_stops_the_runs_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = EpochProgress.report

    def report_and_kill(self: EpochProgress, row: dict) -> None:
        report(self, row)
        if row["epoch"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(EpochProgress, "report", report_and_kill)
    with pytest.raises(Interrupted):
        run_configs([make_config(tmp_path), make_config(tmp_path, seed=1)])
    assert only_run(tmp_path).status()["state"] == "finished"


def test_without_a_validation_part_its_columns_are_empty(tmp_path: Path) -> None:
    dataset = {**make_config(tmp_path).dataset.model_dump(mode="json"), "validation_fraction": 0}
    assert run_configs([make_config(tmp_path, dataset=dataset)]).code == 0
    rows = only_run(tmp_path).read_metrics()
    assert rows
    assert all(row["val_loss"] is None and row["val_accuracy"] is None for row in rows)
    assert only_run(tmp_path).read_summary()["best_validation"] is None


def test_deterministic_runs_repeat_and_what_cannot_be_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        for folder in ("a", "b"):
            assert run_configs([make_config(tmp_path / folder, deterministic=True)]).code == 0
        assert reproducible_rows(tmp_path / "a") == reproducible_rows(tmp_path / "b")
        assert only_run(tmp_path / "a").read_env()["deterministic"]

        def refuse(*_: object, **__: object) -> None:
            raise RuntimeError("scatter_cuda does not have a deterministic implementation, but you set ...")

        monkeypatch.setattr("fgbench.run.epochs.train_epoch", refuse)
        assert run_configs([make_config(tmp_path / "c", deterministic=True)]).code == 1
        assert "deterministic: true is not possible here" in capsys.readouterr().err
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_model_too_large_for_the_memory_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model fc"):
        run_configs([make_config(tmp_path / "results", model={"name": "fc", "hidden": 10**12})])
    assert list(tmp_path.iterdir()) == []


def test_timings_beside_a_busy_process_are_flagged(tmp_path: Path) -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        with OtherLoad() as load:
            time.sleep(1.0)
    finally:
        busy.kill()
        busy.wait()
    assert "CPU cores busy" in load.reason


def test_an_epoch_in_which_the_run_was_stopped_is_flagged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, save = EpochProgress.update, epochs.save_state

    def update_late(self: EpochProgress) -> None:
        update(self)
        if self.training.step == 8:
            time.sleep(1.5)  # as a SIGSTOP does

    monkeypatch.setattr("fgbench.measure.load._busy_cpu_s", lambda: None)
    monkeypatch.setattr(EpochProgress, "update", update_late)
    monkeypatch.setattr(epochs, "save_state", lambda *given: (save(*given), time.sleep(1.5)))  # not timed
    run_configs([make_config(tmp_path, epochs=2, saving={"every_steps": 3})])
    first, second = (row["timing_note"] for row in only_run(tmp_path).read_metrics())
    assert first is None
    assert second.startswith("this process stood still for 2 s")


def test_the_other_workers_of_torchrun_are_no_disturbance(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, own = iter([100.0, 104.0]), iter([10.0, 12.0])  # this one and its twin: 2 s each, in 2 s
    clock = iter([0.0, 2.0])
    monkeypatch.setattr("fgbench.measure.load._busy_cpu_s", lambda: next(busy))
    monkeypatch.setattr("fgbench.measure.load.os.times", lambda: (next(own), 0.0, 0.0, 0.0, 0.0))
    monkeypatch.setattr("fgbench.measure.load.time.perf_counter", lambda: next(clock))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with OtherLoad() as load:
        pass
    assert load.reason is None


def test_a_batch_larger_than_the_training_images_is_noted(tmp_path: Path, capsys) -> None:
    run_configs([make_config(tmp_path, batch_size=100, epochs=1)])
    assert "batch_size: 100 is more than the 48 training images, so every epoch" in capsys.readouterr().err
