"""On every model of the zoo every trainer is right, or refuses in one line; never wrong, never a crash.

What is right is worked out by plain backprop; for central differences, by shifting whole copies of a model.
"""

import copy
import random
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import fgbench
from fgbench.errors import FgbenchError
from zoo import ZOO

LOSS = nn.CrossEntropyLoss(reduction="none")
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])
EXACT = 1e-8
"""Share of |g| that a derivative may be off by, in float64."""

RANK_ONE = {"structure": "rank1", "guess": "rademacher"}
CASES = {
    "full": lambda: fgbench.ForwardGradient(),
    "rank-one": lambda: fgbench.ForwardGradient(**RANK_ONE),
    "several": lambda: fgbench.ForwardGradient(tangents=3, chunk=2),
    "several rank-one": lambda: fgbench.ForwardGradient(tangents=2, **RANK_ONE),
    "exact output": lambda: fgbench.ForwardGradient(exact_output=True, **RANK_ONE),
    "sgd step": lambda: fgbench.ForwardGradient(**RANK_ONE),
    "zeroth-order": lambda: fgbench.ZerothOrder(epsilon=1e-4),
    "zeroth-order rank-one": lambda: fgbench.ZerothOrder(epsilon=1e-4, **RANK_ONE),
    "activity": lambda: fgbench.ActivityForwardGradient(tangents=2),
    "feedback": lambda: fgbench.FeedbackForwardGradient(),
    "guided": lambda: fgbench.GuidedForwardGradient(auxiliary="linear"),
    "guided behind a block": lambda: fgbench.GuidedForwardGradient(auxiliary="linear"),
    "guided by chance": lambda: fgbench.GuidedForwardGradient(guess="normal", granularity="tensor"),
    "guided activations": lambda: fgbench.GuidedForwardGradient(space="activations", auxiliary="linear"),
    "local losses": lambda: fgbench.LocalLoss(),
}
VERIFIED = {case for case in CASES if case.startswith(("activity", "feedback", "guided"))}
"""Cases whose derivatives are compared by ``fgbench.verify``, which shares none of the trainers' passes."""


@dataclass
class Step:
    """What a step left behind."""

    loss: torch.Tensor
    outputs: torch.Tensor
    gradient: dict[str, torch.Tensor]
    state: dict[str, torch.Tensor]
    """Buffers, and the parameters, which a step may not move (but ``max_norm`` does)."""
    log: list[Any]
    derivatives: torch.Tensor | None = None


def chance():
    """Every global generator at a fixed place."""
    torch.manual_seed(7)
    random.seed(7)


def left(model, loss, outputs, gradient, derivatives=None):
    logs = [getattr(module, "log", []) for module in model.modules()]
    log = [
        each.detach().clone() if isinstance(each, torch.Tensor) else each for part in logs for each in part
    ]
    state = {name: value.detach().clone() for name, value in model.state_dict(keep_vars=True).items()}
    return Step(loss.detach(), outputs.detach(), gradient, state, log, derivatives)


def by_backprop(model, inputs):
    model.zero_grad()
    chance()
    outputs = model(inputs.clone())
    loss = LOSS(outputs, LABELS).mean()
    loss.backward()
    gradient = {
        name: torch.zeros_like(param) if param.grad is None else param.grad.clone()
        for name, param in model.named_parameters()
        if param.requires_grad
    }
    return left(model, loss, outputs, gradient)


def by_trainer(case, trainer, model, inputs, generator):
    chance()
    inputs = inputs.clone()
    if case == "sgd step":
        stats = trainer.sgd_step(model, LOSS, inputs, LABELS, generator, 1.0)
        gradient = {}
    else:
        stats = trainer.compute_gradients(model, LOSS, inputs, LABELS, generator)
        gradient = {name: param.grad for name, param in model.named_parameters() if param.requires_grad}
    return left(model, stats.loss, stats.outputs, gradient, stats.directional_derivatives)


def undo(step, model, true):
    """Put the parameters back after a step of size 1, and take what they moved by as the gradient."""
    with torch.no_grad():
        for name, param in model.named_parameters():
            if param.requires_grad:
                step.gradient[name] = true.state[name] - step.state[name]
                param.copy_(true.state[name])
    step.state = true.state


def product(left, right, names):
    return sum(float((left[name] * right[name]).sum()) for name in names)


def close(found, true, what, tolerance=EXACT):
    torch.testing.assert_close(
        found, true, rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}"
    )


