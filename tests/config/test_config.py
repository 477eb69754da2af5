"""Configs: what is accepted, what is refused and in which words, and what makes two runs the same."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fgbench.config.config import Config, config_hash, load_config, run_folder, to_yaml
from fgbench.config.mistakes import validate_source
from fgbench.config.overrides import Override
from fgbench.config.source import MAX_BYTES, Source
from fgbench.errors import ConfigError
from fgbench.registry import DATASETS, MODELS, TABLES, TRAINERS

CONFIGS = Path(__file__).parents[2] / "configs"
MINIMAL = "dataset: mnist\nmodel: fc\ntrainer: forward-gradient\n"
quick = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def write(tmp_path):
    def write_file(content, name="a.yaml"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def mistakes(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return [line.replace(f"{path}", path.name) for line in str(caught.value).splitlines()]


# ---- what is accepted


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_load_and_are_named_by_their_file(path):
    config = load_config(path)
    assert config.name == path.stem
    if not path.stem.startswith("demo"):
        assert len(path.read_text().splitlines()) <= 5, "defaults are the study's, so its configs are short"
        assert (config.epochs, config.batch_size, config.seed) == (100, 64, 0)
        assert (config.optimizer.name, config.optimizer.lr, config.schedule.name) == (
            "adam",
            0.001,
            "constant",
        )


def test_shipped_configs_of_settings_other_than_the_studys_load():
    paths = [path for path in CONFIGS.glob("*/*.yaml") if path.parent.name != "sweeps"]
    assert {path.parent.name for path in paths} == {"baydin", "feedback", "fournier"}
    assert all(load_config(path).name == path.stem for path in paths)


def test_the_studys_grid_is_complete():
    models = ("fc", "cnn", "vgg16", "resnet18")
    names = {f"{m}_{d}_{t}" for m in models for d in ("mnist", "fmnist", "cifar10") for t in ("bp", "fg")}
    assert len(names) == 24
    assert names <= {path.stem for path in CONFIGS.glob("*.yaml")}


def test_a_bare_name_stands_for_its_block(write):
    short = load_config(write(MINIMAL + "optimizer: sgd\nschedule: cosine\n"))
    long = load_config(
        write(
            "dataset: {name: mnist}\nmodel: {name: fc}\ntrainer:\n  name: forward-gradient\n"
            "optimizer: {name: sgd}\nschedule: {name: cosine}\n"
        )
    )
    assert short == long


@pytest.mark.parametrize("text", ["1e-3", "1E-3", ".001", "0.001", "+1.0e-3", "1.e-03"])
def test_numbers_may_be_written_with_an_exponent(write, text):
    assert load_config(write(MINIMAL + f"optimizer: {{lr: {text}}}\n")).optimizer.lr == 0.001


def test_a_users_own_component_brings_its_options(write, tmp_path, monkeypatch):
    (tmp_path / "their_package.py").write_text(
        "from fgbench.options import Options\n"
        "class TheirOptions(Options):\n    strength: float = 2.0\n"
        "class Their:\n    Options = TheirOptions\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = write('dataset: mnist\nmodel: fc\ntrainer: {name: "their_package:Their", strength: 1}\n')
    assert load_config(path).trainer.strength == 1.0
    assert mistakes(path, "trainer.strenght=2") == [
        "-o trainer.strenght=2: trainer.strenght: unknown key (did you mean 'strength'?); "
        "allowed: name, strength"
    ]


# ---- what is refused


def test_a_key_in_the_wrong_place_is_told_its_place(write):
    path = write("dataset: mnist\nmodel: fc\ntrainer: forward-gradient\ntangents: 2\n")
    wrong, other = mistakes(path, "lr=0.1")
    assert wrong.startswith("a.yaml:4: tangents: unknown key (did you mean 'trainer.tangents'?); allowed: ")
    assert other.startswith("-o lr=0.1: lr: unknown key (did you mean 'optimizer.lr'?); allowed: ")


def test_an_unknown_key_beside_an_unknown_name_are_two_mistakes_with_their_places(write):
    first, second = mistakes(write("dataset: mnist\nmodel: f\ner: forward-gradient\ntrainer: backprop\n"))
    assert first.startswith("a.yaml:2: model.name: unknown model 'f' (did you mean 'fc'?)")
    assert second.startswith("a.yaml:3: er: unknown key")


def test_a_sweep_file_is_told_to_be_one(write):
    path = write("base: {dataset: mnist}\naxes: {seed: [1, 2]}\n")
    assert mistakes(path) == ["a.yaml: a sweep file, not the config of a run: `fgbench sweep a.yaml` runs it"]


def test_all_mistakes_are_reported_at_once_with_line_key_and_suggestion(write):
    path = write(
        "dataset: {name: mnist, limits: 5}\n"
        "model: {name: resnet18, normalization: bach}\n"
        "trainer:\n"
        "  name: forward-gradient\n"
        "  structure: rank1\n"
        "optimizer: {lr: fast}\n"
        "epochs: 2.5\n"
        "sede: 1\n"
        "saving: {every: 0}\n"
        "deterministic: 1\n"
    )
    found = mistakes(path, "batch_size=-1")
    expected = [
        r"a.yaml:1: dataset.limits: unknown key \(did you mean 'limit'\?\); allowed: name, limit, .*",
        r"a.yaml:2: model.normalization: got 'bach', expected batch \| group \| none \(did you .*\)",
        r"a.yaml:4: trainer: structure: rank1 needs guess: rademacher.*",
        r"a.yaml:6: optimizer.lr: got 'fast', expected a number",
        r"a.yaml:7: epochs: got 2.5, expected a whole number",
        r"a.yaml:8: sede: unknown key \(did you mean 'seed'\?\); allowed: .*",
        r"a.yaml:9: saving.every: got 0, expected greater than 0",
        r"a.yaml:10: deterministic: got 1, expected true or false",
        r"-o batch_size=-1: batch_size: got -1, expected greater than 0",
    ]
    assert len(found) == len(expected)
    for line, pattern in zip(found, expected, strict=True):
        assert re.fullmatch(pattern, line), line


def test_a_mistake_does_not_cause_reports_of_what_would_be_right_without_it(write):
    path = write(
        "dataset: mnist\nmodel: fc\ntrainer: {name: forward-gradient, structure: rank1, guess: rademachr}\n"
    )
    assert len(mistakes(path)) == 1
    path = write("dataset: mnist\nmodel: fc\ntrainer: {name: forward-gradient, structure: rank1, guess: 7}\n")
    assert len(mistakes(path)) == 1


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("", "a.yaml: holds nothing, expected keys and values"),
        ("# only a comment\n", "a.yaml: holds nothing"),
        ("- 1\n", "a.yaml: holds a list, expected keys"),
        ("text", "a.yaml: holds 'text', expected keys"),
        (MINIMAL + "seed: 1\nseed: 2\n", "a.yaml:5: seed: given twice .first in line 4."),
        ("a: [1, 2\n", "a.yaml:2: not valid YAML"),
        ("a: &x 1\nb: *x\n", "a.yaml:2: not valid YAML: aliases"),
        (
            MINIMAL + "name: !!python/object/apply:os.system [ls]\n",
            "a.yaml:4: name: the tag .* is not allowed",
        ),
        (MINIMAL + "name: !!binary aGk=\n", "a.yaml:4: name: the tag"),
        (MINIMAL + "optimizer: {betas: [0.5, 0.9, !x 1]}", "a.yaml:4: optimizer.betas.2: the tag '?!x"),
        (MINIMAL + "? [a]\n: 1\n", "a.yaml:4: a key must be a word"),
        ("---\na: 1\n---\nb: 2\n", "a.yaml:3: a second document begins"),
        ("[" * 3000, "a.yaml: nested too deeply"),
        (b"\xff\xfe\x00", "a.yaml: not UTF-8 text"),
        (bytes(range(256)), "a.yaml: not UTF-8 text|a.yaml: not valid YAML"),
        (b"a: \x00", "a.yaml: not valid YAML"),
        (b"a: b\n" * MAX_BYTES, "a.yaml: larger than"),
        (MINIMAL + "seed: " + "9" * 5000, "a.yaml:4: seed: a number of 5000 digits is too long"),
        (
            MINIMAL + "optimizer: {lr: .nan}",
            "a.yaml:4: optimizer.lr: got nan, expected a finite number|.*greater",
        ),
        (
            MINIMAL + "clip_gradient_norm: 1e999",
            "a.yaml:4: clip_gradient_norm: got inf, expected a finite number",
        ),
        (MINIMAL + "epochs: true", "a.yaml:4: epochs: got true, expected a whole number"),
        (MINIMAL + "epochs: '3'", "a.yaml:4: epochs: got '3', expected a whole number"),
        (MINIMAL + "name: 12", r"a.yaml:4: name: got 12, expected text .put it in quotes."),
        (MINIMAL + 'name: "a\\0b"', "a.yaml:4: name: got .* cannot be printed"),
        (MINIMAL + "device: tpu", "a.yaml:4: device: got 'tpu', expected auto, cpu, cuda or cuda:N$"),
        (
            "dataset: mnist\nmodel: fc\n",
            "a.yaml: trainer: missing, expected one of backprop, .*package.module:Class",
        ),
        (
            "dataset: mnst\nmodel: fc\ntrainer: backprop",
            "a.yaml:1: dataset.name: unknown dataset 'mnst' .did you mean",
        ),
        (
            "dataset: mnist\nmodel: fc\ntrainer: 'os:system'",
            "a.yaml:3: trainer.name: 'os:system': expected a class, without .*Options",
        ),
        (
            "dataset: mnist\nmodel: fc\ntrainer: 'no_such:X'",
            "a.yaml:3: trainer.name: cannot import 'no_such:X'",
        ),
        ("dataset: mnist\nmodel: fc\ntrainer: ':X'", "a.yaml:3: trainer.name: cannot import ':X'"),
        ("dataset: mnist\nmodel: fc\ntrainer: 3", "a.yaml:3: trainer: got 3, expected a name or a block"),
        (
            "dataset: mnist\nmodel: {stem: small}\ntrainer: backprop",
            "a.yaml:2: model.name: missing, expected one of fc",
        ),
    ],
)
def test_bad_files_get_one_line(write, text, pattern):
    found = mistakes(write(text))
    assert len(found) == 1
    assert re.match(pattern, found[0]), found[0]


@pytest.mark.parametrize(
    "name", ["../up", "/etc/passwd", "a/b", "..", ".hidden", "", "a b", "a\\b", "x" * 101, "é"]
)
def test_names_stay_within_the_results_folder(write, name):
    (line,) = mistakes(write(MINIMAL + f"name: {json.dumps(name)}\n"))
    assert "a.yaml:4: name: got" in line


def test_unreadable_files_are_named(tmp_path):
    assert mistakes(tmp_path / "no.yaml") == ["no.yaml: cannot be read: No such file or directory"]
    assert mistakes(tmp_path) == [
        f"{tmp_path.name}: cannot be read: Is a directory; name the files in it, "
        f"such as {tmp_path.name}/*.yaml"
    ]


def test_a_stem_that_is_no_name_asks_for_one(write):
    path = write(MINIMAL, "my config.yaml")
    (line,) = mistakes(path)
    assert "its stem is the name" in line
    assert load_config(path, ["name=mine"]).name == "mine"


@pytest.mark.parametrize("text", ["epochs", "=3", "a..b=1", "epochs=[1", "epochs=*a", ".=1", "a b=1"])
def test_malformed_overrides_name_themselves(write, text):
    (line,) = mistakes(write(MINIMAL), text)
    assert line.startswith(f"-o {text}: ")


def test_activities_cannot_be_perturbed_under_batch_normalisation(write):
    path = write(
        "dataset: mnist\nmodel: {name: resnet18, normalization: batch}\ntrainer: activity-forward-gradient\n"
    )
    (line,) = mistakes(path)
    assert line.startswith("a.yaml:2: model.normalization: batch does not go with")
    assert "model.normalization: group" in line
    assert load_config(path, ["model.normalization=group"]).trainer.name == "activity-forward-gradient"


# ---- overrides


def test_changing_a_trainers_name_keeps_its_options_strict(write):
    path = write("dataset: mnist\nmodel: fc\ntrainer:\n  name: forward-gradient\n  tangents: 4\n")
    (line,) = mistakes(path, "trainer.name=backprop")
    assert line == (
        "a.yaml:5: trainer.tangents: unknown key; allowed: name, recompute; "
        "-o trainer=backprop drops what it does not have"
    )
    assert load_config(path, ["trainer=backprop"]).trainer.name == "backprop"


def test_later_overrides_win_and_reach_into_bare_names(write):
    config = load_config(
        write(MINIMAL), ["trainer.tangents=4", "trainer.tangents=2", Override("epochs", 3, "--epochs")]
    )
    assert (config.trainer.tangents, config.epochs) == (2, 3)
    assert mistakes(write(MINIMAL), Override("epochs", 0, "--epochs")) == [
        "--epochs: epochs: got 0, expected greater than 0"
    ]


def test_an_override_cannot_reach_into_a_value(write):
    assert mistakes(write(MINIMAL + "seed: 3\n"), "seed.x=1") == [
        "-o seed.x=1: seed.x: seed is 3, not a block of keys"
    ]


CHOICES = st.fixed_dictionaries(
    {
        "dataset.name": st.sampled_from([name for name in DATASETS if name != "imagefolder"]),
        "model.name": st.sampled_from(sorted(MODELS)),
        "trainer.name": st.sampled_from([name for name in TRAINERS if name != "activity-forward-gradient"]),
    },
    optional={
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        "seed": st.integers(0, 2**63 - 1),
        "epochs": st.integers(1, 10**9),
        "dataset.limit": st.none() | st.integers(1, 10**6),
        "dataset.validation_fraction": st.floats(0, 0.99),
        "optimizer.lr": st.floats(1e-12, 1e6),
        "clip_gradient_norm": st.none() | st.floats(1e-12, 1e12),
        "saving.keep": st.integers(1, 99),
        "device": st.sampled_from(["cpu", "cuda", "cuda:3"]),
        "data_dir": st.none()
        | st.text(min_size=1).filter(lambda text: text.isprintable() and text[0] != "~" and "$" not in text),
        "results_dir": st.from_regex(r"[\w.:#'\" -]{1,20}", fullmatch=True).filter(str.isprintable),
        "precision": st.sampled_from(["fp32", "bf16"]),
        "deterministic": st.booleans(),
    },
)


def load_choices(folder, choices):
    nested = {}
    for key, value in choices.items():
        outer, _, inner = key.rpartition(".")
        (nested.setdefault(outer, {}) if outer else nested)[inner] = value
    path = folder / "a.yaml"
    path.write_text(json.dumps(nested))
    return load_config(path)


@quick
@given(choices=CHOICES)
def test_a_written_config_reads_back_as_itself(tmp_path, choices):
    config = load_choices(tmp_path, choices)
    path = tmp_path / "written.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    again = load_config(path)
    assert again == config
    assert run_folder(again, "cpu") == run_folder(config, "cpu")
    assert to_yaml(again) == to_yaml(config)
    assert yaml.safe_load(to_yaml(config))["name"] == config.name, "other readers of YAML see the same text"


@quick
@given(choices=CHOICES)
def test_overrides_equal_editing_the_file(tmp_path, choices):
    edited = load_choices(tmp_path, {"name": "a", **choices})
    path = tmp_path / "a.yaml"
    path.write_text(MINIMAL)
    assert load_config(path, [f"{key}={json.dumps(value)}" for key, value in choices.items()]) == edited


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_file_does_worse_than_an_error(tmp_path, data):
    valid = (
        CONFIGS / "demo_fg.yaml"
    ).read_bytes() + b"optimizer: {name: sgd, lr: 1e-3}\nsaving: {every: 2}\n"
    start = data.draw(st.integers(0, len(valid)))
    stop = data.draw(st.integers(start, min(len(valid), start + 8)))
    middle = data.draw(
        st.binary(max_size=12) | st.text(":-{}[]#&*!|>'\"%@`?,\n\t 0aeN~.", max_size=12).map(str.encode)
    )
    path = tmp_path / "a.yaml"
    path.write_bytes(valid[:start] + middle + valid[stop:])
    try:
        load_config(path)
        return
    except ConfigError as error:
        lines = str(error).splitlines()
    assert 1 <= len(lines) <= 10
    assert all(str(path) in line for line in lines)


# ---- what makes two runs the same

ENABLERS = [
    [],
    ["model.heads=1"],
    ["model.groups=1"],
    ["trainer.guess=rademacher"],
    ["trainer.combine=projection"],
    ["optimizer.name=sgd", "optimizer.momentum=0.5"],
    ["optimizer.name=sgd"],
    ["schedule.name=exponential"],
    ["schedule.name=step"],
    ["schedule.name=cosine"],
    ["schedule.name=one-cycle"],
    ["trainer.grid=null"],
]
VALUES = [
    "true",
    "false",
    "1",
    "2",
    "7",
    "0.5",
    "0.25",
    "30.5",
    "[0.5, 0.6]",
    "[1, 8, 8]",
    "[3, 8, 8]",
    "{patience: 3}",
    "val_loss",
    "words",
    "[words]",
    "[tensorboard]",
]
UNHASHED = {
    *("name", "seed", "tuned", "tags", "note", "device", "data_dir", "results_dir"),
    *("saving", "diagnostics", "log", "verify"),
}
COMPONENTS = [(kind, name) for kind, table in TABLES.items() for name in table]


def with_component(kind, name):
    return [f"{kind}={{name: {name}{', dir: x' if name == 'imagefolder' else ''}}}"]


def leaves(data, prefix=""):
    for key, value in data.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def pairs_that_differ_in(key, path, base):
    """Pairs of valid configs that differ in one key only."""
    for enabler in ENABLERS:
        said = [*base, *enabler]
        try:
            before = load_config(path, said)
        except ConfigError:
            continue
        try:
            load_config(path, [*said, f"{key}=no-such-value"])
            choices = []
        except ConfigError as error:
            choices = re.findall(r"[a-z0-9-]+", str(error).partition("expected")[2])
        for value in [*VALUES, *choices]:
            try:
                after = load_config(path, [*said, f"{key}={value}"])
            except ConfigError:
                continue
            if after != before:
                yield before, after


@pytest.mark.parametrize(("kind", "name"), COMPONENTS, ids=[":".join(each) for each in COMPONENTS])
def test_the_hash_changes_with_every_option_of_a_component(write, kind, name):
    path, base = write(MINIMAL), with_component(kind, name)
    for key in leaves({kind: getattr(load_config(path, base), kind).model_dump(mode="json")}):
        if key != f"{kind}.name":
            before, after = next(pairs_that_differ_in(key, path, base))
            assert config_hash(before, "cpu") != config_hash(after, "cpu"), key


def test_the_hash_changes_with_just_those_keys_that_make_another_experiment(write):
    path = write(MINIMAL)
    whole = load_config(path).model_dump(mode="json")
    keys = [key for key in leaves(whole) if key.partition(".")[0] not in TABLES]
    for key in keys:
        before, after = next(pairs_that_differ_in(key, path, []))
        same = config_hash(before, "cpu") == config_hash(after, "cpu")
        assert same == (key.partition(".")[0] in UNHASHED), key


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        ("paper", "tags: got 'paper', expected a list"),
        ("[a b]", "tags.0: got 'a b', expected at most 100 letters, digits, dots, - and _, a letter"),
        ("[ok, 3]", "tags.1: got 3, expected text (put it in quotes)"),
    ],
)
def test_tags_are_a_list_of_words(write, tags, told):
    [line] = mistakes(write(MINIMAL + f"tags: {tags}\n"))
    assert line.startswith(f"a.yaml:4: {told}")
    assert load_config(write(MINIMAL + "tags: [a, b, a]\n")).tags == ("a", "b")


@pytest.mark.parametrize("key", ["patience=4", "metric=val_loss", "min_delta=0.1"])
def test_the_hash_changes_with_every_option_of_early_stopping_once_it_is_set(write, key):
    path = write(MINIMAL)
    before = load_config(path, ["early_stopping.patience=3"])
    after = load_config(path, ["early_stopping.patience=3", f"early_stopping.{key}"])
    assert config_hash(before, "cpu") != config_hash(after, "cpu")


@pytest.mark.parametrize("key", ["early_stopping.metric", "saving.best"])
def test_nothing_is_chosen_by_the_test_images(write, key):
    path = write(MINIMAL + "early_stopping:\n  patience: 3\n")
    [line] = mistakes(path, f"{key}=test_accuracy")
    assert line == (
        f"-o {key}=test_accuracy: {key}: got 'test_accuracy', expected val_accuracy | val_loss: "
        "a choice made on the test images cannot be tested on them"
    )


def test_early_stopping_without_patience_asks_for_it(write):
    [line] = mistakes(write(MINIMAL + "early_stopping: {metric: val_loss}\n"))
    assert line == "a.yaml:4: early_stopping.patience: missing"


def test_every_component_hashes_differently(write):
    path = write(MINIMAL)
    hashes = {config_hash(load_config(path, with_component(*each)), "cpu") for each in COMPONENTS}
    assert len(hashes) == len(COMPONENTS) - 2, "three of them spell out MINIMAL"


def test_a_raised_revision_makes_other_runs_of_the_same_config(write, monkeypatch):
    config = load_config(write(MINIMAL))
    row, before = TRAINERS[config.trainer.name], config_hash(config, "cpu")
    for revision, same in ((1, True), (2, False)):
        monkeypatch.setitem(TRAINERS, config.trainer.name, replace(row, revision=revision))
        assert (config_hash(config, "cpu") == before) == same


def test_the_hash_ignores_defaults_spelt_out(write):
    short = load_config(write(MINIMAL))
    spelt = load_config(write(to_yaml(short), "b.yaml"))
    assert config_hash(short, "cpu") == config_hash(spelt, "cpu")
    assert len(config_hash(short, "cpu")) == 8


def test_the_hash_tells_device_types_and_worker_counts_apart(write):
    config = load_config(write(MINIMAL))
    assert len({config_hash(config, "cpu"), config_hash(config, "cuda"), config_hash(config, "cpu", 2)}) == 3


def test_run_directories_are_named_by_name_seed_and_hash(write):
    config = load_config(write(MINIMAL), ["seed=3", "name=mine"])
    assert run_folder(config, "cpu") == Path("mine") / f"s3-{config_hash(config, 'cpu')}"


def test_a_config_can_be_built_without_a_file():
    config = Config(
        dataset={"name": "mnist"}, model={"name": "fc"}, trainer={"name": "backprop", "recompute": True}
    )
    source = Source("x", json.loads(config.model_dump_json()))
    assert validate_source(source, Config) == config


@pytest.mark.parametrize(
    ("trainer", "fits"),
    [
        ("{name: activity-forward-gradient}", False),
        ("{name: guided-forward-gradient, space: activations}", False),
        ("{name: guided-forward-gradient, space: activations, target: local}", True),
        ("{name: guided-forward-gradient}", True),
        ("{name: feedback-forward-gradient}", True),
    ],
)
def test_derivatives_per_sample_do_not_go_with_batch_normalisation(tmp_path, trainer, fits):
    path = tmp_path / "c.yaml"
    path.write_text(f"dataset: {{name: synthetic}}\nmodel: {{name: resnet18}}\ntrainer: {trainer}\n")
    if fits:
        load_config(path)
        return
    with pytest.raises(ConfigError, match=r"needs samples that do not interact; set model\.normalization"):
        load_config(path)


def test_a_second_document_is_told_to_be_one(write):
    path = write("dataset: mnist\n---\nmodel: fc\n")
    assert mistakes(path) == ["a.yaml:2: a second document begins (---), expected one"]


def test_a_component_left_empty_may_be_a_name_too(write):
    path = write("dataset:\nmodel: fc\ntrainer: backprop\n")
    assert mistakes(path) == ["a.yaml:1: dataset: got null, expected a name or a block of keys"]
