"""How busy other processes keep this machine."""

import os
import time
from pathlib import Path

import torch

from fgbench.measure.nvml import find_gpu, load_nvml

BUSY_CORES = 0.3
"""An epoch is noted as disturbed when others keep more cores busy than this; a convention of this project."""


class OtherLoad:
    """How busy other processes kept this machine over a ``with`` block: why its timings may be noisy.

    Under torchrun the workers of this machine are no others: each is taken to work as much as this one.

    Attributes:
        reason: set when the block ends: what kept the machine busy besides this process; None when it was
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
            workers = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            cores = (now - busy - workers * (sum(os.times()[:4]) - own)) / elapsed
            if cores > BUSY_CORES:
                reasons.append(f"other processes kept {cores:.1f} of {os.cpu_count()} CPU cores busy")
        if torch.cuda.is_available() and (nvml := load_nvml()) is not None:
            try:
                gpu = find_gpu(nvml, torch.device("cuda", torch.cuda.current_device()))
                pids = {process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(gpu)}
                if pids - {os.getpid()}:
                    reasons.append("another process was on the GPU")
            except nvml.NVMLError:
                pass
        self.reason = "; ".join(reasons) or None


def _busy_cpu_s() -> float | None:
    """Seconds all cores together have been busy since boot; None where the kernel does not report it."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
