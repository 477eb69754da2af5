import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, StepLR

from fgbench.config.optimizer import OptimizerOptions, ScheduleOptions
from fgbench.errors import ConfigError
from fgbench.run.optimizers import build_optimizer, build_schedule, is_plain_sgd

STEPS_PER_EPOCH, EPOCHS = 7, 5
TOTAL = STEPS_PER_EPOCH * EPOCHS
OPTIMIZERS = [
    {"name": "sgd"},
    {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    {"name": "sgd", "momentum": 0.9, "nesterov": True},
    {"name": "adam"},
    {"name": "adam", "weight_decay": 0.1, "betas": (0.5, 0.9), "eps": 1e-3},
    {"name": "adamw", "weight_decay": 0.1},
]
SCHEDULES = ["constant", "exponential", "step", "linear", "cosine", "one-cycle"]


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2)).to(
        memory_format=torch.channels_last
    )


def fill_gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    for param in model.parameters():
        param.grad = torch.randn(
            param.shape, generator=generator
        )  # contiguous, unlike a channels_last weight


def learning_rates(schedule_options, **optimizer_options):
    optimizer = build_optimizer(OptimizerOptions(name="sgd", lr=0.4, **optimizer_options), make_model())
    schedule = build_schedule(schedule_options, optimizer, STEPS_PER_EPOCH, EPOCHS)
    rates = []
    for _ in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_parameters_with_exact_gradients_may_have_a_learning_rate_of_their_own(name):
    model, plain, fast = make_model(), make_model(), make_model()
    options = OptimizerOptions(name=name, lr=0.1, exact_lr=0.4)
    ours = build_optimizer(options, model, exact_names={"2.weight", "2.bias"})
    schedule = build_schedule(ScheduleOptions(name="exponential", k=0.5), ours, STEPS_PER_EPOCH, EPOCHS)
    assert not is_plain_sgd(ours)
    for each in (plain, fast):
        optimizer = build_optimizer(OptimizerOptions(name=name, lr=0.1 if each is plain else 0.4), each)
        fill_gradients(each, 0)
        optimizer.step()
    fill_gradients(model, 0)
    ours.step()
    schedule.step()
    expected = dict(plain.named_parameters()) | {
        key: value for key, value in fast.named_parameters() if key.startswith("2.")
    }
    for key, param in model.named_parameters():
        assert torch.equal(param, expected[key]), key
    assert [group["lr"] for group in ours.param_groups] == pytest.approx(
        [0.1 * math.exp(-0.5), 0.4 * math.exp(-0.5)]
    )


@pytest.mark.parametrize("changes", OPTIMIZERS)
def test_optimizers_step_as_the_plain_ones_of_torch(changes):
    options = OptimizerOptions(lr=0.1, **changes)
    ours, theirs = make_model(), make_model()
    optimizer = build_optimizer(options, ours)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.name]
    settings = {
        "lr": 0.1,
        "weight_decay": 0.0,
        **{key: value for key, value in changes.items() if key != "name"},
    }
    reference = kind(theirs.parameters(), foreach=False, **settings)
    for step in range(4):
        fill_gradients(ours, step)
        fill_gradients(theirs, step)
        optimizer.step()
        reference.step()
    assert optimizer.defaults["fused"]
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("changes", OPTIMIZERS)
def test_a_parameter_with_gaps_in_memory_is_stepped_entry_by_entry_and_nothing_beside_it(changes):
    memory = torch.zeros(4, 6)
    model, twin = nn.Module(), nn.Module()
    model.weight, twin.weight = nn.Parameter(memory[:, ::2]), nn.Parameter(torch.zeros(4, 3))
    for each in (model, twin):
        optimizer = build_optimizer(OptimizerOptions(lr=0.1, **changes), each)
        for step in range(3):
            fill_gradients(each, step)
            optimizer.step()
    torch.testing.assert_close(model.weight, twin.weight, rtol=1e-5, atol=1e-6)
    assert not memory[:, 1::2].any()


def test_a_parameter_whose_entries_share_memory_is_refused():
    model = nn.Module()
    for spread in (torch.zeros(1, 3).expand(4, 3), torch.zeros(6).as_strided((3, 3), (1, 1))):
        model.weight = nn.Parameter(spread)
        with pytest.raises(ConfigError, match=r"^entries of parameter 'weight' share memory"):
            build_optimizer(OptimizerOptions(), model)


def test_trainer_parameters_are_a_second_group_and_frozen_ones_are_left_out():
    model, extra = make_model(), nn.Parameter(torch.zeros(3))
    model[0].requires_grad_(False)
    optimizer = build_optimizer(OptimizerOptions(), model, [extra])
    groups = [group["params"] for group in optimizer.param_groups]
    assert [id(param) for param in groups[0]] == [id(param) for param in model[2].parameters()]
    assert groups[1][0] is extra


@pytest.mark.parametrize(
    ("changes", "plain"),
    [
        ({"name": "sgd"}, True),
        ({"name": "sgd", "momentum": 0.9}, False),
        ({"name": "sgd", "momentum": 0.9, "nesterov": True}, False),
        ({"name": "sgd", "weight_decay": 0.1}, False),
        ({"name": "adam"}, False),
        ({"name": "adamw"}, False),
    ],
)
def test_plain_sgd_is_recognised(changes, plain):
    assert is_plain_sgd(build_optimizer(OptimizerOptions(**changes), make_model())) is plain


