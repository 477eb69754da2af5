"""The code, configs, links and tables of README and docs are right; test_commands.py has the commands."""

import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from pages import PAGES, README, ROOT, blocks
from torch import nn
from torch.func import functional_call

from fgbench.cli.app import app


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
    with pytest.raises(SystemExit) as exit_:
        app(["config", "validate", str(path)])
    assert exit_.value.code == 0
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
