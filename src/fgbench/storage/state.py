"""State files: everything a run needs to resume bit for bit.

A state file is a SHA-256 digest followed by what ``torch.save`` wrote, so a flipped bit is noticed before
loading, and it is loaded with ``weights_only=True``, so a malicious file cannot run code. The newest is
``state.pt``, the one before it ``state-1.pt`` and so on; each is written to a temporary file, flushed to the
disk and renamed.
"""

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import torch

from fgbench.errors import FgbenchError
from fgbench.storage.files import atomic_write

DIGEST_BYTES = hashlib.sha256().digest_size


class StateError(FgbenchError):
    """No state file of an unfinished run can be used."""


def state_files(folder: Path) -> list[Path]:
    """The state files in a run directory, newest first."""
    ages = sorted(
        int(path.stem[6:])
        for path in folder.glob("state-*.pt")
        if re.fullmatch(r"state-[1-9]\d{0,8}", path.stem)
    )
    paths = [folder / "state.pt", *(folder / f"state-{age}.pt" for age in ages)]
    return [path for path in paths if path.exists()]


def save_state(folder: Path, state: dict[str, Any], keep: int) -> None:
    """Write ``state`` as the newest state file; the newest ``keep`` files are kept.

    Raises:
        FgbenchError: the disk is full or the folder cannot be written; the older files are intact.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getbuffer()
    written = folder / "state.pt.new"
    atomic_write(written, hashlib.sha256(payload).digest() + payload)
    for age in range(keep - 1, 0, -1):
        newer = folder / ("state.pt" if age == 1 else f"state-{age - 1}.pt")
        if newer.exists():
            newer.replace(folder / f"state-{age}.pt")
    written.replace(folder / "state.pt")
    for path in state_files(folder)[keep:]:
        path.unlink()


def load_state(folder: Path, run: str | None = None) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest usable state, and one line for each state file that had to be skipped.

    Args:
        folder: the run directory.
        run: which run the state must belong to (its seed and hash); any when None.

    Returns:
        The state (None if there are no state files) and the warnings.

    Raises:
        StateError: there are state files, and none can be used.
    """
    warnings: list[str] = []
    for path in state_files(folder):
        try:
            state = _read_state(path)
        except Exception as error:  # torch raises many kinds for a damaged file
            warnings.append(f"{path}: damaged state file skipped ({first_line(error)})")
            continue
        if run in (None, state.get("run")):
            return state, warnings
        warnings.append(
            f"{path}: state file of another run skipped (of {state.get('run')!r}, expected {run!r})"
        )
    if warnings:
        raise StateError("; ".join(warnings) + "; no usable state is left: --no-resume starts this run again")
    return None, warnings


def _read_state(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    digest, payload = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        raise ValueError("its checksum does not match")
    state = torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}, expected a dictionary")
    return state


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 200 characters."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]
