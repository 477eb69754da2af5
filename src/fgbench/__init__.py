"""Train networks with and without a backward pass, and measure what each way costs and gains.

The names below are imported when they are first used, so ``import fgbench`` imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgbench.analysis.frames import read_runs, read_summaries
    from fgbench.checks.verify import verify
    from fgbench.config.config import Config, load_config
    from fgbench.errors import ConfigError, DataError, FgbenchError
    from fgbench.options import Backwards, Options, TrainerOptions
    from fgbench.run.loggers import Logger
    from fgbench.run.weights import load_model
    from fgbench.trainers.activity_forward_gradient import ActivityForwardGradient
    from fgbench.trainers.backprop import Backprop
    from fgbench.trainers.base import StepStats, Trainer
    from fgbench.trainers.compiled import compile_steps
    from fgbench.trainers.feedback_alignment import FeedbackAlignment
    from fgbench.trainers.feedback_forward_gradient import FeedbackForwardGradient
    from fgbench.trainers.forward_gradient import ForwardGradient
    from fgbench.trainers.frozen import Frozen
    from fgbench.trainers.guided_forward_gradient import GuidedForwardGradient
    from fgbench.trainers.local_forward_gradient import LocalForwardGradient
    from fgbench.trainers.local_loss import LocalLoss
    from fgbench.trainers.zeroth_order import ZerothOrder

_MODULES = {
    "Backwards": "options",
    "Config": "config.config",
    "ConfigError": "errors",
    "DataError": "errors",
    "FgbenchError": "errors",
    "Logger": "run.loggers",
    "Options": "options",
    "StepStats": "trainers.base",
    "Trainer": "trainers.base",
    "TrainerOptions": "options",
    "compile_steps": "trainers.compiled",
    "load_config": "config.config",
    "load_model": "run.weights",
    "read_runs": "analysis.frames",
    "read_summaries": "analysis.frames",
    "verify": "checks.verify",
}
"""The modules of the public names; those of the trainers are in the registry."""

__all__ = [
    "ActivityForwardGradient",
    "Backprop",
    "Backwards",
    "Config",
    "ConfigError",
    "DataError",
    "FeedbackAlignment",
    "FeedbackForwardGradient",
    "FgbenchError",
    "ForwardGradient",
    "Frozen",
    "GuidedForwardGradient",
    "LocalForwardGradient",
    "LocalLoss",
    "Logger",
    "Options",
    "StepStats",
    "Trainer",
    "TrainerOptions",
    "ZerothOrder",
    "compile_steps",
    "load_config",
    "load_model",
    "read_runs",
    "read_summaries",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("fgbench")
    module = _MODULES.get(name) or _trainer_modules().get(name)
    if module is None:
        raise AttributeError(f"module 'fgbench' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"fgbench.{module}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES, *_trainer_modules(), "__version__"])


def _trainer_modules() -> dict[str, str]:
    """The modules of the trainers' classes, by class name."""
    targets = [row.target.partition(":") for row in import_module("fgbench.registry").TRAINERS.values()]
    return {name: module.removeprefix("fgbench.") for module, _, name in targets}
