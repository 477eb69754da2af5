"""The statistics of the gradient estimates: means, variances, projections, and that the tests can fail."""

import math

import pytest
import torch
from flat_gradients import LOSS, flat_gradient
from torch import nn

from fgbench.errors import ConfigError
from fgbench.trainers.activity_forward_gradient import ActivityForwardGradient
from fgbench.trainers.backprop import Backprop
from fgbench.trainers.directions import SeededDirection
from fgbench.trainers.exact_output import OutputLayer, loss_gradient
from fgbench.trainers.feedback_forward_gradient import FeedbackForwardGradient
from fgbench.trainers.forward_gradient import ForwardGradient
from fgbench.trainers.zeroth_order import ZerothOrder

RUNS = 100


def small_model(*layers, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(*(layer() for layer in layers)).double()


def conv_model():
    return small_model(
        lambda: nn.Conv2d(2, 3, 2),
        nn.ReLU,
        nn.Flatten,
        lambda: nn.Linear(12, 3),
        nn.ReLU,
        lambda: nn.Linear(3, 3),
    )


def linear_model():
    return small_model(nn.Flatten, lambda: nn.Linear(18, 5), nn.ReLU, lambda: nn.Linear(5, 3))


def batch(size=4):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(size, 2, 3, 3, generator=generator, dtype=torch.float64)
    return inputs, torch.arange(size) % 3


def true_gradient(model, inputs, labels):
    return flat_gradient(Backprop(), model, inputs, labels, None)


def estimates(trainer, model, inputs, labels, runs=RUNS):
    generator = torch.Generator().manual_seed(5)
    return torch.stack([flat_gradient(trainer, model, inputs, labels, generator) for _ in range(runs)])


def check_mean(sample, truth):
    """Assert that the mean of independent estimates, shape (N, P), is the truth, as far as N tells.

    The projection s = <g_hat, g> / |g|^2 has mean 1; N must be large enough to see a factor of 1.1. The
    distance of the mean from the truth, squared, is the total variance over N.
    """
    count = len(sample)
    projections = sample @ truth / (truth @ truth)
    error = projections.std() / math.sqrt(count)
    assert error <= 0.0125, f"too few estimates: standard error {error:.4f}"
    assert abs(projections.mean() - 1) <= 4 * error
    covariance = torch.cov(sample.T)
    distance = (sample.mean(0) - truth).square().sum()
    spread = (
        math.sqrt(2) * covariance.norm() / count
    )  # of the squared distance, whose mean is the trace over N
    assert distance <= covariance.trace() / count + 4 * spread


def check_variance(sample, truth, expected):
    """Assert that the mean of |g_hat - g|^2 over independent estimates is ``expected``."""
    errors = (sample - truth).square().sum(1)
    assert abs(errors.mean() - expected) <= 4 * errors.std() / math.sqrt(len(errors))


FORWARD = [
    (ForwardGradient(guess="normal", tangents=150), +1, 150),
    (ForwardGradient(guess="rademacher", tangents=150), -1, 150),
    (ForwardGradient(guess="sphere", tangents=150, chunk=64), -1, 150),
    (ForwardGradient(guess="rademacher", structure="rank1", tangents=1500), -1, 1500),
]


@pytest.mark.parametrize(
    ("trainer", "sign", "tangents"), FORWARD, ids=lambda value: str(getattr(value, "options", value))
)
def test_forward_gradients_are_unbiased_with_the_variance_of_theory_over_k(trainer, sign, tangents):
    model, (inputs, labels) = conv_model(), batch()
    truth = true_gradient(model, inputs, labels)
    sample = estimates(trainer, model, inputs, labels)
    check_mean(sample, truth)
    check_variance(sample, truth, (len(truth) + sign) * truth.square().sum() / tangents)


@pytest.mark.parametrize("factor", [1.1, 0.9])
def test_a_wrong_factor_would_be_seen(factor):
    model, (inputs, labels) = conv_model(), batch()
    truth = true_gradient(model, inputs, labels)
    sample = estimates(FORWARD[0][0], model, inputs, labels)
    with pytest.raises(AssertionError):
        check_mean(factor * sample, truth)
    with pytest.raises(AssertionError):
        check_variance(factor * sample, truth, (len(truth) + 1) * truth.square().sum() / FORWARD[0][2])


def test_projection_on_as_many_tangents_as_parameters_is_the_true_gradient():
    model, (inputs, labels) = (
        small_model(nn.Flatten, lambda: nn.Linear(18, 2), nn.Tanh, lambda: nn.Linear(2, 3)),
        batch(),
    )
    truth = true_gradient(model, inputs, labels)
    trainer = ForwardGradient(combine="projection", tangents=len(truth), chunk=20)
    estimate = flat_gradient(trainer, model, inputs, labels, torch.Generator().manual_seed(2))
    assert torch.allclose(estimate, truth, atol=1e-8)


def test_projection_shrinks_by_k_over_p_and_rescaling_mends_it():
    model, (inputs, labels) = linear_model(), batch()
    truth = true_gradient(model, inputs, labels)
    tangents = len(truth) // 2
    kept = tangents / len(truth)
    sample = estimates(
        ForwardGradient(combine="projection", tangents=tangents), model, inputs, labels, runs=200
    )
    projections = sample @ truth / (truth @ truth)
    assert abs(projections.mean() - kept) <= 4 * projections.std() / math.sqrt(len(projections))
    trainer = ForwardGradient(combine="projection", tangents=tangents, rescale=True)
    sample = estimates(trainer, model, inputs, labels)
    projections = sample @ truth / (truth @ truth)
    assert abs(projections.mean() - 1) <= 4 * projections.std() / math.sqrt(len(projections))
    check_variance(sample, truth, (1 / kept - 1) * truth.square().sum())


COPIES = 400


@pytest.mark.parametrize(
    "options",
    [{}, {"mask": False}, {"guess": "normal"}, {"exact_output": True}, {"tangents": 2}],
    ids=str,
)
def test_activity_forward_gradients_are_unbiased(options):
    model, (inputs, labels) = conv_model(), batch()
    truth = true_gradient(model, inputs, labels)
    # Samples have perturbations of their own, so a batch of copies holds as many independent estimates.
    many = inputs.repeat(COPIES, 1, 1, 1), labels.repeat(COPIES)
    check_mean(estimates(ActivityForwardGradient(**options), model, *many), truth)


def test_activity_forward_gradients_are_unbiased_past_shared_outputs_and_other_layers():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding="same", groups=3)
            self.norm = nn.GroupNorm(1, 3)

        def forward(self, value):
            output = self.conv(value)
            return torch.relu_(self.norm(output)) + torch.relu(output) + output

    model = small_model(
        lambda: nn.Conv2d(2, 3, 2), lambda: nn.ReLU(inplace=True), Block, nn.Flatten, lambda: nn.Linear(12, 3)
    )
    inputs, labels = batch()
    truth = true_gradient(model, inputs, labels)
    many = inputs.repeat(2 * COPIES, 1, 1, 1), labels.repeat(2 * COPIES)
    check_mean(estimates(ActivityForwardGradient(), model, *many), truth)


