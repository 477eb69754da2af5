"""What the README says can be done, can be done."""

import re
import shlex
from pathlib import Path

import pytest

from fgbench.cli.app import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("fgbench ")
]
SHORTER = {
    "run": ["--epochs", "1", "-o", "dataset.limit=200", "-o", "dataset.test_limit=50"],
    "check": ["-o", "model.hidden=8", "--draws", "50"],
    "sweep": ["--dry-run"],
    "tune": ["--help"],
    "bench": ["--help"],
}
"""What is added to a command so that the tests stay quick."""


def call(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    arguments = shlex.split(line, comments=True)[1:]
    with pytest.raises(SystemExit) as exit_:
        app([*arguments, *SHORTER.get(arguments[0], [])])
    captured = capsys.readouterr()
    assert exit_.value.code == 0, f"{line}: {captured.err}"
    return captured.out


def test_every_command_works_in_the_order_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from data_files import write_all

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FGBENCH_DATA_DIR", str(write_all(tmp_path / "images")))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "results").symlink_to(ROOT / "results")
    for line in COMMANDS:
        call(line, capsys)
    [figure] = (tmp_path / "demo").glob("fc_fashion-mnist-mini-limit-200-test_limit-50.png")
    assert figure.stat().st_size > 10_000


def test_the_library_example_fills_gradients_and_steps(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(example, names)
    assert names["model"][1].weight.grad.abs().sum() > 0
    assert names["stats"].directional_derivatives.shape == (4,)


def test_the_example_config_is_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "example.yaml").write_text(re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)[0])
    assert "valid" in call(f"fgbench config validate {tmp_path / 'example.yaml'}", capsys)


def test_every_file_and_figure_linked_exists() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_trainer_is_described() -> None:
    from fgbench.registry import TRAINERS

    for name in TRAINERS:
        assert f"`{name}`" in README
