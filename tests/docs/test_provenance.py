"""results/README.md names the commit behind every run, and no run is of uncommitted code."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT

RESULTS = ROOT / "results"
PAGE = (RESULTS / "README.md").read_text()
FOLDERS = sorted({path.relative_to(RESULTS).parts[0] for path in RESULTS.glob("**/env.json")})


def environments(folder: str) -> dict[Path, dict[str, Any]]:
    return {path.parent: json.loads(path.read_text()) for path in (RESULTS / folder).glob("**/env.json")}


def test_there_are_runs():
    assert FOLDERS


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_commits_of_its_runs_are_named_in_its_row(folder):
    (row,) = re.findall(rf"^\| `{folder}/` .*$", PAGE, re.MULTILINE)
    commits = {env["git_commit"][:7] for env in environments(folder).values()}
    assert set(re.findall(r"\b[0-9a-f]{7}\b", row)) == commits


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_run_is_of_uncommitted_code(folder):
    assert [run for run, env in environments(folder).items() if env["git_dirty"] is not False] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_runs_of_a_folder_come_from_one_kind_of_machine(folder):
    seen = {(env["cpu"], env["threads"], env["torch"]) for env in environments(folder).values()}
    assert len(seen) == 1
