"""The command line: what it prints, which exit codes it gives, and that mistakes write nothing."""

import json
import subprocess
import sys
import types
from pathlib import Path

import jsonschema
import pytest
import yaml

from fgbench.cli.app import app, main
from fgbench.cli.arguments import parse_seeds
from fgbench.config.config import load_config, to_yaml
from fgbench.errors import ConfigError, FgbenchError
from fgbench.registry import TABLES, options_model

CONFIGS = Path(__file__).parents[2] / "configs"
MINIMAL = "dataset: mnist\nmodel: fc\ntrainer: forward-gradient\n"


@pytest.fixture
def fgbench(monkeypatch, capsys, tmp_path):
    """Run the command in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["fgbench", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return caught.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def asked(monkeypatch):
    """What the runner was asked for, in place of a runner."""
    calls = []

    def run_configs(configs, **options):
        calls.append((configs, options))
        return 0, ()

    monkeypatch.setitem(sys.modules, "fgbench.run.runner", types.SimpleNamespace(run_configs=run_configs))
    return calls


def write(path, text=MINIMAL):
    path.write_text(text)
    return path


def commands(group, names=()):
    if not hasattr(group, "commands"):
        yield names, group
        return
    for name, command in group.commands.items():
        yield from commands(command, (*names, name))


def test_every_command_and_option_is_explained(fgbench):
    import typer.main

    found = dict(commands(typer.main.get_command(app)))
    assert {("run",), ("plot",), ("list",), ("config", "show"), ("data", "fetch")} <= set(found)
    for names, command in found.items():
        code, out, _ = fgbench(*names, "--help")
        assert code == 0
        assert command.help
        for parameter in command.params:
            assert getattr(parameter, "help", None), (names, parameter.name)
        assert "Usage: fgbench " + " ".join(names) in out


def test_no_arguments_show_the_help_and_the_version_is_known(fgbench):
    _, out, err = fgbench()
    assert "Usage: fgbench" in out + err
    assert "Exit codes" in out + err
    code, out, _ = fgbench("--version")
    assert code == 0
    assert out.startswith("fgbench 0.")


def test_python_m_is_the_same_command():
    command = [sys.executable, "-m", "fgbench", "list", "models", "nocnn"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("fgbench: unknown model 'nocnn' (did you mean 'cnn'?); there are fc,")
    assert done.stdout == ""


# ---- run


def test_run_turns_flags_into_configs(fgbench, asked, tmp_path):
    path = write(tmp_path / "a.yaml")
    flags = "--seeds 0-2 --epochs 3 --device cpu --results out -o optimizer.lr=1e-2"
    assert fgbench("run", path, *flags.split(), "--no-download", "--force", "--no-resume")[0] == 0
    ((configs, options),) = asked
    assert [config.seed for config in configs] == [0, 1, 2]
    overrides = ["epochs=3", "device=cpu", "results_dir=out", "optimizer.lr=0.01"]
    assert configs[0] == load_config(path, overrides)
    assert options == {"data_dir": None, "download": False, "force": True, "resume": False, "dry_run": False}


def test_run_takes_several_configs_and_one_seed(fgbench, asked, tmp_path):
    paths = [write(tmp_path / "a.yaml"), write(tmp_path / "b.yaml")]
    assert fgbench("run", *paths, "--seed", 5, "--data-dir", ".", "--dry-run")[0] == 0
    ((configs, options),) = asked
    assert [(config.name, config.seed) for config in configs] == [("a", 5), ("b", 5)]
    assert (options["data_dir"], options["dry_run"], options["resume"]) == (Path(), True, True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--seed 1 --seeds 0-2", "--seed and --seeds do not go together"),
        ("--seeds 4-1", "--seeds 4-1: 4-1 ends before it starts"),
        ("--seeds a", "--seeds a: expected a range such as 0-4"),
        ("--seeds 0-99999", "more than 10,000 seeds"),
        ("--epochs 0", "--epochs: epochs: got 0, expected greater than 0"),
        ("--device tpu", "--device: device: got 'tpu'"),
        ("--seed -1", "--seed: seed: got -1"),
        ("-o epoch=1", "-o epoch=1: epoch: unknown key (did you mean 'epochs'?)"),
        ("-o trainer.name=bakprop", "(did you mean 'backprop'?)"),
        ("--epochs x", "--epochs"),
        ("--no-such-flag", "--no-such-flag"),
    ],
)
def test_mistakes_end_with_2_and_write_nothing(fgbench, asked, tmp_path, flags, message):
    path = write(tmp_path / "a.yaml")
    code, out, err = fgbench("run", path, *flags.split())
    assert code == 2
    assert message in err
    assert "Traceback" not in out + err
    assert asked == []
    assert [each.name for each in tmp_path.iterdir()] == ["a.yaml"]


def test_the_mistakes_of_all_configs_come_at_once(fgbench, tmp_path):
    first, second = (
        write(tmp_path / "a.yaml", MINIMAL + "epochs: x\n"),
        write(tmp_path / "b.yaml", "model: fc\n"),
    )
    code, _, err = fgbench("config", "validate", first, second, tmp_path / "none.yaml")
    assert code == 2
    assert len(err.splitlines()) == 4
    assert f"{first}:4: epochs: got 'x', expected a whole number" in err
    assert f"{second}: dataset: missing" in err
    assert f"{tmp_path / 'none.yaml'}: cannot be read: No such file or directory" in err


def test_seeds_are_ranges_and_lists():
    assert parse_seeds("3") == [3]
    assert parse_seeds("0-2, 2,7") == [0, 1, 2, 7]
    for text in ("", "-1", "1-", "1.5", "٣-", "1--2"):
        with pytest.raises(ConfigError, match="--seeds"):
            parse_seeds(text)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("what"), 2, "fgbench: what\n"),
        (FgbenchError("what"), 1, "fgbench: what\n"),
        (OSError(28, "No space left on device"), 1, "fgbench: [Errno 28] No space left on device\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_become_a_line_and_an_exit_code(fgbench, monkeypatch, tmp_path, error, code, message):
    def run_configs(configs, **options):
        raise error

    monkeypatch.setitem(sys.modules, "fgbench.run.runner", types.SimpleNamespace(run_configs=run_configs))
    assert fgbench("run", write(tmp_path / "a.yaml")) == (code, "", message)


def test_the_runners_exit_code_is_the_commands(fgbench, monkeypatch, tmp_path):
    runner = types.SimpleNamespace(run_configs=lambda configs, **options: (4, ()))
    monkeypatch.setitem(sys.modules, "fgbench.run.runner", runner)
    assert fgbench("run", write(tmp_path / "a.yaml"))[0] == 4


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("dataset: cifar10\n", "--no-download --data-dir .", "cifar10"),
        (
            "dataset: cifar10\n",
            "--data-dir mistyped",
            "there is no folder mistyped; `fgbench data",
        ),
        ("dataset: {name: imagefolder, dir: nowhere}\n", "", "nowhere"),
        ("dataset: synthetic\n", "--results a.yaml", "a.yaml is a file, not a folder"),
        ("dataset: synthetic\n", "--device cuda:99", "cuda"),
    ],
)
def test_a_run_that_cannot_be_made_ends_with_one_line_and_writes_nothing(
    fgbench, monkeypatch, tmp_path, text, flags, message
):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path / "a.yaml", text + "model: fc\ntrainer: backprop\n")
    code, out, err = fgbench("run", path, *flags.split())
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("fgbench: ")
    assert message in err
    assert [each.name for each in tmp_path.iterdir()] == ["a.yaml"]


# ---- data and check


def test_data_shows_every_dataset_and_the_folders_looked_in(fgbench, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    code, out, _ = fgbench("data", "--data-dir", tmp_path / "mine")
    assert code == 0
    assert all(f"{name}\n    " in out for name in TABLES["dataset"])
    assert "shipped with fgbench" in out
    assert "`fgbench data fetch cifar10`" in out
    assert out.partition("searched:\n")[2].split() == [str(tmp_path / "mine")]
    folders = fgbench("data")[1].partition("searched:\n")[2].split()
    assert str(tmp_path / "home" / ".cache" / "fgbench") in folders
    assert list(tmp_path.iterdir()) == []


def test_data_fetch_refuses_what_cannot_be_downloaded(fgbench):
    for name in ("synthetic", "no-such"):
        code, _, err = fgbench("data", "fetch", name)
        assert (code, len(err.splitlines())) == (2, 1)


@pytest.mark.parametrize("ok", [True, False])
def test_check_prints_its_report_and_fails_when_something_is_off(fgbench, monkeypatch, tmp_path, ok):
    calls = []

    def check(config, search, draws):
        calls.append((config, search.download, draws))
        return "report", ok

    monkeypatch.setitem(sys.modules, "fgbench.checks.check", types.SimpleNamespace(check=check))
    path = write(tmp_path / "a.yaml")
    assert fgbench("check", path, "-o", "epochs=2", "--draws", 8, "--no-download") == (
        int(not ok),
        "report\n",
        "",
    )
    assert calls == [(load_config(path, ["epochs=2"]), False, 8)]
    assert fgbench("check") == (int(not ok), "report\n", "")
    assert calls[1][0] is None
    assert fgbench("check", "-o", "epochs=2")[0] == 2


# ---- config


def test_config_show_prints_the_whole_config_with_overrides(fgbench, tmp_path):
    path = write(tmp_path / "a.yaml")
    code, out, _ = fgbench("config", "show", path, "-o", "epochs=7")
    assert code == 0
    assert out == to_yaml(load_config(path, ["epochs=7"]))
    assert "epochs: 7" in out


def test_the_schema_agrees_with_the_shipped_configs(fgbench):
    code, out, _ = fgbench("config", "schema")
    schema = json.loads(out)
    assert code == 0
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in CONFIGS.glob("*.yaml"):
        validator.validate(yaml.safe_load(path.read_text()))
        validator.validate(yaml.safe_load(to_yaml(load_config(path))))


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 1},
        {"epochs": 0},
        {"trainer": "no-such"},
        {"trainer": {"name": "backprop", "tangents": 2}},
        {"trainer": {"name": "forward-gradient", "guess": "no-such"}},
        {"optimizer": {"name": "no-such"}},
        {"model": None},
    ],
)
def test_the_schema_refuses_what_configs_refuse(fgbench, tmp_path, change):
    schema = json.loads(fgbench("config", "schema")[1])
    data = {"dataset": "mnist", "model": "fc", "trainer": "backprop"} | change
    assert list(jsonschema.Draft202012Validator(schema).iter_errors(data))
    assert fgbench("config", "validate", write(tmp_path / "a.yaml", json.dumps(data)))[0] == 2


# ---- list


@pytest.mark.parametrize("kind", TABLES)
def test_list_shows_every_component_and_its_options(fgbench, kind):
    code, out, _ = fgbench("list", f"{kind}s")
    assert code == 0
    for name, component in TABLES[kind].items():
        assert f"{name}\n    " in out
        assert component.source in " ".join(out.split())
        code, details, _ = fgbench("list", f"{kind}s", name)
        assert code == 0
        for key, field in options_model(kind, name).model_fields.items():
            if key != "name":
                assert f"  {key}: " in details
                assert field.description, f"{kind} {name}: the option {key} has no docstring"
                assert " ".join(field.description.split()) in " ".join(details.split())


def test_list_trainers_tells_bias_cost_and_what_goes_backwards(fgbench):
    out = " ".join(fgbench("list", "trainers")[1].split())
    for component in TABLES["trainer"].values():
        assert f"bias: {component.bias}" in out
        assert f"cost in forward passes: {component.cost}" in out
        assert f"uses backwards: {component.backwards}" in out


def test_list_keys_shows_every_key_of_a_config(fgbench, tmp_path):
    out = fgbench("list", "keys")[1]
    for key, value in load_config(write(tmp_path / "a.yaml")).model_dump(mode="json").items():
        assert f"\n{key}:" in f"\n{out}"
        if key not in TABLES and isinstance(value, dict):
            assert all(f"\n    {inner}: " in out for inner in value)


def test_a_sweep_of_one_run_counts_one_run(fgbench, tmp_path):
    write(tmp_path / "a.yaml", "dataset: {name: synthetic, train: 20}\nmodel: fc\ntrainer: backprop\n")
    sweep = write(tmp_path / "s.yaml", "base: a.yaml\n")
    code, out, _ = fgbench("sweep", sweep, "--dry-run", "--jobs", 64)
    assert code == 0
    assert "\n1 run, 0 finished" in out
    assert ", 1 thread each\n" in out
