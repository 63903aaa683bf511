"""Compressed frames decoded in child processes with a limit of memory and of time, one frame at a time each.

A child is started when a frame needs one and none is idle, serves any thread of this process, ends with it, and is
replaced when it has died.
"""

import atexit
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from storage.compressed_frame import Expected, Frame
from storage.decoder_process import ANSWER, COMPLAINED, FAILED, NO_MEMORY, NOT_INSTALLED, OK, REQUEST
from storage.dicom_header import file_error

MEMORY_BYTES = 2 << 30  # of address space; 8192 x 8192 pixels need about half of it
SLICE_SECONDS = 30.0
_WHY = {
    FAILED: "compressed pixels that cannot be decoded",
    COMPLAINED: "compressed pixels that end early or are damaged",
    NO_MEMORY: "compressed pixels that need more memory than a slice may",
}

_lock = threading.Lock()
_idle: list["subprocess.Popen[bytes]"] = []
_busy: set["subprocess.Popen[bytes]"] = set()


def _command() -> list[str]:
    script = Path(__file__).with_name("decoder_process.py")
    # -P: modules beside the script must not stand in for others of their names. The child ends itself a little later
    # than we would end it, should we be gone by then.
    return [sys.executable, "-P", "-W", "default", str(script), str(MEMORY_BYTES), str(int(SLICE_SECONDS) + 5)]


def decode_frame(frame: Frame, expected: Expected, file: Path) -> NDArray[np.generic]:
    """Decode one checked frame to its stored values.

    Args:
        frame: as ``check_frame`` returned it.
        expected: what the DICOM header says.
        file: named in errors.

    Returns:
        (rows, columns), little-endian integers of ``expected.allocated`` bits.

    Raises:
        InputError: ``DCM_DECODE_FAILED``, ``DCM_CODEC_MISSING``.
    """
    head = struct.pack(REQUEST, frame.codec.encode(), expected.rows, expected.columns, frame.bits, len(frame.data))
    width = 1 if frame.bits <= 8 else 2 if frame.bits <= 16 else 4
    state, pixels = _asked(head, frame.data, expected.rows * expected.columns * width, file)
    if state == NOT_INSTALLED:
        library = "pylibjpeg-openjpeg" if frame.codec == "j2k" else "python-gdcm"
        raise file_error("DCM_CODEC_MISSING", file, "a transfer syntax without its decoder", f"install {library}")
    if state != OK:
        raise file_error("DCM_DECODE_FAILED", file, _WHY.get(state, _WHY[FAILED]))
    kind = "i" if frame.signed else "u"
    stored = np.frombuffer(pixels, f"<{kind}{width}").reshape(expected.rows, expected.columns)
    width = expected.allocated // 8
    if frame.signed:
        return stored.astype(f"<i{width}")
    stored = stored.astype(f"<u{width}").view(f"<{'i' if expected.signed else 'u'}{width}")
    unused = expected.allocated - expected.stored
    if unused:  # as for native pixels: bits above BitsStored may hold anything, and the sign is extended
        stored = (stored << unused) >> unused
    return stored


def _asked(head: bytes, data: bytes, size: int, file: Path) -> tuple[int, bytearray]:
    """Put one request to an idle child or a new one, and return its state and ``size`` bytes of pixels."""
    while True:
        child, fresh = _take()
        late = threading.Event()

        def end(child: "subprocess.Popen[bytes]" = child, late: threading.Event = late) -> None:
            late.set()
            child.kill()

        timer = threading.Timer(SLICE_SECONDS, end)
        timer.daemon = True
        answer: tuple[int, bytearray] | None = None
        timer.start()
        try:
            answer = _exchange(child, head, data, size)
        finally:  # whatever interrupts this leaves a child amid an answer, which nobody may use again
            timer.cancel()
            timer.join()
            _give_back(child, whole=answer is not None and not late.is_set())
        if answer is not None:
            return answer
        if late.is_set():
            found = f"compressed pixels that are not decoded within {SLICE_SECONDS:g} seconds"
            raise file_error("DCM_DECODE_FAILED", file, found)
        if fresh:
            raise file_error("DCM_DECODE_FAILED", file, "compressed pixels that end their decoder")
        # An idle child may have been killed by others, for instance for its memory; then it was not this frame.


def _exchange(child: "subprocess.Popen[bytes]", head: bytes, data: bytes, size: int) -> tuple[int, bytearray] | None:
    """Send and receive; ``None`` if the child died or does not answer as ours does."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        for part in (head, data):
            rest = memoryview(part)
            while rest:
                rest = rest[child.stdin.write(rest) :]
        answer = _received(child.stdout, struct.calcsize(ANSWER))
        if len(answer) < struct.calcsize(ANSWER):
            return None
        state, length = struct.unpack(ANSWER, answer)
        if length != (size if state == OK else 0):
            return None
        pixels = _received(child.stdout, length)
    except OSError:
        return None
    return (state, pixels) if len(pixels) == length else None


def _received(pipe: IO[bytes], length: int) -> bytearray:
    """Return ``length`` bytes, or fewer if the pipe ends before."""
    received = bytearray(length)
    rest, total = memoryview(received), 0
    while total < length and (count := pipe.readinto(rest[total:])):  # type: ignore[attr-defined]
        total += count
    del rest
    return received if total == length else received[:total]


def _take() -> tuple["subprocess.Popen[bytes]", bool]:
    """Return a child for this thread alone, and whether it is new."""
    with _lock:
        while _idle:
            child = _idle.pop()
            if child.poll() is None:
                _busy.add(child)
                return child, False
            _end(child)
        child = subprocess.Popen(  # noqa: S603 - our own script
            _command(),
            bufsize=0,  # a buffer has a lock, which a fork might copy while it is held
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},  # threads cost address space
        )
        _busy.add(child)
        return child, True


def _give_back(child: "subprocess.Popen[bytes]", whole: bool) -> None:
    with _lock:
        if child not in _busy:  # this process is ending
            return
        _busy.discard(child)
        if whole:
            _idle.append(child)
            return
    _end(child)


def _end(child: "subprocess.Popen[bytes]") -> None:
    """End a child, wait for it, and close its pipes."""
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def end_children() -> None:
    """End every child of this process; the next frame starts a new one."""
    with _lock:
        children = [*_idle, *_busy]
        _idle.clear()
        _busy.clear()
    for child in children:
        _end(child)


def _forget_children() -> None:
    """After a fork: children are the parent's, whose pipes must not be held open here."""
    for child in (*_idle, *_busy):
        child.returncode = 0  # it is not ours to wait for
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
    _idle.clear()
    _busy.clear()
    _lock.release()


atexit.register(end_children)
# The lock is held over a fork, so that no child is between its start and its list.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_forget_children)
