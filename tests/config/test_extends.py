"""Configs built on configs: what holds, what is refused with both places, and where it works."""

import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from fgbench.cli.app import app
from fgbench.config.config import config_hash, load_config, to_yaml
from fgbench.config.schema import config_schema
from fgbench.config.sweep import load_sweep
from fgbench.errors import ConfigError
from fgbench.run.runner import run_configs
from fgbench.sweep.tuned import with_values

BASE = """
name: base
tuned: by hand
dataset: {name: synthetic, shape: [1, 8, 8], classes: 3, train: 60, test: 12}
model: {name: fc, hidden: 6}
trainer: {name: forward-gradient, tangents: 4, guess: rademacher}
optimizer: {lr: 0.01, betas: [0.5, 0.9]}
epochs: 2
device: cpu
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Writes files into a folder, and gives the mistakes of one with their paths from there."""
    monkeypatch.chdir(tmp_path)

    def write(**contents):
        for name, text in {"base": BASE, **contents}.items():
            (tmp_path / f"{name}.yaml").write_text(text)

    return write


def mistakes(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value).splitlines()


def call(*arguments):
    with pytest.raises(SystemExit) as exit_:
        app([str(each) for each in arguments])
    return exit_.value.code


def test_a_variant_says_what_differs_and_is_named_by_its_own_file(files):
    files(variant="extends: base.yaml\noptimizer: {lr: 0.1}\n")
    variant, base = load_config("variant.yaml"), load_config("base.yaml")
    assert variant.optimizer.lr == 0.1
    assert variant.optimizer.betas == (0.5, 0.9)
    assert variant.name == "variant"
    assert variant.tuned is None, "values that are not the base's were not tuned"
    assert config_hash(variant, "cpu") == config_hash(load_config("base.yaml", ["optimizer.lr=0.1"]), "cpu")
    assert (
        variant.model_copy(update={"optimizer": base.optimizer, "name": "base", "tuned": "by hand"}) == base
    )


def test_a_chain_holds_the_nearest_value_and_relative_paths_lead_from_each_file(files, tmp_path):
    (tmp_path / "inner").mkdir()
    files(top="extends: inner/middle.yaml\nepochs: 7\n")
    (tmp_path / "inner" / "middle.yaml").write_text("extends: ../base.yaml\nepochs: 5\nseed: 3\n")
    config = load_config("top.yaml")
    assert (config.epochs, config.seed, config.optimizer.lr) == (7, 3, 0.01)


@pytest.mark.parametrize("trainer", ["zeroth-order", "{name: zeroth-order}"])
def test_another_component_keeps_the_options_it_has_and_says_what_it_drops(trainer, files):
    files(variant=f"extends: base.yaml\n\ntrainer: {trainer}\noptimizer: sgd\n")
    notes = []
    config = load_config("variant.yaml", say=notes.append)
    assert (config.trainer.name, config.trainer.tangents) == ("zeroth-order", 4)
    assert config.optimizer.lr == 0.01
    assert notes == [
        "optimizer: sgd (variant.yaml:4) drops optimizer.betas: [0.5, 0.9] "
        "(base.yaml:7 (extended in variant.yaml:1))"
    ]


def test_a_base_may_be_incomplete_and_hold_a_block_without_its_name(files):
    files(
        part="trainer: {tangents: 8}\nmodel: fc\n",
        whole="extends: part.yaml\ntrainer: forward-gradient\ndataset: mnist\n",
        wrong="extends: part.yaml\ntrainer: backprop\ndataset: mnist\n",
    )
    assert load_config("whole.yaml").trainer.tangents == 8
    [line] = mistakes("wrong.yaml")
    assert line.startswith("part.yaml:1 (extended in wrong.yaml:1): trainer.tangents: unknown key")


def test_a_mistake_below_is_told_with_both_places(files):
    files(
        low="extends: base.yaml\nepochs: 2.5\nsede: 1\n",
        high="\nextends: low.yaml\nmodel: f\n",
    )
    name, low, key = sorted(mistakes("high.yaml"))
    assert low == "low.yaml:2 (extended in high.yaml:2): epochs: got 2.5, expected a whole number"
    assert key.startswith("low.yaml:3 (extended in high.yaml:2): sede: unknown key (did you mean 'seed'?)")
    assert name.startswith("high.yaml:3: model.name: unknown model 'f' (did you mean 'fc'?)")


def test_a_mistake_two_files_below_names_all_three(files):
    files(base=BASE + "threads: no\n", low="extends: base.yaml\n", high="extends: low.yaml\n")
    assert mistakes("high.yaml") == [
        "base.yaml:10 (extended in low.yaml:1, high.yaml:1): threads: got 'no', expected a whole number"
    ]


