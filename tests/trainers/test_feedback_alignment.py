"""Feedback alignment: its direction by hand, on the shipped models as they are, and what it comes to."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fgbench.datasets.base import load_splits
from fgbench.datasets.options import DatasetOptions
from fgbench.datasets.search import DataSearch
from fgbench.errors import ConfigError
from fgbench.models.build import build_model
from fgbench.registry import options_model
from fgbench.trainers import feedback_passes
from fgbench.trainers.backprop import Backprop
from fgbench.trainers.feedback_alignment import FeedbackAlignment

LOSS = nn.CrossEntropyLoss(reduction="none")
FEEDBACK = ("random", "sign", "direct")
MODELS = {
    "fc": {"hidden": 16, "layers": 2},
    "cnn": {"width": 2, "hidden": 8},
    "vgg16": {"width": 2},
    "resnet18": {"width": 2},
    "vit": {"width": 8, "heads": 2, "depth": 2},
}


def shipped(name, **changes):
    options = options_model("model", name)(name=name, **{**MODELS[name], **changes})
    return build_model(options, (1, 8, 8), 3, 0, "cpu").double().train()


def batch():
    inputs = torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return inputs.contiguous(memory_format=torch.channels_last), torch.arange(6) % 3


def ready(feedback, model, seed=0):
    trainer = FeedbackAlignment(feedback=feedback)
    trainer.set_up(model, batch()[0], 3, torch.Generator().manual_seed(seed))
    return trainer


def gradients(trainer, model):
    trainer.compute_gradients(model, LOSS, *batch(), torch.Generator())
    return {name: param.grad.clone() for name, param in model.named_parameters()}


def by_hand(weights, biases, backward, direct=None):
    """The gradients of a network of two hidden ReLU layers, one product after the other."""
    inputs, labels = batch()
    x0 = inputs.flatten(1)
    y1 = x0 @ weights[0].T + biases[0]
    x1 = y1.clamp(min=0)
    y2 = x1 @ weights[1].T + biases[1]
    x2 = y2.clamp(min=0)
    e = ((x2 @ weights[2].T + biases[2]).softmax(1) - F.one_hot(labels, 3)) / len(labels)
    delta2 = (e @ (backward[2] if direct is None else direct[1])) * (y2 > 0)
    delta1 = (delta2 @ backward[1] if direct is None else e @ direct[0]) * (y1 > 0)
    return [delta1.T @ x0, delta1.sum(0), delta2.T @ x1, delta2.sum(0), e.T @ x2, e.sum(0)]


def worst(found, expected):
    return max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("feedback", FEEDBACK)
def test_the_direction_is_the_one_worked_out_by_hand(feedback):
    model = shipped("fc")
    trainer = ready(feedback, model)
    found = list(gradients(trainer, model).values())
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    weights, biases = ([getattr(each, name).detach() for each in linear] for name in ("weight", "bias"))
    matrices = [matrix.double() for matrix in trainer._matrices.values()]  # in the order of the way back
    if feedback == "random":
        expected = by_hand(weights, biases, [None, *reversed(matrices)])
        assert [matrix.shape for matrix in matrices] == [weights[2].shape, weights[1].shape]
    elif feedback == "direct":
        expected = by_hand(weights, biases, weights, direct=list(reversed(matrices)))
        assert [tuple(matrix.shape) for matrix in matrices] == [(3, 16), (3, 16)]
    else:
        signs = [each.sign() * (2 / sum(each.shape)) ** 0.5 for each in weights]
        expected = by_hand(weights, biases, signs)
    assert worst(found, expected) < 1e-12

    by_backprop = by_hand(weights, biases, weights)
    assert worst(gradients(Backprop(), model).values(), by_backprop) < 1e-12
    assert worst(found[:4], by_backprop[:4]) > 1e-3, "with the weights themselves it must be another one"


@pytest.mark.parametrize("feedback", FEEDBACK)
@pytest.mark.parametrize("name", MODELS)
def test_a_step_is_its_formula_on_the_shipped_models_and_a_wrong_one_is_seen(feedback, name, monkeypatch):
    model = shipped(name)
    trainer = ready(feedback, model)

    def distance():
        expected = trainer.reference(model, LOSS, *batch(), torch.Generator()).gradient
        found = gradients(trainer, model)
        length = sum(part.square().sum() for part in expected.values()).sqrt()
        return (sum((found[key] - expected[key]).square().sum() for key in found).sqrt() / length).item()

    assert distance() < 1e-10
    back = feedback_passes.PassBack.backward
    wrong = lambda ctx, delta: (delta, 1.1 * back(ctx, delta)[1], None)  # noqa: E731
    monkeypatch.setattr(feedback_passes.PassBack, "backward", staticmethod(wrong))
    assert distance() > 1e-2


def test_with_the_weights_for_matrices_it_is_backprop():
    for name in MODELS:
        model = shipped(name)
        trainer = ready("random", model)
        weights = dict(model.named_parameters())
        trainer._matrix = lambda key, shape, like, weights=weights: weights[key].detach()
        found, true = gradients(trainer, model), gradients(Backprop(), model)
        for key, gradient in true.items():
            assert torch.allclose(found[key], gradient, rtol=1e-8, atol=1e-10), (name, key)


@pytest.mark.parametrize("feedback", ["random", "direct"])
def test_the_matrices_come_from_the_runs_seed_and_survive_a_resume_bit_for_bit(feedback):
    model = shipped("cnn")
    trainer = ready(feedback, model)
    before = gradients(trainer, model)
    state = copy.deepcopy(trainer.state_dict())
    assert list(state) == ["seed"]
    other = ready(feedback, model, seed=5)
    assert any(not torch.equal(before[key], each) for key, each in gradients(other, model).items())
    other.load_state_dict(state)
    assert all(torch.equal(before[key], each) for key, each in gradients(other, model).items())
    assert all(torch.equal(each, other._matrices[key]) for key, each in trainer._matrices.items())


def angle_after(feedback, steps, *, fixed=True):
    """Between the gradient of the fc's hidden weights and the true one, in degrees, before and after."""
    splits = load_splits(DatasetOptions(name="fashion-mnist-mini"), 0, torch.device("cpu"), DataSearch())
    options = options_model("model", "fc")(name="fc", hidden=64)
    model = build_model(options, splits.image_shape, splits.num_classes, 1, "cpu")
    trainer = FeedbackAlignment(feedback=feedback)
    batch = splits.train.batch(torch.arange(256))
    trainer.set_up(model, batch[0], 10, torch.Generator().manual_seed(1))
    state, hidden = trainer.state_dict(), model[0][1].weight

    def angle():
        trainer.load_state_dict(state)
        found = []
        for each in (trainer, Backprop()):
            each.compute_gradients(model, LOSS, *batch, torch.Generator())
            found.append(hidden.grad.flatten())
        return torch.cosine_similarity(*found, 0).acos().rad2deg().item()

    first = angle()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(steps):
        if not fixed:
            trainer.load_state_dict({"seed": step})
        part = splits.train.batch(64 * step + torch.arange(64))
        trainer.compute_gradients(model, LOSS, *part, torch.Generator())
        optimizer.step()
    return first, angle()


