"""Charts beyond the four panels: what they show, what they need, and how they are written."""

import json
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from fake_results import make_run
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.path import Path as LinePath
from matplotlib.text import Text

from fgbench.analysis.readings import read
from fgbench.analysis.records import load_results
from fgbench.analysis.series import group_series
from fgbench.cli.results import FigureStyle
from fgbench.errors import ConfigError
from fgbench.plotting.charts import name_points
from fgbench.plotting.figures import KINDS, compose, plot_results
from fgbench.plotting.style import SHEETS, trainer_hue
from fgbench.plotting.tuning import _draw, plot_tuning
from fgbench.storage.run_directory import RunDirectory


def draw(results, kind, style="screen"):
    [series] = group_series(load_results(results)).values()
    return compose(KINDS[kind], "title", KINDS[kind].choose(series), SHEETS[style])


def test_an_unknown_kind_of_figure_is_answered_with_those_there_are(tmp_path):
    make_run(tmp_path)
    with pytest.raises(ConfigError, match=r"--kind: got pie, expected one of panels, time, .*, all"):
        plot_results(tmp_path, kinds=["pie"])


def test_the_command_line_offers_every_style():
    assert {style.value for style in FigureStyle} == set(SHEETS)


def test_loss_over_time_ends_at_the_time_spent_training(tmp_path):
    for seed in range(3):
        make_run(tmp_path, seed=seed, cells={"elapsed_s": 1e6})
    loss = draw(tmp_path, "time").axes[0]
    times = [record.metrics["epoch_time_s"].sum() for record in load_results(tmp_path)]
    assert loss.lines[0].get_xdata()[-1] == pytest.approx(np.mean(times))
    assert loss.get_xlabel() == "training time, s"


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize(
    ("epochs", "state", "common"), [(3, "diverged", 2), (1, "diverged", 0), (2, "finished", 2)]
)
def test_one_short_run_does_not_cut_the_others_over_time(tmp_path, column, epochs, state, common):
    same = {"planned": 5, "early_stopping": {"patience": 1}}
    for seed in range(2):
        make_run(tmp_path, seed=seed, **same)
    make_run(tmp_path, seed=2, epochs=epochs, state=state, **same)
    records = load_results(tmp_path)
    figure = draw(tmp_path, "time")
    mean, *thin = [line for line in figure.axes[column].lines if line.get_marker() != "X"]
    assert len(mean.get_xdata()) == common
    times = [record.metrics["epoch_time_s"].sum() for record in records if record.seed < 2]
    assert [line.get_xdata()[-1] for line in thin] == pytest.approx(times)
    crosses = [line for line in figure.axes[column].lines if line.get_marker() == "X"]
    assert len(crosses) == (state == "diverged")
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert ("diverged" in legend) == (state == "diverged")


def test_long_trainings_are_told_in_minutes_or_hours(tmp_path):
    make_run(tmp_path, cells={"epoch_time_s": 3600.0})
    assert draw(tmp_path, "time").axes[0].get_xlabel() == "training time, h"
    assert draw(tmp_path, "tradeoff").axes[0].lines[0].get_xdata()[0] == pytest.approx(5.0)


@pytest.mark.parametrize(("kind", "axes"), [("time", 0), ("tradeoff", 0), ("cost", 1)])
@pytest.mark.parametrize("note", [None, "other processes kept 1.0 of 2 CPU cores busy"])
def test_an_axis_of_times_tells_where_other_work_disturbed_them(tmp_path, kind, axes, note):
    for trainer in ("backprop", "frozen"):
        cells = {"timing_note": note} if note else {}
        make_run(tmp_path, trainer, cells=cells, summary={"forward_passes_per_step": 1.0})
    label = draw(tmp_path, kind).axes[axes].get_xlabel()
    assert label.startswith("training time, ")
    assert label.endswith(", beside other work") == bool(note)


@pytest.mark.parametrize("cpu", [None, "Another CPU"])
def test_axes_of_costs_tell_that_machines_differ(tmp_path, cpu):
    make_run(tmp_path, "backprop", summary={"forward_passes_per_step": 1.0})
    other = make_run(tmp_path, "frozen", summary={"forward_passes_per_step": 1.0})
    if cpu:
        env = json.loads((other / "env.json").read_text())
        (other / "env.json").write_text(json.dumps(env | {"cpu": cpu}))
    for kind, place in (("time", 0), ("tradeoff", 0), ("cost", 1)):
        label = draw(tmp_path, kind).axes[place].get_xlabel()
        assert label.endswith(", in different environments") == bool(cpu)
    _, memory, _, times = draw(tmp_path, "panels").axes
    for axes in (memory, times):
        assert axes.get_xlabel().endswith("in different environments: do not compare") == bool(cpu)


