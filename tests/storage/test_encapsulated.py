"""Fragments are found where they lie, in every form that the standard allows; a file that was cut is refused unread."""

import contextlib
import io
import struct
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from encoded_frames import DELIMITER, element
from hypothesis import given
from hypothesis import strategies as st

from storage.encapsulated import find_frames, read_frame
from storage.errors import InputError

FRAMES = st.lists(st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=4), min_size=1, max_size=5)
LONE = [[b"\xff\xd8" + bytes(range(200)) + b"\xff\xd9"]]


Table = tuple[tuple[int, ...], tuple[int, ...]] | None


def found(data: bytes, folder: Path, frames: int = 1, extended: Table = None) -> list[bytes]:
    file = folder / "slice.dcm"
    file.write_bytes(data)
    with file.open("rb") as stream:
        spans = find_frames(stream, file, frames, extended)
    return [read_frame(file, each) for each in spans]


def refused(data: bytes, folder: Path, frames: int = 1, extended: Table = None) -> str:
    with pytest.raises(InputError, match=r"^DCM_ENCAPSULATION slice.dcm: ") as error:
        found(data, folder, frames, extended)
    assert "\n" not in str(error.value)
    return error.value.found


def even(fragments: Sequence[bytes]) -> bytes:
    return b"".join(fragment + b"\0" * (len(fragment) % 2) for fragment in fragments)


@given(frames=FRAMES)
def test_frames_by_the_basic_table(tmp_path_factory: pytest.TempPathFactory, frames: list[list[bytes]]) -> None:
    folder = tmp_path_factory.mktemp("f")
    assert found(element(frames, table=True), folder, len(frames)) == [even(each) for each in frames]


@given(fragments=st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=9))
def test_without_a_table(tmp_path_factory: pytest.TempPathFactory, fragments: list[bytes]) -> None:
    """All fragments are the one frame, or each is one of several frames."""
    folder = tmp_path_factory.mktemp("f")
    assert found(element([fragments]), folder) == [even(fragments)]
    assert found(element([[each] for each in fragments]), folder, len(fragments)) == [even([f]) for f in fragments]
    if len(fragments) > 2:
        assert "no offset table" in refused(element([fragments]), folder, len(fragments) - 1)


def test_extended_table(tmp_path: Path) -> None:
    """Its lengths are without padding."""
    frames = [[b"abc"], [b"defg"], [b"h"]]
    offsets, lengths = (0, 12, 24), (3, 4, 1)
    assert found(element(frames), tmp_path, 3, (offsets, lengths)) == [b"abc", b"defg", b"h"]
    for wrong in [
        ((0, 12), (3, 4)),
        ((0, 12, 25), lengths),
        ((0, 24, 12), lengths),
        (offsets, (3, 4, 3)),
        (offsets, (1, 4, 1)),
    ]:
        assert "extended offset table" in refused(element(frames), tmp_path, 3, wrong)


def test_a_fragment_of_odd_length_is_read_as_it_is(tmp_path: Path) -> None:
    odd = element([[b"abcd"]]).replace(b"\x04\0\0\0abcd", b"\x03\0\0\0abc")
    assert found(odd, tmp_path) == [b"abc"]


@pytest.mark.parametrize("table", [False, True])
def test_a_cut_at_every_byte_is_refused(tmp_path: Path, table: bool) -> None:
    """Whether or not somebody closed the file again with a delimiter."""
    whole = element([[LONE[0][0], b"another fragment"]], table)
    assert found(whole, tmp_path)
    for end in range(len(whole)):
        refused(whole[:end], tmp_path)
    body = len(whole) - len(DELIMITER)
    second = body - len(b"another fragment") - 8  # there the delimiter may stand: the frame's own end tells of that cut
    first = second - len(LONE[0][0]) - 8
    for end in set(range(12, body)) - {second, first}:
        refused(whole[:end] + DELIMITER, tmp_path)
    assert "without a fragment" in refused(whole[:first] + DELIMITER, tmp_path)


@pytest.mark.parametrize(
    ("rest", "good"),
    [
        (b"", True),
        (b"\xfc\xff\xfc\xffOB\0\0\x04\0\0\0\0\0\0\0", True),
        (b"\xfa\xff\xfa\xffSQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\xdd\xe0\0\0\0\0", True),
        (b"\xfc\xff\xfc\xffOB\0\0\x05\0\0\0\0\0\0\0", False),
        (b"\0", False),
        (b"MZ and a program", False),
        (DELIMITER, False),
    ],
)
def test_nothing_follows_but_what_may(tmp_path: Path, rest: bytes, good: bool) -> None:
    whole = element(LONE) + rest
    assert found(whole, tmp_path) == [LONE[0][0]] if good else "something after" in refused(whole, tmp_path)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        element([]),
        element([[]]),
        element(LONE).replace(b"OB\0\0\xff\xff\xff\xff", b"OB\0\0\xff\xff\0\0"),  # a length
        element(LONE).replace(b"OB", b"SQ"),
        element(LONE).replace(DELIMITER, DELIMITER[:4] + b"\2\0\0\0ab"),
        element(LONE, table=True).replace(b"\4\0\0\0\0\0\0\0", b"\4\0\0\0\2\0\0\0"),  # the first frame elsewhere
        element(LONE, table=True).replace(b"\4\0\0\0\0\0\0\0", b"\xff\xff\xff\xff\0\0\0\0"),
        element([*LONE, *LONE], table=True),  # two frames where the header says one
        element([[b"ab"]]).replace(b"\2\0\0\0ab", b"\xff\xff\xff\xffab"),
        element([[b"ab"]]).replace(b"\2\0\0\0ab", b"\0\0\0\0"),
    ],
)
def test_damaged_items(tmp_path: Path, damaged: bytes) -> None:
    refused(damaged, tmp_path)


@given(data=st.binary(max_size=60))
def test_any_bytes_end_in_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("f")
    for head in (b"", element(LONE)[:12], element(LONE)[:20]):
        with contextlib.suppress(InputError):
            found(head + data, folder)


def test_only_the_heads_of_items_are_read(tmp_path: Path) -> None:
    class Counted(io.FileIO):
        total = 0

        def read(self, size: int | None = -1, /) -> bytes:
            got = super().read(-1 if size is None else size) or b""
            Counted.total += len(got)
            return got

    file = tmp_path / "slice.dcm"
    file.write_bytes(element([[bytes(1 << 20)] * 5]))
    tracemalloc.start()
    with Counted(file, "rb") as stream:
        find_frames(stream, file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert Counted.total == 12 + 8 + 5 * 8 + 8
    assert peak < 1 << 20


def test_a_file_that_changed_since(tmp_path: Path) -> None:
    file = tmp_path / "slice.dcm"
    file.write_bytes(element(LONE))
    with file.open("rb") as stream:
        (spans,) = find_frames(stream, file)
    file.write_bytes(element(LONE)[:50])
    with pytest.raises(InputError, match="DCM_ENCAPSULATION"):
        read_frame(file, spans)
    file.unlink()
    with pytest.raises(InputError, match="IMG_NO_FILE"):
        read_frame(file, spans)


def test_lengths_are_unsigned(tmp_path: Path) -> None:
    for length in (0x7FFFFFFF, 0x80000000, 0xFFFFFFFE):
        huge = element([[b"ab"]]).replace(b"\2\0\0\0ab", struct.pack("<L", length) + b"ab")
        assert f"of {length} bytes" in refused(huge, tmp_path)
