"""``fgbench claims``: the rules, on made-up runs with known answers."""

import csv
import inspect
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_records import make_record
from fake_results import make_run
from typer.testing import CliRunner

from fgbench.analysis.bench_steps import Step, load_steps
from fgbench.analysis.claims.claims import audit, claims_report, load_claims
from fgbench.analysis.claims.evidence import stance_of_interval
from fgbench.analysis.claims.rules import RULES
from fgbench.analysis.claims.verdicts import Outcome, Stance, conclude
from fgbench.analysis.records import Results
from fgbench.cli.app import app

CLAIMS = {claim.id: claim for claim in load_claims()}
NOT_TESTABLE = ("study-learning-rate", "study-simpler")
NOISE = (0.0, 0.0008, -0.0004, 0.0004)


def verdict(claim, records, steps=()):
    [audited] = audit(records, steps, [CLAIMS[claim]])
    return str(audited.finding.verdict)


def numbers(claim, records, steps=()):
    [audited] = audit(records, steps, [CLAIMS[claim]])
    return "\n".join(outcome.text for outcome in audited.finding.outcomes)


def both(forward, backprop, seeds=3, forward_options=(), **given):
    """Runs of forward gradient and backprop; each figure gets a little noise, other for every seed."""
    records = []
    for trainer, columns, options in (
        ("forward-gradient", forward, dict(forward_options)),
        ("backprop", backprop, {}),
    ):
        for seed in range(seeds):
            wobble = 1 + NOISE[seed] * (1 if trainer == "backprop" else -1)
            noisy = {name: _scale(value, wobble) for name, value in columns.items()}
            records.append(make_record(trainer, seed, trainer_options=options, **noisy, **given))
    return records


def _scale(value, factor):
    return [each * factor for each in value] if isinstance(value, list) else value * factor


# claim, column, what the forward gradient has, what backprop has: supported, and refuted the other way round
ONE_SIDED = [
    ("study-higher-test-accuracy", "test_accuracy", 0.91, 0.90),
    ("study-lower-training-loss", "train_loss", 0.3, 0.5),
    ("study-lower-batch-time", "batch_time_ms", 5.0, 9.0),
    ("study-more-samples", "samples_per_s", 9000.0, 5000.0),
    ("baydin-cheaper-gradient", "batch_time_ms", 5.0, 9.0),
]


@pytest.mark.parametrize(("claim", "column", "better", "worse"), ONE_SIDED)
def test_a_one_sided_claim_is_decided_by_the_side_of_the_interval(claim, column, better, worse):
    assert verdict(claim, both({column: better}, {column: worse})) == "supported"
    assert verdict(claim, both({column: worse}, {column: better})) == "refuted"


@pytest.mark.parametrize(("claim", "column", "better", "worse"), ONE_SIDED)
def test_where_both_are_as_good_as_equal_a_claim_of_a_difference_is_not_called_refuted(
    claim, column, better, worse
):
    assert verdict(claim, both({column: worse}, {column: worse})) == "no difference"


@pytest.mark.parametrize(("claim", "column", "better", "worse"), ONE_SIDED)
def test_contradictory_results_are_mixed(claim, column, better, worse):
    records = both({column: better}, {column: worse}, model="fc")
    records += both({column: worse}, {column: better}, model="cnn")
    assert verdict(claim, records) == "mixed"


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if claim not in NOT_TESTABLE])
def test_without_runs_or_with_two_seeds_there_is_not_enough_data(claim):
    columns = {"test_accuracy": 0.5, "train_accuracy": 0.5, "train_loss": 1.0, "val_loss": 1.0}
    columns |= {"batch_time_ms": 1.0, "samples_per_s": 1.0, "peak_memory_mib": 1.0}
    assert verdict(claim, [make_record("backprop")]) == "not enough data"
    assert verdict(claim, both(columns, columns, seeds=2)) == "not enough data"


