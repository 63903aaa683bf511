"""Compressed frames come out as they went in, or are refused; no decoder can take this process with it."""

import contextlib
import multiprocessing
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import jpeg_ls
import numpy as np
import psutil
import pydicom
import pytest
from encoded_frames import DELIMITER, JPEG, LOSSLESS, LOSSY, RLE, element, encode, image
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from storage import decoding
from storage.compressed_frame import Expected, Frame, check_frame
from storage.decoder_process import unpack_runs
from storage.decoding import decode_frame, end_children
from storage.dicom import open_series
from storage.dicom_slice import Slice, Unusable, pixels_of, scan
from storage.dicom_write import write_series
from storage.errors import InputError
from storage.source import HU, ArraySource, Grid

FILE = Path("slice.dcm")
ALL = (*LOSSLESS, *LOSSY)
LS = (JPEG + "80", JPEG + "81")


@pytest.fixture(autouse=True)
def nobody_left() -> Iterator[None]:
    yield
    end_children()
    assert not [child for child in psutil.Process().children() if "decoder_process.py" in " ".join(child.cmdline())]


def expected_of(pixels: NDArray[np.generic], bits: int) -> Expected:
    return Expected(pixels.shape[0], pixels.shape[1], 8 * pixels.dtype.itemsize, bits, pixels.dtype.kind == "i")


def decoded(data: bytes, syntax: str, expected: Expected) -> NDArray[np.generic]:
    return decode_frame(check_frame(data, syntax, expected, FILE), expected, FILE)


def refused(frame: Frame, expected: Expected) -> str:
    with pytest.raises(InputError, match=r"^DCM_DECODE_FAILED slice.dcm: ") as error:
        decode_frame(frame, expected, FILE)
    assert "\n" not in str(error.value)
    return error.value.found


def bits_of(syntax: str) -> int:
    return 8 if syntax == JPEG + "50" else 12


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
@pytest.mark.parametrize("syntax", LOSSLESS)
def test_lossless_syntaxes_are_exact(syntax: str, bits: int, signed: bool) -> None:
    """Both ends of the range are in the image, and a sign reaches all bits."""
    pixels = image(bits, signed)
    back = decoded(encode(pixels, syntax, bits), syntax, expected_of(pixels, bits))
    assert back.dtype == pixels.dtype
    assert np.array_equal(back, pixels)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_another_encoder_of_jpeg_ls_is_read_alike(bits: int) -> None:
    pixels = image(bits)
    data = bytes(jpeg_ls.encode_array(pixels))
    assert np.array_equal(decoded(data, JPEG + "80", expected_of(pixels, data[6] if bits == 12 else bits)), pixels)


def test_runs_of_four_bytes() -> None:
    pixels = image(32, True, (8, 16))
    planes = [pixels.astype(">i4").view("u1").reshape(128, 4)[:, n].tobytes() for n in range(4)]
    head = struct.pack("<16L", 4, *(64 + 130 * n for n in range(4)), *[0] * 11)
    data = head + b"".join(b"\x7f" + plane + b"\0" for plane in planes)
    assert np.array_equal(decoded(data, RLE, expected_of(pixels, 32)), pixels)


@pytest.mark.parametrize(("syntax", "bits"), [(JPEG + "50", 8), (JPEG + "51", 8), (JPEG + "51", 12)])
def test_lossy_jpeg_is_near(syntax: str, bits: int) -> None:
    pixels = image(bits)
    pixels[0, :2] = pixels[0, 2]  # the ends of the range would ring
    back = decoded(encode(pixels, syntax, bits), syntax, expected_of(pixels, bits))
    assert back.dtype == pixels.dtype
    assert np.abs(back.astype(int) - pixels.astype(int)).max() <= 2**bits // 50


def test_lossy_jpeg_2000_is_near() -> None:
    pixels = image(12)
    back = decoded(encode(pixels, JPEG + "91", 12), JPEG + "91", expected_of(pixels, 12))
    assert np.abs(back.astype(int) - pixels.astype(int)).mean() <= 2**12 / 50


def test_bits_above_those_stored_are_dropped() -> None:
    """As in native pixels; a frame of 16 bits under a header of 12 may hold anything there."""
    pixels = image(16)
    for syntax in (JPEG + "70", JPEG + "80", JPEG + "90", RLE):
        back = decoded(encode(pixels, syntax, 16), syntax, replace(expected_of(pixels, 16), stored=12))
        assert np.array_equal(back, pixels & 0xFFF)
        back = decoded(encode(pixels, syntax, 16), syntax, Expected(45, 38, 16, 12, True))
        assert np.array_equal(back, (pixels.astype("<i2") << 4) >> 4)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("syntax", ALL)
