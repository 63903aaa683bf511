"""Tables that a spreadsheet opens: words that begin like formulas stay words, numbers stay numbers."""

import csv
import io

import pytest

from petscale.spreadsheet import csv_text


@pytest.mark.parametrize("cell", ['=HYPERLINK("http://192.0.2.1")', "+1+1", "-cmd|' /C calc'!A0", "@SUM(A1)"])
def test_a_cell_that_begins_like_a_formula_is_text(cell: str) -> None:
    rows = list(csv.reader(io.StringIO(csv_text([cell], [[cell, 1.5]]), newline="")))
    assert rows == [[f"'{cell}"], [f"'{cell}", "1.5"]]


@pytest.mark.parametrize("cell", ["\t=1", "\r=1", "\n=1", "\x1b[2J", "\u202e1+1="])
def test_what_no_eye_sees_is_escaped(cell: str) -> None:
    (row,) = csv.reader(csv_text([cell], []).splitlines())
    assert row == [cell.encode("unicode_escape").decode()]


def test_numbers_and_plain_words_are_as_they_were() -> None:
    row = [-1.5, "-1.5", "+2", "-inf", "phantom-000", "low dose", "", None, "a,b"]
    text = csv_text(["a"] * len(row), [row])
    assert text.splitlines()[1] == '-1.5,-1.5,+2,-inf,phantom-000,low dose,,,"a,b"'