@pytest.mark.parametrize(("options", "tangents"), [({}, 1), ({"mask": False}, 1), ({"tangents": 3}, 3)])
def test_activity_variance_is_that_of_theory(options, tangents):
    model, (inputs, labels) = linear_model(), batch()
    truth = true_gradient(model, inputs, labels)
    first, second = model[1], model[3]
    before = first(inputs.flatten(1))
    hidden = before.relu()
    (delta_first,) = torch.autograd.grad(LOSS(second(hidden), labels).mean(), before)
    delta_second = loss_gradient(LOSS, second(hidden), labels) / len(labels)
    total = delta_first.square().sum(1) + delta_second.square().sum(1)
    active = (before > 0).sum(1) if options.get("mask", True) else torch.full((len(labels),), 5)
    with torch.no_grad():
        expected = (
            (inputs.flatten(1).square().sum(1) + 1) * (active * total - delta_first.square().sum(1))
            + (hidden.square().sum(1) + 1) * (3 * total - delta_second.square().sum(1))
        ).sum()
    many = inputs.repeat(10, 1, 1, 1), labels.repeat(10)
    sample = estimates(ActivityForwardGradient(**options), model, *many, runs=300)
    check_variance(sample, truth, expected / (10 * tangents))


def test_activity_refuses_samples_that_interact():
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 3)).double()
    with pytest.raises(ConfigError, match=r"model\.normalization: group"):
        flat_gradient(ActivityForwardGradient(), model, *batch(), torch.Generator())
    model[1].eval()
    assert flat_gradient(ActivityForwardGradient(), model, *batch(), torch.Generator()).isfinite().all()


def test_activity_refuses_a_weight_it_would_not_see():
    class Tied(nn.Linear):
        def forward(self, value):
            return super().forward(value) @ self.weight

    model = nn.Sequential(nn.Flatten(), Tied(18, 3), nn.Linear(18, 3)).double()
    with pytest.raises(ConfigError, match="weight"):
        flat_gradient(ActivityForwardGradient(), model, *batch(), torch.Generator())


