"""What was noted of the data when they were ingested, in the sentences of a report."""

from collections.abc import Mapping, Sequence
from typing import Any

from petscale.data.inspection import noted, origins
from storage import notes
from storage.reader import Case, Cases


def doubts_of_run(opened: Cases, facts: Mapping[str, Any], tested: Sequence[str], images: Sequence[str]) -> list[str]:
    """Say what was noted of the cases that a page is about, and of those that its run was trained on, if they are here.

    Args:
        facts: of the run, with the names of its cases by their role.
        tested: cases that the page is about; none for a sweep, which reads no test patient.
        images: names of the images that the page is about.
    """
    trained = [name for role in ("train", "unpaired", "validation") for name in facts.get(role, ())]
    lines = doubts_of({name: opened.case(name) for name in tested}, *images, what="test") if tested else []
    if set(trained) <= set(opened.cases):
        lines += doubts_of({name: opened.case(name) for name in trained}, *images, what="training")
    return lines


def doubts_of(cases: Mapping[str, Case], *images: str, what: str) -> list[str]:
    """Say what was noted of the images of cases, and of the scans that simulations started from: a sentence per note.

    Args:
        images: names of the images that a page is about; a case may lack some.
        what: what the cases are for: test or training.
    """
    found: dict[str, dict[str, float]] = {}
    for name, case in cases.items():
        for image in dict.fromkeys(name for name in images if name in case.images):
            for facts in origins(case.image(image).provenance):
                for note in noted(facts):
                    spread = facts.get("reference_spread_percent") if note.startswith("reference_spread") else None
                    percent = float(spread) if isinstance(spread, int | float) else 0.0
                    of = found.setdefault(note, {})
                    of[name] = max(percent, of.get(name, 0.0))
    lines = []
    for note, of in found.items():
        weight = "of weight, " if notes.weighty([note]) else ""
        most = f", up to {max(of.values()):.3g} %" if max(of.values()) else ""
        lines.append(f"{notes.sentence(note)} ({weight}{len(of)} of {len(cases)} {what} cases{most}).")
    return lines
