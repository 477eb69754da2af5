"""Whether the process of a run is still there."""

import os
import time
from datetime import UTC, datetime
from typing import Any, TextIO


def read_holder(file: TextIO) -> str:
    """The process that holds a lock, as it wrote itself into the lock's file."""
    for _ in range(50):  # the process that has just taken the lock is about to write its name
        file.seek(0)
        if name := file.read().strip():
            return name
        time.sleep(0.02)
    return "another process"


def seconds_since(timestamp: Any) -> float:
    """Seconds since a time in ISO 8601; infinite where it cannot be read."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(timestamp)).total_seconds()
    except (TypeError, ValueError):
        return float("inf")


def is_alive(pid: Any) -> bool:
    """Whether a process with this id runs on this machine."""
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (TypeError, ValueError, OverflowError, ProcessLookupError):
        return False
    return True
