"""What README and docs say can be done, can be done."""

import re
import shlex
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from data_files import write_all
from pages import PAGES, README, ROOT, blocks
from torch import nn
from torch.func import functional_call

from fgbench.cli.app import COMMANDS, app

SMALL = ["-o", "epochs=1", "-o", "dataset.limit=200", "-o", "dataset.test_limit=50"]
SHORTER = {
    "run": SMALL,
    "demo": SMALL,
    "check": ["-o", "model.hidden=8", "--draws", "50"],
    "sweep": ["--dry-run", *SMALL],
    "tune": ["--help"],
    "bench": ["--help"],
}
"""What is added to a command so that the tests stay quick."""
DEMO = "fgbench run configs/demo_bp.yaml configs/demo_fg.yaml --seeds 0-2 --results demo"


def commands(text: str) -> list[str]:
    return [
        line for block in blocks(text, "sh") for line in block.splitlines() if line.startswith("fgbench ")
    ]


def call(line: str) -> None:
    arguments = shlex.split(line, comments=True)[1:]
    arguments = [each for word in arguments for each in (sorted(glob(word)) or [word])]  # noqa: PTH207
    with pytest.raises(SystemExit) as exit_:
        app([*arguments, *SHORTER.get(arguments[0], [])])
    assert exit_.value.code == 0, line


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A folder such as a user has, with images, configs, results and the demo's runs."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("configs", "results"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "configs" / "sweeps" / "twelve.yaml", folder / "study.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        call(DEMO)
    return SimpleNamespace(folder=folder, images=write_all(folder / "images"))


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if commands(text)])
def test_every_command_works_in_the_order_given(workplace, monkeypatch, capsys, page) -> None:
    monkeypatch.chdir(workplace.folder)
    monkeypatch.setenv("FGBENCH_DATA_DIR", str(workplace.images))
    for line in commands(PAGES[page]):
        if "--ray" not in line:
            call(line)
    if page == "README.md":
        [figure] = Path("demo").glob("fc_fashion-mnist-mini-limit-200-test_limit-50.png")
        assert figure.stat().st_size > 10_000


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


@pytest.mark.parametrize("page", ["README.md", "docs/trainers.md"])
def test_the_textbook_loop_estimates_the_gradient(page) -> None:
    [loop] = [block for block in blocks(PAGES[page], "python") if "torch.func.jvp" in block]
    torch.manual_seed(0)
    model, loss_fn = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), nn.CrossEntropyLoss()
    inputs, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 0, 1, 2])
    names = {
        "torch": torch,
        "functional_call": functional_call,
        "model": model,
        "loss_fn": loss_fn,
        "optimizer": SimpleNamespace(step=lambda: None),
        "batches": [(inputs, labels)],
    }
    exec(loop, names)
    gradient = torch.autograd.grad(loss_fn(model(inputs), labels), list(model.parameters()))
    tangents = list(names["v"].values())
    along = sum((mine * other).sum() for mine, other in zip(gradient, tangents, strict=True))
    assert names["value"] == loss_fn(model(inputs), labels)
    for param, tangent in zip(model.parameters(), tangents, strict=True):
        assert torch.allclose(param.grad, along * tangent, rtol=1e-4, atol=1e-6)


def test_the_library_example_fills_gradients_and_steps() -> None:
    [example] = [block for block in blocks(README, "python") if "import fgbench" in block]
    names: dict = {}
    exec(example, names)
    assert names["model"][1].weight.grad.abs().sum() > 0
    assert names["stats"].directional_derivatives.shape == (4,)


CONFIGS = [(page, index) for page, text in PAGES.items() for index in range(len(blocks(text, "yaml")))]


@pytest.mark.parametrize(("page", "index"), CONFIGS)
def test_every_config_shown_is_valid(tmp_path, capsys, page, index) -> None:
    """One that names no dataset is read as changes of the demo's."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    text = blocks(PAGES[page], "yaml")[index]
    if not re.search(r"^(dataset|extends):", text, re.MULTILINE):
        text = f"extends: demo_fg.yaml\n{text}"
    path = tmp_path / "configs" / "example.yaml"
    path.write_text(text)
    call(f"fgbench config validate {path}")
    assert "valid" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page) -> None:
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]+))?\)", text):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_nothing_written_is_taken_for_html_and_vanishes(page) -> None:
    text = re.sub(r"```.*?```|`[^`]*`|<!--.*?-->", "", PAGES[page], flags=re.DOTALL)
    assert not re.findall(r"<[A-Za-z/][^>\n]*>", text)


def test_pages_made_from_the_code_are_what_the_code_says() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "make_docs.py", "--check"], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stdout + made.stderr


def test_the_site_builds_without_a_warning(tmp_path) -> None:
    pytest.importorskip("mkdocs", reason="pip install 'fgbench[docs]'")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "files" / "results" / "fc" / "fc_fashion-mnist.png").exists()
