"""No damaged file passes for another one, ends in a traceback, hangs or takes the machine's memory."""

import mutated
import pytest

COUNT = 300
# Each was once accepted wrongly or ended in something else than a line, and is read for ever.
FOUND: list[mutated.Triple] = [
    (103658, "bytes overwritten", "nii f4 qform"),  # codes of sform and qform that do not exist
    (100556, "several bits", "nii i2 scaled, extension"),
    (101684, "several bits", "nii f4 both"),
    (101625, "block twice", "dcm explicit"),  # pixels pushed out behind their element
    (101479, "several bits", "dcm explicit"),  # pixel data of an impossible VR
    (101039, "several bits", "dcm JPEG 2000"),
    (100523, "fields exchanged", "dcm JPEG 2000"),  # a file meta of another class made a slice vanish
    (100643, "several bits", "dcm JPEG 2000"),
    (101359, "fields exchanged", "dcm explicit"),
    (100229, "bytes deleted", "dcm JPEG-LS"),  # a fragment longer than its bytes
    (7645, "bytes overwritten", "dcm JPEG 2000"),  # at which GDCM aborts the process
    (8013, "several bits", "dcm JPEG-LS"),  # compressed pixels of a stated length
    (139, "bytes inserted", "dcm implicit"),  # air pushed out behind the pixels, the rest shifted
    (51, "bytes inserted", "dcm big-endian"),
    (198, "bytes inserted", "gz u2 qform"),
    (270, "bytes inserted", "nii f4 sform"),
    (105130, "block twice", "nii i2 scaled, extension"),
    (2887, "several bits", "dcm JPEG 2000"),  # an end slice that is damaged and of another series UID
    (5747, "several bits", "dcm RLE"),
    (6539, "several bits", "dcm RLE"),  # an end slice of a class that does not exist
    (6649, "several bits", "dcm big-endian"),
    (9531, "several bits", "dcm explicit"),
]


@pytest.fixture(scope="module")
def findings() -> list[mutated.Finding]:
    """Read in one process of its own, which takes longest to start."""
    return list(mutated.run([*FOUND, *mutated.triples(COUNT)]))


def test_nothing_is_read_wrongly(findings: list[mutated.Finding]) -> None:
    wrong = [(found.triple, found.outcome, found.detail) for found in findings if found.outcome in mutated.FAILED]
    assert not wrong
    assert len(findings) == COUNT + len(FOUND)
    assert max(found.peak_kb for found in findings) < mutated.PEAK_KB


def test_every_kind_meets_every_sort_of_file(findings: list[mutated.Finding]) -> None:
    met = {(found.triple[1], found.triple[2][:3]) for found in findings}
    expected = {(kind, sort) for kind in mutated.KINDS for sort in ("nii", "gz ", "dcm")}
    assert met == expected - {(mutated.ZIPPED, "nii"), (mutated.ZIPPED, "dcm")}


def test_most_damage_is_refused_and_some_does_no_harm(findings: list[mutated.Finding]) -> None:
    """Else the mutations would not be what they are said to be."""
    outcomes = [found.outcome for found in findings]
    assert outcomes.count(mutated.REFUSED) > 0.4 * len(findings)
    for word in (mutated.EQUAL, mutated.OWN):
        assert outcomes.count(word) > 0.05 * len(findings)


def test_equal_triples_give_equal_files() -> None:
    some = list(mutated.triples(48, first_seed=7))
    once = [mutated.mutated(triple) for triple in some]
    mutated.base.cache_clear()
    assert [mutated.mutated(triple) for triple in some] == once
    assert len(set(once)) > 0.9 * len(once)