def test_values_of_two_files_that_do_not_go_together_name_both(files):
    files(variant="extends: base.yaml\ntrainer:\n  structure: rank1\n  guess: normal\n")
    [line] = mistakes("variant.yaml")
    assert line.startswith("variant.yaml:3 over base.yaml:6 (extended in variant.yaml:1): trainer: structure")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("extends: variant.yaml\n", "variant.yaml:1: extends: got 'variant.yaml', which extends this file"),
        (
            "extends: ./circle.yaml\n",
            "circle.yaml:2: extends: got 'variant.yaml', which extends this file itself: a circle "
            "(extended in variant.yaml:1)",
        ),
        (
            "extends: bas.yaml\n",
            "bas.yaml: cannot be read: No such file or directory (did you mean base.yaml?) "
            "(extended in variant.yaml:1)",
        ),
        ("extends: broken.yaml\n", "broken.yaml:2: not valid YAML: .* .extended in variant.yaml:1.$"),
        ("extends: sweep.yaml\n", "sweep.yaml: a sweep file, .* .extended in variant.yaml:1.$"),
        ("extends: [base.yaml]\n", "variant.yaml:1: extends: got a list, expected one config file"),
        ("extends: 3\n", "variant.yaml:1: extends: got 3, expected one config file"),
        ("extends:\n", "variant.yaml:1: extends: got null, expected one config file"),
        (
            "extends: $NO_SUCH/base.yaml\n",
            "variant.yaml:1: extends: got '$NO_SUCH/base.yaml', but there is no",
        ),
    ],
)
def test_what_cannot_be_extended_is_one_line_with_both_places(text, told, files):
    files(
        variant=text,
        circle="\nextends: variant.yaml\n",
        broken="a: [\n",
        sweep="base: base.yaml\naxes: {seed: [1]}\n",
    )
    [line] = mistakes("variant.yaml")
    assert re.match(told if ".*" in told else re.escape(told), line), line


def test_only_a_file_may_say_what_it_extends(files):
    files()
    [line] = mistakes("base.yaml", "extends=base.yaml")
    assert line.startswith(
        "-o extends=base.yaml: extends: got 'base.yaml', which is allowed only in a config file"
    )
    files(axis="base: base.yaml\naxes: {extends: [base.yaml]}\n")
    with pytest.raises(ConfigError, match=r"axis.yaml:2: extends: got 'base.yaml'"):
        load_sweep(Path("axis.yaml"))


def test_what_is_shown_is_the_resolved_config_of_the_same_hash(files, capsys, tmp_path):
    files(variant="extends: base.yaml\ntrainer: zeroth-order\n")
    assert call("config", "show", "variant.yaml", "-o", "seed=4") == 0
    shown = capsys.readouterr().out
    assert "extends" not in shown
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "shown.yaml").write_text(shown)
    again = load_config("elsewhere/shown.yaml")
    assert again == load_config("variant.yaml", ["seed=4"])
    assert config_hash(again, "cpu") == config_hash(load_config("variant.yaml"), "cpu")


def test_a_run_directory_holds_the_resolved_config(files):
    files(variant="extends: base.yaml\nepochs: 1\n")
    code, [path] = run_configs([load_config("variant.yaml")])
    assert code == 0
    kept = yaml.safe_load((path / "config.yaml").read_text())
    assert "extends" not in kept
    assert kept["optimizer"]["betas"] == [0.5, 0.9]
    assert path.name == f"s0-{config_hash(load_config(path / 'config.yaml'), 'cpu')}"


def test_dry_runs_validation_sweeps_and_tuning_take_variants(files, capsys, tmp_path):
    files(
        variant="extends: base.yaml\nepochs: 1\n",
        by_file="base: variant.yaml\naxes: {optimizer.lr: [0.1, 0.2]}\n",
        by_block="base:\n  extends: variant.yaml\n  trainer: backprop\naxes: {optimizer.lr: [0.1, 0.2]}\n",
    )
    assert call("run", "variant.yaml", "--dry-run") == 0
    assert "1 epochs" in capsys.readouterr().out
    assert call("config", "validate", "variant.yaml") == 0
    for name, trainer in {"by_file": "forward-gradient", "by_block": "backprop"}.items():
        configs = load_sweep(tmp_path / f"{name}.yaml", say=lambda _: None).configs
        assert [(c.optimizer.lr, c.epochs, c.trainer.name) for c in configs] == [
            (0.1, 1, trainer),
            (0.2, 1, trainer),
        ]
        assert call("sweep", f"{name}.yaml", "--dry-run") == 0
    tuned = with_values(configs[0], {"optimizer.lr": 0.3}, "tuned")
    assert tuned.dataset == configs[0].dataset
    Path("tuned.yaml").write_text(to_yaml(tuned))
    assert load_config("tuned.yaml") == tuned


def test_the_schema_knows_the_key():
    schema = config_schema()
    jsonschema.validate(
        {"extends": "a.yaml", "dataset": "mnist", "model": "fc", "trainer": "backprop"}, schema
    )
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"extends": 3, "dataset": "mnist", "model": "fc", "trainer": "backprop"}, schema)
