import gc
import math

import pytest
import torch
from torch import nn

from fgbench.errors import ConfigError
from fgbench.trainers.backprop import Backprop
from fgbench.trainers.forward_gradient import ForwardGradient
from fgbench.trainers.sampling import sample_tangents

LOSS = nn.CrossEntropyLoss(reduction="none")


def problem(dtype=torch.float64, dropout=0.0):
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(8, 3),
    )
    model.to(dtype, memory_format=torch.channels_last)
    return model, torch.randn(5, 1, 4, 4, dtype=dtype), torch.tensor([0, 2, 1, 1, 0])


def gradients(trainer, model, inputs, labels, seed=0, mask_seed=0):
    model.zero_grad()
    torch.manual_seed(mask_seed)
    stats = trainer.compute_gradients(model, LOSS, inputs, labels, torch.Generator().manual_seed(seed))
    return {name: param.grad.clone() for name, param in model.named_parameters()}, stats


def flat(values):
    return torch.cat([value.flatten() for value in values.values()])


@pytest.mark.parametrize("guess", ["normal", "rademacher", "sphere"])
def test_estimate_is_the_mean_of_derivatives_times_tangents(guess):
    model, inputs, labels = problem()
    exact, _ = gradients(Backprop(), model, inputs, labels)
    estimate, stats = gradients(ForwardGradient(guess=guess, tangents=3), model, inputs, labels)
    tangents = sample_tangents(dict(model.named_parameters()), guess, torch.Generator().manual_seed(0), 3)
    rows = torch.stack([flat({name: value[k] for name, value in tangents.items()}) for k in range(3)])
    torch.testing.assert_close(stats.directional_derivatives, rows @ flat(exact))
    torch.testing.assert_close(flat(estimate), (rows @ flat(exact)) @ rows / 3)
    torch.testing.assert_close(stats.grad_norm, flat(estimate).norm())


