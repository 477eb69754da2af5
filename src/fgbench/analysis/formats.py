"""The output formats of tables; a separate module, so that the command line need not import pandas."""

from enum import StrEnum


class Format(StrEnum):
    """How tables are written."""

    text = "text"
    markdown = "markdown"
    md = "md"
    csv = "csv"
    json = "json"
    latex = "latex"

    @property
    def is_data(self) -> bool:
        """Whether it is for programs: only rows, in full precision, without titles and notes."""
        return self in (Format.csv, Format.json)
