"""Blocks of a config about what happens between epochs: stopping, saving, measuring."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, NonNegativeFloat, PositiveInt

from fgbench.config.source import show


def _refuse_test(metric: Any) -> Any:
    """Refuse to choose by what is only there to be reported."""
    if str(metric).startswith("test_"):
        raise ValueError(
            f"got {show(metric)}, expected val_accuracy | val_loss: what is chosen by the test images is not "
            "tested by them"
        )
    return metric


ValidationMetric = Annotated[Literal["val_accuracy", "val_loss"], BeforeValidator(_refuse_test)]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class EarlyStoppingOptions(_Block):
    """When a run stops before its last epoch."""

    metric: ValidationMetric = "val_accuracy"
    """What has to get better, on the validation images."""
    patience: PositiveInt
    """A run stops once so many epochs in a row were no better than the best before them."""
    min_delta: NonNegativeFloat = 0.0
    """Better is by more than this."""


class SavingOptions(_Block):
    """When state files to resume from are written, and which weights they keep."""

    every: PositiveInt = 1
    """Epochs between two savings."""
    keep: PositiveInt = 2
    """How many state files are kept."""
    every_steps: PositiveInt | None = None
    """Steps between two savings within an epoch, for long epochs."""
    best: ValidationMetric | None = None
    """Keep the weights of the epoch that was best by this too: `fgbench export RUN --best` writes them."""


class DiagnosticsOptions(_Block):
    """What is measured beside training, outside the timed part."""

    every: PositiveInt | None = None
    """Epochs between two comparisons of the trainer's gradient with the true one; never when null."""
    draws: PositiveInt = 1
    """Gradients of the trainer, on one batch, that a comparison takes."""
