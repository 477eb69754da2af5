"""Loggers that also receive what a run records: TensorBoard, or a user's own."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fgbench.errors import ConfigError
from fgbench.registry import LOGGERS, import_target
from fgbench.storage.metrics import Cell

Row = Mapping[str, Cell]
"""An epoch's values by column of metrics.csv; None where a column does not apply."""


class Logger:
    """Receives what a run records, besides its run directory; subclasses override what they need.

    ``log: ["my_module:MyLogger"]`` in a config, or ``--log my_module:MyLogger``, creates one per run, without
    arguments. It is called from rank 0 only and outside the timed part. An error in it costs a line on
    stderr, and the run continues without it. Its arguments are copies that it may change.
    """

    def start(
        self, path: Path, config: dict[str, Any], environment: dict[str, Any], rows: Sequence[Row]
    ) -> None:
        """A run starts or resumes.

        Args:
            path: the run directory, the same one when a run resumes.
            config: the whole config, nested.
            environment: machine, versions and settings: env.json.
            rows: of the epochs already done; later ones are repeated, even if they were logged before.
        """

    def log(self, row: Row) -> None:
        """An epoch is done; ``epoch`` in its row counts from 1."""

    def finish(self, state: str, summary: dict[str, Any]) -> None:
        """A run ends.

        Args:
            state: ``finished``, ``diverged``, ``interrupted`` or ``failed``.
            summary: summary.json; empty for the last two. Not called for a run that was killed.
        """


def find_loggers(names: Sequence[str]) -> dict[str, type[Logger]]:
    """The classes that ``log`` names.

    Raises:
        ConfigError: one cannot be imported, or is not a :class:`Logger`.
    """
    found = {}
    for name in names:
        try:
            found[name] = import_target(LOGGERS.get(name, name))
        except Exception as error:  # a user's own module can raise anything
            message = str(error) if isinstance(error, ConfigError) else f"cannot import {name!r}: {error!r}"
            raise ConfigError(f"log: {' '.join(message.split())}") from error
        if not (isinstance(found[name], type) and issubclass(found[name], Logger)):
            raise ConfigError(f"log: {name} is not a subclass of fgbench.Logger")
    return found


class Loggers:
    """The loggers of a run; one that raises is not called again, and training continues.

    Args:
        names: what ``log`` names.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._loggers: dict[str, Logger] = {}
        for name in names:
            with self._spared(name):
                self._loggers[name] = find_loggers([name])[name]()

    def start(
        self, path: Path, config: dict[str, Any], environment: dict[str, Any], rows: Sequence[Row]
    ) -> None:
        """Call :meth:`Logger.start` of each."""
        self._tell(lambda each: each.start(path, _copy(config), _copy(environment), [*map(dict, rows)]))

    def log(self, row: Row) -> None:
        """Call :meth:`Logger.log` of each."""
        self._tell(lambda each: each.log(dict(row)))

    def finish(self, state: str, summary: Mapping[str, Any] | None = None) -> None:
        """Call :meth:`Logger.finish` of each."""
        self._tell(lambda each: each.finish(state, _copy(summary or {})))

    def _tell(self, call: Callable[[Logger], None]) -> None:
        for name, logger in [*self._loggers.items()]:
            with self._spared(name):
                call(logger)

    @contextmanager
    def _spared(self, name: str) -> Iterator[None]:
        """Let an error inside this context end the logger instead of the run."""
        try:
            yield
        except (Exception, SystemExit) as error:
            self._loggers.pop(name, None)
            message = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
            print(f"fgbench: log: {name}: {message}; the run continues without this logger", file=sys.stderr)


def _copy(block: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of nested dictionaries and lists."""
    return {
        key: _copy(each) if isinstance(each, Mapping) else [*each] if isinstance(each, list) else each
        for key, each in block.items()
    }
