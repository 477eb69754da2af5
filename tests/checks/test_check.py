"""``fgbench check`` and the diagnostics of gradient quality."""

import pytest
import torch
from torch import nn

from fgbench.checks import check as check_module
from fgbench.checks.check import check
from fgbench.checks.gradients import directional_derivatives, expected_values, sample_gradients
from fgbench.config.config import load_config
from fgbench.datasets.search import DataSearch
from fgbench.errors import ConfigError
from fgbench.options import Options
from fgbench.registry import TRAINERS
from fgbench.trainers import build
from fgbench.trainers.backprop import Backprop
from fgbench.trainers.base import Trainer
from fgbench.trainers.forward_gradient import ForwardGradient

LOSS = nn.CrossEntropyLoss(reduction="none")


def config_of(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(f"dataset: {{name: synthetic}}\nbatch_size: 8\nseed: 1\n{text}")
    return load_config(path)


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 3)),
    )


def batch():
    return torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3


@pytest.mark.parametrize("name", TRAINERS)
def test_every_trainer_passes_its_check(tmp_path, name):
    model = "fc, hidden: 8"
    if name == "local-forward-gradient":  # it trains no other
        model = "local-mixer, channels: 8, groups: 2, patches: 2"
    config = config_of(tmp_path, f"model: {{name: {model}}}\ntrainer: {{name: {name}}}")
    report, ok = check(config, DataSearch(download=False), draws=16)
    assert ok, report
    assert "verdict: consistent" in report, report
    assert "proved" not in report
    for line in ("forward mode", "reverse mode", "central differences", "mean cosine"):
        assert line in report


@pytest.mark.parametrize(
    "model", ["vgg16, width: 2", "resnet18, width: 2", "vit, width: 8, depth: 1, heads: 2"]
)
def test_fgbench_check_finds_every_model_consistent(tmp_path, model):
    config = config_of(tmp_path, f"model: {{name: {model}}}\ntrainer: {{name: forward-gradient}}")
    report, ok = check(config, DataSearch(download=False), draws=4)
    assert ok, report


@pytest.mark.parametrize(
    "options",
    [
        "tangents: 2, guess: rademacher",
        "guess: sphere, exact_output: true",
        "structure: rank1, guess: rademacher",
        "combine: projection, tangents: 4",
        "combine: projection, tangents: 4, rescale: true",
    ],
)
def test_the_expected_values_are_those_of_the_options(tmp_path, options):
    trainer = f"trainer: {{name: forward-gradient, {options}}}"
    config = config_of(tmp_path, f"model: {{name: fc, hidden: 8}}\n{trainer}")
    report, ok = check(config, DataSearch(download=False), draws=100)
    assert ok, report
    assert report.endswith(
        "verdict: consistent; not checked: mean" if "projection" in options else "verdict: consistent"
    )


class TenPercentTooLong(ForwardGradient):
    def compute_gradients(self, model, *args):
        stats = super().compute_gradients(model, *args)
        for param in model.parameters():
            param.grad *= 1.1
        return stats


def test_a_wrong_factor_is_found():
    model, (inputs, labels) = small_model().eval(), batch()
    for trainer_class, consistent in ((ForwardGradient, True), (TenPercentTooLong, False)):
        trainer = trainer_class(tangents=100)
        sampled = sample_gradients(trainer, model, LOSS, inputs, labels, 0, 100)
        figures = sampled.figures(expected_values(trainer, model, sampled))
        assert all(figure.consistent for figure in figures) == consistent


def test_an_inconsistent_gradient_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "load", lambda kind, name: TenPercentTooLong)
    config = config_of(tmp_path, "model: {name: fc, hidden: 8}\ntrainer: {name: forward-gradient}")
    report, ok = check(config, DataSearch(download=False), draws=4)
    assert not ok
    assert report.endswith("verdict: inconsistent: formula, mean")


def test_a_wrong_derivative_rule_is_found():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(value):
            return value * 1

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, grad):
            return 1.01 * grad

        @staticmethod
        def jvp(ctx, tangent):
            return 1.0 * tangent

    class Layer(nn.Module):
        def forward(self, value):
            return Wrong.apply(value)

    inputs, labels = batch()
    assert directional_derivatives(small_model(), LOSS, inputs, labels, 0).agree
    wrong = nn.Sequential(*small_model(), Layer())
    assert not directional_derivatives(wrong, LOSS, inputs, labels, 0).agree


def test_where_forward_mode_refuses_a_model_the_other_two_are_compared():
    model, (inputs, labels) = small_model(), batch()
    model[0].register_full_backward_hook(lambda *_: None)
    found = directional_derivatives(model, LOSS, inputs, labels, 0)
    assert found.agree
    assert "not checked: " in found.lines()[0]
    assert "backward hook" in found.lines()[0]


def test_a_trainer_that_cannot_train_the_model_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.normalization: group"):
        check(config_of(tmp_path, "model: {name: resnet18}\ntrainer: {name: activity-forward-gradient}"))


def test_the_installation_check_tries_every_trainer(monkeypatch):
    report, ok = check(None, DataSearch(download=False))
    assert ok, report
    assert all(name in report for name in TRAINERS)
    assert torch.__version__ in report

    def broken(name, device):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(check_module, "_try_step", broken)
    report, ok = check(None, DataSearch(download=False))
    assert not ok
    assert "no kernel" in report


class OwnTrainer(Trainer):
    """A user's, which declares nothing: each entry of the gradient times a random number of mean 1."""

    class Options(Options):
        name: str = "test_check:OwnTrainer"

    def __init__(self, options):
        super().__init__()

    def compute_gradients(self, model, loss_fn, inputs, labels, generator, **_):
        stats = Backprop().compute_gradients(model, loss_fn, inputs, labels, generator)
        for param in model.parameters():
            param.grad *= 1 + torch.randn(param.shape, generator=generator)
        return stats


class HalfDeclared(OwnTrainer):
    def compute_gradients(self, model, loss_fn, inputs, labels, generator, **_):
        return Backprop().compute_gradients(model, loss_fn, inputs, labels, generator)

    def reference(self, *batch):
        return Backprop().reference(*batch)


@pytest.mark.parametrize(
    ("trainer", "verdict"),
    [(OwnTrainer, "not checked: formula, sampler, mean"), (HalfDeclared, "consistent")],
)
def test_of_an_own_trainer_what_it_declares_is_checked_and_the_rest_is_not_called_consistent(
    tmp_path, monkeypatch, trainer, verdict
):
    monkeypatch.setattr(build, "load", lambda kind, name: trainer)
    config = config_of(tmp_path, "model: {name: fc, hidden: 8}\ntrainer: {name: backprop}")
    report, ok = check(config, DataSearch(download=False), draws=4)
    assert ok, report
    assert report.endswith(f"verdict: {verdict}")
