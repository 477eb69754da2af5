"""Compares a trainer's step with the formula of its docstring, entry by entry."""

from torch import Tensor, nn

from fgbench.checks.gradients import gradient_of, kept_generators
from fgbench.checks.part import Part
from fgbench.checks.verify import compare_step
from fgbench.errors import ConfigError, FgbenchError
from fgbench.seeds import derive_generator
from fgbench.trainers.base import LossFunction, Trainer

TITLE = "a step against its formula, entry by entry, in float64:"
STEPS = 3
"""Steps compared for trainers that learn something themselves, which may be 0 at first."""
EXACT = 1e-8
"""Largest error of a float64 step, as a share of a derivative's root mean square."""


def check_formula(
    trainer: Trainer, model: nn.Module, loss_fn: LossFunction, inputs: Tensor, labels: Tensor, seed: int
) -> Part:
    """Compare steps, in float64, with the trainer's reference.

    Args:
        trainer: set up for the model; it keeps learning.
        model: in float64, in training mode.
        loss_fn: one loss per sample.
        inputs: shape (B, ...), float64.
        labels: shape (B,).
        seed: of the trainer's randomness.

    Raises:
        ConfigError: the trainer cannot train the model.
    """
    # central differences evaluate the output layer's gradient next to the parameters, not at them
    beside = hasattr(trainer.options, "epsilon") and trainer.options.exact_output
    tolerance = 1e-3 if beside else EXACT
    found = []
    for step in range(STEPS):
        generator = derive_generator(inputs.device, seed, "check step", step)
        try:
            found.append(
                compare_step(trainer, model, loss_fn, inputs, labels, generator, tolerance=tolerance)
            )
        except ConfigError:
            raise
        except FgbenchError as error:
            return Part("formula", [TITLE, f"  step {step + 1}: {error}"], False)
        if found[-1].gradient_error is None:
            why = found[-1].verdict.removeprefix("nothing to verify: ")
            if why == "nothing to verify":
                why = "this trainer declares no reference"
            return Part.not_checked("formula", TITLE, why)
        with kept_generators(inputs.device):
            gradient_of(trainer, model, loss_fn, inputs, labels, generator)
        if not trainer.state_dict():
            break
    count = found[0].derivatives
    off = f"{count} derivatives off by at most {max(each.derivative_error or 0.0 for each in found):.1e}, "
    gradient = f"the gradient by {max(each.gradient_error or 0.0 for each in found):.1e}"
    steps = f", {len(found)} steps" if len(found) > 1 else ""
    text = f"  {off if count else 'no derivatives; '}{gradient} (allowed {tolerance:g}){steps}"
    return Part("formula", [TITLE, text], True)
