"""A planned run: its identity, its run directory and its data."""

from dataclasses import dataclass, field, replace

import torch

from fgbench.config.config import Config, config_hash, load_config, run_folder
from fgbench.datasets.base import Splits, load_splits
from fgbench.datasets.search import DataSearch
from fgbench.errors import ConfigError, MissingDataError
from fgbench.run.world import World
from fgbench.storage.run_directory import ENDED, RunDirectory, run_path


@dataclass(frozen=True)
class Plan:
    """A run on the device it will use.

    Attributes:
        ended: the state of a run that had already finished or diverged when planned; None for one to run.
        data: what is known about its data: counts, classes and source, or that it is missing; and that its
            code was not recorded.
    """

    config: Config
    device: torch.device
    search: DataSearch
    world: World = field(default_factory=World)
    ended: str | None = None
    data: str = ""

    @property
    def identity(self) -> str:
        """The run's identity: ``s<seed>-<hash8>``."""
        return f"s{self.config.seed}-{config_hash(self.config, self.device.type, self.world.size)}"

    @property
    def directory(self) -> RunDirectory:
        """Its run directory."""
        folder = run_folder(self.config, self.device.type, self.world.size)
        return RunDirectory(run_path(self.config.results_dir, folder), writes=self.world.is_main)

    def load_splits(self) -> Splits:
        """The run's images, on its device."""
        return load_splits(self.config.dataset, self.config.seed, self.device, self.search)

    def __str__(self) -> str:
        config, workers = self.config, self.world.size
        return (
            f"{config.model.name} on {config.dataset.name} with {config.trainer.name}, "
            f"seed {config.seed}, {config.epochs} epochs, {self.device}"
            + (f", {workers} workers" if workers > 1 else "")
            + (f"; {self.data}" if self.data else "")
        )


def find_ended(directory: RunDirectory) -> str | None:
    """The state of a run that has finished or diverged and whose files are complete; None for any other."""
    status = directory.status()
    whole = status["state"] in ENDED and len(directory.read_metrics()) == status.get("epoch")
    if not whole or not directory.read_summary():
        return None
    try:
        load_config(directory.path / "config.yaml")
    except ConfigError:
        return None
    return str(status["state"])


def locate(config: Config, device: torch.device, search: DataSearch) -> Plan:
    """The plan of a single-process run, with the state in its run directory; nothing is built.

    Raises:
        ConfigError: the results folder cannot be used.
    """
    plan = Plan(config, device, search)
    plan.directory.check_place()
    return replace(plan, ended=find_ended(plan.directory))


def join_remarks(*remarks: str) -> str:
    """Those that say something, in one line."""
    return "; ".join(filter(None, remarks))


def describe_missing_data(error: MissingDataError, search: DataSearch) -> str:
    """What a plan says about missing data."""
    named = f" --data-dir {search.named}" if search.named else ""
    return f"unknown: the data is missing, `fgbench data{named} fetch {error.dataset}`"
