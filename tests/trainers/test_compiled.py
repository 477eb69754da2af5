"""A compiled pass gives what the eager one gives, or the eager one is used and says why."""

import copy
import pickle

import pytest
import torch
from torch import nn

import fgbench
from fgbench.errors import ConfigError
from fgbench.trainers.compiled import compile_steps, require_compiler
from fgbench.trainers.forward_mode.rules.compiled import COMPILED_RULES

RANK_ONE = {"guess": "rademacher", "structure": "rank1"}
LOSS = nn.CrossEntropyLoss(reduction="none")
BATCH = torch.randn(6, 2, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0])


@pytest.fixture(autouse=True)
def compiler():
    try:
        require_compiler()
    except ConfigError as error:
        pytest.skip(str(error))
    torch._dynamo.reset()


class Net(nn.Module):
    """Normalisation, dropout, pooling, and a flag that changes what it computes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3))
        self.twice = False

    def forward(self, x):
        h = self.body(x)
        return self.head(h.tanh() if self.twice else h)


class Wayward(nn.Module):
    """Goes one way or the other by what is in the batch, which no graph can hold."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(128, 3)

    def forward(self, x):
        h = self.layer(x.flatten(1))
        return h if x.sum() > 0 else -h


def step(trainer, model):
    """Loss, outputs, derivatives, gradients and buffers of a step; always of the same chance."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    torch.manual_seed(2)
    stats = trainer.compute_gradients(model, LOSS, *BATCH, generator)
    return [
        stats.loss, stats.outputs, stats.directional_derivatives,
        *(param.grad for param in model.parameters()), *model.buffers(),
    ]  # fmt: skip


def assert_equal(trainer, model):
    eager = type(trainer)(trainer.options)
    for mine, true in zip(step(trainer, model), step(eager, model), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "trainer",
    [
        fgbench.Backprop(),
        fgbench.ForwardGradient(tangents=2, **RANK_ONE),
        fgbench.ForwardGradient(),
        fgbench.ZerothOrder(tangents=2, **RANK_ONE),
        pytest.param(fgbench.ZerothOrder(), marks=pytest.mark.nightly),
    ],
    ids=["backprop", "rank-one", "full", "zeroth-order rank-one", "zeroth-order full"],
)
def test_a_compiled_step_equals_the_eager_one_with_its_dropout_and_statistics(trainer):
    trainer = compile_steps(type(trainer)(trainer.options))
    assert_equal(trainer, Net().double())
    assert trainer.compiled.reason == ""


def test_another_way_through_the_model_is_captured_anew():
    trainer, model = compile_steps(fgbench.ForwardGradient(**RANK_ONE)), Net().double()
    for model.twice in (False, True, False):
        assert_equal(trainer, model)
    assert trainer.compiled.reason == ""


@pytest.mark.parametrize("made_by", [fgbench.ForwardGradient, fgbench.ZerothOrder])
def test_what_cannot_be_captured_runs_eagerly_and_says_why(made_by):
    trainer, model = compile_steps(made_by(**RANK_ONE)), Wayward().double()
    assert_equal(trainer, model)
    assert "\n" not in trainer.compiled.reason
    assert "jump" in trainer.compiled.reason or "branch" in trainer.compiled.reason


def test_a_wrong_compiled_rule_is_found_before_it_is_used(monkeypatch):
    def wrong(m, func, x):
        y = func(x)
        m.put(y, m.get(x).clone())
        return y

    relu = torch.ops.aten.relu.default
    monkeypatch.setitem(COMPILED_RULES, relu, wrong)
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    trainer = compile_steps(fgbench.ForwardGradient(**RANK_ONE))
    assert_equal(trainer, model)
    assert "off by" in trainer.compiled.reason


def test_a_compiled_difference_that_is_5_percent_off_is_found_before_it_is_used(monkeypatch):
    def too_far(self, values, chosen, given):
        def function(values, given):
            given = [
                (1.05 * each[0], *each[1:]) if isinstance(each, tuple) else 1.05 * each for each in given
            ]
            return self._shifted(values, chosen, given)

        return function

    monkeypatch.setattr("fgbench.trainers.capture.Program._compile", too_far)
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    trainer = compile_steps(fgbench.ZerothOrder(**RANK_ONE))
    assert_equal(trainer, model)
    assert "off by" in trainer.compiled.reason


@pytest.fixture
def uncompiled(monkeypatch):
    """Captures that run as they are: what is tested is what becomes of them, not inductor."""

    def as_it_is(self, values, positions, given):
        return lambda values, given: self._with_tangents(values, positions, given)

    monkeypatch.setattr("fgbench.trainers.capture.Program._compile", as_it_is)


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 3), nn.Tanh(), nn.Linear(3, 3)).double()


def test_many_models_in_one_process_are_all_compiled(uncompiled):
    for _ in range(12):
        trainer = compile_steps(fgbench.ForwardGradient(**RANK_ONE))
        assert_equal(trainer, linear())
        assert trainer.compiled.reason == ""


def test_a_step_that_trains_other_parameters_is_not_taken_for_the_one_that_was_compiled(uncompiled):
    trainer, model = compile_steps(fgbench.ForwardGradient(**RANK_ONE)), linear()
    first, second = model[1].bias, model[3].bias  # of one shape
    loss_fn, generator = LOSS, torch.Generator()
    for frozen, other in ((first, second), (second, first)):
        frozen.requires_grad_(False)
        other.requires_grad_(True)
        stats = trainer.compute_gradients(model, loss_fn, *BATCH, generator.manual_seed(1))
        eager = fgbench.ForwardGradient(**RANK_ONE)
        true = eager.compute_gradients(model, loss_fn, *BATCH, generator.manual_seed(1))
        torch.testing.assert_close(stats.directional_derivatives, true.directional_derivatives)
    assert "other parameters" in trainer.compiled.reason


def test_a_compiled_step_that_fails_under_way_is_not_taken_twice(uncompiled, monkeypatch):
    trainer, model = compile_steps(fgbench.ForwardGradient(**RANK_ONE)), linear()
    trainer.compute_gradients(model, LOSS, *BATCH, torch.Generator())

    def fail(*_):
        raise MemoryError("no room")

    monkeypatch.setattr("fgbench.trainers.capture.Program._with_tangents", fail)
    with pytest.raises(MemoryError, match="no room"):
        trainer.compute_gradients(model, LOSS, *BATCH, torch.Generator())


def test_a_compiled_trainer_can_be_pickled_and_copied():
    trainer, model = (
        compile_steps(fgbench.ForwardGradient(**RANK_ONE)),
        nn.Sequential(nn.Flatten(), nn.Linear(128, 3)),
    )
    step(trainer, model.double())
    again = copy.deepcopy(pickle.loads(pickle.dumps(trainer)))
    assert again.compiled is not None
    assert_equal(again, model.double())


@pytest.mark.parametrize(
    "trainer",
    [
        fgbench.ZerothOrder(exact_output=True),
        fgbench.Backprop(recompute=True),
        fgbench.ForwardGradient(exact_output=True),
    ],
    ids=lambda trainer: trainer.options.name,
)
def test_trainers_without_a_compiled_form_refuse(trainer):
    with pytest.raises(ConfigError, match="has no compiled form"):
        compile_steps(trainer)