def test_a_difference_lost_in_noise_is_not_enough_data_and_tells_the_seeds_needed():
    accuracies = {"forward-gradient": (0.80, 0.95, 0.88), "backprop": (0.90, 0.85, 0.86)}
    records = [
        make_record(trainer, seed, test_accuracy=value)
        for trainer, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    assert verdict("study-higher-test-accuracy", records) == "not enough data"
    assert "seeds needed" in numbers("study-higher-test-accuracy", records)


def test_seeds_that_are_not_in_common_do_not_count():
    records = [make_record("forward-gradient", seed, test_accuracy=0.5) for seed in (0, 1, 2)]
    records += [make_record("backprop", seed, test_accuracy=0.9) for seed in (2, 3, 4)]
    assert verdict("study-higher-test-accuracy", records) == "not enough data"


def test_lower_error_needs_both_training_and_test():
    low, high = {"train_accuracy": 0.7, "test_accuracy": 0.7}, {"train_accuracy": 0.9, "test_accuracy": 0.9}
    assert verdict("study-lower-error", both(low, high)) == "supported"
    assert verdict("study-lower-error", both(high, low)) == "refuted"
    assert verdict("study-lower-error", both(low | {"test_accuracy": 0.95}, high)) == "mixed"
    unmeasured = both({"test_accuracy": 0.7}, {"test_accuracy": 0.9})
    assert verdict("study-lower-error", unmeasured) == "not enough data"


def test_higher_accuracy_by_far_is_not_marginally_higher():
    assert (
        verdict("study-higher-test-accuracy", both({"test_accuracy": 0.9}, {"test_accuracy": 0.6})) == "mixed"
    )


def test_a_lower_loss_at_the_end_alone_is_not_consistently_lower():
    crossing = both({"train_loss": [0.9, 0.8, 0.3]}, {"train_loss": [0.8, 0.6, 0.5]})
    assert verdict("study-lower-training-loss", crossing) == "mixed"
    assert "so in 33% of epochs" in numbers("study-lower-training-loss", crossing)


@pytest.mark.parametrize(
    ("ratio", "expected"), [(1.0, "supported"), (1.08, "supported"), (1.3, "refuted"), (0.7, "refuted")]
)
def test_similar_times_are_those_within_ten_percent(ratio, expected):
    records = both({"epoch_time_s": 2.0 * ratio}, {"epoch_time_s": 2.0})
    assert verdict("study-similar-time", records) == expected


def test_similar_is_open_where_the_interval_crosses_the_margin():
    records = [make_record("backprop", seed, epoch_time_s=1.0) for seed in range(3)]
    records += [make_record("forward-gradient", s, epoch_time_s=t) for s, t in enumerate((1.02, 1.1, 1.2))]
    assert verdict("study-similar-time", records) == "not enough data"


def test_times_of_different_machines_decide_nothing():
    fast = both({"batch_time_ms": 5.0}, {"batch_time_ms": 9.0})
    records = [
        replace(run, env=run.env | {"cpu": "another"}) if run.component("trainer") == "backprop" else run
        for run in fast
    ]
    assert verdict("study-lower-batch-time", records) == "not enough data"
    assert "different environments (cpu" in numbers("study-lower-batch-time", records)


def test_times_taken_beside_other_work_decide_nothing():
    records = both({"batch_time_ms": 5.0, "val_loss": 0.4}, {"batch_time_ms": 9.0, "val_loss": 0.5})
    for run in records:
        run.metrics["timing_note"] = "other processes kept 1.0 of 2 CPU cores busy"
    assert verdict("study-lower-batch-time", records) == "not enough data"
    assert verdict("baydin-faster-training", records) == "not enough data"


@pytest.mark.parametrize(
    ("diverged", "expected"),
    [
        ({"forward-gradient": 3}, "supported"),
        ({"backprop": 3}, "refuted"),
        ({"forward-gradient": 1}, "mixed"),
        ({"forward-gradient": 3, "backprop": 3}, "not enough data"),
    ],
)
def test_diverged_runs_count_as_lost_and_are_never_left_out(diverged, expected):
    """The forward runs that survive are the better ones here: a mean over them alone would refute."""
    records = [
        make_record(
            trainer,
            seed,
            test_accuracy=0.9 if trainer == "forward-gradient" else 0.8 + seed / 100,
            train_accuracy=0.9 if trainer == "forward-gradient" else 0.8 + seed / 100,
            state="diverged" if seed < diverged.get(trainer, 0) else "finished",
        )
        for trainer in ("forward-gradient", "backprop")
        for seed in range(3)
    ]
    assert verdict("study-lower-error", records) == expected
    assert "diverged" in numbers("study-lower-error", records)


@pytest.mark.parametrize(
    ("trainer", "options", "accuracy", "expected"),
    [
        ("forward-gradient", {}, 0.8999, "mixed"),  # one lost by diverging, two as good as equal
        ("forward-gradient", {}, 0.85, "refuted"),  # the other two lost by more than the margin
        ("backprop", {}, 0.90, "supported"),
    ],
)
def test_one_diverged_seed_does_not_void_the_margin_of_the_others(trainer, options, accuracy, expected):
    records = [
        make_record(
            name,
            seed,
            test_accuracy=accuracy if name == "forward-gradient" else 0.9,
            state="diverged" if (name, seed) == (trainer, 0) else "finished",
        )
        for name in ("forward-gradient", "backprop")
        for seed in range(3)
    ]
    assert verdict("study-comparable-performance", records) == expected


@pytest.mark.parametrize(
    ("lead", "expected"), [(0.0001, "not enough data"), (0.015, "not enough data"), (0.03, "supported")]
)
def test_a_diverged_control_is_not_beaten_by_leads_that_are_as_good_as_none(lead, expected):
    """Tuned apart, a lead below 0.02 is not one, whatever became of another seed."""
    records = [
        make_record(
            name,
            seed,
            test_accuracy=0.85 + (lead if name != "frozen" else 0),
            optimizer__lr=0.1 if name == "frozen" else 0.001,
            state="diverged" if (name, seed) == ("frozen", 0) else "finished",
        )
        for name in ("frozen", "feedback-forward-gradient")
        for seed in range(3)
    ]
    assert verdict("more-than-frozen", records) == expected


def test_a_lead_by_divergence_is_more_than_a_marginal_one():
    records = [
        make_record(
            name,
            seed,
            **dict.fromkeys(("test_accuracy", "train_accuracy"), 0.8),
            state="diverged" if name == "backprop" else "finished",
        )
        for name in ("forward-gradient", "backprop")
        for seed in range(3)
    ]
    assert verdict("study-higher-test-accuracy", records) == "mixed"


@pytest.mark.parametrize(("lead", "expected"), [(0.3, "supported"), (0.1, "refuted"), (0.2, "no difference")])
def test_the_lead_on_the_cnn_is_compared_with_the_lead_on_other_models(lead, expected):
    records = both({"test_accuracy": 0.7}, {"test_accuracy": 0.9}, model="vgg16")
    records += both({"test_accuracy": 0.9 - lead}, {"test_accuracy": 0.9}, model="cnn")
    assert verdict("study-larger-for-cnn", records) == expected


def test_the_lead_on_the_cnn_is_not_decided_without_the_network_that_the_statement_names():
    records = both({"test_accuracy": 0.7}, {"test_accuracy": 0.9}, model="fc")
    records += both({"test_accuracy": 0.5}, {"test_accuracy": 0.9}, model="cnn")
    assert verdict("study-larger-for-cnn", records) == "not enough data"
    assert "vgg16" in numbers("study-larger-for-cnn", records)


def test_leads_over_a_trainer_that_is_at_chance_on_both_tell_of_the_baseline_alone():
    records = both({"test_accuracy": 0.1}, {"test_accuracy": 0.7}, model="vgg16")
    records += both({"test_accuracy": 0.1}, {"test_accuracy": 0.9}, model="cnn")
    assert verdict("study-larger-for-cnn", records) == "not enough data"
    assert "at chance on both" in numbers("study-larger-for-cnn", records)


def test_leads_are_not_compared_across_different_experiments():
    records = both({"test_accuracy": 0.7}, {"test_accuracy": 0.9}, model="vgg16")
    records += both({"test_accuracy": 0.5}, {"test_accuracy": 0.9}, model="cnn", dataset__limit=1000)
    assert verdict("study-larger-for-cnn", records) == "not enough data"
    records = both({"test_accuracy": 0.7}, {"test_accuracy": 0.9}, dataset="mnist")
    records += both({"test_accuracy": 0.5}, {"test_accuracy": 0.9}, dataset="cifar10")
    assert verdict("study-larger-for-cifar10", records) == "supported"


@pytest.mark.parametrize(("schedule", "expected"), [("constant", "refuted"), ("cosine", "not enough data")])
def test_leads_of_shorter_runs_are_compared_where_the_rate_stays_as_it_is(schedule, expected):
    records = both({"test_accuracy": [0.6, 0.9]}, {"test_accuracy": [0.9, 0.9]}, schedule__name=schedule)
    records += both(
        {"test_accuracy": [0.8]}, {"test_accuracy": [0.9]}, dataset="cifar10", schedule__name=schedule
    )
    assert verdict("study-larger-for-cifar10", records) == expected


@pytest.mark.parametrize(("groups", "expected"), [(16, "supported"), (1, "not enough data")])
def test_local_losses_are_compared_with_the_models_where_there_are_several_groups(groups, expected):
    records = [
        make_record(
            *("local-forward-gradient", seed),
            trainer_options={"losses": losses},
            test_accuracy=accuracy + 0.001 * seed,
            model="local-mixer",
            model__groups=groups,
        )
        for losses, accuracy in (("local", 0.97), ("global", 0.95))
        for seed in range(3)
    ]
    assert verdict("ren-local-beats-global", records) == expected


def test_diverged_runs_leave_the_difference_of_leads_open():
    records = both({"test_accuracy": 0.7}, {"test_accuracy": 0.9}, model="vgg16")
    records += both({"test_accuracy": 0.5}, {"test_accuracy": 0.9}, model="cnn", state="diverged")
    assert verdict("study-larger-for-cnn", records) == "not enough data"


@pytest.mark.parametrize(
    "claim", ["study-lower-error", "study-higher-test-accuracy", "study-lower-training-loss"]
)
def test_two_networks_that_have_learnt_nothing_decide_nothing(claim):
    chance = {"train_accuracy": 0.1, "test_accuracy": 0.1, "train_loss": 2.3}
    worse = chance | {"train_loss": 2.4}
    assert verdict(claim, both(chance, worse)) == "not enough data"
    assert "neither is better than chance" in numbers(claim, both(chance, worse))
    learnt = {"train_accuracy": 0.6, "test_accuracy": 0.6, "train_loss": 1.0}
    assert verdict(claim, both(learnt, chance)) != "not enough data"


def test_exact_ties_are_no_difference():
    even = {"train_accuracy": 1.0, "test_accuracy": 0.9}
    records = [
        make_record(trainer, seed, **even)
        for trainer in ("forward-gradient", "backprop")
        for seed in range(3)
    ]
    assert verdict("study-lower-error", records) == "no difference"


def test_an_outlier_among_the_seeds_decides_nothing():
    accuracies = {"forward-gradient": (0.91, 0.92, 0.30), "backprop": (0.90, 0.90, 0.90)}
    records = [
        make_record(trainer, seed, test_accuracy=value)
        for trainer, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    assert verdict("study-higher-test-accuracy", records) == "not enough data"


def test_a_quiet_warm_up_before_busy_epochs_does_not_make_their_times_count():
    records = both({"batch_time_ms": 5.0}, {"batch_time_ms": 9.0}, epochs=3)
    for run in records:
        run.metrics.loc[1:, "timing_note"] = "other processes kept 1.0 of 2 CPU cores busy"
    assert verdict("study-lower-batch-time", records) == "not enough data"
    assert "timed beside other work" in numbers("study-lower-batch-time", records)


def test_the_learning_rate_is_not_the_trainers():
    records = both({}, {})
    assert verdict("study-learning-rate", []) == verdict("study-learning-rate", records) == "not testable"
    assert "equal learning rates in 3 of 3" in numbers("study-learning-rate", records)


def test_faster_in_some_cases_needs_one_case():
    slower = both({"val_loss": [0.9, 0.8, 0.7]}, {"val_loss": [0.65, 0.5, 0.4]}, model="fc")
    faster = both({"val_loss": [0.4, 0.3, 0.2]}, {"val_loss": [0.7, 0.6, 0.41]}, model="cnn")
    assert verdict("baydin-faster-training", slower) == "not enough data"  # no case shows that there is none
    assert verdict("baydin-faster-training", slower + faster) == "supported"


def test_a_loss_that_both_reach_in_their_first_epoch_does_not_tell_which_is_faster():
    worse_and_worse = both(
        {"val_loss": [2.0, 2.3], "epoch_time_s": 1.0}, {"val_loss": [1.0, 0.5], "epoch_time_s": 3.0}
    )
    assert verdict("baydin-faster-training", worse_and_worse) == "not enough data"
    assert "no more than one epoch" in numbers("baydin-faster-training", worse_and_worse)


def activity(accuracy, **given):
    return [
        make_record("activity-forward-gradient", seed, test_accuracy=accuracy + NOISE[seed], **given)
        for seed in range(3)
    ]


def test_activity_perturbation_is_held_against_the_best_weight_perturbation_at_its_own_learning_rate():
    weights = both({"test_accuracy": 0.7, "val_accuracy": 0.7}, {"test_accuracy": 0.9}, optimizer__lr=1e-4)
    claim = "ren-activity-beats-weights"
    assert verdict(claim, weights + activity(0.8, optimizer__lr=3e-4)) == "supported"
    assert "optimizer.lr 0.0003 / 0.0001" in numbers(claim, weights + activity(0.8, optimizer__lr=3e-4))
    assert verdict(claim, weights + activity(0.6, optimizer__lr=3e-4)) == "refuted"
    assert verdict(claim, weights + activity(0.8, batch_size=128)) == "not enough data"


def test_what_backprop_trains_or_transposed_weights_guide_is_no_forward_gradient_of_that_claim():
    weights = both({"test_accuracy": 0.7, "val_accuracy": 0.7}, {"test_accuracy": 0.9})
    exact = {"trainer_options": {"exact_stages": 2}}
    weights += [
        make_record("forward-gradient", seed, test_accuracy=0.85, val_accuracy=0.85, **exact)
        for seed in range(3)
    ]
    claim = "ren-activity-beats-weights"
    assert verdict(claim, weights + activity(0.8)) == "supported"
    guided = activity(0.8, trainer_options={"guess": "next-weights"})
    assert verdict(claim, weights + guided) == "not enough data"


def test_an_exact_output_layer_is_held_against_another():
    exact = {"trainer_options": {"exact_output": True}}
    weights = both({"test_accuracy": 0.7, "val_accuracy": 0.7}, {"test_accuracy": 0.9})
    weights += [make_record("forward-gradient", seed, test_accuracy=0.85, **exact) for seed in range(3)]
    claim = "ren-activity-beats-weights"
    assert verdict(claim, weights + activity(0.8)) == "supported"
    both_kinds = activity(0.8) + [
        make_record("activity-forward-gradient", seed, test_accuracy=0.81 + seed / 1000, **exact)
        for seed in range(3)
    ]
    assert verdict(claim, weights + both_kinds) == "mixed"


@pytest.mark.parametrize(("local", "expected"), [(0.8, "supported"), (0.65, "mixed"), (0.4, "refuted")])
def test_local_guesses_must_beat_random_ones_with_as_exact_a_last_block_and_a_frozen_body(local, expected):
    records = [
        make_record(
            trainer, seed, test_accuracy=accuracy + NOISE[seed] * index, trainer_options={"guess": guess}
        )
        for index, (trainer, guess, accuracy) in enumerate(
            (
                ("guided-forward-gradient", "local", local),
                ("guided-forward-gradient", "normal", 0.6),
                ("frozen", None, 0.7),
                ("forward-gradient", "normal", 0.9),  # guesses its last layer too: no fair opponent
            )
        )
        for seed in range(3)
    ]
    assert verdict("fournier-local-beats-random", records) == expected


@pytest.mark.parametrize(
    ("accuracy", "expected"), [(0.88, "supported"), (0.86, "refuted"), (0.87, "no difference")]
)
def test_forward_gradients_with_an_exact_output_layer_are_compared_with_a_frozen_body(accuracy, expected):
    records = [make_record("frozen", seed, test_accuracy=0.87 + NOISE[seed]) for seed in range(3)]
    exact = {"trainer_options": {"exact_output": True}}
    records += activity(accuracy, **exact)
    records += activity(0.2)  # guesses its output layer: not what is asked
    assert verdict("more-than-the-output-layer", records) == expected


@pytest.mark.parametrize(
    ("memory", "accuracy", "expected"),
    [
        (40.0, 0.9, "supported"),
        (40.0, 0.5, "refuted"),
        (87.0, 0.9, "supported"),  # comparable: within 10 %
        (90.0, 0.9, "not enough data"),
        (None, 0.9, "not enough data"),
    ],
)
def test_recomputation_must_fit_the_forward_gradients_memory_and_be_better(memory, accuracy, expected):
    records = both({"test_accuracy": 0.7, "peak_memory_mib": 80.0}, {"test_accuracy": 0.9})
    for run in records:
        run.metrics["peak_memory_mib"] = 80.0
    records += [
        make_record(
            "backprop",
            seed,
            test_accuracy=accuracy + NOISE[seed],
            peak_memory_mib=memory,
            trainer_options={"recompute": True},
        )
        for seed in range(3)
    ]
    assert verdict("recompute-beats-forward", records) == expected


def test_the_studys_claims_are_tested_only_on_its_own_setting():
    tuned = both({"test_accuracy": 0.91}, {"test_accuracy": 0.9}, optimizer__lr=0.1)
    variant = both({"test_accuracy": 0.91}, {"test_accuracy": 0.9}, forward_options={"tangents": 4})
    assert verdict("study-higher-test-accuracy", tuned) == "not enough data"
    assert verdict("study-higher-test-accuracy", variant) == "not enough data"


def outcomes(*stances):
    return [Outcome(stance, "") for stance in stances]


@pytest.mark.parametrize(
    ("stances", "some", "expected"),
    [
        ([], False, "not enough data"),
        ([Stance.no_evidence, Stance.note], False, "not enough data"),
        ([Stance.unclear, Stance.no_evidence], False, "not enough data"),
        ([Stance.for_, Stance.no_evidence], False, "supported"),
        ([Stance.against, Stance.unclear], False, "refuted in part"),
        ([Stance.against, Stance.unclear, Stance.equal], False, "refuted in part"),
        ([Stance.equal, Stance.unclear], False, "mixed"),
        ([Stance.for_, Stance.against, Stance.unclear], False, "mixed"),
        ([Stance.against, Stance.no_evidence], False, "refuted"),
        ([Stance.equal, Stance.equal], False, "no difference"),
        ([Stance.against, Stance.equal], False, "refuted"),
        ([Stance.for_, Stance.equal], False, "mixed"),
        ([Stance.for_, Stance.unclear], False, "supported in part"),
        ([Stance.for_, Stance.against], False, "mixed"),
        ([Stance.both], False, "mixed"),
        ([Stance.for_, Stance.against], True, "supported"),
        ([Stance.against, Stance.against], True, "not enough data"),
        ([Stance.against, Stance.unclear], True, "not enough data"),
        ([Stance.against, Stance.both], True, "not enough data"),
    ],
)
def test_several_cases_make_one_verdict(stances, some, expected):
    assert conclude(outcomes(*stances), some).verdict == expected


def test_every_claim_has_a_rule_that_takes_its_options_and_tells_how_it_decides():
    assert len(CLAIMS) == len(load_claims())
    for claim in CLAIMS.values():
        inspect.signature(RULES[claim.rule]).bind([], **claim.options)
        assert len(claim.rule_text) > 30
        assert claim.series != claim.baseline
    assert {claim.rule for claim in CLAIMS.values()} == set(RULES)


def test_the_report_tells_verdict_numbers_seeds_and_rule():
    records = both({"peak_memory_mib": 80.0}, {"peak_memory_mib": 60.0}, model="vgg16")
    report = claims_report(Results(records))
    block = next(block for block in report.split("\n\n") if "study-less-memory-expected" in block)
    assert block.startswith("REFUTED on a CPU  study-less-memory-expected  (1 against)")
    assert "1.33" in block
    assert "seeds 0, 1, 2" in block
    assert "paired-t interval" in block
    assert report.splitlines()[-1].startswith(f"{len(CLAIMS)} claims: ")


def test_what_a_gpu_measured_decides_a_claim_about_gpus():
    claim = CLAIMS["study-lower-batch-time"]
    on_cpu = both({"batch_time_ms": 9.0}, {"batch_time_ms": 5.0})
    gpu = {"device": "cuda", "env": {"device": "cuda:0", "gpu": "a GPU"}}
    on_gpu = both({"batch_time_ms": 5.0}, {"batch_time_ms": 9.0}, **gpu)
    assert [each.answer for each in audit(on_cpu + on_gpu, (), [claim])] == ["supported"]
    assert [each.answer for each in audit(on_cpu, (), [claim])] == ["refuted on a CPU"]


def step(case, ratio, *, model="fc", noise=""):
    return Step(model, 64, case, 10.0 * ratio, 0.1, 25, ratio, "cpu", noise)


def test_benchmarked_steps_are_cases_too():
    def benchmark(*ratios, noise=""):
        models = ("fc", "cnn", "vgg16", "resnet18")
        return [
            each
            for model, ratio in zip(models, ratios, strict=False)
            for each in (
                step("forward-gradient, normal", ratio, model=model, noise=noise),
                step("backprop", 1.0, model=model),
            )
        ]

    assert verdict("study-similar-time", [], benchmark(1.05, 1.02)) == "supported"
    assert verdict("study-similar-time", [], benchmark(2.8, 1.05, 1.04, 1.06)) == "mixed"
    assert (
        verdict("study-similar-time", [], benchmark(1.05, noise="the machine was busy")) == "not enough data"
    )
    assert verdict("study-lower-batch-time", [], benchmark(0.8)) == "supported"
    assert verdict("study-minimal-overhead", [], benchmark(0.8, 1.05)) == "supported"
    assert verdict("study-minimal-overhead", [], benchmark(1.3)) == "refuted"
    assert "time of a step 1.050×" in numbers("study-similar-time", [], benchmark(1.05))


def test_a_benchmarked_step_is_held_against_backprop_of_its_own_process():
    noisy = [step("forward-gradient, normal", 1.14), step("backprop", 1.0)]
    noisy = [replace(each, spread_ms=3.0, source="noisy") for each in noisy]
    quiet = [replace(step("backprop", 1.0), spread_ms=0.01, source="quiet")]
    quiet += [replace(step("forward-gradient, normal", 1.14), spread_ms=0.01, source="quiet")]
    alone = numbers("study-similar-time", [], noisy)
    assert alone in numbers("study-similar-time", [], noisy + quiet)
    assert verdict("study-similar-time", [], noisy) == "not enough data"
    assert verdict("study-similar-time", [], quiet) == "refuted"


@pytest.mark.parametrize(("rounds", "least"), [(5, 0.91), (15, 0.93)])
def test_the_interval_of_a_step_time_covers_the_true_ratio(rounds, least):
    draws = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        mine, backprop = np.exp(draws.normal(0, 0.05, (2, rounds)))
        steps = [
            Step(
                *("fc", 64, case, np.median(times), np.subtract(*np.percentile(times, [75, 25])), rounds),
                *(float(np.median(times / backprop)), "cpu"),
            )
            for case, times in (("forward-gradient", mine), ("backprop", backprop))
        ]
        low, high = steps[0].interval(steps[1])
        covered += low <= 0 <= high
    assert least <= covered / 2000 <= 0.97


def test_the_published_benchmarks_are_read():
    steps = load_steps(Path(__file__).parents[2] / "results" / "bench")
    assert {each.model for each in steps} == {"fc", "cnn", "vgg16", "resnet18", "vit"}
    assert all(each.time_ms > 0 and each.device == "cpu" for each in steps)


def test_a_damaged_benchmark_is_named_and_left_out(tmp_path, caplog):
    (tmp_path / "bench.csv").write_text("model,case\nfc,backprop\n")
    assert load_steps(tmp_path) == []
    assert "bench.csv" in caplog.text


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [(0.95, 0.93, "supported"), (0.95, 0.80, "refuted"), (0.60, 0.60, "not enough data")],
)
def test_a_smaller_gap_counts_as_generalisation_only_where_the_training_images_are_fitted_as_well(
    train, test, expected
):
    records = both(
        {"train_accuracy": train, "test_accuracy": test}, {"train_accuracy": 0.95, "test_accuracy": 0.88}
    )
    assert verdict("study-better-generalisation", records) == expected


def test_a_gap_within_an_epoch_of_fast_learning_is_none():
    first_epoch = {"train_accuracy": 0.45, "test_accuracy": 0.65}  # a mean over the epoch, and its end
    records = both({"train_accuracy": 0.44, "test_accuracy": 0.42}, first_epoch)
    assert verdict("study-better-generalisation", records) == "not enough data"


FLAT = [1.0 - 0.9 * min(1.0, epoch / 10) for epoch in range(30)]
RISING = [0.1 + 0.05 * epoch for epoch in range(30)]
JUMPING = [1.0 + 0.2 * (epoch % 2) for epoch in range(30)]


def test_a_curve_levels_off_where_its_last_tenth_changes_by_next_to_nothing():
    still = {"train_loss": FLAT, "test_accuracy": [0.5] * 30}
    assert verdict("study-plateau", both(still, still)) == "supported"
    assert verdict("study-plateau", both(still | {"train_loss": RISING}, still)) == "mixed"
    short = {name: values[:10] for name, values in still.items()}
    assert verdict("study-plateau", both(short, short)) == "not enough data"


def test_fluctuations_are_those_of_the_loss_from_epoch_to_epoch():
    assert (
        verdict("study-fewer-fluctuations", both({"train_loss": FLAT}, {"train_loss": JUMPING}))
        == "supported"
    )
    assert (
        verdict("study-fewer-fluctuations", both({"train_loss": JUMPING}, {"train_loss": FLAT})) == "refuted"
    )


@pytest.mark.parametrize(("accuracy", "expected"), [(0.89, "supported"), (0.8, "refuted")])
def test_comparable_performance_allows_a_margin(accuracy, expected):
    records = both({"test_accuracy": accuracy}, {"test_accuracy": 0.9}, model="vgg16")
    assert verdict("study-comparable-performance", records) == expected
    assert verdict("study-larger-networks", records) == expected


def test_a_lead_smaller_than_the_noise_of_tuning_decides_nothing_between_trainers_tuned_apart():
    weights = both({"test_accuracy": 0.7, "val_accuracy": 0.7}, {"test_accuracy": 0.9}, optimizer__lr=1e-4)
    assert verdict("ren-activity-beats-weights", weights + activity(0.71, optimizer__lr=1e-4)) == "supported"
    apart = weights + activity(0.71, optimizer__lr=3e-4)
    assert verdict("ren-activity-beats-weights", apart) == "not enough data"
    assert "tuning may decide" in numbers("ren-activity-beats-weights", apart)


def test_runs_that_cannot_be_read_or_have_not_finished_are_named_in_the_report(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", state="interrupted", epochs=2)
    broken = make_run(tmp_path / "c")
    (broken / "config.yaml").write_text("a: {b")
    lost = make_run(tmp_path / "d")
    (lost / "config.yaml").unlink()
    for command in (
        ["claims"],
        ["compare"],
        ["claims", "--format", "markdown"],
        ["compare", "--format", "latex"],
    ):
        out = tmp_path / "out.txt"
        done = CliRunner().invoke(app, [command[0], str(tmp_path), *command[1:], "--out", str(out)])
        assert done.exit_code == 0, done.output
        text = out.read_text().replace("\\", "")
        assert f"Left out: {broken}" in text
        assert f"Left out: {lost}: has no config.yaml" in text
        assert "interrupted, epoch 2 of 10" in text


def test_the_command_writes_every_claim_as_a_row(tmp_path):
    for seed in range(3):
        make_run(tmp_path, seed=seed)
        make_run(tmp_path, "forward-gradient", seed=seed)
    done = CliRunner().invoke(app, ["claims", str(tmp_path), "--format", "csv"])
    assert done.exit_code == 0
    rows = {row["claim"]: row for row in csv.DictReader(io.StringIO(done.stdout))}
    assert set(rows) == set(CLAIMS)
    assert rows["baydin-same-memory"]["verdict"] == "refuted on a CPU"
    assert rows["study-larger-for-cnn"]["verdict"] == "not enough data"


@pytest.mark.parametrize(
    ("low", "high", "stance"),
    [
        (0.001, 0.002, Stance.equal),  # there, but as good as nothing
        (-0.002, 0.001, Stance.equal),
        (0.001, 0.03, Stance.for_),
        (0.03, 0.04, Stance.for_),
        (-0.01, 0.03, Stance.unclear),
        (-0.04, -0.03, Stance.against),
    ],
)
def test_a_difference_that_is_as_good_as_none_is_none(low, high, stance):
    assert stance_of_interval(low, high, 0.02) is stance
