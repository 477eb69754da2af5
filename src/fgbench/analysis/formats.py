"""The forms tables are written in; apart, so that the command line need not import pandas to name them."""

from enum import StrEnum


class Format(StrEnum):
    """How tables are written."""

    text = "text"
    markdown = "markdown"
    csv = "csv"
    latex = "latex"
