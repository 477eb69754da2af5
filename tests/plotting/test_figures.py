"""The four panels: what is drawn, for whom it is readable, and where it is written."""

import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from fake_results import make_run
from matplotlib.colors import to_rgb

from fgbench.analysis.records import load_results
from fgbench.analysis.series import group_series
from fgbench.errors import ConfigError
from fgbench.plotting import figures as plotting
from fgbench.plotting.figures import four_panels, plot_results
from fgbench.plotting.panels import _shorten
from fgbench.plotting.style import trainer_hue
from fgbench.registry import TRAINERS


def draw(results):
    [series] = group_series(load_results(results)).values()
    return four_panels("title", series)


def legend_texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_every_dataset_and_model_gets_png_and_svg(tmp_path):
    make_run(tmp_path)
    make_run(tmp_path, model="cnn", dataset="my.data:load")
    written = plot_results(tmp_path)
    names = ["fc_fashion-mnist-mini", "cnn_my.data-load"]
    assert {path.name for path in written} == {
        f"{name}.{ending}" for name in names for ending in ("png", "svg")
    }
    for path in written:
        assert path.parent == tmp_path
        if path.suffix == ".svg":
            ElementTree.parse(path)
        else:
            assert path.read_bytes().startswith(b"\x89PNG")


def test_the_same_runs_give_the_same_bytes(tmp_path):
    make_run(tmp_path)
    [first] = plot_results(tmp_path, tmp_path / "a.svg")
    [second] = plot_results(tmp_path, tmp_path / "b.svg")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("out", "models", "expected"),
    [
        ("fig.png", ["fc"], ["fig.png"]),
        ("new/fig.pdf", ["fc"], ["fig.pdf"]),
        ("fig", ["fc"], ["fig.png", "fig.svg"]),
        ("fig.svg", ["cnn", "fc"], ["fig-cnn_fashion-mnist-mini.svg", "fig-fc_fashion-mnist-mini.svg"]),
    ],
)
def test_out_chooses_name_and_format(tmp_path, monkeypatch, out, models, expected):
    saved = []
    monkeypatch.setattr(plotting, "save_figure", lambda figure, path: saved.append(path))
    for model in models:
        make_run(tmp_path, model=model)
    assert [path.name for path in plot_results(tmp_path, tmp_path / out)] == expected
    assert [path.name for path in saved] == expected


def test_out_may_be_a_folder(tmp_path):
    make_run(tmp_path / "results")
    (tmp_path / "figures").mkdir()
    written = plot_results(tmp_path / "results", tmp_path / "figures")
    assert written == [tmp_path / "figures" / f"fc_fashion-mnist-mini.{ending}" for ending in ("png", "svg")]


def test_another_format_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match="png, svg, pdf, got 'docx'"):
        plot_results(tmp_path / "nowhere", "fig.docx")


def test_nothing_to_plot_is_one_clear_line(tmp_path):
    with pytest.raises(ConfigError, match="no runs in"):
        plot_results(tmp_path)
    make_run(tmp_path, epochs=0, state="running")
    with pytest.raises(ConfigError, match="finished an epoch"):
        plot_results(tmp_path)


def test_a_curve_is_the_mean_over_seeds_with_a_band_from_smallest_to_largest(tmp_path):
    for seed in range(3):
        make_run(tmp_path, seed=seed)
    accuracy = draw(tmp_path).axes[0]
    curves = np.array([record.metrics["test_accuracy"] for record in load_results(tmp_path)])
    assert np.allclose(accuracy.lines[0].get_ydata(), curves.mean(axis=0))
    band = accuracy.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (curves.min(), curves.max())


def test_the_legend_tells_the_number_of_seeds_and_what_became_of_the_others(tmp_path):
    for seed in range(2):
        make_run(tmp_path, seed=seed, planned=5)
    make_run(tmp_path, seed=2, planned=5, epochs=2, state="diverged")
    make_run(tmp_path, seed=3, planned=5, epochs=2, state="interrupted")
    texts = legend_texts(draw(tmp_path))
    assert texts == ["backprop (n = 3, 1 diverged, 1 more not finished)", "diverged", "not finished"]


def test_the_mean_stops_where_a_seed_diverged(tmp_path):
    make_run(tmp_path, seed=0, planned=5)
    make_run(tmp_path, seed=1, planned=5, epochs=3, state="diverged")
    loss = draw(tmp_path).axes[2]
    assert list(loss.lines[0].get_xdata()) == [1, 2]


