"""The report: one page that needs nothing else, says the answer first, and trusts no text it shows."""

import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

import pandas as pd
import pytest
from fake_records import make_record, many_records
from fake_results import make_run

import fgbench
from fgbench.analysis.claims.claims import load_claims
from fgbench.analysis.records import Results
from fgbench.errors import ConfigError
from fgbench.plotting.style import trainer_hue
from fgbench.report import build
from fgbench.report.build import build_report, render
from fgbench.storage.run_directory import RunDirectory


def page_of(records, command):
    """The page about some runs."""
    return render(Results(list(records)), command)


EVIL = "</script></svg><script>alert('x')</script><img src=x onerror=alert(1)>"
VOID = {"meta", "link", "br", "input", "img", "hr"}


class Page(HTMLParser):
    """Elements and texts of a page; fails where tags are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def attributes(self, name, tag=None):
        return [attrs[name] for each, attrs in self.elements if name in attrs and tag in (None, each)]

    @property
    def text(self):
        shown = [text for tag, text in self.texts if tag not in ("script", "style")]
        return " ".join(" ".join(shown).split())


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes most of the time, and most tests look at something else."""
    monkeypatch.setattr(build, "draw_charts", lambda series, prefix: [])


def accurate(trainer, seed, accuracy, **more):
    given = {"test_accuracy": accuracy, "val_accuracy": accuracy, "train_loss": 0.5, "peak_memory_mib": 60.0}
    return make_record(trainer, seed, **given | more)


def three_seeds():
    noise = (0.0, 0.004, -0.003)
    better = [accurate("backprop", seed, 0.87 + noise[seed], epoch_time_s=4.0) for seed in range(3)]
    times = (2.0, 2.02, 1.98)
    return [
        *better,
        *(
            accurate(
                "forward-gradient", seed, 0.70 - noise[seed], epoch_time_s=times[seed], peak_memory_mib=90.0
            )
            for seed in range(3)
        ),
    ]


def test_the_page_needs_nothing_but_itself(tmp_path):
    for trainer in ("backprop", "forward-gradient"):
        make_run(tmp_path, trainer)
    page = Page(build_report(tmp_path, tmp_path / "out" / "report.html").read_text())
    assert not page.attributes("src")
    outside = [href for href in page.attributes("href") if not href.startswith(("#", "data:"))]
    assert outside == []
    [policy] = [content for content in page.attributes("content") if "default-src" in content]
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique_and_links_lead_somewhere():
    page = Page(page_of(three_seeds(), "fgbench report results"))
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    targets = {href[1:] for href in page.attributes("href") if href.startswith("#")}
    targets |= set(page.attributes("aria-controls"))
    assert targets <= set(ids)


def test_the_answer_comes_first_with_seeds_and_interval(no_figures):
    page = Page(page_of(three_seeds(), ""))
    text = page.text
    first = "Forward-gradient against backprop, on 1 task: less accurate in 1 of 1 (−17.1), faster in 1 of 1"
    assert text.index("without a backward pass?") < text.index(first) < text.index("Test accuracy is")
    assert "Test accuracy is 70.0 % against 87.0 %: 17.1 points less (95 % interval" in text
    assert "Time per epoch is 2 s against 4 s: 2 s less" in text
    assert "Peak memory is 90 MiB against 60 MiB: 30 MiB more (3 seeds)." in text
    assert {"−17.1", "×0.50", "×1.50"} <= {word.strip() for word in text.split()}


def test_a_time_that_other_work_disturbed_is_in_no_tile_and_is_starred_in_the_table(no_figures):
    records = three_seeds()
    for run in records:
        run.metrics["timing_note"] = "other processes kept 1.0 of 2 CPU cores busy"
    words = Page(page_of(records, "")).text.split()
    assert "×0.50" not in words
    assert "×1.50" in words, "memory is compared as before"
    assert words.count("*") > len(records), "one for every run, and what it means"


