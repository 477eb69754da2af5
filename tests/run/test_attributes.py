"""What a user's model keeps besides its state_dict goes on where it was, or the run is not resumed."""

import logging
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from interrupts import interrupt_at
from run_directories import only_run
from torch import nn

import fgbench
from fgbench.config.config import Config
from fgbench.run.attributes import Attributes, restore_attributes
from fgbench.run.runner import run_configs
from fgbench.run.signals import Interrupted

MODULE = """
from collections import deque
import numpy as np
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
        self.scale, self.number, self.later = np.float64(1.0), torch.tensor(0), None
        self.ring = [1.0]
        self.ring.append(self.ring)  # holds itself
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
        elif self.how == "numpy":
            kept = float(self.scale)
        elif self.how == "another dtype":
            kept = self.number
        elif self.how == "a deque that comes":
            kept = 0.0 if self.later is None else self.later[0]
        elif self.how == "a buffer that comes":
            kept = self.mask if hasattr(self, "mask") else 0.0
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
            self.scale *= np.exp(-1e-2)
            self.number = torch.tensor(0.1 * (self.number + 1))
            self.later = deque([float(mean[0])], maxlen=3) if self.later is None else self.later
            self.later.append(float(mean[0]))
            if self.how == "a buffer that comes" and not hasattr(self, "mask"):
                self.register_buffer("mask", mean.clone(), persistent=False)
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


HOW = ("tensor", "buffer", "view", "list", "deque", "dict", "none", "numpy", "another dtype")
HOW += ("a deque that comes", "a buffer that comes")


@pytest.mark.parametrize("how", HOW)
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
    assert "this run cannot be resumed" in capsys.readouterr().err, "said while it ran"
    assert run_configs([make_config(tmp_path / "runs", keeping("generator"))]).code == 1
    assert "the model keeps 'generator' outside of its state_dict" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="the model keeps 'generator', which was not saved"):
        fgbench.load_model(only_run(tmp_path / "runs").path)
    assert run_configs([make_config(tmp_path / "runs", keeping("generator"))], resume=False).code == 0


class Odd(nn.Module):
    """Holds what no state file needs, or can."""

    def __init__(self):
        super().__init__()
        self.linear = nn.utils.weight_norm(nn.Linear(4, 3))
        self.log, self.lock = logging.getLogger("odd"), threading.Lock()
        self.far, self.turned = torch.empty(2, device="meta"), torch.ones(2, dtype=torch.cfloat).conj()
        self.shape, self.device, self.last = None, None, None
        self.me = self.linear.bias

    def forward(self, x):
        self.log.isEnabledFor(10)
        self.shape, self.device, self.last = x.shape, x.device, x
        return self.linear(x)


def test_what_needs_no_saving_is_in_nobodys_way(tmp_path):
    model = Odd()
    attributes = Attributes(model)
    model(torch.ones(2, 4, requires_grad=True)).sum().backward()
    kept, unsaved = attributes.changed(model)
    assert unsaved == []
    torch.save(kept, tmp_path / "kept.pt")
    twin = Odd()
    restore_attributes(twin, torch.load(tmp_path / "kept.pt", weights_only=True))
    assert (twin.shape, twin.device) == ((2, 4), torch.device("cpu"))
    twin(torch.ones(2, 4))


def test_what_was_deleted_or_would_no_longer_share_memory_is_told():
    model = nn.Linear(2, 2)
    model.fresh, model.alias = True, None
    attributes = Attributes(model)
    del model.fresh
    model.alias = model.bias.detach()
    assert sorted(attributes.changed(model)[1]) == ["alias", "fresh"]


def test_random_numbers_that_were_drawn_outside_of_torch_are_told():
    model = nn.Linear(1, 1)
    model.chance, model.numpy = random.Random(0), np.random.default_rng(0)
    attributes = Attributes(model)
    assert attributes.changed(model) == ({}, [])
    model.chance.random(), model.numpy.random()
    assert attributes.changed(model) == ({}, ["chance", "numpy"])
