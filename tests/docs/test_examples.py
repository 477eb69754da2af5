"""The examples run as they are."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_plain_loop_learns():
    run = subprocess.run(
        [sys.executable, "examples/plain_loop.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *_, last = run.stdout.splitlines()
    assert float(last.rpartition(" ")[2]) > 0.8
