"""A hook of MkDocs: files that the pages link to outside of docs/ are put into the site.

In the repository ``../results/fc/fc.png`` is such a file; the site has it as ``files/results/fc/fc.png``.
Links to folders, and to Markdown files that are no pages, become plain text.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(\.\./([^)#\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add every file that a page links to."""
    for page in list(files.documentation_pages()):
        for _, _, target in LINK.findall(page.content_string):
            if _is_served(target) and files.get_file_from_path(f"files/{target}") is None:
                files.append(File.generated(config, f"files/{target}", abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point the links to what ``on_files`` has added."""

    def point(link: re.Match[str]) -> str:
        mark, text, target = link.groups()
        return f"{mark}[{text}](files/{target})" if _is_served(target) else text

    return LINK.sub(point, markdown)


def _is_served(target: str) -> bool:
    path = ROOT / target
    if not path.exists():
        raise FileNotFoundError(f"a page of docs/ links to {target}, which is not there")
    return path.is_file() and path.suffix != ".md"
