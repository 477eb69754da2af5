"""Checks that a run can be started, before anything is written."""

from dataclasses import replace

from fgbench.config.config import Config
from fgbench.datasets.fingerprint import Fingerprint
from fgbench.datasets.search import DataSearch
from fgbench.errors import ConfigError, MissingDataError
from fgbench.run.build import build_training
from fgbench.run.code import check_code
from fgbench.run.data import check_data, check_ended
from fgbench.run.failures import explain_failure, is_out_of_memory
from fgbench.run.loggers import find_loggers
from fgbench.run.plan import Plan, describe_missing_data, find_ended, join_remarks
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
    """Check that a run can be started, without writing anything.

    Args:
        config: the run's config.
        search: where to look for data.
        force: run it again if it has ended.
        resume: resume it from its state if it has not ended.
        dry_run: it will not run, so its data may be missing.
        world: the processes of the run.
        known: fingerprints of data loaded for other runs of the same command; added to.

    Raises:
        ConfigError: the device, the data, the results folder or a logger is not available, the components do
            not go together or do not fit into memory, or the run started on other data or with other code.
    """
    world = world or World()
    with world.agreed():
        plan = Plan(config, world.resolve_device(config.device), search, world)
        plan.directory.check_place()
        find_loggers(config.log)
    plan = replace(plan, ended=world.on_main(lambda: find_ended(plan.directory)))
    code = "" if plan.ended and force else world.on_main(lambda: check_code(plan, resume=resume))
    if plan.ended and not force:
        data = world.on_main(lambda: check_ended(plan, search, {} if known is None else known))
        return replace(plan, data=join_remarks(data, code))
    data = ""
    for is_turn in (world.local_rank == 0, world.local_rank > 0):  # one per machine fetches missing data
        with world.agreed():
            if is_turn:
                data = _check_build(plan, resume=resume, dry_run=dry_run)
    return replace(plan, data=join_remarks(data, code))


def _check_build(plan: Plan, *, resume: bool, dry_run: bool) -> str:
    """Load and build everything once; returns a remark on the data, if any."""
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
