"""From a trainer's options to the trainer."""

import inspect

from fgbench.errors import ConfigError
from fgbench.options import Options
from fgbench.registry import load
from fgbench.trainers.base import Trainer


def build_trainer(options: Options) -> Trainer:
    """The trainer that ``options.name`` names, not set up yet.

    Args:
        options: an instance of the trainer's options.

    Raises:
        ConfigError: a user's class is not a trainer, or has no ``compute_gradients``.
    """
    found = load("trainer", options.name)
    if not (isinstance(found, type) and issubclass(found, Trainer)):
        raise ConfigError(f"trainer.name: {options.name} is not a subclass of fgbench.Trainer")
    if inspect.isabstract(found):
        raise ConfigError(f"trainer.name: {options.name} has no method compute_gradients")
    return found(options)
