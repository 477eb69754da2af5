"""One step compared with its formula: what is found, and that nothing is disturbed."""

from dataclasses import replace

import pytest
import torch
from identity_backward import IdentityBackward
from torch import nn

import fgbench
from fgbench.errors import FgbenchError
from fgbench.models.build import build_model
from fgbench.registry import TRAINERS, load, options_model
from fgbench.trainers import forward_gradient, local_forward_gradient
from fgbench.trainers.local.blocks import Block

LOSS = nn.CrossEntropyLoss(reduction="none")
FORWARD = [
    ("forward-gradient", {}),
    ("forward-gradient", {"structure": "rank1", "guess": "rademacher", "tangents": 2}),
    ("forward-gradient", {"tangents": 3, "chunk": 2, "exact_output": True, "clip_derivative": 0.1}),
    ("forward-gradient", {"tangents": 2, "combine": "projection", "rescale": True, "guess": "sphere"}),
    ("zeroth-order", {"tangents": 2}),
    ("zeroth-order", {"structure": "rank1", "guess": "rademacher", "tangents": 2}),
    ("zeroth-order", {"exact_output": True, "guess": "sphere"}),
    ("activity-forward-gradient", {"tangents": 2}),
    ("activity-forward-gradient", {"exact_output": True, "guess": "normal"}),
    ("feedback-forward-gradient", {}),
    ("feedback-forward-gradient", {"correction": 0.5, "grid": None}),
    ("feedback-forward-gradient", {"combine": "projection"}),
]
GUIDED = [
    {},
    {"guess": "ntk", "granularity": "tensor", "chunk": 2},
    {"guess": "normal"},
    {"guess": "rademacher", "target": "local"},
    {"space": "activations"},
    {"space": "activations", "guess": "rademacher"},
    {"space": "activations", "guess": "normal", "target": "local"},
]
MIXER = {"channels": 8, "groups": 2, "patches": 2, "blocks": 2}
MODELS = {
    "fc": {"hidden": 16, "dropout": 0.3},
    "cnn": {"width": 4, "hidden": 16},
    "resnet18": {"width": 2, "normalization": "group"},
}


def shipped(name, **changes):
    settings = MIXER if name == "local-mixer" else MODELS.get(name, {})
    options = options_model("model", name)(name=name, **{**settings, **changes})
    return build_model(options, (1, 8, 8), 3, 0, "cpu")


def batch(dtype=torch.float32):
    inputs = torch.randn(6, 1, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(1))
    return inputs.contiguous(memory_format=torch.channels_last), torch.arange(6) % 3


def ready(name, options, model):
    trainer = load("trainer", name)(**options)
    trainer.set_up(model, batch()[0], 3, torch.Generator().manual_seed(0))
    return trainer


def verify(trainer, model, dtype=torch.float32, **changes):
    return fgbench.verify(trainer, model, LOSS, *batch(dtype), torch.Generator().manual_seed(2), **changes)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("name", "options"), FORWARD, ids=str)
def test_the_shipped_models_are_verified(name, options, model):
    model = shipped(model).double()
    trainer = load("trainer", name)(**options)
    # central differences take the output layer's gradient beside the parameters, not at them
    tolerance = 1e-4 if (name, "exact_output" in options) == ("zeroth-order", True) else 1e-8
    for sgd_step in (False, True) if trainer.has_sgd_step else (False,):
        found = verify(trainer, model, torch.float64, sgd_step=sgd_step, tolerance=tolerance)
        assert found.verdict == "verified"
        assert found.derivatives in (options.get("tangents", 1), 6 * options.get("tangents", 1))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("options", GUIDED, ids=str)
def test_guided_steps_are_verified(options, model):
    model = shipped(model).double()
    trainer = load("trainer", "guided-forward-gradient")(**options, hidden=4, auxiliary="linear")
    trainer.set_up(model, batch(torch.float64)[0], 3, torch.Generator().manual_seed(0))
    found = verify(trainer, model, torch.float64, tolerance=1e-8)
    assert found.verdict == "verified"
    assert found.derivatives >= len(model) - 2


@pytest.mark.parametrize("guess", ["normal", "rademacher"])
@pytest.mark.parametrize("changes", [{}, {"blocks": 1, "patches": 1}, {"blocks": 3, "groups": 4}], ids=str)
@pytest.mark.parametrize("losses", ["local", "global"])
def test_steps_by_losses_of_a_local_mixer_are_verified(changes, guess, losses):
    model = shipped("local-mixer", **changes).double()
    nn.init.normal_(model[-1][-1].weight, std=0.1)
    trainer = load("trainer", "local-forward-gradient")(guess=guess, losses=losses)
    trainer.set_up(model, batch(torch.float64)[0], 3, torch.Generator().manual_seed(0))
    found = verify(trainer, model, torch.float64, tolerance=1e-8)
    assert found.verdict == "verified"
    options = {"blocks": 2, "patches": 2, "groups": 2} | changes
    copies = options["blocks"] * options["patches"] ** 2 * options["groups"]
    assert found.derivatives == 6 * (copies if losses == "local" else 1)


