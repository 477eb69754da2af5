"""torchvision's models under every trainer: right, or refused in one line."""

from functools import partial

import pytest
import test_zoo
import torch
import torchvision
from test_zoo import CASES, LABELS, LOSS, doubles, fresh, verdict

import fgbench
from fgbench.checks.verify import compare_step
from fgbench.errors import ConfigError
from zoo import Row

__all__ = ["doubles"]
"""A fixture: models are built and trained in float64."""
pytestmark = pytest.mark.nightly

OTHERS = {
    "recomputation": lambda: fgbench.Backprop(recompute=True),
    "frozen": lambda: fgbench.Frozen(),
    "alignment": lambda: fgbench.FeedbackAlignment(),
    "signs": lambda: fgbench.FeedbackAlignment(feedback="sign"),
    "direct": lambda: fgbench.FeedbackAlignment(feedback="direct"),
}
"""Trainers without derivatives, compared with their formula."""
ALIGNMENTS = ("alignment", "signs", "direct")
REFUSED = {
    "mobilenet_v2": dict.fromkeys(("activity", "guided activations"), "BatchNorm"),
    "densenet121": dict.fromkeys(("activity", "guided activations"), "BatchNorm"),
    "convnext_tiny": dict.fromkeys(ALIGNMENTS, "layer_scale"),
    "swin_t": dict.fromkeys(ALIGNMENTS, "relative_position_bias_table")
    | dict.fromkeys(("activity", "feedback"), "folds other dimensions into the batch"),
}
"""Which trainer does not take which model, and a word of why; all others are right."""
STAGES = {case: "nn.Sequential" for case in CASES if case.startswith(("guided", "local"))}


def row(name, **options):
    """A model for three classes, on six small images."""
    return Row(
        name,
        lambda: getattr(torchvision.models, name)(num_classes=3, **options),
        lambda: torch.randn(6, 3, 32, 32).contiguous(memory_format=torch.channels_last),
    )


def told_of(case, row, monkeypatch):
    """``right``, or the one line of a refusal."""
    if case in CASES:  # of millions of parameters, a usual shift would move the loss by per cents
        for each, options in (("zeroth-order", {}), ("zeroth-order rank-one", test_zoo.RANK_ONE)):
            monkeypatch.setitem(CASES, each, partial(fgbench.ZerothOrder, epsilon=1e-6, **options))
        return verdict(case, row)
    model, inputs, trainer = fresh(row), row.inputs(), OTHERS[case]()
    try:
        trainer.set_up(model, inputs, 3, torch.Generator().manual_seed(2))
        test_zoo.chance()
        generator = torch.Generator().manual_seed(1)
        compare_step(trainer, model, LOSS, inputs, LABELS, generator, tolerance=test_zoo.EXACT)
    except ConfigError as refusal:
        return str(refusal)
    return "right"


@pytest.mark.parametrize("case", [*CASES, *OTHERS])
@pytest.mark.parametrize("name", REFUSED)
def test_torchvisions_models_are_right_or_refused(name, case, monkeypatch):
    told = told_of(case, row(name), monkeypatch)
    print(f"{name}, {case}: {told}")
    assert (STAGES | REFUSED[name]).get(case, "right") in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize("case", [*CASES, *OTHERS])
def test_a_tuple_of_outputs_is_refused(case, monkeypatch):
    told = told_of(case, row("googlenet", init_weights=False), monkeypatch)
    print(f"googlenet, {case}: {told}")
    assert "right" not in told.split()[:1]
    assert len(told.splitlines()) == 1
