"""Tags and notes: kept with the run, in no hash and no label, and what ``--tag`` chooses."""

import pytest
from fake_results import make_run
from typer.testing import CliRunner

import fgbench
from fgbench.analysis.records import load_results, read_results
from fgbench.analysis.series import group_series
from fgbench.cli.app import app
from fgbench.errors import ConfigError


@pytest.fixture
def results(tmp_path):
    for seed in range(2):
        make_run(tmp_path, seed=seed, tags=["paper", "cpu"], note="for the table")
        make_run(tmp_path, "forward-gradient", seed=seed, tags=["paper"])
    make_run(tmp_path, "zeroth-order")
    return tmp_path


def call(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_only_the_runs_with_a_tag_are_read(results):
    assert len(load_results(results)) == 5
    assert {run.component("trainer") for run in load_results(results, "cpu")} == {"backprop"}
    assert read_results(results, "paper").notes == ["Of the 5 runs, the 4 tagged paper."]
    assert read_results(results).notes == []


def test_tags_and_notes_are_in_no_label(results):
    labels = [each.label for series in group_series(load_results(results)).values() for each in series]
    assert labels == ["backprop", "forward-gradient", "zeroth-order"]


@pytest.mark.parametrize("command", ["status", "plot", "compare", "report"])
def test_a_tag_no_run_has_is_one_line_with_those_there_are(command, results, tmp_path):
    done = call(command, results, "--tag", "papr")
    assert done.exit_code == 2
    assert done.output == f"fgbench: --tag papr: no run in {results} has it; the tags there are cpu, paper\n"


def test_where_no_run_has_a_tag_the_key_is_named(tmp_path):
    make_run(tmp_path)
    with pytest.raises(ConfigError, match=r"no run there has any \(the key tags\)"):
        read_results(tmp_path, "paper")


def test_a_text_in_place_of_a_list_is_one_tag(tmp_path):
    make_run(tmp_path, tags="paper")
    [run] = load_results(tmp_path, "paper")
    assert run.tags == ("paper",)


def test_status_shows_tags_and_says_what_it_left_out(results):
    done = call("status", results, "--tag", "cpu")
    assert "forward-gradient" not in done.output
    assert "paper cpu" in done.output
    assert "Of the 5 runs, the 2 tagged cpu. 2 runs: 2 finished." in done.output


def test_compare_and_report_say_which_runs_they_rest_on(results, tmp_path):
    assert "Of the 5 runs, the 4 tagged paper." in call("compare", results, "--tag", "paper").output
    page = tmp_path / "page.html"
    assert call("report", results, "--tag", "paper", "--out", page).exit_code == 0
    text = page.read_text()
    assert "Of the 5 runs, the 4 tagged paper." in text
    assert "--tag paper" in text
    assert "zeroth_order" not in text
    assert "for the table" in text


def test_a_figure_of_tagged_runs_does_not_replace_that_of_all(results):
    call("plot", results)
    before = (results / "fc_fashion-mnist-mini.png").read_bytes()
    done = call("plot", results, "--tag", "cpu")
    assert done.output.split() == [
        str(results / f"fc_fashion-mnist-mini-cpu.{ending}") for ending in ("png", "svg")
    ]
    assert (results / "fc_fashion-mnist-mini.png").read_bytes() == before


def test_summaries_have_tags(results):
    summaries = fgbench.read_summaries(results)
    assert set(summaries["tags"]) == {("paper", "cpu"), ("paper",), ()}
    tagged = summaries[["cpu" in tags for tags in summaries["tags"]]]
    assert set(tagged["label"]) == {"backprop"}
