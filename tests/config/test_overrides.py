"""Overrides: nothing a user wrote is dropped without a word, and paths mean what a shell takes them for."""

from pathlib import Path

import pytest

from fgbench.config.config import load_config
from fgbench.config.sweep import load_sweep
from fgbench.errors import ConfigError

FILE = """\
dataset: {name: fashion-mnist, limit: 500}
model: fc
trainer: {name: forward-gradient, guess: rademacher, structure: rank1, tangents: 4}
optimizer: {name: adam, lr: 0.01, weight_decay: 0.1, betas: [0.8, 0.9]}
"""


@pytest.fixture
def load(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(FILE)

    def load_with(*overrides):
        notes = []
        config = load_config(path, overrides, notes.append)
        return config, [note.replace(str(path), path.name) for note in notes]

    return load_with


@pytest.fixture
def sweep(tmp_path):
    def load_with(text, *overrides, seeds=None):
        path, notes = tmp_path / "many.yaml", []
        path.write_text(text)
        loaded = load_sweep(path, overrides, seeds, notes.append)
        return loaded.configs, [note.replace(str(path), path.name) for note in notes]

    return load_with


def test_a_bare_name_keeps_the_options_that_the_new_choice_has_and_says_what_it_drops(load):
    config, notes = load("optimizer=sgd")
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.weight_decay) == ("sgd", 0.01, 0.1)
    assert notes == ["-o optimizer=sgd drops optimizer.betas: [0.8, 0.9] (a.yaml:4)"]
    config, notes = load("dataset=mnist")
    assert (config.dataset.name, config.dataset.limit, notes) == ("mnist", 500, [])
    config, notes = load("trainer=activity-forward-gradient")
    assert (config.trainer.tangents, config.trainer.guess) == (4, "rademacher")
    assert notes == ["-o trainer=activity-forward-gradient drops trainer.structure: rank1 (a.yaml:3)"]


def test_an_option_whose_value_the_new_choice_does_not_allow_is_dropped_with_a_word(load):
    config, notes = load("trainer={name: guided-forward-gradient, guess: ntk}", "trainer=forward-gradient")
    assert config.trainer.guess == "normal"
    assert "-o trainer=forward-gradient drops trainer.guess: ntk" in notes[-1]


def test_the_name_that_is_there_already_changes_nothing(load):
    assert load("trainer=forward-gradient") == load()


def test_a_whole_block_takes_the_place_of_the_block_and_says_what_goes_with_it(load):
    config, notes = load("optimizer={name: sgd, lr: 0.5}")
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (0.5, 0.0)
    assert notes == [
        "-o optimizer={name: sgd, lr: 0.5} drops optimizer.weight_decay: 0.1 (a.yaml:4), "
        "optimizer.betas: [0.8, 0.9] (a.yaml:4)"
    ]


def test_the_order_of_overrides_does_not_matter(load):
    said = ["trainer.tangents=2", "trainer=zeroth-order", "optimizer.momentum=0.5", "optimizer=sgd"]
    forwards, backwards = load(*said), load(*reversed(said))
    assert forwards[0] == backwards[0]
    assert (forwards[0].trainer.tangents, forwards[0].optimizer.momentum) == (2, 0.5)
    assert sorted(forwards[1]) == sorted(backwards[1])


def test_of_two_values_for_one_key_the_last_wins_and_says_so(load):
    config, notes = load("optimizer.lr=0.1", "optimizer.lr=0.2")
    assert config.optimizer.lr == 0.2
    assert notes == ["-o optimizer.lr=0.2 replaces -o optimizer.lr=0.1"]
    assert load("optimizer.lr=0.2", "optimizer.lr=0.2")[1] == []


SWEEP = "base: {dataset: mnist, model: fc, trainer: backprop}\naxes:\n"


def test_an_override_of_an_axis_says_that_it_takes_its_place(sweep):
    text = SWEEP + "  optimizer.lr: [0.1, 0.01]\n  model.hidden: [8, 16]\n"
    assert len(sweep(text)[0]) == 4
    configs, notes = sweep(text, "optimizer.lr=0.5")
    assert [config.optimizer.lr for config in configs] == [0.5, 0.5]
    assert notes[:1] == ["-o optimizer.lr=0.5 replaces optimizer.lr: 0.1 (many.yaml:3)"]
    assert notes[-1] == "many.yaml: 4 combinations make 2 different runs"
    configs, notes = sweep(text, "optimizer={name: sgd}")
    assert len(configs) == 2
    assert "-o optimizer={name: sgd} drops optimizer.lr: 0.1 (many.yaml:3)" in notes
    assert "-o seed=3 replaces seed: 0 (many.yaml:5)" in sweep(text + "seeds: [0, 1]", "seed=3")[1]


