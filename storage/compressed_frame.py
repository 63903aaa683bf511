"""One compressed frame before any decoder sees it: its own header against DICOM's, its stream walked to its end.

Decoders trust a frame's header and allocate what it says, and libjpeg fills up what a stream lacks.  So neither is left
to them.
"""

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from storage.dicom_header import file_error
from storage.errors import InputError

Codec = Literal["jpeg8", "jpeg12", "lossless", "jpegls", "j2k", "rle"]

RLE = "1.2.840.10008.1.2.5"
_JPEG = "1.2.840.10008.1.2.4."
_SOF = {  # transfer syntax -> kinds of frame (the low byte of SOF) that may stand in it
    _JPEG + "50": (0xC0,),
    _JPEG + "51": (0xC0, 0xC1),
    _JPEG + "57": (0xC3,),
    _JPEG + "70": (0xC3,),
    _JPEG + "80": (0xF7,),
    _JPEG + "81": (0xF7,),
}
_J2K = (_JPEG + "90", _JPEG + "91")
SYNTAXES = (*_SOF, *_J2K, RLE)
# After 0xFF, JPEG writes a zero byte and JPEG-LS a zero bit: what else follows is a marker.  0xFF may be repeated.
_MARKER, _LS_MARKER = re.compile(rb"\xff+[\x01-\xfe]"), re.compile(rb"\xff+[\x80-\xfe]")
_BOX = b"jP  "
MAX_TILES = 4096  # of JPEG 2000; a decoder allocates for each before it reads one


@dataclass(frozen=True)
class Expected:
    """What the DICOM header says about one frame of one sample per pixel.

    Args:
        allocated: bits allocated per pixel.
        stored: bits stored per pixel.
        signed: whether pixels are two's complement.
    """

    rows: int
    columns: int
    allocated: int
    stored: int
    signed: bool


@dataclass(frozen=True)
class Frame:
    """A frame whose header and structure were found true.

    Args:
        data: the stream alone, without boxes around it.
        bits: its own precision.
        signed: whether its decoder gives numbers with a sign; otherwise bit patterns.
    """

    codec: Codec
    data: bytes
    bits: int
    signed: bool = False


def check_frame(data: bytes, syntax: str, expected: Expected, file: Path) -> Frame:
    """Check one whole frame.

    Args:
        data: the frame's fragments, joined.
        syntax: one of ``SYNTAXES``.

    Raises:
        InputError: ``DCM_FRAME_LIE`` if the frame's header says another image than DICOM's, ``DCM_DECODE_FAILED`` if
            the stream is not whole.
    """
    if syntax == RLE:
        return _rle(data, expected, file)
    return (_j2k if syntax in _J2K else _jpeg)(data, syntax, expected, file)


def check_ends(head: bytes, tail: bytes, syntax: str, expected: Expected, file: Path) -> None:
    """Refuse what the first and the last bytes of a frame tell already; the rest is left to ``check_frame``.

    Args:
        head: the frame's first bytes, some thousand.
        tail: its last bytes, some ten.
        syntax: one of ``SYNTAXES``.

    Raises:
        InputError: ``DCM_FRAME_LIE``, ``DCM_DECODE_FAILED``.
    """
    try:
        check_frame(head, syntax, expected, file)
    except InputError as error:
        if error.code == "DCM_FRAME_LIE":
            raise
    end = tail.rstrip(b"\0")
    if syntax != RLE and head[4:8] != _BOX and end and not end.endswith(b"\xff\xd9"):
        raise _broken(file, "compressed pixels without their end")


def _agree(
    expected: Expected, file: Path, rows: int, columns: int, bits: int, components: int, signed: bool = False
) -> None:
    """Raise unless a frame's own header says what DICOM's does."""
    told = f"{expected.rows} x {expected.columns}"
    if (rows, columns, components) != (expected.rows, expected.columns, 1):
        of = f" of {components} components" if components != 1 else ""
        raise file_error(
            "DCM_FRAME_LIE",
            file,
            f"a compressed frame of {rows} x {columns} pixels{of} under a header of {told}",
        )
    # Without a sign of its own, a frame holds patterns whose sign is bit BitsStored - 1: they must reach so far.
    patterns = expected.signed and not signed
    if bits > expected.allocated or (patterns and bits < expected.stored) or (signed and not expected.signed):
        kind, wanted = ("signed" if s else "unsigned" for s in (signed, expected.signed))
        raise file_error(
            "DCM_FRAME_LIE",
            file,
            f"a compressed frame of {bits} {kind} bits under a header of {expected.stored} {wanted}"
            f" in {expected.allocated}",
        )


