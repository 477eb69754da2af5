"""Passes that count as one: the same masks, and buffers that move once."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fgbench.trainers.replay import OnePass


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