def test_a_diverged_run_does_not_spoil_the_scale_for_the_others(tmp_path):
    make_run(tmp_path, "backprop")
    make_run(tmp_path, "forward-gradient", state="diverged", cells={"train_loss": 1e30})
    assert draw(tmp_path).axes[2].get_ylim()[1] < 10


def test_axes_say_their_units(tmp_path):
    make_run(tmp_path)
    accuracy, memory, loss, time = draw(tmp_path).axes
    assert (accuracy.get_xlabel(), loss.get_xlabel()) == ("epoch", "epoch")
    assert memory.get_xlabel() == "MiB (cpu-profiler)"
    assert time.get_xlabel().startswith("s,")


def test_memory_that_was_not_measured_is_said_not_drawn_as_zero(tmp_path):
    make_run(tmp_path, cells={"peak_memory_mib": None, "memory_source": None})
    texts = [text.get_text() for text in draw(tmp_path).axes[1].texts]
    assert texts == ["backprop", "not measured"]


def test_every_trainer_keeps_one_hue_and_no_two_share_it(tmp_path):
    hues = {trainer_hue(trainer) for trainer in TRAINERS}
    assert len(hues) == len(TRAINERS)
    make_run(tmp_path, "zeroth-order")
    alone = draw(tmp_path).axes[0].lines[0].get_color()
    make_run(tmp_path, "backprop")
    make_run(tmp_path, "lab.rules:Mine")
    blue, light_blue, own = (line.get_color() for line in draw(tmp_path).axes[0].lines)
    assert to_rgb(alone) == to_rgb(light_blue) == to_rgb(trainer_hue("zeroth-order"))
    assert to_rgb(blue) == to_rgb(trainer_hue("backprop"))
    assert own not in hues


def test_variants_of_a_trainer_look_different(tmp_path):
    for tangents in range(1, 7):
        make_run(tmp_path, "forward-gradient", options={"tangents": tangents}, epochs=2)
    lines = draw(tmp_path).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 6
    assert len({line.get_color() for line in lines}) == 6


@pytest.mark.parametrize("case", ["one epoch", "ten series", "long labels", "unfinished"])
def test_no_text_is_cut_off_or_overlaps_another(tmp_path, case):
    if case == "one epoch":
        make_run(tmp_path, epochs=1)
    elif case == "unfinished":
        make_run(tmp_path, "backprop", epochs=3, state="running")
        make_run(tmp_path, "zeroth-order", epochs=1, state="diverged")
    else:
        options = {"a_key": "a long value", "b_key": "another long value"} if case == "long labels" else {}
        for trainer in [*TRAINERS, "lab.rules:Mine"]:
            make_run(tmp_path, trainer, epochs=3, cells={"timing_note": "busy"})
            make_run(tmp_path, trainer, epochs=3, options={"tangents": 4, **options}, optimizer={"lr": 1e-5})
    figure = draw(tmp_path)
    figure.draw_without_rendering()
    texts = [
        text for axes in figure.axes for text in [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label]
    ]
    texts += [*figure.legends[0].get_texts(), figure.legends[0].get_title()]
    boxes = [text.get_window_extent() for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        inside = (
            figure.bbox.x0 <= box.x0
            and box.x1 <= figure.bbox.x1
            and figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1
        )
        assert inside, text.get_text()
    for index, box in enumerate(boxes):
        for other, text in zip(boxes[:index], texts, strict=False):
            overlap = box.padded(-1).overlaps(other.padded(-1))
            assert not overlap, f"{texts[index].get_text()!r} over {text.get_text()!r}"


def test_plotting_imports_no_torch():
    code = "import sys, fgbench.plotting.figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_tells_one_bar_from_another_is_not_cut_from_its_name():
    trainers = [
        "activity-forward-gradient, guess=normal",
        "activity-forward-gradient, exact_output, guess=normal",
    ]
    trainers += ["backprop", "frozen", "local-forward-gradient"]
    models = ["channels=256, groups=1", "channels=512, groups=16"]
    labels = [f"{trainer}, {model}" for trainer in trainers for model in models]
    short = _shorten(labels)
    assert len(set(short)) == len(labels)
    assert max(map(len, short)) <= 58
    assert short[2] == "activity-forward-gradient, exact_output, groups=1, …"
    assert short[4:] == labels[4:]
