"""Commands that only look start without importing torch."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from fgbench.cli.app import main
sys.argv[0] = "fgbench"
try:
    main()
finally:
    heavy = {"torch", "torchvision", *(%r)} & set(sys.modules)
    print("imported:", *sorted(heavy), file=sys.stderr)
"""
LIGHT = ["yaml", "pandas", "matplotlib", "numpy", "scipy", "rich"]


def heavy_imports(arguments, cwd, also=()):
    command = [sys.executable, "-c", SCRIPT % list(also), *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    return done.stderr.rpartition("imported:")[2].split(), done


@pytest.mark.parametrize("arguments", ["--help", "run --help", "plot --help", "compare --help", "--version"])
def test_help_imports_no_library_but_typers(tmp_path, arguments):
    heavy, done = heavy_imports(arguments, tmp_path, LIGHT)
    assert done.returncode == 0
    assert heavy == []


@pytest.mark.parametrize(
    "arguments",
    [
        "list trainers",
        "list datasets imagefolder",
        "list models resnet18",
        "list keys",
        "config show a.yaml",
        "config validate a.yaml",
        "config schema",
        "plot results",
        "compare results",
        "claims results",
        "status results",
        "run a.yaml --seeds x",
    ],
)
def test_looking_does_not_import_torch(tmp_path, arguments):
    (tmp_path / "a.yaml").write_text("dataset: mnist\nmodel: cnn\ntrainer: zeroth-order\n")
    (tmp_path / "results").mkdir()
    heavy, done = heavy_imports(arguments, tmp_path)
    assert "Traceback" not in done.stderr
    assert heavy == []


def test_the_library_imports_torch_only_for_what_needs_it():
    code = (
        "import sys, fgbench; fgbench.ConfigError, fgbench.load_config, dir(fgbench), fgbench.__version__;"
        "assert 'torch' not in sys.modules; fgbench.Backprop; assert 'torch' in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_name_of_the_library_can_be_imported():
    import fgbench

    for name in fgbench.__all__:
        assert getattr(fgbench, name).__doc__
    assert set(fgbench.__all__) <= set(dir(fgbench))
    with pytest.raises(AttributeError):
        fgbench.no_such_name  # noqa: B018
