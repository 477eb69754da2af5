"""The energy a GPU uses, by the driver's counter."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fgbench.measure.nvml import find_gpu, load_nvml

MILLI = 1000


class GpuEnergy:
    """The energy a device's whole GPU uses over a ``with`` block, whichever process uses it.

    The driver counts from when it was loaded, in millijoules (``nvmlDeviceGetTotalEnergyConsumption``, Volta
    and newer), and updates the counter several times a second.

    Attributes:
        joules: set when the block ends; None where there is no counter (CPUs, parts of a GPU (MIG), older
            GPUs) or where it did not change.
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
        """Energy used inside this context is not counted."""
        self._add()
        yield
        self._before = self._read()

    def _add(self) -> None:
        """Add the energy used since ``_before``; NaN from then on if a reading is missing or decreased."""
        now = self._read()
        known = self._before is not None and now is not None and now >= self._before
        self._taken += now - self._before if known else math.nan  # type: ignore[operator]


def _find_counter(device: torch.device) -> Callable[[], int | None]:
    """A function that reads the counter of a device's GPU, in millijoules, or None where there is none."""
    nvml = load_nvml() if device.type == "cuda" else None
    if nvml is None:
        return lambda: None

    def read() -> int | None:
        try:
            return int(nvml.nvmlDeviceGetTotalEnergyConsumption(find_gpu(nvml, device)))
        except nvml.NVMLError:
            return None

    return read
