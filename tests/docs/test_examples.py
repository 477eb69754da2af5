"""The examples run as they are."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "own_trainer.ipynb"


def outputs(notebook):
    """Of every cell of code the text it printed or showed."""
    return [
        "".join(out.get("text") or out.get("data", {}).get("text/plain", "") for out in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_the_plain_loop_learns():
    run = subprocess.run(
        [sys.executable, "examples/plain_loop.py"],
        cwd=EXAMPLES.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    *_, last = run.stdout.splitlines()
    assert float(last.rpartition(" ")[2]) > 0.8


@pytest.mark.slow
def test_the_notebook_trains_checks_and_compares_a_trainer_of_ones_own():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kept = outputs(notebook)
    where = {"metadata": {"path": str(EXAMPLES)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    found = outputs(notebook)
    for text in (
        "verdict='verified', derivatives=8",
        "verdict='verified', derivatives=1",
        "off by 0.5, at most 0.01 is rounding",
        "one_layer:OneLayer           nothing       1         5",
    ):
        [place] = [place for place, each in enumerate(found) if text in each]
        assert text in kept[place], "the notebook is kept with other outputs than it has"


def test_the_notebook_is_kept_executed_and_small():
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [out for cell in cells for out in cell.outputs if out.output_type == "error"]
    assert [out for cell in cells for out in cell.outputs if "image/png" in out.get("data", {})]
    assert NOTEBOOK.stat().st_size < 100_000
