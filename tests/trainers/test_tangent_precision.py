"""Tangents in bfloat16 beside values in float32: how far a derivative is off, and what is refused."""

import copy
import warnings

import pytest
import torch
from pydantic import ValidationError
from torch import nn

import fgbench
from fgbench.config.config import Config, config_hash
from fgbench.errors import ConfigError, FgbenchError
from fgbench.models.build import build_model
from fgbench.registry import options_model
from fgbench.trainers.compiled import CompiledPass
from fgbench.trainers.forward_mode import ForwardPass
from zoo import ZOO

LOSS = nn.CrossEntropyLoss(reduction="none")
RANK_ONE = {"guess": "rademacher", "structure": "rank1"}
MODELS = {
    "fc": {"hidden": 64},
    "cnn": {"width": 8, "hidden": 32},
    "resnet18": {"width": 4},
    "vit": {"width": 16, "depth": 2, "heads": 2},
}


def problem(name):
    options = options_model("model", name)(name=name, **MODELS[name])
    model = build_model(options, (1, 16, 16), 3, 0, "cpu").train()
    inputs = torch.randn(32, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return model, inputs.contiguous(memory_format=torch.channels_last), torch.arange(32) % 3


def step(model, inputs, labels, precision, compiled=None, **options):
    trainer = fgbench.ForwardGradient(tangents=16, tangent_precision=precision, **options)
    trainer.compiled = compiled
    model = copy.deepcopy(model)
    stats = trainer.compute_gradients(model, LOSS, inputs, labels, torch.Generator().manual_seed(1))
    return stats, model


def length_of_gradient(model, inputs, labels):
    model = copy.deepcopy(model)
    LOSS(model(inputs), labels).mean().backward()
    return torch.stack([param.grad.norm() for param in model.parameters()]).norm()


@pytest.mark.parametrize("options", [RANK_ONE, {}], ids=["rank-one", "full"])
@pytest.mark.parametrize("name", MODELS)
def test_a_derivative_is_off_by_the_rounding_of_bfloat16_and_no_more(name, options):
    model, inputs, labels = problem(name)
    exact, _ = step(model, inputs, labels, "fp32", **options)
    rough, after = step(model, inputs, labels, "bf16", **options)
    length = length_of_gradient(model, inputs, labels)

    def off(derivatives):
        return (derivatives - exact.directional_derivatives).square().mean().sqrt() / length

    assert 2e-4 < off(rough.directional_derivatives) < 0.02
    assert off(1.05 * exact.directional_derivatives) > 0.02  # which would be seen
    torch.testing.assert_close((rough.loss, rough.outputs), (exact.loss, exact.outputs))  # values are exact
    assert rough.directional_derivatives.dtype == torch.float32
    assert {param.grad.dtype for param in after.parameters()} == {torch.float32}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_what_passes_between_layers_is_bfloat16(memory_format):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3),
        nn.ReLU(), nn.Flatten(), nn.Linear(100, 5),
    ).to(memory_format=memory_format)  # fmt: skip
    tangents = {param: torch.ones(2, *param.shape) for param in model.parameters()}
    found = []
    with ForwardPass(model, tangents, 2, half=True) as forward:
        value = torch.randn(3, 1, 16, 16).contiguous(memory_format=memory_format)
        for layer in model:
            value = layer(value)
            found.append((value.dtype, forward.shadows.get(value).dtype))
    assert set(found) == {(torch.float32, torch.bfloat16)}


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("row", [row for row in ZOO if "dtypes" not in row.name], ids=lambda row: row.name)
def test_on_every_model_of_the_zoo_it_is_right_or_refused(row, quiet):
    torch.manual_seed(0)
    model, inputs = row.build().float(), row.inputs()
    inputs = inputs.float() if inputs.is_floating_point() else inputs
    labels, generator = torch.tensor([0, 1, 2, 2, 1, 0]), torch.Generator().manual_seed(1)
    for options in (RANK_ONE, {}):
        trainer = fgbench.ForwardGradient(tangents=2, tangent_precision="bf16", **options)
        refusal = ""
        try:
            fgbench.verify(trainer, model, LOSS, inputs, labels, generator)
        except ConfigError as error:  # what is wrong would be another FgbenchError
            refusal = str(error)
        assert len(refusal.splitlines()) <= 1


def test_a_run_may_be_off_by_what_bfloat16_loses_and_not_by_more():
    model, inputs, labels = problem("cnn")
    trainer = fgbench.ForwardGradient(tangent_precision="bf16", **RANK_ONE)
    found = fgbench.verify(trainer, model, LOSS, inputs, labels, sgd_step=True)
    assert (found.verdict, found.tolerance) == ("verified", 5e-2)
    with pytest.raises(FgbenchError, match="off by"):
        fgbench.verify(trainer, model, LOSS, inputs, labels, tolerance=1e-5)


def test_compiled_it_is_compared_with_the_eager_pass_in_full_precision(monkeypatch):
    def as_it_is(self, values, positions, given):
        return lambda values, given: self._with_tangents(values, positions, given)

    monkeypatch.setattr("fgbench.trainers.capture.Program._compile", as_it_is)
    torch._dynamo.reset()
    model, inputs, labels = problem("cnn")
    compiled, compared = CompiledPass(), []

    def eager(*args, half):
        compared.append(half)
        return ForwardPass(*args, half=half)

    monkeypatch.setattr("fgbench.trainers.compiled.ForwardPass", eager)
    mine, _ = step(model, inputs, labels, "bf16", compiled, **RANK_ONE)
    eager, _ = step(model, inputs, labels, "bf16", **RANK_ONE)
    assert compiled.reason == ""
    assert set(compared) == {False}
    off = (mine.directional_derivatives - eager.directional_derivatives).square().mean().sqrt()
    assert off < 0.02 * length_of_gradient(model, inputs, labels)


def test_it_takes_float32_parameters_outside_autocast_alone():
    model, inputs, labels = problem("fc")
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ConfigError, match="autocast"):
        step(model, inputs, labels, "bf16")
    with pytest.raises(ConfigError, match=r"float32; '.*' is torch\.float64"):
        step(model.double(), inputs.double(), labels, "bf16")


def test_in_a_config_it_is_another_experiment_and_does_not_go_with_mixed_precision():
    settings = {"name": "tiny", "dataset": {"name": "synthetic"}, "model": {"name": "fc"}}

    def config(precision="fp32", **options):
        trainer = {"name": "forward-gradient", **options}
        return Config.model_validate(settings | {"trainer": trainer, "precision": precision})

    assert config_hash(config(), "cpu") == config_hash(config(tangent_precision="fp32"), "cpu")
    assert config_hash(config(), "cpu") != config_hash(config(tangent_precision="bf16"), "cpu")
    with pytest.raises(ValidationError, match="does not go with precision: bf16"):
        config("bf16", tangent_precision="bf16")
