"""Frames in every compressed syntax, made here by GDCM, pydicom and OpenJPEG, and put into the items of DICOM."""

import struct
from collections.abc import Sequence

import gdcm
import jpeg_ls
import numpy as np
from numpy.typing import NDArray
from openjpeg.utils import encode_array
from pydicom.pixels.encoders.base import get_encoder
from scipy.fft import dctn

JPEG = "1.2.840.10008.1.2.4."
RLE = "1.2.840.10008.1.2.5"
LOSSLESS = (JPEG + "57", JPEG + "70", JPEG + "80", JPEG + "90", RLE)
LOSSY = (JPEG + "50", JPEG + "51", JPEG + "81", JPEG + "91")


def image(bits: int, signed: bool = False, shape: tuple[int, int] = (45, 38)) -> NDArray[np.generic]:
    """Smooth with noise, and at both ends of the range of ``bits``."""
    rng = np.random.Generator(np.random.Philox(bits))
    y, x = np.mgrid[: shape[0], : shape[1]]
    top = 2**bits - 1
    smooth = (np.sin(x / 9) + np.cos(y / 7) + 2) / 4 * top + rng.normal(0, max(1, top / 200), shape)
    values = np.clip(np.rint(smooth), 0, top).astype(np.int64)
    values[0, 0], values[0, 1] = 0, top
    width = 8 if bits <= 8 else 16 if bits <= 16 else 32
    return (values - (2 ** (bits - 1) if signed else 0)).astype(f"<{'i' if signed else 'u'}{width // 8}")


def encode(pixels: NDArray[np.generic], syntax: str, bits: int) -> bytes:
    """Return one frame; pixels of two's complement are encoded as patterns, but in JPEG 2000 as numbers."""
    rows, columns = pixels.shape
    signed = pixels.dtype.kind == "i"
    if syntax == RLE:
        encoder = get_encoder(RLE)
        bits = 8 * pixels.dtype.itemsize
        return bytes(
            encoder.encode(
                pixels,
                encoding_plugin="pydicom",
                rows=rows,
                columns=columns,
                samples_per_pixel=1,
                bits_allocated=bits,
                bits_stored=bits,
                pixel_representation=int(signed),
                number_of_frames=1,
                photometric_interpretation="MONOCHROME2",
            )
        )
    if syntax in (JPEG + "90", JPEG + "91"):
        ratios = [2.0] if syntax == JPEG + "91" else None
        return bytes(encode_array(pixels, bits_stored=bits, photometric_interpretation=2, compression_ratios=ratios))
    width = pixels.dtype.itemsize
    patterns = pixels.view(f"<u{width}") & np.array(2**bits - 1, f"<u{width}")
    if syntax in (JPEG + "80", JPEG + "81"):
        near = int(syntax == JPEG + "81")
        return bytes(jpeg_ls.encode_buffer(patterns.tobytes(), rows, columns, 1, bits, near, 0))
    if bits not in (8, 16):  # of which GDCM makes frames of 16 bits
        return jpeg_by_hand(patterns, bits, lossless=syntax != JPEG + "51")
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetByteStringValue(patterns.tobytes())
    reader = gdcm.ImageReader()  # its image is counted as GDCM expects; one made here would be freed twice
    before = reader.GetImage()
    before.SetNumberOfDimensions(2)
    before.SetDimensions((columns, rows, 1))
    before.SetPixelFormat(gdcm.PixelFormat(1, 8 * width, bits, bits - 1, 0))
    kind = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    before.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    native = gdcm.TransferSyntax.GetTSType("1.2.840.10008.1.2.1")
    before.SetTransferSyntax(gdcm.TransferSyntax(native))
    before.SetDataElement(element)
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(before)
    assert change.Change(), syntax
    after = change.GetOutput()  # each of these must outlive the next
    data = after.GetDataElement()
    fragments = data.GetSequenceOfFragments()
    fragment = fragments.GetFragment(0)
    value = fragment.GetByteValue().GetBuffer()
    return value if isinstance(value, bytes) else bytes(value.encode("utf-8", "surrogateescape"))


def jpeg_by_hand(patterns: NDArray[np.generic], bits: int, lossless: bool) -> bytes:
    """Return a JPEG of any precision, each Huffman code of one length: lossless by predictor 1, or DCT divided by 1."""
    rows, columns = patterns.shape
    values = patterns.astype(np.int64)
    written: list[str] = []

    def put(prefix: int, difference: int, codes: int) -> None:
        size = abs(difference).bit_length()
        written.append(f"{prefix << 4 | size:0{codes}b}")
        if 0 < size < 16:
            written.append(f"{difference + (2**size - 1 if difference < 0 else 0):0{size}b}")

    def table(of: int, codes: int, symbols: int) -> bytes:
        counts = [symbols if n == codes else 0 for n in range(1, 17)]
        return struct.pack(">HHB", 0xFFC4, 19 + symbols, of) + bytes(counts) + bytes(range(symbols))

    if lossless:
        before = np.full_like(values, 2 ** (bits - 1))
        before[1:, 0], before[:, 1:] = values[:-1, 0], values[:, :-1]
        for difference in (values - before).ravel().tolist():
            put(0, (difference + 2**15) % 2**16 - 2**15, 5)
        head, tables, spectral = 0xC3, table(0, 5, 17), bytes((1, 0, 0))
    else:
        padded = np.pad(values - 2 ** (bits - 1), ((0, -rows % 8), (0, -columns % 8)), mode="edge")
        last = 0
        for y in range(0, padded.shape[0], 8):
            for x in range(0, padded.shape[1], 8):
                block = np.rint(dctn(padded[y : y + 8, x : x + 8], norm="ortho")).astype(int)
                zigzag = [int(block[i, j]) for i, j in _ZIGZAG]
                put(0, zigzag[0] - last, 5)
                last, run = zigzag[0], 0
                for value in zigzag[1:]:
                    if value == 0:
                        run += 1
                        continue
                    written.extend(["11110000"] * (run // 16))
                    put(run % 16, value, 8)
                    run = 0
                if run:
                    written.append("00000000")
        head, tables, spectral = 0xC1, table(0, 5, 16) + table(0x10, 8, 255), bytes((0, 63, 0))
        tables += struct.pack(">HHB", 0xFFDB, 67, 0) + b"\1" * 64
    stream = "".join(written)
    stream += "1" * (-len(stream) % 8)
    data = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\0")
    frame = struct.pack(">HHBHHB3B", 0xFF00 | head, 11, bits, rows, columns, 1, 1, 0x11, 0)
    scan = struct.pack(">HHB2B", 0xFFDA, 8, 1, 1, 0) + spectral
    return b"\xff\xd8" + frame + tables + scan + data + b"\xff\xd9"


_ZIGZAG = sorted(((i, j) for i in range(8) for j in range(8)), key=lambda p: (sum(p), p[0] if sum(p) % 2 else p[1]))


def element(frames: Sequence[Sequence[bytes]], table: bool = False, delimiter: bool = True) -> bytes:
    """Return a whole (7FE0,0010) element: frames as fragments as bytes, each made even by a zero byte."""
    items, starts, at = b"", [], 0
    for fragments in frames:
        starts.append(at)
        for fragment in fragments:
            item = _item(fragment + b"\0" * (len(fragment) % 2))
            items, at = items + item, at + len(item)
    offsets = _item(struct.pack(f"<{len(starts)}L", *starts) if table else b"")
    head = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff"
    return head + offsets + items + (DELIMITER if delimiter else b"")


DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"


def _item(content: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + struct.pack("<L", len(content)) + content