def test_truncation_is_refused(syntax: str, bits: int) -> None:
    """At twenty places and at each of the last bytes, as it is and with the end marker put back."""
    if (syntax == JPEG + "50" and bits != 8) or (syntax == JPEG + "51" and bits == 16):
        pytest.skip("no such JPEG")
    pixels = image(bits)
    expected = expected_of(pixels, bits)
    data = encode(pixels, syntax, bits)
    whole = decoded(data, syntax, expected)
    end = len(data) if syntax == RLE else data.rindex(b"\xff\xd9")
    cuts = [*(int(end * f) for f in np.linspace(0.02, 0.98, 20)), *range(end - 8, end)]
    unseen = []
    for cut in cuts:
        for tail in (b"",) if syntax == RLE else (b"", b"\xff\xd9"):
            with contextlib.suppress(InputError):
                back = decoded(data[:cut] + tail, syntax, expected)
                unseen.append(cut)
                # Only padding was cut. Decoders of JPEG-LS take the bits of a single missing byte for zeros.
                assert np.array_equal(back, whole) or (syntax in LS and cut == end - 1)
    assert unseen == [] or min(unseen) >= end - 2


@pytest.mark.parametrize("syntax", ALL)
def test_a_flipped_byte_ends_in_an_image_or_in_one_line(syntax: str) -> None:
    """Nobody can know that a value was changed; but nothing else may happen."""
    pixels = image(bits_of(syntax))
    expected = expected_of(pixels, bits_of(syntax))
    data = encode(pixels, syntax, bits_of(syntax))
    rng = np.random.Generator(np.random.Philox(5))
    for at in rng.integers(0, len(data), 60):
        flipped = bytearray(data)
        flipped[at] ^= int(rng.integers(1, 256))
        with contextlib.suppress(InputError):
            assert decoded(bytes(flipped), syntax, expected).shape == pixels.shape


@pytest.mark.parametrize("change", [b"\0\x05", b"\x81\x05"])
def test_runs_give_neither_more_nor_less(change: bytes) -> None:
    """Three segments: too short by one, exact, too long by one."""
    head = (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56)
    whole = head + b"\x02abc" + b"\xfd\x07"  # 3 literal bytes, 4 repeated
    assert unpack_runs(whole, 7, 1) == b"abc\x07\x07\x07\x07"
    assert unpack_runs(whole + b"\0", 7, 1) == b"abc\x07\x07\x07\x07"
    for count in (6, 8):
        with pytest.raises(ValueError, match="segment"):
            unpack_runs(whole, count, 1)
    with pytest.raises(ValueError, match="segment"):
        unpack_runs(whole + change, 7, 1)
    pixels = np.arange(7, dtype="<u1").reshape(1, 7)
    assert "cannot be decoded" in refused(Frame("rle", whole[:-1], 8), expected_of(pixels, 8))


def hostile(monkeypatch: pytest.MonkeyPatch, folder: Path, body: str) -> None:
    """Put another program in the decoder's place."""
    end_children()
    script = folder / "decoder_process.py"
    script.write_text(textwrap.dedent(body))
    monkeypatch.setattr(decoding, "_command", lambda: [sys.executable, str(script)])


@pytest.fixture
def good() -> tuple[Frame, Expected, NDArray[np.generic]]:
    pixels = image(12)
    expected = expected_of(pixels, 12)
    return check_frame(encode(pixels, JPEG + "70", 12), JPEG + "70", expected, FILE), expected, pixels


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("import time; time.sleep(60)", "not decoded within 1 seconds"),
        ("import sys, time; sys.stdin.buffer.read(99); print('half', flush=True); time.sleep(60)", "within 1 seconds"),
        ("", "end their decoder"),
        ("import os; os.kill(os.getpid(), 11)", "end their decoder"),
        ("import sys, os; sys.stdin.buffer.read(9); os.abort()", "end their decoder"),
        ("print('x' * 99)", "end their decoder"),
        ("import sys, struct; sys.stdout.buffer.write(struct.pack('<BQ', 0, 4) + b'abcd')", "end their"),
    ],
)
def test_hostile_children(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    good: tuple[Frame, Expected, NDArray[np.generic]],
    body: str,
    found: str,
) -> None:
    frame, expected, pixels = good
    with monkeypatch.context() as patch:
        hostile(patch, tmp_path, body)
        patch.setattr(decoding, "SLICE_SECONDS", 1.0)
        began = time.monotonic()
        with pytest.raises(InputError, match=found):
            decode_frame(frame, expected, FILE)
        assert time.monotonic() - began < 5
    end_children()
    assert np.array_equal(decode_frame(frame, expected, FILE), pixels)


