"""What a user's model keeps besides its state_dict goes on where it was, or the run is not resumed."""

from pathlib import Path

import pytest
import torch
from interrupts import interrupt_at
from run_directories import only_run

import fgbench
from fgbench.config.config import Config
from fgbench.errors import FgbenchError
from fgbench.run.runner import run_configs
from fgbench.run.signals import Interrupted

MODULE = """
from collections import deque
import torch
from torch import nn
from fgbench.options import Options

class KeepingOptions(Options):
    how: str = "tensor"

class Keeping(nn.Module):
    def __init__(self, how, features, classes):
        super().__init__()
        self.linear, self.how = nn.Linear(features, classes), how
        self.centre, self.seen, self.last = torch.zeros(classes), [0.0], deque([0.0], maxlen=2)
        self.latest, self.named = None, {"count": 1, "mean": [torch.zeros(classes)]}
        self.generator = torch.Generator().manual_seed(0)
        self.register_buffer("running", torch.zeros(classes), persistent=False)
        self.register_buffer("saved", torch.zeros(classes))
        self.view = self.saved[:]

    def forward(self, x):
        h = self.linear(x.flatten(1))
        mean = h.detach().mean(0)
        kept = {"tensor": self.centre, "buffer": self.running, "view": self.view}.get(self.how)
        if self.how == "list":
            kept = sum(self.seen) / len(self.seen)
        elif self.how == "deque":
            kept = self.last[0]
        elif self.how == "dict":
            kept = self.named["mean"][0] * self.named["count"]
        elif self.how == "none":
            kept = 0.0 if self.latest is None else self.latest
        elif self.how == "generator":
            kept = torch.rand(len(mean), generator=self.generator)
        outputs = h + kept
        if self.training:
            for each in (self.centre, self.running, self.view, self.named["mean"][0]):
                each.mul_(0.9).add_(mean)
            self.seen.append(float(mean[0]))
            self.last.append(float(mean[0]))
            self.named["count"] = self.named["count"] % 3 + 1
            self.latest = mean.clone()
        return outputs.clamp(-5, 5)

def build_keeping(options, image_shape, num_classes):
    model = Keeping(options.how, image_shape[0] * image_shape[1] * image_shape[2], num_classes)
    if options.how != "generator":
        del model.generator
    return model

build_keeping.Options = KeepingOptions
"""


LEARNT = ("epoch", "train_loss", "val_loss", "test_loss", "test_accuracy", "grad_norm")


def make_config(results: Path, model: dict) -> Config:
    settings = {
        "name": "tiny",
        "dataset": {"name": "synthetic", "shape": [1, 8, 8], "classes": 3, "train": 60, "test": 12},
        "model": model,
        "trainer": {"name": "backprop"},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "batch_size": 8,
        "epochs": 3,
        "results_dir": str(results),
    }
    return Config.model_validate(settings)


def learnt(results: Path) -> list[list]:
    return [[row[key] for key in LEARNT] for row in only_run(results).read_metrics()]


@pytest.fixture
def keeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "keeping_model.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda how: {"name": "keeping_model:build_keeping", "how": how}


@pytest.mark.parametrize("how", ["tensor", "buffer", "view", "list", "deque", "dict", "none"])
def test_what_a_model_keeps_goes_on_bit_for_bit(how, keeping, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_configs([make_config(whole, keeping(how))])
    with monkeypatch.context() as patch:
        interrupt_at(9, patch)
        with pytest.raises(Interrupted):
            run_configs([make_config(cut, keeping(how))])
    assert run_configs([make_config(cut, keeping(how))]).code == 0
    assert learnt(cut) == learnt(whole)
    one, other = (fgbench.load_model(only_run(each).path) for each in (cut, whole))
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(one(images), other(images))
    assert float(other.centre.abs().sum()) > 0, "it has what the run left, not what a new model has"


def test_what_no_file_can_hold_is_not_resumed(keeping, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_at(9, patch)
        with pytest.raises(Interrupted):
            run_configs([make_config(tmp_path / "runs", keeping("generator"))])
    assert run_configs([make_config(tmp_path / "runs", keeping("generator"))]).code == 1
    assert "the model keeps 'generator' outside of its state_dict" in capsys.readouterr().err
    with pytest.raises(FgbenchError, match="the model keeps 'generator', which was not saved"):
        fgbench.load_model(only_run(tmp_path / "runs").path)
    assert run_configs([make_config(tmp_path / "runs", keeping("generator"))], resume=False).code == 0
