"""Explains in one line what stopped a run: what went wrong, and what to lower or fix."""

import torch

from fgbench.config.config import Config
from fgbench.errors import FgbenchError
from fgbench.own_code import explain_own
from fgbench.run.world import is_lost_worker
from fgbench.storage.state import first_line


def is_expected(error: Exception) -> bool:
    """Whether an error is one that a user can fix, rather than a bug."""
    return (
        isinstance(error, FgbenchError | OSError)
        or is_out_of_memory(error)
        or _is_nondeterministic(error)
        or is_lost_worker(error)
        or _has_single_value(error)
        or bool(explain_own(error))
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether the machine or its GPU ran out of memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _is_nondeterministic(error: Exception) -> bool:
    return "does not have a deterministic implementation" in str(error)


def _has_single_value(error: Exception) -> bool:
    """Whether a normalisation layer got a single value per channel, which has no variance."""
    return isinstance(error, ValueError) and str(error).startswith("Expected more than 1 ")


def explain_failure(error: Exception, config: Config) -> str:
    """One line for the user: what went wrong and what to lower or fix."""
    text = first_line(error)
    if isinstance(error, FgbenchError):
        return str(error)
    if is_lost_worker(error):
        return "another worker stopped, and with it this run; that worker's own message says why"
    if is_out_of_memory(error):
        knobs = [name for name in ("chunk", "tangents") if hasattr(config.trainer, name)]
        lower = " or ".join(["batch_size", *(f"trainer.{name}" for name in knobs)])
        return (
            f"out of memory with batch_size {config.batch_size}, model {config.model.name} and trainer "
            f"{config.trainer.name}: lower {lower}, or use a smaller model ({text})"
        )
    if _is_nondeterministic(error):
        return f"deterministic: true is not possible here ({text}); set it to false"
    if _has_single_value(error):
        return (
            f"with batch_size {config.batch_size}, a normalisation of {config.model.name} has one value "
            f"per channel, which has no variance: raise batch_size, or use another normalisation ({text})"
        )
    return explain_own(error) or f"{type(error).__name__}: {text}"
