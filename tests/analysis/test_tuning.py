"""The noise of tuning, from a table of trials."""

import math

import pandas as pd
import pytest

from fgbench.analysis.tuning import tuning_noise


def trials(rows):
    columns = ["value", "seed", "epochs", "state", "val_accuracy", "val_loss", "test_accuracy"]
    return pd.DataFrame(rows, columns=columns)


WHOLE = [
    (0.1, 100, 5, "finished", 0.80, 0.5, 0.70),
    (0.1, 101, 5, "finished", 0.70, 0.3, 0.72),
    (0.2, 100, 5, "finished", 0.75, 0.4, 0.60),
    (0.2, 101, 5, "finished", 0.90, 0.6, 0.66),
]


def test_each_seed_chooses_a_value_and_the_mean_accuracies_there_are_compared():
    assert tuning_noise(trials(WHOLE)) == pytest.approx(0.71 - 0.63)
    assert tuning_noise(trials(WHOLE), "val_loss") == pytest.approx(0.71 - 0.63)
    alike = [(*row[:4], 0.9 if row[0] == 0.1 else 0.1, *row[5:]) for row in WHOLE]
    assert tuning_noise(trials(alike)) == 0


def test_short_trials_do_not_count_towards_the_noise_of_tuning():
    look = [(0.3, seed, 1, "finished", 0.99, 0.1, 0.99) for seed in (100, 101)]
    assert tuning_noise(trials([*look, *WHOLE])) == tuning_noise(trials(WHOLE))


def test_a_choice_that_diverges_with_another_seed_leaves_the_noise_unknown():
    diverged = [*WHOLE[:3], (0.2, 101, 5, "diverged", 0.9, 0.6, 0.66)]
    chosen = [(*diverged[2][:4], 0.85, *diverged[2][5:]) if row is diverged[2] else row for row in diverged]
    assert math.isnan(tuning_noise(trials(chosen)))
    assert tuning_noise(trials(diverged)) == 0, "here both seeds choose the other value"


def test_without_test_images_the_validation_accuracy_counts():
    rows = [(*row[:6], math.nan) for row in WHOLE]
    assert tuning_noise(trials(rows)) == pytest.approx(0.825 - 0.75)
