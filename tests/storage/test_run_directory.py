"""The run directory: nothing is lost, nothing is interleaved, and what is read is what was written."""

import errno
import json
import math
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fgbench.errors import ConfigError, FgbenchError
from fgbench.storage import run_directory as results
from fgbench.storage.files import atomic_write
from fgbench.storage.metrics import METRICS
from fgbench.storage.run_directory import RunDirectory, run_path


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "name" / "s0-0123abcd").create()


def edit_status(run, **fields):
    """Rewrite status.json as another process would have left it."""
    run.write_status("running")
    run._write_json("status.json", {**run.status(), **fields})


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_floats_read_back_bit_for_bit(run):
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, math.inf, math.nan]
    for epoch, value in enumerate(values, 1):
        run.append_metrics({"epoch": epoch, "train_loss": value})
    read = [row["train_loss"] for row in run.read_metrics()]
    assert [struct.pack("d", value) for value in read] == [struct.pack("d", value) for value in values]


def test_a_summary_is_json_even_if_a_value_is_no_number(run):
    run.write_summary({"final": {"train_loss": math.nan, "lr": 0.5}, "accuracies": [math.inf, 1]})

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    read = json.loads((run.path / "summary.json").read_text(), parse_constant=refuse)
    assert read == run.read_summary() == {"final": {"train_loss": None, "lr": 0.5}, "accuracies": [None, 1]}


def test_columns_are_in_fixed_order_and_absent_values_are_empty(run):
    run.append_metrics(
        {"train_loss": 0.5, "epoch": 1, "nvml_memory_mib": None, "timing_note": 'busy:\n"make", -j'}
    )
    header, row = (run.path / "metrics.csv").read_text().splitlines()
    assert tuple(header.split(",")) == METRICS
    assert row.startswith("1,0.5,,")
    read = run.read_metrics()[0]
    assert read["timing_note"] == 'busy: "make", -j'
    assert [column for column in METRICS if read[column] is not None] == [
        "epoch",
        "train_loss",
        "timing_note",
    ]


def test_a_process_that_does_not_write_changes_and_holds_nothing(tmp_path):
    place = tmp_path / "file"
    place.write_text("in the way")
    other = RunDirectory(place / "run", writes=False).create()
    other.check_place()
    with other.lock(), other.lock():
        other.append_metrics({"epoch": 1})
        other.write_metrics([])
        other.write_config("seed: 0")
        other.write_env({})
        other.write_summary({})
        other.write_status("running")
    assert list(tmp_path.iterdir()) == [place]


def test_an_unknown_column_is_refused(run):
    with pytest.raises(ValueError, match="train_los"):
        run.append_metrics({"epoch": 1, "train_los": 0.5})


@pytest.mark.parametrize("cut", [1, 2, 20, 24])
def test_a_torn_last_line_is_left_out_and_overwritten(run, cut):
    for epoch in (1, 2):
        run.append_metrics({"epoch": epoch, "train_loss": 1 / epoch})
    path = run.path / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-cut])
    assert [row["epoch"] for row in run.read_metrics()] == [1]
    run.append_metrics({"epoch": 2, "train_loss": 0.25})
    assert [row["train_loss"] for row in run.read_metrics()] == [1.0, 0.25]


@pytest.mark.parametrize(
    "damage", [b"\0" * 40 + b"\n", b"3,0.1\n", b"3," + b"," * 18 + b"x,y\n", b"\xff\xfe\n", b"\n"]
)
def test_reading_stops_at_a_damaged_line(run, damage):
    run.append_metrics({"epoch": 1, "train_loss": 1.0})
    with (run.path / "metrics.csv").open("ab") as file:
        file.write(damage)
    assert [row["epoch"] for row in run.read_metrics()] == [1]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("quote", [b"", b'"'])
def test_metrics_saved_by_another_tool_read_alike(run, mark, end, quote):
    for epoch in (1, 2):
        run.append_metrics({"epoch": epoch, "train_loss": 0.1 * epoch, "timing_note": "busy, by others"})
    before, path = run.read_metrics(), run.path / "metrics.csv"
    head, rest = path.read_bytes().split(b"\n", 1)
    head = b",".join(quote + name + quote for name in head.split(b","))
    path.write_bytes(mark + (head + b"\n" + rest).replace(b"\n", end))
    assert run.read_metrics() == before
    run.append_metrics({"epoch": 3})
    assert [row["epoch"] for row in run.read_metrics()] == [1, 2, 3]


