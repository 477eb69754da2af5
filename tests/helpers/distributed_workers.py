"""What the workers of tests/test_distributed.py do: each function runs in one of several processes."""

import io
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from fgbench.cli.app import app
from fgbench.config.config import Config
from fgbench.datasets.base import load_splits
from fgbench.datasets.search import DataSearch
from fgbench.run.build import build_training
from fgbench.run.loop import TrainingState, train_epoch
from fgbench.run.world import SharedStopRequest, World
from fgbench.seeds import derive_generator, draw_seed
from fgbench.trainers.directions import SeededDirection
from fgbench.trainers.rank_one import RankOneTangents
from fgbench.trainers.tangents import FullTangents

COLLECTIVES = (
    "allreduce",
    "broadcast",
    "allgather",
    "_allgather_base",
    "reduce",
    "reduce_scatter",
    "send",
    "alltoall",
)


def run_worker(rank: int, size: int, port: int, queue: Any, function: Callable[..., Any], *args: Any) -> None:
    """Call the function as one of ``size`` workers on this machine and put what it gives into the queue."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torch.set_num_threads(1)
    try:
        result = function(*args)
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else getattr(error, "exit_code", None)
        queue.put((rank, {"error": str(error), "code": code, "trace": traceback.format_exc()}))
    else:
        queue.put((rank, result))


def add_up() -> tuple[float | None, float | None]:
    """The sum of 1 and 2, and that of 1 and nothing."""
    with World.from_environment().joined() as world:
        return world.total(world.rank + 1.0), world.total(1.0 if world.is_main else None)


def make_training(settings: dict[str, Any], world: World | None = None) -> TrainingState:
    """A training on made-up images."""
    config = Config.model_validate(settings)
    device = torch.device("cpu")
    splits = load_splits(config.dataset, config.seed, device, DataSearch(None, None, False))
    return build_training(config, device, splits, world)


def train_cases(cases: dict[str, dict[str, Any]], steps: int) -> dict[str, dict[str, Any]]:
    """Train so many steps of each."""
    with World.from_environment().joined() as world:
        return {name: train_steps(settings, steps, world) for name, settings in cases.items()}


def train_steps(settings: dict[str, Any], steps: int, world: World) -> dict[str, Any]:
    """Train so many steps; returns parameters before and after, and means over the batches."""
    training = make_training(settings, world)
    before = parameters(training)
    train_epoch(training, after_step=lambda: training.batches_done == steps)
    return {
        "before": before,
        "after": parameters(training),
        "means": training.train_means(),
    }


def parameters(training: TrainingState) -> Any:
    """All parameters in one array."""
    return torch.cat([param.detach().flatten() for param in training.model.parameters()]).numpy()


def step_cases(cases: dict[str, dict[str, Any]], size: int | None = None) -> dict[str, dict[str, Any]]:
    """One step of each; ``size``: on this process alone, with the tangents of so many workers."""
    with World.from_environment().joined() as world:
        return {name: one_step(settings, world, size) for name, settings in cases.items()}


def one_step(settings: dict[str, Any], world: World, size: int | None) -> dict[str, Any]:
    """A step of plain SGD: parameters before and after, directional derivatives and the gradient's norm."""
    count = settings["trainer"].get("tangents", 1)
    if size is not None:
        trainer = settings["trainer"] | {"tangents": count * size}
        settings = settings | {"trainer": {key: trainer[key] for key in trainer if key != "chunk"}}
    training = make_training(settings, world)
    before = parameters(training)
    kept: list[Any] = []
    step = training.trainer.sgd_step
    training.trainer.sgd_step = lambda *args: kept.append(step(*args)) or kept[-1]
    with nullcontext() if size is None else tangents_of_workers(size, count):
        train_epoch(training, after_step=lambda: True)
    return {
        "before": before,
        "after": parameters(training),
        "derivatives": kept[0].directional_derivatives.numpy(),
        "grad_norm": float(kept[0].grad_norm),
    }


