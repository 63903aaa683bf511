"""The table at the end of an ingest: what a terminal sees, and what a pipe does."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from petscale.data.ingest_table import note_lines, repeated_lines, show_ingested
from storage.ingest import CasePlan, ingest
from storage.phantom import PhantomConfig, phantom
from storage.source import ArraySource

BODY = phantom(PhantomConfig(shape=(24, 20, 20), spacing_mm=(24.0, 20.0, 20.0)))


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noted")
    facts = {"notes": ["reference_spread_above_1_percent"], "reference_spread_percent": 10.9, "suv_per_unit": 2.5e-4}
    pet = ArraySource(BODY.activity.read(0, 24), BODY.activity.grid, "SUVbw", {**facts, "tracer": "FDG"})
    ingest(folder, {name: lambda _, name=name: CasePlan({"full": pet}, name, name) for name in ("a", "b")}, strict=True)  # type: ignore[misc]
    return folder


@pytest.mark.parametrize("terminal", [True, False])
def test_a_row_says_factor_tracer_and_notes_and_the_folder_on_a_terminal_alone(noted: Path, terminal: bool) -> None:
    out = io.StringIO()
    show_ingested(Console(file=out, force_terminal=terminal, width=200), noted, ["a"], {"a": "DOE_JOHN\x1b[1m"})
    told = out.getvalue()
    for word in ("0.00025", "24 x 20 x 20", "FDG", "full", "reference_spread_above_1_percent (10.9 %)"):
        assert word in told
    assert ("DOE_JOHN\\x1b" in told) == terminal


def test_notes_stand_in_sentences_and_repeated_scans_are_told(noted: Path) -> None:
    (line,) = note_lines(noted, ["a", "b"])
    assert line.startswith("note full: reference_spread_above_1_percent (2 of 2 cases: a, b): the header's times")
    (repeated,) = repeated_lines(noted, ["b"])
    assert repeated.startswith("look at: a, b hold one and the same scan, voxel for voxel, as cases of 2 patients")
