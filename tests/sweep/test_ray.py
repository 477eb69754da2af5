"""Sweeps on a real Ray cluster of two nodes: the same results as without it, whatever dies in between."""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sweep_runs import BASE, TWELVE, finish, reproducible, start, wait_for, write

from fgbench.cli.app import app
from fgbench.storage.run_directory import RunDirectory
from fgbench.sweep.executor import Job, RunFlags
from fgbench.sweep.ray_node import JobResult, claim_directory, pack

pytest.importorskip("ray")
from ray.cluster_utils import Cluster

from fgbench.sweep.ray_pool import _Run

NAME = f"held-{os.getpid()}"
HELD = BASE.replace("backprop", "held:Trainer").replace("epochs: 2", f"epochs: 12\n  name: {NAME}")
HELD += "seeds: [0, 1]\n"
TRAINER = """
import signal, sys, time
from pathlib import Path
from fgbench.trainers.backprop import Backprop

state = Path(sys.argv[2].replace("/logs/", "/")).with_suffix("") / "state.pt"

class Trainer(Backprop):
    def compute_gradients(self, *batch):
        stop = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        while state.exists() and Path("hold").exists() and not (stop and stop.requested):
            time.sleep(0.02)
        return super().compute_gradients(*batch)
"""
"""Of a user's own: once there is a state file, it waits for a file called hold to go, or to be stopped."""
LOOPBACK = {"node_ip_address": "127.0.0.1", "object_store_memory": 80_000_000}
PROC = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
DETECTION = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}


