"""Every run proves its first step: what is kept, what a mismatch does, that the run itself is the same."""

import json
from pathlib import Path

import pytest
from run_directories import only_run
from small_models import model_for

from fgbench.config.config import Config
from fgbench.registry import TRAINERS
from fgbench.run import runner
from fgbench.run.runner import run_configs
from fgbench.trainers.forward_gradient import ForwardGradient

IMAGES = {"name": "synthetic", "shape": [1, 8, 8], "classes": 3, "train": 60, "test": 12, "augment": True}


def config(results: Path, **changes) -> Config:
    settings = {
        "dataset": IMAGES,
        "model": {"name": "fc", "hidden": 6, "dropout": 0.5},
        "trainer": {"name": "forward-gradient"},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "batch_size": 8,
        "epochs": 2,
        "results_dir": str(results),
    }
    return Config.model_validate(settings | changes)


def learnt(results: Path) -> list[dict]:
    columns = ("train_loss", "train_accuracy", "val_loss", "test_loss", "grad_norm")
    return [{key: row[key] for key in columns} for row in only_run(results).read_metrics()]


def test_a_run_keeps_how_far_its_first_step_was_off(tmp_path: Path) -> None:
    assert run_configs([config(tmp_path)]).code == 0
    kept = only_run(tmp_path).read_summary()["verification"]
    assert (kept["verdict"], kept["step"], kept["form"], kept["derivatives"]) == (
        "verified",
        0,
        "sgd_step",
        1,
    )
    assert kept["derivative_error"] < 1e-5
    assert kept["gradient_error"] < 1e-4
    assert kept["tolerance"] == 1e-2


@pytest.mark.parametrize(
    ("trainer", "verdict"),
    [({"name": "backprop"}, "nothing to verify"), ({"name": "backprop", "recompute": True}, "verified")]
    + [({"name": name}, "verified") for name in ("frozen", "local-loss", "feedback-alignment")],
    ids=str,
)
def test_every_trainer_but_backprop_is_compared_with_it(tmp_path: Path, trainer, verdict: str) -> None:
    assert run_configs([config(tmp_path, trainer=trainer)]).code == 0
    assert only_run(tmp_path).read_summary()["verification"]["verdict"] == verdict


def test_what_trains_is_what_is_verified(tmp_path: Path) -> None:
    run_configs([config(tmp_path, optimizer={"name": "adam"}, precision="bf16")])
    kept = only_run(tmp_path).read_summary()["verification"]
    assert (kept["form"], kept["precision"], kept["tolerance"]) == ("compute_gradients", "bf16", 5e-2)


def test_without_it_nothing_is_kept_and_the_run_is_the_same_run(tmp_path: Path) -> None:
    run_configs([config(tmp_path / "with"), config(tmp_path / "without", verify=False)])
    assert only_run(tmp_path / "without").read_summary()["verification"] is None
    assert only_run(tmp_path / "with").path.name == only_run(tmp_path / "without").path.name


@pytest.mark.parametrize("name", TRAINERS)
def test_a_verified_run_learns_bit_for_bit_what_it_would_have_learnt(tmp_path: Path, name: str) -> None:
    changes = {"trainer": {"name": name}}
    if name in ("forward-gradient", "zeroth-order"):
        changes["model"] = {"name": "vgg16", "width": 2}
    if name == "local-forward-gradient":
        changes["model"] = model_for(name, None)
    run_configs([config(tmp_path / "with", **changes), config(tmp_path / "without", verify=False, **changes)])
    assert learnt(tmp_path / "with") == learnt(tmp_path / "without")


def wrong_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = ForwardGradient.reference

    def off(self, *args):
        true = reference(self, *args)
        return type(true)(true.derivatives + 0.02 * true.scale, true.scale, true.gradient)

    monkeypatch.setattr(ForwardGradient, "reference", off)


def test_a_mismatch_ends_the_run_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong_derivative(monkeypatch)
    assert run_configs([config(tmp_path)]).code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "derivative" in line]
    assert "nothing was trained" in line
    assert "verify: false" in line
    status = only_run(tmp_path).status()
    assert status["state"] == "failed"
    assert "its directional derivative is" in status["reason"]
    assert only_run(tmp_path).read_metrics() == []
    assert run_configs([config(tmp_path, verify=False)]).code == 0


def test_a_resumed_run_proves_its_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_configs([config(tmp_path / "whole", epochs=4)])
    run = only_run(tmp_path / "whole")
    (run.path / "summary.json").unlink()
    status = json.loads((run.path / "status.json").read_text())
    newest = sorted(run.path.glob("state*.pt"), key=lambda path: path.stat().st_mtime)[-1]
    newest.unlink()
    (run.path / "status.json").write_text(json.dumps(status | {"state": "interrupted"}))
    steps = []
    check = runner.verify_next_step
    monkeypatch.setattr(
        runner,
        "verify_next_step",
        lambda training, world: steps.append(training.step) or check(training, world),
    )
    assert run_configs([config(tmp_path / "whole", epochs=4)]).code == 0
    assert steps == [18]
    assert run.read_summary()["verification"]["step"] == 18
