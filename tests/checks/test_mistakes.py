"""Mistakes that ``fgbench check`` must find: broken trainers and samplers, each by a part of its own."""

import pytest
import torch
from torch import nn

from fgbench.checks import probe as probe_module
from fgbench.checks.formula import check_formula
from fgbench.checks.mean import check_mean
from fgbench.checks.sampler import check_sampler
from fgbench.models.build import build_model
from fgbench.registry import TRAINERS, load, options_model
from fgbench.trainers import sampling
from fgbench.trainers.directions import SeededDirection
from fgbench.trainers.forward_gradient import ForwardGradient

LOSS = nn.CrossEntropyLoss(reduction="none")
SMALL = {
    "fc": {"hidden": 16},
    "cnn": {"width": 2, "hidden": 8},
    "local-mixer": {"channels": 8, "groups": 2, "patches": 2, "blocks": 2},
}
CPU = torch.device("cpu")
FULL_SIZE = pytest.mark.nightly
"""The models as they are and a batch of 64, which ``fgbench check`` takes by default."""
ALL = [
    *((name, {}) for name in TRAINERS),
    ("forward-gradient", {"structure": "rank1", "guess": "rademacher"}),
    ("zeroth-order", {"structure": "rank1", "guess": "rademacher"}),
    ("guided-forward-gradient", {"guess": "normal"}),
]
WITHOUT_DRAWS = [(name, {}) for name in ("backprop", "frozen", "local-loss", "feedback-alignment")]
WITHOUT_DRAWS += [("guided-forward-gradient", {})]
DRAWING = [case for case in ALL if case not in WITHOUT_DRAWS]


def models_of(cases, small=("fc", "cnn", "local-mixer")):
    """Every case with the models it trains, small and full-size."""
    return [
        pytest.param(name, options, model, full, marks=FULL_SIZE if full or model not in small else ())
        for name, options in cases
        for model in (["local-mixer"] if name == "local-forward-gradient" else ["fc", "cnn"])
        for full in (False, True)
    ]


def ready(trainer_class, options, model, full, dtype):
    side, size = (28, 64) if full else (8, 6)
    changes = {} if full else SMALL[model]
    model = build_model(options_model("model", model)(name=model, **changes), (1, side, side), 10, 0, CPU)
    if hasattr(
        model[-1], "__len__"
    ):  # local-mixer's output layer is 0 at first, and so is the body's gradient
        nn.init.normal_(model[-1][-1].weight, std=0.1, generator=torch.Generator().manual_seed(0))
    inputs = torch.randn(size, 1, side, side, generator=torch.Generator().manual_seed(1))
    model, inputs = model.to(dtype), inputs.to(dtype).contiguous(memory_format=torch.channels_last)
    trainer = trainer_class(**options)
    trainer.set_up(model, inputs, 10, torch.Generator().manual_seed(2))
    return trainer, model, LOSS, inputs, torch.arange(size) % 10


def mutated(trainer_class, change, *, reference_too=False):
    """A subclass whose gradient is wrong."""

    def factors(gradients):
        names = [name for name, gradient in gradients.items() if gradient is not None]
        first = names[0].rpartition(".")[0]
        return {
            name: {
                "scaled": 0.9,
                "flipped": -1.0,
                "without biases": 0.0 if name.endswith("bias") else 1.0,
                "one layer doubled": 2.0 if name.startswith(first) else 1.0,
            }[change]
            for name in names
        }

    class Mutated(trainer_class):
        def compute_gradients(self, model, *args, **options):
            if change == "data-dependent tangent":
                seed = int(args[1].abs().sum() * 1e3)
                return super().compute_gradients(model, *args[:3], torch.Generator().manual_seed(seed))
            stats = super().compute_gradients(model, *args, **options)
            params = dict(model.named_parameters())
            for name, factor in factors({name: param.grad for name, param in params.items()}).items():
                params[name].grad = params[name].grad * factor
            return stats

        def reference(self, *batch):
            found = super().reference(*batch)
            if reference_too:
                for name, factor in factors(found.gradient).items():
                    found.gradient[name] = found.gradient[name] * factor
            return found

    return Mutated


CHANGES = ["scaled", "flipped", "without biases", "one layer doubled"]


@pytest.mark.parametrize(("name", "options", "model", "full"), models_of(ALL))
def test_a_right_trainer_agrees_with_its_formula(name, options, model, full):
    step = ready(load("trainer", name), options, model, full, torch.float64)
    assert check_formula(*step, seed=0).consistent


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("name", "options", "model", "full"), models_of(ALL))
def test_a_wrong_gradient_is_found_by_its_formula(name, options, model, full, change):
    step = ready(mutated(load("trainer", name), change), options, model, full, torch.float64)
    assert check_formula(*step, seed=0).consistent is False


@pytest.mark.parametrize(("name", "options", "model", "full"), models_of(DRAWING, ["fc", "local-mixer"]))
def test_a_tangent_that_depends_on_the_data_is_found(name, options, model, full):
    wrong = mutated(load("trainer", name), "data-dependent tangent")
    if name != "feedback-forward-gradient":  # whose derivatives teach its matrices and are not compared
        assert check_formula(*ready(wrong, options, model, full, torch.float64), seed=0).consistent is False
    part = check_sampler(*ready(wrong, options, model, full, torch.float32), seed=0)
    assert "NO" in part.lines[1]
    assert not part.consistent


