"""The energy a GPU takes, by the driver's counter."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fgbench.measure.nvml import find_gpu, load_nvml

MILLI = 1000


class GpuEnergy:
    """What the GPU of a device took over a ``with`` block: all of it, whoever used it.

    The driver counts since it was loaded, in millijoules (``nvmlDeviceGetTotalEnergyConsumption``, Volta and
    newer), and renews the count several times a second.

    Attributes:
        joules: once the block is left; None where there is no counter, as on a CPU, on a part of a GPU (MIG)
            or on older GPUs, or where it did not move.
    """

    def __init__(self, device: torch.device) -> None:
        self.joules: float | None = None
        self._read = _find_counter(device)
        self._taken = 0.0

    def __enter__(self) -> "GpuEnergy":
        self._before = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        self._add()
        self.joules = self._taken / MILLI if self._taken > 0 else None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, what is taken does not count."""
        self._add()
        yield
        self._before = self._read()

    def _add(self) -> None:
        """Count what was taken since ``_before``; once a reading is missing, or less than that, all is."""
        now = self._read()
        known = self._before is not None and now is not None and now >= self._before
        self._taken += now - self._before if known else math.nan  # type: ignore[operator]


def _find_counter(device: torch.device) -> Callable[[], int | None]:
    """What reads the counter of a device's GPU, in millijoules; what reads None where there is none."""
    nvml = load_nvml() if device.type == "cuda" else None
    if nvml is None:
        return lambda: None

    def read() -> int | None:
        try:
            return int(nvml.nvmlDeviceGetTotalEnergyConsumption(find_gpu(nvml, device)))
        except nvml.NVMLError:
            return None

    return read
