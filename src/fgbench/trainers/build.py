"""From a trainer's options to the trainer."""

from fgbench.errors import ConfigError
from fgbench.options import Options
from fgbench.registry import load
from fgbench.trainers.base import Trainer


def build_trainer(options: Options) -> Trainer:
    """The trainer that ``options.name`` names, not set up yet.

    Args:
        options: an instance of the trainer's options.

    Raises:
        ConfigError: a user's own is not a trainer.
    """
    found = load("trainer", options.name)
    if not (isinstance(found, type) and issubclass(found, Trainer)):
        raise ConfigError(f"trainer.name: {options.name} is no subclass of fgbench.Trainer")
    return found(options)
