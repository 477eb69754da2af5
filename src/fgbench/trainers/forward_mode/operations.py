"""What an ATen operation's schema says of memory, and which tensors an operation gets."""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Signature(NamedTuple):
    """What an operation's schema says of memory.

    Attributes:
        view: its results are views of its first argument.
        written: the arguments it writes to: position, name, whether by keyword only.
    """

    view: bool
    written: list[tuple[int, str, bool]]


@cache
def signature(func: Any) -> Signature:
    """Read off the schema of an ATen operation."""
    written = [
        (index, argument.name, argument.kwarg_only)
        for index, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    view = torch.Tag.inplace_view in func.tags or any(
        result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns
    )
    return Signature(view, written)


def tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """All tensors among an operation's arguments."""
    for arg in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, tuple | list):
            yield from (each for each in arg if isinstance(each, Tensor))
