"""``fgbench status``: what runs are doing, how fast, and how long they will take."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta

import pytest
from fake_records import make_record
from fake_results import make_run
from typer.testing import CliRunner

from fgbench.analysis.status import duration, progress
from fgbench.cli.app import app


def rows(results, *arguments):
    done = CliRunner().invoke(app, ["status", str(results), "--format", "csv", *arguments])
    assert done.exit_code == 0, done.output
    return {row["run"].split("/")[0]: row for row in csv.DictReader(io.StringIO(done.stdout))}


def age(run, **ago):
    """Make a run's last sign of life older."""
    status = json.loads((run / "status.json").read_text())
    status["heartbeat"] = (datetime.now(UTC) - timedelta(**ago)).isoformat()
    (run / "status.json").write_text(json.dumps(status))


def test_progress_and_time_left_follow_from_warm_epochs_with_evaluation():
    run = make_record("backprop", state="running", epoch_time_s=[9.0, 2.0, 2.0], eval_time_s=0.5)
    run.config["epochs"] = 10
    seen = progress(run)
    assert (seen.epoch, seen.epochs, seen.epoch_s, seen.left_s) == (3, 10, 2.5, 17.5)


@pytest.mark.parametrize("state", ["finished", "diverged", "failed", "interrupted"])
def test_only_a_running_run_has_time_left(state):
    assert progress(make_record("backprop", state=state)).left_s is None


def test_a_run_without_an_epoch_yet_has_no_speed():
    run = make_record("backprop", state="running")
    run = type(run)(**{**run.__dict__, "metrics": run.metrics.iloc[:0]})
    seen = progress(run)
    assert (seen.epoch, seen.epoch_s, seen.left_s) == (0, None, None)


def test_a_run_not_heard_of_is_shown_as_interrupted(tmp_path):
    make_run(tmp_path, name="alive", state="running", epochs=2)
    age(make_run(tmp_path, name="stale", state="running", epochs=2), minutes=11)
    found = rows(tmp_path)
    assert found["alive"]["state"] == "running"
    assert found["alive"]["time left"] != "-"
    assert found["stale"]["state"] == "interrupted"
    assert "no sign of life" in found["stale"]["reason"]
    assert found["stale"]["last heard"] == "11 min 0 s ago"


def test_runs_at_work_come_first_and_all_are_counted(tmp_path):
    make_run(tmp_path, name="a")
    make_run(tmp_path, name="b", state="failed", status={"reason": "disk\nfull"})
    make_run(tmp_path, name="c", state="running")
    assert list(rows(tmp_path)) == ["c", "b", "a"]
    assert rows(tmp_path)["b"]["reason"] == "disk full"
    text = CliRunner().invoke(app, ["status", str(tmp_path)]).stdout
    assert "3 runs: 1 running, 1 finished, 1 failed. The last of those running is done in about" in text


def test_a_damaged_status_file_does_not_stop_the_list(tmp_path):
    run = make_run(tmp_path, name="a", state="running")
    (run / "status.json").write_text("{")
    make_run(tmp_path, name="b")
    assert rows(tmp_path)["a"]["state"] == "interrupted"
    assert rows(tmp_path)["a"]["last heard"] == "-"


@pytest.mark.parametrize(
    ("lost", "why"), [("config.yaml", "has no config.yaml"), ("metrics.csv", "has no config.yaml")]
)
def test_a_run_that_cannot_be_read_is_listed_with_the_reason(tmp_path, caplog, lost, why):
    make_run(tmp_path, name="b")
    run = make_run(tmp_path, name="a")
    for name in {"config.yaml", lost}:
        (run / name).unlink()
    assert (rows(tmp_path)["a"]["state"], rows(tmp_path)["a"]["reason"]) == ("unreadable", why)
    done = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert "1 run: 1 finished. 1 more cannot be read." in done.stdout
    assert "this run is left out" in caplog.text


@pytest.mark.parametrize("epochs", [None, 0, 2.5, "many", True])
def test_a_config_without_a_number_of_epochs_is_listed_as_unreadable(tmp_path, epochs):
    make_run(tmp_path, name="a", planned=3)
    config = next(tmp_path.rglob("config.yaml"))
    config.write_text(config.read_text().replace("epochs: 3", f"epochs: {json.dumps(epochs)}"))
    make_run(tmp_path, name="b")
    found = rows(tmp_path)
    assert found["a"]["state"] == "unreadable"
    assert found["a"]["reason"].startswith("config.yaml: epochs: expected a whole number from 1, got ")
    assert found["b"]["state"] == "finished"


@pytest.mark.parametrize(("old", "new"), [("epoch,", "epoc,"), ("\n1,", "\n,"), ("\n1,", "\n0,")])
def test_rows_without_their_epoch_are_damaged(tmp_path, old, new):
    metrics = make_run(tmp_path, name="a") / "metrics.csv"
    metrics.write_text(metrics.read_text().replace(old, new, 1))
    found = rows(tmp_path)["a"]
    assert (found["state"], found["epoch"]) == ("failed", "0/5")
    assert found["reason"] == "metrics.csv is damaged after epoch 0 of 5"


def test_no_runs_is_an_error_that_tells_how_to_make_one(tmp_path):
    done = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert done.exit_code == 2
    assert "fgbench run" in done.stderr


def test_durations_are_told_in_two_units():
    assert [duration(s) for s in (-1, 0.4, 59.6, 3599, 86399)] == [
        *("0 s", "0 s", "1 min 0 s", "59 min 59 s", "23 h 59 min")
    ]
