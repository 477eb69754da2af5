"""The output layer in closed form: exact, or refused where the model's outputs are not W x + b."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fgbench
from fgbench.errors import ConfigError, FgbenchError
from fgbench.trainers.exact_output import OutputLayer, loss_gradient
from fgbench.trainers.forward_gradient import ForwardGradient

LOSS = nn.CrossEntropyLoss(reduction="none")


class Cosine(nn.Linear):
    def forward(self, x):
        return 5 * F.linear(F.normalize(x), F.normalize(self.weight))


class Twice(nn.Sequential):
    def forward(self, x):
        return self[1](self[1](x) + self[0](x))


def hooked():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    model[1].register_forward_hook(lambda layer, inputs, outputs: 2 * outputs)
    return model


def in_place():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    model[1].register_forward_hook(lambda layer, inputs, outputs: outputs.mul_(2))
    return model


REFUSED = {
    "a cosine head": lambda: nn.Sequential(nn.Linear(4, 4), Cosine(4, 3, bias=False)),
    "a head that runs twice": lambda: Twice(nn.Linear(4, 4), nn.Linear(4, 4)),
    "a hook that scales": hooked,
    "a hook that scales in place": in_place,
    "a head with weight norm": lambda: nn.Sequential(
        nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    ),
    "something after it": lambda: nn.Sequential(nn.Linear(4, 3), nn.Softplus()),
    "no linear layer": lambda: nn.Sequential(nn.Flatten()),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_head_that_is_not_a_linear_layer_is_refused(name):
    torch.manual_seed(0)
    model = REFUSED[name]()
    trainer = ForwardGradient(exact_output=True)
    model.register_parameter("other", nn.Parameter(torch.ones(1)))
    with pytest.raises(ConfigError, match="exact_output: true"):
        trainer.compute_gradients(
            model, LOSS, torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0]), torch.Generator()
        )


@pytest.mark.parametrize("bias", [True, False])
def test_the_output_layers_gradient_is_that_of_backprop(bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3, bias=bias)).double()
    inputs, labels = torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 1, 0])
    reference = copy.deepcopy(model)
    LOSS(reference(inputs), labels).mean().backward()
    with OutputLayer(model) as output, torch.no_grad():
        outputs = model(inputs)
    gradients = output.gradients(LOSS, outputs, labels)
    assert gradients.keys() == ({"2.weight", "2.bias"} if bias else {"2.weight"})
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, reference.get_parameter(name).grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "loss_fn",
    [
        LOSS,
        nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.tensor([1.0, 2, 3]).double(), reduction="none"),
        nn.MultiMarginLoss(reduction="none"),
        lambda outputs, labels: (outputs - F.one_hot(labels, 3)).square().sum(1),
    ],
)
def test_the_gradient_of_the_loss_is_that_of_backprop(loss_fn):
    torch.manual_seed(0)
    outputs, labels = torch.randn(5, 3).double().requires_grad_(), torch.tensor([0, 1, 2, 1, 0])
    loss_fn(outputs, labels).sum().backward()
    torch.testing.assert_close(loss_gradient(loss_fn, outputs, labels), outputs.grad, rtol=1e-12, atol=1e-12)


def head_alone():
    """A model of which only the output layer is trained, with a batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    model[0].requires_grad_(False)
    return model, LOSS, torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0])


@pytest.mark.parametrize("sgd_step", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tangents": 3},
        {"guess": "sphere"},
        {"guess": "rademacher", "structure": "rank1", "tangents": 2},
        {"combine": "projection", "tangents": 3},
    ],
)
@pytest.mark.parametrize("kind", [ForwardGradient, fgbench.ZerothOrder])
def test_the_output_layer_may_be_all_there_is_to_train(kind, options, sgd_step):
    if kind is fgbench.ZerothOrder and "combine" in options:
        pytest.skip("zeroth-order has no projection")
    found = fgbench.verify(kind(exact_output=True, **options), *head_alone(), sgd_step=sgd_step)
    assert (found.verdict, found.derivatives) == ("verified", options.get("tangents", 1))


def test_where_nothing_is_drawn_a_wrong_gradient_is_found_all_the_same(monkeypatch):
    plain = OutputLayer.gradients
    twice = lambda *args: {name: 2 * part for name, part in plain(*args).items()}  # noqa: E731
    monkeypatch.setattr(OutputLayer, "gradients", twice)
    with pytest.raises(FgbenchError, match="off by 1, at most"):
        fgbench.verify(ForwardGradient(exact_output=True), *head_alone())


def test_a_frozen_output_layer_is_nothing_to_train():
    model, *batch = head_alone()
    model[0].requires_grad_(True)
    model[2].requires_grad_(False)
    message = "^nothing to train: no parameter of the output layer '2' requires a gradient$"
    with pytest.raises(ConfigError, match=message):
        fgbench.Frozen().set_up(model, batch[1], 3, torch.Generator())
    with pytest.raises(ConfigError, match=message):
        fgbench.Frozen().compute_gradients(model, *batch, torch.Generator())
