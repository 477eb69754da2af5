"""Activity perturbation on the shipped models as they are shipped: their ReLUs work in place."""

import copy
import itertools
import math

import pytest
import torch
from flat_gradients import LOSS, flat_gradient
from identity_backward import IdentityBackward
from torch import nn
from torch.nn import functional as F

import fgbench
from fgbench.checks.quality import gradient_quality
from fgbench.errors import ConfigError
from fgbench.models.build import build_model
from fgbench.models.options import FCOptions
from fgbench.registry import options_model
from fgbench.trainers.activity_forward_gradient import ActivityForwardGradient
from fgbench.trainers.backprop import Backprop
from fgbench.trainers.feedback_forward_gradient import FeedbackForwardGradient
from fgbench.trainers.next_weights import find_next_layers

SHAPE, CLASSES, SAMPLES = (1, 8, 8), 3, 3
SHIPPED = {"fc": {"hidden": 8, "layers": 2}, "cnn": {"width": 2, "hidden": 8}}


def shipped(name):
    """A shipped model, small and in float64, with a batch."""
    options = options_model("model", name)(name=name, **SHIPPED[name])
    model = build_model(options, SHAPE, CLASSES, 0, "cpu").double()
    inputs = torch.randn(SAMPLES, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return model, inputs, torch.arange(SAMPLES) % CLASSES


def variance_in_theory(model, inputs, labels):
    """E|g_hat - g|^2 over the batch for masked +-1 perturbations, one tangent, by autograd.

    For sample i and layer l, M maps a change of the layer's output to the weights' gradient, delta is the
    gradient at that output and G = M^T M over the units a ReLU lets through. From the fourth moments of u,
    E|d M u|^2 - |M delta|^2 = |delta of all layers|^2 tr G + delta^T G delta - 2 sum_j delta_j^2 G_jj.
    """
    model = copy.deepcopy(model)
    records = []

    def record(layer, args, output):
        output.retain_grad()
        records.append((layer, args[0].detach(), output))

    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(record)
    LOSS(model(inputs), labels).mean().backward()
    total = 0.0
    for sample in range(len(labels)):
        everything = sum(output.grad[sample].square().sum() for _, _, output in records)
        for layer, value, output in records:
            params = list(layer.parameters())
            with torch.enable_grad():
                result = (
                    layer._conv_forward(value[sample, None], *params)
                    if isinstance(layer, nn.Conv2d)
                    else F.linear(value[sample, None], *params)
                )
                units = torch.eye(result.numel(), dtype=result.dtype).view(-1, *result.shape)
                rows = torch.autograd.grad(result, params, units, is_grads_batched=True)
            rows = torch.cat([row.flatten(1) for row in rows], dim=1)
            last = layer is records[-1][0]
            active = torch.ones(len(rows), dtype=torch.bool) if last else output[sample].flatten() > 0
            gram = (rows @ rows.T)[active][:, active]
            delta = output.grad[sample].flatten()[active]
            total += everything * gram.trace() + delta @ gram @ delta
            total -= 2 * (delta.square() * gram.diagonal()).sum()
    return float(total)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_mask_is_on_in_shipped_models(name):
    model, inputs, labels = shipped(name)
    masked, unmasked = (
        flat_gradient(
            ActivityForwardGradient(mask=mask), model, inputs, labels, torch.Generator().manual_seed(0)
        )
        for mask in (True, False)
    )
    assert not torch.equal(masked, unmasked)
    first = next(iter(model.parameters())).numel()
    assert (masked[:first] == 0).sum() >= (unmasked[:first] == 0).sum()


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("name", SHIPPED)
def test_the_variance_on_shipped_models_is_the_masked_one_of_theory(name, mask):
    model, inputs, labels = shipped(name)
    truth = flat_gradient(Backprop(), model, inputs, labels)
    copies, runs = 40, 150
    many = inputs.repeat(copies, 1, 1, 1), labels.repeat(copies)
    generator = torch.Generator().manual_seed(5)
    trainer = ActivityForwardGradient(mask=mask)
    sample = torch.stack([flat_gradient(trainer, model, *many, generator) for _ in range(runs)])
    errors = (sample - truth).square().sum(1)
    expected = variance_in_theory(model, inputs, labels) / copies
    close = abs(errors.mean() - expected) <= 4 * errors.std() / math.sqrt(runs)
    assert close == mask, f"{errors.mean():.4g} for {expected:.4g}"
    projections = sample @ truth / (truth @ truth)
    assert abs(projections.mean() - 1) <= 4 * projections.std() / math.sqrt(runs)


class Centred(nn.Module):
    """Takes the mean over the batch away."""

    def forward(self, value):
        return value - value.mean(0)


def test_a_model_whose_samples_interact_is_refused_and_its_generators_are_left_alone():
    _, inputs, labels = shipped("fc")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), Centred(), nn.ReLU(), nn.Linear(4, 3)).double()
    trainer = ActivityForwardGradient()
    with pytest.raises(ConfigError, match="in this model samples interact"):
        trainer.compute_gradients(model, LOSS, inputs, labels, torch.Generator())
    model[2] = nn.Dropout(0.5)
    torch.manual_seed(0)
    first = flat_gradient(trainer, model, inputs, labels, torch.Generator().manual_seed(1))  # looks first
    torch.manual_seed(0)
    assert torch.equal(first, flat_gradient(trainer, model, inputs, labels, torch.Generator().manual_seed(1)))