def test_the_best_and_the_plain_form_of_a_trainer_both_have_an_answer(no_figures):
    best = [
        accurate("forward-gradient", seed, 0.84 + 0.001 * seed, trainer_options={"structure": "rank1"})
        for seed in range(3)
    ]
    lucky = accurate("forward-gradient", 0, 0.99, trainer_options={"tangents": 8})
    text = Page(page_of([*three_seeds(), *best, lucky], "")).text
    assert "Test accuracy is 84.1 % against" in text
    assert "Test accuracy is 70.0 % against" in text
    assert "Test accuracy is 99.0 % against" not in text  # one seed does not displace three
    assert "on 1 task: less accurate in 1 of 1 (−2.9)" in text


def test_one_seed_makes_no_claim(no_figures):
    text = Page(page_of([run for run in three_seeds() if run.seed == 0], "")).text
    assert "nothing that the seeds at hand can show" in text
    assert "Not enough seeds: one says nothing about the next." in text
    assert "▼ worse" not in text


def test_a_difference_within_the_noise_is_not_claimed(no_figures):
    wild = [accurate("forward-gradient", seed, (0.9, 0.8, 0.88)[seed]) for seed in range(3)]
    text = Page(page_of([*three_seeds()[:3], *wild], "")).text
    assert re.search(r"Not enough seeds to call that a difference: about \d+ would be needed\.", text)


def test_a_trainer_that_diverged_is_said_to_have(no_figures):
    lost = [make_record("forward-gradient", seed, state="diverged") for seed in range(3)]
    text = Page(page_of([*three_seeds()[:3], *lost], "")).text
    assert "Test accuracy cannot be compared: diverged: 3 of 3" in text


def test_without_a_baseline_there_is_a_page_but_no_answer(no_figures):
    text = Page(page_of([accurate("zeroth-order", 0, 0.5)], "")).text
    assert "Nothing can be compared yet" in text
    assert "zeroth-order" in text


def test_every_run_has_its_config_environment_and_curves(no_figures):
    page = Page(page_of(three_seeds(), ""))
    bodies = [attrs for tag, attrs in page.elements if tag == "tbody" and "data-trainer" in attrs]
    assert [body["data-trainer"] for body in bodies] == ["backprop"] * 3 + ["forward-gradient"] * 3
    configs = [text for tag, text in page.texts if tag == "pre" and "optimizer:" in text]
    assert len(configs) == 6
    assert page.attributes("href", "a").count("#env1") == 6
    assert page.attributes("class", "svg").count("curve") == 6 * 3
    assert page.attributes("class", "svg").count("spark") == 6 * 2


def test_runs_from_different_machines_have_environments_of_their_own(no_figures):
    other = [accurate("forward-gradient", seed, 0.7, env={"cpu": "Another CPU"}) for seed in range(3)]
    page = Page(page_of([*three_seeds()[:3], *other], ""))
    assert page.attributes("href", "a").count("#env2") == 3
    assert "Environments differ: cpu" in page.text


def test_figures_are_those_of_the_study_in_the_trainers_colours():
    html = page_of(three_seeds(), "")
    labels = set(Page(html).attributes("aria-label", "svg"))
    assert {"Test accuracy", "Peak memory", "Training loss", "Training time per epoch"} <= labels
    for trainer in ("backprop", "forward-gradient"):
        colour = trainer_hue(trainer).lstrip("#").lower()
        assert f"stroke: var(--c{colour})" in html
        assert f"--c{colour}:#{colour}" in html


def csv_files(html):
    """The CSV files that a page holds, by the name they are saved under."""
    links = [attrs for tag, attrs in Page(html).elements if tag == "a" and "download" in attrs]
    files = {}
    for link in links:
        head, _, text = link["href"].partition(",")
        assert head == "data:text/csv;charset=utf-8"
        files[link["download"]] = pd.read_csv(io.StringIO(unquote(text)))
    return files


