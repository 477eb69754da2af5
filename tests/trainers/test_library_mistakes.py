"""What a library's user runs into first, for every trainer: right, or refused in one line."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from fgbench.checks.verify import compare_step
from fgbench.config.config import load_config
from fgbench.datasets.base import load_splits
from fgbench.datasets.search import DataSearch
from fgbench.errors import ConfigError
from fgbench.models.build import build_model
from fgbench.models.options import LocalMixerOptions
from fgbench.options import Options
from fgbench.registry import TRAINERS, load, options_model
from fgbench.run.build import build_training
from fgbench.trainers.backprop import Backprop
from fgbench.trainers.base import StepStats, Trainer

LOSS = nn.CrossEntropyLoss(reduction="none")
LABELS = torch.tensor([0, 1, 2, 0])
ALL = [
    *((name, {}) for name in TRAINERS),
    ("backprop", {"recompute": True}),
    ("forward-gradient", {"structure": "rank1", "guess": "rademacher", "tangents": 2}),
    ("forward-gradient", {"tangents": 3, "chunk": 2}),
    ("activity-forward-gradient", {"tangents": 2}),
    ("zeroth-order", {"tangents": 2}),
    ("guided-forward-gradient", {"space": "activations"}),
]
EXACT_OUTPUT = [
    (name, {"exact_output": True})
    for name in TRAINERS
    if "exact_output" in options_model("trainer", name).model_fields
]


def images():
    return torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def ids():
    return torch.randint(0, 9, (4, 5), generator=torch.Generator().manual_seed(1))


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.ReLU()),
        nn.Linear(4, 3),
    )


def model_for(name):
    if name != "local-forward-gradient":
        return small_model()
    return build_model(LocalMixerOptions(channels=8, groups=2, patches=2), (1, 4, 4), 3, 0, "cpu")


def set_up(trainer, model, inputs):
    trainer.set_up(model, inputs, 3, torch.Generator().manual_seed(0))
    return trainer


def step(trainer, model, inputs, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(seed)
        trainer.compute_gradients(model, LOSS, inputs, LABELS, generator)
    return [param.grad for param in model.parameters()]


def refused(name, options, model, inputs, what):
    """Assert that a trainer ends in one line that says what is wrong."""
    with pytest.raises(ConfigError, match=what) as refusal:
        step(set_up(load("trainer", name)(**options), model, inputs), model, inputs)
    assert len(str(refusal.value).splitlines()) == 1


def verified(name, options, model, inputs, refusal):
    """Assert that a trainer's step is what it says, or refused in one line that matches."""
    trainer = load("trainer", name)(**options)
    try:
        set_up(trainer, model, inputs)
        for seed in range(2):
            compare_step(trainer, model, LOSS, inputs, LABELS, torch.Generator().manual_seed(seed))
            step(trainer, model, inputs, seed)
    except ConfigError as error:
        told = str(error)
    else:
        told = refusal
    assert refusal in told
    assert len(told.splitlines()) == 1
    assert all(param.grad is None or param.grad.isfinite().all() for param in model.parameters())


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize(("name", "options"), ALL)
def test_a_trainer_is_copied_and_pickled_with_its_model_at_any_time(name, options, copied, steps):
    model, inputs = model_for(name), images()
    trainer = set_up(load("trainer", name)(**options), model, inputs)
    for seed in range(steps):
        step(trainer, model, inputs, seed)
    twin, its_model = copied((trainer, model))
    for ours, theirs in zip(step(trainer, model, inputs), step(twin, its_model, inputs), strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


class Mean(nn.Module):
    def forward(self, value):
        return value.mean(1)


@pytest.mark.parametrize(("name", "options"), ALL)
def test_token_ids_are_trained_on_or_refused(name, options):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Embedding(9, 6), Mean()), nn.Sequential(nn.Linear(6, 4), nn.ReLU()), nn.Linear(4, 3)
    )
    refusal = "local-mixer" if name == "local-forward-gradient" else "embedding"
    verified(name, options, model, ids(), refusal)


@pytest.mark.parametrize(("name", "options"), ALL + EXACT_OUTPUT)
def test_a_head_under_weight_norm_is_right_or_refused(name, options):
    model = small_model()
    model[2] = parametrizations.weight_norm(model[2])
    refusal = "_weight_norm" if name == "feedback-alignment" else "computed from other parameters"
    if name == "local-forward-gradient":
        refusal = "local-mixer"
    verified(name, options, model, images(), refusal)


@pytest.mark.parametrize(("name", "options"), ALL)
def test_a_lazy_model_is_refused_in_one_line(name, options):
    what = "local-mixer" if name == "local-forward-gradient" else "lazy"
    model = nn.Sequential(
        nn.Flatten(), nn.Sequential(nn.LazyLinear(4), nn.ReLU()), nn.Sequential(nn.Linear(4, 3))
    )
    refused(name, options, model, images(), what)


class Twice(nn.Module):
    def forward(self, value):
        return value, value