def test_one_sample_says_nothing_of_whether_samples_interact_nor_one_mode_of_the_other():
    class CentredInTraining(Centred):
        def forward(self, value):
            return super().forward(value) if self.training else value

    _, inputs, labels = shipped("fc")
    layers = nn.Flatten(), nn.Linear(64, 4), CentredInTraining(), nn.ReLU(), nn.Linear(4, 3)
    model, trainer = nn.Sequential(*layers).double(), ActivityForwardGradient()
    trainer.compute_gradients(model, LOSS, inputs[:1], labels[:1], torch.Generator())
    trainer.compute_gradients(model.eval(), LOSS, inputs, labels, torch.Generator())
    with pytest.raises(ConfigError, match="in this model samples interact"):
        trainer.compute_gradients(model.train(), LOSS, inputs, labels, torch.Generator())


def in_halves(value):
    """Normalised by each half of the batch."""
    parts = value.view(2, -1, value.shape[1])
    return ((parts - parts.mean(1, keepdim=True)) / (parts.std(1, keepdim=True) + 1e-3)).view(value.shape)


class Apply(nn.Module):
    """A module of a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, value):
        return self.function(value)


@pytest.mark.parametrize(
    ("layers", "samples"),
    [
        ((nn.Linear(8, 6), Apply(in_halves), nn.Linear(6, 3)), 6),
        ((nn.Linear(8, 6), nn.LayerNorm(6), Apply(lambda v: v - v.mean(0)), nn.Linear(6, 3)), 2),
        ((nn.Linear(8, 6), Apply(lambda v: v.flip(0).cumsum(0).flip(0)), nn.Linear(6, 3)), 2),
    ],
)
def test_samples_that_interact_are_found_whichever_they_are_and_however(layers, samples):
    inputs, labels = rows_of_eight()
    before = torch.get_rng_state()
    for trainer in (ActivityForwardGradient(), FeedbackForwardGradient(correction=1.0, grid=None)):
        with pytest.raises(ConfigError, match="in this model samples interact"):
            trainer.compute_gradients(
                nn.Sequential(*layers), LOSS, inputs[:samples], labels[:samples], torch.Generator()
            )
    assert torch.equal(before, torch.get_rng_state())


def test_layers_that_are_trained_later_are_looked_at_then():
    inputs, labels = rows_of_eight()
    model = nn.Sequential(nn.Linear(8, 6), Apply(lambda v: v - v.mean(0)), nn.ReLU(), nn.Linear(6, 3))
    model[0].requires_grad_(False)
    trainer = ActivityForwardGradient()
    trainer.compute_gradients(model, LOSS, inputs, labels, torch.Generator())
    model[0].requires_grad_(True)
    with pytest.raises(ConfigError, match="in this model samples interact"):
        trainer.compute_gradients(model, LOSS, inputs, labels, torch.Generator())


@pytest.mark.parametrize("trainer", [ActivityForwardGradient(), FeedbackForwardGradient()])
def test_layers_that_run_without_a_gradient_are_not_trained(trainer):
    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(64, 8), nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x):
            with torch.no_grad():
                h = self.a(x.flatten(1))
            return self.c(self.b(h.relu()).relu())

    torch.manual_seed(0)
    _, inputs, labels = shipped("fc")
    model = Backbone().double()
    trainer.set_up(model, inputs, CLASSES, torch.Generator())
    assert fgbench.verify(trainer, model, LOSS, inputs, labels).verdict == "verified"
    for seed in range(3):
        trainer.compute_gradients(model, LOSS, inputs, labels, torch.Generator().manual_seed(seed))
        assert not any(param.grad is not None and param.grad.any() for param in model.a.parameters())
    assert model.b.weight.grad.any()


class StraightThrough(torch.autograd.Function):
    """Rounds, and passes gradients as they are."""

    @staticmethod
    def forward(ctx, value):
        return (value * 16).round() / 16

    @staticmethod
    def backward(ctx, gradient):
        return gradient


APPLIED = StraightThrough.apply


class Own(nn.Module):
    """Two layers of 8 units, used as a function says, and an output layer."""

    def __init__(self, use):
        super().__init__()
        torch.manual_seed(0)
        self.use, self.a, self.b, self.out = use, nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.use(self, x).relu())


def rows_of_eight():
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3


@pytest.mark.parametrize("trainer", [ActivityForwardGradient, FeedbackForwardGradient])
@pytest.mark.parametrize(
    "use",
    [
        lambda s, x: F.linear(x, StraightThrough.apply(s.a.weight), s.a.bias),
        lambda s, x: F.linear(x, APPLIED(s.a.weight), s.a.bias),
        lambda s, x: F.linear(x, s.a.weight.T, s.a.bias),
        lambda s, x: F.linear(x[:, :4], s.a.weight[:, :4], s.a.bias),
        lambda s, x: F.linear(x, s.a.weight, s.a.bias.view(-1)),
        lambda s, x: F.conv1d(x[..., None], s.a.weight[..., None], s.a.bias)[..., 0],
        lambda s, x: s.a(x) + s.b(s.a.weight[:6]),
    ],
)
def test_a_layers_parameter_that_comes_to_a_layer_otherwise_than_as_it_is_is_refused(use, trainer):
    model, (inputs, labels) = Own(use), rows_of_eight()
    with pytest.raises(ConfigError, match="used otherwise than as weight or bias of a linear") as refusal:
        trainer().compute_gradients(model, LOSS, inputs, labels, torch.Generator())
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("trainer", [ActivityForwardGradient(), FeedbackForwardGradient()])
def test_a_detached_weight_is_a_constant_whatever_is_made_of_it(trainer):
    model = Own(lambda s, x: F.linear(x, StraightThrough.apply(s.a.weight.detach().T), s.a.bias))
    assert fgbench.verify(trainer, model, LOSS, *rows_of_eight()).verdict == "verified"


@pytest.mark.parametrize("trainer", [ActivityForwardGradient, FeedbackForwardGradient])
@pytest.mark.parametrize(
    "use",
    [
        lambda s, x: s.a(x).view(6, 2, 4).relu().flatten(1),
        lambda s, x: s.a(x).view(6, 2, 4).relu_().flatten(1),
        lambda s, x: s.a(x).view(6, 8).relu_(),
        lambda s, x: s.a(x).T.relu().T,
        lambda s, x: (lambda seen: seen.relu().flatten(1) + seen.flatten(1))(s.a(x).view(6, 2, 4)),
    ],
)
def test_a_relu_of_a_view_of_an_output_is_verified(use, trainer):
    model = Own(use).double()
    inputs, labels = rows_of_eight()
    found = fgbench.verify(trainer(), model, LOSS, inputs.double(), labels, tolerance=1e-8)
    assert found.verdict == "verified"


@pytest.mark.parametrize("trainer", [ActivityForwardGradient, FeedbackForwardGradient])
def test_verification_refuses_in_one_line_what_the_step_refuses(trainer):
    model = Own(lambda s, x: s.a(x.view(-1, 8)).view(6, 5, 8).mean(1))
    with pytest.raises(ConfigError, match=r"the layer of 'a\.weight' folds other dimensions into the batch"):
        fgbench.verify(trainer(), model, LOSS, torch.randn(6, 5, 8), torch.arange(6) % 3)


class Passed(IdentityBackward):
    """As it is, with a forward-mode derivative."""

    @staticmethod
    def forward(value):
        return value.clone()

    @staticmethod
    def jvp(ctx, tangent):
        return tangent.clone()


@pytest.mark.parametrize(
    "use",
    [
        lambda s, x: (lambda y: y.tanh() if y.requires_grad else y)(s.a(x)),
        lambda s, x: Passed.apply(s.a(x)),
        lambda s, x: (lambda y: y.relu() + Passed.apply(y))(s.a(x)),
    ],
)
@pytest.mark.parametrize(
    "trainer",
    [ActivityForwardGradient(), FeedbackForwardGradient(), fgbench.ForwardGradient(exact_output=True)],
)
def test_models_that_ask_for_requires_grad_or_apply_functions_are_verified(use, trainer):
    assert fgbench.verify(trainer, Own(use), LOSS, *rows_of_eight()).verdict == "verified"


@pytest.mark.parametrize(
    "use",
    [
        lambda s, x: torch.func.vmap(lambda row: s.a(row).tanh())(x),
        lambda s, x: torch.func.grad(lambda value: s.a(value).sum())(x),
        lambda s, x: torch.func.jvp(s.a, (x,), (x,))[1],
    ],
)
@pytest.mark.parametrize(
    "trainer",
    [
        ActivityForwardGradient,
        FeedbackForwardGradient,
        fgbench.ForwardGradient,
        fgbench.FeedbackAlignment,
    ],
)
def test_what_torch_func_transforms_is_right_or_refused_in_one_line(use, trainer):
    model, (inputs, labels) = Own(use), rows_of_eight()
    trainer = trainer()
    try:
        trainer.set_up(model, inputs, CLASSES, torch.Generator())
        verdict = fgbench.verify(trainer, model, LOSS, inputs, labels).verdict
    except ConfigError as refusal:
        verdict = str(refusal)
    assert verdict == "verified" or ("torch.func" in verdict and "\n" not in verdict)


def chain(*, seed=0):
    """A chain that narrows from layer to layer, in float64, with a batch."""
    torch.manual_seed(seed)
    sizes = (64, 40, 16, 12, CLASSES)
    layers = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
    model = nn.Sequential(*layers[:-1]).double()
    images = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return model, images, torch.arange(8) % CLASSES


def outputs_and_gradients(model, inputs, labels):
    """Of every linear layer: its output, and the gradient there of every sample's loss."""
    records = []
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [layer.register_forward_hook(lambda _, __, y: records.append(y) or y.clone()) for layer in layers]
    losses = LOSS(model(inputs), labels)
    for hook in hooks:
        hook.remove()
    return records, torch.autograd.grad(losses.sum(), records)


