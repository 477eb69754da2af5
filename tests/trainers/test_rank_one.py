import pytest
import torch
import torchvision
from textbook import counters_hidden, mean_loss
from torch import nn
from torch.func import jvp

from fgbench.trainers.forward_gradient import ForwardGradient
from fgbench.trainers.forward_mode import Factors
from fgbench.trainers.passes import trainable_parameters
from fgbench.trainers.rank_one import RankOneTangents

LOSS = nn.CrossEntropyLoss(reduction="none")


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight + weight.T


class Unusual(nn.Module):
    """Parameters used in ways that have no fast rule, beside ways that have."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Linear(6, 6)
        self.symmetric = nn.utils.parametrize.register_parametrization(nn.Linear(6, 6), "weight", Symmetric())
        self.tied = nn.Embedding(6, 6)
        self.norm = nn.LayerNorm(6)
        self.scale = nn.Parameter(torch.ones(6))
        self.nested = nn.Parameter(torch.randn(2, 6))
        self.twice = nn.Linear(6, 6, bias=False)

    def forward(self, images):
        hidden = self.twice(self.norm(self.plain(images.flatten(1)[:, :6])).relu()).tanh()
        hidden = self.symmetric(self.twice(hidden)) * self.scale + torch.cat([self.nested, self.nested]).sum(
            0
        )
        return nn.functional.linear(hidden, self.tied.weight) + self.tied(torch.zeros(1, dtype=torch.long))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 6, (3, 2), stride=2, padding=1, dilation=(1, 2)),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 12, 3, groups=3, bias=False, padding="same"),
        nn.GroupNorm(2, 12),
        nn.ReLU(),
        nn.Conv2d(12, 4, 1),
        nn.BatchNorm2d(4, affine=False),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.LazyLinear(5),
    )


MODELS = {
    "linear layers": lambda: nn.Sequential(nn.Flatten(), nn.Linear(300, 9), nn.ReLU(), nn.Linear(9, 5)),
    "convolutions": convolutions,
    "unusual": Unusual,
    "torchvision vgg": lambda: torchvision.models.vgg.make_layers([4, "M", 8, "M"], batch_norm=True).extend(
        [nn.Flatten(), nn.Linear(32, 5)]
    ),
    "torchvision resnet": lambda: torchvision.models.resnet.ResNet(
        torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5
    ),
}


def problem(name, memory_format):
    torch.manual_seed(3)
    model = MODELS[name]()
    size = 32 if "resnet" in name else 10
    inputs = torch.randn(4, 3, size, size, dtype=torch.float64).to(memory_format=memory_format)
    model.double()(inputs)  # lazy layers
    return model.to(memory_format=memory_format), inputs, torch.tensor([0, 4, 2, 2])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_fast_pass_agrees_with_dense_forward_mode(name, memory_format):
    model, inputs, labels = problem(name, memory_format)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        tangents = RankOneTangents(model)
        signs = tangents.sample(torch.Generator().manual_seed(1), 3)
        factored = [isinstance(each, Factors) for each in tangents.along(signs).values()]
        assert factored == [param.dim() > 1 for param in model.parameters()]
        expected = []
        for unit in torch.eye(3, dtype=torch.float64):
            model.load_state_dict(before)
            torch.manual_seed(0)
            params, direction = trainable_parameters(model), tangents.weighted_sum(signs, unit)
            with counters_hidden(model):
                _, derivative, outputs = jvp(
                    mean_loss(model, LOSS, inputs, labels), (params,), (direction,), has_aux=True
                )
            expected.append(derivative)
        statistics = {key: value.clone() for key, value in model.state_dict().items()}
        for rows, derivatives in ((signs, torch.stack(expected)), (signs[:1], expected[0][None])):
            model.load_state_dict(before)
            torch.manual_seed(0)
            result = tangents.derivatives(model, LOSS, inputs, labels, rows, len(rows))
            torch.testing.assert_close(result.derivatives, derivatives, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(result.outputs, outputs, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(dict(model.state_dict()), statistics, rtol=1e-10, atol=1e-10)


def test_entries_are_signs_and_weights_are_rank_one():
    model, _, _ = problem("convolutions", torch.channels_last)
    tangents = RankOneTangents(model)
    dense = tangents.weighted_sum(
        tangents.sample(torch.Generator().manual_seed(0), 1), torch.ones(1).double()
    )
    assert all((value.abs() == 1).all() for value in dense.values())
    assert {name: value.stride() for name, value in dense.items()} == {
        name: param.stride() for name, param in model.named_parameters()
    }
    assert torch.linalg.matrix_rank(dense["2.weight"].flatten(1)) == 1
    assert torch.linalg.matrix_rank(dense["2.weight"].movedim(1, 0).flatten(1)) == 1


def test_products_are_inner_products_of_the_dense_tangents():
    model, _, _ = problem("convolutions", torch.channels_last)
    tangents = RankOneTangents(model)
    signs = tangents.sample(torch.Generator().manual_seed(0), 3)
    rows = torch.stack(
        [
            torch.cat([value.flatten() for value in tangents.weighted_sum(signs, unit).values()])
            for unit in torch.eye(3, dtype=torch.float64)
        ]
    )
    torch.testing.assert_close(tangents.products(signs), rows @ rows.T)
    weights = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(tangents.norm(signs, weights), (weights @ rows).norm())
    torch.testing.assert_close(tangents.norm(signs[:1], weights[:1]), 0.3 * rows[0].norm())


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ["linear layers", "convolutions", "unusual"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_sgd_step_from_factors_agrees_with_the_dense_gradient(name, count, dtype, tolerance):
    model, inputs, labels = problem(name, torch.channels_last)
    model.to(dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer = ForwardGradient(structure="rank1", guess="rademacher", tangents=count)
    states, stats = [], []
    for dense in (True, False):
        model.load_state_dict(before)
        torch.manual_seed(0)
        arguments = (model, LOSS, inputs.to(dtype), labels, torch.Generator().manual_seed(5))
        if dense:
            stats.append(trainer.compute_gradients(*arguments))
            torch.optim.SGD(model.parameters(), lr=1e-3).step()
        else:
            stats.append(trainer.sgd_step(*arguments, lr=1e-3))
        states.append({key: value.clone() for key, value in model.state_dict().items()})
    torch.testing.assert_close(states[1], states[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(stats[1].grad_norm, stats[0].grad_norm, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("count", [1, 3])
def test_a_weight_laid_out_by_columns_has_its_entries_in_place(count):
    torch.manual_seed(0)
    layer = nn.Linear(6, 5)
    layer.weight = nn.Parameter(torch.randn(6, 5).t())
    tangents = RankOneTangents(layer)
    signs = tangents.sample(torch.Generator().manual_seed(0), count)
    weights = torch.randn(count)
    expected = (tangents.along(signs)["weight"].dense() * weights[:, None, None]).sum(0)
    torch.testing.assert_close(tangents.weighted_sum(signs, weights)["weight"], expected)
    before = layer.weight.detach().clone()
    tangents.add_to_parameters(signs, weights)
    torch.testing.assert_close(layer.weight.detach(), before + expected)


def test_a_layer_frozen_or_replaced_between_steps_is_noticed():
    model, inputs, labels = problem("linear layers", torch.contiguous_format)
    trainer = ForwardGradient(structure="rank1", guess="rademacher")
    trainer.compute_gradients(model, LOSS, inputs, labels, torch.Generator())
    model.zero_grad()
    model[1].weight.requires_grad_(False)
    model[3] = nn.Linear(9, 5).double()
    trainer.compute_gradients(model, LOSS, inputs, labels, torch.Generator())
    assert model[1].weight.grad is None
    assert model[3].weight.grad.abs().min() > 0


def test_rank_one_runs_in_bf16():
    model, inputs, labels = problem("convolutions", torch.channels_last)
    model.float()
    trainer = ForwardGradient(structure="rank1", guess="rademacher", tangents=2)
    exact = trainer.compute_gradients(model, LOSS, inputs.float(), labels, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        rough = trainer.compute_gradients(
            model, LOSS, inputs.float(), labels, torch.Generator().manual_seed(0)
        )
    assert rough.loss.dtype == torch.float32
    assert all(param.grad.dtype == torch.float32 for param in model.parameters())
    assert rough.directional_derivatives.isfinite().all()
    torch.testing.assert_close(rough.loss, exact.loss, rtol=0.2, atol=0.2)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 3), (2, 0, 3)])
def test_a_parameter_without_entries_is_no_error(shape):
    class Padded(nn.Linear):
        def forward(self, images):
            return super().forward(images) + self.nothing.sum()

    model = Padded(4, 3)
    model.nothing = nn.Parameter(torch.zeros(shape))
    trainer = ForwardGradient(structure="rank1", guess="rademacher")
    batch = torch.randn(5, 4), torch.arange(5) % 3, torch.Generator()
    trainer.compute_gradients(model, LOSS, *batch)
    assert model.nothing.grad.shape == shape
    trainer.sgd_step(model, LOSS, *batch, lr=0.1)