def test_a_step_by_local_losses_that_is_not_what_it_says_is_found(monkeypatch):
    model = shipped("local-mixer")
    trainer = ready("local-forward-gradient", {}, model)
    fill = local_forward_gradient._fill

    def half(module, gradients):
        fill(module, {name: 0.9 * part for name, part in gradients.items()})

    monkeypatch.setattr(local_forward_gradient, "_fill", half)
    with pytest.raises(FgbenchError, match="the gradient it makes"):
        verify(trainer, model)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda gradient: {name: 1.1 * part for name, part in gradient.items()}, "the gradient it makes"),
        (lambda gradient: {name: -part for name, part in gradient.items()}, "the gradient it makes"),
    ],
)
@pytest.mark.parametrize("options", GUIDED, ids=str)
def test_a_guided_step_that_is_not_what_it_says_is_found(options, change, words, monkeypatch):
    model = shipped("cnn")
    trainer = ready("guided-forward-gradient", options | {"auxiliary": "linear"}, model)
    fill = Block.fill
    monkeypatch.setattr(Block, "fill", lambda block, gradient: fill(block, change(gradient)))
    with pytest.raises(FgbenchError, match=words):
        verify(trainer, model)


@pytest.mark.parametrize("name", ["backprop", "frozen", "local-loss", "feedback-alignment"])
def test_the_gradient_of_a_trainer_without_a_derivative_is_verified(name, monkeypatch):
    model = shipped("fc")
    trainer = ready(name, {}, model)
    found = verify(trainer, model)
    assert (found.verdict, found.derivatives) == ("verified", 0)
    compute = type(trainer).compute_gradients

    def wrong(self, model, *args, **given):
        stats = compute(self, model, *args, **given)
        next(param for param in model.parameters() if param.grad is not None).grad.mul_(1.1)
        list(model.parameters())[-1].grad.mul_(1.1)
        return stats

    monkeypatch.setattr(type(trainer), "compute_gradients", wrong)
    with pytest.raises(FgbenchError, match="the gradient it makes"):
        verify(trainer, model)


def leaves(*values):
    found = torch.utils._pytree.tree_leaves(values)
    found = [list(leaf.encode()) if isinstance(leaf, str) else leaf for leaf in found]
    return [torch.as_tensor(leaf).clone() for leaf in found if leaf is not None]


@pytest.mark.parametrize("name", TRAINERS)
def test_verifying_disturbs_nothing(name):
    model = shipped("resnet18") if name == "activity-forward-gradient" else shipped("fc")
    if name in ("backprop", "forward-gradient", "zeroth-order"):
        stage = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5))
        model = nn.Sequential(stage, nn.Flatten(), nn.Linear(72, 3))
    if name == "local-forward-gradient":
        model = shipped("local-mixer")
    trainer = ready(name, {}, model)
    trainer.compute_gradients(model, LOSS, *batch(), torch.Generator())
    if trainer.has_sgd_step:
        trainer.sgd_step(model, LOSS, *batch(), torch.Generator(), 1e-3)
    generator = torch.Generator().manual_seed(2)
    grads = [param.grad for param in model.parameters()]

    def everything():
        return leaves(
            model.state_dict(), grads, trainer.state_dict(), torch.get_rng_state(), generator.get_state()
        )

    before = everything()
    fgbench.verify(trainer, model, LOSS, *batch(), generator, sgd_step=trainer.has_sgd_step)
    assert all(torch.equal(left, right) for left, right in zip(before, everything(), strict=True))
    assert all(param.grad is grad for param, grad in zip(model.parameters(), grads, strict=True))


@pytest.mark.parametrize(
    "trainer", [fgbench.ForwardGradient(), fgbench.ForwardGradient(combine="projection")]
)
def test_a_parameter_without_dimensions_is_verified(trainer):
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(64, 3)
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, value):
            return self.scale * super().forward(value)

    assert verify(trainer, nn.Sequential(nn.Flatten(), Scaled())).verdict == "verified"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "is lazy"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3).requires_grad_(False)), "nothing to train"),
        (lambda: torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, 3))), "TorchScript"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_model_that_cannot_be_trained_is_refused_in_a_line(model, words):
    with pytest.raises(fgbench.ConfigError, match=words):
        verify(fgbench.ForwardGradient(), model())