def test_sgd_with_a_second_group_is_not_plain():
    optimizer = build_optimizer(OptimizerOptions(name="sgd"), make_model(), [nn.Parameter(torch.zeros(3))])
    assert not is_plain_sgd(optimizer)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": "constant"}, lambda i: 0.4),
        ({"name": "exponential"}, lambda i: 0.4 * math.exp(-i * 1e-4)),
        ({"name": "exponential", "k": 0.1}, lambda i: 0.4 * math.exp(-i * 0.1)),
        ({"name": "step", "step_epochs": 2}, lambda i: 0.4 * 0.2 ** (i // 14)),
        ({"name": "step", "step_epochs": 1, "factor": 0.5}, lambda i: 0.4 * 0.5 ** (i // 7)),
        ({"name": "linear"}, lambda i: 0.4 * (1 - i / TOTAL)),
        ({"name": "cosine"}, lambda i: 0.4 * (1 + math.cos(math.pi * i / TOTAL)) / 2),
    ],
)
def test_learning_rates_follow_their_formulas(options, expected):
    assert learning_rates(ScheduleOptions(**options)) == pytest.approx([expected(i) for i in range(TOTAL)])


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({"name": "step", "step_epochs": 2}, lambda optimizer: StepLR(optimizer, 2 * STEPS_PER_EPOCH, 0.2)),
        ({"name": "cosine"}, lambda optimizer: CosineAnnealingLR(optimizer, TOTAL)),
        ({"name": "one-cycle"}, lambda optimizer: OneCycleLR(optimizer, 0.4, TOTAL, cycle_momentum=False)),
        (
            {"name": "one-cycle", "warmup": 0.5},
            lambda optimizer: OneCycleLR(optimizer, 0.4, TOTAL, pct_start=0.5, cycle_momentum=False),
        ),
    ],
)
def test_learning_rates_are_those_of_torch(options, reference):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    schedule, expected = reference(optimizer), []
    for _ in range(TOTAL):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert learning_rates(ScheduleOptions(**options)) == pytest.approx(expected)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 3])
def test_very_short_runs_have_learning_rates_between_0_and_lr(name, total):
    optimizer = build_optimizer(OptimizerOptions(name="sgd", lr=0.4), make_model())
    schedule = build_schedule(ScheduleOptions(name=name), optimizer, 1, total)
    for _ in range(total):
        assert 0 < optimizer.param_groups[0]["lr"] <= 0.4
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("schedule_name", SCHEDULES)
@pytest.mark.parametrize("changes", OPTIMIZERS)
def test_a_saved_state_goes_on_bit_for_bit(changes, schedule_name):
    def build(model):
        optimizer = build_optimizer(OptimizerOptions(lr=0.1, **changes), model)
        return optimizer, build_schedule(
            ScheduleOptions(name=schedule_name), optimizer, STEPS_PER_EPOCH, EPOCHS
        )

    def train(model, optimizer, schedule, steps):
        for step in steps:
            fill_gradients(model, step)
            optimizer.step()
            schedule.step()

    straight = make_model()
    train(straight, *build(straight), range(9))
    first = make_model()
    parts = build(first)
    train(first, *parts, range(4))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (first, *parts)], file)
    file.seek(0)
    resumed = make_model(seed=1)
    parts = build(resumed)
    for part, state in zip((resumed, *parts), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    train(resumed, *parts, range(4, 9))
    for own, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(own, other)


def test_an_optimizer_can_be_copied():
    model = make_model()
    optimizer = build_optimizer(OptimizerOptions(), model)
    assert copy.deepcopy(optimizer).state_dict() == optimizer.state_dict()


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (OptimizerOptions, {"momentum": 0.9}, "momentum has no meaning for adam: it belongs to sgd"),
        (OptimizerOptions, {"name": "sgd", "betas": (0.5, 0.9)}, "betas has no meaning for sgd"),
        (OptimizerOptions, {"name": "sgd", "nesterov": True}, "nesterov: true needs momentum above 0"),
        (OptimizerOptions, {"lr": 0.0}, "lr"),
        (OptimizerOptions, {"lr": math.inf}, "lr"),
        (OptimizerOptions, {"weight_decay": -0.1}, "weight_decay"),
        (OptimizerOptions, {"name": "sgd", "momentum": 1.0}, "momentum"),
        (OptimizerOptions, {"betas": (0.9, 1.0)}, "betas"),
        (OptimizerOptions, {"name": "rmsprop"}, "sgd"),
        (ScheduleOptions, {"k": 0.1}, "k has no meaning for constant: it belongs to exponential"),
        (ScheduleOptions, {"name": "cosine", "factor": 0.5}, "factor has no meaning for cosine"),
        (ScheduleOptions, {"name": "one-cycle", "warmup": 1.0}, "warmup"),
        (ScheduleOptions, {"name": "step", "step_epochs": 0}, "step_epochs"),
    ],
)
def test_impossible_options_are_refused(model, changes, message):
    with pytest.raises(ValueError, match=message):
        model(**changes)
