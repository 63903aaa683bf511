"""Tables as CSV that spreadsheets can open: a cell of text that begins like a formula stays text."""

import csv
import io
from collections.abc import Iterable, Sequence

from storage.errors import printable

FORMULA = ("=", "+", "-", "@")  # a tab and a line break before them too, and both are escaped


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a header and rows as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_cell(name) for name in columns])
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    """An apostrophe before it lets a spreadsheet take a word for a word; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    word = printable(value)
    if not word.startswith(FORMULA):
        return word
    try:
        float(word)
    except ValueError:
        return f"'{word}"
    return word
