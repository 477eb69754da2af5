"""Passes that count as one: the same masks, and buffers that move once."""

import random
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fgbench.checks.verify import verify
from fgbench.errors import ConfigError, FgbenchError
from fgbench.trainers.backprop import Backprop
from fgbench.trainers.forward_gradient import ForwardGradient
from fgbench.trainers.replay import OnePass, restoring_state
from fgbench.trainers.zeroth_order import ZerothOrder


class Chance(nn.Module):
    """Draws from every global generator there is, and keeps two kinds of running statistics."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.lstm = nn.LSTM(3, 3, num_layers=2, dropout=0.5, batch_first=True)
        self.weighted = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
        self.register_buffer("average", torch.zeros(3))

    def forward(self, x):
        self.average = 0.9 * self.average + 0.1 * x.mean(0).detach()  # another tensor each time
        x = nn.functional.dropout(self.norm(x), 0.5) * random.random() + np.random.rand()  # noqa: NPY002
        return self.weighted(self.lstm(x[:, None])[0][:, 0]) + self.average


def test_every_pass_is_the_first_again_and_leaves_what_one_pass_leaves():
    torch.manual_seed(0)
    model, x = Chance(), torch.randn(8, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def begin():
        model.load_state_dict(before)
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002

    def draws():
        return [float(torch.rand(1)), random.random(), np.random.rand()]  # noqa: NPY002

    begin()
    with torch.no_grad():
        expected = model(x)
        after = {name: value.clone() for name, value in model.state_dict().items()}
        next_draws = draws()
        begin()
        one_pass = OnePass(model, 3)
        for _ in range(3):
            with one_pass:
                assert torch.equal(model(x), expected)
    assert all(torch.equal(value, after[name]) for name, value in model.state_dict().items())
    assert draws() == next_draws


def test_a_pass_that_fails_leaves_the_buffers_of_the_one_before():
    model, x = nn.BatchNorm1d(3), torch.randn(4, 3)
    one_pass = OnePass(model, 2)
    with one_pass:
        model(x)
    expected = model.running_mean.clone()
    model.forward = lambda x: F.batch_norm(x, model.running_mean, model.running_var, training=True) / None
    with pytest.raises(TypeError), one_pass:
        model(x)
    assert torch.equal(model.running_mean, expected)


class Alternating(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps = 0

    def forward(self, x):
        self.steps += 1
        return x if self.steps % 2 else -x


def test_counters_of_a_model_count_one_pass():
    model, x = Alternating(), torch.ones(2)
    one_pass = OnePass(model, 2)
    for _ in range(2):
        with one_pass:
            assert torch.equal(model(x), x)
    assert model.steps == 1


def test_recomputation_is_the_first_pass_again_whatever_a_stage_draws_or_moves():
    def begin():
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(1)
        return nn.Sequential(Chance(), Scaled(), nn.Linear(3, 2)).double()

    inputs, labels = torch.randn(8, 3, dtype=torch.float64), torch.arange(8) % 2
    loss_fn = nn.CrossEntropyLoss(reduction="none")
    plain, again = begin(), None
    Backprop().compute_gradients(plain, loss_fn, inputs, labels, torch.Generator())
    again = begin()
    Backprop(recompute=True).compute_gradients(again, loss_fn, inputs, labels, torch.Generator())
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(dict(again.state_dict()), dict(plain.state_dict()), rtol=1e-12, atol=1e-14)


class Residual(nn.Sequential):
    def forward(self, value):
        return value + super().forward(value)


def around(kind):
    """A model that does something beside running its stages."""
    torch.manual_seed(0)
    model = (Residual if kind == "subclass" else nn.Sequential)(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    plain = model.forward
    if kind == "instance":
        model.forward = lambda value: value + plain(value)
    if kind == "hook":
        model.register_forward_hook(lambda module, inputs, outputs: inputs[0] + outputs)
    return model


@pytest.mark.parametrize("kind", ["subclass", "instance", "hook"])
def test_recomputation_runs_what_a_model_does_around_its_stages(kind):
    model, x, y = around(kind), torch.randn(5, 8), torch.arange(5)
    loss_fn = nn.CrossEntropyLoss(reduction="none")
    stats = Backprop(recompute=True).compute_gradients(model, loss_fn, x, y, torch.Generator())
    loss = loss_fn(model(x), y).mean()
    assert torch.equal(stats.loss, loss.detach())
    assert torch.equal(model[0].weight.grad, torch.autograd.grad(loss, model[0].weight)[0])


class Scaled(nn.Module):
    """Multiplies by a buffer, which its graph keeps, and then moves it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x):
        outputs = x * self.scale.clone()
        self.scale.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return outputs


