"""What README and docs say can be run, runs: every command, in the order of its page, on less data.

What is smaller than the pages say: a run has one epoch of 200 images, a sweep file two trainers and one seed,
and tuning two trials; ``fgbench bench`` measures backprop and one forward gradient in three rounds of single
steps, on the FC and the CNN with images of 8x8 pixels. ``ray start`` gets a port of its own, and 10.0.0.1 is
this machine.
"""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
import yaml
from data_files import write_all
from pages import PAGES, README, ROOT, blocks

from fgbench.cli.app import COMMANDS, app

DEMO = "fgbench run configs/demo_bp.yaml configs/demo_fg.yaml --seeds 0-2 --results demo"
SMALL = ["-o", "epochs=1", "-o", "dataset.limit=200", "-o", "dataset.test_limit=50"]
SHORTER = {
    "run": SMALL,
    "demo": SMALL,
    "check": ["-o", "model.hidden=8", "--draws", "50"],
    "sweep": SMALL,
    "tune": [*SMALL, "--trials", "2"],
    "bench": ["--quick", "--rounds", "3", "--batch-size", "2"],
}
"""What is added to a command so that the tests stay quick."""
BEGINNINGS = ("fgbench ", "torchrun ", "ray ")


def commands(text: str) -> list[str]:
    """The commands of a page: lines of shell blocks, and lines after a prompt in blocks of text."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    lines += [line[2:] for block in blocks(text, "text") for line in block.splitlines() if line[:2] == "$ "]
    return [line for line in lines if line.startswith(BEGINNINGS)]


def words(line: str) -> list[str]:
    """The words of a command after its program, patterns filled in, and what makes it quicker."""
    arguments = shlex.split(line, comments=True)[1:]
    arguments = [each for word in arguments for each in (sorted(glob(word)) or [word])]  # noqa: PTH207
    command = arguments[arguments.index("fgbench") + 1] if "fgbench" in arguments else arguments[0]
    return [*arguments, *SHORTER.get(command, [])]


def call(line: str) -> None:
    """Run a command in this process."""
    with pytest.raises(SystemExit) as exit_:
        app(words(line))
    assert exit_.value.code == 0, line


def start(*command: str) -> str:
    """Run a command as a process; gives its output."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A folder such as a user has, with images, configs, results and the demo's runs."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("configs", "results"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("twelve", "learning_rate"):
        path = folder / "configs" / "sweeps" / f"{name}.yaml"
        spec = yaml.safe_load(path.read_text())
        path.write_text(yaml.dump(spec | {"axes": {"trainer": spec["axes"]["trainer"][:2]}, "seeds": [0]}))
    shutil.copy(folder / "configs" / "sweeps" / "twelve.yaml", folder / "study.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        call(DEMO)
    return SimpleNamespace(folder=folder, images=write_all(folder / "images"))


@pytest.fixture
def here(workplace, monkeypatch) -> Path:
    """Works in the user's folder."""
    monkeypatch.chdir(workplace.folder)
    monkeypatch.setenv("FGBENCH_DATA_DIR", str(workplace.images))
    return workplace.folder


@pytest.fixture
def smaller_bench(monkeypatch) -> None:
    from fgbench.bench import bench

    build = bench.build_model

    def build_for_small_images(options, *rest):
        monkeypatch.setattr(bench, "IMAGE_SHAPE", (1, 8, 8) if options.name in ("fc", "cnn") else (1, 28, 28))
        return build(options, bench.IMAGE_SHAPE, *rest[1:])

    monkeypatch.setattr(bench, "build_model", build_for_small_images)
    monkeypatch.setattr(bench, "TURN_S", 0)
    monkeypatch.setattr(bench, "VARIANTS", {name: bench.VARIANTS[name] for name in bench.IN_LOOP})


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if commands(text)])
def test_every_command_works_in_the_order_given(here, smaller_bench, capsys, page) -> None:
    for line in commands(PAGES[page]):
        if line.startswith("torchrun "):
            assert "2 workers" in start("torch.distributed.run", *words(line))
        elif line.startswith("fgbench ") and "--ray" not in line:
            call(line)
    if page == "README.md":
        [figure] = Path("demo").glob("fc_fashion-mnist-mini-limit-200-test_limit-50.png")
        assert figure.stat().st_size > 10_000
    if page == "docs/costs.md":
        assert len(list(here.glob("results/bench/*/bench.csv"))) == 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster that was started as docs/ray.md says."""
    pytest.importorskip("ray")
    [line] = [line for line in commands(PAGES["docs/ray.md"]) if "127.0.0.1" in line and "ray start" in line]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # its sockets' paths have to be short
    own = ["--port", port, "--temp-dir", folder, "--object-store-memory", "80000000", "--block"]
    variables = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    ray = [sys.executable, "-m", "ray.scripts.scripts", *words(line), *own]
    head = subprocess.Popen(ray, env=os.environ | variables, stdout=subprocess.PIPE, text=True)
    for said in head.stdout:
        if "Ray runtime started" in said:
            break
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield f"127.0.0.1:{port}"
    head.terminate()
    head.communicate()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(name, marks=[] if name == "docs/ray.md" else pytest.mark.nightly)
        for name, text in PAGES.items()
        if "--ray" in " ".join(commands(text))
    ],
)
def test_every_command_that_uses_ray_works_on_a_cluster(here, cluster, page) -> None:
    for index, line in enumerate(line for line in commands(PAGES[page]) if "--ray" in line):
        told = start("fgbench", *words(re.sub(r"[\d.]+:6379", cluster, line)))
        assert "2 runs: 2 finished" in told or (index and "2 of 2 runs have ended already" in told), told


def test_ray_has_the_options_that_the_docs_give_it() -> None:
    scripts = pytest.importorskip("ray.scripts.scripts")
    for line in {line for text in PAGES.values() for line in commands(text) if line.startswith("ray ")}:
        name, *options = words(line)
        scripts.cli.commands[name].make_context(name, options)


def test_every_command_named_in_a_sentence_has_these_arguments_and_options() -> None:
    for page, text in PAGES.items():
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for line in re.findall(r"`fgbench ([^`]+)`", prose.replace("\n", " ")):
            command = typer.main.get_command(app)
            arguments = shlex.split(line)
            while hasattr(command, "commands") and arguments:
                assert arguments[0] in command.commands, f"{page}: fgbench {line}"
                command = command.commands[arguments.pop(0)]
            known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
            used = {word for word in arguments if word.startswith("-")}
            assert used <= known | {"--help"}, f"{page}: fgbench {line}"


def test_the_slurm_script_is_valid_shell() -> None:
    [script] = [block for block in blocks(PAGES["docs/ray.md"], "sh") if "#SBATCH" in block]
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr


def test_the_readme_has_every_command() -> None:
    for name in COMMANDS:
        assert re.search(rf"\b{name.split()[0]}\b", "\n".join(blocks(README, "sh"))), name


def test_the_readme_is_short_and_begins_with_how_to_begin() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    begin = "\n".join(lines[:50])
    assert DEMO in begin
    assert "pip install" in begin
    assert "fgbench plot" in begin
