"""A user's own components outside of fgbench: their code is recorded, and a mistake in them is one line."""

import json
import re
import sys

import pytest
from pages import PAGES
from typer.testing import CliRunner

from fgbench.cli.app import app

CONFIG = """
dataset: {name: synthetic, shape: [1, 4, 4], classes: 3, train: 40, test: 12}
model: MODEL
trainer: TRAINER
epochs: 2
batch_size: 8
device: cpu
threads: 1
"""
MODEL = """
from fgbench.options import Options
from own_layers import make

def net(options, image_shape, num_classes):
    return make(16, num_classes)

net.Options = Options
"""
LAYERS = """
from torch import nn

def make(features, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(features, classes))
"""


def fgbench(*arguments):
    """The command as a new process would run it."""
    for name in ("own_parts", "own_layers"):
        sys.modules.pop(name, None)
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a config that names the parts, and a module with them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(parts, model="fc", trainer="backprop"):
        (tmp_path / "own_parts.py").write_text(parts)
        (tmp_path / "own_layers.py").write_text(LAYERS)
        (tmp_path / "c.yaml").write_text(CONFIG.replace("MODEL", model).replace("TRAINER", trainer))
        return tmp_path

    return write


@pytest.fixture
def ended(write):
    folder = write(MODEL, "own_parts:net")
    done = fgbench("run", "c.yaml")
    assert done.exit_code == 0, done.output
    [run] = (folder / "results" / "c").iterdir()
    return run


def code_of(run):
    return json.loads((run / "env.json").read_text())["code"]


def test_the_digest_of_own_code_stands_in_env_json_and_that_of_fgbench_does_not(ended):
    [(name, digest)] = code_of(ended).items()
    assert name == "own_parts:net"
    assert len(digest) == 8


def test_a_run_that_ended_with_the_same_code_is_skipped(ended):
    assert "finished already, skipped (--force repeats it)" in fgbench("run", "c.yaml").output


@pytest.mark.parametrize("file", ["own_parts.py", "own_layers.py"])
@pytest.mark.parametrize("command", ["run", "sweep"])
def test_a_run_that_ended_with_other_code_is_refused(ended, file, command):
    before = code_of(ended)
    path = ended.parents[2] / file
    path.write_text(path.read_text() + "# edited\n")
    if command == "sweep":
        (ended.parents[2] / "s.yaml").write_text("base: c.yaml\n")
    refused = fgbench(command, "c.yaml" if command == "run" else "s.yaml")
    assert refused.exit_code == 2
    assert "finished already, but with other code of own_parts:net (env.json); --force" in refused.output
    assert code_of(ended) == before
    assert fgbench("run", "c.yaml", "--force").exit_code == 0
    assert code_of(ended) != before


def test_a_run_does_not_resume_with_other_code(ended):
    (ended / "summary.json").unlink()
    (ended / "status.json").write_text('{"state": "interrupted", "epoch": 2, "epochs": 2}')
    path = ended.parents[2] / "own_parts.py"
    path.write_text(path.read_text() + "# edited\n")
    refused = fgbench("run", "c.yaml")
    assert refused.exit_code == 2
    assert "this run started with other code of own_parts:net (env.json); restore that code" in refused.output
    assert fgbench("run", "c.yaml", "--no-resume").exit_code == 0


def test_a_run_of_an_older_version_is_skipped_and_says_that_its_code_is_not_known(ended):
    env = json.loads((ended / "env.json").read_text())
    del env["code"]
    (ended / "env.json").write_text(json.dumps(env))
    skipped = fgbench("run", "c.yaml")
    assert skipped.exit_code == 0
    assert "skipped (--force repeats it; its code was not recorded)" in skipped.output


FAILING_MODEL = """
from fgbench.options import Options

def net(options, image_shape, num_classes):
    return {}["no such"]

net.Options = Options
"""


def test_an_error_in_a_models_builder_is_a_line_with_its_place(write):
    folder = write(FAILING_MODEL, "own_parts:net")
    refused = fgbench("run", "c.yaml")
    assert refused.exit_code == 2
    place = f"{folder / 'own_parts.py'}:5: KeyError: 'no such'"
    assert refused.stderr == f"fgbench: model.name: own_parts:net does not work on images of 1x4x4: {place}\n"
    assert not (folder / "results").exists()


