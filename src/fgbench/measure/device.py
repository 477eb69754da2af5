"""The device a run computes on, and how it is set up."""

import ctypes
import os
import platform

import torch

from fgbench.errors import ConfigError

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
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def set_threads(count: int | None) -> int:
    """Set the number of CPU threads torch uses (unchanged when None); returns the current number."""
    if count is not None:
        torch.set_num_threads(count)
    return torch.get_num_threads()


def prepare(
    device: torch.device, threads: int | None, *, keep: bool = True, deterministic: bool = False
) -> None:
    """Set up threads, allocator and determinism of this process, before the work starts.

    ``deterministic`` asks torch for algorithms that give the same bits each time, and for an error where
    there is none; it promises nothing across versions, devices or numbers of threads.
    """
    set_threads(threads)
    keep_allocations(keep and device.type == "cpu")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


def keep_allocations(enabled: bool = True) -> bool:
    """Let the C library keep large freed blocks instead of giving them back to the kernel.

    Otherwise every activation of more than a few MiB is mapped and page-faulted in again each step. Takes
    effect for blocks allocated from now on, so call it before the work starts; it cannot be undone within a
    process. Only glibc supports it.

    Returns:
        Whether large blocks are kept in this process.
    """
    global _allocations_kept
    if enabled and not _allocations_kept and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        _allocations_kept = bool(mallopt(m_mmap_max, 0)) and bool(mallopt(m_trim_threshold, 2**31 - 1))
    return _allocations_kept