def test_an_override_of_an_axis_keeps_no_option_of_its_values(sweep):
    values = "[zeroth-order, {name: forward-gradient, guess: rademacher, tangents: 4}]"
    configs, _ = sweep(SWEEP + f"  trainer: {values}\n", "trainer=zeroth-order")
    (config,) = configs
    assert (config.trainer.name, config.trainer.guess, config.trainer.tangents) == (
        "zeroth-order",
        "normal",
        1,
    )


def test_an_axis_of_names_keeps_what_the_base_says_of_the_block(sweep):
    base = SWEEP.replace("trainer: backprop", "trainer: backprop, optimizer: {name: adam, lr: 0.5, eps: 0.1}")
    configs, notes = sweep(base + "  optimizer: [adam, sgd]\n")
    assert [(config.optimizer.name, config.optimizer.lr) for config in configs] == [
        ("adam", 0.5),
        ("sgd", 0.5),
    ]
    assert notes == ["optimizer: sgd (many.yaml:3) drops optimizer.eps: 0.1 (many.yaml:1)"]


def test_a_sweep_without_overrides_has_nothing_to_say(sweep):
    assert sweep(SWEEP + "  optimizer.lr: [0.1, 0.01]\n")[1] == []


# ---- paths


def test_variables_and_the_home_folder_stand_for_folders(load, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/big")
    config, _ = load("results_dir=$SCRATCH/runs", "data_dir=~/${SCRATCH}")
    assert (config.results_dir, config.data_dir) == (Path("/big/runs"), Path("/home/me/big"))
    assert load("results_dir=${HOME}/a$")[0].results_dir == Path("/home/me/a$")


@pytest.mark.parametrize(
    "override", ["results_dir=$NOPE/x", "data_dir=a/${NOPE}", "dataset={name: imagefolder, dir: $NOPE}"]
)
def test_a_variable_that_is_not_set_is_one_line(load, monkeypatch, override):
    monkeypatch.delenv("NOPE", raising=False)
    with pytest.raises(ConfigError, match=r"no environment variable NOPE, or it is empty$") as caught:
        load(override)
    assert len(str(caught.value).splitlines()) == 1


def test_the_folder_of_images_is_found_through_a_variable_and_stays_as_it_was_said(
    load, monkeypatch, tmp_path
):
    monkeypatch.setenv("PICTURES", str(tmp_path))
    config, _ = load("dataset={name: imagefolder, dir: $PICTURES/cats}")
    assert config.dataset.dir == "$PICTURES/cats"
    from fgbench.datasets.imagefolder import _find
    from fgbench.datasets.search import DataSearch

    for part in ("train", "test"):
        (tmp_path / "cats" / part).mkdir(parents=True)
    assert _find(config.dataset.dir, DataSearch()) == tmp_path / "cats"


# ---- advice


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("device=0", "cuda:0"),
        ("device=gpu", "cuda"),
        ("device=gpu:1", "cuda:1"),
        ("device=CUDA", "cuda"),
        ("trainer=fg", "forward-gradient"),
        ("trainer=bp", "backprop"),
        ("trainer=forward_gradient", "forward-gradient"),
        ("trainer=ForwardGradient", "forward-gradient"),
        ("trainer=Backprop", "backprop"),
        ("dataset=fmnist", "fashion-mnist"),
        ("dataset=cifar-10", "cifar10"),
        ("model=mlp", "fc"),
        ("model=ResNet-18", "resnet18"),
    ],
)
def test_a_name_in_other_words_is_told_the_right_one(load, override, meant):
    with pytest.raises(ConfigError, match=rf"\(did you mean '{meant}'\?\)"):
        load(override)


def test_a_file_that_is_not_there_is_told_what_was_probably_meant(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "cnn_fmnist_fg.yaml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    for name in ("cnn_fmnist_fg", "cnn_fmnist_fg.yml", "configs/cnn_fmist_fg.yaml"):
        with pytest.raises(ConfigError, match=r"\(did you mean configs/cnn_fmnist_fg\.yaml\?\)$"):
            load_config(name)
    with pytest.raises(ConfigError, match=r"a value for a key is set by -o optimizer\.lr=1$"):
        load_config("optimizer.lr=1")
    with pytest.raises(ConfigError, match=r"name the files in it, such as configs/\*\.yaml$"):
        load_config("configs")
    with pytest.raises(ConfigError, match=r"No such file or directory$"):
        load_config("something/else")
