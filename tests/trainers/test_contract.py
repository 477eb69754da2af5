"""What every trainer promises, checked for every row of the registry; a new trainer is a row there."""

import copy
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from fgbench.errors import ConfigError
from fgbench.models.build import build_model
from fgbench.models.local_mixer import build_local_mixer
from fgbench.models.options import LocalMixerOptions
from fgbench.options import Backwards, Options, declared_backwards
from fgbench.registry import TRAINERS, load, options_model, uses_backwards
from fgbench.trainers import sampling
from fgbench.trainers.backprop import Backprop
from fgbench.trainers.forward_gradient import ForwardGradient

LOSS = nn.CrossEntropyLoss(reduction="none")
SHAPE, CLASSES, BATCH = (1, 8, 8), 3, 6
ONLY = {"local-forward-gradient": "local-mixer"}
"""Trainers of one model; elsewhere they take it in place of the one named."""
MODELS = {
    "fc": {"name": "fc", "hidden": 8, "dropout": 0.3},
    "cnn": {"name": "cnn", "width": 2, "hidden": 8},
    "vgg16": {"name": "vgg16", "width": 2},
    "vgg16-group": {"name": "vgg16", "width": 2, "normalization": "group"},
    "resnet18": {"name": "resnet18", "width": 2},
    "local-mixer": {"name": "local-mixer", "channels": 8, "groups": 2, "patches": 2, "blocks": 2},
    "resnet18-group": {"name": "resnet18", "width": 2, "normalization": "group"},
    "vit": {"name": "vit", "width": 4, "depth": 1, "heads": 2, "dropout": 0.3},
}
VARIANTS = [
    ("backprop", {"recompute": True}),
    ("forward-gradient", {"tangents": 3, "chunk": 2, "guess": "sphere"}),
    ("forward-gradient", {"guess": "rademacher", "structure": "rank1", "tangents": 2}),
    ("forward-gradient", {"combine": "projection", "tangents": 2}),
    ("activity-forward-gradient", {"tangents": 2, "mask": False}),
    ("activity-forward-gradient", {"guess": "normal"}),
    ("guided-forward-gradient", {"space": "activations"}),
    ("guided-forward-gradient", {"guess": "ntk", "target": "local"}),
    ("guided-forward-gradient", {"guess": "rademacher", "granularity": "tensor"}),
    ("feedback-forward-gradient", {"combine": "projection"}),
    ("feedback-alignment", {"feedback": "sign"}),
    ("feedback-alignment", {"feedback": "direct"}),
    ("zeroth-order", {"guess": "sphere", "tangents": 2}),
    ("zeroth-order", {"guess": "rademacher", "structure": "rank1", "tangents": 2}),
    ("forward-gradient", {"exact_stages": 1}),
    (
        "forward-gradient",
        {"exact_stages": 1, "guess": "rademacher", "structure": "rank1", "tangents": 3, "chunk": 2},
    ),
    ("frozen", {"exact_stages": 1}),
    ("local-loss", {"head": "projection"}),
    ("local-forward-gradient", {"guess": "rademacher"}),
    ("local-forward-gradient", {"losses": "global"}),
]
FORWARD = [name for name in TRAINERS if "exact_output" in options_model("trainer", name).model_fields]
DEFAULTS = [(name, {}) for name in TRAINERS]
CASES = [(name, {}, model) for name in TRAINERS for model in MODELS if ONLY.get(name, model) == model]
CASES += [(name, options, model) for name, options in VARIANTS for model in ("fc", "cnn", "resnet18")]
REVERSE_MODE = {"backprop", "feedback-alignment", "guided-forward-gradient", "local-loss"}
"""Trainers that need the backward engine, be it for one block."""


