"""The base of every option block of a config."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Options of one component; a user's own with options has a subclass of this as its ``Options``.

    Unknown keys are errors, defaults are checked, and a built instance does not change.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    name: str
    """Which component: a name of `fgbench list`, or `package.module:Class`."""


class Backwards(StrEnum):
    """What a trainer uses backwards, from nothing to everything.

    The exact gradient of the output layer counts as nothing: it is in closed form and goes through no layer.
    """

    NOTHING = "nothing"
    MATRICES = "fixed random matrices"
    WEIGHTS = "transposed weights or their signs"
    BLOCKS = "a block's own loss"
    STAGES = "the last n stages"
    EVERYTHING = "everything"
    UNKNOWN = "not declared"


class TrainerOptions(Options):
    """Options of a trainer; they also declare what the trainer can do and needs when set this way."""

    @property
    def uses_backwards(self) -> Backwards:
        """What a step uses backwards; a trainer declares it here, since it may depend on its options."""
        return Backwards.UNKNOWN

    @property
    def can_compile(self) -> bool:
        """Whether its pass can be compiled (``compile: true``) with these options."""
        return False

    @property
    def needs_independent_samples(self) -> bool:
        """Whether a step takes one derivative per sample, so that samples may not interact in the model."""
        return False


def declared_independence(options: Options) -> bool:
    """Whether a trainer's options declare that samples must not interact; False for plain ``Options``."""
    return isinstance(options, TrainerOptions) and options.needs_independent_samples


def declared_backwards(options: Options) -> Backwards:
    """What a trainer's options declare it uses backwards; unknown for plain ``Options``."""
    return options.uses_backwards if isinstance(options, TrainerOptions) else Backwards.UNKNOWN