def test_every_figure_has_the_numbers_it_is_drawn_from(tmp_path):
    for seed in range(2):
        make_run(tmp_path, seed=seed)
        make_run(tmp_path, "forward-gradient", seed=seed, cells={"gradient_cosine": 0.1})
    files = csv_files(build_report(tmp_path, tmp_path / "report.html").read_text())
    assert set(files) == {
        "fc_fashion-mnist-mini-panels-epochs.csv",
        "fc_fashion-mnist-mini-panels-runs.csv",
        "fc_fashion-mnist-mini-time-epochs.csv",
        "fc_fashion-mnist-mini-tradeoff-runs.csv",
        "fc_fashion-mnist-mini-cosine-epochs.csv",
    }
    runs, summaries = fgbench.read_runs(tmp_path), fgbench.read_summaries(tmp_path)
    for name, key, columns in (
        ("panels-epochs", ["label", "seed", "epoch"], ["test_accuracy", "train_loss"]),
        ("time-epochs", ["label", "seed", "epoch"], ["test_accuracy", "train_loss"]),
        ("panels-runs", ["label", "seed"], ["peak_memory_mib", "epoch_time_s"]),
        ("tradeoff-runs", ["label", "seed"], ["peak_memory_mib", "test_accuracy"]),
    ):
        expected = (runs if "epoch" in key else summaries).set_index(key).sort_index()[columns]
        found = files[f"fc_fashion-mnist-mini-{name}.csv"].set_index(key).sort_index()[columns]
        pd.testing.assert_frame_equal(found, expected, rtol=1e-12)
    times = files["fc_fashion-mnist-mini-time-epochs.csv"].groupby(["label", "seed"])["training_time_s"].max()
    assert times.to_numpy() == pytest.approx(runs.groupby(["label", "seed"])["epoch_time_s"].sum().to_numpy())


def test_swept_settings_are_among_the_numbers_of_their_figure():
    records = [accurate("backprop", 0, 0.8 + lr, optimizer__lr=lr) for lr in (0.01, 0.02)]
    [table] = [table for name, table in csv_files(page_of(records, "")).items() if "-lr-" in name]
    assert table["optimizer.lr"].tolist() == [0.01, 0.02]
    assert table["test_accuracy"].tolist() == [0.8 + 0.01, 0.8 + 0.02]


def test_classes_are_summed_over_seeds_and_shown_in_percent(tmp_path, no_figures):
    for seed, counts in enumerate([[[3, 1], [0, 4]], [[2, 2], [1, 3]]]):
        RunDirectory(make_run(tmp_path, seed=seed)).write_confusions(["cat", "<b>dog"], counts)
    lost = make_run(tmp_path, "forward-gradient", state="diverged", planned=5)
    RunDirectory(lost).write_confusions(["cat", "<b>dog"], [[4, 0], [4, 0]])
    page = Page(build_report(tmp_path, tmp_path / "report.html").read_text())
    assert page.attributes("class", "table").count("matrix") == 1
    assert "backprop seeds 0, 1" in page.text
    assert "class cat <b>dog cat 62 38 <b>dog 12 88" in page.text


def test_runs_of_different_classes_have_no_common_matrix(tmp_path, no_figures):
    for seed, names in enumerate([["cat", "dog"], ["dog", "cat"]]):
        RunDirectory(make_run(tmp_path, seed=seed)).write_confusions(names, [[3, 1], [0, 4]])
    page = Page(build_report(tmp_path, tmp_path / "report.html").read_text())
    assert "matrix" not in page.attributes("class", "table")


def test_numbers_in_labels_are_not_shortened():
    records = [accurate("backprop", 0, 0.8, optimizer__lr=lr) for lr in (0.00123, 0.00456)]
    assert "lr=0.00123" in re.sub(r"<pre>.*?</pre>", "", page_of(records, ""), flags=re.DOTALL)


def test_every_claim_is_audited_with_verdict_and_rule(no_figures):
    text = Page(page_of(three_seeds(), "")).text
    for claim in load_claims():
        assert claim.statement in text
        assert " ".join(claim.rule_text.split()) in text


