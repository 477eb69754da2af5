"""Loggers that also get what a run writes: TensorBoard, or a user's own."""

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
    """What a run tells beside its run directory; a subclass takes what it wants of it.

    ``log: ["my_module:MyLogger"]`` in a config, or ``--log my_module:MyLogger``, makes one for every run,
    without arguments. It is called from the first process alone and outside what is timed. An error in it
    costs a line on stderr, and the run goes on without it. What it is given is its own to change.
    """

    def start(
        self, path: Path, config: dict[str, Any], environment: dict[str, Any], rows: Sequence[Row]
    ) -> None:
        """A run begins, or goes on.

        Args:
            path: the run directory, the same again when the run goes on.
            config: all of its config, nested.
            environment: where and with what it is made: env.json.
            rows: of the epochs it has already; those after them are made again, whoever was told of them.
        """

    def log(self, row: Row) -> None:
        """An epoch is done: its row, ``epoch`` counted from 1."""

    def finish(self, state: str, summary: dict[str, Any]) -> None:
        """A run ends.

        Args:
            state: ``finished``, ``diverged``, ``interrupted`` or ``failed``.
            summary: summary.json; empty for the last two, and a run that was killed does not come here.
        """


def find_loggers(names: Sequence[str]) -> dict[str, type[Logger]]:
    """The classes that ``log`` names.

    Raises:
        ConfigError: one cannot be imported, or is no :class:`Logger`.
    """
    found = {}
    for name in names:
        try:
            found[name] = import_target(LOGGERS.get(name, name))
        except Exception as error:  # a user's own module can raise anything
            told = str(error) if isinstance(error, ConfigError) else f"cannot import {name!r}: {error!r}"
            raise ConfigError(f"log: {' '.join(told.split())}") from error
        if not (isinstance(found[name], type) and issubclass(found[name], Logger)):
            raise ConfigError(f"log: {name} is no class below fgbench.Logger")
    return found


class Loggers:
    """The loggers of a run; one that raises is told no more, and training goes on.

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
        """As :meth:`Logger.start`."""
        self._tell(lambda each: each.start(path, _copy(config), _copy(environment), [*map(dict, rows)]))

    def log(self, row: Row) -> None:
        """As :meth:`Logger.log`."""
        self._tell(lambda each: each.log(dict(row)))

    def finish(self, state: str, summary: Mapping[str, Any] | None = None) -> None:
        """As :meth:`Logger.finish`."""
        self._tell(lambda each: each.finish(state, _copy(summary or {})))

    def _tell(self, call: Callable[[Logger], None]) -> None:
        for name, logger in [*self._loggers.items()]:
            with self._spared(name):
                call(logger)

    @contextmanager
    def _spared(self, name: str) -> Iterator[None]:
        """Within, an error ends the logger and not the run."""
        try:
            yield
        except (Exception, SystemExit) as error:
            self._loggers.pop(name, None)
            told = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
            print(f"fgbench: log: {name}: {told}; the run goes on without this logger", file=sys.stderr)


def _copy(block: Mapping[str, Any]) -> dict[str, Any]:
    """A copy to change, of nested dictionaries and lists."""
    return {
        key: _copy(each) if isinstance(each, Mapping) else [*each] if isinstance(each, list) else each
        for key, each in block.items()
    }