@pytest.mark.parametrize(("name", "options"), ALL)
def test_a_model_that_returns_a_tuple_is_refused_in_one_line(name, options):
    model = nn.Sequential(*model_for(name), Twice())
    refused(name, options, model, images(), "one tensor|one row per sample|local-mixer")


class NotATrainer:
    class Options(Options):
        name: str = "test_library_mistakes:NotATrainer"

    def __init__(self, options):
        pass


class ReturnsNone(Trainer):
    class Options(Options):
        name: str = "own:ReturnsNone"

    def compute_gradients(self, *batch, **options):
        Backprop().compute_gradients(*batch)


class ReturnsTheLoss(ReturnsNone):
    def compute_gradients(self, *batch, **options):
        return Backprop().compute_gradients(*batch).loss


class ReturnsNumbers(ReturnsNone):
    def compute_gradients(self, *batch, **options):
        stats = Backprop().compute_gradients(*batch)
        return StepStats(float(stats.loss), stats.outputs, stats.directional_derivatives, stats.grad_norm)


class StepsOnItsOwn(ReturnsNone):
    def sgd_step(self, *batch):
        return 0.0


MISTAKES = [
    (ReturnsNone, "ReturnsNone.compute_gradients returned None, expected StepStats"),
    (ReturnsTheLoss, "ReturnsTheLoss.compute_gradients returned a Tensor, expected StepStats"),
    (ReturnsNumbers, "StepStats.loss: got a float, expected a tensor"),
]


@pytest.mark.parametrize(("trainer", "line"), MISTAKES)
def test_an_own_trainer_that_returns_something_else_is_one_line(trainer, line):
    with pytest.raises(ConfigError) as told:
        step(trainer(), small_model(), images())
    assert str(told.value) == line


def test_an_sgd_step_that_returns_no_stats_is_named():
    with pytest.raises(ConfigError, match=r"StepsOnItsOwn\.sgd_step returned a float, expected StepStats"):
        StepsOnItsOwn().sgd_step(small_model())


class Unfinished(Trainer):
    class Options(Options):
        name: str = "unfinished"


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (NotATrainer, r"is not a subclass of fgbench\.Trainer"),
        (Unfinished, "has no method compute_gradients"),
    ],
)
def test_a_config_that_names_no_trainer_ends_before_its_run_begins(tmp_path, monkeypatch, own, words):
    (tmp_path / "own_trainers.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    import own_trainers

    own_trainers.Own = own
    path = tmp_path / "c.yaml"
    path.write_text(
        "dataset: {name: synthetic}\nmodel: {name: fc, hidden: 4}\ntrainer: {name: 'own_trainers:Own'}\n"
    )
    config = load_config(path)
    splits = load_splits(config.dataset, 0, torch.device("cpu"), DataSearch(download=False))
    line = rf"^trainer\.name: own_trainers:Own {words}$"
    with pytest.raises(ConfigError, match=line):
        build_training(config, torch.device("cpu"), splits)


class PlainBackward(Trainer):
    """A trainer of one's own as it is first written: it leaves old gradients to others."""

    class Options(Options):
        name: str = "plain"

    def compute_gradients(self, model, loss_fn, inputs, labels, generator, *, accumulate=False):
        outputs = model(inputs)
        loss = loss_fn(outputs, labels).mean()
        loss.backward()
        return StepStats(loss.detach(), outputs.detach(), torch.zeros(0), torch.zeros(()))


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_step_of_ones_own_adds_to_old_gradients_only_where_it_is_asked_to(accumulate):
    own, known = small_model(), small_model()
    for trainer, model in ((PlainBackward(), own), (Backprop(), known)):
        for _ in range(3):
            trainer.compute_gradients(
                model=model,
                loss_fn=LOSS,
                inputs=images(),
                labels=LABELS,
                generator=torch.Generator(),
                accumulate=accumulate,
            )
    for mine, other in zip(own.parameters(), known.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


class ShortBackward(PlainBackward):
    """The shortest there is: a loss and outputs, as they come."""

    def compute_gradients(self, model, loss_fn, inputs, labels, generator, *, accumulate=False):
        outputs = model(inputs)
        loss = loss_fn(outputs, labels).mean()
        loss.backward()
        return StepStats(loss, outputs)


def test_what_a_step_of_ones_own_leaves_out_is_measured():
    own, known = small_model(), small_model()
    short, full = (
        trainer.compute_gradients(model, LOSS, images(), LABELS, torch.Generator())
        for trainer, model in ((ShortBackward(), own), (Backprop(), known))
    )
    assert torch.allclose(short.grad_norm, full.grad_norm)
    assert short.directional_derivatives.shape == (0,)
    assert not short.loss.requires_grad
    assert not short.outputs.requires_grad


class Silent(PlainBackward):
    def compute_gradients(self, model, loss_fn, inputs, labels, generator, *, accumulate=False):
        return StepStats(torch.zeros(()), model(inputs))


def test_a_step_without_a_gradient_has_no_norm():
    stats = Silent().compute_gradients(small_model(), LOSS, images(), LABELS, torch.Generator())
    assert stats.grad_norm.isnan()
