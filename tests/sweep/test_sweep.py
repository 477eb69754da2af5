"""Sweeps: which runs a file stands for, and that each is made once whatever happens in between."""

import signal
from pathlib import Path

import pytest
from sweep_runs import BASE, TWELVE, call, finish, reproducible, start, wait_for, write

from fgbench.analysis.series import label_configs
from fgbench.config.config import config_hash
from fgbench.config.sweep import load_sweep
from fgbench.errors import ConfigError
from fgbench.run.runner import run_configs
from fgbench.storage.run_directory import RunDirectory


def sweep(folder: Path, text: str, **options):
    return load_sweep(write(folder, text), **options)


def mistakes(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        sweep(folder, text)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


@pytest.fixture(scope="module")
def twelve(tmp_path_factory) -> tuple[Path, str]:
    """Twelve runs made two by two without an interruption, and what the command said."""
    folder = tmp_path_factory.mktemp("twelve")
    write(folder, TWELVE)
    code, out, err = call(folder, "--jobs", "2")
    assert (code, err) == (0, "")
    return folder, out


# ---- files


def test_axes_are_crossed_and_seeds_are_repeated(tmp_path):
    runs = sweep(tmp_path, TWELVE).configs
    assert len(runs) == 12
    assert {(run.trainer.name, run.optimizer.lr, run.seed) for run in runs} == {
        (trainer, lr, seed)
        for trainer in ("backprop", "forward-gradient")
        for lr in (0.001, 0.01, 0.1)
        for seed in (0, 1)
    }
    assert {run.name for run in runs} == {"s"}
    assert len({config_hash(run, "cpu") for run in runs}) == 6


def test_axes_in_a_zip_move_together(tmp_path):
    text = BASE + "axes:\n  batch_size: [4, 8]\n  zip: {epochs: [1, 2], optimizer.lr: [0.1, 0.2]}\n"
    runs = sweep(tmp_path, text).configs
    assert [(run.batch_size, run.epochs, run.optimizer.lr) for run in runs] == [
        (4, 1, 0.1),
        (4, 2, 0.2),
        (8, 1, 0.1),
        (8, 2, 0.2),
    ]


def test_exclusions_leave_out_what_matches_in_every_key_and_forgive_its_mistakes(tmp_path):
    text = BASE + (
        "axes:\n  model: [fc, resnet18]\n  trainer: [backprop, activity-forward-gradient]\n  epochs: [1, 2]\n"
        "exclude:\n  - {model: resnet18, trainer: activity-forward-gradient}\n"
        "  - {model: fc, epochs: [2, 3]}\n"
    )
    runs = sweep(tmp_path, text).configs
    assert [(run.model.name, run.trainer.name, run.epochs) for run in runs] == [
        ("fc", "backprop", 1),
        ("fc", "activity-forward-gradient", 1),
        ("resnet18", "backprop", 1),
        ("resnet18", "backprop", 2),
    ]


def test_a_base_of_files_keeps_their_names_and_overrides_win(tmp_path):
    for name in ("b", "a"):
        write(tmp_path, "dataset: mnist\nmodel: fc\ntrainer: backprop\n", f"base_{name}.yaml")
    loaded = sweep(tmp_path, "base: base_*.yaml\naxes: {epochs: [1, 2]}\n", overrides=["epochs=3"], seeds=[4])
    assert [(run.name, run.epochs, run.seed) for run in loaded.configs] == [
        ("base_a", 3, 4),
        ("base_b", 3, 4),
    ]


def test_every_mistake_is_told_at_once_with_its_line(tmp_path):
    text = BASE + (
        "axes:\n  trainer: [backprop, bakprop]\n  optimizer.lr:\n    - 0.1\n    - -1\n"
        "  epoch: [1]\nseeds: [0, 1]\n"
    )
    told = mistakes(tmp_path, text)
    assert len(told) == 3
    assert told[0].startswith("s.yaml:9: trainer.name: unknown trainer 'bakprop' (did you mean 'backprop'?)")
    assert told[1] == "s.yaml:12: optimizer.lr: got -1, expected greater than 0"
    assert told[2].startswith("s.yaml:13: epoch: unknown key (did you mean 'epochs'?)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("axis: {}\n", "axis: unknown key (did you mean 'axes'?)"),
        (
            "axes: {epochs: 3}\n",
            "axes.epochs: got 3, expected a list of values, or {log: [first, last, count]}",
        ),
        ("axes: {optimizer.lr: {log: [0, 1, 3]}}\n", "axes.optimizer.lr: got a block"),
        ("axes: {zip: {epochs: [1, 2], batch_size: [1]}}\n", "need as many values each, got 2, 1"),
        ("exclude: [{epochs: 7}]\n", "exclude.0: matches no run"),
        ("exclude: [{epochs: 2}]\n", "every run is excluded"),
        ("seeds: []\n", "seeds: got a list"),
        ("seeds: [-1]\n", "seeds.0: got -1"),
        ("tune: {keys: {optimizer.lr: {log: [1]}}}\n", "tune.keys.optimizer.lr: got a block"),
        (f"axes: {{seed: {[*range(400)]}, epochs: {[*range(1, 400)]}}}\n", "more than 100,000 combinations"),
    ],
)
def test_mistakes_of_a_sweep_file_are_named(tmp_path, text, message):
    assert any(message in line for line in mistakes(tmp_path, BASE + text))


