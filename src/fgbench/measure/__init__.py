"""Clocks, memory, provenance: the only file that asks what device this is."""

import ctypes
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # read when torch starts: keeps the profiler off the terminal

import torch
from torch import Tensor, nn

from fgbench.errors import ConfigError

MIB = 2**20
VARIABLES = (
    *("OMP_", "KMP_", "GOMP_", "MKL_", "DNNL_", "ONEDNN_", "ATEN_", "TORCH", "PYTORCH_", "CUDA_", "CUBLAS_"),
    *("CUDNN_", "NVIDIA_TF32", "NCCL_", "LD_PRELOAD", "MALLOC_", "GLIBC_TUNABLES", "FGBENCH_"),
)
"""Beginnings of the names of environment variables that can change numbers or times."""

BUSY_CORES = 0.3
_allocations_kept = False


def resolve_device(name: str = "auto") -> torch.device:
    """The device a config names: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: another name, or a CUDA device that is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (":" in name and not (kind == "cuda" and index.isdecimal())):
        raise ConfigError(f"device: got {name!r}, expected auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        return torch.device("cpu")
    if int(index or 0) >= count:
        raise ConfigError(f"device: {name} is not available; this machine has {count} CUDA devices")
    return torch.device("cuda", int(index or 0))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def set_threads(count: int | None) -> int:
    """Set the number of CPU threads torch computes with (left alone when None); returns what it is now."""
    if count is not None:
        torch.set_num_threads(count)
    return torch.get_num_threads()


def prepare(
    device: torch.device, threads: int | None, *, keep: bool = True, deterministic: bool = False
) -> None:
    """Set what a process computes with, before the work starts.

    ``deterministic`` asks torch for algorithms that give the same bits each time, with an error where there
    is none; it promises nothing across versions, devices or numbers of threads.
    """
    set_threads(threads)
    keep_allocations(keep and device.type == "cpu")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


def keep_allocations(enabled: bool = True) -> bool:
    """Let the C library keep large freed blocks instead of giving them back to the kernel.

    Otherwise every activation above some MiB is mapped and page-faulted in again each step. Takes effect for
    blocks allocated from now on, so call it before the work starts; it cannot be undone within a process.
    Only glibc knows it.

    Returns:
        Whether large blocks are kept in this process.
    """
    global _allocations_kept
    if enabled and not _allocations_kept and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        _allocations_kept = bool(mallopt(m_mmap_max, 0)) and bool(mallopt(m_trim_threshold, 2**31 - 1))
    return _allocations_kept


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind ``tensors``."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def resident_bytes(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """Bytes held between steps: parameters, buffers, gradients and the optimizer's state."""
    parameters = _parameters(model, optimizer)
    tensors = [*parameters, *model.buffers(), *(param.grad for param in parameters if param.grad is not None)]
    if optimizer is not None:
        tensors += [
            each for state in optimizer.state.values() for each in state.values() if torch.is_tensor(each)
        ]
    return tensor_bytes(tensors)


def _parameters(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    groups = [] if optimizer is None else optimizer.param_groups
    return [*model.parameters(), *(param for group in groups for param in group["params"])]


def step_memory(
    step: Callable[[], object], model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> float:
    """Peak memory of a step on the CPU, MiB: what is there before it, plus its largest increase.

    Every allocation and release torch makes in the step is summed in the order of time, convolution scratch
    and short-lived buffers included. The profiler does not see the release of what is older than itself, so
    gradients are dropped first and two steps are made: the second finds gradients that were seen to be made.

    Args:
        step: called twice under the profiler; warm it up first, so that the optimizer has its state.
        model: what the step trains.
        optimizer: what updates it, with its own and a trainer's parameters.
    """
    for param in _parameters(model, optimizer):
        param.grad = None
    resident = resident_bytes(model, optimizer)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _quiet_output(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
        step()
    events = profile.profiler.kineto_results.events()
    current = peak = 0
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        current += change
        peak = max(peak, current)
    return (resident + peak) / MIB


@contextmanager
def _quiet_output() -> Iterator[None]:
    """Keep what libraries write past Python, such as the profiler's log, off the terminal."""
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
        mib: the peak in MiB once the block is left; None on a CPU, where the allocator keeps no account.
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


def _nvml() -> Any:
    """The NVML bindings, initialised, or None where there is no NVIDIA driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # the bindings raise their own family of errors, or are not installed
        return None
    return pynvml


def nvml_process_memory_mib() -> float | None:
    """This process's GPU memory as the driver counts it, context included, MiB; None where it cannot tell."""
    nvml = _nvml()
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


class OtherLoad:
    """What other processes took from this machine over a ``with`` block: why its timings may be noisy.

    Attributes:
        reason: once the block is left, what kept the machine busy beside this process; None when it was
            quiet.
    """

    def __init__(self) -> None:
        self.reason: str | None = None

    def __enter__(self) -> "OtherLoad":
        self._before = _busy_cpu_s(), sum(os.times()[:4]), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        reasons = []
        busy, own, start = self._before
        now = _busy_cpu_s()
        if busy is not None and now is not None:
            elapsed = max(time.perf_counter() - start, 0.1)  # the kernel counts in hundredths of a second
            cores = (now - busy - (sum(os.times()[:4]) - own)) / elapsed
            if cores > BUSY_CORES:
                reasons.append(f"other processes kept {cores:.1f} of {os.cpu_count()} CPU cores busy")
        if torch.cuda.is_available() and (nvml := _nvml()) is not None:
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
                pids = {process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)}
                if pids - {os.getpid()}:
                    reasons.append("another process was on the GPU")
            except nvml.NVMLError:
                pass
        self.reason = "; ".join(reasons) or None


def _busy_cpu_s() -> float | None:
    """Seconds all cores together have been busy since boot; None where the kernel does not say."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def environment(device: torch.device) -> dict[str, Any]:
    """Where and with what a number was made: for ``env.json``."""
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    nvml = _nvml()
    return {
        "fgbench": _version("fgbench"),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if (status := _git("status", "--porcelain")) is None else bool(status),
        "command": sys.argv,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "numpy": _version("numpy"),
        "pillow": _version("pillow"),
        "torch_build": torch.__config__.show().splitlines(),
        "platform": platform.platform(),
        "libc": " ".join(platform.libc_ver()),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_cores": os.cpu_count(),
        "cpu_affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "memory_gib": _memory_gib(),
        "device": str(device),
        "gpu": gpu and gpu.name,
        "gpu_memory_gib": gpu and round(gpu.total_memory / 2**30, 1),
        "gpu_capability": gpu and f"{gpu.major}.{gpu.minor}",
        "gpu_driver": nvml and str(nvml.nvmlSystemGetDriverVersion()),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "allocations_kept": _allocations_kept,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "variables": {key: value for key, value in sorted(os.environ.items()) if key.startswith(VARIABLES)},
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git says about the source this runs from; None for an installed package or without git."""
    folder = Path(__file__).parent
    if "site-packages" in folder.parts:
        return None
    try:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None
