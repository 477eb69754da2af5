"""Small sweeps, started as a user starts them."""

import contextlib
import io
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fgbench.cli.app import app
from fgbench.storage.run_directory import RunDirectory

BASE = """
base:
  dataset: {name: synthetic, shape: [1, 8, 8], classes: 3, train: 60, test: 12}
  model: {name: fc, hidden: 6}
  trainer: backprop
  epochs: 2
  device: cpu
"""
TWELVE = (
    BASE
    + """
axes:
  trainer: [backprop, forward-gradient]
  optimizer.lr: {log: [1e-3, 1e-1, 3]}
seeds: [0, 1]
"""
)
MEASURED = ("time", "memory", "elapsed", "samples_per_s", "timing_note")


def write(folder: Path, text: str, name: str = "s.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def start(folder: Path, *flags: str, **options: Any) -> subprocess.Popen:
    """``fgbench sweep s.yaml`` in a folder."""
    command = [sys.executable, "-m", "fgbench", "sweep", "s.yaml", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **options)


def call(folder: Path, *flags: str) -> tuple[int, str, str]:
    """The same in this process, to its end: without the seconds in which a process loads torch."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app(["sweep", "s.yaml", *flags])
        except SystemExit as end:
            return int(end.code or 0), out.getvalue(), err.getvalue()
    raise AssertionError("a command ends by SystemExit")


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def reproducible(results: Path) -> dict[str, list[dict]]:
    """The rows of every run, without what is measured."""
    return {
        str(path.parent.relative_to(results)): [
            {key: value for key, value in row.items() if not any(word in key for word in MEASURED)}
            for row in RunDirectory(path.parent).read_metrics()
        ]
        for path in sorted(results.rglob("metrics.csv"))
    }


def wait_for(condition, seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
