"""The forms tables are written in; apart, so that the command line need not import pandas to name them."""

from enum import StrEnum


class Format(StrEnum):
    """How tables are written."""

    text = "text"
    markdown = "markdown"
    csv = "csv"
    json = "json"
    latex = "latex"

    @classmethod
    def _missing_(cls, value: object) -> "Format | None":
        return cls.markdown if value == "md" else None