def test_a_library_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, good: tuple[Frame, Expected, NDArray[np.generic]]
) -> None:
    (tmp_path / "gdcm.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(InputError, match=r"^DCM_CODEC_MISSING slice.dcm: .*install python-gdcm"):
        decode_frame(good[0], good[1], FILE)


def test_an_idle_child_that_was_killed_is_replaced(good: tuple[Frame, Expected, NDArray[np.generic]]) -> None:
    frame, expected, pixels = good
    for _ in range(3):
        assert np.array_equal(decode_frame(frame, expected, FILE), pixels)
        (child,) = decoding._idle
        os.kill(child.pid, signal.SIGKILL)
    assert np.array_equal(decode_frame(frame, expected, FILE), pixels)


def test_one_child_serves_one_thread_after_another(good: tuple[Frame, Expected, NDArray[np.generic]]) -> None:
    frame, expected, pixels = good
    assert np.array_equal(decode_frame(frame, expected, FILE), pixels)
    (child,) = decoding._idle
    with ThreadPoolExecutor(1) as pool:
        assert np.array_equal(pool.submit(decode_frame, frame, expected, FILE).result(), pixels)
    assert decoding._idle == [child]
    refused(replace(frame, data=frame.data[:60] + b"\xff\xd9"), expected)
    assert decoding._idle == [child]


def test_threads_have_children_of_their_own(good: tuple[Frame, Expected, NDArray[np.generic]]) -> None:
    frame, expected, pixels = good
    with ThreadPoolExecutor(4) as pool:
        for back in pool.map(lambda _: decode_frame(frame, expected, FILE), range(40)):
            assert np.array_equal(back, pixels)
    assert 1 <= len(decoding._idle) <= 4


def in_worker(frame: Frame, expected: Expected) -> NDArray[np.generic]:
    return decode_frame(frame, expected, FILE)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_have_children_of_their_own(method: str, good: tuple[Frame, Expected, NDArray[np.generic]]) -> None:
    frame, expected, pixels = good
    assert np.array_equal(decode_frame(frame, expected, FILE), pixels)
    before = {process.pid for process in psutil.process_iter()}
    (child,) = decoding._idle
    with multiprocessing.get_context(method).Pool(2) as pool:
        for back in pool.starmap(in_worker, [(frame, expected)] * 8):
            assert np.array_equal(back, pixels)
        pool.close()
        pool.join()
    assert child.poll() is None
    assert np.array_equal(decode_frame(frame, expected, FILE), pixels)
    assert wait_for_none(before)


def wait_for_none(before: set[int], seconds: float = 10) -> bool:
    """Return whether every decoder that is not of ``before`` ends by itself."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        left = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid not in before and "decoder_process.py" in " ".join(process.cmdline()):
                    left.append(process.pid)
        if not left:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("end", ["pass", "os._exit(1)", "os.kill(os.getpid(), 9)"])
def test_children_end_with_their_parent(end: str) -> None:
    before = {process.pid for process in psutil.process_iter()}
    script = textwrap.dedent(f"""
        import os, sys
        from pathlib import Path
        from storage.compressed_frame import Expected, Frame
        from storage.decoding import decode_frame
        data = (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56) + b"\\x02abc"
        print(decode_frame(Frame("rle", data, 8), Expected(1, 3, 8, 8, False), Path("a")).tolist(), flush=True)
        {end}
    """)
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert done.stdout == "[[97, 98, 99]]\n"
    assert done.stderr == ""
    assert wait_for_none(before)


def test_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """With little memory, a large frame is refused and a small one is not."""
    pixels = np.zeros((4096, 4096), "<u2")
    data = encode(pixels, RLE, 16)
    expected = expected_of(pixels, 16)
    frame = check_frame(data, RLE, expected, FILE)
    assert np.array_equal(decode_frame(frame, expected, FILE), pixels)
    end_children()
    monkeypatch.setattr(decoding, "MEMORY_BYTES", 60 << 20)
    assert "more memory" in refused(frame, expected)
    small = image(8)
    assert np.array_equal(decoded(encode(small, RLE, 8), RLE, expected_of(small, 8)), small)


def test_what_a_decoder_prints_is_an_error(good: tuple[Frame, Expected, NDArray[np.generic]]) -> None:
    """libjpeg says on stderr alone that it has made up pixels; the next frame is not blamed for it."""
    frame, expected, pixels = good
    for _ in range(2):
        assert "end early or are damaged" in refused(replace(frame, data=frame.data[:900] + b"\xff\xd9"), expected)
        assert np.array_equal(decode_frame(frame, expected, FILE), pixels)


# Whole files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    affine = np.array([[-4.0, 0, 0, 30], [0, -5.0, 0, 20], [0, 0, 3.0, -100], [0, 0, 0, 1]])
    rng = np.random.Generator(np.random.Philox(8))
    voxels = rng.integers(-1024, 2000, (3, 40, 36)).astype(np.float32)
    write_series(tmp_path / "ct", ArraySource(voxels, Grid((3, 40, 36), affine), HU))
    return tmp_path / "ct"


def compress(file: Path, syntax: str) -> bytes:
    """Compress one slice in place, and return its frame."""
    ds = pydicom.dcmread(file)
    data = encode(ds.pixel_array, syntax, ds.BitsStored)
    ds.PixelData = encapsulate([data + b"\0" * (len(data) % 2)])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.save_as(file)
    return data


def scanned(file: Path) -> Slice:
    """The one slice of a file, or the error that a series with it ends in."""
    found = scan(file, "CT")
    if isinstance(found, Unusable):
        raise found.error
    return found[0]


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_a_series_is_the_same_compressed(folder: Path, syntax: str) -> None:
    native = open_series(folder, modality="CT")
    voxels = native.read(0, 3)
    for file in folder.rglob("*.dcm"):
        compress(file, syntax)
    assert np.array_equal(open_series(folder, modality="CT").read(0, 3), voxels)


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_a_fragmented_frame_is_read(folder: Path, syntax: str) -> None:
    file = next(folder.rglob("*.dcm"))
    pixels = pixels_of(scanned(file))
    data = compress(file, syntax)
    head = file.read_bytes().split(b"\xe0\x7f\x10\x00OB")[0]
    half = len(data) // 4 * 2
    for table in (False, True):
        file.write_bytes(head + element([[data[:half], data[half:]]], table))
        assert np.array_equal(pixels_of(scanned(file)), pixels)


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_a_cut_file_is_refused_at_the_scan(folder: Path, syntax: str) -> None:
    file = next(folder.rglob("*.dcm"))
    frame = compress(file, syntax)
    whole = file.read_bytes()
    start = whole.index(b"\xe0\x7f\x10\x00OB")
    for end in np.linspace(start + 12, len(whole) - 1, 20).astype(int):
        for tail in (b"", DELIMITER):
            file.write_bytes(whole[:end] + tail)
            if end > len(whole) - len(DELIMITER) and tail:
                continue
            with pytest.raises(InputError, match=f"^DCM_ENCAPSULATION {file.name}: "):
                scanned(file)
    for cut in np.linspace(0.05, 0.95, 20):  # and with its item and its delimiter made whole again
        short = frame[: int(len(frame) * cut)]
        file.write_bytes(whole[:start] + element([[short]]))
        with pytest.raises(InputError, match=f"^DCM_(DECODE_FAILED|FRAME_LIE) {file.name}: "):
            pixels_of(scanned(file))


def test_lies_are_refused_at_the_scan_without_memory(folder: Path) -> None:
    """The header of a file and of its frame name different sizes: no decoder is started."""
    file = next(folder.rglob("*.dcm"))
    compress(file, JPEG + "70")
    ds = pydicom.dcmread(file)
    ds.Rows, ds.Columns = 8192, 8192
    ds.save_as(file)
    with pytest.raises(InputError, match=r"^DCM_FRAME_LIE .*40 x 36 .*8192 x 8192"):
        scanned(file)
    assert not decoding._idle


@pytest.mark.parametrize("syntax", ALL)
def test_two_headers_that_agree_on_a_lie(syntax: str) -> None:
    """As large as a slice may be, around a few hundred bytes: refused within the child's limits."""
    bits = bits_of(syntax)
    pixels = image(bits)
    data = encode(pixels, syntax, bits)
    huge = struct.pack(">HH", 8192, 8192)
    if syntax in (JPEG + "90", JPEG + "91"):
        data = data[:8] + bytes(2) + huge[:2] + bytes(2) + huge[2:] + data[16:24] + data[8:16] + data[32:]
        data = data[:24] + data[8:16] + data[32:]
    elif syntax != RLE:
        at = data.index(struct.pack(">HH", 45, 38))
        data = data[:at] + huge + data[at + 4 :]
    expected = replace(expected_of(pixels, bits), rows=8192, columns=8192)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with pytest.raises(InputError, match="DCM_DECODE_FAILED"):
        decoded(data, syntax, expected)
    for child in decoding._idle:  # that of all children would count those of other tests
        peak_kb = int(re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{child.pid}/status").read_text())[1])
        assert peak_kb < 1 << 20
    end_children()
    assert time.monotonic() - began < decoding.SLICE_SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (100 << 10)  # KB


def test_more_bytes_than_pixels_can_need(folder: Path) -> None:
    file = next(folder.rglob("*.dcm"))
    data = compress(file, JPEG + "70")
    head = file.read_bytes().split(b"\xe0\x7f\x10\x00OB")[0]
    file.write_bytes(head + element([[data, bytes(2 << 20)]]))
    with pytest.raises(InputError, match="DCM_PIXELS_LONG"):
        scanned(file)