def agree(case, trainer, model, row, batches, step, true):
    """Assert that a step is what its trainer says."""
    beside = case.startswith("zeroth-order")  # evaluated beside the parameters, not at them
    exact = EXACT if all(param.dtype == torch.float64 for param in model.parameters()) else 1e-5
    loose = 1e-2 if beside else exact
    close(step.loss, true.loss, "loss", loose)
    close(step.outputs, true.outputs, "outputs", loose)
    assert step.state.keys() == true.state.keys()
    for name, value in true.state.items():
        close(step.state[name], value, name, loose)
    if not beside:
        close(step.log[: len(true.log)], true.log, "log")
    names = [name for name, gradient in step.gradient.items() if gradient is not None]
    length = product(true.gradient, true.gradient, names) ** 0.5
    d = step.derivatives.double()
    if case in VERIFIED and case != "guided":
        return
    if case == "exact output":
        head = [
            name for name in names if name.rpartition(".")[0] == list(step.gradient)[-1].rpartition(".")[0]
        ]
        for name in head:
            close(step.gradient[name], true.gradient[name], name)
        names = [name for name in names if name not in head]
    if case in ("guided", "local losses"):
        last = [name for name in names if name.split(".")[0] == list(step.gradient)[-1].split(".")[0]]
        for name in last:
            close(step.gradient[name], true.gradient[name], name)
        names = [name for name in names if name not in last]
        if case == "local losses":
            return
        lengths = product(step.gradient, step.gradient, names) ** 0.5
        assert abs(lengths - float(d.abs().sum())) <= exact * length, "the guess has another length than 1"
    if beside:
        direction = {name: gradient / d[0] for name, gradient in step.gradient.items()}
        expected = central_difference(row, batches, direction, trainer.options.epsilon)
        # in float32 a shifted product rounds otherwise than the product of a shifted weight
        rounding = 1e-7 if case == "zeroth-order" or exact == EXACT else 1e-3
        assert abs(float(d) - expected) <= rounding * max(length, 1.0), (float(d), expected)
        return
    squares = float(d.square().sum() if case == "guided" else d.square().mean())
    found = product(step.gradient, true.gradient, names)
    assert abs(found - squares) <= exact * (length**2 + squares), (found, squares)


def central_difference(row, batches, direction, epsilon):
    losses = []
    for sign in (1, -1):
        model = fresh(row)
        for inputs in batches[:-1]:
            by_backprop(model, inputs)
        with torch.no_grad():
            for name, param in model.named_parameters():
                if name in direction:
                    param.add_(direction[name], alpha=sign * epsilon)
        chance()
        losses.append(float(LOSS(model(batches[-1].clone()), LABELS).mean()))
    return (losses[0] - losses[1]) / (2 * epsilon)


class Scale(nn.Module):
    """A block that a body's inputs come from, so that they have tangents."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, inputs):
        return self.scale * inputs if inputs.is_floating_point() else inputs


def fresh(row, case=""):
    torch.manual_seed(0)
    random.seed(0)
    model = row.build()
    behind = case == "guided behind a block" and isinstance(model, nn.Sequential)
    return nn.Sequential(Scale(), *model) if behind else model


def verdict(case, row):
    """``right``, or the one line of a refusal; fails where it is neither."""
    model, reference, make = fresh(row, case), fresh(row, case), copy.deepcopy(row.inputs)
    torch.manual_seed(1)
    batches = [make() for _ in range(row.batches)]
    trainer, generator, steps, true = CASES[case](), torch.Generator().manual_seed(1), [], []
    try:
        trainer.set_up(model, batches[0], 3, torch.Generator().manual_seed(2))
        for module in model.modules():
            getattr(module, "log", []).clear()
        for inputs in batches:
            steps.append(by_trainer(case, trainer, model, inputs, generator))
            true.append(by_backprop(reference, inputs))
            if case == "sgd step":
                undo(steps[-1], model, true[-1])
    except FgbenchError as refusal:
        return str(refusal)
    agree(case, trainer, model, row, batches, steps[-1], true[-1])
    if case in VERIFIED:
        again = fresh(row, case)
        for inputs in batches[:-1]:
            by_backprop(again, inputs)
        double = all(param.dtype == torch.float64 for param in model.parameters())
        tolerance = EXACT if double else 1e-5
        try:
            fgbench.verify(trainer, again, LOSS, batches[-1], LABELS, generator, tolerance=tolerance)
        except fgbench.ConfigError as refusal:  # what is wrong would be another FgbenchError
            return str(refusal)
    return "right"


@pytest.fixture(autouse=True)
def doubles():
    torch.set_default_dtype(torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("row", ZOO, ids=lambda row: row.name)
def test_every_trainer_is_right_on_a_model_or_refuses_it_in_one_line(row, case):
    assert len(verdict(case, row).splitlines()) == 1