def test_the_config_of_a_run_is_told_to_be_one(tmp_path):
    [mistake] = mistakes(tmp_path, "dataset: mnist\nmodel: fc\ntrainer: backprop\n")
    assert "the config of a run, not a sweep file: `fgbench run " in mistake


def test_labels_name_what_differs(tmp_path):
    labels = label_configs(sweep(tmp_path, TWELVE).configs)
    assert labels[0] == labels[1] == "fc on synthetic, backprop, lr=0.001"
    assert len(set(labels)) == 6


def test_shipped_sweeps_are_valid():
    folder = Path(__file__).parents[2] / "configs" / "sweeps"
    counts = {path.stem: len(load_sweep(path).configs) for path in folder.glob("*.yaml")}
    assert counts["study"] == 24 * 3
    assert set(counts) >= {"study", "baydin", "fournier", "learning_rate"}


# ---- runs


def test_a_dry_run_lists_and_estimates_and_writes_nothing(tmp_path):
    write(tmp_path, TWELVE)
    code, out, _ = call(tmp_path, "--dry-run", "--jobs", "2")
    assert code == 0
    assert out.count("forward-gradient, lr=") == 6
    assert "12 runs, 0 finished; about" in out
    assert " MiB" in out
    assert not (tmp_path / "results").exists()


def test_a_dry_run_with_force_estimates_what_would_be_repeated(tmp_path):
    run_configs(sweep(tmp_path, BASE, overrides=[f"results_dir={tmp_path}/results"]).configs)
    for flags, told in (((), "1 finished; about 0.0 s left"), (("--force",), "1 finished, to be repeated; ")):
        _, out, _ = call(tmp_path, "--dry-run", *flags)
        assert told in out
        assert (" MiB" in out) == bool(flags)


def test_finished_runs_are_skipped_and_others_added(twelve):
    folder, out = twelve
    assert out.count(": finished\n") == 12
    assert "12 runs: 12 finished" in out
    before = {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("metrics.csv")}
    assert len(before) == 12
    code, out, _ = call(folder, "--seeds", "0-2", "-o", "optimizer.lr=0.01")
    assert code == 0
    assert "4 of 6 runs have ended already, skipped" in out
    assert out.count(": finished\n") == 2
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_a_killed_driver_leaves_nothing_behind_and_its_repetition_makes_no_run_twice(twelve, tmp_path):
    write(tmp_path, TWELVE)
    results = tmp_path / "results"
    killed = start(tmp_path, "--jobs", "2")

    def finished() -> set[Path]:
        return {path.parent for path in results.rglob("summary.json")}

    wait_for(lambda: len(finished()) >= 3)
    killed.kill()
    killed.communicate()
    done = finished()
    logs = {path: path.read_bytes() for path in results.rglob("*.log")}
    code, _, err = finish(start(tmp_path, "--jobs", "2"))
    assert (code, err) == (0, "")
    whole = reproducible(twelve[0] / "results")
    mine = reproducible(results)
    assert len(mine) == 12
    assert all(mine[run] == rows for run, rows in whole.items() if run in mine)
    assert set(mine) <= set(whole)
    for run in done:  # not started again
        log = results / "logs" / run.relative_to(results).with_suffix(".log")
        assert log.read_bytes().startswith(logs[log])
        assert log.read_text().count("$ fgbench run") == 1
    for log in results.rglob("*.log"):  # and every epoch was trained once
        text = log.read_text()
        assert text.count("epoch 2/2  loss") == 1, text


def test_failed_runs_are_told_with_their_logs_and_the_others_go_on(tmp_path):
    write(tmp_path, BASE + "axes:\n  epochs: [1, 2, 3]\n")
    code, _, _ = call(tmp_path, "-o", "epochs=2")
    assert code == 0
    (run,) = (tmp_path / "results" / "s").iterdir()
    (run / "status.json").write_text('{"state": "failed"}')
    for state in run.glob("*.pt"):
        state.write_bytes(b"damaged")
    code, out, err = call(tmp_path)
    assert code == 3
    assert out.count(": finished\n") == 2
    assert "no usable state is left" in err
    assert f"log: {tmp_path}/results/logs/s/{run.name}.log" in err


def test_ctrl_c_saves_every_run_and_the_same_command_goes_on(tmp_path):
    write(tmp_path, BASE + "seeds: [0, 1]\n")
    flags = ("--jobs", "2", "-o", "epochs=100000")
    process = start(tmp_path, *flags)
    results = tmp_path / "results"
    wait_for(lambda: len([*results.rglob("state.pt")]) == 2)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert "the same command resumes from here" in err
    for path in results.rglob("status.json"):
        status = RunDirectory(path.parent).status()
        assert (status["state"], status["reason"]) == ("interrupted", "SIGINT")


def test_exclusive_runs_are_made_one_at_a_time(tmp_path):
    write(tmp_path, BASE + "exclusive: true\n")
    code, _, err = call(tmp_path, "--jobs", "2")
    assert code == 2
    assert "exclusive: true runs one at a time" in err
