"""A frame's own header and end are checked before a decoder runs: whatever lies or was cut is refused without one."""

import contextlib
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from encoded_frames import JPEG, LOSSLESS, LOSSY, RLE, encode, image

from storage.compressed_frame import SYNTAXES, Expected, Frame, check_ends, check_frame
from storage.errors import InputError

FILE = Path("slice.dcm")
BITS = {JPEG + "50": 8, JPEG + "51": 12}
ALL = (*LOSSLESS, *LOSSY)


def made(syntax: str, shape: tuple[int, int] = (45, 38)) -> tuple[bytes, Expected]:
    bits = BITS.get(syntax, 12)
    pixels = image(bits, shape=shape)
    allocated = 8 * pixels.dtype.itemsize
    return encode(pixels, syntax, bits), Expected(*shape, allocated, bits, False)


def refused(data: bytes, syntax: str, expected: Expected) -> tuple[str, str]:
    with pytest.raises(InputError) as error:
        check_frame(data, syntax, expected, FILE)
    assert error.value.where == FILE.name
    assert "\n" not in str(error.value)
    return error.value.code, error.value.found


def test_every_syntax_is_made_here() -> None:
    assert set(ALL) == set(SYNTAXES)


@pytest.mark.parametrize("syntax", ALL)
def test_true_frames_pass_with_padding(syntax: str) -> None:
    data, expected = made(syntax)
    frame = check_frame(data, syntax, expected, FILE)
    assert frame.bits == (16 if syntax == RLE else expected.stored)
    if syntax != RLE:
        assert check_frame(data + bytes(6), syntax, expected, FILE) == frame
        assert refused(data + b"\0x", syntax, expected)[0] == "DCM_DECODE_FAILED"


@pytest.mark.parametrize("syntax", [s for s in ALL if s != RLE])
def test_a_frame_of_another_size_is_a_lie_that_names_both(syntax: str) -> None:
    data, expected = made(syntax)
    for other in (replace(expected, rows=44), replace(expected, columns=8192), replace(expected, rows=38, columns=45)):
        code, found = refused(data, syntax, other)
        assert code == "DCM_FRAME_LIE"
        assert "45 x 38" in found
        assert f"{other.rows} x {other.columns}" in found
    code, found = refused(data, syntax, replace(expected, allocated=expected.stored - 4 if expected.stored > 8 else 4))
    assert code == "DCM_FRAME_LIE"
    assert f"{expected.stored} unsigned bits" in found


def test_runs_of_another_depth_are_a_lie() -> None:
    data, expected = made(RLE)
    for allocated in (8, 32):
        assert refused(data, RLE, replace(expected, allocated=allocated))[0] == "DCM_FRAME_LIE"


def jpeg_size_at(data: bytes) -> int:
    return next(data.index(bytes((0xFF, kind))) + 5 for kind in (0xC0, 0xC1, 0xC3, 0xF7) if bytes((0xFF, kind)) in data)


@pytest.mark.parametrize("syntax", [s for s in ALL if s != RLE])
def test_huge_claims_cost_nothing(syntax: str) -> None:
    """A frame that says 65535 x 65535 pixels once took 8.6 GB and 27 s."""
    data, expected = made(syntax)
    if syntax in (JPEG + "90", JPEG + "91"):
        huge = data[:8] + struct.pack(">LL", 65535, 65535) + data[16:]
    else:
        at = jpeg_size_at(data)
        huge = data[:at] + struct.pack(">HH", 65535, 65535) + data[at + 4 :]
    tracemalloc.start()
    code, found = refused(huge, syntax, expected)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert code == "DCM_FRAME_LIE"
    assert "65535 x 65535" in found
    assert "45 x 38" in found


@pytest.mark.parametrize("syntax", [JPEG + "50", JPEG + "51", JPEG + "57", JPEG + "70"])
def test_a_frame_too_short_for_what_both_headers_say(syntax: str) -> None:
    data, expected = made(syntax)
    at = jpeg_size_at(data)
    huge = data[:at] + struct.pack(">HH", 8192, 8192) + data[at + 4 :]
    code, found = refused(huge, syntax, replace(expected, rows=8192, columns=8192))
    assert code == "DCM_DECODE_FAILED"
    assert "bytes of JPEG data for 8192 x 8192" in found


@pytest.mark.parametrize("syntax", [s for s in ALL if s != RLE])
def test_a_stream_without_its_end(syntax: str) -> None:
    data, expected = made(syntax)
    end = data.rindex(b"\xff\xd9")
    for cut in range(end + 1):
        assert refused(data[:cut], syntax, expected)[0] in ("DCM_DECODE_FAILED", "DCM_FRAME_LIE")


@pytest.mark.parametrize("syntax", [JPEG + "90", JPEG + "91"])
def test_tiles_that_are_not_all_there(syntax: str) -> None:
    """Cut anywhere and closed again by the end marker."""
    data, expected = made(syntax)
    for cut in range(len(data) - 2):
        assert refused(data[:cut] + b"\xff\xd9", syntax, expected)[0] in ("DCM_DECODE_FAILED", "DCM_FRAME_LIE")
    many = data[:24] + struct.pack(">LL", 1, 1) + data[32:]
    assert "1710 tiles" in refused(many, syntax, expected)[1]
    wide, told = made(syntax, (130, 90))
    assert "11700 tiles" in refused(wide[:24] + struct.pack(">LL", 1, 1) + wide[32:], syntax, told)[1]
    assert "impossible tiles" in refused(data[:24] + struct.pack(">LL", 0, 1) + data[32:], syntax, expected)[1]


