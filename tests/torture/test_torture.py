"""The torture of torture.py, a few trials of each kind, in a process of its own since it forks."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("torture.py")


def test_nothing_of_a_little_torture_goes_wrong(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, SCRIPT, "--quick"],
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "WRONG" not in run.stdout
    assert "runs killed and resumed" in run.stdout
    assert not list(tmp_path.glob("torture-*"))
    assert not (tmp_path / "results").exists()
