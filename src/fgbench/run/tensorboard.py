"""A run's curves, config and environment for TensorBoard: ``tensorboard --logdir results``."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fgbench.config.source import dump_yaml, flatten
from fgbench.errors import ConfigError
from fgbench.run.loggers import Logger, Row

try:
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams
except ImportError as error:
    raise ConfigError('tensorboard is not installed: pip install "fgbench[tensorboard]"') from error


class TensorBoard(Logger):
    """Event files in ``RUN/tensorboard``: a curve for every column of metrics.csv, config and environment.

    A run that resumes writes its rows again and makes TensorBoard drop the earlier ones, so that its curves
    match metrics.csv.
    """

    def start(
        self, path: Path, config: dict[str, Any], environment: dict[str, Any], rows: Sequence[Row]
    ) -> None:
        """Config, environment and the existing rows, replacing the content of earlier files."""
        self.writer = SummaryWriter(str(path / "tensorboard"), purge_step=0)
        self.writer.add_text("config", _code("yaml", dump_yaml(config)), 0)
        self.writer.add_text("environment", _code("json", json.dumps(environment, indent=2, default=str)), 0)
        keys = {key: _plain(value) for key, value in flatten(config)}
        files = self.writer._get_file_writer()  # add_hparams would create a separate run
        for summary in hparams(keys, {"test_accuracy": 0.0, "val_accuracy": 0.0, "train_loss": 0.0}):
            files.add_summary(summary)
        for row in rows:
            self.log(row)

    def log(self, row: Row) -> None:
        """A point on every curve."""
        for column, value in row.items():
            if isinstance(value, int | float) and column != "epoch":
                self.writer.add_scalar(column, value, int(row["epoch"] or 0))
        self.writer.flush()

    def finish(self, state: str, summary: dict[str, Any]) -> None:
        """How it ended, as text."""
        self.writer.add_text("state", state)
        self.writer.close()


def _plain(value: Any) -> bool | int | float | str:
    """A value of a type that TensorBoard's table of hyperparameters accepts."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"
