"""Whether a trainer beats a frozen body: which run is the control, and what may be said."""

import pytest
from fake_records import make_record, make_seeds

from fgbench.analysis.claims.claims import audit, load_claims
from fgbench.analysis.compare_tables import compare_report
from fgbench.analysis.control import ABSENT, NO_CONTROL, controls_of
from fgbench.registry import TRAINERS

BACKPROP, FROZEN = [0.90, 0.92, 0.91], [0.80, 0.82, 0.81]


def verdict(records, label):
    [found] = [each for each in controls_of(records).values() if each.series.label.startswith(label)]
    return found


@pytest.mark.parametrize(
    ("accuracies", "answer", "beats"),
    [
        ([0.85, 0.87, 0.861], "yes (+0.0503)", True),
        ([0.70, 0.72, 0.711], "no (-0.0997)", False),
        ([0.801, 0.82, 0.81], "no, about the same (+0.0003)", False),
        ([0.70, 0.95, 0.85], "not shown (", False),
        ([0.9], "no claim from 1 seed (+0.1000)", False),
    ],
)
def test_a_trainer_beats_the_control_only_where_the_seeds_show_it(accuracies, answer, beats):
    records = make_seeds("backprop", BACKPROP) + make_seeds("frozen", FROZEN)
    records += make_seeds("forward-gradient", accuracies)
    found = verdict(records, "forward-gradient")
    assert found.verdict.startswith(answer)
    assert found.beats == beats


def test_backprop_and_the_control_itself_are_not_asked():
    records = make_seeds("backprop", BACKPROP) + make_seeds("frozen", FROZEN)
    assert controls_of(records) == {}


def test_the_control_is_taken_at_its_own_best_rate_not_at_the_trainers():
    records = make_seeds("frozen", [0.3, 0.3, 0.3], optimizer__lr=1e-4, val_accuracy=0.3)
    records += make_seeds("frozen", FROZEN, optimizer__lr=1e-2, val_accuracy=0.8)
    records += make_seeds("forward-gradient", [0.5, 0.51, 0.5], optimizer__lr=1e-4)
    found = verdict(records, "forward-gradient")
    assert found.comparison.pair.baseline.label == "frozen, lr=0.01"
    assert found.verdict.startswith("no (-0.")
    assert found.rates == "0.0001 / 0.01"


@pytest.mark.parametrize(
    ("trainer", "exact", "tuned_apart"),
    [
        ("feedback-forward-gradient", 0.5, False),
        ("feedback-forward-gradient", 0.4, True),
        ("feedback-forward-gradient", None, True),
        ("local-loss", 0.5, True),  # its whole last block has an exact gradient
    ],
)
def test_a_control_whose_output_layer_has_the_same_rate_was_not_tuned_apart(trainer, exact, tuned_apart):
    """Both differ in nothing but the body, which has a rate of its own where it is trained."""
    records = make_seeds("frozen", FROZEN, optimizer__lr=0.5)
    above = [each + 0.01 + 0.001 * k for k, each in enumerate(FROZEN)]
    rates = {"optimizer__lr": 1e-4} | ({"optimizer__exact_lr": exact} if exact else {})
    found = verdict(records + make_seeds(trainer, above, **rates), trainer)
    reason = "no claim: tuned apart, and by less than tuning may decide (0.02) (+0.0110)"
    assert found.verdict == (reason if tuned_apart else "yes (+0.0110)")


@pytest.mark.parametrize(
    "other",
    [
        {"model": "cnn"},
        {"dataset": "mnist"},
        {"batch_size": 128},
        {"epochs": 9},
        {"trainer_options": {"exact_stages": 2}},
    ],
    ids=str,
)
def test_a_control_run_in_another_setting_is_not_taken_for_one(other):
    epochs = other.get("epochs", 3)
    frozen = [
        make_record("frozen", s, **{"epochs": 3, **other, "test_accuracy": [0.1] * (epochs - 1) + [a]})
        for s, a in enumerate(FROZEN)
    ]
    records = make_seeds("backprop", BACKPROP) + frozen + make_seeds("forward-gradient", [0.9, 0.9, 0.9])
    assert verdict(records, "forward-gradient").verdict == ABSENT
    assert f"{ABSENT}, so whether the body has learnt anything is open" in compare_report(
        records, ["test_accuracy"]
    )


def test_a_control_made_on_another_number_of_threads_is_one():
    records = make_seeds("frozen", FROZEN, threads=8) + make_seeds(
        "forward-gradient", [0.9, 0.91, 0.905], threads=1
    )
    assert verdict(records, "forward-gradient").verdict.startswith("yes (+0.0")


