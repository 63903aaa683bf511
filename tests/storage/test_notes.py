"""Notes: every one is explained, on the page and in the code alike."""

import re
from pathlib import Path

from storage.notes import NOTES, of, sentence, weighty

PAGE = Path(__file__).parents[2] / "docs/notes.md"


def test_the_page_lists_every_note_as_it_is_said() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (yes)? ?\|$", PAGE.read_text(), re.MULTILINE)
    assert {name: (says, bool(yes)) for name, says, yes in rows} == {
        name: (note.says, note.of_weight) for name, note in NOTES.items()
    }


def test_a_note_of_a_later_version_is_of_weight_and_says_its_name() -> None:
    assert weighty(["small_animal", "of_a_later_version", "dates_days_apart", "dates_days_apart"]) == [
        "of_a_later_version",
        "dates_days_apart",
    ]
    assert sentence("of_a_later_version") == "of_a_later_version"


def test_notes_are_read_from_a_provenance() -> None:
    assert of({"notes": ["a", "b"]}) == ("a", "b")
    assert of({}) == ()