def test_what_a_module_counts_by_itself_is_put_back():
    class Counting(nn.Linear):
        seen = 0

        def __init__(self):
            super().__init__(64, 3)
            self.average = torch.zeros(64)
            self.register_buffer("kept", torch.zeros(64))

        def forward(self, value):
            self.seen += 1
            self.average = self.average.lerp(value.detach().mean(0), 0.1)
            self.kept = self.kept + 1
            return super().forward(value)

    model = nn.Sequential(nn.Flatten(), Counting())
    model(batch()[0])
    average = model[1].average.clone()
    verify(fgbench.ZerothOrder(), model)
    assert model[1].seen == 1
    assert torch.equal(model[1].average, average)
    assert torch.equal(model[1].kept, torch.ones(64))


class StopsGradients(nn.Module):
    def forward(self, value):
        return value.clamp(-1, 1) + self.Straight.apply(value)

    class Straight(IdentityBackward):
        """A backward pass of its own, as in quantised networks: forward mode sees another function."""

        @staticmethod
        def forward(value):
            return value.round()

        @staticmethod
        def jvp(ctx, tangent):
            return torch.zeros_like(tangent)


def test_a_derivative_that_is_not_that_of_backprop_ends_with_one_line():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), StopsGradients(), nn.Linear(8, 3))
    with pytest.raises(FgbenchError, match=r"^[^\n]*(backprop says|Straight|autograd\.Function)[^\n]*$"):
        verify(fgbench.ForwardGradient(), model)


def scaled(trainer_class, factor):
    class Scaled(trainer_class):
        def compute_gradients(self, model, *args):
            stats = super().compute_gradients(model, *args)
            for param in model.parameters():
                param.grad *= factor
            return stats

    return Scaled


@pytest.mark.parametrize("trainer", [fgbench.ForwardGradient, fgbench.ZerothOrder])
@pytest.mark.parametrize("factor", [0.9, -1.0])
def test_a_gradient_of_the_wrong_length_is_found(trainer, factor):
    with pytest.raises(FgbenchError, match="the gradient it makes of them is off"):
        verify(scaled(trainer, factor)(), shipped("cnn"))


def test_a_tangent_that_depends_on_more_than_the_generator_is_found(monkeypatch):
    draw, count = forward_gradient.FullTangents.sample, iter(range(9))

    def sample(self, *args):
        offset = next(count)
        return {name: tangent + offset for name, tangent in draw(self, *args).items()}

    monkeypatch.setattr(forward_gradient.FullTangents, "sample", sample)
    with pytest.raises(FgbenchError, match="directional derivative"):
        verify(fgbench.ForwardGradient(), shipped("fc", dropout=0))


def test_bfloat16_is_allowed_its_rounding():
    model = shipped("cnn", width=16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = verify(fgbench.ForwardGradient(), model)
        assert found.tolerance == 5e-2
        assert verify(fgbench.ZerothOrder(), model).verdict == "verified"
    assert verify(fgbench.ForwardGradient(), model).tolerance == 1e-2


class Shaky(nn.Module):
    """Sums of steps so fine that a rounding of the inputs moves every derivative by a few percent."""

    def __init__(self, fineness):
        super().__init__()
        self.linear, self.fineness = nn.Linear(64, 3), fineness

    def forward(self, inputs):
        outputs = self.linear(inputs.flatten(1))
        return outputs + outputs * (self.fineness * outputs.detach()).sin() / 10


def derivatives_times(factor):
    class Off(fgbench.ForwardGradient):
        def compute_gradients(self, *args):
            stats = super().compute_gradients(*args)
            return replace(stats, directional_derivatives=factor * stats.directional_derivatives)

    return Off()


@pytest.mark.parametrize(
    ("fineness", "factor", "passes"), [(3e6, 1.02, True), (1.0, 1.02, False), (3e6, 1.1, False)]
)
def test_an_error_passes_as_rounding_only_where_rounding_makes_as_much_and_never_if_large(
    fineness, factor, passes
):
    torch.manual_seed(0)
    model, images, labels = Shaky(fineness), torch.randn(8, 1, 8, 8), torch.arange(8) % 3
    loss_fn = nn.CrossEntropyLoss(reduction="none")

    def verified(trainer, tolerance=None):
        return fgbench.verify(trainer, model, loss_fn, images, labels, tolerance=tolerance)

    assert verified(fgbench.ForwardGradient()).tolerance == 1e-2
    if passes:
        assert 1e-2 < verified(derivatives_times(factor)).tolerance <= 5e-2
    else:
        with pytest.raises(FgbenchError, match="is rounding"):
            verified(derivatives_times(factor))
    with pytest.raises(FgbenchError, match="is rounding"):  # a tolerance that is given is kept
        verified(derivatives_times(factor), 1e-2)


def test_a_loss_that_is_not_finite_is_left_to_the_run():
    model = shipped("fc")
    with torch.no_grad():
        next(iter(model.parameters())).fill_(float("inf"))
    assert "not finite" in verify(fgbench.ForwardGradient(), model).verdict
