"""Ctrl-C and SIGTERM: stop after the next step, with everything saved."""

import signal
from types import FrameType

from fgbench.errors import FgbenchError


class Interrupted(FgbenchError):
    """A signal stopped a run, with its state saved; the exit code is 128 + the signal's number."""

    def __init__(self, number: int, what: object) -> None:
        self.exit_code = 128 + number
        self.reason = signal.Signals(number).name
        super().__init__(f"{what}: interrupted ({self.reason}); the same command resumes from here")


class StopRequest:
    """Make Ctrl-C and SIGTERM set ``requested``; a second Ctrl-C ends the process at once."""

    NUMBERS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.number: int = 0

    @property
    def requested(self) -> bool:
        """Whether a signal was received."""
        return self.number != 0

    def update(self) -> None:
        """Called after every step."""

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in self.NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number
