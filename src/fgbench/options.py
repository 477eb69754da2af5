"""The base of every option block of a config. Imports no torch."""

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Options of one component; a user's own component brings a subclass of this as its ``Options``.

    Unknown keys are errors, defaults are checked, and a built instance does not change.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    name: str
    """Which component: a name of `fgbench list`, or `package.module:Class`."""