@cache
def built(model):
    options = dict(MODELS[model])
    model = build_model(options_model("model", options["name"])(**options), SHAPE, CLASSES, 0, "cpu")
    if options["name"] == "local-mixer":  # its output layer is 0 at first, and so is the body's gradient
        nn.init.normal_(model[-1][-1].weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return model


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(BATCH, *SHAPE, generator=generator).contiguous(memory_format=torch.channels_last)
    return inputs, torch.arange(BATCH) % CLASSES


def ready(name, options, model):
    """A fresh copy of a model with a trainer set up for it, or a skip where the trainer refuses."""
    if name in ONLY:
        model = ONLY[name]
    model = copy.deepcopy(built(model)).train() if isinstance(model, str) else model
    trainer = load("trainer", name)(**options)
    try:
        trainer.set_up(model, batch()[0], CLASSES, torch.Generator().manual_seed(1))
    except ConfigError as refusal:
        if "linear, convolution and normalisation layers only" in str(refusal):
            pytest.skip(str(refusal))
        interacting = any(isinstance(module, _BatchNorm) for module in model.modules())
        if not interacting or "model.normalization: group" not in str(refusal):
            raise
        pytest.skip(str(refusal))
    return trainer, model


def step(trainer, model, *, seed=2, loss_fn=LOSS, **options):
    """One gradient, from given global and own generators."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(seed)
        return trainer.compute_gradients(model, loss_fn, *batch(), generator, **options)


def gradients(model):
    return {name: param.grad for name, param in model.named_parameters()}


def same(left, right):
    assert left.keys() == right.keys()
    pairs = [(left[name], right[name]) for name in left]
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("name", "options", "model"), CASES)
def test_a_trainer_fills_gradients_and_changes_nothing_else(name, options, model):
    trainer, model = ready(name, options, model)
    reference = copy.deepcopy(model)
    step(Backprop(), reference)
    parameters = {key: value.clone() for key, value in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    twin_trainer, twin = copy.deepcopy((trainer, model))
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    stats = step(trainer, model)

    trained = trainer.trained_names(model)
    assert trained == {key for key, param in model.named_parameters() if param.grad is not None}
    for key, param in model.named_parameters():
        assert param.requires_grad, key
        if key not in trained:
            continue
        assert param.grad.shape == param.shape, key
        assert (param.grad.dtype, param.grad.device) == (param.dtype, param.device), key
        assert param.grad.isfinite().all(), key
        assert not param.grad.requires_grad, key
    assert same(parameters, dict(model.named_parameters()))
    assert modes == [module.training for module in model.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.state_dict().keys() == reference.state_dict().keys()
    tolerance = 0.05 if name == "zeroth-order" else 1e-5  # that one evaluates beside the parameters
    for (key, moved), expected in zip(model.named_buffers(), reference.buffers(), strict=True):
        assert moved.dtype == expected.dtype
        assert torch.allclose(moved.float(), expected.float(), atol=tolerance, rtol=tolerance), key

    true_loss = step(Backprop(), reference).loss
    assert stats.loss.shape == ()
    assert stats.outputs.shape == (BATCH, CLASSES)
    assert not stats.loss.requires_grad
    assert not stats.outputs.requires_grad
    assert torch.allclose(stats.loss, true_loss, rtol=1e-2 if name == "zeroth-order" else 1e-4)
    norm = torch.cat([param.grad.flatten() for param in model.parameters() if param.grad is not None]).norm()
    assert torch.allclose(stats.grad_norm, norm, rtol=1e-4)

    step(twin_trainer, twin)
    assert same(gradients(model), gradients(twin)), "the same generator must give the same bits"


@pytest.mark.parametrize(("name", "options"), DEFAULTS + VARIANTS)
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda params: torch.optim.SGD(params, 1e-3),
        lambda params: torch.optim.SGD(params, 1e-3, momentum=0.9),
        lambda params: torch.optim.Adam(params, 1e-3),
    ],
    ids=["sgd", "momentum", "adam"],
)
def test_a_trainer_works_with_any_optimizer(name, options, optimizer):
    trainer, model = ready(name, options, "fc")
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = optimizer([*model.parameters(), *trainer.parameters()])
    for seed in range(3):
        step(trainer, model, seed=seed)
        optimizer.step()
    moved = {key for key, value in model.named_parameters() if not torch.equal(before[key], value)}
    assert moved == trainer.trained_names(model)
    assert all(value.isfinite().all() for value in model.parameters())


@pytest.mark.parametrize(("name", "options"), DEFAULTS + VARIANTS)
def test_a_trainer_goes_on_from_its_state(name, options):
    trainer, model = ready(name, options, "fc")
    for seed in range(2):
        step(trainer, model, seed=seed)
    state = copy.deepcopy(trainer.state_dict())
    other, twin = ready(name, options, "fc")
    other.load_state_dict(state)
    step(trainer, model)
    step(other, twin)
    assert same(gradients(model), gradients(twin))


@pytest.mark.parametrize(("name", "options"), DEFAULTS + VARIANTS)
def test_a_trainer_that_uses_nothing_backwards_never_asks_for_a_backward_pass(name, options, monkeypatch):
    trainer, model = ready(name, options, "fc")
    asked = []

    def watch(place):
        function = getattr(torch.autograd, place)

        def asking(*args, **kwargs):
            asked.append(place)
            return function(*args, **kwargs)

        monkeypatch.setattr(torch.autograd, place, asking)

    watch("backward")
    watch("grad")
    step(trainer, model)
    assert trainer.uses_backwards is not Backwards.UNKNOWN
    if trainer.uses_backwards is Backwards.NOTHING:
        assert not asked
    elif trainer.uses_backwards is not Backwards.WEIGHTS:  # those are used with a backward pass or without
        assert asked, "a trainer that goes backwards must be seen by this test"
    if not options:
        assert TRAINERS[name].backwards.startswith(trainer.uses_backwards)
        assert uses_backwards({"name": name}) is trainer.uses_backwards


@pytest.mark.parametrize(
    ("name", "options"), DEFAULTS + VARIANTS + [(n, {"exact_output": True}) for n in FORWARD]
)
@pytest.mark.parametrize("model", ["fc", "cnn"])
def test_exact_gradients_are_declared_and_are_the_true_ones(name, options, model):
    trainer, model = ready(name, options, model)
    reference = copy.deepcopy(model)
    step(trainer, model)
    step(Backprop(), reference)
    exact = trainer.exact_names(model)
    assert exact <= trainer.trained_names(model)
    for key in exact:
        expected = gradients(reference)[key]
        tolerance = 1e-3 if name == "zeroth-order" else 1e-5
        assert torch.allclose(gradients(model)[key], expected, atol=tolerance * expected.abs().max()), key
    for key in trainer.trained_names(model) - exact:
        assert not torch.allclose(gradients(model)[key], gradients(reference)[key], rtol=1e-3, atol=0), key


def test_what_a_trainer_uses_backwards_follows_its_options_and_users_own_may_declare_it():
    guided = {"name": "guided-forward-gradient"}
    assert uses_backwards(guided) is Backwards.BLOCKS
    assert uses_backwards(guided | {"guess": "normal"}) is Backwards.STAGES
    assert uses_backwards(guided | {"option_of": "an older version"}) is Backwards.UNKNOWN
    assert uses_backwards({"name": "my_package:MyTrainer"}) is Backwards.UNKNOWN
    assert declared_backwards(Options(name="mine")) is Backwards.UNKNOWN


@pytest.mark.parametrize(("name", "options"), DEFAULTS + VARIANTS)
@pytest.mark.parametrize("model", ["fc", "cnn"])
def test_gradients_accumulate_where_asked(name, options, model):
    trainer, model = ready(name, options, model)
    twin_trainer, twin = copy.deepcopy((trainer, model))
    owned = [*twin.parameters(), *twin_trainer.parameters()]
    totals = []
    for seed in (1, 2):  # two micro-batches, as with loss.backward()
        step(trainer, model, seed=seed, accumulate=True)
        for param in owned:
            param.grad = None
        step(twin_trainer, twin, seed=seed)
        totals.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in owned])
    for param, one, two in zip([*model.parameters(), *trainer.parameters()], *totals, strict=True):
        found = torch.zeros_like(param) if param.grad is None else param.grad
        torch.testing.assert_close(found, one + two)


@pytest.mark.parametrize("name", TRAINERS)
def test_what_cannot_be_trained_is_one_clear_line(name):
    trainer, model = ready(name, {}, "fc")
    empty = torch.zeros(0, *SHAPE), torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ConfigError, match="batch is empty"):
        trainer.compute_gradients(model, LOSS, *empty, torch.Generator())
    model.turn = nn.Parameter(torch.ones(1, dtype=torch.cfloat))
    with pytest.raises(ConfigError, match="'turn' is complex, which no trainer takes"):
        step(trainer, model)
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        step(trainer, model)


def test_a_wrong_option_is_one_clear_line():
    with pytest.raises(
        ConfigError, match=r"^ForwardGradient: tangent: unknown key \(did you mean 'tangents'\?\); allowed: "
    ):
        ForwardGradient(tangent=4)
    with pytest.raises(ConfigError, match=r"^ForwardGradient: tangents: got 0, expected greater than 0$"):
        ForwardGradient(tangents=0)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_scalar_loss_is_an_error_that_names_the_remedy(name):
    trainer, model = ready(name, {}, "fc")
    with pytest.raises(ConfigError, match=r'reduction="none"'):
        step(trainer, model, loss_fn=nn.CrossEntropyLoss())


@pytest.mark.parametrize("name", TRAINERS)
def test_frozen_parameters_get_no_gradient(name):
    model = copy.deepcopy(built("cnn"))
    frozen = next(iter(model.parameters())).requires_grad_(False)
    trainer, model = ready(name, {}, model)
    step(trainer, model)
    assert frozen.grad is None
    assert {key for key, grad in gradients(model).items() if grad is not None} == trainer.trained_names(model)


@pytest.mark.parametrize(
    ("name", "options"),
    [case for case in DEFAULTS + VARIANTS if load("trainer", case[0])().has_sgd_step],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_an_sgd_step_is_a_step_along_the_gradient(name, options, dtype, tolerance):
    trainer, model = ready(name, options, copy.deepcopy(built("cnn")))
    model.to(dtype)
    inputs, labels = batch()
    other_trainer, other = copy.deepcopy((trainer, model))
    trainer.compute_gradients(model, LOSS, inputs.to(dtype), labels, torch.Generator().manual_seed(2))
    torch.optim.SGD(model.parameters(), 1e-3).step()
    other_trainer.sgd_step(other, LOSS, inputs.to(dtype), labels, torch.Generator().manual_seed(2), 1e-3)
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(left, right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("model", ["fc", "cnn", "vgg16", "resnet18-group"])
def test_frozen_trains_the_output_layer_by_its_true_gradient_and_nothing_else(model):
    trainer, model = ready("frozen", {}, model)
    reference = copy.deepcopy(model)
    before = {key: value.clone() for key, value in model.named_parameters()}
    step(trainer, model)
    step(Backprop(), reference)
    *body, weight, bias = before
    for key in (weight, bias):
        assert torch.allclose(gradients(model)[key], gradients(reference)[key], rtol=1e-4, atol=1e-7), key
    torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.5).step()
    now = dict(model.named_parameters())
    assert all(torch.equal(now[key], before[key]) for key in body), "weight decay must not move the body"
    assert not torch.equal(now[weight], before[weight])


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("model", ["fc", "cnn"])
def test_exact_output_is_the_true_gradient_of_the_output_layer(name, model):
    trainer, model = ready(name, {"exact_output": True}, model)
    reference = copy.deepcopy(model)
    step(trainer, model)
    step(Backprop(), reference)
    last = list(gradients(model))[-2:]
    for key in last:
        expected = gradients(reference)[key]
        tolerance = 1e-3 if name == "zeroth-order" else 1e-5
        assert torch.allclose(gradients(model)[key], expected, atol=tolerance * expected.abs().max()), key
    assert not same(gradients(model), gradients(reference))


@pytest.mark.parametrize("name", [name for name in FORWARD if name not in REVERSE_MODE])
def test_exact_output_needs_a_linear_output_layer(name):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, CLASSES), nn.Tanh())
    trainer = load("trainer", name)(exact_output=True)
    with pytest.raises(ConfigError, match=r"output layer|last layer|last nn\.Linear"):  # noqa: PT012
        trainer.set_up(model, batch()[0], CLASSES, torch.Generator().manual_seed(1))
        step(trainer, model)


class FakeCudaGenerator(torch.Generator):
    """A CPU generator that says it is on the GPU it was asked for."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls)

    def __init__(self, device="cpu"):
        on_gpu = torch.device(device).type == "cuda"
        self.claimed = torch.device("cuda:0" if on_gpu else "cpu")

    def get_state(self):
        with unset_fake_temporarily():
            state = super().get_state().numpy()
        return SimpleNamespace(numpy=lambda: state)

    @property
    def device(self):
        return self.claimed

    def manual_seed(self, seed):
        super().manual_seed(seed)
        return self


class SameDevice(TorchFunctionMode):
    """Fails where a generator fills a tensor of another device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if kwargs.get("generator") is not None:
            assert kwargs["generator"].device == result.device, func
        return result


ON_ANY_DEVICE = [(name, {}) for name in TRAINERS if name not in REVERSE_MODE]
ON_ANY_DEVICE += [(name, {"exact_output": True}) for name in FORWARD if name not in REVERSE_MODE]


@pytest.mark.parametrize(("name", "options"), ON_ANY_DEVICE)
def test_all_of_a_step_is_on_the_device_of_the_model(name, options, monkeypatch):
    monkeypatch.setattr(torch, "Generator", FakeCudaGenerator)
    sampling._sign_table.cache_clear()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
            model = nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES)
            )
            if name in ONLY:
                model = build_local_mixer(LocalMixerOptions(**MODELS[ONLY[name]]), SHAPE, CLASSES)
            inputs, labels = torch.randn(BATCH, *SHAPE), torch.zeros(BATCH, dtype=torch.int64)
            trainer = load("trainer", name)(**options)
            trainer.set_up(model, inputs, CLASSES, FakeCudaGenerator("cpu"))
            with SameDevice():
                stats = trainer.compute_gradients(model, LOSS, inputs, labels, FakeCudaGenerator("cuda"))
            graded = [param for param in model.parameters() if param.grad is not None]
            assert graded
            assert all(param.grad.device == param.device for param in graded)
            assert {stats.loss.device.type, stats.outputs.device.type, stats.grad_norm.device.type} == {
                "cuda"
            }
    finally:
        sampling._sign_table.cache_clear()
