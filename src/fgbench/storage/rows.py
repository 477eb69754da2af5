"""The rows of metrics.csv as text, and back."""

import csv
import io
from collections.abc import Mapping, Sequence

from fgbench.storage.metrics import METRICS, TEXT_COLUMNS, Cell


def csv_line(cells: Sequence[str]) -> str:
    """One line of CSV, with its end."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


def row_line(row: Mapping[str, Cell]) -> str:
    """The line of a row with the columns of ``METRICS``; what the row lacks is empty."""
    return csv_line([to_text(row.get(column)) for column in METRICS])


def to_text(value: Cell) -> str:
    """A cell's text: numbers in full precision, texts on one line."""
    if value is None:
        return ""
    if isinstance(value, float):
        return float.__repr__(value)
    return " ".join(str(value).split())


def from_text(column: str, text: str) -> Cell:
    """A cell from its text.

    Raises:
        ValueError: no number where the column has numbers.
    """
    if column in TEXT_COLUMNS or not text:
        return text or None
    return int(text) if column == "epoch" else float(text)


def intact_rows(content: bytes) -> list[dict[str, str]]:
    """The rows of a file up to the first that is damaged, incomplete or out of order."""
    whole = content[: content.rfind(b"\n") + 1].decode("utf-8-sig", errors="replace").split("\n")
    whole = [line.removesuffix("\r") for line in whole]
    header = next(csv.reader(whole[:1]), [])
    rows: list[dict[str, str]] = []
    last = 0
    for line in whole[1:-1]:
        try:
            row = dict(zip(header, next(csv.reader([line], strict=True)), strict=True))
            for column in header:
                from_text(column, row[column])
            if int(row["epoch"]) <= last:
                break
            last = int(row["epoch"])
        except (ValueError, KeyError, StopIteration, csv.Error):
            break
        rows.append(row)
    return rows
