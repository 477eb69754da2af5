"""Clocks, memory, provenance: the only package that asks what device this is."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # read when torch starts: keeps the profiler off the terminal

from fgbench.measure.device import keep_allocations, prepare, resolve_device, set_threads, synchronize
from fgbench.measure.energy import GpuEnergy
from fgbench.measure.environment import describe_environment
from fgbench.measure.load import OtherLoad
from fgbench.measure.memory import (
    MIB,
    PeakMemory,
    nvml_process_memory_mib,
    resident_bytes,
    step_memory,
    tensor_bytes,
)
from fgbench.measure.operations import count_operations

__all__ = [
    "MIB",
    "GpuEnergy",
    "OtherLoad",
    "PeakMemory",
    "count_operations",
    "describe_environment",
    "keep_allocations",
    "nvml_process_memory_mib",
    "prepare",
    "resident_bytes",
    "resolve_device",
    "set_threads",
    "step_memory",
    "synchronize",
    "tensor_bytes",
]
