"""Checks that a run would see the same images as before."""

from typing import Any

from fgbench.datasets.base import Splits, load_data
from fgbench.datasets.fingerprint import Fingerprint
from fgbench.datasets.search import DataSearch
from fgbench.errors import DataError, MissingDataError
from fgbench.run.plan import Plan
from fgbench.storage.state import StateError, load_state, state_files


def check_data(plan: Plan, now: Fingerprint, *, resume: bool = True) -> str:
    """Compare the data a run would load with what it loaded before, from its state file or its env.json.

    Args:
        plan: the run.
        now: the fingerprint of the data to load.
        resume: whether an unfinished run resumes from its state.

    Returns:
        A remark on a run that did not record its data; empty for others.

    Raises:
        DataError: a run that has ended, or would resume, saw other images.
    """
    path = plan.directory.path
    goes_on = resume and not plan.ended and bool(state_files(path))
    if not plan.ended and not goes_on:
        return ""
    before, where = plan.directory.read_env().get("data"), "env.json"
    if goes_on and is_known(saved := _read_saved(plan)):
        before, where = saved, "state file"  # which has a checksum
    changed = now.differs_from(before)
    if changed and plan.ended:
        raise DataError(
            f"{path}: {plan.ended} already, but on other data (env.json): {changed}; "
            "--force repeats it on the current data"
        )
    if changed:
        raise DataError(
            f"{path}: this run started on other data ({where}): {changed}; restore that data, or "
            "`fgbench run --no-resume` starts it again"
        )
    return "" if is_known(before) else "its data was not recorded"


def check_ended(plan: Plan, search: DataSearch, known: dict[str, Fingerprint]) -> str:
    """The same for a run that has ended, with a remark if the data is missing; nothing is downloaded.

    Args:
        plan: the run.
        search: where to look for data.
        known: what was loaded for other runs of the same command; added to.

    Raises:
        DataError: the run saw other images.
    """
    if not is_known(plan.directory.read_env().get("data")):
        return "its data was not recorded"
    options = plan.config.dataset
    key = f"{search.named} {options.model_dump_json(exclude={'limit', 'test_limit', 'augment'})}"
    if key not in known:
        try:
            known[key] = load_data(options, DataSearch(search.data_dir, search.config_dir, False)).fingerprint
        except MissingDataError:
            return "its data is missing, so it was not compared"
    return check_data(plan, known[key])


def _read_saved(plan: Plan) -> object:
    try:
        saved, _ = load_state(plan.directory.path, plan.identity)
    except StateError:  # the run itself reports it
        return None
    return saved.get("data") if saved else None


def check_state(saved: dict[str, Any], splits: Splits) -> str:
    """What has changed since a state was saved; empty if nothing has, or if it is unknown."""
    return splits.fingerprint.differs_from(saved.get("data")) if splits.fingerprint else ""


def is_known(recorded: object) -> bool:
    """Whether a run recorded what it loaded."""
    return isinstance(recorded, dict) and bool(recorded.get("loaded"))
