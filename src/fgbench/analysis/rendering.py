"""Tables as plain text, Markdown, CSV and LaTeX. Imports no torch."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from fgbench.analysis.formats import Format
from fgbench.analysis.tables import align


@dataclass(frozen=True)
class Table:
    """Cells as text.

    Attributes:
        title: what it shows.
        head: names of the columns.
        rows: as long as ``head``.
        notes: lines to stand below it.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def render(tables: Sequence[Table], form: Format | str) -> str:
    """The tables in one text, without a newline at its end; CSV has neither titles nor notes."""
    write = {
        Format.text: _to_text,
        Format.markdown: _to_markdown,
        Format.csv: _to_csv,
        Format.latex: _to_latex,
    }[Format(form)]
    return "\n\n".join(write(table) for table in tables)


def _to_text(table: Table) -> str:
    return "\n".join(filter(None, [table.title, align([table.head, *table.rows]), *table.notes]))


def _to_markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_escape(cell, MARKDOWN) for cell in cells) + " |"

    rule = "|" + "---|" * len(table.head)
    title = [f"**{_escape(table.title, MARKDOWN)}**", ""] if table.title else []
    notes = [part for note in table.notes for part in ("", _escape(note, MARKDOWN))]
    return "\n".join([*title, line(table.head), rule, *map(line, table.rows), *notes])


def _to_csv(table: Table) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([table.head, *table.rows])
    return buffer.getvalue().rstrip("\n")


def _to_latex(table: Table) -> str:
    """A ``table`` with a ``tabular`` that needs no package but booktabs."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(_escape(cell, LATEX) for cell in cells) + r" \\"

    notes = [rf"\\ {{\footnotesize {_escape(note, LATEX)}}}" for note in table.notes]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            *([rf"\caption{{{_escape(table.title, LATEX)}}}"] if table.title else []),
            rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
            r"\toprule",
            line(table.head),
            r"\midrule",
            *map(line, table.rows),
            r"\bottomrule",
            r"\end{tabular}",
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
