"""What commands print: the closing table, and output that nobody reads any more."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import typer


class _OutputStream:
    """A stream that discards its output once the reader has gone (``fgbench run CONFIG | head``)."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As for any text stream; output is discarded once the reader has gone."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            return self._discard_output(len(text))

    def flush(self) -> None:
        """As for any text stream."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._discard_output(0)

    def _discard_output(self, written: int) -> int:
        """Redirect buffered and future output to the null device."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
        return written


def tolerate_closed_pipes() -> None:
    """Make standard output and error ignore a reader that closes or was never there."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell: `>&-`
            stream = open(os.devnull, "w")  # noqa: PTH123, SIM115
        setattr(sys, name, _OutputStream(stream))


def print_summary(paths: Iterable[Path]) -> None:
    """Print the closing table of the runs that have started."""
    from fgbench.analysis.records import load_results
    from fgbench.analysis.tables import summary_table

    records = [record for path in paths if (path / "config.yaml").exists() for record in load_results(path)]
    if records:
        typer.echo(f"\n{summary_table(records)}")
