"""NVIDIA's management library."""

from typing import Any


def load_nvml() -> Any:
    """The NVML bindings, initialised, or None where there is no NVIDIA driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # the bindings raise their own family of errors, or are not installed
        return None
    return pynvml
