"""A run before it is made: which it is, where it is kept, and whether it can be made."""

from dataclasses import dataclass, field, replace

import torch

from fgbench.config.config import Config, config_hash, load_config, run_folder
from fgbench.datasets.base import Splits, load_splits
from fgbench.datasets.search import DataSearch
from fgbench.errors import ConfigError
from fgbench.run.build import build_training
from fgbench.run.failures import explain_failure, is_out_of_memory
from fgbench.run.world import World
from fgbench.storage.run_directory import ENDED, RunDirectory, run_path


@dataclass(frozen=True)
class Plan:
    """A run on the device it will use.

    Attributes:
        ended: the state of a run that had finished or diverged when it was planned; None for one to make.
    """

    config: Config
    device: torch.device
    search: DataSearch
    world: World = field(default_factory=World)
    ended: str | None = None

    @property
    def identity(self) -> str:
        """Which run this is: ``s<seed>-<hash8>``."""
        return f"s{self.config.seed}-{config_hash(self.config, self.device.type, self.world.size)}"

    @property
    def directory(self) -> RunDirectory:
        """Where it is kept."""
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
        )


def find_ended(directory: RunDirectory) -> str | None:
    """The state of a run that has finished or diverged, its files whole; None for any other."""
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
    """The run of a single process, with what its run directory says of it; nothing is built.

    Raises:
        ConfigError: the output place is not there.
    """
    plan = Plan(config, device, search)
    plan.directory.check_place()
    return replace(plan, ended=find_ended(plan.directory))


def plan_run(config: Config, search: DataSearch, *, force: bool = False, world: World | None = None) -> Plan:
    """Check that a run can be made, without writing anything.

    Raises:
        ConfigError: the device, the data or the output place are not there, the parts do not go together, or
            do not fit into memory.
    """
    world = world or World()
    with world.agreed():
        plan = Plan(config, world.resolve_device(config.device), search, world)
        plan.directory.check_place()
    plan = replace(plan, ended=world.on_main(lambda: find_ended(plan.directory)))
    if force or not plan.ended:
        for is_turn in (world.local_rank == 0, world.local_rank > 0):  # one per machine fetches missing data
            with world.agreed():
                if is_turn:
                    _check_build(plan)
    return plan


def _check_build(plan: Plan) -> None:
    try:
        build_training(plan.config, plan.device, plan.load_splits(), plan.world)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(explain_failure(error, plan.config)) from error
