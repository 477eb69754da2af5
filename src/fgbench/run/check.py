"""Whether a run can be made, found out before anything is written."""

from dataclasses import replace

from fgbench.config.config import Config
from fgbench.datasets.fingerprint import Fingerprint
from fgbench.datasets.search import DataSearch
from fgbench.errors import ConfigError, MissingDataError
from fgbench.run.build import build_training
from fgbench.run.data import check_data, check_ended
from fgbench.run.failures import explain_failure, is_out_of_memory
from fgbench.run.loggers import find_loggers
from fgbench.run.plan import Plan, describe_missing_data, find_ended
from fgbench.run.world import World


def plan_run(
    config: Config,
    search: DataSearch,
    *,
    force: bool = False,
    resume: bool = True,
    dry_run: bool = False,
    world: World | None = None,
    known: dict[str, Fingerprint] | None = None,
) -> Plan:
    """Check that a run can be made, without writing anything.

    Args:
        config: of the run.
        search: where to look for data.
        force: it is made again if it has ended.
        resume: it resumes from its state if it has not.
        dry_run: it is not made, so its data may be missing.
        world: the processes of the run.
        known: what was loaded for other runs of the same command; added to.

    Raises:
        ConfigError: the device, the data, the output place or a logger are not there, the parts do not go
            together, do not fit into memory, or the run was begun on other data.
    """
    world = world or World()
    with world.agreed():
        plan = Plan(config, world.resolve_device(config.device), search, world)
        plan.directory.check_place()
        find_loggers(config.log)
    plan = replace(plan, ended=world.on_main(lambda: find_ended(plan.directory)))
    if plan.ended and not force:
        return replace(
            plan, data=world.on_main(lambda: check_ended(plan, search, {} if known is None else known))
        )
    data = ""
    for is_turn in (world.local_rank == 0, world.local_rank > 0):  # one per machine fetches missing data
        with world.agreed():
            if is_turn:
                data = _check_build(plan, resume=resume, dry_run=dry_run)
    return replace(plan, data=data)


def _check_build(plan: Plan, *, resume: bool, dry_run: bool) -> str:
    """Load and build everything once; returns what is to be said of the data."""
    try:
        splits = plan.load_splits()
        build_training(plan.config, plan.device, splits, plan.world)
    except MissingDataError as error:
        if not dry_run:
            raise
        return describe_missing_data(error, plan.search)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(explain_failure(error, plan.config)) from error
    if plan.world.is_main and splits.fingerprint and not plan.ended:
        check_data(plan, splits.fingerprint, resume=resume)
    return str(splits)