def test_the_range_of_the_next_weights_holds_every_gradient_and_little_more():
    model, inputs, labels = chain()
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    found = find_next_layers(model, set(model.parameters()), "some")
    assert [each.relu for each in found] == [True, True, True, False]
    assert found[-1].weight is None
    outputs, gradients = outputs_and_gradients(model, inputs, labels)
    generator = torch.Generator().manual_seed(2)
    for index, (each, output, gradient) in enumerate(zip(found, outputs, gradients, strict=True)):
        drawn = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        narrowed = each.narrow(drawn, output)
        dot = [(narrowed * gradient).sum(1), (drawn * gradient).sum(1)]
        assert torch.allclose(*dot, rtol=1e-8), "the gradient is in the range, so nothing of it is lost"
        assert torch.allclose(each.narrow(gradient, output), gradient, rtol=1e-8, atol=1e-12)
        assert torch.allclose(each.narrow(narrowed, output), narrowed, rtol=1e-8, atol=1e-10)
        if index < 3:
            assert (narrowed[output <= 0] == 0).all()
            units = torch.eye(output.shape[1], dtype=torch.float64)
            for sample in output:  # the trace of a projection is the dimension of its range
                rows = sample.expand(len(units), -1)
                trace = each.narrow(units, rows).diagonal().sum()
                active = int((sample > 0).sum())
                assert abs(trace - min(active, layers[index + 1].out_features)) < 1e-6
    wrong = found[2]._replace(weight=found[2].weight.roll(1, dims=1))
    assert not torch.allclose(wrong.narrow(gradients[2], outputs[2]), gradients[2], rtol=1e-2)


