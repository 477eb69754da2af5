"""What tuning on a grid leaves open, from the table of its trials."""

import pandas as pd


def tuning_noise(trials: pd.DataFrame, metric: str = "val_accuracy") -> float:
    """How far apart the accuracies are at the values that each tuning seed alone would choose.

    Only whole runs count, not those of a first look. The accuracy of a value is the mean over all tuning
    seeds, on the test images or, if there are none, on the validation images.

    Args:
        trials: of one configuration, the rows of ``NAME_grid.csv``.
        metric: what a seed chooses by, ``val_accuracy`` or ``val_loss``.

    Returns:
        NaN if a value that one seed chooses diverges with another.
    """
    whole = trials[(trials["epochs"] == trials["epochs"].max()) & (trials["state"] == "finished")]
    column = "test_accuracy" if whole["test_accuracy"].notna().all() else "val_accuracy"
    scores = whole.pivot_table(metric, "value", "seed")
    accuracies = whole.pivot_table(column, "value", "seed").mean(axis=1, skipna=False)
    choices = scores.idxmax() if metric == "val_accuracy" else scores.idxmin()
    return float(accuracies[choices].agg(lambda each: each.max(skipna=False) - each.min(skipna=False)))
