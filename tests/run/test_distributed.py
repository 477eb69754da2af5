"""Properties of runs that several workers make together: they equal one process; gradients stay at home."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import distributed_workers as workers
import numpy as np
import pytest
import yaml
from run_directories import only_run

from fgbench import load_model

IMAGES = {"name": "synthetic", "shape": [1, 16, 16], "classes": 3, "train": 60, "test": 12}
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["distributed_workers", "fgbench.run.runner", "fgbench.cli.app"])
TIMEOUT_S = 60


def start(function, *args, size: int = 2) -> list:
    """What the function gives in each of ``size`` workers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = CONTEXT.Queue()
    processes = [
        CONTEXT.Process(
            target=workers.run_worker, args=(rank, size, port, queue, function, *args), daemon=True
        )
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    try:
        results = dict(queue.get(timeout=TIMEOUT_S) for _ in range(size))
    finally:
        for process in processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
    return [results[rank] for rank in range(size)]


def settings(**changes) -> dict:
    trainer = changes.pop("trainer", "backprop")
    return {
        "name": "shared",
        "seed": 7,
        "dataset": IMAGES,
        "model": {"name": "fc", "hidden": 6},
        "trainer": {"name": trainer} if isinstance(trainer, str) else trainer,
        "optimizer": {"name": "sgd", "lr": 1e-3},
        "batch_size": 8,
        "epochs": 1,
    } | changes


RANK_ONE = {"name": "forward-gradient", "guess": "rademacher", "structure": "rank1", "tangents": 2}
MODELS = {
    "fc": {"name": "fc", "hidden": 6},
    "cnn": {"name": "cnn", "width": 4, "hidden": 8},
    "group": {"name": "resnet18", "width": 4, "normalization": "group"},
}
SHARED = {
    "backprop": "backprop",
    "recompute": {"name": "backprop", "recompute": True},
    "full": {"name": "forward-gradient", "tangents": 3, "chunk": 2},
    "projection": {"name": "forward-gradient", "tangents": 3, "combine": "projection"},
    "exact output": {"name": "forward-gradient", "exact_output": True},
    "rank-one": RANK_ONE,
    "zeroth-order": {"name": "zeroth-order", "tangents": 2, "epsilon": 1e-2},
    "zeroth rank-one": RANK_ONE | {"name": "zeroth-order", "epsilon": 1e-2},
}
CASES = [
    *(("fc", trainer) for trainer in SHARED),
    *((model, trainer) for model in ("cnn", "group") for trainer in ("backprop", "full", "rank-one")),
]


@pytest.fixture(scope="module")
def sharded() -> dict:
    """Every case on one process and on two, by its name: (alone, [rank 0, rank 1])."""
    cases = {
        f"{model} {trainer}": settings(
            model=MODELS[model], trainer=SHARED[trainer], dataset=IMAGES | {"augment": True}
        )
        for model, trainer in CASES
    }
    alone = workers.train_cases(cases, 3)
    together = start(workers.train_cases, cases, 3)
    return {name: (alone[name], [each[name] for each in together]) for name in cases}


@pytest.mark.parametrize(("model", "trainer"), CASES)
def test_shards_of_a_batch_equal_the_whole_batch(model: str, trainer: str, sharded: dict) -> None:
    alone, together = sharded[f"{model} {trainer}"]
    assert np.array_equal(together[0]["after"], together[1]["after"])
    step = np.linalg.norm(alone["after"] - alone["before"])
    assert step > 0
    assert np.linalg.norm(together[0]["after"] - alone["after"]) < 1e-4 * step
    assert together[0]["means"] == together[1]["means"] == pytest.approx(alone["means"], rel=1e-4)


@pytest.mark.parametrize(
    "trainer", ["full", "rank-one", "projection", "zeroth-order", "zeroth rank-one", "exact output"]
)
def test_tangents_of_all_workers_equal_one_process_with_all_of_them(trainer: str, own_tangents: dict) -> None:
    alone, together = own_tangents[trainer]
    for each in together:
        assert np.array_equal(each["after"], together[0]["after"])
        assert len(each["derivatives"]) == len(alone["derivatives"]) == 3 * SHARED[trainer].get("tangents", 1)
        np.testing.assert_allclose(each["derivatives"], alone["derivatives"], rtol=1e-4, atol=1e-5)
    step = np.linalg.norm(alone["after"] - alone["before"])
    assert np.linalg.norm(together[0]["after"] - alone["after"]) + step > 0
    assert np.linalg.norm(together[0]["after"] - alone["after"]) < 1e-4 * step
    assert together[0]["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)


@pytest.fixture(scope="module")
def own_tangents() -> dict:
    """One step on one process that has the tangents of three workers, and on three workers."""
    cases = {
        name: settings(trainer=SHARED[name] | {"parallel": "tangents"})
        for name in ("full", "rank-one", "projection", "zeroth-order", "zeroth rank-one", "exact output")
    }
    alone = workers.step_cases(cases, 3)
    together = start(workers.step_cases, cases, size=3)
    return {name: (alone[name], [each[name] for each in together]) for name in cases}


def test_forward_trainers_send_no_gradients_to_other_workers() -> None:
    cnn = {"name": "cnn"}
    images = IMAGES | {"shape": [1, 28, 28], "classes": 10, "train": 10}
    cases = {
        name: settings(model=cnn, dataset=images, batch_size=2, trainer=trainer)
        for name, trainer in {
            "backprop": "backprop",
            "full": "forward-gradient",
            "tangents": {"name": "forward-gradient", "parallel": "tangents"},
            "rank-one": {"name": "forward-gradient", "guess": "rademacher", "structure": "rank1"},
            "zeroth-order": "zeroth-order",
        }.items()
    }
    sent = start(workers.count_cases, cases)[1]
    for counted, told in sent.values():
        assert counted == told
    assert sent["backprop"][0] > 13e6
    assert max(counted for name, (counted, _) in sent.items() if name != "backprop") <= 64


def write_config(folder: Path, **changes) -> str:
    path = folder / "config.yaml"
    path.write_text(
        yaml.safe_dump(settings(**changes) | {"results_dir": str(folder / "results"), "epochs": 2})
    )
    return str(path)


def reproducible_rows(folder: Path) -> list[dict]:
    columns = (
        "epoch",
        "train_loss",
        "train_accuracy",
        "val_loss",
        "test_loss",
        "grad_norm",
        "bytes_sent_per_step",
    )
    return [
        {column: row[column] for column in columns} for row in only_run(folder / "results").read_metrics()
    ]


@pytest.mark.parametrize("trainer", ["backprop", "rank-one"])
def test_a_signal_to_one_worker_stops_all_and_the_run_goes_on_bit_for_bit(
    trainer: str, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    paths = []
    for folder in (cut, whole):
        folder.mkdir()
        paths.append(write_config(folder, trainer=SHARED[trainer], optimizer={"name": "adam"}))
    stopped = start(workers.run_command_and_stop, 1, 8, int(signal.SIGTERM), "run", paths[0])
    assert [code for code, _ in stopped] == [143, 143]
    assert only_run(cut).status()["state"] == "interrupted"
    assert len(only_run(cut).read_metrics()) == 1
    assert start(workers.run_command, "run", *paths)[0] == (0, "")
    assert reproducible_rows(cut) == reproducible_rows(whole)
    assert only_run(cut).read_env()["workers"] == 2


def test_what_workers_take_is_added_up_or_unknown() -> None:
    assert start(workers.add_up) == [(3.0, None)] * 2


def test_all_workers_stop_early_together(tmp_path: Path) -> None:
    stopping = {"metric": "val_loss", "patience": 1, "min_delta": 100.0}
    config = write_config(tmp_path, trainer=RANK_ONE, early_stopping=stopping, saving={"best": "val_loss"})
    done = start(workers.run_command, "run", config, "--epochs", "5")
    assert done == [(0, ""), (0, "")]
    assert [row["epoch"] for row in only_run(tmp_path).read_metrics()] == [1, 2]
    assert only_run(tmp_path).status()["reason"].startswith("stopped early: in 1 epochs no better val_loss")
    assert load_model(only_run(tmp_path).path, "best")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 7}, "multiple of 2"),
        ({"trainer": "guided-forward-gradient"}, "backprop, forward-gradient or zeroth-order"),
    ],
)
def test_what_cannot_be_shared_is_refused_by_all_and_nothing_is_written(
    changes: dict, message: str, tmp_path: Path
) -> None:
    (code, said), (other_code, other_said) = start(
        workers.run_command, "run", write_config(tmp_path, **changes)
    )
    assert code == other_code == 2
    assert message in said
    assert other_said == ""
    assert list(tmp_path.iterdir()) == [tmp_path / "config.yaml"]


