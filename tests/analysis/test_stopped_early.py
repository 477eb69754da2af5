"""Runs that stopped early, beside others: what they are compared at, and what is said of them."""

from dataclasses import replace

from fake_records import make_record
from fake_results import make_run

from fgbench.analysis.compare import compare
from fgbench.analysis.compare_tables import compare_report
from fgbench.analysis.readings import read
from fgbench.analysis.records import load_results
from fgbench.analysis.series import group_series
from fgbench.analysis.tables import summary_table
from fgbench.plotting.figures import four_panels
from fgbench.storage.run_directory import RunDirectory

STOPPED = {"stopped_early": "stopped early: in 1 epochs no better val_loss than 1 in epoch 1"}


def runs(trainer, *ends, epoch_time_s=1.0):
    """Made-up runs of ten planned epochs, a seed each; those with fewer stopped early."""
    return [
        replace(
            make_record(
                trainer,
                seed,
                epochs=end,
                test_accuracy=[0.1 * epoch for epoch in range(1, end + 1)],
                epoch_time_s=epoch_time_s,
            ),
            summary=STOPPED if end < 10 else {},
        )
        for seed, end in enumerate(ends)
    ]


def fixed(records):
    """The same records as of one plan, so that they are one series."""
    for record in records:
        record.config["epochs"] = 10
    return [replace(record, hash=record.component("trainer")) for record in records]


def at(records, budget):
    [found] = [each for each in compare(records) if each.budget == budget]
    return found


def test_a_run_that_stopped_early_counts_as_what_it_ended_with_in_a_longer_budget():
    records = fixed([*runs("backprop", 10, 10, 10), *runs("forward-gradient", 4, 5, 6)])
    found = at(records, "epochs")
    assert found.limit == 10
    assert [value for value, _ in found.values] == [0.4, 0.5, 0.1 * 6]
    assert [other for _, other in found.values] == [1.0] * 3
    told = compare_report(records, ["test_accuracy"])
    assert "3 stopped early, in epoch 4 5 6" in told


def test_where_all_stopped_early_each_counts_as_what_it_ended_with():
    found = at(fixed([*runs("backprop", 8, 7), *runs("forward-gradient", 4, 5)]), "epochs")
    assert found.limit == 8
    assert found.values == ((0.4, 0.8), (0.5, 0.1 * 7))


def test_at_equal_time_a_run_that_stopped_early_does_not_shorten_the_budget():
    records = fixed([*runs("backprop", 10, 10), *runs("forward-gradient", 4, 5, epoch_time_s=4.0)])
    found = at(records, "time")
    assert found.limit == 10.0
    assert found.epochs == ((2, 10), (2, 10))


def test_it_is_read_nowhere_beyond_its_end_if_it_did_not_stop_by_itself():
    [stopped], [cut] = runs("backprop", 4), [make_record(epochs=4, test_accuracy=0.5)]
    assert read(stopped, "test_accuracy", 7) == 0.4
    assert read(cut, "test_accuracy", 7) != read(cut, "test_accuracy", 7)


def test_the_tables_and_the_legend_say_how_many_stopped(tmp_path):
    for seed, epochs in enumerate((5, 3)):
        path = make_run(
            tmp_path,
            seed=seed,
            planned=5,
            epochs=epochs,
            early_stopping={"metric": "val_loss", "patience": 1},
        )
        RunDirectory(path).write_summary(STOPPED if epochs == 3 else {"epochs": 5})
    records = load_results(tmp_path)
    assert [run.state for run in records] == ["finished", "finished"]
    assert "2 (1 stopped early)" in summary_table(records)
    assert "3-5" in summary_table(records)
    [series] = group_series(records).values()
    legend = [text.get_text() for text in four_panels("t", series).legends[0].get_texts()]
    assert legend == ["backprop (n = 2, 1 stopped early)"]


def test_runs_from_before_a_key_existed_are_labelled_as_those_at_its_default(tmp_path):
    make_run(tmp_path, "backprop")
    make_run(tmp_path, "forward-gradient", verify=True, early_stopping=None)
    labels = [each.label for series in group_series(load_results(tmp_path)).values() for each in series]
    assert labels == ["backprop", "forward-gradient"]


def test_a_run_that_stopped_early_is_at_the_end_of_its_schedule_only_from_where_it_stopped():
    ends = (*runs("backprop", 10, 10, 10), *runs("forward-gradient", 6, 6, 6, epoch_time_s=5.0))
    records = fixed([replace(run, config=run.config | {"schedule": {"name": "cosine"}}) for run in ends])
    assert at(records, "epochs").refusal == ""
    assert at(records, "time").epochs == ((2, 10),) * 3
    assert at(records, "time").refusal == "read at different points of the schedule of learning rates"
