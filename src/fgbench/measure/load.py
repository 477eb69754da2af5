"""How busy other processes keep this machine."""

import os
import time
from pathlib import Path
from statistics import median_low

import torch

from fgbench.measure.nvml import find_gpu, load_nvml

BUSY_CORES = 0.3
"""An epoch is noted as disturbed when others keep more cores busy than this; a convention of this project."""


STANDSTILL_S, STANDSTILL_SHARE = 1.0, 0.1
"""A process stood still in a step that took more seconds than this and than ten typical ones, and of which it
used less than this share of CPU time; conventions of this project."""


class OtherLoad:
    """What disturbed this process over a ``with`` block: why its timings may be noisy.

    It is other processes at work on this machine, or that this one stood still within a step.

    Under torchrun the workers of this machine are no others: each is taken to work as much as this one.

    Attributes:
        reason: set when the block ends: what kept the machine busy besides this process; None when it was
            quiet.
    """

    def __init__(self) -> None:
        self.reason: str | None = None

    def __enter__(self) -> "OtherLoad":
        self._before = _busy_cpu_s(), sum(os.times()[:4]), time.perf_counter()
        self._steps: list[tuple[float, float]] = []
        self._last = self._before[2], time.process_time()
        return self

    def begin_step(self) -> None:
        """Leave out what came after the last step."""
        self._last = time.perf_counter(), time.process_time()

    def end_step(self) -> None:
        """Called after every step, which began where the last one ended; cheap enough for that."""
        (start, used), self._last = self._last, (time.perf_counter(), time.process_time())
        self._steps.append((self._last[0] - start, self._last[1] - used))

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
        if standstill := _standstill_s(self._steps):
            reasons.append(f"this process stood still for {standstill:.0f} s, as one that is suspended")
        if torch.cuda.is_available() and (nvml := load_nvml()) is not None:
            try:
                gpu = find_gpu(nvml, torch.device("cuda", torch.cuda.current_device()))
                pids = {process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(gpu)}
                if pids - {os.getpid()}:
                    reasons.append("another process was on the GPU")
            except nvml.NVMLError:
                pass
        self.reason = "; ".join(reasons) or None


def _standstill_s(steps: list[tuple[float, float]]) -> float:
    """Seconds of the steps in which the process stood still, from the seconds and CPU seconds of each.

    A wait that many steps have, as for a GPU or for data, is none.
    """
    typical = median_low(seconds for seconds, _ in steps) if steps else 0.0
    least = max(STANDSTILL_S, 10 * typical)
    return sum(seconds for seconds, cpu in steps if seconds > least and cpu < STANDSTILL_SHARE * seconds)


def _busy_cpu_s() -> float | None:
    """Seconds all cores together have been busy since boot; None where the kernel does not report it."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