def test_next_weights_is_unbiased_and_far_less_noisy():
    model, inputs, labels = chain()
    truth = flat_gradient(Backprop(), model, inputs, labels)
    trainer, generator = ActivityForwardGradient(guess="next-weights"), torch.Generator().manual_seed(3)
    sample = torch.stack([flat_gradient(trainer, model, inputs, labels, generator) for _ in range(200)])
    projections = sample @ truth / (truth @ truth)
    assert abs(projections.mean() - 1) <= 4 * projections.std() / math.sqrt(len(sample))
    variance = (sample - truth).square().sum(1).mean()
    assert (sample.mean(0) - truth).square().sum() < 2 * variance / len(sample)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, CLASSES)).double()
    noise = {}
    for guess in ("next-weights", "rademacher"):
        trainer = ActivityForwardGradient(guess=guess, exact_output=True)
        found = gradient_quality(trainer, wide, LOSS, inputs, labels, generator, draws=40)
        noise[guess] = found["1"].noise
    assert noise["next-weights"] < 0.1 * noise["rademacher"], "3 dimensions in place of about 100"


@pytest.mark.parametrize("changes", [{}, {"exact_output": True, "tangents": 2}])
def test_next_weights_is_verified_on_the_shipped_fc_and_asks_for_no_backward_pass(changes, monkeypatch):
    model, inputs, labels = shipped("fc")
    trainer = ActivityForwardGradient(guess="next-weights", **changes)
    trainer.set_up(model, inputs, CLASSES, torch.Generator())
    assert fgbench.verify(trainer, model, LOSS, inputs, labels, tolerance=1e-8).verdict == "verified"
    assert trainer.uses_backwards is fgbench.Backwards.WEIGHTS
    for place in ("grad", "backward"):
        monkeypatch.setattr(torch.autograd, place, None)
    trainer.compute_gradients(model, LOSS, inputs, labels, torch.Generator())


