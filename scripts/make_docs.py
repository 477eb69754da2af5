"""Writes what the documentation takes from the code and from results/: the command line, and tables.

    python scripts/make_docs.py [--check]

``docs/cli.md`` is written whole; in README and the other pages, what stands between two comments
``<!-- generated: NAME -->`` and ``<!-- end -->``. With ``--check`` nothing is written, and the exit code is 1
where a page is not what the code says.
"""

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import typer

from fgbench.cli.app import COMMANDS, HELP, app
from fgbench.config.describe import describe_component
from fgbench.registry import TRAINERS
from results_tables import HEAD, SUMMARY, summary_rows, trainers_rows

DATA = "Show which datasets are found where."
DOCS = Path(__file__).parents[1] / "docs"


def main() -> int:
    """Write or check; returns the exit code."""
    pages = {DOCS / "cli.md": command_line()}
    for path in (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))):
        text = pages.get(path, path.read_text())
        pages[path] = re.sub(
            r"(<!-- generated: (\w+) -->\n).*?(?=<!-- end -->)",
            lambda found: found[1] + "\n" + BLOCKS[found[2]]() + "\n",
            text,
            flags=re.DOTALL,
        )
    stale = {path: text for path, text in pages.items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        if "--check" in sys.argv:
            print(f"{path} is not what the code says: python scripts/make_docs.py")
        else:
            path.write_text(text)
            print(path)
    return int("--check" in sys.argv and bool(stale))


def trainer_table() -> str:
    """A row for every trainer of the registry."""
    head = ("trainer", "idea", "source", "bias", "cost, forward passes", "uses backwards")
    rows = [
        (f"[`{name}`](#{name})", row.summary, row.source, row.bias, row.cost, row.backwards)
        for name, row in TRAINERS.items()
    ]
    return _table(head, rows)


def trainer_options() -> str:
    """A section for every trainer: its options as ``fgbench list trainers NAME`` prints them."""
    return "\n".join(_options_of(name) for name in TRAINERS)


def _options_of(name: str) -> str:
    _, mark, options = describe_component("trainer", name).partition("  options of trainer:\n")
    lines = textwrap.dedent(options) if mark else "no options"
    return f"### {name}\n\n```text\n{lines}\n```\n"


def command_line() -> str:
    """The page about the command line."""
    parts = [
        "# Command line",
        inspect.cleandoc(HELP),
        _table(
            ("command", "what it does"),
            [
                (f"[`fgbench {name}`](#fgbench-{name.replace(' ', '-')})", line)
                for name, line in {**{name: row[1] for name, row in COMMANDS.items()}, "data": DATA}.items()
            ],
        ).rstrip(),
        *(_command(name) for name in COMMANDS),
        _command("data"),
    ]
    return "<!-- written by scripts/make_docs.py -->\n" + "\n\n".join(parts) + "\n"


def _command(name: str) -> str:
    command: Any = typer.main.get_command(app)
    for word in name.split():
        command = command.commands[word]
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    usage = [each.metavar or each.name.upper() for each in arguments]
    usage = [
        word + ("..." if each.nargs == -1 else "") if each.required else f"[{word}]"
        for word, each in zip(usage, arguments, strict=True)
    ]
    rows = [
        (
            ", ".join(f"`{word}`" for word in (*each.opts, *each.secondary_opts))
            if each.param_type_name == "option"
            else f"`{each.metavar or each.name.upper()}`",
            " ".join((each.help or "").split()),
            _default(each),
        )
        for each in command.params
        if each.name != "help"
    ]
    text = "\n\n".join(_paragraphs(command.help))
    table = "\n\n" + _table(("argument or option", "meaning", "default"), rows).rstrip() if rows else ""
    line = " ".join([f"fgbench {name}", *usage, *(["[OPTIONS]"] if len(rows) > len(usage) else [])])
    return f"## fgbench {name}\n\n```text\n{line}\n```\n\n{text}{table}"


def _paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a docstring; examples as code."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        line = " ".join(paragraph.split())
        yield f"Example: `{line.removeprefix('Example: ')}`" if line.startswith("Example: ") else line


def _default(param: Any) -> str:
    if not param.show_default or param.default in (None, False, [], ()) or callable(param.default):
        return ""
    values = param.default if isinstance(param.default, list | tuple) else [param.default]
    return ", ".join(f"`{getattr(value, 'value', value)}`" for value in values)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    cells = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in cells)


def tuned_trainers(name: str) -> str:
    """Every trainer of a folder of results."""
    return _table(HEAD, trainers_rows(name))


def summary() -> str:
    """Every tuned trainer with its accuracies."""
    return _table(("trainer", "uses backwards", *SUMMARY.values()), summary_rows())


BLOCKS = {
    "trainer_table": trainer_table,
    "trainer_options": trainer_options,
    "summary": summary,
    **{
        name: partial(tuned_trainers, name)
        for name in ("trainers", "cnn_trainers", "cnn_best", "cnn_best_cifar10")
    },
}
"""What stands between the comments of its name."""


if __name__ == "__main__":
    sys.exit(main())