def test_a_point_has_its_seeds_mean_and_whiskers_from_smallest_to_largest(tmp_path):
    for seed in range(3):
        make_run(tmp_path, seed=seed)
    accuracy = [read(record, "test_accuracy") for record in load_results(tmp_path)]
    time, memory = draw(tmp_path, "tradeoff").axes
    [bars] = time.containers
    assert bars.lines[0].get_ydata()[0] == pytest.approx(np.mean(accuracy))
    whisker = bars.lines[2][1].get_segments()[0][:, 1]
    assert whisker == pytest.approx([min(accuracy), max(accuracy)])
    assert memory.containers[0].lines[0].get_xdata()[0] == pytest.approx(62.0)


def test_a_diverged_seed_is_marked_and_no_point_is_drawn_for_the_survivors(tmp_path):
    make_run(tmp_path, seed=0, planned=5)
    make_run(tmp_path, seed=1, planned=5, epochs=3, state="diverged")
    figure = draw(tmp_path, "tradeoff")
    assert not figure.axes[0].containers
    assert "diverged" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_points_are_named_where_there_is_room(tmp_path):
    for trainer in ("backprop", "forward-gradient", "zeroth-order"):
        make_run(tmp_path, trainer)
    names = {text.get_text() for text in draw(tmp_path, "tradeoff").axes[1].texts}
    assert names == {"backprop", "forward-gradient", "zeroth-order"}


@pytest.mark.parametrize("seed", [2, 3, 8])
def test_a_line_to_a_number_that_stands_away_crosses_no_other_number(seed):
    axes = Figure((6, 3)).subplots()
    series = [SimpleNamespace(label=f"trainer {number}, option=value") for number in range(12)]
    places = np.random.default_rng(seed).uniform(0.47, 0.53, (12, 2))
    for each, (x, y) in zip(series, places, strict=True):
        axes.errorbar(x, y, 0.005, 0.005, fmt="o").set_label(each.label)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    assert name_points(axes, series, [], numbered=True)
    assert {text.get_text() for text in axes.texts} == {str(place) for place in range(1, 13)}
    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    boxes = {text: Text.get_window_extent(text, renderer) for text in axes.texts}
    away = [text for text in axes.texts if text.arrow_patch]
    assert away
    for text in away:
        line = LinePath([(boxes[text].p0 + boxes[text].p1) / 2, axes.transData.transform(text.xy)])
        assert not any(line.intersects_bbox(box) for other, box in boxes.items() if other is not text)


def test_a_negative_cosine_is_inside_the_axes(tmp_path):
    make_run(tmp_path, "forward-gradient", cells={"gradient_cosine": -0.2, "gradient_relative_error": 2.0})
    low, high = draw(tmp_path, "cosine").axes[0].get_ylim()
    assert low < -0.2 < high


def test_the_noise_of_seeds_is_averaged_while_all_of_them_have_one(tmp_path):
    for seed, epochs in ((0, 3), (1, 2)):
        folder = make_run(tmp_path, seed=seed, epochs=3)
        for epoch in range(1, epochs + 1):
            row = {"layer": "1", "noise": 10.0 * epoch + seed, "cosine": 0.1, "gradient_norm": 1.0}
            RunDirectory(folder).write_layers(epoch, [row])
    noise, _ = draw(tmp_path, "noise").axes
    assert [list(line.get_ydata()) for line in noise.lines] == [[10.5, 20.5]]


def test_noise_is_drawn_for_every_layer_that_was_compared(tmp_path):
    make_run(tmp_path, "backprop")
    folder = make_run(tmp_path, "forward-gradient")
    for epoch in (1, 2):
        rows = [
            {"layer": layer, "noise": 10.0 * epoch, "cosine": 0.1, "gradient_norm": 1.0}
            for layer in ("1", "3")
        ]
        RunDirectory(folder).write_layers(epoch, rows)
    noise, cosine = draw(tmp_path, "noise").axes
    assert [list(line.get_ydata()) for line in noise.lines] == [[10, 20]] * 2
    assert [list(line.get_ydata()) for line in cosine.lines] == [[0.1, 0.1]] * 2
    assert [text.get_text() for text in noise.texts] == ["1", "3"]
    assert noise.get_yscale() == "log"