@contextmanager
def tangents_of_workers(size: int, count: int) -> Iterator[None]:
    """Within, one process draws what ``size`` workers would, ``count`` tangents each."""
    shared: list[torch.Generator] = []

    def generators(generator: torch.Generator) -> list[torch.Generator]:
        if not shared:
            seed = draw_seed(generator)
            shared.extend(derive_generator("cpu", seed, "worker", rank) for rank in range(size))
        return shared

    def sampling(own: Callable[..., Any]) -> Callable[..., Any]:
        def sample(tangents: Any, generator: torch.Generator, total: int) -> Any:
            assert total == size * count
            return tangents.join([own(tangents, each, count) for each in generators(generator)])

        return sample

    made: list[SeededDirection] = []

    def direct(params: Any, guess: str, generator: torch.Generator) -> SeededDirection:
        made.append(SeededDirection(params, guess, generators(generator)[len(made) // count]))
        return made[-1]

    with (
        patch.object(FullTangents, "sample", sampling(FullTangents.sample)),
        patch.object(RankOneTangents, "sample", sampling(RankOneTangents.sample)),
        patch("fgbench.trainers.directions.SeededDirection", direct),
    ):
        yield


def count_cases(cases: dict[str, dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Bytes of a step of each, as counted at the process group and as the run tells."""
    counted = count_bytes()
    sent = {}
    with World.from_environment().joined() as world:
        for name, settings in cases.items():
            training = make_training(settings, world)
            with SharedStopRequest(world) as stop:
                train_epoch(training, after_step=lambda: stop.update() or True)  # DDP's first step says hello
                before, told = counted[0], world.bytes_sent
                steps = training.batches_per_epoch - training.batches_done
                train_epoch(training, after_step=lambda: stop.update() or False)
                sent[name] = (counted[0] - before) / steps, (world.bytes_sent - told) / steps
    return sent


def count_bytes() -> list[int]:
    """A running count of what this process hands to the process group from now on."""
    counted = [0]

    def counting(collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(group: Any, *args: Any, **kwargs: Any) -> Any:
            sent = args[-2] if len(args) > 1 and "allgather" in collective.__name__ else args[0]
            counted[0] += sum(each.nbytes for each in (sent if isinstance(sent, list) else [sent]))
            return collective(group, *args, **kwargs)

        return call

    for name in COLLECTIVES:
        setattr(dist.ProcessGroup, name, counting(getattr(dist.ProcessGroup, name)))
    return counted


def run_command(*arguments: str) -> tuple[int, str]:
    """The command line, in this process: its exit code and what it said to stderr."""
    said = io.StringIO()
    code = 0
    with redirect_stderr(said):
        try:
            app(list(arguments), prog_name="fgbench")
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, said.getvalue()


def run_command_and_stop(rank: int, step: int, number: int, *arguments: str) -> tuple[int, str]:
    """The same, with a signal to one of the workers after so many steps."""
    steps = [0]
    update = SharedStopRequest.update

    def update_and_kill(self: SharedStopRequest) -> None:
        steps[0] += 1
        if steps[0] == step and self.world.rank == rank:
            os.kill(os.getpid(), number)
        update(self)

    SharedStopRequest.update = update_and_kill
    return run_command(*arguments)


def run_command_without_data_on(rank: int, *arguments: str) -> tuple[int, str]:
    """The same, with one worker that finds no data."""
    from fgbench.errors import DataError
    from fgbench.run.plan import Plan

    def no_data(self: Plan) -> None:
        raise DataError("no such images")

    if int(os.environ["RANK"]) == rank:
        Plan.load_splits = no_data
    return run_command(*arguments)


def run_command_and_break(rank: int, step: int, *arguments: str) -> tuple[int, str]:
    """The same, with one worker that breaks in the middle of training."""
    steps = [0]
    update = SharedStopRequest.update

    def update_or_break(self: SharedStopRequest) -> None:
        steps[0] += 1
        if steps[0] == step and self.world.rank == rank:
            raise RuntimeError("broken on purpose")
        update(self)

    SharedStopRequest.update = update_or_break
    return run_command(*arguments)
