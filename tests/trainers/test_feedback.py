"""Feedback matrices by regression, on the shipped models as they are shipped: their ReLUs work in place."""

import copy
import itertools
import math

import pytest
import torch
from flat_gradients import LOSS, flat_gradient
from torch import nn

import fgbench
from fgbench.checks.quality import gradient_quality
from fgbench.errors import ConfigError
from fgbench.models.build import build_model
from fgbench.registry import options_model
from fgbench.trainers.backprop import Backprop
from fgbench.trainers.feedback_alignment import FeedbackAlignment
from fgbench.trainers.feedback_forward_gradient import FeedbackForwardGradient
from fgbench.trainers.feedback_matrices import corrected
from fgbench.trainers.sampling import sample_tangents

SHAPE, CLASSES = (1, 8, 8), 3
SHIPPED = {"fc": {"hidden": 8, "layers": 2}, "cnn": {"width": 2, "hidden": 8}}


def shipped(name, samples=6, **changes):
    """A shipped model, small and in float64, with a batch."""
    options = options_model("model", name)(name=name, **(SHIPPED[name] | changes))
    model = build_model(options, SHAPE, CLASSES, 0, "cpu").double()
    inputs = torch.randn(samples, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return model, inputs, torch.arange(samples) % CLASSES


def rows(values):
    return values.movedim(1, -1).flatten(1)


def hidden_layers(model, inputs):
    """Per hidden layer its output, what its ReLU lets through, and the outputs' Jacobian (B, C, n)."""
    model = copy.deepcopy(model)
    outputs_of = []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda layer, args, output: outputs_of.append(output))
    outputs = model(inputs)
    hidden = outputs_of[:-1]
    by_class = [torch.autograd.grad(outputs[:, c].sum(), hidden, retain_graph=True) for c in range(CLASSES)]
    jacobians = [torch.stack([rows(each[k]) for each in by_class], 1) for k in range(len(hidden))]
    error = outputs.softmax(1) - nn.functional.one_hot(torch.arange(len(inputs)) % CLASSES, CLASSES)
    return [each.detach() for each in hidden], jacobians, error.detach()