@pytest.mark.parametrize(("kind", "key"), [("lr", "optimizer.lr"), ("depth", "model.layers")])
def test_what_was_swept_is_one_line_per_trainer(tmp_path, kind, key):
    block, name = key.split(".")
    for trainer in ("backprop", "forward-gradient"):
        for value in (4, 1, 2):
            for seed in range(2):
                make_run(tmp_path, trainer, seed=seed, **{block: {name: value}})
    make_run(tmp_path, "zeroth-order", **{block: {name: 1}})
    figure = draw(tmp_path, kind)
    lines = figure.axes[0].lines
    assert [list(line.get_xdata()) for line in lines] == [[1, 2, 4]] * 2
    assert [line.get_color().upper() for line in lines] == [
        trainer_hue("backprop"),
        trainer_hue("forward-gradient"),
    ]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["backprop", "forward-gradient"]


def test_a_learning_rate_that_diverged_is_marked(tmp_path):
    for lr in (1e-4, 1e-3):
        make_run(tmp_path, optimizer={"lr": lr}, planned=5)
    make_run(tmp_path, optimizer={"lr": 1.0}, planned=5, epochs=2, state="diverged")
    curve, cross = draw(tmp_path, "lr").axes[0].lines
    assert (list(curve.get_xdata()), list(cross.get_xdata())) == ([1e-4, 1e-3], [1.0])


def test_all_draws_what_there_is_something_to_show_of(tmp_path):
    make_run(tmp_path)
    written = plot_results(tmp_path, tmp_path / "fig.svg", None)
    assert [path.name for path in written] == ["fig.svg", "fig-time.svg", "fig-tradeoff.svg"]


@pytest.mark.parametrize(
    ("kind", "told"),
    [("cosine", "diagnostics.every"), ("lr", "optimizer.lr"), ("cost", "forward_passes_per_step")],
)
def test_a_kind_without_data_says_what_is_missing(tmp_path, kind, told):
    make_run(tmp_path)
    with pytest.raises(ConfigError, match=told):
        plot_results(tmp_path, None, [kind])


def test_paper_style_is_vector_a_column_wide_and_untitled(tmp_path):
    make_run(tmp_path)
    assert [path.suffix for path in plot_results(tmp_path, None, ["tradeoff"], "paper")] == [".pdf", ".svg"]
    figure = draw(tmp_path, "panels", "paper")
    assert figure.get_figwidth() == 3.4
    assert figure.get_suptitle() == ""


def test_dollars_in_names_are_not_read_as_formulas(tmp_path):
    make_run(tmp_path, "lab.rules:$\\frac$")
    plot_results(tmp_path, tmp_path / "fig.svg", None)
    assert r"lab.rules:$\frac$" in (tmp_path / "fig.svg").read_text()


def test_cost_shows_every_trainer_between_the_lines_of_backprop_and_frozen(tmp_path):
    passes = {"backprop": 3.0, "frozen": 1.0, "zeroth-order": 2.0, "local-loss": 2.5, "forward-gradient": 3.0}
    accuracy = {
        "backprop": 0.9,
        "frozen": 0.6,
        "zeroth-order": 0.5,
        "local-loss": 0.8,
        "forward-gradient": 0.7,
    }
    for trainer, cost in passes.items():
        for seed in range(4):
            summary = {"forward_passes_per_step": cost}
            if (trainer, seed) != ("forward-gradient", 0):
                at = accuracy[trainer] + 0.001 * seed * (1 if trainer == "frozen" else -1)
                make_run(tmp_path, trainer, seed=seed, cells={"test_accuracy": at}, summary=summary)
    make_run(tmp_path, "guided-forward-gradient")  # whose passes were not counted
    figure = draw(tmp_path, "cost")
    by_passes, by_time = figure.axes
    points = {bars.get_label(): bars.lines[0] for bars in by_passes.containers}
    assert set(points) == set(passes)
    assert {name: line.get_xdata()[0] for name, line in points.items()} == {
        name: pytest.approx(5 * cost) for name, cost in passes.items()
    }
    hollow = {name for name, line in points.items() if line.get_markerfacecolor() == "white"}
    assert hollow == {"zeroth-order"}, (
        "local-loss and forward-gradient beat frozen, backprop and it are lines"
    )
    across = [line.get_ydata()[0] for line in by_passes.lines if line.get_gid() == "across"]
    assert sorted(across) == pytest.approx([0.6, 0.9], abs=0.002)
    for axes in (by_passes, by_time):
        assert {text.get_text() for text in axes.texts} == set(passes), "every point is named"
    assert "not shown to beat frozen" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_cost_mentions_the_control_only_where_one_was_run(tmp_path):
    for trainer in ("backprop", "forward-gradient"):
        for seed in range(3):
            make_run(tmp_path, trainer, seed=seed, summary={"forward_passes_per_step": 3.0})
    figure = draw(tmp_path, "cost")
    for axes in figure.axes:
        assert axes.get_title(loc="left").endswith("(dashed: backprop)")
        assert all(bars.lines[0].get_markerfacecolor() != "white" for bars in axes.containers)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["backprop (n = 3)", "forward-gradient (n = 3)"]
    assert "frozen" not in KINDS["cost"].title