@pytest.mark.parametrize("feedback", ["random", "direct"])
def test_the_weights_align_with_fixed_matrices_on_fc_and_not_with_ones_drawn_anew(feedback):
    first, last = angle_after(feedback, 110)
    assert 80 < first < 100, "matrices that know nothing of the weights"
    assert last < 80
    first, last = angle_after(feedback, 110, fixed=False)
    assert last > 80


class Odd(nn.Module):
    """A hidden layer, and a use of a parameter that is no layer's."""

    def __init__(self, use):
        super().__init__()
        self.first, self.last = nn.Linear(64, 8), nn.Linear(8, 3)
        self.use, self.free = use, nn.Parameter(torch.ones(8, 8))

    def forward(self, images):
        return self.last(self.use(self, self.first(images.flatten(1)).relu()))


@pytest.mark.parametrize(
    ("use", "named"),
    [
        (lambda model, value: value @ model.free, "'free', given to"),
        (lambda model, value: value @ model.last.weight.T @ model.last.weight, "'last.weight', given to"),
        (lambda model, value: F.linear(value, model.free * 2), "'free', given to mul"),
        (lambda model, value: F.linear(value, value[:8].T @ value), "a weight given to linear"),
    ],
)
@pytest.mark.parametrize("feedback", FEEDBACK)
def test_a_model_it_cannot_treat_is_refused_in_one_line(use, named, feedback):
    with pytest.raises(ConfigError, match=named) as refusal:
        ready(feedback, Odd(use).double())
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("module", [nn.LSTM(64, 8, batch_first=True), nn.MultiheadAttention(64, 2)])
def test_recurrent_and_fused_attention_layers_are_refused(module):
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = copy.deepcopy(module)
            self.last = nn.Linear(8 if isinstance(module, nn.LSTM) else 64, 3)

        def forward(self, images):
            value = images.flatten(1)[:, None]
            given = (value,) if isinstance(module, nn.LSTM) else (value, value, value)
            return self.last(self.inner(*given)[0][:, 0])

    with pytest.raises(ConfigError, match=r"cannot treat 'inner\.\w+', given to"):
        ready("random", Around().double())


@pytest.mark.parametrize("feedback", FEEDBACK)
def test_parts_that_run_unseen_are_refused(feedback):
    class Checkpointed(nn.Linear):
        reentrant = False

        def forward(self, value):
            return checkpoint(super().forward, value, use_reentrant=self.reentrant)

    def chain(part):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), part, nn.Linear(8, 3)).double()

    for reentrant in (False, True):
        part = Checkpointed(8, 8)
        part.reentrant = reentrant
        with pytest.raises(ConfigError, match=r"'2\.weight' in a part that is checkpointed"):
            ready(feedback, chain(part))
    with pytest.raises(ConfigError, match="is a TorchScript module"):
        ready(feedback, chain(torch.jit.trace(nn.Linear(8, 8), torch.zeros(2, 8))))


def test_layers_whose_weights_are_fixed_pass_errors_through_their_matrices_too():
    model = shipped("fc")
    trainer = ready("random", model)
    before = gradients(trainer, model)
    model[1][0].weight.requires_grad_(False).grad = None
    trainer.compute_gradients(model, LOSS, *batch(), torch.Generator())
    assert model[1][0].weight.grad is None
    assert torch.equal(model[0][1].weight.grad, before["0.1.weight"])


def test_set_up_leaves_the_model_and_all_chance_as_they_were():
    model = shipped("resnet18")
    before, chance = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    ready("direct", model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(chance, torch.get_rng_state())