def patches_of(output, grid):
    """Shape (positions, patches): 1 / side where a position lies in a patch; the identity without patches."""
    if output.dim() != 4:
        return torch.ones(1, 1, dtype=torch.float64)
    height, width = output.shape[2:]
    side = math.ceil(max(height, width) / grid) if grid else 1
    across = math.ceil(width / side)
    patches = torch.zeros(height * width, math.ceil(height / side) * across, dtype=torch.float64)
    for row, column in itertools.product(range(height), range(width)):
        patches[row * width + column, row // side * across + column // side] = 1 / side
    return patches


def check_second_step(trainer, name):
    """The second step's matrices and first layer's gradient against the formula, entry by entry."""
    model, inputs, labels = shipped(name)
    generator = torch.Generator().manual_seed(3)
    flat_gradient(trainer, model, inputs, labels, generator)
    before = [matrix.clone() for matrix in trainer.state_dict()["feedback"]]
    state = generator.get_state()
    flat_gradient(trainer, model, inputs, labels, generator)
    generator.set_state(state)
    hidden, jacobians, error = hidden_layers(model, inputs)
    masks = [rows(output > 0) for output in hidden]
    changes, shared = [], []
    for output, mask in zip(hidden, masks, strict=True):
        patches = patches_of(output, trainer.options.grid)
        count = math.isqrt(patches.shape[1])  # of square images
        shape = (*output.shape[:2], count, count)[: output.dim()]
        like = torch.empty(shape, dtype=output.dtype)
        like = like.to(memory_format=torch.channels_last) if output.dim() == 4 else like
        signs = sample_tangents({"": like}, "rademacher", generator)[""]
        signs = signs.flatten(2) if output.dim() == 4 else signs[..., None]
        change = (signs @ patches.T).movedim(1, -1).flatten(1) * mask
        by_channel = change.view(len(change), -1, output.shape[1]).movedim(-1, 1)
        changes.append(change)
        shared.append((by_channel @ patches).movedim(1, -1).flatten(1))
    seen = sum(torch.einsum("bcn,bn->bc", j, u) for j, u in zip(jacobians, changes, strict=True))
    left = seen - sum(u @ f.T for u, f in zip(shared, before, strict=True))
    batch, active = len(inputs), sum(float(u.square().sum()) for u in shared) / len(inputs)
    step = trainer.options.rate * batch / (batch + active)
    for f, u, after in zip(before, shared, trainer.state_dict()["feedback"], strict=True):
        assert torch.allclose(after, f + step / batch * left.T @ u, atol=1e-12)
    bias = next(param for own, param in model.named_parameters() if own.endswith("bias"))
    by_patch = (error @ before[0]).view(batch, -1, len(bias)).movedim(-1, 1)
    delta = (by_patch @ patches_of(hidden[0], trainer.options.grid).T).movedim(1, -1).flatten(1)
    delta = delta * masks[0] / batch
    assert torch.allclose(bias.grad, delta.view(batch, -1, len(bias)).sum((0, 1)), atol=1e-12)


@pytest.mark.parametrize(("name", "grid"), [("fc", None), ("cnn", None), ("cnn", 4), ("cnn", 3), ("cnn", 1)])
def test_a_step_is_least_mean_squares_on_what_all_matrices_leave_unexplained(name, grid):
    check_second_step(FeedbackForwardGradient(rate=0.5, grid=grid), name)


@pytest.mark.parametrize("grid", [1, 2, 3, None])
def test_a_patchs_column_explains_all_of_it_where_the_jacobian_is_that_of_a_linear_network(grid):
    """At 5 x 5 positions, which no grid but 1 divides; the truth by backprop, patch by patch."""
    torch.manual_seed(0)
    conv, last = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(50, CLASSES)
    model = nn.Sequential(conv, nn.Flatten(), last).double()
    inputs = torch.randn(4, 1, 5, 5, dtype=torch.float64)
    patches = patches_of(torch.empty(4, 2, 5, 5), grid)
    sizes = patches.sum(0) / patches.max()
    side = 1 / patches.max()
    mean = last.weight.detach().view(CLASSES, 2, 25) @ patches * side / sizes  # over a patch's positions
    trainer = FeedbackForwardGradient(grid=grid)
    matrix = (mean * side).movedim(1, -1).flatten(1)
    trainer.load_state_dict({"feedback": [matrix]})
    labels = torch.arange(4) % CLASSES
    found = trainer.unexplained(model, LOSS, inputs, labels, torch.Generator())
    assert found == pytest.approx({"": 0.0, "0": 0.0}, abs=1e-20)


class Backwards(FeedbackForwardGradient):
    """Moves its matrices the other way."""

    def _learn(self, result, changes):
        before = [matrix.clone() for matrix in self.feedback]
        super()._learn(result, changes)
        self.feedback = [2 * old - new for old, new in zip(before, self.feedback, strict=True)]


class Unmasked(FeedbackForwardGradient):
    """Learns from units that let nothing through, too."""

    def _learn(self, result, changes):
        super()._learn(result, [call.perturbation for call in result.calls])


@pytest.mark.parametrize("wrong", [Backwards, Unmasked])
def test_the_comparison_of_feedback_steps_finds_a_wrong_one(wrong):
    with pytest.raises(AssertionError):
        check_second_step(wrong(rate=0.5, grid=None), "fc")


@pytest.mark.parametrize(("name", "least"), [("fc", 0.95), ("cnn", 0.8)])
def test_matrices_learn_to_point_along_the_gradient(name, least):
    changes = {"hidden": 32, "layers": 1} if name == "fc" else {}
    model, inputs, labels = shipped(name, samples=48, **changes)
    truth = flat_gradient(Backprop(), model, inputs, labels)
    body = truth.numel() - sum(param.numel() for param in list(model.parameters())[-2:])
    trainer, generator = FeedbackForwardGradient(rate=0.5), torch.Generator().manual_seed(4)
    for _ in range(200):
        estimate = flat_gradient(trainer, model, inputs, labels, generator)
    assert torch.cosine_similarity(estimate[:body], truth[:body], dim=0) > least
    assert torch.allclose(estimate[body:], truth[body:])


def test_what_matrices_leave_unexplained_is_nothing_of_jacobians_and_all_where_they_are_zero():
    """Two linear layers in front of the output layer, so the Jacobian is the same for all samples."""
    torch.manual_seed(0)
    first, second, last = nn.Linear(64, 5), nn.Linear(5, 4), nn.Linear(4, CLASSES)
    model = nn.Sequential(nn.Flatten(), first, second, last).double()
    _, inputs, labels = shipped("fc")
    jacobians = [last.weight @ second.weight, last.weight.clone()]
    trainer = FeedbackForwardGradient()

    def shares(*matrices):
        trainer.load_state_dict({"feedback": [matrix.detach() for matrix in matrices]})
        return trainer.unexplained(model, LOSS, inputs, labels, torch.Generator())

    assert shares() == {"": 1.0, "1": 1.0, "2": 1.0}
    assert shares(*jacobians) == pytest.approx({"": 0.0, "1": 0.0, "2": 0.0}, abs=1e-20)
    found = shares(jacobians[0] / 2, -jacobians[1])
    assert (found["1"], found["2"]) == pytest.approx((0.25, 4.0))
    assert 0.25 < found[""] < 4.0


def test_diagnostics_tell_what_is_unexplained_layer_by_layer_and_leave_the_trainer_alone():
    model, inputs, labels = shipped("cnn")
    trainer, generator = FeedbackForwardGradient(rate=0.5), torch.Generator().manual_seed(4)
    flat_gradient(trainer, model, inputs, labels, generator)
    before = [matrix.clone() for matrix in trainer.state_dict()["feedback"]]
    found = gradient_quality(trainer, model, LOSS, inputs, labels, generator)
    known = [layer for layer, each in found.items() if not math.isnan(each.unexplained)]
    assert known == list(found)[:-1]  # all but the output layer, whose gradient is exact
    assert all(torch.equal(*pair) for pair in zip(before, trainer.state_dict()["feedback"], strict=True))
    others = gradient_quality(Backprop(), model, LOSS, inputs, labels, generator)
    assert all(math.isnan(each.unexplained) for each in others.values())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_corrections_mean_and_error_are_those_of_the_formula(share):
    """Over all sign patterns of the active units, so exactly."""
    generator = torch.Generator().manual_seed(0)
    active = torch.tensor([1.0, 1, 0, 1, 1, 0, 1]).double()
    g, c = (torch.randn(7, generator=generator, dtype=torch.float64) * active for _ in range(2))
    n = int(active.sum())
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=n))).double()
    u = torch.zeros(len(signs), 7, dtype=torch.float64)
    u[:, active > 0] = signs
    split = [3, 4]  # two layers
    guidance = list(c.expand(len(u), -1).split(split, dim=1))
    estimates = torch.cat(corrected(guidance, list(u.split(split, dim=1)), u @ g, share), dim=1)
    assert torch.allclose(estimates.mean(0), c + share * (g - c))
    distance = (g - c).square().sum()
    error = (estimates - g).square().sum(1).mean()
    assert torch.allclose(error, (1 - share) ** 2 * distance + share**2 * (n - 1) * distance)


