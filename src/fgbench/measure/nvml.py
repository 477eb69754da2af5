"""NVIDIA's management library."""

from typing import Any

import torch


def load_nvml() -> Any:
    """The NVML bindings, initialised, or None where there is no NVIDIA driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # the bindings raise their own family of errors, or are not installed
        return None
    return pynvml


def find_gpu(nvml: Any, device: torch.device) -> Any:
    """NVML's handle of the GPU behind a CUDA device (NVML ignores CUDA_VISIBLE_DEVICES).

    Raises:
        NVMLError: NVML has no such GPU, for example because the device is a part of one.
    """
    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
