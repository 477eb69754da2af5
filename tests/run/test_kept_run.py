"""Runs kept from earlier versions of fgbench go on and are found finished."""

import csv
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fgbench.cli.app import app

KEPT = Path(__file__).parent / "data" / "before_rooms"
EXACT = ("epoch", "train_loss", "train_accuracy", "val_loss", "test_loss", "test_accuracy", "grad_norm")


def test_a_run_begun_when_all_modules_lay_flat_goes_on_where_it_was(tmp_path):
    run = tmp_path / "kept" / "s0-7cd20a3a"
    shutil.copytree(KEPT / "s0-7cd20a3a", run)
    done = CliRunner().invoke(app, ["run", str(KEPT / "kept.yaml"), "--results", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "resumes after epoch 2, batch 5 of the next" in done.output
    ours, whole = (
        [*csv.DictReader(path.open())] for path in (run / "metrics.csv", KEPT / "whole_metrics.csv")
    )
    assert len(ours) == len(whole) == 4
    for mine, expected in zip(ours, whole, strict=True):
        assert [float(mine[key]) for key in EXACT] == pytest.approx([float(expected[key]) for key in EXACT])
    again = CliRunner().invoke(app, ["run", str(KEPT / "kept.yaml"), "--results", str(tmp_path)])
    assert "finished already, skipped" in again.output
