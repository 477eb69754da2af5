"""Properties of the one loop over batches."""

import copy

import pytest
import torch

from fgbench.config.config import Config
from fgbench.datasets.base import load_splits
from fgbench.datasets.search import DataSearch
from fgbench.errors import ConfigError
from fgbench.run.build import build_training
from fgbench.run.loop import TrainingState, evaluate, start_next_epoch, train_epoch

SYNTHETIC = {"name": "synthetic", "shape": [1, 6, 6], "classes": 3, "train": 50, "test": 12}


def make_training(**changes) -> TrainingState:
    settings = {
        "dataset": SYNTHETIC,
        "model": {"name": "fc", "hidden": 5},
        "trainer": "backprop",
        "batch_size": 8,
        "epochs": 2,
    } | changes
    for kind in ("dataset", "model", "trainer"):
        if isinstance(settings[kind], str):
            settings[kind] = {"name": settings[kind]}
    config = Config.model_validate(settings)
    device = torch.device("cpu")
    splits = load_splits(config.dataset, config.seed, device, DataSearch(None, None, False))
    return build_training(config, device, splits)


def parameters(training: TrainingState) -> torch.Tensor:
    return torch.cat([param.detach().flatten() for param in training.model.parameters()])


def watch_batches(training: TrainingState) -> list[torch.Tensor]:
    """The indices of every batch the training part gives from now on."""
    seen: list[torch.Tensor] = []
    take = training.splits.train.batch

    def take_and_tell(indices, generator):
        seen.append(indices)
        return take(indices, generator)

    object.__setattr__(training.splits.train, "batch", take_and_tell)
    return seen


def test_the_learning_rate_of_exact_gradients_needs_some_that_are_exact_and_some_that_are_not() -> None:
    optimizer = {"name": "adam", "lr": 1e-3, "exact_lr": 1e-2}
    exact = {"name": "forward-gradient", "exact_output": True}
    groups = make_training(trainer=exact, optimizer=optimizer).optimizer.param_groups
    assert [group["lr"] for group in groups] == [1e-3, 1e-2]
    assert [param.shape[0] for param in groups[1]["params"]] == [3, 3]
    for trainer, which in (("backprop", "every"), ("frozen", "every"), ("forward-gradient", "no")):
        with pytest.raises(ConfigError, match=f"optimizer.exact_lr: .*{trainer} {which} parameter"):
            make_training(trainer=trainer, optimizer=optimizer)


@pytest.mark.parametrize("body", [1e-30, 1e-2])
def test_a_body_whose_rate_vanishes_beside_exact_lr_is_the_frozen_control(body) -> None:
    trained = {}
    for trainer, rates in (
        ("frozen", {"lr": 0.1}),
        ("feedback-forward-gradient", {"lr": body, "exact_lr": 0.1}),
        ({"name": "forward-gradient", "exact_output": True}, {"lr": body, "exact_lr": 0.1}),
    ):
        model = {"name": "cnn", "width": 4, "hidden": 8}
        training = make_training(trainer=trainer, model=model, optimizer={"name": "adam"} | rates)
        for _ in range(2):
            start_next_epoch(training)
            train_epoch(training)
        trained[str(trainer)] = parameters(training)
    control, *others = trained.values()
    assert all(torch.equal(each, control) == (body < 1e-20) for each in others)


def test_trainers_of_one_seed_share_weights_split_and_batch_order() -> None:
    seen = {}
    for trainer in ("backprop", "forward-gradient", "zeroth-order"):
        training = make_training(trainer=trainer)
        batches = watch_batches(training)
        weights = parameters(training)
        train_epoch(training)
        seen[trainer] = weights, torch.stack(batches), training.splits.validation.labels
    for trainer in ("forward-gradient", "zeroth-order"):
        for mine, backprops in zip(seen[trainer], seen["backprop"], strict=True):
            assert torch.equal(mine, backprops)


