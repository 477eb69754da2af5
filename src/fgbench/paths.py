"""Paths as users write them, with ``~`` and variables of the environment."""

import os
import re
from pathlib import Path

_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([^}]*)\}?)")


def expand_path(path: str | Path) -> Path:
    """The path with ``~``, ``$NAME`` and ``${NAME}`` replaced by what they stand for.

    >>> expand_path("a/$b")
    Traceback (most recent call last):
    ...
    ValueError: got 'a/$b', but there is no environment variable b, or it is empty

    Raises:
        ValueError: a variable is not set, or the home folder is not known.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise ValueError(
                f"got {str(path)!r}, but there is no environment variable {name}, or it is empty"
            )
        return os.environ[name]

    try:
        return Path(_VARIABLE.sub(value, str(path))).expanduser()
    except RuntimeError as error:
        raise ValueError(f"got {str(path)!r}: {error}") from error
