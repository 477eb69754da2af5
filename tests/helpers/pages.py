"""The pages that users read: README, docs/ and the guides beside the code."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "configs" / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
README = PAGES["README.md"]


def blocks(text: str, language: str) -> list[str]:
    """What stands in a page's fences of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def plain(text: str) -> str:
    """A page's text on one line."""
    return " ".join(text.split())
