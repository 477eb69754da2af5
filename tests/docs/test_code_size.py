"""The table of what the layout comes to says what is so."""

import re

from pages import PAGES

import code_size


def test_the_table_of_the_layout_is_that_of_the_code():
    measured = code_size.measure()
    for what, value in measured.items():
        [line] = [
            line
            for line in PAGES["docs/architecture.md"].splitlines()
            if line.startswith((f"| {what} ", f"| {what}:"))
        ][:1]
        stated = int(re.sub(r"[^0-9]", "", line.split("|")[-2]))
        if what in ("lines", "longest file", "lines of the README"):
            assert abs(stated - value) <= 0.1 * value, line
        else:
            assert stated == value, line
    assert measured["circles of modules"] == 0
