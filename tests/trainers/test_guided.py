"""Guided forward gradients against full reverse mode, on tiny float64 models."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from fgbench.errors import ConfigError
from fgbench.models.layers import Stages, normalize
from fgbench.models.options import ResNetOptions
from fgbench.models.resnet import BasicBlock, build_resnet18
from fgbench.trainers.backprop import Backprop
from fgbench.trainers.guided_forward_gradient import GuidedForwardGradient
from fgbench.trainers.local.auxiliary import build_auxiliary
from fgbench.trainers.local.blocks import cut_model

CLASSES, SAMPLES = 3, 5
LOSS = nn.CrossEntropyLoss(reduction="none")


def residual(normalization):
    stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *normalize(normalization, 4), nn.ReLU(inplace=True))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    return Stages(stem, BasicBlock(4, 4, 1, normalization), BasicBlock(4, 8, 2, normalization), head)


def convolutional(normalization):
    def stage(inputs, outputs, *more):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        return nn.Sequential(convolution, *normalize(normalization, outputs), nn.ReLU(inplace=True), *more)

    head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(6 * 9, CLASSES))
    return Stages(stage(1, 4), stage(4, 4, nn.MaxPool2d(2)), stage(4, 6), head)


def connected(layers=3):
    hidden = [
        nn.Sequential(nn.Linear(36 if i == 0 else 7, 7), nn.Tanh(), nn.Dropout(0.3)) for i in range(layers)
    ]
    return Stages(nn.Flatten(), *hidden, nn.Linear(7, CLASSES))


MODELS = {
    "resnet, batch": lambda: residual("batch"),
    "resnet, group": lambda: residual("group"),
    "vgg, batch": lambda: convolutional("batch"),
    "vgg, group": lambda: convolutional("group"),
    "fc": connected,
}
INDEPENDENT = [name for name in MODELS if "batch" not in name]


def example(name_or_model, **options):
    """A model, its trainer and a batch, all float64."""
    torch.manual_seed(0)
    model = (MODELS[name_or_model]() if isinstance(name_or_model, str) else name_or_model).double()
    inputs, labels = torch.randn(SAMPLES, 1, 6, 6).double(), torch.arange(SAMPLES) % CLASSES
    trainer = GuidedForwardGradient(**{"hidden": 4, **options})
    trainer.set_up(model, inputs, CLASSES, torch.Generator().manual_seed(1))
    return model, trainer, inputs, labels


def step(model, trainer, inputs, labels, seed=2):
    torch.manual_seed(3)
    return trainer.compute_gradients(model, LOSS, inputs, labels, torch.Generator().manual_seed(seed))


def run_blocks(model, count, inputs):
    """Blocks of a copy of the model with all their inputs and outputs, from one graph."""
    torch.manual_seed(3)
    blocks, values = cut_model(copy.deepcopy(model), count), [inputs]
    for block in blocks:
        outputs = block(tree_map(torch.clone, values[-1]))
        values.append(tree_map(torch.clone, outputs))  # a shortcut is an output of its own
    return blocks, values


def project(target, guess):
    """The projection of the list of tensors on the other, and the derivative along the guess at length 1."""
    product = sum((t * g).sum() for t, g in zip(target, guess, strict=True))
    square = sum(g.square().sum() for g in guess)
    return [product / square * g for g in guess], product / square.sqrt()


def assert_close(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def gradients(block):
    return [param.grad for param in block.parameters()]


@pytest.mark.parametrize("granularity", ["block", "tensor"])
@pytest.mark.parametrize("name", MODELS)
def test_weight_estimates_are_projections_of_the_true_gradient_on_the_local_one(name, granularity):
    model, trainer, inputs, labels = example(name, auxiliary="cnn", granularity=granularity)
    auxiliaries = copy.deepcopy(trainer.auxiliaries)
    blocks, values = run_blocks(model, None, inputs)
    true = torch.autograd.grad(LOSS(values[-1], labels).mean(), list(model_params(blocks)), retain_graph=True)
    true = dict(zip(model_params(blocks), true, strict=True))
    stats = step(model, trainer, inputs, labels)

    derivatives = []
    for block, own, auxiliary, outputs in zip(
        blocks, cut_model(model), auxiliaries, values[1:-1], strict=False
    ):
        params = list(block.parameters())
        guess = torch.autograd.grad(LOSS(auxiliary(outputs), labels).mean(), params, retain_graph=True)
        target = [true[param] for param in params]
        parts = [(target, guess)]
        if granularity == "tensor":
            parts = [([t], [g]) for t, g in zip(target, guess, strict=True)]
        projected = [project(*part) for part in parts]
        assert_close(gradients(own), [each for estimate, _ in projected for each in estimate])
        derivatives += [derivative for _, derivative in projected]
    assert_close(stats.directional_derivatives, derivatives)
    assert_close(gradients(cut_model(model)[-1]), [true[param] for param in blocks[-1].parameters()])
    torch.testing.assert_close(stats.outputs, values[-1].detach())


def model_params(blocks):
    return [param for block in blocks for param in block.parameters()]


@pytest.mark.parametrize("count", [None, 6])
@pytest.mark.parametrize("name", INDEPENDENT)
def test_activation_estimates_are_projections_per_sample(name, count):
    if count is not None and "resnet" not in name:
        pytest.skip("only basic blocks can be halved")
    model, trainer, inputs, labels = example(name, space="activations", auxiliary="linear", blocks=count)
    blocks, values = run_blocks(model, count, inputs)
    loss = LOSS(values[-1], labels).mean()
    stats = step(model, trainer, inputs, labels)
    for index, own in enumerate(cut_model(model, count)[:-1]):
        outputs = tree_leaves(values[index + 1])
        target = torch.autograd.grad(loss, outputs, retain_graph=True)
        guess = torch.autograd.grad(
            LOSS(trainer.auxiliaries[index](values[index + 1]), labels).mean(), outputs, retain_graph=True
        )
        samples = [project([t[i] for t in target], [g[i] for g in guess]) for i in range(SAMPLES)]
        estimate = [torch.stack(each) for each in zip(*(part for part, _ in samples), strict=True)]
        tracked = [(out, each) for out, each in zip(outputs, estimate, strict=True) if out.requires_grad]
        expected = torch.autograd.grad(
            [out for out, _ in tracked],
            list(blocks[index].parameters()),
            [e for _, e in tracked],
            retain_graph=True,
        )
        assert_close(gradients(own), expected)
        assert_close(
            stats.directional_derivatives[index] / SAMPLES, [derivative for _, derivative in samples]
        )
    expected = torch.autograd.grad(loss, list(blocks[-1].parameters()))
    assert_close(gradients(cut_model(model, count)[-1]), expected)


@pytest.mark.parametrize("target", ["global", "local"])
@pytest.mark.parametrize("guess", ["normal", "rademacher"])
def test_estimates_along_random_guesses_are_projections_of_the_target(guess, target):
    model, trainer, inputs, labels = example("fc", guess=guess, target=target)
    auxiliaries = copy.deepcopy(trainer.auxiliaries)
    blocks, values = run_blocks(model, None, inputs)
    stats = step(model, trainer, inputs, labels)
    for index, own in enumerate(cut_model(model)[:-1]):
        outputs = values[-1] if target == "global" else auxiliaries[index](values[index + 1])
        true = torch.autograd.grad(
            LOSS(outputs, labels).mean(), list(blocks[index].parameters()), retain_graph=True
        )
        estimate, derivative = project(true, gradients(own))
        assert_close(gradients(own), estimate)
        torch.testing.assert_close(stats.directional_derivatives[index].abs(), derivative.abs())


@pytest.mark.parametrize("space", ["weights", "activations"])
@pytest.mark.parametrize("name", MODELS)
def test_local_target_with_a_local_guess_is_the_true_local_gradient(name, space):
    model, trainer, inputs, labels = example(name, target="local", space=space)
    auxiliaries = copy.deepcopy(trainer.auxiliaries)
    blocks, values = run_blocks(model, None, inputs)
    stats = step(model, trainer, inputs, labels)
    for index, own in enumerate(cut_model(model)[:-1]):
        loss = LOSS(auxiliaries[index](values[index + 1]), labels).mean()
        assert_close(
            gradients(own), torch.autograd.grad(loss, list(blocks[index].parameters()), retain_graph=True)
        )
    assert len(stats.directional_derivatives) == 0


def test_random_guesses_in_activations_project_the_gradient_of_the_auxiliary_loss():
    model, trainer, inputs, labels = example(
        nn.Sequential(nn.Flatten(), nn.Linear(36, 7), nn.Linear(7, CLASSES)),
        guess="rademacher",
        target="local",
        space="activations",
    )
    auxiliary = copy.deepcopy(trainer.auxiliaries[0])
    outputs = model[:2](inputs[:1])
    true = torch.autograd.grad(LOSS(auxiliary(outputs), labels[:1]).mean(), outputs)
    step(model, trainer, inputs[:1], labels[:1])
    estimate = [model[1].bias.grad[None]]  # one sample: the bias has the gradient of the outputs
    assert estimate[0].norm() > 0
    assert_close(project(true, estimate)[0], estimate)


@pytest.mark.parametrize("space", ["weights", "activations"])
def test_more_blocks_than_stages_cut_basic_blocks_in_halves(space):
    model, trainer, inputs, labels = example("resnet, group", blocks=6, space=space)
    true = copy.deepcopy(model)
    step(true, Backprop(), inputs, labels)
    stats = step(model, trainer, inputs, labels)
    assert len(stats.directional_derivatives) == 5
    if space == "weights":
        for index, (own, exact) in enumerate(zip(cut_model(model, 6), cut_model(true, 6), strict=True)):
            estimate = gradients(own)
            assert_close(estimate, gradients(exact) if index == 5 else project(gradients(exact), estimate)[0])


@pytest.mark.parametrize("space", ["weights", "activations"])
def test_chunks_change_memory_and_not_gradients(space):
    model, trainer, inputs, labels = example("fc", space=space)
    step(model, trainer, inputs, labels)
    whole = [param.grad.clone() for param in model.parameters()]
    trainer.options = trainer.options.model_copy(update={"chunk": 1})
    step(model, trainer, inputs, labels)
    assert_close([param.grad for param in model.parameters()], whole)


@pytest.mark.parametrize("guess", ["local", "normal"])
def test_batch_norm_statistics_move_as_after_backprop(guess):
    model, trainer, inputs, labels = example("resnet, batch", guess=guess)
    other = copy.deepcopy(model)
    weights = copy.deepcopy(list(model.parameters()))
    step(other, Backprop(), inputs, labels)
    step(model, trainer, inputs, labels)
    for (name, one), (_, two) in zip(model.named_buffers(), other.named_buffers(), strict=True):
        torch.testing.assert_close(one, two, msg=name)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), weights, strict=True))


def graph_depth(tensors):
    """The longest path from any of the tensors to a leaf, in autograd nodes."""
    depth, order = {None: 0}, []
    stack = [(tensor.grad_fn, False) for tensor in tensors]
    while stack:
        node, done = stack.pop()
        following = [next_node for next_node, _ in node.next_functions if next_node is not None]
        if done:
            depth[node] = 1 + max((depth[each] for each in following), default=0)
            order.append(node)
        elif node not in depth:
            stack += [(node, True), *((each, False) for each in following if each not in depth)]
    return max(depth.values())


@pytest.fixture
def backward_calls(monkeypatch):
    """The depth of the graph at each call of the backward engine."""
    depths, engine = [], torch.autograd.graph._engine_run_backward

    def recording(tensors, *args, **kwargs):
        depths.append(graph_depth(tensors))
        return engine(tensors, *args, **kwargs)

    monkeypatch.setattr(torch.autograd, "_engine_run_backward", recording)
    return depths


@pytest.mark.parametrize("space", ["weights", "activations"])
def test_backward_is_called_for_one_block_at_a_time(space, backward_calls):
    depths = {}
    for layers in (3, 12):
        backward_calls.clear()
        step(*example(connected(layers), space=space, auxiliary="linear"))
        hidden_calls = (
            layers if space == "weights" else 2 * layers
        )  # activations: auxiliary and block by turns
        assert len(backward_calls) == hidden_calls + 1
        depths[layers] = max(backward_calls)
    assert depths[3] == depths[12]
    backward_calls.clear()
    model, _, inputs, labels = example(connected(12))
    step(model, Backprop(), inputs, labels)
    assert backward_calls[0] > 2 * depths[12]


def test_random_guesses_need_backward_in_the_last_block_only(backward_calls):
    model, trainer, inputs, labels = example("fc", guess="normal")
    assert trainer.parameters() == []
    step(model, trainer, inputs, labels)
    assert len(backward_calls) == 1


def test_auxiliary_networks_get_the_gradient_of_their_own_loss():
    model, trainer, inputs, labels = example("vgg, batch", auxiliary="mlp")
    _, values = run_blocks(model, None, inputs)
    auxiliaries = copy.deepcopy(trainer.auxiliaries)
    step(model, trainer, inputs, labels)
    assert {id(param) for param in trainer.parameters()}.isdisjoint(map(id, model.parameters()))
    expected = [
        torch.autograd.grad(
            LOSS(auxiliary(outputs), labels).mean(), list(auxiliary.parameters()), retain_graph=True
        )
        for auxiliary, outputs in zip(auxiliaries, values[1:], strict=False)
    ]
    assert_close([param.grad for param in trainer.parameters()], [grad for each in expected for grad in each])


@pytest.mark.parametrize(("guess", "changes"), [("ntk", True), ("fixed-ntk", False)])
def test_ntk_networks_are_drawn_and_never_trained(guess, changes):
    model, trainer, inputs, labels = example("fc", guess=guess)
    before = copy.deepcopy(trainer.state_dict())
    step(model, trainer, inputs, labels, seed=2)
    first = [param.grad.clone() for param in model.parameters()]
    step(model, trainer, inputs, labels, seed=4)
    assert trainer.parameters() == []
    assert any(not torch.equal(before[key], value) for key, value in trainer.state_dict().items()) == changes
    assert any(not torch.equal(a, b.grad) for a, b in zip(first, model.parameters(), strict=True)) == changes


@pytest.mark.parametrize("guess", ["local", "ntk", "fixed-ntk", "normal"])
def test_a_restored_trainer_goes_on_bit_for_bit(guess):
    model, trainer, inputs, labels = example("vgg, batch", guess=guess)
    optimizer = torch.optim.SGD([*model.parameters(), *trainer.parameters()], lr=0.1)
    step(model, trainer, inputs, labels)
    optimizer.step()
    state, other = copy.deepcopy(trainer.state_dict()), copy.deepcopy(model)
    step(model, trainer, inputs, labels, seed=5)

    restored = GuidedForwardGradient(trainer.options)
    restored.set_up(other, inputs, CLASSES, torch.Generator().manual_seed(99))
    restored.load_state_dict(state)
    step(other, restored, inputs, labels, seed=5)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)


def test_a_guess_of_length_zero_gives_a_zero_estimate():
    model, trainer, inputs, labels = example("fc", auxiliary="linear", hidden=4)
    for param in trainer.parameters():
        nn.init.zeros_(param)
    step(model, trainer, inputs, labels)
    *hidden, last = cut_model(model)
    assert all((grad == 0).all() for block in hidden for grad in gradients(block))
    assert all((grad != 0).any() for grad in gradients(last))


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (nn.Conv3d(1, 2, 2), r"block 1 of the model gives shape \(5, 2, 2, 2, 2\) for 5 samples"),
        (nn.LSTM(3, 3, batch_first=True), "returns a tuple"),
    ],
)
def test_set_up_refuses_blocks_whose_outputs_no_auxiliary_network_takes(stage, words):
    model = nn.Sequential(stage, nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)))
    inputs = torch.randn(SAMPLES, 1, 3, 3, 3) if isinstance(stage, nn.Conv3d) else torch.randn(SAMPLES, 2, 3)
    with pytest.raises(ConfigError, match=words):
        GuidedForwardGradient().set_up(model, inputs, CLASSES, torch.Generator())


def test_blocks_that_write_into_their_inputs_are_differentiated_at_what_they_got():
    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(7, 7)

        def forward(self, x):
            return self.linear(x.mul_(2).add_(1))

    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 7), Writing(), Writing(), nn.Linear(7, CLASSES))
    model, trainer, inputs, labels = example(model)
    true, kept = copy.deepcopy(model), inputs.clone()
    step(true, Backprop(), inputs, labels)
    step(model, trainer, inputs, labels)
    assert torch.equal(inputs, kept)
    *hidden, last = zip(cut_model(model), cut_model(true), strict=True)
    for own, exact in hidden:
        assert_close(gradients(own), project(gradients(exact), gradients(own))[0])
    assert_close(gradients(last[0]), gradients(last[1]))


def test_set_up_leaves_the_model_as_it_was():
    torch.manual_seed(0)
    model = residual("batch")
    model[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    GuidedForwardGradient(blocks=6).set_up(model, torch.randn(4, 1, 6, 6), CLASSES, torch.Generator())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]


def test_per_sample_derivatives_refuse_batch_norm():
    with pytest.raises(ConfigError, match=r"model\.normalization: group"):
        example("resnet, batch", space="activations")


def test_per_sample_derivatives_refuse_samples_that_interact_in_any_way():
    class Mixing(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    model = nn.Sequential(
        nn.Flatten(), nn.Linear(36, 7), nn.Sequential(nn.Linear(7, 7), Mixing()), nn.Linear(7, CLASSES)
    )
    with pytest.raises(ConfigError, match="samples interact: a change of some changes the losses"):
        step(*example(model, space="activations"))
    step(*example(model))  # one derivative for the batch


def test_a_trainer_that_was_not_set_up_says_so():
    model, _, inputs, labels = example("fc")
    with pytest.raises(ConfigError, match="set_up"):
        step(model, GuidedForwardGradient(), inputs, labels)


@pytest.mark.parametrize(
    ("count", "stages"), [(8, [2, 1, 1, 1, 1, 1, 1, 2]), (16, [2, *[1] * 14, 2]), (10, [1] * 10)]
)
def test_resnet18_is_cut_as_in_the_source(count, stages):
    model = build_resnet18(ResNetOptions(width=32, normalization="group"), (3, 8, 8), 10)
    blocks = cut_model(model, count)
    assert [len(block) for block in blocks] == stages
    inputs = torch.randn(2, 3, 8, 8)
    assert torch.equal(Stages(*blocks)(inputs), model(inputs))


def test_stages_without_parameters_join_a_neighbour():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2), nn.Identity())
    assert [len(block) for block in cut_model(model)] == [3, 2]


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked(model):
    model.register_forward_hook(lambda module, args, outputs: 2 * outputs)
    return model


def test_blocks_run_a_stage_with_a_forward_of_its_own_as_it_is():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 3))
    plain, inputs = model[0].forward, torch.randn(6, 8)
    model[0].forward = lambda value: value + plain(value)
    value = inputs
    for block in cut_model(model):
        value = block(value)
    assert torch.equal(value, model(inputs))


@pytest.mark.parametrize(
    ("model", "count", "words"),
    [
        (nn.Linear(2, 2), None, "nn.Sequential"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 3, "at most 2"),
        (nn.Sequential(*[nn.Linear(2, 2)] * 2), None, "shared"),
        (Doubled(nn.Linear(2, 2), nn.Linear(2, 2)), None, "got Doubled with its own forward"),
        (hooked(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))), None, "hooks around it"),
    ],
)
def test_models_that_cannot_be_cut_are_refused(model, count, words):
    with pytest.raises(ConfigError, match=words):
        cut_model(model, count)


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("shape", [(3, 7, 5), (3, 2, 2), (3, 1, 1), (6,)])
@pytest.mark.parametrize("kind", ["cnn", "mlp", "linear"])
def test_auxiliary_networks_classify_outputs_of_any_shape(kind, shape, batch_norm):
    network = build_auxiliary(kind, torch.Size(shape), 4, CLASSES, batch_norm=batch_norm)
    assert network(torch.randn(SAMPLES, *shape)).shape == (SAMPLES, CLASSES)
    assert list(network.buffers()) == []