class Aliased(nn.Module):
    """Writes to what it keeps by one name, and reads it by another."""

    def __init__(self, how):
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.register_buffer("stats", torch.ones(3, 4))
        self.kept, self.how = self.stats if how == "buffer" else torch.ones(3, 4), how
        views = {"row": self.kept[1], "list": [self.kept[1]], "columns": self.kept.t()}
        self.other = views.get(how, self.kept)
        self.wide = torch.ones(1).expand(4)

    def forward(self, x):
        h = self.linear(x) * self.kept[1].clone() * self.wide
        other = self.other[0] if self.how == "list" else self.other
        with torch.no_grad():
            self.other.data.add_(0.5) if self.how == "data" else other.add_(0.5)
        return h * (1 + self.kept[1])


def recompute_beside_backprop(make):
    """Two steps of backprop with and without recomputation, of equal gradients; both first stages."""
    torch.manual_seed(0)
    x, y = torch.randn(5, 8), torch.arange(5) % 4
    loss_fn = nn.CrossEntropyLoss(reduction="none")
    models = [nn.Sequential(make(), nn.Linear(4, 4)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for _ in range(2):
        for model, recompute in zip(models, (False, True), strict=True):
            Backprop(recompute=recompute).compute_gradients(model, loss_fn, x, y, torch.Generator())
        for param, twin in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert torch.equal(param.grad, twin.grad)
    return [model[0] for model in models]


ALIASES = ("buffer", "row", "list", "columns", "data")


@pytest.mark.parametrize("how", ALIASES)
def test_tensors_that_share_memory_share_it_in_every_pass(how):
    plain, recomputed = recompute_beside_backprop(lambda: Aliased(how))
    assert torch.equal(plain.kept, recomputed.kept)


@pytest.mark.parametrize("how", ALIASES)
def test_verification_leaves_tensors_sharing_the_memory_they_shared(how):
    torch.manual_seed(0)
    model, x, y = Aliased(how), torch.randn(5, 8), torch.arange(5) % 4
    kept, other = model.kept, model.other
    loss_fn = nn.CrossEntropyLoss(reduction="none")
    assert verify(ForwardGradient(), model, loss_fn, x, y).verdict == "verified"
    assert model.kept is kept
    assert model.other is other
    assert torch.equal(model.kept, torch.ones(3, 4))
    model(x)
    assert float(model.kept[1].sum()) == 6


def test_a_buffer_that_is_written_to_by_a_name_outside_of_the_model_cannot_be_run_twice_with_a_graph():
    norm = nn.BatchNorm1d(3)
    other = norm.running_mean

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = norm

        def forward(self, x):
            other.add_(1)
            return self.norm(x)

    model, x = Hidden(), torch.randn(4, 3)
    one_pass = OnePass(model, with_graph=True)
    with one_pass:
        model(x)
    with pytest.raises(ConfigError, match="under another name"), one_pass:
        model(x)


class Counts(OrderedDict):
    """A container that is not to be refilled as others are."""

    def update(self, *args, **kwargs):
        raise TypeError("not like this")


class Keeping(nn.Module):
    """Keeps running statistics in everything but a buffer."""

    def __init__(self, how):
        super().__init__()
        self.linear, self.how = nn.Linear(8, 4), how
        self.centre, self.seen, self.latest, self.calls = torch.zeros(4), [0.0], None, 0
        self.generator, self.named = torch.Generator().manual_seed(0), {"last": 0.0}
        self.tensors, self.pair = {"a": [torch.zeros(4)]}, (torch.zeros(4), 0)
        self.counter = SimpleNamespace(count=0, moved=torch.zeros(4))
        self.register_buffer("absent", None)
        self.array, self.own = np.zeros(4, dtype=np.float32), Counts(n=0)
        self.chance = random.Random(0)
        self.numpy, self.old_numpy = np.random.default_rng(0), np.random.RandomState(0)
        self.rope = torch.ones(2, dtype=torch.cfloat)
        self.real = torch.view_as_real(self.rope)

    def forward(self, x):
        h = self.linear(x)
        self.calls += 1
        if self.how == "tensor":
            moved, self.centre = self.centre, 0.9 * self.centre + h.detach().mean(0)
            return h * (1 + moved)
        if self.how == "list":
            h = h * (1 + sum(self.seen))
            self.seen.append(float(x.mean()))
            return h
        if self.how == "dict":
            self.named["last"] += 1.0
            return h * self.named["last"]
        if self.how == "array":
            h = h * (1 + torch.from_numpy(self.array.copy()))
            self.array += 1
            return h
        if self.how == "own container":
            self.own["n"] += 1
            return h * self.own["n"]
        if self.how == "python's chance":
            return h * self.chance.random()
        if self.how == "numpy's chance":
            return h * self.numpy.random()
        if self.how == "numpy's old chance":
            return h * self.old_numpy.random_sample()
        if self.how == "complex":
            h = h * (1 + self.real[0, 0].clone())
            self.rope += 1
            return h
        if self.how == "tensors":
            h = h * (1 + self.tensors["a"][0])
            self.tensors["a"][0].add_(1)
            return h
        if self.how == "pair":
            h = h * (1 + self.pair[0])
            self.pair[0].add_(1)
            return h
        if self.how == "data":
            h = h * (1 + self.centre.data)
            self.centre.data.add_(1)
            return h
        if self.how == "object":
            self.counter.count += 1
            h = h * (self.counter.count + self.counter.moved)
            self.counter.moved += 1
            return h
        if self.how == "absent":
            if self.absent is None:
                self.absent = x[:, :4].clone()
                return h
            return h * self.absent
        if self.how == "none":
            if self.latest is None:
                self.latest = x[:, :4].clone()
                return h
            return h * self.latest
        if self.how == "new":
            if not hasattr(self, "first"):
                self.first = x[:, :4].clone()
                return h
            return h * self.first
        if self.how == "in place":
            h = h * (1 + self.centre)
            self.centre += x[:, :4].mean(0)
            return h
        return h * torch.rand(4, generator=self.generator)


KEPT = ("tensor", "in place", "list", "dict", "none", "new", "generator")
KEPT += (
    "tensors",
    "pair",
    "data",
    "object",
    "absent",
    "array",
    "own container",
    "python's chance",
    "numpy's chance",
    "numpy's old chance",
    "complex",
)


@pytest.mark.parametrize("how", KEPT)
def test_what_a_model_keeps_besides_buffers_is_at_every_pass_as_at_the_first(how):
    torch.manual_seed(0)
    model, twin, x = Keeping(how), Keeping(how), torch.randn(5, 8)
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = twin(x)
        one_pass = OnePass(model, 3)
        for _ in range(3):
            with one_pass:
                assert torch.equal(model(x), expected)
        assert model.calls == 1
        assert torch.equal(model(x), twin(x)), "and the next step begins where one pass has left it"


@pytest.mark.parametrize("trainer", [ZerothOrder(), ForwardGradient(tangents=2, chunk=1)])
@pytest.mark.parametrize("how", KEPT)
def test_the_derivative_of_a_model_that_keeps_something_is_taken_at_one_state(how, trainer):
    torch.manual_seed(0)
    model, x, y = Keeping(how), torch.randn(5, 8), torch.arange(5) % 4
    loss_fn = nn.CrossEntropyLoss(reduction="none")
    twin = Keeping(how)
    twin.load_state_dict(model.state_dict())
    loss = loss_fn(twin(x), y).mean()
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(loss, twin.parameters())])
    stats = trainer.compute_gradients(model, loss_fn, x, y, torch.Generator().manual_seed(1))
    drawn = torch.cat([p.grad.flatten() for p in model.parameters()])
    squares = stats.directional_derivatives.double().square().mean()
    assert float(drawn @ slope) == pytest.approx(float(squares), rel=0.01)


