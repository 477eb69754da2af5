"""Peak memory: of CUDA's allocator, of a step on a CPU, and of a process as the driver counts it."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fgbench.measure.nvml import load_nvml

MIB = 2**20


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind ``tensors``."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def resident_bytes(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, trainer: object = None
) -> int:
    """Bytes held between steps: parameters, buffers, gradients, and the optimizer's and trainer's state."""
    parameters = _parameters(model, optimizer)
    tensors = [*parameters, *model.buffers(), *(param.grad for param in parameters if param.grad is not None)]
    if optimizer is not None:
        tensors += [
            each for state in optimizer.state.values() for each in state.values() if torch.is_tensor(each)
        ]
    return tensor_bytes([*tensors, *_held_tensors(trainer, set())])


def _held_tensors(owner: object, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor reachable from an object through its attributes and containers."""
    if id(owner) in seen:
        return
    seen.add(id(owner))
    if isinstance(owner, Tensor):
        yield owner
        return
    parts: Iterable[object] = ()
    if isinstance(owner, Mapping):
        parts = owner.values()
    elif isinstance(owner, list | tuple | set | frozenset):
        parts = owner
    elif not isinstance(owner, type | ModuleType):
        slots = (getattr(owner, name, None) for name in getattr(type(owner), "__slots__", ()))
        parts = [*getattr(owner, "__dict__", {}).values(), *slots]
    for part in parts:
        yield from _held_tensors(part, seen)


def _parameters(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    groups = [] if optimizer is None else optimizer.param_groups
    return [*model.parameters(), *(param for group in groups for param in group["params"])]


def step_memory(
    step: Callable[[], object],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    trainer: object = None,
) -> float:
    """Peak memory of a step on the CPU, MiB: what is resident before it, plus the largest increase.

    All of torch's allocations and releases during the step are summed in order of time, convolution
    workspaces and short-lived buffers included. The release of memory that was there before does not count
    (the profiler sees it where it has watched the address once), so gradients are dropped first and two steps
    are taken: the second releases gradients whose allocation was seen.

    Args:
        step: called twice under the profiler; call it once before, so that the optimizer has its state.
        model: what the step trains.
        optimizer: updates the model's parameters, and the trainer's own.
        trainer: fills the gradients; all tensors it holds between steps count.
    """
    for param in _parameters(model, optimizer):
        param.grad = None
    resident = resident_bytes(model, optimizer, trainer)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _quiet_output(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
        step()
    live: dict[int, int] = {}
    current = peak = 0
    for change, address in _allocations(profile.profiler.kineto_results):
        current -= live.pop(address, 0)
        if change > 0:
            live[address] = change
            current += change
        peak = max(peak, current)
    return (resident + peak) / MIB


def _allocations(results: Any) -> Iterator[tuple[int, int]]:
    """Bytes allocated (below 0: released) and their address, in order of time."""
    found, waiting = [], list(results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            found.append((event.start_time_ns, event.extra_fields.alloc_size, event.extra_fields.ptr))
    for _, change, address in sorted(found, key=lambda each: each[0]):
        yield change, address


@contextmanager
def _quiet_output() -> Iterator[None]:
    """Silence what libraries write to stdout and stderr directly, such as the profiler's log."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for descriptor in (*kept, null):
            os.close(descriptor)


class PeakMemory:
    """Peak of CUDA's allocator over a ``with`` block.

    Attributes:
        mib: the peak in MiB, set when the block ends; None on a CPU, whose allocator keeps no statistics.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.mib: float | None = None

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.mib = torch.cuda.max_memory_allocated(self.device) / MIB


def nvml_process_memory_mib() -> float | None:
    """This process's GPU memory as the driver counts it, context included, MiB; None where it is unknown."""
    nvml = load_nvml()
    if nvml is None:
        return None
    used = []
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            processes = nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByIndex(index))
            used += [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
    except nvml.NVMLError:
        return None
    known = [each for each in used if each is not None]
    return sum(known) / MIB if known else None  # a container may hide its own processes