def test_jpeg_2000_in_boxes() -> None:
    data, expected = made(JPEG + "90")
    frame = check_frame(data, JPEG + "90", expected, FILE)
    signature = struct.pack(">L4sL", 12, b"jP  ", 0x0D0A870A)
    for box in (
        struct.pack(">L4s", 8 + len(data), b"jp2c"),
        struct.pack(">L4s", 0, b"jp2c"),
        struct.pack(">L4sQ", 1, b"jp2c", 16 + len(data)),
    ):
        boxed = signature + struct.pack(">L4s", 12, b"ftyp") + b"jp2 " + box + data
        assert check_frame(boxed, JPEG + "90", expected, FILE) == frame
        for cut in range(12, len(boxed) - 3):
            refused(boxed[:cut], JPEG + "90", expected)
    assert isinstance(frame, Frame)


@pytest.mark.parametrize("kind", [0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA, 0xCB, 0xCD, 0xCF, 0xF7])
def test_other_kinds_of_jpeg(kind: int) -> None:
    """Progressive, hierarchical, arithmetic: none of them is the syntax that the file names."""
    data, expected = made(JPEG + "50")
    code, found = refused(data.replace(b"\xff\xc0", bytes((0xFF, kind)), 1), JPEG + "50", expected)
    assert code == "DCM_DECODE_FAILED"
    assert f"{kind:#x}" in found


@pytest.mark.parametrize("syntax", ALL)
def test_a_frame_of_another_syntax(syntax: str) -> None:
    data, expected = made(syntax)
    family = {"50": "a", "51": "a", "57": "b", "70": "b", "80": "c", "81": "c", "90": "d", "91": "d"}
    for other in ALL:
        if family.get(other[-2:], other) != family.get(syntax[-2:], syntax):
            refused(data, other, expected)


def test_signs() -> None:
    """A pattern must reach up to its sign; a number with a sign cannot stand where the header says there is none."""
    signed = image(12, signed=True)
    data = encode(signed, JPEG + "90", 12)
    told = Expected(45, 38, 16, 12, True)
    assert check_frame(data, JPEG + "90", told, FILE).signed
    assert refused(data, JPEG + "90", replace(told, signed=False))[0] == "DCM_FRAME_LIE"
    data = encode(signed, JPEG + "70", 12)
    assert not check_frame(data, JPEG + "70", told, FILE).signed
    assert refused(data, JPEG + "70", replace(told, stored=16))[0] == "DCM_FRAME_LIE"


def test_restarts_are_counted() -> None:
    """A whole interval that is missing leaves no other trace."""
    data, expected = made(JPEG + "70")
    at = data.index(b"\xff\xda")
    scan = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    interval = struct.pack(">HHH", 0xFFDD, 4, 38 * 9)  # five intervals of nine rows
    end = data.rindex(b"\xff\xd9")
    for n, good in ((4, True), (3, False), (5, False), (0, False)):
        restarts = b"".join(bytes((0xFF, 0xD0 + k)) + b"\0\0" for k in range(n))
        whole = data[:at] + interval + data[at:end] + restarts + b"\xff\xd9"
        if good:
            check_frame(whole, JPEG + "70", expected, FILE)
        else:
            assert "lacks intervals" in refused(whole, JPEG + "70", expected)[1]
    assert (
        "inside its scan"
        in refused(data[:scan] + b"\xff\xd0" + data[scan:end] + b"\xff\xd0\xff\xd9", JPEG + "70", expected)[1]
    )


@pytest.mark.parametrize("syntax", ALL)
def test_ends_tell_a_lie_and_a_cut(syntax: str) -> None:
    """A few bytes suffice; what they cannot tell passes."""
    data, expected = made(syntax)
    check_ends(data[:700], data[-16:], syntax, expected, FILE)
    with pytest.raises(InputError, match="DCM_FRAME_LIE"):
        check_ends(data[:700], data[-16:], syntax, replace(expected, rows=44, allocated=32), FILE)
    if syntax != RLE:
        end = data.rindex(b"\xff\xd9")
        with pytest.raises(InputError, match="without their end"):
            check_ends(data[:700], data[end - 20 : end - 4] + b"\1", syntax, expected, FILE)


@pytest.mark.parametrize("offsets", [(64, 64), (0, 70), (70, 64), (64, 1 << 31), (64, 0)])
def test_offsets_of_runs(offsets: tuple[int, int]) -> None:
    data, expected = made(RLE)
    assert "do not ascend" in refused(data[:4] + struct.pack("<LL", *offsets) + data[12:], RLE, expected)[1]


@pytest.mark.parametrize("syntax", ALL)
def test_any_damage_ends_in_one_line(syntax: str) -> None:
    data, expected = made(syntax)
    rng = np.random.Generator(np.random.Philox(3))
    for at in range(min(len(data), 300)):
        flipped = bytearray(data)
        flipped[at] ^= int(rng.integers(1, 256))
        with contextlib.suppress(InputError):
            check_frame(bytes(flipped), syntax, expected, FILE)
