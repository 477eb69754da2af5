"""What forbids a claim, whatever the numbers are."""

from fgbench.analysis.budgets import Budget, Epochs, common_epoch, read_at
from fgbench.analysis.pairing import TUNABLE, Pair
from fgbench.analysis.readings import Column, at_chance, disturbed_epochs, quiet_epochs
from fgbench.analysis.records import RunRecord

DISTURBED_SHARE = 0.1
"""Share of epochs timed beside other work above which a sum of times says nothing; a convention."""

TUNING_NOISE = 0.02
"""Accuracy by which two trainers tuned apart may differ because of the tuning alone; a smaller lead is not
called one. It is about what a search of few short trials left between two estimators of one gradient."""

MIN_SEEDS = 3
"""Seeds below which nothing is decided; a convention of this project: two leave the interval one degree of
freedom, so it is 12.7 standard errors wide on either side, against 4.3 with three."""


def find_caution(pair: Pair, measure: Column, budget: Budget = "epochs") -> str:
    """Why a difference that was seen says nothing, whatever its size; empty where it does."""
    if pair.rivals:
        known = f"one of {pair.rivals + 1} {pair.baseline.trainer} series"
        return f"{known}, and no validation images to choose it by"
    timed = measure.timed or budget == "time"
    if (timed or not measure.learns or budget == "memory") and (different := pair.environments):
        return f"different environments ({', '.join(different)})"
    if timed and was_disturbed(pair, read_at(pair, budget)[1], summed=not measure.timed):
        return "timed beside other work"
    if timed and pair.runs and common_epoch(pair) == 1:
        return "only the first epoch was timed, which warms up"
    if measure.learns and pair.runs and all(at_chance(run, common_epoch(pair)) for run in pair.all_runs):
        return "neither is better than chance"
    return ""


def unlike_points(pair: Pair, epochs: Epochs) -> str:
    """That the two were read at different points of a schedule of learning rates; empty where they were not.

    A run is better at the end of a falling schedule than within it, whatever trains it. One that stopped
    early counts as at its end from where it stopped.
    """
    for both, read in zip(pair.runs, epochs, strict=True):
        points = {
            1.0
            if run.stopped_early and epoch >= run.last_epoch
            else min(1.0, epoch / (run.config.get("epochs") or epoch or 1))
            for run, epoch in zip(both, read, strict=True)
        }
        if len(points) > 1 and any(_schedule(run) != "constant" for run in both):
            return "read at different points of the schedule of learning rates"
    return ""


def _schedule(run: RunRecord) -> str:
    return str(run.settings.get("schedule.name") or "constant")


def below_tuning_noise(pair: Pair, measure: Column, mean: float) -> str:
    """That an accuracy differs by less than tuning can account for, where the two were tuned apart."""
    tuned_apart = any(each.startswith(TUNABLE) for each in pair.other_settings)
    accuracy = measure.learns and measure.name.endswith("accuracy")
    if accuracy and tuned_apart and abs(mean) < TUNING_NOISE:
        return f"tuned apart, and by less than tuning may decide ({TUNING_NOISE:g})"
    return ""


def was_disturbed(pair: Pair, epochs: Epochs, *, summed: bool = False) -> bool:
    """Whether other work on the machine leaves nothing to be said of times.

    Args:
        pair: the two.
        epochs: up to which their times are read.
        summed: of a sum over epochs, which more than a tenth of disturbed ones spoils; otherwise of a
            median, which needs one warm epoch that nothing disturbed.
    """
    return any(
        disturbed_epochs(run, epoch) > DISTURBED_SHARE * min(epoch, run.last_epoch)
        if summed
        else not quiet_epochs(run, epoch)
        for both, read in zip(pair.runs, epochs, strict=True)
        for run, epoch in zip(both, read, strict=True)
        if epoch
    )
