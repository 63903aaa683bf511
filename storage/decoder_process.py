"""The decoders of compressed frames, run as a program of its own: frames in by stdin, pixels out by stdout.

A decoder is foreign C code that is given foreign data.  Here it may crash, hang or ask for memory without harm to who
waits for it (``storage.decoding``), and whatever it prints counts as a failure: libjpeg tells only there that it has
made up pixels.  Nothing of petscale is imported, so that a start takes a fraction of a second.
"""

import ctypes
import importlib
import os
import resource
import signal
import struct
import sys
import tempfile
from typing import IO

REQUEST = "<8sLLLQ"  # codec, rows, columns, bits of the frame, bytes that follow
ANSWER = "<BQ"  # one of the following, bytes that follow
OK, FAILED, COMPLAINED, NO_MEMORY, NOT_INSTALLED = range(5)
_GDCM = {"jpeg8": "50", "jpeg12": "51", "lossless": "57", "jpegls": "80"}
# GDCM first tries its decoder of 8 bits, which says this, and then the right one.
_HARMLESS = b"Unsupported JPEG data precision 12\n"


def main(memory_bytes: int, seconds: int) -> None:
    """Answer requests until stdin ends.

    Args:
        memory_bytes: of address space, for everything together.
        seconds: after which a frame ends this process, should nobody do so earlier.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end closes stdin
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # of what it prints
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    libc = ctypes.CDLL(None)
    with tempfile.TemporaryFile() as said, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        while len(head := requests.read(struct.calcsize(REQUEST))) == struct.calcsize(REQUEST):
            codec, rows, columns, bits, length = struct.unpack(REQUEST, head)
            signal.alarm(seconds)
            answer(requests.read(length), codec.rstrip(b"\0").decode(), rows, columns, bits, said, answers, libc)
            signal.alarm(0)


def answer(
    data: bytes, codec: str, rows: int, columns: int, bits: int, said: IO[bytes], answers: IO[bytes], libc: ctypes.CDLL
) -> None:
    """Decode one frame and write its pixels, or why there are none."""
    pixels = b""
    try:
        if codec != "rle":
            importlib.import_module("openjpeg" if codec == "j2k" else "gdcm")
        said.seek(0)
        said.truncate(0)  # what a library says when it is loaded is not about the frame
        pixels = decode(data, codec, rows, columns, bits)
        width = 1 if bits <= 8 else 2 if bits <= 16 else 4
        state = OK if len(pixels) == rows * columns * width else FAILED
    except MemoryError:
        state = NO_MEMORY
    except ImportError:
        state = NOT_INSTALLED
    except Exception:  # decoders have errors of their own, and which one does not matter
        state = FAILED
    libc.fflush(None)
    sys.stdout.flush()
    sys.stderr.flush()
    size = os.fstat(said.fileno()).st_size
    if size and state == OK:
        said.seek(0)
        if said.read(1 << 16).replace(_HARMLESS if codec == "jpeg12" else b"\0", b""):
            state = COMPLAINED
    said.seek(0)  # the three descriptors share one position
    said.truncate(0)
    if state != OK:
        pixels = b""
    answers.write(struct.pack(ANSWER, state, len(pixels)))
    answers.write(pixels)
    answers.flush()


def decode(data: bytes, codec: str, rows: int, columns: int, bits: int) -> bytes:
    """Return pixels as little-endian integers of 1, 2 or 4 bytes, row by row."""
    if codec == "rle":
        return unpack_runs(data, rows * columns, bits // 8)
    if codec == "j2k":
        import openjpeg

        return bytes(openjpeg.decode(data, j2k_format=0, reshape=False).tobytes())
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(data)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    syntax = gdcm.TransferSyntax.GetTSType("1.2.840.10008.1.2.4." + _GDCM[codec])
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    image.SetPixelFormat(gdcm.PixelFormat(1, 8 if bits <= 8 else 16, bits, bits - 1, 0))
    return bytes(image.GetBuffer().encode("utf-8", "surrogateescape"))


def unpack_runs(data: bytes, count: int, width: int) -> bytes:
    """Decode run-length segments (DICOM PS3.5, G.3), the most significant byte first; each must give ``count`` bytes.

    Raises:
        ValueError: a segment that gives fewer or more.
    """
    offsets = struct.unpack(f"<{width}L", data[4 : 4 + 4 * width])
    pixels = bytearray(count * width)
    for n, (start, end) in enumerate(zip(offsets, (*offsets[1:], len(data)), strict=True)):
        out, at = bytearray(), start
        while len(out) < count:
            if at + 1 >= end:
                raise ValueError("a segment that ends early")
            code = data[at]
            if code < 128:
                out += data[at + 1 : min(at + 2 + code, end)]
                at += 2 + code
            elif code > 128:
                out += data[at + 1 : at + 2] * (257 - code)
                at += 2
            else:
                at += 1
        if len(out) != count or at > end or end - at > 1:  # segments are padded to even lengths
            raise ValueError("a segment of another length")
        pixels[width - 1 - n :: width] = out
    return bytes(pixels)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
