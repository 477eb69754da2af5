"""Blocks of a config about what happens between epochs: stopping, saving, measuring."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, NonNegativeFloat, PositiveInt

from fgbench.config.source import show


def _refuse_test(metric: Any) -> Any:
    """Refuse to choose by the test images, which are for reporting only."""
    if str(metric).startswith("test_"):
        raise ValueError(
            f"got {show(metric)}, expected val_accuracy | val_loss: a choice made on the test images "
            "cannot be tested on them"
        )
    return metric


ValidationMetric = Annotated[Literal["val_accuracy", "val_loss"], BeforeValidator(_refuse_test)]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class EarlyStoppingOptions(_Block):
    """When a run stops before its last epoch."""

    metric: ValidationMetric = "val_accuracy"
    """The metric that has to improve, on the validation images."""
    patience: PositiveInt
    """A run stops after this many epochs in a row without an improvement on the best before them."""
    min_delta: NonNegativeFloat = 0.0
    """The smallest change that counts as an improvement (it must be exceeded)."""


class SavingOptions(_Block):
    """When state files (to resume from) are written, and which weights they keep."""

    every: PositiveInt = 1
    """Epochs between two savings."""
    keep: PositiveInt = 2
    """How many state files are kept."""
    every_steps: PositiveInt | None = None
    """Steps between two savings within an epoch, for long epochs."""
    best: ValidationMetric | None = None
    """Also keep the weights of the best epoch by this metric: `fgbench export RUN --best` writes them."""


class DiagnosticsOptions(_Block):
    """What is measured in addition to training, outside the timed part."""

    every: PositiveInt | None = None
    """Epochs between two comparisons of the trainer's gradient with the true one; never when null."""
    draws: PositiveInt = 1
    """How many of the trainer's gradients, on one batch, a comparison uses."""
