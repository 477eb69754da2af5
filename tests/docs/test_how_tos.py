"""The how-tos of docs/architecture.md work as they stand, by exactly the files they name."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import PAGES, ROOT

STEPS = re.findall(
    r'```\w+ title="(src/[^\s",]+)(?:, ([^"\n]+))?"\n(.*?)```', PAGES["docs/architecture.md"], re.DOTALL
)

CONFIG = """
dataset: stripes
model: {name: lenet, width: 4}
trainer: NAME
optimizer: {lr: 0.01}
epochs: 2
"""
COMMANDS = [
    "list trainers textbook",
    "list models lenet",
    "list datasets stripes",
    "config validate textbook.yaml backprop.yaml",
    "run textbook.yaml backprop.yaml --seeds 0-2",
    "plot results --kind throughput",
    "compare results --metric weight_norm --metric test_accuracy",
    "claims results",
    "check textbook.yaml --draws 20",
    "best results",
]
CALL = """
import sys
from fgbench.cli.app import app
for line in sys.stdin.read().splitlines():
    print(f"$ {line}", flush=True)
    try:
        app(line.split())
    except SystemExit as end:
        print(f"= {end.code}", flush=True)
"""


def add(source: Path, place: str, code: str) -> None:
    """Put one of the page's blocks where its title says."""
    if not place:  # a file of its own, or the end of one
        blank = "\n\n" if source.exists() and source.suffix == ".py" else ""
        with source.open("a") as file:
            file.write(blank + code)
        return
    lines = source.read_text().splitlines(keepends=True)
    if place.startswith("below the line with "):
        words = place.removeprefix("below the line with ")
        at = 1 + next(i for i, line in enumerate(lines) if words in line)
    else:
        name = place.removeprefix("at the end of ")
        start = next(i for i, line in enumerate(lines) if re.match(rf"{name}\b.*[{{(]$", line.rstrip()))
        at = next(i for i, line in enumerate(lines) if i > start and line.rstrip() in ("}", ")"))
    source.write_text("".join([*lines[:at], code, *lines[at:]]))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source with all the page adds to it."""
    folder = tmp_path_factory.mktemp("how_to")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for path, place, code in STEPS:
        add(folder / path, place, code)
    for name in ("textbook", "backprop"):
        (folder / f"{name}.yaml").write_text(CONFIG.replace("NAME", name))
    return folder


def python(copy: Path, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(copy / "src"), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=copy, env=env, capture_output=True, text=True, **options
    )


@pytest.fixture(scope="module")
def printed(copy: Path) -> dict[str, str]:
    """What every command prints, each of which succeeds."""
    made = python(copy, "-c", CALL, input="\n".join(COMMANDS))
    outputs = dict(re.findall(r"^\$ (.*?)\n(.*?)^= 0$", made.stdout, re.MULTILINE | re.DOTALL))
    assert list(outputs) == COMMANDS, made.stdout + made.stderr
    return outputs


def test_a_trainer_is_a_file_and_a_row(printed):
    assert "along it, in one pass" in printed["list trainers textbook"]
    assert "verdict: consistent" in printed["check textbook.yaml --draws 20"]
    assert "textbook" in printed["compare results --metric weight_norm --metric test_accuracy"]


def test_a_new_trainer_is_a_public_name(copy):
    made = python(copy, "-c", "import fgbench; print(fgbench.Textbook().options.name)")
    assert made.stdout.strip() == "textbook", made.stderr


def test_a_model_and_a_dataset_are_a_file_and_a_row_each(printed):
    assert "two convolutions" in printed["list models lenet"]
    assert "stripes under noise" in printed["list datasets stripes"]
    assert "lenet, width=4 on stripes" in printed["run textbook.yaml backprop.yaml --seeds 0-2"]


def test_a_metric_column_is_a_row_and_a_line(copy, printed):
    assert "norm of the weights" in printed["compare results --metric weight_norm --metric test_accuracy"]
    [first, *_] = sorted((copy / "results").glob("textbook/*/metrics.csv"))
    head, *rows = [line.split(",") for line in first.read_text().splitlines()]
    assert rows
    assert all(float(row[head.index("weight_norm")]) > 0 for row in rows)


def test_a_figure_is_a_function_and_a_row(copy, printed):
    paths = printed["plot results --kind throughput"].splitlines()
    assert paths
    for line in paths:
        assert (copy / line).stat().st_size > 5_000
        assert "throughput" in line


def test_a_claim_is_a_row_of_claims_yaml(printed):
    assert "Any forward gradient is less accurate than backprop." in printed["claims results"]


def test_a_command_is_a_function_and_a_row(printed):
    assert re.match(r"results/\w+/s\d-\w+: \d\.\d{4}\n", printed["best results"])


def test_imports_still_only_go_down(copy):
    (copy / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "test_rooms.py", copy / "tests")
    made = python(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_rooms.py")
    assert made.returncode == 0, made.stdout


def test_the_files_that_the_how_tos_add_pass_ruff(copy):
    pytest.importorskip("ruff", reason="pip install 'fgbench[dev]'")
    shutil.copy(ROOT / "pyproject.toml", copy)
    files = {path for path, _, _ in STEPS if path.endswith(".py")}
    for check in (("check",), ("format", "--check")):
        made = python(copy, "-m", "ruff", *check, "--no-cache", *sorted(files))
        assert made.returncode == 0, made.stdout
