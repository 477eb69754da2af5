"""Checks that a run would use the same code of users' own components as before."""

from fgbench.config.config import Config
from fgbench.errors import ConfigError
from fgbench.own_code import digest
from fgbench.registry import TABLES, find
from fgbench.run.plan import Plan
from fgbench.storage.state import state_files


def own_code(config: Config) -> dict[str, str]:
    """The digest of every user's own component of a config, by its name."""
    names = {name: find(kind, name) for kind in TABLES if ":" in (name := getattr(config, kind).name)}
    return {name: digest(name) for name in names}


def check_code(plan: Plan, *, resume: bool = True) -> str:
    """Compare the code that a run would use with what its env.json recorded.

    Args:
        plan: the run.
        resume: whether an unfinished run resumes from its state.

    Returns:
        A remark on a run that did not record its code; empty for others.

    Raises:
        ConfigError: a run that has ended, or would resume, used other code.
    """
    path, now = plan.directory.path, own_code(plan.config)
    if not now or not (plan.ended or (resume and state_files(path))):
        return ""
    before = plan.directory.read_env().get("code")
    if not isinstance(before, dict):
        return "its code was not recorded"
    changed = ", ".join(name for name in now if before.get(name, now[name]) != now[name])
    if changed and plan.ended:
        raise ConfigError(
            f"{path}: {plan.ended} already, but with other code of {changed} (env.json); "
            "--force repeats it with the current code"
        )
    if changed:
        raise ConfigError(
            f"{path}: this run started with other code of {changed} (env.json); restore that code, or "
            "`fgbench run --no-resume` starts it again"
        )
    return ""
