"""The processes torchrun starts for one run, and how they stay synchronised.

All of them execute the same runner and the same loop. Only rank 0 reads and writes the run directory and
prints; the others get what they need from it, and every error or signal reaches all of them.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fgbench.errors import ConfigError, FgbenchError
from fgbench.measure import resolve_device
from fgbench.run.signals import Interrupted, StopRequest
from fgbench.storage.state import first_line

T = TypeVar("T")


@dataclass
class World:
    """The processes of one run; a single one outside torchrun, for which every method is trivial.

    Attributes:
        rank: number of this process; rank 0 is the one that writes and prints.
        size: number of processes.
        local_rank: number of this process on its machine.
        bytes_sent: bytes this process has sent to the others in its training steps.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    bytes_sent: int = 0

    @classmethod
    def from_environment(cls) -> "World":
        """The world described by the environment variables that torchrun sets."""
        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
            return cls()
        return cls(*(int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @contextmanager
    def joined(self) -> Iterator["World"]:
        """Let the processes communicate inside this context; all but rank 0 are silent.

        Raises:
            FgbenchError: the other processes cannot be reached.
        """
        if self.size == 1:
            yield self
            return
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        except (RuntimeError, ValueError) as error:
            raise FgbenchError(f"worker {self.rank} cannot reach the others: {first_line(error)}") from error
        try:
            if self.is_main:
                yield self
            else:
                with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
                    yield self
        except Interrupted as error:  # reported by rank 0
            if self.is_main:
                raise
            raise SystemExit(error.exit_code) from error
        finally:
            dist.destroy_process_group()

    def resolve_device(self, name: str) -> torch.device:
        """The device a config names, one for each worker.

        Raises:
            ConfigError: there is no such device, or there are fewer GPUs than workers.
        """
        device = resolve_device(name)
        if self.size == 1 or device.type == "cpu":
            return device
        if ":" in name:
            raise ConfigError(
                f"device: got {name} for {self.size} workers; under torchrun expected auto, cpu or cuda"
            )
        device = resolve_device(f"cuda:{self.local_rank}")
        torch.cuda.set_device(device)
        return device

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """A context without communication: an error in one process ends all, and rank 0 reports it.

        Raises:
            FgbenchError: on rank 0, another worker's error.
        """
        if self.size == 1:
            yield
            return
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        errors: list[tuple[int, str] | None] = [None] * self.size
        known = isinstance(own, FgbenchError)
        text = "" if own is None else str(own) if known else f"{type(own).__name__}: {first_line(own)}"
        dist.all_gather_object(errors, None if own is None else (getattr(own, "exit_code", 1), text))
        failed = next((rank for rank, error in enumerate(errors) if error), None)
        if failed is None:
            return
        if own is not None and (self.is_main or not known):
            raise own
        code, text = errors[failed] or (1, "")
        if not self.is_main:
            raise SystemExit(code)
        kind = ConfigError if code == ConfigError.exit_code else FgbenchError
        raise kind(f"worker {failed}: {text}")

    def on_main(self, function: Callable[[], T]) -> T:
        """The function's result on rank 0, the only one to call it; an error there ends all processes."""
        if self.size == 1:
            return function()
        result: list[Any] = [None]
        with self.agreed():
            if self.is_main:
                result = [function()]
        dist.broadcast_object_list(result, src=0)
        return result[0]

    def total(self, value: float | None) -> float | None:
        """The sum over all processes; None if one of them has None."""
        if self.size == 1:
            return value
        values: list[float | None] = [None] * self.size
        dist.all_gather_object(values, value)
        known = [each for each in values if each is not None]
        return sum(known) if len(known) == self.size else None

    def share_parameters(self, model: nn.Module) -> None:
        """Broadcast the parameters and buffers of rank 0 to every process."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)


def is_lost_worker(error: Exception) -> bool:
    """Whether an error only says that another worker has gone."""
    return isinstance(error, dist.DistBackendError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error) and dist.is_initialized()
    )


class SharedStopRequest(StopRequest):
    """A signal to one worker stops all of them after the same step.

    Requests are exchanged with every step (one byte) and take effect a step later, so no worker waits.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.asked = 0
        self._round: tuple[Tensor, Any] | None = None

    def update(self) -> None:
        """Called by all workers after every step."""
        self._finish()
        asked = torch.tensor([self.asked], dtype=torch.uint8)
        self.world.bytes_sent += asked.nbytes
        self._round = asked, dist.all_reduce(asked, dist.ReduceOp.MAX, async_op=True)

    def _finish(self) -> None:
        if self._round is not None:
            asked, work = self._round
            work.wait()
            self._round = None
            self.number = self.number or int(asked)

    def __exit__(self, *raised: object) -> None:
        if raised[0] is None:
            self.update()
        if raised[0] in (None, Interrupted):
            self._finish()
        super().__exit__(*raised)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = self.asked or number
