"""Interrupting a run of this process."""

import os
import signal

import pytest

from fgbench.run.progress import EpochProgress


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGTERM) -> None:
    """Send this process a signal after so many steps of the run."""
    update = EpochProgress.update

    def update_and_kill(self: EpochProgress) -> None:
        update(self)
        if self.training.step == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(EpochProgress, "update", update_and_kill)