def test_rows_written_at_once_or_one_by_one_are_the_same_bytes(run):
    rows = [{"epoch": 1, "train_loss": 1 / 3}, {"epoch": 2, "train_loss": math.inf, "timing_note": "a, b"}]
    for row in rows:
        run.append_metrics(row)
    appended = (run.path / "metrics.csv").read_bytes()
    run.write_metrics(run.read_metrics())
    assert (run.path / "metrics.csv").read_bytes() == appended
    run.write_metrics(rows[:1])
    assert [row["epoch"] for row in run.read_metrics()] == [1]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    atomic_write(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        FgbenchError, match=r"cannot write .*summary\.json: No space left on device; .*intact"
    ):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_row_that_does_not_fit_on_the_disk_leaves_the_rows_before(run):
    run.append_metrics({"epoch": 1, "train_loss": 1.0})
    before = (run.path / "metrics.csv").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))
    try:
        with pytest.raises(FgbenchError, match=r"cannot write .*metrics\.csv: File too large"):
            run.append_metrics({"epoch": 2, "train_loss": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (run.path / "metrics.csv").read_bytes() == before
    run.append_metrics({"epoch": 2, "train_loss": 0.5})
    assert len(run.read_metrics()) == 2


@pytest.mark.parametrize("folder", ["../elsewhere", "/tmp/x", "a/../../b", "", "a\0b"])
def test_run_folders_cannot_leave_the_results_folder(tmp_path, folder):
    with pytest.raises(ConfigError, match="inside the results folder"):
        run_path(tmp_path, folder)


def test_a_results_path_that_is_a_file_is_a_config_error(tmp_path):
    (tmp_path / "results").write_text("mine")
    with pytest.raises(ConfigError, match="results is a file, not a folder"):
        RunDirectory(tmp_path / "results" / "name" / "s0-0123abcd").create()
    assert (tmp_path / "results").read_text() == "mine"


def test_status_of_a_live_run_is_running(run):
    run.write_status("running", epoch=3, epochs=10)
    status = run.status()
    assert (status["state"], status["epoch"], status["pid"]) == ("running", 3, os.getpid())


def test_status_of_a_run_whose_process_died_is_interrupted(run):
    edit_status(run, pid=dead_pid())
    status = run.status()
    assert status["state"] == "interrupted"
    assert "was killed" in status["reason"]


@pytest.mark.parametrize(
    ("heartbeat", "state"), [(None, "running"), ("2020-01-01T00:00:00+00:00", "interrupted")]
)
def test_a_run_on_another_host_is_judged_by_its_heartbeat(run, heartbeat, state):
    edit_status(run, host="elsewhere", **({"heartbeat": heartbeat} if heartbeat else {}))
    assert run.status()["state"] == state


@pytest.mark.parametrize("content", ["", "[]", "{", '{"state": "flying"}', "[" * 100_000])
def test_an_unreadable_status_is_interrupted(run, content):
    (run.path / "status.json").write_text(content)
    assert run.status()["state"] == "interrupted"


def test_the_heartbeat_is_renewed_only_when_due(run, monkeypatch):
    run.write_status("running", epoch=1)
    written = (run.path / "status.json").stat().st_ino
    run.heartbeat()
    assert (run.path / "status.json").stat().st_ino == written
    monkeypatch.setattr(results, "HEARTBEAT_EVERY_S", 0.0)
    run.heartbeat()
    assert (run.path / "status.json").stat().st_ino != written
    assert run.status()["epoch"] == 1


def test_a_second_process_is_told_who_holds_the_run_and_a_killed_one_holds_nothing(run):
    code = "import sys, time; from fgbench.storage.run_directory import RunDirectory\n"
    code += "with RunDirectory(sys.argv[1]).lock(): print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(FgbenchError, match=f"in use by process {holder.pid} on {run.host}"), run.lock():
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with run.lock():
                return
        except FgbenchError:
            time.sleep(0.05)
    pytest.fail("a dead process still holds the run directory")


def test_a_holder_that_has_not_yet_said_its_name_is_waited_for(run):
    with run.lock(), (run.path / ".lock").open("r+") as file:
        name = file.read()
        file.truncate(0)
        threading.Timer(0.1, lambda: (run.path / ".lock").write_text(name)).start()
        with pytest.raises(FgbenchError, match=f"process {os.getpid()} on"), RunDirectory(run.path).lock():
            pass


def test_a_run_of_another_host_is_refused_unless_forced(run):
    edit_status(run, host="elsewhere", pid=7)
    with pytest.raises(FgbenchError, match=r"process 7 on elsewhere.*--force"), run.lock():
        pass
    with run.lock(force=True):
        run.write_status("running")


def test_locking_clears_what_a_killed_writer_left(run):
    (run.path / "state.pt.123.tmp").write_text("half")
    with run.lock():
        assert not list(run.path.glob("*.tmp"))


def test_writing_needs_no_torch():
    code = "import sys, fgbench.storage.run_directory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_read_only_folder_is_one_clear_line(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    Path(tmp_path).chmod(0o500)
    with pytest.raises(ConfigError, match="cannot create"):
        RunDirectory(tmp_path / "name").create()


@pytest.mark.parametrize("races", [40, pytest.param(400, marks=pytest.mark.nightly)])
def test_processes_that_make_one_new_folder_together_do_not_take_it_for_a_file(tmp_path, races):
    """A folder made by another process between two looks at the place is no file in the way."""
    for race in range(races):
        place = RunDirectory(tmp_path / str(race) / "name" / "s0-00000000")
        go_read, go_write = os.pipe()
        children = []
        for _ in range(4):
            if not (child := os.fork()):
                os.close(go_write)
                os.read(go_read, 1)  # returns when the parent closes its end: all start at once
                try:
                    place.create()
                    with place.lock():
                        os._exit(0)
                except FgbenchError as error:
                    os._exit(0 if "in use by" in str(error) else 1)
                except BaseException:
                    os._exit(2)
            children.append(child)
        os.close(go_read)
        os.close(go_write)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert codes == [0] * 4, f"race {race}"