TRAINER = """
import torch
from fgbench import StepStats, Trainer, TrainerOptions

class Plain(Trainer):
    Options = TrainerOptions

    def SETUP(self, model, inputs, num_classes, generator):
        torch.ones(2) @ torch.ones(3)

    def compute_gradients(self, model, loss_fn, inputs, labels, generator, *, accumulate=False):
        outputs = model(inputs)
        loss = loss_fn(outputs, labels).mean()
        FAIL
        loss.backward()
        return StepStats(loss, outputs)
"""


def test_an_error_in_a_trainers_set_up_is_a_line_before_the_run(write):
    folder = write(TRAINER.replace("SETUP", "set_up"), trainer="own_parts:Plain")
    refused = fgbench("run", "c.yaml")
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"fgbench: {folder / 'own_parts.py'}:9: RuntimeError: inconsistent")
    assert not (folder / "results").exists()


def test_an_error_in_a_trainers_step_is_a_line_and_fails_the_run(write):
    folder = write(TRAINER.replace("FAIL", "loss_fn.no_such"), trainer="own_parts:Plain")
    failed = fgbench("run", "c.yaml")
    assert failed.exit_code == 1
    [run] = (folder / "results" / "c").iterdir()
    reason = f"{folder / 'own_parts.py'}:14: AttributeError: 'CrossEntropyLoss' object has no attribute"
    assert reason in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert json.loads((run / "status.json").read_text())["reason"].startswith(reason)


def test_an_error_in_fgbench_keeps_its_traceback_whatever_called_it(write, monkeypatch):
    write(TRAINER.replace("FAIL", ""), trainer="own_parts:Plain")
    monkeypatch.setattr("fgbench.trainers.base.fields", lambda stats: {}["a bug"])
    assert isinstance(fgbench("run", "c.yaml").exception, KeyError)


WITHOUT_PARAMETERS = """
from torch import nn
from fgbench.options import Options

def net(options, image_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(num_classes))

net.Options = Options
"""


def test_a_model_without_parameters_is_refused(write):
    folder = write(WITHOUT_PARAMETERS, "own_parts:net")
    refused = fgbench("run", "c.yaml")
    assert refused.exit_code == 2
    assert refused.stderr == "fgbench: model.name: own_parts:net has no parameters to train\n"
    assert not (folder / "results").exists()


def test_a_plain_module_and_a_trainer_without_options_train(write):
    plain = "from torch import nn\n\nclass Net(nn.Sequential):\n    def __init__(self, width=5):\n"
    plain += "        super().__init__(nn.Flatten(), nn.Linear(16, width), nn.Linear(width, 3))\n"
    trainer = TRAINER.replace("FAIL", "").replace("Options = TrainerOptions", "pass")
    write(plain + trainer, "own_parts:Net", "own_parts:Plain")
    done = fgbench("run", "c.yaml")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        (
            "def net(images):\n    pass\n",
            "takes (images), expected (options, image_shape, num_classes)",
        ),
        ("net = 3\n", "'own_parts:net': expected a class or function, without options or with a class"),
    ],
)
def test_what_is_no_model_is_told_in_one_line(write, parts, line):
    write(parts, "own_parts:net")
    refused = fgbench("run", "c.yaml")
    assert refused.exit_code == 2
    assert line in refused.stderr
    assert refused.stderr.count("\n") == 1


PARTS = re.findall(r'```python title="(my_\w+)\.py"\n(.*?)```', "".join(PAGES.values()), re.DOTALL)


@pytest.mark.parametrize(("module", "code"), PARTS)
def test_the_components_that_the_pages_show_train(write, module, code):
    folder = write("")
    (folder / f"{module}.py").write_text(code)
    kind = "dataset" if "ImageData" in code else "model"
    name = re.findall(r"^(?:class|def) (\w+)", code, re.MULTILINE)[-1]
    other = "model.hidden=4" if kind == "dataset" else "dataset=fashion-mnist-mini"
    given = ("-o", f"{kind}={module}:{name}", "-o", other, "-o", "dataset.limit=100", "--epochs", 1)
    done = fgbench("run", "c.yaml", *given)
    assert done.exit_code == 0, done.output


def test_the_pages_show_a_model_a_model_with_options_and_a_dataset():
    assert [module for module, _ in PARTS] == ["my_model", "my_deep_model", "my_data"]