def test_stages_trained_by_backprop_are_held_against_a_frozen_front():
    stages = {"trainer_options": {"exact_stages": 2}}
    records = make_seeds("frozen", FROZEN) + make_seeds("frozen", [0.85, 0.87, 0.86], **stages)
    records += make_seeds("forward-gradient", [0.86, 0.88, 0.861], **stages)
    found = verdict(records, "forward-gradient")
    assert found.comparison.pair.baseline.label == "frozen, exact_stages=2"
    assert found.comparison.paired.mean == pytest.approx(0.021 / 3)


def test_only_seeds_that_both_have_count_and_a_diverged_run_is_no_win():
    records = [*make_seeds("frozen", FROZEN), make_record("forward-gradient", 7, test_accuracy=0.9)]
    assert verdict(records, "forward-gradient").verdict == "no seed in common"
    records = make_seeds("frozen", FROZEN)
    records += [make_record("forward-gradient", s, test_accuracy=0.9, state="diverged") for s in range(3)]
    assert verdict(records, "forward-gradient").verdict == "diverged: 3 of 3; baseline 0"


def test_p_values_are_adjusted_over_the_series_of_a_task():
    records = make_seeds("frozen", FROZEN) + make_seeds("forward-gradient", [0.85, 0.86, 0.862])
    alone = verdict(records, "forward-gradient").comparison
    assert alone.p_adjusted == alone.paired.p_value
    for trainer in ("zeroth-order", "local-loss", "feedback-alignment"):
        records += make_seeds(trainer, [0.7, 0.95, 0.8])
    among = verdict(records, "forward-gradient").comparison
    assert among.p_adjusted == pytest.approx(4 * alone.p_adjusted)


def test_compare_says_for_each_trainer_whether_it_beats_the_control():
    records = make_seeds("backprop", BACKPROP) + make_seeds("frozen", FROZEN)
    records += make_seeds("forward-gradient", [0.85, 0.87, 0.861]) + make_seeds(
        "zeroth-order", [0.5, 0.51, 0.5]
    )
    report = compare_report(records, ["test_accuracy"])
    table = report[report.index("does it beat frozen") :]
    assert "yes (+0.0503)" in table
    assert "no (-0.3067)" in table
    assert "nothing" in table
    assert ABSENT not in report
    assert "yes (+0.0503)" in compare_report(records, ["test_accuracy"], form="csv")


def test_claims_ask_of_every_trainer_but_backprop_whether_it_beats_the_control():
    [claim] = [each for each in load_claims() if each.id == "more-than-frozen"]
    [selection] = claim.series
    assert set(selection["trainer.name"]) == set(TRAINERS) - {"backprop", "frozen"}
    records = make_seeds("frozen", [0.3, 0.3, 0.3], val_accuracy=0.3)
    records += make_seeds("frozen", FROZEN, optimizer__lr=1e-2, val_accuracy=0.8)
    records += make_seeds("feedback-alignment", [0.87, 0.88, 0.88]) + make_seeds(
        "zeroth-order", [0.5, 0.51, 0.5]
    )
    [found] = audit(records, claims=[claim])
    assert found.finding.counts == "1 for, 1 against"
    assert all("frozen, lr=0.01" in outcome.text for outcome in found.finding.outcomes)


@pytest.mark.parametrize("state", ["finished", "diverged"])
def test_a_control_that_peaks_and_then_falls_or_diverges_is_not_its_best(state):
    steady = make_seeds("frozen", FROZEN, optimizer__lr=0.1, val_accuracy=[0.7, 0.75, 0.8])
    other = make_seeds(
        "frozen", [0.5, 0.5, 0.5], optimizer__lr=1.0, val_accuracy=[0.7, 0.9, 0.5], state=state
    )
    other += make_seeds("forward-gradient", [0.75, 0.77, 0.761])
    assert verdict(steady + other, "forward-gradient").verdict.startswith("no (-0.0")
    assert verdict(other, "forward-gradient").comparison.pair.baseline.label.startswith("frozen")


def test_what_is_exact_in_a_cut_of_ones_own_has_no_control_here():
    records = make_seeds("frozen", FROZEN)
    records += make_seeds("guided-forward-gradient", [0.85, 0.87, 0.861], trainer_options={"blocks": 2})
    assert verdict(records, "guided").verdict == NO_CONTROL
    [claim] = [each for each in load_claims() if each.id == "more-than-frozen"]
    [found] = audit(records, claims=[claim])
    assert not found.finding.outcomes
    records[3:] = make_seeds("guided-forward-gradient", [0.85, 0.87, 0.861])
    assert verdict(records, "guided").verdict.startswith("yes")