@pytest.mark.parametrize("guess", ["normal", "rademacher", "sphere"])
def test_a_zeroth_order_gradient_is_the_tangent_times_the_slope_along_it(guess):
    model, (inputs, labels) = linear_model(), batch()
    model[2] = nn.Tanh()
    truth = true_gradient(model, inputs, labels)
    trainer, generator = ZerothOrder(guess=guess, epsilon=1e-5), torch.Generator().manual_seed(3)
    for _ in range(5):
        stats = trainer.compute_gradients(model, LOSS, inputs, labels, generator)
        estimate = torch.cat([param.grad.flatten() for param in model.parameters()])
        tangent = estimate / stats.directional_derivatives
        assert torch.allclose(tangent @ truth, stats.directional_derivatives, rtol=1e-5)
        if guess == "rademacher":
            assert torch.allclose(tangent.abs(), torch.ones_like(tangent))
        if guess == "sphere":
            assert torch.allclose(tangent.norm(), torch.tensor(math.sqrt(len(truth))).double())


@pytest.mark.parametrize(("guess", "sign"), [("normal", +1), ("rademacher", -1), ("sphere", -1)])
def test_zeroth_order_tangents_make_unbiased_gradients(guess, sign):
    truth = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0], dtype=torch.float64)
    param, generator = nn.Parameter(torch.zeros(5, dtype=torch.float64)), torch.Generator().manual_seed(0)
    tangents = torch.stack([SeededDirection([param], guess, generator).of(param) for _ in range(15000)])
    sample = (tangents @ truth)[:, None] * tangents
    check_mean(sample, truth)
    check_variance(sample, truth, (len(truth) + sign) * truth.square().sum())


def test_zeroth_order_draws_a_new_direction_each_time_and_parameters_differ():
    params = [nn.Parameter(torch.zeros(3, 40)), nn.Parameter(torch.zeros(3, 40))]
    generator = torch.Generator().manual_seed(0)
    first, second = (SeededDirection(params, "normal", generator) for _ in range(2))
    shares = [direction.of(param) for direction in (first, second) for param in params]
    assert torch.equal(shares[0], first.of(params[0]))
    correlations = torch.corrcoef(torch.stack([share.flatten() for share in shares]))
    assert (correlations - torch.eye(4)).abs().max() < 4 / math.sqrt(120)


def test_zeroth_order_leaves_no_rounding_in_the_parameters():
    model, (inputs, labels) = linear_model().float(), batch()
    before = [param.clone() for param in model.parameters()]
    for seed in range(3):
        flat_gradient(ZerothOrder(), model, inputs.float(), labels, torch.Generator().manual_seed(seed))
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("combine", ["direction", "projection"])
def test_feedback_learns_to_point_along_the_gradient(combine):
    model, (inputs, labels) = linear_model(), batch(500)
    truth = true_gradient(model, inputs, labels)
    trainer = FeedbackForwardGradient(learning="average", combine=combine, feedback_momentum=0.9)
    generator = torch.Generator().manual_seed(4)
    for _ in range(150):
        estimate = flat_gradient(trainer, model, inputs, labels, generator)
    hidden = sum(param.numel() for param in model[1].parameters())
    assert torch.allclose(estimate[hidden:], truth[hidden:])
    assert torch.cosine_similarity(estimate[:hidden], truth[:hidden], dim=0) > 0.95


def test_feedback_matrices_become_the_jacobian_of_the_outputs():
    model, (inputs, labels) = linear_model(), batch(1000)
    trainer = FeedbackForwardGradient(learning="average", feedback_momentum=0.9)
    generator = torch.Generator().manual_seed(4)
    for _ in range(200):
        flat_gradient(trainer, model, inputs, labels, generator)
    assert torch.allclose(trainer.feedback[0], model[3].weight, atol=0.05)


def test_the_projected_feedback_gradient_is_a_descent_direction_whatever_the_matrices():
    model, (inputs, labels) = linear_model(), batch()
    model[2] = nn.Tanh()
    truth = true_gradient(model, inputs, labels)
    trainer = FeedbackForwardGradient(combine="projection")
    flat_gradient(trainer, model, inputs, labels, torch.Generator())
    trainer.load_state_dict({"feedback": [-10 * model[3].weight.detach().clone()]})
    estimate = flat_gradient(trainer, model, inputs, labels, torch.Generator())
    hidden = sum(param.numel() for param in model[1].parameters())
    assert estimate[:hidden] @ truth[:hidden] > 0


def test_the_loss_gradient_needs_no_backward_engine_and_is_exact():
    inputs, labels = (
        torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        torch.arange(5) % 3,
    )
    for loss_fn in (
        LOSS,
        nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1),
        lambda o, y: (o**2).sum(1) * y,
    ):
        leaf = inputs.clone().requires_grad_()
        loss_fn(leaf, labels).sum().backward()
        assert torch.allclose(loss_gradient(loss_fn, inputs, labels), leaf.grad)


def test_an_output_layer_that_shares_its_weights_is_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    with pytest.raises(ConfigError, match="shares its weights"):
        OutputLayer(model)
