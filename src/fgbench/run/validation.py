"""Decisions by the validation images: when a run stops early, and which weights are kept as the best.

Both depend on the rows of metrics.csv alone, which a state file holds: a run that resumes decides as it would
have without the interruption, and so does every worker.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fgbench.config.config import Config
from fgbench.config.epochs import EarlyStoppingOptions
from fgbench.datasets.base import Splits
from fgbench.errors import ConfigError
from fgbench.storage.metrics import Cell
from fgbench.storage.summary import best_row

Rows = Sequence[Mapping[str, Cell]]


def check_validation(config: Config, splits: Splits) -> None:
    """Check that there are validation images if something is decided by them.

    Raises:
        ConfigError: there are none.
    """
    wanted = {
        "early_stopping.metric": config.early_stopping and config.early_stopping.metric,
        "saving.best": config.saving.best,
    }
    for key, metric in wanted.items():
        if metric and not len(splits.validation):
            raise ConfigError(
                f"{key}: {metric} needs validation images, and there are none "
                "(dataset.validation_fraction holds a part of the training images out)"
            )


def reason_to_stop(rows: Rows, options: EarlyStoppingOptions | None) -> str:
    """Why a run stops after the last of its rows; empty if it does not stop."""
    if options is None or not rows:
        return ""
    metric, least = options.metric, options.min_delta
    best = best_row(rows, metric, least)
    since = len(rows) - (int(best["epoch"] or 0) if best else 0)
    if since < options.patience:
        return ""
    reached = f"{float(best[metric] or 0):.4g} in epoch {best['epoch']}" if best else "none"
    by = f" by more than {least:g}" if least else ""
    return f"stopped early: in {since} epochs no better {metric}{by} than {reached}"


def keep_best(
    metric: str | None, rows: Rows, model: nn.Module, kept: dict[str, Any] | None
) -> dict[str, Any] | None:
    """The best weights so far: the model's, if the last row is the best by the metric, else those kept.

    Args:
        metric: a validation column; None keeps nothing.
        rows: of metrics.csv, the last one for the model's current weights.
        model: its weights are copied to the CPU.
        kept: the previous result of this function.
    """
    if metric is None or best_row(rows, metric) is not rows[-1]:
        return kept
    weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    return {"metric": metric, "epoch": rows[-1]["epoch"], "model": weights}


def describe_best(metric: str | None, rows: Rows) -> dict[str, Cell] | None:
    """The entry of ``summary.json`` about the epoch whose weights are kept as the best."""
    best = best_row(rows, metric) if metric else None
    return {"metric": metric, "epoch": best["epoch"], "value": best[metric]} if best and metric else None


def find_best(state: Mapping[str, Any], metric: str | None) -> dict[str, Any] | None:
    """The best weights in a state file; None if those of its best epoch were not kept."""
    kept, rows = state.get("best"), state["rows"]
    best = best_row(rows, metric) if metric else None
    same = kept and best and (kept["metric"], kept["epoch"]) == (metric, best["epoch"])
    return kept["model"] if kept and same else None