class Residual(nn.Sequential):
    def forward(self, value):
        return value + super().forward(value)


def patched(module):
    """A chain whose second module runs another forward than that of its class."""
    plain = module.forward
    module.forward = lambda value: value + plain(value)
    return nn.Sequential(nn.Flatten(), module, nn.Linear(64, 3))


def test_next_weights_refuses_several_rows_for_a_sample():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2), nn.Flatten(), nn.Linear(8, 3))
    trainer, batch = ActivityForwardGradient(guess="next-weights"), (torch.randn(3, 4, 8), torch.arange(3))
    with pytest.raises(ConfigError, match=r"^guess: next-weights needs .* got shape \(3, 4, 8\)$"):
        trainer.compute_gradients(model, LOSS, *batch, torch.Generator())


def test_units_that_are_all_off_are_no_error():
    model, inputs, labels = chain()
    with torch.no_grad():
        model[1].bias.fill_(-1e3)
    trainer = ActivityForwardGradient(guess="next-weights")
    gradient = flat_gradient(trainer, model, inputs, labels, torch.Generator())
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (lambda: shipped("cnn")[0], "Conv2d"),
        (lambda: build_model(FCOptions(hidden=8, dropout=0.5), SHAPE, CLASSES, 0, "cpu").double(), "Dropout"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 3)).double(), "Tanh"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, 3)),
            "LayerNorm",
        ),
        (lambda: nn.Sequential(nn.Flatten(), Residual(nn.Linear(64, 64)), nn.Linear(64, 3)), "Residual"),
        (lambda: patched(nn.Linear(64, 64)), "Linear with hooks, or a forward of its own"),
        (lambda: patched(nn.Sequential(nn.Linear(64, 64))), "Sequential with hooks, or a forward of its own"),
    ],
)
def test_next_weights_refuses_what_is_no_chain_of_linear_layers(model, what):
    inputs = torch.zeros(SAMPLES, *SHAPE)
    trainer = ActivityForwardGradient(guess="next-weights")
    with pytest.raises(ConfigError, match=rf"next linear layer .* this model has a {what}$"):
        trainer.set_up(model(), inputs, CLASSES, torch.Generator())
    with pytest.raises(ConfigError, match="guess: next-weights needs mask: true"):
        ActivityForwardGradient(guess="next-weights", mask=False)