def test_one_worker_without_data_ends_all_and_rank_0_says_so(tmp_path: Path) -> None:
    said = start(workers.run_command_without_data_on, 1, "run", write_config(tmp_path))
    assert said == [(2, "fgbench: worker 1: no such images\n"), (2, "")]


def test_a_worker_that_breaks_ends_all_and_the_run_says_so(tmp_path: Path) -> None:
    first, second = start(workers.run_command_and_break, 1, 3, "run", write_config(tmp_path))
    assert "broken on purpose" in second["error"]
    assert first[0] == 1
    assert only_run(tmp_path).status()["state"] == "failed"
    assert "another worker" in only_run(tmp_path).status()["reason"]


def test_a_run_in_use_is_left_alone_by_all(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert start(workers.run_command, "run", config)[0] == (0, "")
    run = only_run(tmp_path)
    before = (run.path / "metrics.csv").read_bytes()
    with run.lock():
        first, second = start(workers.run_command, "run", config, "--force")
    assert first[0] == second[0] == 1
    assert "in use" in first[1]
    assert (run.path / "metrics.csv").read_bytes() == before


def test_torchrun_makes_one_run_that_rank_0_writes_and_tells(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    rendezvous = ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    done = subprocess.run(
        [*torchrun, *rendezvous, "-m", "fgbench", "run", write_config(tmp_path, trainer=RANK_ONE)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2") == 1
    assert only_run(tmp_path).status()["state"] == "finished"