def _jpeg(data: bytes, syntax: str, expected: Expected, file: Path) -> Frame:
    """Walk the markers of JPEG (ITU-T T.81, B.1) and JPEG-LS (T.87, C) to the last one."""
    if data[:2] != b"\xff\xd8":
        raise _broken(file, "compressed pixels that do not begin as JPEG")
    at, sof, bits, interval = 2, 0, 0, 0
    while True:
        while data[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        marker, segment = data[at + 1 : at + 2], data[at + 4 : at + 2 + _u16(data, at + 2, file)]
        if data[at : at + 1] != b"\xff" or len(segment) + 2 != _u16(data, at + 2, file):
            raise _broken(file, "a JPEG header that stops early")
        kind, at = marker[0], at + 4 + len(segment)
        if kind in (0xC8, 0xCC):
            raise _broken(file, "a JPEG stream of arithmetic coding")
        if (0xC0 <= kind <= 0xCF and kind != 0xC4) or kind == 0xF7:
            if sof or kind not in _SOF[syntax] or len(segment) < 6:
                raise _broken(file, f"a JPEG frame of another kind (SOF {kind:#x}) than the transfer syntax names")
            bits, rows, columns, components = struct.unpack(">BHHB", segment[:6])
            sof = kind
            _agree(expected, file, rows, columns, bits, components)
            if bits not in {0xC0: (8,), 0xC1: (8, 12)}.get(sof, range(2, 17)):
                raise _broken(file, f"a JPEG frame of {bits} bits")
        elif kind == 0xDD and len(segment) >= 2:
            interval = _u16(segment, 0, file)
        elif kind in (0xDC, 0xDE, 0xDF) or kind < 0xC0 or 0xD0 <= kind <= 0xD9:
            raise _broken(file, f"a marker ({kind:#x}) in a JPEG header that may not stand there")
        elif kind == 0xDA:
            break
    if not sof:
        raise _broken(file, "a JPEG stream without a frame header")
    rows, columns = expected.rows, expected.columns
    units = rows * columns if sof in (0xC3, 0xF7) else -(-rows // 8) * -(-columns // 8)
    restarts, last, end, kind = [], at, at, 0
    for match in (_LS_MARKER if sof == 0xF7 else _MARKER).finditer(data, at):
        last, end, kind = match.start(), match.end(), match.group()[-1]
        if kind == 0xD9:
            break
        restarts.append(kind)
    if kind != 0xD9:
        raise _broken(file, "a JPEG stream without its end")
    if restarts != [0xD0 + n % 8 for n in range(len(restarts))]:
        raise _broken(file, "a JPEG stream with something else inside its scan")
    if sof != 0xF7:
        if len(restarts) != (-(-units // interval) - 1 if interval else 0):
            raise _broken(file, "a JPEG stream that lacks intervals")
        # At least one bit for a pixel of a lossless frame, two for a block of 8 x 8.
        if 8 * (last - at) < units * (1 if sof == 0xC3 else 2):
            raise _broken(file, f"{last - at} bytes of JPEG data for {rows} x {columns} pixels")
    _padding(data[end:], file)
    codec: Codec = "jpegls" if sof == 0xF7 else "lossless" if sof == 0xC3 else "jpeg8" if bits == 8 else "jpeg12"
    return Frame(codec, data[:end], bits)


def _j2k(data: bytes, syntax: str, expected: Expected, file: Path) -> Frame:
    """Walk a JPEG 2000 codestream (ITU-T T.800, A) from tile-part to tile-part; boxes around it (JP2) are taken off."""
    del syntax
    if data[4:8] == _BOX:
        data = _unboxed(data, file)
    if data[:4] != b"\xff\x4f\xff\x51":
        raise _broken(file, "compressed pixels that do not begin as JPEG 2000")
    if len(data) < 48:
        raise _broken(file, "a JPEG 2000 header that stops early")
    x1, y1, x0, y0, tile_x, tile_y, tile_x0, tile_y0, components = struct.unpack(">8LH", data[8:42])
    depth, step_x, step_y = data[42:45]
    bits, signed = (depth & 0x7F) + 1, bool(depth & 0x80)
    _agree(expected, file, y1 - y0, x1 - x0, bits, components, signed)
    if (step_x, step_y) != (1, 1) or bits > 32:
        raise _broken(file, "a JPEG 2000 frame of subsampled or too deep pixels")
    if 0 in (tile_x, tile_y) or tile_x0 > x0 or tile_y0 > y0:
        raise _broken(file, "a JPEG 2000 frame with impossible tiles")
    tiles = -(-(x1 - tile_x0) // tile_x) * -(-(y1 - tile_y0) // tile_y)
    if tiles > MAX_TILES:
        raise _broken(file, f"a JPEG 2000 frame of {tiles} tiles")
    at, seen = 2, set()
    while (marker := data[at : at + 2]) != b"\xff\xd9":
        if marker == b"\xff\x90":
            if len(data) < at + 12:
                raise _broken(file, "a JPEG 2000 tile that stops early")
            tile, length = struct.unpack(">HL", data[at + 4 : at + 10])
            seen.add(tile)
            if length == 0:  # the last tile-part: up to the end of the stream
                at = max(data.rfind(b"\xff\xd9"), at + 12)
            elif length < 14:
                raise _broken(file, "a JPEG 2000 tile of impossible length")
            else:
                at += length
        elif seen or marker[:1] != b"\xff":
            raise _broken(file, "a JPEG 2000 stream that stops before its end")
        else:
            at += 2 + _u16(data, at + 2, file)
    if seen != set(range(tiles)):
        raise _broken(file, f"{len(seen)} of {tiles} tiles of a JPEG 2000 frame")
    _padding(data[at + 2 :], file)
    return Frame("j2k", data[: at + 2], bits, signed)


def _unboxed(data: bytes, file: Path) -> bytes:
    """Return the codestream inside JP2 boxes."""
    at = 0
    while len(data) >= at + 8:
        length, kind = struct.unpack(">L4s", data[at : at + 8])
        head = 8
        if length == 1 and len(data) >= at + 16:
            length, head = struct.unpack(">Q", data[at + 8 : at + 16])[0], 16
        if length == 0:
            length = len(data) - at
        if length < head or at + length > len(data):
            break
        if kind == b"jp2c":
            _padding(data[at + length :], file)
            return data[at + head : at + length]
        at += length
    raise _broken(file, "JPEG 2000 boxes that are not whole")


def _rle(data: bytes, expected: Expected, file: Path) -> Frame:
    """Check the header of a run-length frame (DICOM PS3.5, G.5): a segment for each byte of a pixel."""
    if len(data) < 64:
        raise _broken(file, "a run-length header that stops early")
    count, *offsets = struct.unpack("<16L", data[:64])
    segments = expected.allocated // 8
    if count != segments:
        raise file_error(
            "DCM_FRAME_LIE",
            file,
            f"{count} segments of a run-length frame under a header of {segments} bytes per pixel",
        )
    used = offsets[:count]
    if used[0] != 64 or used != sorted(set(used)) or used[-1] >= len(data) or any(offsets[count:]):
        raise _broken(file, "offsets of a run-length frame that do not ascend inside it")
    return Frame("rle", data, expected.allocated)


def _u16(data: bytes, at: int, file: Path) -> int:
    if len(data) < at + 2:
        raise _broken(file, "a compressed frame's header that stops early")
    return data[at] << 8 | data[at + 1]


def _padding(rest: bytes, file: Path) -> None:
    if rest.strip(b"\0"):
        raise _broken(file, "something after the end of a compressed frame")


def _broken(file: Path, found: str) -> InputError:
    return file_error("DCM_DECODE_FAILED", file, found)
