"""Run directories that a test has made."""

from pathlib import Path

from fgbench.storage.run_directory import RunDirectory


def only_run(results: Path) -> RunDirectory:
    """The one run in a folder of results."""
    (status,) = results.rglob("status.json")
    return RunDirectory(status.parent)
