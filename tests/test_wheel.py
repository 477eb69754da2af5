"""The wheel: everything the package needs and nothing else; installed, it trains and draws."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHORT = ["-o", "epochs=1", "-o", "dataset.limit=200", "-o", "dataset.test_limit=50"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [path] = folder.glob("fgbench-*-py3-none-any.whl")
    return path


def check_demo(command, folder, env=None):
    """Run the demo in an empty folder and find its runs and figure there."""
    folder.mkdir()
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | (env or {})
    done = subprocess.run([*command, "demo", *SHORT], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "forward-gradient" in done.stdout
    assert sorted(path.parent.name for path in folder.glob("demo/*/s0-*")) == ["demo_bp", "demo_fg"]
    [figure] = folder.glob("demo/*.png")
    assert str(figure.relative_to(folder)) in done.stdout
    assert done.stdout.endswith("fgbench report demo\n")


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        inside = {name for name in file.namelist() if ".dist-info/" not in name}
        [entry_points] = [file.read(name) for name in file.namelist() if name.endswith("entry_points.txt")]
    source = ROOT / "src"
    needed = {
        str(path.relative_to(source))
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == needed
    assert {"fgbench/config/demo/demo_bp.yaml", "fgbench/config/demo/demo_fg.yaml"} < inside
    assert b"fgbench = fgbench.cli.app:main" in entry_points


def test_the_demo_runs_from_what_the_wheel_holds(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    where = {"PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-P", "-c", "import fgbench; print(fgbench.__file__)"]
    done = subprocess.run(command, env=os.environ | where, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path / "site"))
    check_demo([sys.executable, "-P", "-m", "fgbench"], tmp_path / "empty", where)


def test_the_demos_configs_are_those_of_the_repository():
    for name in ("demo_bp.yaml", "demo_fg.yaml"):
        assert (ROOT / "configs" / name).samefile(ROOT / "src" / "fgbench" / "config" / "demo" / name)


@pytest.mark.nightly
def test_the_demo_runs_in_a_new_environment_with_nothing_but_the_wheel(wheel, tmp_path):
    """Installs torch: needs a package index, several minutes and gigabytes."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    programs = tmp_path / "venv" / "bin"
    subprocess.run([str(programs / "pip"), "install", "--quiet", str(wheel)], check=True)
    check_demo([str(programs / "fgbench")], tmp_path / "empty")