def test_a_whole_correction_is_unbiased_whatever_the_matrices(monkeypatch):
    """Over all sign patterns of one sample's hidden layer, so exactly; half a correction is not."""
    model, inputs, labels = shipped("fc", samples=1, hidden=6, layers=1)
    truth = flat_gradient(Backprop(), model, inputs, labels)
    matrix = torch.randn(CLASSES, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for share in (1.0, 0.5):
        total = torch.zeros_like(truth)
        for signs in itertools.product([-1.0, 1.0], repeat=6):
            drawn = torch.tensor([signs], dtype=torch.float64)
            monkeypatch.setattr(
                "fgbench.trainers.feedback_forward_gradient.draw_signs", lambda *_, drawn=drawn: drawn
            )
            trainer = FeedbackForwardGradient(correction=share, grid=None)
            trainer.load_state_dict({"feedback": [matrix]})
            total += flat_gradient(trainer, model, inputs, labels, torch.Generator())
        assert torch.allclose(total / 2**6, truth) == (share == 1.0)


def test_only_convolutions_have_patches():
    class Mean(nn.Module):
        def forward(self, value):
            return value.mean((1, 2))

    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 5), Mean(), nn.Linear(5, 3)).double()
    inputs = torch.randn(6, 4, 3, 2, dtype=torch.float64)
    trainer = FeedbackForwardGradient(grid=2)
    found = fgbench.verify(trainer, model, LOSS, inputs, torch.arange(6) % 3, tolerance=1e-8)
    assert found.verdict == "verified"
    flat_gradient(trainer, model, inputs, torch.arange(6) % 3, torch.Generator())
    assert [matrix.shape for matrix in trainer.feedback] == [(3, 4 * 3 * 16), (3, 4 * 3 * 5)]