@pytest.mark.parametrize("structure", ["full", "rank1"])
@pytest.mark.parametrize("combine", ["mean", "projection"])
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_change_nothing_but_memory(structure, combine, chunk):
    model, inputs, labels = problem(dropout=0.5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    results = []
    for each in (None, chunk):
        model.load_state_dict(before)
        options = {
            "guess": "rademacher",
            "structure": structure,
            "combine": combine,
            "tangents": 5,
            "chunk": each,
        }
        results.append(
            (*gradients(ForwardGradient(**options), model, inputs, labels), dict(model.state_dict()))
        )
        results[-1] = (*results[-1][:2], {key: value.clone() for key, value in results[-1][2].items()})
    torch.testing.assert_close(results[1][0], results[0][0])
    torch.testing.assert_close(results[1][1].directional_derivatives, results[0][1].directional_derivatives)
    torch.testing.assert_close(results[1][2], results[0][2])
    model.load_state_dict(before)
    gradients(Backprop(), model, inputs, labels)
    torch.testing.assert_close(results[0][2], dict(model.state_dict()))


def test_projection_on_as_many_tangents_as_parameters_is_the_gradient():
    model, inputs, labels = problem()
    exact, _ = gradients(Backprop(), model, inputs, labels)
    count = sum(param.numel() for param in model.parameters())
    trainer = ForwardGradient(combine="projection", tangents=count)
    torch.testing.assert_close(
        flat(gradients(trainer, model, inputs, labels)[0]), flat(exact), rtol=1e-6, atol=1e-8
    )


def test_projection_on_one_tangent_is_the_derivative_over_its_square_and_rescale_undoes_the_shrinking():
    model, inputs, labels = problem()
    plain, _ = gradients(ForwardGradient(guess="sphere"), model, inputs, labels)
    projected, _ = gradients(ForwardGradient(guess="sphere", combine="projection"), model, inputs, labels)
    rescaled, _ = gradients(
        ForwardGradient(guess="sphere", combine="projection", rescale=True), model, inputs, labels
    )
    count = len(flat(plain))
    torch.testing.assert_close(flat(projected), flat(plain) / count)
    torch.testing.assert_close(flat(rescaled), flat(plain))


def test_repeated_tangents_do_not_break_the_projection():
    model = nn.Linear(1, 2, bias=False)  # two entries: rademacher tangents must repeat
    inputs, labels = torch.randn(6, 1), torch.tensor([0, 1, 1, 0, 1, 0])
    exact, _ = gradients(Backprop(), model, inputs, labels)
    trainer = ForwardGradient(combine="projection", guess="rademacher", tangents=9)
    torch.testing.assert_close(
        flat(gradients(trainer, model, inputs, labels)[0]), flat(exact), rtol=1e-3, atol=1e-5
    )


def test_clipping_limits_the_derivative_but_reports_it_whole():
    model, inputs, labels = problem()
    _, free = gradients(ForwardGradient(), model, inputs, labels)
    limit = float(free.directional_derivatives.abs()) / 2
    _, clipped = gradients(ForwardGradient(clip_derivative=limit), model, inputs, labels)
    torch.testing.assert_close(clipped.directional_derivatives, free.directional_derivatives)
    torch.testing.assert_close(clipped.grad_norm, free.grad_norm / 2)


@pytest.mark.parametrize("structure", ["full", "rank1"])
@pytest.mark.parametrize("count", [1, 2])
def test_exact_output_layer_has_the_true_gradient_and_the_rest_an_estimate(structure, count):
    model, inputs, labels = problem()
    exact, _ = gradients(Backprop(), model, inputs, labels)
    trainer = ForwardGradient(guess="rademacher", structure=structure, tangents=count, exact_output=True)
    estimate, stats = gradients(trainer, model, inputs, labels)
    torch.testing.assert_close(estimate["5.weight"], exact["5.weight"])
    torch.testing.assert_close(estimate["5.bias"], exact["5.bias"])
    assert not torch.allclose(estimate["0.weight"], exact["0.weight"])
    torch.testing.assert_close(stats.grad_norm, flat(estimate).norm())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guess": "rademacher"},
        {"guess": "sphere"},
        {"tangents": 2},
        {"exact_output": True},
        {"combine": "projection"},
    ],
)
def test_sgd_step_agrees_with_the_optimizer(options):
    model, inputs, labels = problem()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer = ForwardGradient(**options)
    _, dense = gradients(trainer, model, inputs, labels)
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(before)
    stats = trainer.sgd_step(model, LOSS, inputs, labels, torch.Generator().manual_seed(0), lr=0.01)
    torch.testing.assert_close(dict(model.state_dict()), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(stats.grad_norm, dense.grad_norm)


@pytest.mark.parametrize("options", [{}, {"tangents": 2}, {"guess": "rademacher", "structure": "rank1"}])
def test_no_pass_and_no_tangent_outlives_its_step(options):
    model, inputs, labels = problem()
    trainer = ForwardGradient(**options)
    trainer.sgd_step(model, LOSS, inputs, labels, torch.Generator().manual_seed(0), lr=0.01)
    model.zero_grad()
    gc.collect()
    gc.disable()  # as between two collections
    try:
        before = {id(each) for each in gc.get_objects() if isinstance(each, torch.Tensor)}
        trainer.sgd_step(model, LOSS, inputs, labels, torch.Generator().manual_seed(0), lr=0.01)
        model.zero_grad()
        after = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
        assert [type(each) for each in after if id(each) not in before] == []
    finally:
        gc.enable()


def test_scalar_loss_is_refused():
    model, inputs, labels = problem()
    with pytest.raises(ConfigError, match='reduction="none"'):
        ForwardGradient().compute_gradients(model, nn.CrossEntropyLoss(), inputs, labels, torch.Generator())


@pytest.mark.parametrize("guess", ["normal", "rademacher", "sphere"])
def test_tangents_are_the_same_on_any_number_of_threads_and_in_portions(guess):
    params = {"weight": torch.zeros(600, 500), "bias": torch.zeros(7)}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = sample_tangents(params, guess, torch.Generator().manual_seed(2), 3)
        torch.set_num_threads(2)
        generator = torch.Generator().manual_seed(2)
        portions = [sample_tangents(params, guess, generator, count) for count in (1, 2)]
    finally:
        torch.set_num_threads(threads)
    for name in params:
        torch.testing.assert_close(torch.cat([each[name] for each in portions]), one[name], rtol=1e-6, atol=0)


@pytest.mark.parametrize("guess", ["normal", "rademacher", "sphere"])
def test_tangents_in_portions_are_the_same_where_a_model_has_several_dtypes(guess):
    params = {"one": torch.zeros(5, 4), "two": torch.zeros(7, dtype=torch.float64), "three": torch.zeros(3)}
    whole = sample_tangents(params, guess, torch.Generator().manual_seed(2), 3)
    generator = torch.Generator().manual_seed(2)
    portions = [sample_tangents(params, guess, generator, count) for count in (1, 2)]
    for name in params:
        torch.testing.assert_close(
            torch.cat([each[name] for each in portions]), whole[name], rtol=1e-6, atol=0
        )


def test_tangents_have_unit_variance_entries():
    params = {"weight": torch.zeros(400, 500), "bias": torch.zeros(3), "filters": torch.zeros(8, 4, 3, 3)}
    count = sum(param.numel() for param in params.values())
    for guess in ("normal", "rademacher", "sphere"):
        tangent = sample_tangents(params, guess, torch.Generator().manual_seed(0))
        values = flat(tangent).double()
        assert abs(float(values.mean())) < 5 / math.sqrt(count)
        assert abs(float(values.square().mean()) - 1) < 5 * math.sqrt(2 / count)
        neighbours = (values[1:] * values[:-1]).mean()
        assert abs(float(neighbours)) < 5 / math.sqrt(count)
    assert (sample_tangents(params, "rademacher", torch.Generator())["weight"].abs() == 1).all()
    assert float(
        flat(sample_tangents(params, "sphere", torch.Generator())).double().square().sum()
    ) == pytest.approx(count, rel=1e-5)