@pytest.mark.parametrize("factor", [1.0, 1.05])
@pytest.mark.parametrize(("name", "options", "model", "full"), models_of(DRAWING, ["fc", "local-mixer"]))
def test_a_sampler_off_by_5_percent_is_found(name, options, model, full, factor, monkeypatch):
    for fill in ("_fill_normal", "random_signs"):
        original = getattr(sampling, fill)

        def scaled(*args, original=original, **kwargs):
            result = original(*args, **kwargs)
            (args[0] if result is None else result).mul_(factor)
            return result

        monkeypatch.setattr(sampling, fill, scaled)
        if fill == "random_signs":
            monkeypatch.setattr("fgbench.trainers.rank_one.random_signs", scaled)
    part = check_sampler(*ready(load("trainer", name), options, model, full, torch.float32), seed=0)
    assert part.consistent is (factor == 1.0), part.lines


@pytest.mark.parametrize("factor", [1.0, 1.05])
def test_a_sampler_off_by_5_percent_is_found_on_a_few_parameters(factor, monkeypatch):
    fill = sampling._fill_normal

    def scaled(row, generator):
        fill(row, generator)
        row.mul_(factor)

    monkeypatch.setattr(sampling, "_fill_normal", scaled)
    inputs = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    part = check_sampler(ForwardGradient(), nn.Linear(4, 3), LOSS, inputs, torch.arange(2), seed=0)
    assert part.consistent is (factor == 1.0), part.lines


def sampled(monkeypatch, change):
    """The sampler's part, of a forward gradient whose tangents are changed after they were drawn."""
    fill = sampling._fill_normal
    monkeypatch.setattr(sampling, "_fill_normal", lambda row, generator: change(row, generator, fill))
    return check_sampler(*ready(ForwardGradient, {}, "fc", False, torch.float32), seed=0)


def shifted(row, generator, fill):
    fill(row, generator)
    row += 0.05


def drawn_once_more(row, generator, fill):
    state = generator.get_state()
    fill(row, generator)
    generator.set_state(state)


def halves_alike(row, generator, fill):
    fill(row, generator)
    row[len(row) // 2 :] = row[: len(row) - len(row) // 2]


def a_part_in_common(row, generator, fill):
    fill(row, generator)
    row.mul_(0.995).add_(torch.randn(1, generator=generator), alpha=0.1)


@pytest.mark.parametrize("change", [shifted, drawn_once_more, halves_alike, a_part_in_common])
def test_directions_that_are_not_random_enough_are_found(change, monkeypatch):
    part = sampled(monkeypatch, change)
    assert part.consistent is False
    assert sum("WRONG" in line for line in part.lines) >= 1


def test_layers_that_share_their_random_numbers_are_found(monkeypatch):
    original = SeededDirection.__init__

    def one_seed(self, params, guess, generator):
        original(self, params, guess, generator)
        self.index = dict.fromkeys(self.index, 0)

    monkeypatch.setattr(SeededDirection, "__init__", one_seed)
    step = ready(load("trainer", "zeroth-order"), {}, "cnn", False, torch.float32)
    assert check_sampler(*step, seed=0).consistent is False


@pytest.mark.parametrize(
    ("name", "change"),
    [("zeroth-order", "scaled"), ("activity-forward-gradient", "without biases")]
    + [("forward-gradient", change) for change in CHANGES],
)
def test_a_mistake_in_the_formula_itself_is_found_by_the_mean(name, change):
    wrong = mutated(load("trainer", name), change, reference_too=True)
    assert check_formula(*ready(wrong, {}, "fc", False, torch.float64), seed=0).consistent
    assert check_mean(wrong(), CPU).consistent is False


def test_a_tangent_scaled_after_it_was_drawn_is_found_by_the_mean(monkeypatch):
    draw = sampling.sample_tangents

    def scaled(*args):
        return {name: 1.05 * tangent for name, tangent in draw(*args).items()}

    monkeypatch.setattr("fgbench.trainers.tangents.sample_tangents", scaled)
    assert check_formula(*ready(ForwardGradient, {}, "fc", False, torch.float64), seed=0).consistent
    assert check_mean(ForwardGradient(), CPU).consistent is False


MEANS = [
    *((name, {}) for name in TRAINERS),
    ("forward-gradient", {"structure": "rank1", "guess": "rademacher", "tangents": 2}),
    ("forward-gradient", {"guess": "sphere", "exact_output": True}),
    ("zeroth-order", {"exact_output": True, "guess": "rademacher"}),
    ("zeroth-order", {"structure": "rank1", "guess": "rademacher", "tangents": 2}),
    ("activity-forward-gradient", {"guess": "normal", "mask": False, "exact_output": True}),
    ("activity-forward-gradient", {"guess": "next-weights"}),
    ("feedback-forward-gradient", {"learning": "average", "correction": 0.5, "grid": None}),
    ("feedback-forward-gradient", {"combine": "projection"}),
]


@pytest.mark.parametrize(("name", "options"), MEANS)
def test_the_mean_over_all_directions_is_the_declared_one(name, options):
    assert check_mean(load("trainer", name)(**options), CPU).consistent


def test_a_trainer_that_takes_no_small_model_is_not_checked_there(monkeypatch):
    def refuse(*_):
        raise probe_module.ConfigError("trains only my model")

    monkeypatch.setattr(ForwardGradient, "set_up", refuse)
    part = check_mean(ForwardGradient(), CPU)
    assert part.consistent is None
    assert "trains only my model" in part.lines[1]