class Nodes:
    """A cluster whose second node can be killed, and the commands that use it."""

    def __init__(self) -> None:
        head = LOOPBACK | {"num_cpus": 1, "include_dashboard": False, "_system_config": DETECTION}
        self.cluster = Cluster(initialize_head=True, connect=False, head_node_args=head)
        self.second = None
        self.drivers = []

    def complete(self) -> None:
        if self.second is None:
            self.second = self.cluster.add_node(num_cpus=2, num_gpus=1, **LOOPBACK)

    def kill_one(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None

    def start(self, folder: Path, *flags: str, shared: bool = True, **options):
        """A sweep into ``folder/results``; if not shared, by a path that leads there in the driver only."""
        self.drivers.append(self._start(folder, ("--ray", self.cluster.address, *flags), shared, options))
        return self.drivers[-1]

    def _start(self, folder: Path, flags: tuple[str, ...], shared: bool, options: dict):
        if shared:
            return start(folder, *flags, **options)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            own = f"/proc/self/fd/{descriptor}/results"
            return start(folder, *flags, "--results", own, pass_fds=[descriptor], **options)
        finally:
            os.close(descriptor)


@pytest.fixture(scope="module")
def all_nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        nodes = Nodes()
        yield nodes
        nodes.cluster.shutdown()


@pytest.fixture
def nodes(all_nodes: Nodes) -> Iterator[Nodes]:
    all_nodes.complete()
    yield all_nodes
    for driver in all_nodes.drivers:
        driver.kill()


@pytest.fixture(scope="module")
def twelve(tmp_path_factory) -> dict[str, list[dict]]:
    """Twelve runs made on this machine, two by two."""
    return make_here(tmp_path_factory.mktemp("twelve"), TWELVE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, list[dict]]:
    """Three runs that can be held, made on this machine without being held."""
    folder = tmp_path_factory.mktemp("whole")
    write(folder, TRAINER, "held.py")
    return make_here(folder, HELD, "--seeds", "0-2")


@pytest.fixture
def held(tmp_path) -> Path:
    """A folder whose runs wait in the middle until they are stopped, or the file hold is removed."""
    write(tmp_path, TRAINER, "held.py")
    write(tmp_path, "", "hold")
    write(tmp_path, HELD)
    return tmp_path


def make_here(folder: Path, text: str, *flags: str) -> dict[str, list[dict]]:
    write(folder, text)
    code, _, err = finish(start(folder, "--jobs", "2", *flags))
    assert (code, err) == (0, "")
    return reproducible(folder / "results")


def states(folder: Path, shared: bool) -> list[Path]:
    """The state files of the runs being made, wherever they are."""
    if shared:
        return [*folder.glob(f"results/{NAME}/*/state.pt")]
    return [*Path(tempfile.gettempdir()).glob(f"fgbench-ray-*/{NAME}/*/state.pt")]


def words(folder: Path) -> set[str]:
    """How the runs that were begun stand."""
    return {RunDirectory(path).status()["state"] for path in folder.glob(f"results/{NAME}/s*")}


def of_seeds(runs: dict[str, list[dict]], seeds: str) -> dict[str, list[dict]]:
    """The runs of some seeds, such as ``0,2``."""
    return {run: rows for run, rows in runs.items() if Path(run).name[1] in seeds.split(",")}


def logs(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in folder.glob("results/logs/*/*.log")}


@pytest.mark.nightly
def test_twelve_runs_give_what_they_give_here_and_are_skipped_the_next_time(nodes, twelve, tmp_path):
    write(tmp_path, TWELVE)
    code, out, err = finish(nodes.start(tmp_path))
    assert (code, err) == (0, "")
    assert "12 runs: 12 finished" in out
    assert reproducible(tmp_path / "results") == twelve
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"logs", "s"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*")}
    code, out, _ = finish(nodes.start(tmp_path))
    assert code == 0
    assert "12 of 12 runs have ended already, skipped" in out
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*")}
    assert after == before


@pytest.mark.parametrize(
    "shared",
    [
        pytest.param(True, id="shared", marks=pytest.mark.nightly),
        pytest.param(False, id="unshared", marks=PROC),
    ],
)
def test_the_runs_of_a_node_that_dies_are_made_by_another(nodes, whole, held, shared):
    with (held / "out").open("w") as out:
        process = nodes.start(held, shared=shared, stdout=out)
    wait_for(lambda: len(states(held, shared)) == 2)
    nodes.kill_one()
    wait_for(lambda: "lost its node, started again (1 of 3)" in (held / "out").read_text())
    (held / "hold").unlink()
    code, _, err = finish(process)
    assert (code, err) == (0, "")
    assert reproducible(held / "results") == of_seeds(whole, "0,1")
    for run, text in logs(held).items():
        lost = f"{NAME}/{run}: lost its node" in (held / "out").read_text()
        assert ("resumes after epoch" in text) == (shared and lost)
        assert all(text.count(f"epoch {epoch}/12  loss") == 1 for epoch in range(1, 13)), text
    assert {path.name for path in (held / "results").iterdir()} == {"logs", NAME}
    assert states(held, shared=False) == []  # what the killed node left is gone


@pytest.mark.nightly
def test_a_killed_driver_takes_its_runs_along_and_its_repetition_makes_none_twice(nodes, twelve, tmp_path):
    write(tmp_path, TWELVE)
    results = tmp_path / "results"
    killed = nodes.start(tmp_path)

    def finished() -> set[str]:
        paths = [path.parent for path in results.rglob("summary.json")]
        return {path.name for path in paths if RunDirectory(path).status()["state"] == "finished"}

    wait_for(lambda: len(finished()) >= 3)
    killed.kill()
    killed.communicate()
    done, before = finished(), logs(tmp_path)
    assert len(done) < 12
    code, out, err = finish(nodes.start(tmp_path))
    assert (code, err) == (0, "")
    assert reproducible(results) == twelve
    assert "of 12 runs have ended already, skipped" in out
    for run, text in logs(tmp_path).items():
        assert text.count("epoch 2/2  loss") == 1, text  # every epoch was trained once
        if run in done:  # and what was finished not even started
            assert text.startswith(before[run])
            assert text.count("$ fgbench run") == 1


@pytest.mark.parametrize(
    "shared",
    [pytest.param(True, id="shared"), pytest.param(False, id="unshared", marks=[PROC, pytest.mark.nightly])],
)
def test_ctrl_c_saves_every_run_and_the_same_command_goes_on(nodes, whole, held, shared):
    process = nodes.start(held, "--seeds", "0-2", "--gpus-per-run", "0.5", "--jobs", "3", shared=shared)
    wait_for(lambda: len(states(held, shared)) == 2)  # two share the GPU, the third waits for it
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert "the same command resumes from here" in err
    assert len(states(held, shared=True)) == 2
    seeds = ",".join(sorted(path.parent.name[1] for path in states(held, shared=True)))  # Ray chose which
    for path in states(held, shared=True):
        directory = RunDirectory(path.parent)
        assert directory.status()["state"] == "interrupted"
        assert directory.status()["reason"] == "SIGINT"
        assert directory.read_env()["variables"]["CUDA_VISIBLE_DEVICES"] == "0"

    if not shared:  # and a driver killed while nodes have its runs leaves them as they were
        killed = nodes.start(held, "--seeds", seeds, shared=False)
        wait_for(lambda: words(held) == {"running"})
        killed.kill()
        killed.communicate()
        wait_for(lambda: words(held) == {"interrupted"})
    (held / "hold").unlink()
    code, _, err = finish(nodes.start(held, "--seeds", seeds, shared=shared))
    assert (code, err) == (0, "")
    assert reproducible(held / "results") == of_seeds(whole, seeds)
    for text in logs(held).values():
        assert text.count("resumes after epoch") == 1
        assert all(text.count(f"epoch {epoch}/12  loss") == 1 for epoch in range(1, 13)), text


def test_a_run_directory_is_taken_over_from_a_node_that_died_but_not_from_a_process(tmp_path, monkeypatch):
    monkeypatch.setattr("fgbench.sweep.ray_node.RELEASE_S", 0.3)
    directory = RunDirectory(tmp_path / "run").create()
    directory.host = "gone"
    directory.write_status("running", epoch=1, epochs=2)
    with directory.lock(force=True):
        claim_directory(RunDirectory(directory.path), lambda: False)
        assert RunDirectory(directory.path).status()["state"] == "running"
    claim_directory(RunDirectory(directory.path), lambda: False)
    assert RunDirectory(directory.path).status()["reason"] == "its node died"


def test_what_a_node_sends_is_all_of_the_run_and_nothing_of_the_one_before_stays(tmp_path):
    """A node that does not see the results folder; the run before had diagnostics, this one TensorBoard."""
    here, there = (RunDirectory(tmp_path / name / "run").create() for name in ("here", "there"))
    for name in ("metrics.csv", "layers.csv", "confusion.csv", "state.pt"):
        (here.path / name).write_text("old")
    (there.path / "metrics.csv").write_text("new")
    (there.path / "tensorboard").mkdir()
    (there.path / "tensorboard" / "events.out.1").write_bytes(b"new")
    there.write_status("finished")
    job = Job("", tmp_path / "here", Path("run"), RunFlags())
    job.log.parent.mkdir()
    run = _Run(job, None, None, 0)
    run._directory = here
    run._gather(here, JobResult(0, files=pack(there)))
    run.release()
    found = {path.relative_to(here.path).as_posix() for path in here.path.rglob("*") if path.is_file()}
    assert found - {".lock"} == {"metrics.csv", "status.json", "tensorboard/events.out.1"}
    assert (here.path / "metrics.csv").read_text() == "new"
    assert here.status()["state"] == "finished"


@pytest.mark.nightly
@pytest.mark.skipif(torch.cuda.is_available(), reason="wants a GPU that is not there")
def test_the_device_is_the_clusters_and_what_fails_there_is_told(nodes, tmp_path):
    write(tmp_path, BASE)
    code, _, err = finish(nodes.start(tmp_path, "-o", "device=auto", shared=False))
    assert code == 3
    assert "failed: device: cuda is not available; this machine has 0 CUDA devices (exit code 2)" in err
    (log,) = tmp_path.glob("results/logs/s/*.log")
    assert "device: cuda is not available" in log.read_text()


@pytest.mark.nightly
def test_a_run_too_large_for_every_node_is_refused(nodes, tmp_path):
    write(tmp_path, BASE)
    code, _, err = finish(nodes.start(tmp_path, "--cpus-per-run", "64"))
    assert code == 2
    assert err == "fgbench: no node of the Ray cluster has room for a run with 64 CPUs and 0 GPUs\n"
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--ray", "127.0.0.1:9"],
            "--ray 127.0.0.1:9: no Ray answers there ([Errno 111] Connection refused)",
        ),
        (["--ray", "somewhere"], "--ray somewhere: expected auto or host:port, such as 127.0.0.1:6379"),
        (["--cpus-per-run", "2"], "--cpus-per-run and --gpus-per-run go with --ray"),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path, capsys, monkeypatch, flags, message):
    assert refuse(tmp_path, capsys, monkeypatch, BASE, flags) == f"fgbench: {message}\n"


def test_exclusive_runs_stay_on_this_machine(tmp_path, capsys, monkeypatch):
    told = refuse(tmp_path, capsys, monkeypatch, BASE + "exclusive: true\n", ["--ray", "auto"])
    assert told.startswith("fgbench: s.yaml: exclusive: true runs one at a time on this machine")


def test_a_missing_ray_is_told_with_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "fgbench.sweep.ray_pool", raising=False)
    told = refuse(tmp_path, capsys, monkeypatch, BASE, ["--ray", "auto"])
    assert told == 'fgbench: --ray needs Ray: pip install "fgbench[ray]"\n'


def refuse(folder: Path, capsys, monkeypatch, text: str, flags: list[str]) -> str:
    monkeypatch.chdir(folder)
    write(folder, text)
    with pytest.raises(SystemExit) as exit_:
        app(["sweep", "s.yaml", *flags])
    assert exit_.value.code == 2
    assert not (folder / "results").exists()
    return capsys.readouterr().err
