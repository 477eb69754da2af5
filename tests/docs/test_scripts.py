"""The scripts behind results/ run, shrunk, and write what they name."""

import runpy
import sys

import pytest
from pages import ROOT

SCRIPTS = {
    "depth.py": (
        ["--threads", "1", "--repeats", "2", "--depths", "1", "3", "--width", "16"],
        ["depth.csv", "depth.json", "depth.png", "depth.svg"],
    ),
    "scale_model.py": (["--models", "fc", "--batch", "4", "--repeats", "2"], ["scale_model.csv"]),
}


def run(name, arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_writes_its_files(tmp_path, monkeypatch, name):
    arguments, files = SCRIPTS[name]
    run(name, [*arguments, "--out", str(tmp_path)], monkeypatch)
    for file in files:
        assert (tmp_path / file).stat().st_size


@pytest.mark.nightly
def test_the_test_functions_are_minimised(tmp_path, monkeypatch):
    run("baydin_functions.py", ["--seeds", "1", "--out", str(tmp_path)], monkeypatch)
    assert (tmp_path / "functions.csv").stat().st_size
    assert (tmp_path / "functions.png").stat().st_size


def test_the_error_of_derivatives_is_that_of_their_precision(monkeypatch, capsys):
    run("derivative_error.py", ["--models", "fc", "--tangents", "2", "--batch-size", "4"], monkeypatch)
    row = capsys.readouterr().out.splitlines()[-1]
    name, float32, bfloat16 = (cell.strip() for cell in row.split("|")[1:-1])
    assert name == "fc"
    assert float(float32) < 1e-5
    assert 0.01 < float(bfloat16.removesuffix(" %")) < 5
