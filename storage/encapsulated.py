"""Compressed pixel data of a DICOM file: where each frame's fragments lie, found by seeking from item to item.

DICOM PS3.5, A.4: a basic offset table, fragments as items, and a delimiter.  A file that was cut lacks its end, and
this is seen without reading a pixel.
"""

import struct
from pathlib import Path
from typing import BinaryIO

from storage.dicom_header import file_error
from storage.errors import InputError

_ITEM, _DELIMITER = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_PADDING, _SIGNATURES = (0xFFFC, 0xFFFC), (0xFFFA, 0xFFFA)  # the only elements that may follow pixel data
_UNDEFINED = 0xFFFFFFFF
MAX_ITEMS = 1 << 20  # more would be a file made to keep a reader busy

Spans = tuple[tuple[int, int], ...]  # (offset in the file, length) in bytes, of the fragments of one frame


def find_frames(
    stream: BinaryIO, file: Path, frames: int = 1, extended: tuple[tuple[int, ...], tuple[int, ...]] | None = None
) -> tuple[Spans, ...]:
    """Find the fragments of every frame; only the 8 bytes before each fragment are read.

    Args:
        stream: at the (7FE0,0010) element of an explicit little-endian file.
        file: named in errors.
        frames: NumberOfFrames.
        extended: the ExtendedOffsetTable and the ExtendedOffsetTableLengths in bytes, one number per frame.

    Returns:
        One entry per frame.

    Raises:
        InputError: ``DCM_ENCAPSULATION``.
    """
    start = stream.tell()
    end = stream.seek(0, 2)
    stream.seek(start)
    head = stream.read(12)
    if len(head) < 12 or head[4:6] not in (b"OB", b"OW", b"UN") or struct.unpack("<L", head[8:])[0] != _UNDEFINED:
        raise _damaged(file, "compressed pixels that are no sequence of items")
    tag, length = _item(stream, file)
    if tag != _ITEM or stream.tell() + length > end or length % 4:
        raise _damaged(file, "compressed pixels without a whole offset table")
    if length not in (0, 4 * frames):
        raise _damaged(file, f"an offset table of {length // 4} entries for {frames} frames")
    basic = struct.unpack(f"<{length // 4}L", stream.read(length))
    first = stream.tell()
    fragments: dict[int, tuple[int, int]] = {}  # offset of the item from the first one -> (offset in the file, length)
    while True:
        at = stream.tell() - first
        tag, length = _item(stream, file)
        if tag == _DELIMITER:
            break
        if tag != _ITEM or length == 0 or len(fragments) == MAX_ITEMS:
            raise _damaged(file, "something else where an item of compressed pixels should begin")
        if stream.tell() + length > end:
            raise _damaged(file, f"{end - stream.tell()} of {length} bytes of a fragment of compressed pixels")
        fragments[at] = (stream.tell(), length)
        stream.seek(length, 1)
    if length:
        raise _damaged(file, "a delimiter of compressed pixels that has a length")
    _check_rest(stream, file, end)
    return _by_frame(fragments, file, frames, basic, extended)


def _by_frame(
    fragments: dict[int, tuple[int, int]],
    file: Path,
    frames: int,
    basic: tuple[int, ...],
    extended: tuple[tuple[int, ...], tuple[int, ...]] | None,
) -> tuple[Spans, ...]:
    if not fragments:
        raise _damaged(file, "compressed pixels without a fragment")
    if extended is not None:
        offsets, lengths = extended
        if not len(offsets) == len(lengths) == frames == len(fragments) or tuple(fragments) != offsets:
            raise _damaged(file, "an extended offset table that does not fit the fragments")
        if any(not 0 <= there - told <= 1 for told, (_, there) in zip(lengths, fragments.values(), strict=True)):
            raise _damaged(file, "an extended offset table whose lengths are not those of the fragments")
        return tuple(((at, told),) for told, (at, _) in zip(lengths, fragments.values(), strict=True))
    if not basic and frames > 1:
        if len(fragments) != frames:
            raise _damaged(file, f"{len(fragments)} fragments for {frames} frames and no offset table")
        return tuple((span,) for span in fragments.values())
    starts = basic or (0,)
    if starts[0] != 0 or list(starts) != sorted(set(starts)) or not fragments.keys() >= set(starts):
        raise _damaged(file, "an offset table that does not fit the fragments")
    ends = (*starts[1:], max(fragments) + 1)
    places = iter(fragments.items())
    found = []
    place = next(places, None)
    for end in ends:
        spans = []
        while place is not None and place[0] < end:
            spans.append(place[1])
            place = next(places, None)
        found.append(tuple(spans))
    return tuple(found)


def _item(stream: BinaryIO, file: Path) -> tuple[tuple[int, int], int]:
    """Read a tag and a length in bytes."""
    head = stream.read(8)
    if len(head) < 8:
        raise _damaged(file, "compressed pixels that stop before their delimiter")
    group, element, length = struct.unpack("<HHL", head)
    return (group, element), length


def _check_rest(stream: BinaryIO, file: Path, end: int) -> None:
    """Refuse anything after the pixels but the padding and the signatures that the standard puts there."""
    while stream.tell() < end:
        head = stream.read(12)
        tag = struct.unpack("<HH", head[:4]) if len(head) == 12 else None
        if tag == _SIGNATURES:
            return
        if tag != _PADDING or stream.seek(struct.unpack("<L", head[8:])[0], 1) > end:
            raise _damaged(file, "something after the end of compressed pixels")


def read_frame(file: Path, spans: Spans) -> bytes:
    """Read one frame's bytes, its fragments joined.

    Raises:
        InputError: ``IMG_NO_FILE``, ``DCM_ENCAPSULATION`` if the file is shorter than when its fragments were found.
    """
    parts = []
    try:
        with file.open("rb") as stream:
            for offset, length in spans:
                stream.seek(offset)
                parts.append(stream.read(length))
    except FileNotFoundError:
        raise file_error("IMG_NO_FILE", file, "a file that is gone since the scan") from None
    if [len(part) for part in parts] != [length for _, length in spans]:
        raise _damaged(file, "fewer compressed pixels than at the scan")
    return b"".join(parts)


def _damaged(file: Path, found: str) -> InputError:
    return file_error("DCM_ENCAPSULATION", file, found)
