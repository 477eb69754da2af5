"""Tables as plain text, Markdown, CSV, JSON and LaTeX."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tabulate import tabulate

from fgbench.analysis.formats import Format


@dataclass(frozen=True)
class Table:
    """Cells as text; where only CSV or JSON is written also numbers, and None for what is missing.

    Attributes:
        title: what it shows.
        head: names of the columns.
        rows: as long as ``head``.
        notes: lines to stand below it.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = ()


def render(tables: Sequence[Table], form: Format | str, width: int | None = None) -> str:
    """The tables in one text, without a newline at its end; CSV and JSON have neither titles nor notes.

    Args:
        tables: what to write.
        form: how.
        width: of the terminal, in letters; plain text that does not fit has a line for every cell.
    """
    writers: dict[Format, Callable[[Table], str]] = {
        Format.text: partial(_to_text, width=width),
        Format.markdown: _to_markdown,
        Format.md: _to_markdown,
        Format.csv: _to_csv,
        Format.json: _to_json,
        Format.latex: _to_latex,
    }
    return "\n\n".join(map(writers[Format(form)], tables))


def align(head: Sequence[str], rows: Sequence[Sequence[str]], style: str = "simple") -> str:
    """A table: its first column to the left, the others to the right; cells are never read as numbers."""
    sides = ["left", *["right"] * (len(head) - 1)]
    return tabulate(rows, head, style, disable_numparse=True, colalign=sides if rows else None)


def _to_text(table: Table, width: int | None) -> str:
    cells = align(table.head, table.rows)
    if width and max(map(len, cells.splitlines())) > width:
        indent = max(map(len, table.head[1:]))
        names = [f"  {name:<{indent}}  " for name in table.head[1:]]
        blocks = [[row[0], *map(str.__add__, names, row[1:])] for row in table.rows]
        cells = "\n\n".join(map("\n".join, blocks)) + "\n" * bool(table.notes)
    return "\n".join(filter(None, [table.title, cells, *table.notes]))


def _to_markdown(table: Table) -> str:
    def escape(cells: Sequence[str]) -> list[str]:
        return [_escape(cell, MARKDOWN) for cell in cells]

    title = [f"**{_escape(table.title, MARKDOWN)}**", ""] if table.title else []
    notes = [part for note in table.notes for part in ("", _escape(note, MARKDOWN))]
    return "\n".join([*title, align(escape(table.head), list(map(escape, table.rows)), "github"), *notes])


def _to_csv(table: Table) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([table.head, *table.rows])
    return buffer.getvalue().rstrip("\n")


def _to_json(table: Table) -> str:
    """A list of objects with the columns' names as keys."""
    return json.dumps(
        [dict(zip(table.head, row, strict=True)) for row in table.rows],
        indent=1,
        ensure_ascii=False,
        allow_nan=False,  # no JSON, though Python would write it
    )


def _to_latex(table: Table) -> str:
    """A ``table`` with a ``tabular`` that needs no package but booktabs."""
    cells = align(table.head, table.rows, "latex_booktabs")  # which escapes all but these
    for character in "±×":
        cells = cells.replace(character, LATEX[character])
    notes = [rf"\\ {{\footnotesize {_escape(note, LATEX)}}}" for note in table.notes]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            *([rf"\caption{{{_escape(table.title, LATEX)}}}"] if table.title else []),
            cells,
            *notes,
            r"\end{table}",
        ]
    )


LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "<": "$<$",
    ">": "$>$",
    "\n": " ",
}
MARKDOWN = {
    **{character: f"\\{character}" for character in "\\|*_`[]#"},
    "<": "&lt;",
    "\n": " ",
}


def _escape(text: str, replacements: dict[str, str]) -> str:
    return "".join(replacements.get(character, character) for character in text)