def test_the_page_says_how_to_regenerate_it(tmp_path, no_figures):
    for seed in range(2):
        make_run(tmp_path, seed=seed)
    text = Page(build_report(tmp_path, tmp_path / "a page.html").read_text()).text
    assert f"fgbench report {tmp_path} --out '{tmp_path}/a page.html'" in text
    assert re.search(r"fgbench run \S+/config\.yaml --seeds 0,1 --results again", text)


def test_hostile_text_in_results_runs_no_code_on_the_page(tmp_path):
    hostile = f"{EVIL}\" onload='alert(2)' x=\""
    make_run(tmp_path, f"lab.rules:{EVIL}", model=hostile, dataset=hostile, name="run")
    make_run(
        *(tmp_path, f"lab.rules:{EVIL}"),
        model=hostile,
        dataset=hostile,
        name="other",
        options={EVIL: hostile},
        state="failed",
        status={"reason": EVIL},
        cells={"timing_note": EVIL, "memory_source": EVIL},
    )
    for path in tmp_path.glob("*/*/env.json"):
        path.write_text(json.dumps({"cpu": EVIL, "command": [EVIL], "git_commit": "<script>"}))
    page = Page(build_report(tmp_path, tmp_path / "report.html").read_text())
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert "img" not in [tag for tag, _ in page.elements]
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert page.text.count("alert('x')") > 10


def test_the_same_runs_give_the_same_page():
    assert page_of(three_seeds(), "") == page_of(three_seeds(), "")


def test_unfinished_and_empty_runs_are_shown_not_hidden(tmp_path):
    make_run(tmp_path, epochs=0, state="running")
    make_run(tmp_path, "forward-gradient", epochs=2, state="failed", status={"reason": "disk full"})
    page = Page(build_report(tmp_path, tmp_path / "report.html").read_text())
    assert "failed: disk full" in page.text
    assert "No epoch finished." in page.text


def test_a_run_that_cannot_be_read_is_named_on_the_page(tmp_path, no_figures):
    make_run(tmp_path)
    lost = make_run(tmp_path, "forward-gradient")
    (lost / "config.yaml").unlink()
    page = Page(build_report(tmp_path, tmp_path / "report.html").read_text())
    assert f"Left out: {lost}: has no config.yaml" in page.text


@pytest.mark.nightly
def test_500_runs_fit_in_a_few_megabytes():
    html = page_of(many_records(), "")
    assert len(html) < 6e6
    page = Page(html)
    assert len([1 for tag, attrs in page.elements if tag == "tbody" and "data-state" in attrs]) == 500
    assert "88 more configurations are in the tables" in page.text


def test_a_place_that_is_no_page_is_refused_before_anything_is_read(tmp_path):
    for out in (tmp_path, tmp_path / "report.pdf"):
        with pytest.raises(ConfigError, match=r"ends in \.html"):
            build_report(tmp_path / "nowhere", out)


def test_the_command_writes_the_page_without_torch(tmp_path):
    make_run(tmp_path)
    code = (
        "import sys; from fgbench.cli.app import main; sys.argv[1:] = ['report', '.', '--out', 'a.html']\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "a.html"), done.stderr
    assert (tmp_path / "a.html").stat().st_size > 10_000


def test_each_trainer_is_said_to_beat_a_frozen_body_or_not_and_what_it_uses_backwards(no_figures):
    page = Page(page_of(three_seeds(), "fgbench report results"))
    assert "Beats a frozen body: no frozen run with its settings here." in page.text
    assert "Uses backwards: nothing." in page.text
    frozen = [accurate("frozen", seed, 0.6 + 0.001 * seed) for seed in range(3)]
    page = Page(page_of([*three_seeds(), *frozen], "fgbench report results"))
    assert page.text.count("Beats a frozen body: yes (+0.0987).") == 1  # not said of frozen itself
    assert "does it beat frozen" in page.text