class Used(nn.Module):
    """Layers, used as a function says, and an output layer."""

    def __init__(self, use):
        super().__init__()
        self.use, self.calls = use, 0
        self.a, self.b, self.c = nn.Linear(8, 7), nn.Linear(8, 7), nn.Linear(7, 7)
        self.out = nn.Linear(7, CLASSES)

    def forward(self, value):
        self.calls += 1
        return self.out(self.use(self, value).tanh())


def by_length(model, value):
    order = value.norm(dim=1).argsort()
    return model.c(model.a(value[order]).relu())[order.argsort()]


def over_time(model, value):
    return model.c(model.a(value.view(8, 8, 1).expand(8, 8, 8).transpose(0, 1)).relu()).mean(0)


@pytest.mark.parametrize("use", [by_length, over_time])
def test_rows_that_are_not_the_samples_own_are_refused(use):
    inputs, labels = torch.randn(8, 8), torch.arange(8) % CLASSES
    refusal = "rows of .* change other samples' outputs"
    with pytest.raises(ConfigError, match=refusal):
        flat_gradient(FeedbackForwardGradient(), Used(use), inputs, labels, torch.Generator())
    with pytest.raises(ConfigError, match=refusal):
        FeedbackAlignment(feedback="direct").set_up(Used(use), inputs, CLASSES, torch.Generator())


def test_batch_normalisation_leaves_every_sample_its_row_and_the_look_leaves_no_trace():
    layers = nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, CLASSES)
    model, inputs, labels = nn.Sequential(*layers), torch.randn(8, 8), torch.arange(8) % CLASSES
    again, states = copy.deepcopy(model), []
    gradients = []
    for each in (model, again, model):
        each.load_state_dict(again.state_dict() if states == [] else states[0])
        states.append(copy.deepcopy(each.state_dict()))
        torch.manual_seed(0)
        trainer = FeedbackForwardGradient()
        gradients.append(flat_gradient(trainer, each, inputs, labels, torch.Generator().manual_seed(0)))
        assert int(each[1].num_batches_tracked) == 1
    assert torch.equal(gradients[0], gradients[2]), "the second time nothing is looked at"
    mean = again[0](inputs).mean(0)
    assert torch.allclose(again[1].running_mean, 0.1 * mean, atol=1e-6)


def test_layers_in_turn_are_refused_and_states_without_names_go_on():
    model = Used(lambda s, x: s.a(x) if s.calls < 10 else s.b(x))
    inputs, labels = torch.randn(8, 8), torch.arange(8) % CLASSES
    trainer = FeedbackForwardGradient()
    flat_gradient(trainer, model, inputs, labels, torch.Generator())
    state = trainer.state_dict()
    assert state["layers"] == ["a"]
    model.calls = 10
    with pytest.raises(ConfigError, match="this pass runs others than the first one: b, not a"):
        flat_gradient(trainer, model, inputs, labels, torch.Generator())
    trainer.load_state_dict({"feedback": state["feedback"]})
    flat_gradient(trainer, model, inputs, labels, torch.Generator())
    assert trainer.state_dict()["layers"] == ["b"]


class Centred(nn.Module):
    """Takes the batch's mean off every sample."""

    def forward(self, value):
        return value - value.mean(0)


def test_a_correction_is_refused_where_samples_interact_and_beside_a_projection():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    _, inputs, labels = shipped("fc")
    with pytest.raises(ConfigError, match="samples interact"):
        FeedbackForwardGradient(correction=0.5, grid=None).compute_gradients(
            model, LOSS, inputs, labels, torch.Generator()
        )
    model[2] = Centred()  # no BatchNorm, and samples interact all the same
    with pytest.raises(ConfigError, match="in this model samples interact"):
        FeedbackForwardGradient(correction=0.5, grid=None).compute_gradients(
            model, LOSS, inputs, labels, torch.Generator()
        )
    with pytest.raises(ConfigError, match="correction goes with combine: direction"):
        FeedbackForwardGradient(correction=0.5, combine="projection", grid=None)
    with pytest.raises(ConfigError, match="correction needs grid: null"):
        FeedbackForwardGradient(correction=0.5)