@pytest.mark.parametrize("how", KEPT)
def test_recomputation_is_the_first_pass_again_whatever_a_stage_keeps(how):
    recompute_beside_backprop(lambda: Keeping(how))


def test_a_file_in_memory_that_cannot_be_written_is_left_alone(tmp_path):
    np.save(tmp_path / "bank.npy", np.array([1, 1, 1, np.nan], dtype=np.float32))
    model, x = nn.Linear(4, 3), torch.randn(2, 4)
    model.bank = torch.from_numpy(np.load(tmp_path / "bank.npy", mmap_mode="r"))
    one_pass = OnePass(model, 2)
    for _ in range(2):
        with one_pass:
            model(x * model.bank)
    assert model.bank[:3].tolist() == [1, 1, 1]


def test_a_scripted_part_keeps_its_mode():
    model = nn.Sequential(torch.jit.script(nn.BatchNorm1d(3)), nn.Linear(3, 2))
    with restoring_state(model):
        model.eval()
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("by", ["name", "data"])
def test_a_parameter_that_is_not_trained_may_not_be_written_to(by):
    class Codebook(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 4)
            self.code = nn.Parameter(torch.ones(4), requires_grad=False)

        def forward(self, x):
            (self.code if by == "name" else self.code.data).mul_(0.9)
            return self.linear(x) * self.code

    batch = torch.randn(5, 8), torch.arange(5) % 4
    with pytest.raises(ConfigError, match="writes to its parameter 'code'"):
        ZerothOrder().compute_gradients(
            Codebook(), nn.CrossEntropyLoss(reduction="none"), *batch, torch.Generator()
        )


def test_a_state_that_cannot_be_kept_is_found_by_verification():
    """Outside of the model, as a global is; differences at two states would be no derivative."""
    kept = [0.0]

    class Outside(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 4)

        def forward(self, x):
            kept[0] += 0.1
            return self.linear(x) * kept[0]

    loss_fn = nn.CrossEntropyLoss(reduction="none")
    batch = torch.randn(5, 8), torch.arange(5) % 4
    with pytest.raises(FgbenchError, match="another loss for the same images"):
        verify(ZerothOrder(), Outside(), loss_fn, *batch)