def test_an_epoch_uses_each_image_at_most_once_and_epochs_differ_in_order() -> None:
    training = make_training()
    assert training.batches_per_epoch == 40 // 8
    orders = []
    batches = watch_batches(training)
    for _ in range(2):
        assert train_epoch(training)
        start_next_epoch(training)
        orders.append(torch.cat(batches))
        batches.clear()
        assert len(orders[-1].unique()) == 40
    assert not torch.equal(*orders)


def test_backprop_learns_separable_images() -> None:
    training = make_training(optimizer={"name": "adam", "lr": 0.01}, epochs=20)
    before, _ = evaluate(training.model, training.loss_fn, training.splits.test)
    for _ in range(20):
        train_epoch(training)
        _, _, grad_norm = training.train_means()
        start_next_epoch(training)
    after, accuracy = evaluate(training.model, training.loss_fn, training.splits.test)
    assert after < before / 2
    assert accuracy > 0.9
    assert grad_norm > 0


def test_means_are_over_the_batches_before_each_update() -> None:
    training = make_training(optimizer={"name": "sgd", "lr": 1e-30})
    expected, _ = evaluate(training.model, training.loss_fn, training.splits.train)
    train_epoch(training)
    loss, accuracy, _ = training.train_means()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert accuracy == pytest.approx(evaluate(training.model, training.loss_fn, training.splits.train)[1])


@pytest.mark.parametrize("trainer", ["backprop", "forward-gradient"])
def test_going_on_from_the_middle_of_an_epoch_changes_no_bit(trainer: str) -> None:
    changes = {
        "trainer": trainer,
        "model": {"name": "fc", "hidden": 5, "dropout": 0.5},
        "dataset": SYNTHETIC | {"augment": True},
        "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
        "schedule": {"name": "one-cycle"},
    }
    whole = make_training(**changes)
    train_epoch(whole)
    stopped = make_training(**changes)
    assert not train_epoch(stopped, after_step=lambda: stopped.batches_done == 2)
    state = copy.deepcopy(stopped.state_dict())
    resumed = make_training(**changes)
    resumed.load_state_dict(state)
    assert train_epoch(resumed)
    assert torch.equal(parameters(resumed), parameters(whole))
    assert torch.equal(resumed.sums, whole.sums)


def test_plain_sgd_takes_the_trainers_own_step_and_momentum_does_not() -> None:
    calls = []

    def watched(**changes) -> None:
        training = make_training(trainer={"name": "forward-gradient", "guess": "rademacher"}, **changes)
        own = training.trainer.sgd_step
        training.trainer.sgd_step = lambda *args: calls.append(1) or own(*args)
        train_epoch(training)

    watched(optimizer={"name": "sgd", "lr": 0.01})
    assert len(calls) == 5
    watched(optimizer={"name": "sgd", "lr": 0.01, "momentum": 0.5})
    watched(optimizer={"name": "sgd", "lr": 0.01}, clip_gradient_norm=1.0)
    assert len(calls) == 5


def test_clipping_bounds_the_step() -> None:
    training = make_training(optimizer={"name": "sgd", "lr": 1.0}, clip_gradient_norm=0.001)
    before = parameters(training)
    train_epoch(training, after_step=lambda: True)
    assert (parameters(training) - before).norm() == pytest.approx(0.001, rel=1e-3)


def test_the_loop_leaves_the_global_generator_alone() -> None:
    training = make_training(model={"name": "fc", "hidden": 5, "dropout": 0.5})
    state = torch.get_rng_state()
    train_epoch(training)
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_changes_nothing() -> None:
    training = make_training(model={"name": "resnet18", "width": 2}, dataset=SYNTHETIC | {"shape": [1, 8, 8]})
    before = copy.deepcopy(training.model.state_dict())
    evaluate(training.model, training.loss_fn, training.splits.test)
    assert training.model.training
    for name, value in training.model.state_dict().items():
        assert torch.equal(value, before[name]), name
