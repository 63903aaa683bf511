"""Every kind of bad and odd input, through the command line: refused by code, or read with the right SUV and said."""

import math
from pathlib import Path

import pytest
from door import MEMBERS, Member, Read, run, slug

from storage.notes import NOTES


@pytest.mark.parametrize("member", MEMBERS, ids=[slug(member) for member in MEMBERS])
def test_member(member: Member, tmp_path: Path) -> None:
    found = run(member, tmp_path)
    if not isinstance(member.right, Read):
        assert found.code == member.right.code, found.told
        return
    assert found.code == "", found.told
    assert set(found.notes) <= set(NOTES)
    if not math.isnan(member.right.times) and not math.isnan(found.off):
        assert found.off <= 1e-4, found.told
    assert set(member.right.notes) <= set(found.notes), found.told
    if not member.right.notes:
        assert not found.notes, found.told
    assert member.right.said in found.told


def test_there_are_sixty_members_of_twenty_five_kinds() -> None:
    assert len(MEMBERS) >= 60
    assert len({member.kind for member in MEMBERS}) >= 25
    assert len({slug(member) for member in MEMBERS}) == len(MEMBERS)