def test_points_of_cost_have_numbers_where_a_name_does_not_fit(tmp_path):
    for trainer in ("backprop", "forward-gradient", "zeroth-order", "frozen"):
        cells = {"test_accuracy": 0.5, "epoch_time_s": 1.0}
        make_run(tmp_path, trainer, cells=cells, summary={"forward_passes_per_step": 3.0}, precision="bf16")
    figure = draw(tmp_path, "cost")
    for axes in figure.axes:
        assert {text.get_text() for text in axes.texts} == set("1234")
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [text[:3] for text in texts[:4]] == ["1  ", "2  ", "3  ", "4  "]


def test_many_points_of_cost_have_numbers_that_the_legend_begins_with(tmp_path):
    for lr in range(1, 11):
        make_run(tmp_path, optimizer={"lr": lr / 1000}, summary={"forward_passes_per_step": 3.0})
    figure = draw(tmp_path, "cost")
    for axes in figure.axes:
        assert {text.get_text() for text in axes.texts} == {str(place) for place in range(1, 11)}
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[0].startswith("1  backprop, lr=0.001")
    assert legend[9].startswith("10  backprop, lr=0.01")


@pytest.mark.parametrize(
    ("looks", "title"), [((), "task"), ((1,), "task: first 1 epochs (thin lines), then 2 or 3")]
)
def test_only_a_first_look_at_the_same_configuration_is_a_thin_line(looks, title):
    rows = [
        {
            "run": f"task, epochs={whole}",
            "trainer": "backprop",
            "key": "optimizer.lr",
            "value": value,
            "seed": 100,
            "state": "finished",
            "epochs": epochs,
            "chosen": (value, epochs) == (0.01, whole),
            "val_accuracy": 0.5,
        }
        for whole in (2, 3)
        for epochs in (*looks, whole)
        for value in (0.001, 0.01)
    ]
    axes = plt.figure().subplots()
    _draw(axes, "task", pd.DataFrame(rows))
    assert axes.get_title() == title
    thin = [line for line in axes.lines if line.get_linewidth() == 0.8 and len(line.get_xdata())]
    rings = [line for line in axes.lines if line.get_fillstyle() == "none" and len(line.get_xdata())]
    assert (len(thin), len(rings)) == (2 * len(looks), 2)


@pytest.mark.parametrize(("lines", "tasks"), [(1, 1), (7, 1), (15, 2)])
def test_the_legend_of_a_curve_of_tuning_is_not_cut(tmp_path, lines, tasks):
    rows = [
        {
            "run": f"fc on images {task}, backprop {line}",
            "task": f"fc on images {task}",
            "trainer": "backprop",
            "key": "optimizer.lr",
            "value": value,
            "seed": 100,
            "state": "finished",
            "epochs": 2,
            "chosen": value == 0.01,
            "val_accuracy": 0.5,
        }
        for task in range(tasks)
        for line in range(lines)
        for value in (0.001, 0.01)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "t_grid.csv", index=False)
    [picture, *_] = [path for path in plot_tuning(tmp_path / "t_grid.csv") if path.suffix == ".png"]
    border = plt.imread(picture)[-2:, :, :3]
    assert border.min() == 1.0, "nothing is drawn across the lower edge"
