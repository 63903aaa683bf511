"""No damaged file of a cohort, a run or a study ends in a traceback, or is taken for what was written."""

import mutated_stores as mutated
import pytest

COUNT = 300
# Each once ended in something else than a line, or was accepted wrongly, and is read for ever.
FOUND: list[mutated.Triple] = [
    (142, "value replaced, digests made anew", "checkpoint meta"),  # no number of steps
    (154, "field removed, digests made anew", "checkpoint meta"),
    (1504, "field renamed, digests made anew", "image zarr.json"),  # statistics without a maximum
    (376, "values exchanged, digests made anew", "image zarr.json"),  # numbers of an affine as texts
    (2872, "values exchanged, digests made anew", "image zarr.json"),
]


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> list[mutated.Finding]:
    return list(mutated.run([*FOUND, *mutated.triples(COUNT)], tmp_path_factory.mktemp("stores")))


def test_nothing_is_read_wrongly(findings: list[mutated.Finding]) -> None:
    assert not [found for found in findings if found.outcome in mutated.FAILED]
    assert len(findings) == COUNT + len(FOUND)


def test_every_kind_meets_every_file_and_some_do_no_harm(findings: list[mutated.Finding]) -> None:
    """Else the mutations would not be what they are said to be."""
    assert {found.triple[1:] for found in findings} >= {
        (kind, base) for kind in mutated.KINDS for base in mutated.BASES
    }
    outcomes = [found.outcome for found in findings]
    assert outcomes.count(mutated.REFUSED) > 0.4 * len(findings)
    for word in (mutated.EQUAL, mutated.OLDER, mutated.OWN):
        assert outcomes.count(word) > 5
