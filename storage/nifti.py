"""NIfTI files in and out: a memory-mapped source, and a writer that goes slab by slab.

Read are single files of NIfTI-1 and NIfTI-2; every header is checked against its file before it is used.  The affine is
taken by nibabel's rule (sform if its code > 0, else qform) and kept; a volume is never reoriented.
"""

import gzip
import io
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from storage.errors import InputError, no_file
from storage.integrity import replacing
from storage.source import BQML, LABEL, SUV, Grid

if TYPE_CHECKING:  # nibabel takes a second to import, and only those who open or write a file need it
    import nibabel

Units = Literal["SUVbw", "Bq/mL", "HU", "label"]

GZIP_MAGIC = b"\x1f\x8b"
MAX_DEFLATE_RATIO = 1032  # no gzip stream inflates by more
MAX_BYTES = 64 << 30  # of voxels in one file
SLACK_BYTES = 1 << 20  # that are inflated beyond the voxels before it is called a bomb
BLOCK_BYTES = 512  # of a tape or disk, which writers fill with zeros
CHUNK_BYTES = 1 << 20
DAMAGED = cast("type[Exception]", isal_zlib.error)  # its stub tells of an instance
RESERVED_FLAGS = 0xE0  # of a gzip header (RFC 1952, 2.3.1.2): who sees one set must give an error
SLAB_BYTES = 32 << 20
AFFINE_TOLERANCE_MM = 0.1  # between sform and qform at the corners: their rounding is below it, an L/R flip is not
# Between an axis of the affine and its pixdim, the smaller of both: writers cut pixdim to two decimals (4.07 for
# 4.0728), which is less than 0.01 mm; of a voxel below 1 mm that would be too much to call rounding.
PIXDIM_TOLERANCE_MM, PIXDIM_TOLERANCE = 0.01, 0.01
# Cosine between two axes of the affine.  Float32 rounds it by 1e-7 and direction cosines of a DICOM header written with
# four decimals by 1e-4; 1e-3 moves the far corner of a body by 2 mm.  A gantry tilts by a degree (0.017) and more.
SHEAR_TOLERANCE = 1e-3
# Voxel edges: micro-CT has some 0.02 mm and no slice is thicker than 100 mm, while a PET's or a mouse PET's voxels
# (0.2 to 10 mm) taken for metres or microns lie outside.
PLAUSIBLE_MM = (0.02, 100.0)
FARTHEST_MM = 10_000.0  # from the origin: a table travels 2 m
MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: unknown (read as mm), metre, mm, micron
S_PER_UNIT = {8: 1.0, 16: 1e-3, 24: 1e-6}  # xyzt_units: s, ms, us
MAX_VOLUMES = 32767  # what a NIfTI-1 axis can hold
CODES = range(1, 6)  # of sform and qform: scanner, aligned, Talairach, MNI, another template
WIDE = frozenset(["i4", "u4", "i8", "u8", "f8"])  # hold numbers that float32 does not
EXACT_IN_FLOAT32 = 1 << 24
MAX_COMMENT_BYTES = 20_000  # of a comment that is read back
_COMMENT_FROM = 360  # header, flags of the extension, its length and code
READABLE = frozenset(["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])


@dataclass(frozen=True)
class _Layout:
    """Where the voxels of a checked header lie in its file, and what they mean."""

    grid: Grid
    dtype: str
    offset: int
    slope: float
    intercept: float
    notes: tuple[str, ...]
    volumes: int = 1
    step_s: float | None = None

    @property
    def bytes_each(self) -> int:
        z, y, x = self.grid.shape
        return z * y * x * np.dtype(self.dtype).itemsize

    @property
    def end(self) -> int:
        return self.offset + self.volumes * self.bytes_each


@dataclass(frozen=True)
class Volumes:
    """What the header of a file of one or several volumes says of them.

    Args:
        grid: of each.
        count: how many.
        step_s: from one to the next, where the header states a unit of time; None where it does not.
    """

    grid: Grid
    count: int
    step_s: float | None


@dataclass(frozen=True, eq=False)
class NiftiSource:
    """A NIfTI volume as an ``ImageSource``; array axes (z, y, x) are the file's (k, j, i).

    ``voxels`` is the file itself, or the inflated copy below the caller's work folder, who removes it.
    """

    grid: Grid
    units: str
    provenance: Mapping[str, object]
    name: str
    voxels: Path = field(repr=False)
    dtype: str
    offset: int = field(repr=False)
    slope: float
    intercept: float

    @property
    def limits(self) -> tuple[tuple[float, float], ...]:
        """Where stored values of 8 and 16 bits are clipped, in ``units``: each limit, and a value a fifth before it."""
        kind = np.dtype(self.dtype)
        if kind.kind not in "iu" or kind.itemsize > 2 or self.units == LABEL:
            return ()
        bounds = np.iinfo(kind)
        ends = (bounds.max, bounds.min) if bounds.min else (bounds.max,)
        return tuple((end * self.slope + self.intercept, 0.8 * end * self.slope + self.intercept) for end in ends)

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        """Return the slab ``z0 <= z < z1`` as (z, y, x) in ``units``.

        Raises:
            InputError: ``IMG_NONFINITE``; ``NII_BAD_LABEL`` if a label is not an integer from 0 to 65535.
        """
        stored = np.memmap(self.voxels, dtype=self.dtype, mode="r", offset=self.offset, shape=self.grid.shape)[z0:z1]
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes Inf and is refused below
            if (self.slope, self.intercept) == (1.0, 0.0):
                exact = np.asarray(stored)
                slab = np.array(stored, dtype=np.float32, order="C")
            else:
                exact = stored.astype(np.float64) * self.slope + self.intercept
                slab = exact.astype(np.float32)
        if not np.isfinite(slab).all():
            raise self._nonfinite(stored, slab, z0, z1)
        # Of the exact values: float32 would round a label that is nearly a whole number.
        if self.units == LABEL and (np.any(exact != np.rint(exact)) or exact.min() < 0 or exact.max() > 65535):
            raise InputError(
                "NII_BAD_LABEL",
                where=self.name,
                found=f"values that are not integers from 0 to 65535 in slices {z0} to {z1 - 1}",
                remedy="give a label map, not an image",
            )
        return slab

    def _nonfinite(self, stored: NDArray[Any], slab: NDArray[np.float32], z0: int, z1: int) -> InputError:
        """Tell what is not finite in the file from what only float32 cannot hold."""
        bad = int(np.count_nonzero(~np.isfinite(stored)))
        found, remedy = f"{bad} voxels are NaN or Inf", "export the image again"
        if not bad:
            bad = int(np.count_nonzero(~np.isfinite(slab)))
            found = f"{bad} voxels overflow float32 (beyond 3.4e38 once scaled)"
            remedy = "save it in a unit of smaller numbers, or correct scl_slope"
        return InputError("IMG_NONFINITE", where=self.name, found=f"{found} in slices {z0} to {z1 - 1}", remedy=remedy)


def open_nifti(path: Path, *, units: Units, workdir: Path, scale: float = 1.0) -> NiftiSource:
    """Open a 3D ``.nii`` or ``.nii.gz`` file, its header checked against its bytes.

    A ``.nii.gz`` is inflated once, as a stream, to a file below ``workdir`` with its checksum tested to the end.

    Args:
        units: what the values are; NIfTI does not say.
        workdir: takes the inflated copy; the caller removes it when the source is no longer read.
        scale: SUVbw per Bq/mL (``storage.suv.suv_factor_decay_corrected``); if not 1 the source is in SUVbw.

    Returns:
        a thread-safe source; memory is bounded by a slab.

    Raises:
        InputError: ``IMG_NO_FILE``, ``IMG_UNREADABLE``, ``NII_EMPTY``, ``NII_TRUNCATED``, ``NII_NOT_NIFTI``,
            ``NII_NOT_GZIP``, ``NII_GZIP_CRC``, ``NII_SIZE_LIE``, ``NII_BOMB``, ``NII_TRAILING``, ``NII_BAD_DIM``,
            ``NII_4D``, ``NII_BAD_TYPE``, ``NII_BAD_SPACING``, ``NII_NO_ORIENTATION``, ``NII_AMBIGUOUS_AFFINE``,
            ``NII_BAD_AFFINE``, ``NII_BAD_SCALE``, ``DISK_FULL``.
        ValueError: a scale that is not positive, or on values that are not Bq/mL.
    """
    return _open(path, units, workdir, scale, most=1)[0]


def open_volumes(path: Path, *, units: Units, workdir: Path, scale: float = 1.0) -> tuple[NiftiSource, ...]:
    """Open a 4D file as one source per volume, in the file's order; as ``open_nifti``, which opens a 3D file.

    All read the same file, each its own part of it: nothing is copied, and memory is bounded by a slab of each.

    Raises:
        InputError: as ``open_nifti``; ``NII_4D`` for a fifth axis.
        ValueError: as ``open_nifti``.
    """
    return _open(path, units, workdir, scale, most=MAX_VOLUMES)


def _open(path: Path, units: Units, workdir: Path, scale: float, most: int) -> tuple[NiftiSource, ...]:
    path = Path(path)
    if not (np.isfinite(scale) and scale > 0) or (scale != 1.0 and units != BQML):
        raise ValueError(f"scale {scale} on values in {units}")
    if not path.is_file():
        raise no_file(path)
    size = path.stat().st_size
    if size == 0:
        raise _error("NII_EMPTY", path, "an empty file")
    if not os.access(path, os.R_OK):
        raise _error("IMG_UNREADABLE", path, "a file that may not be read", "check its permissions")
    with path.open("rb") as stream:
        zipped = stream.read(2) == GZIP_MAGIC
        stream.seek(0)
        if path.name.lower().endswith(".gz") != zipped:
            code, found = ("NII_NOT_NIFTI", "gzip data under another name") if zipped else ("NII_NOT_GZIP", "no gzip")
            raise _error(code, path, found, "name it .nii.gz if it is gzip, .nii if not")
        if zipped:
            layout, voxels = _inflate(stream, path, size, workdir, most)
        else:
            layout, voxels = _layout(stream.read(540), path, most), path
            if layout.end > size:
                code = "NII_SIZE_LIE" if _is_lie(layout, size) else "NII_TRUNCATED"
                raise _error(code, path, f"{size} of {layout.end} bytes")
            stream.seek(layout.end)
            _check_rest(stream, size - layout.end, layout, path)
    notes = layout.notes + ("rounded_to_float32",) * (units != LABEL and _loses_digits(layout, voxels))
    if scale != 1.0:
        notes += ("activity_scaled_to_suv",)
    facts: dict[str, object] = {"format": "nifti", "stored_units": units, "stored_type": layout.dtype[1:]}
    if scale != 1.0:
        facts["suv_per_unit"] = scale
    return tuple(
        NiftiSource(
            grid=layout.grid,
            units=SUV if scale != 1.0 else units,
            provenance={**facts, "notes": list(notes)},
            name=path.name,
            voxels=voxels,
            dtype=layout.dtype,
            offset=layout.offset + number * layout.bytes_each,
            slope=layout.slope * scale,
            intercept=layout.intercept * scale,
        )
        for number in range(layout.volumes)
    )


def grid_of(path: Path) -> Grid:
    """Return the grid that a file's header states; no voxel is read, and the file's end is not looked at.

    Raises:
        InputError: as ``open_nifti`` for a header.
    """
    return _header(path, most=1).grid


def volumes_of(path: Path) -> Volumes:
    """Return what the header of a 3D or 4D file says of its volumes; as ``grid_of``.

    Raises:
        InputError: as ``open_volumes`` for a header.
    """
    layout = _header(path, most=MAX_VOLUMES)
    return Volumes(layout.grid, layout.volumes, layout.step_s)


def comment_of(path: Path) -> str:
    """Return the comment that ``write_nifti`` put into a file's header, empty where it has put none.

    Raises:
        InputError: IMG_NO_FILE, NII_EMPTY, IMG_UNREADABLE, and those of damaged compression.
    """
    head = _beginning(path, _COMMENT_FROM + MAX_COMMENT_BYTES)
    if head[344:352] != b"n+1\0\1\0\0\0" or len(head) < _COMMENT_FROM:
        return ""
    length, code = struct.unpack("<ii", head[352:_COMMENT_FROM])
    return head[_COMMENT_FROM : 352 + length].rstrip(b"\0").decode("utf-8", "replace") if code == 6 else ""


def _header(path: Path, most: int) -> _Layout:
    return _layout(_beginning(path, 540), path, most)


def _beginning(path: Path, count: int) -> bytes:
    """The first bytes of a file, decompressed; fewer where it is shorter."""
    if not path.is_file():
        raise no_file(path)
    if path.stat().st_size == 0:
        raise _error("NII_EMPTY", path, "an empty file")
    if not os.access(path, os.R_OK):
        raise _error("IMG_UNREADABLE", path, "a file that may not be read", "check its permissions")
    head = bytearray()
    with path.open("rb") as stream:
        if stream.read(2) == GZIP_MAGIC:
            stream.seek(0)
            for piece in _inflated(stream, path):
                head += piece
                if len(head) >= count:
                    break
        else:
            stream.seek(0)
            head += stream.read(count)
    return bytes(head[:count])


def write_nifti(
    path: Path, grid: Grid, read_slab: Callable[[int, int], NDArray[np.float32]], *, comment: str = ""
) -> None:
    """Write a volume as float32 NIfTI-1, slab by slab; the file appears only when it is whole.

    sform and qform both carry the affine with code 1 (the qform is left out if the affine is sheared), units are mm.

    Args:
        path: ``.nii`` or ``.nii.gz``; a file that is there is replaced.
        read_slab: ``read_slab(z0, z1)`` returns (z1 - z0, y, x).
        comment: what its reader should know of it, as a header extension of code 6; empty for none.

    Raises:
        InputError: ``IMG_NONFINITE``; ``NII_BAD_DIM`` beyond 32767 voxels along an axis; ``DISK_FULL`` or
            ``DISK_DENIED`` when it cannot be written.
        ValueError: another suffix, or a slab of another shape.
    """
    path = Path(path)
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        raise ValueError("a NIfTI file is named .nii or .nii.gz")
    if max(grid.shape) > 32767:
        raise _error("NII_BAD_DIM", path, "more than 32767 voxels along an axis", "NIfTI-1 cannot hold it")
    import nibabel

    header = nibabel.Nifti1Header()
    header.set_data_dtype("<f4")
    header.set_data_shape(grid.shape[::-1])
    header.set_zooms(grid.spacing_mm[::-1])
    header.set_qform(grid.affine, code=1)
    if _gap_mm(header.get_qform(), grid.affine, grid.shape) > AFFINE_TOLERANCE_MM / 2:
        header.set_qform(None, code=0)
    header.set_sform(grid.affine, code=1)
    header.set_xyzt_units("mm")
    extension = _extension(comment)
    header["vox_offset"] = 348 + len(extension)
    rows = max(1, SLAB_BYTES // (4 * grid.shape[1] * grid.shape[2]))
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with replacing(path) as raw, _packed(raw) if name.endswith(".gz") else nullcontext(raw) as stream:
        stream.write(header.binaryblock + extension)
        for z0 in range(0, grid.shape[0], rows):
            z1 = min(z0 + rows, grid.shape[0])
            slab = np.ascontiguousarray(read_slab(z0, z1), dtype="<f4")
            if slab.shape != (z1 - z0, *grid.shape[1:]):
                raise ValueError(f"a slab of shape {slab.shape} for slices {z0} to {z1} of {grid.shape}")
            if not np.isfinite(slab).all():
                found = f"voxels that are NaN or Inf in slices {z0} to {z1 - 1}"
                raise _error("IMG_NONFINITE", path, found, "nothing was written; find where the volume was made")
            stream.write(slab.data)


# -- bytes ------------------------------------------------------------------------------------------------------------


def _inflate(stream: BinaryIO, path: Path, size: int, workdir: Path, most: int) -> tuple[_Layout, Path]:
    """Inflate to a file below ``workdir``; the header is checked before anything large is written."""
    pieces = _inflated(stream, path)
    head = bytearray()
    for piece in pieces:
        head += piece
        if len(head) >= 540:
            break
    layout = _layout(bytes(head[:540]), path, most)
    if layout.end > size * MAX_DEFLATE_RATIO + SLACK_BYTES:
        raise _error("NII_SIZE_LIE", path, f"{layout.end} bytes declared, more than {size} gzip bytes can hold")
    workdir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if shutil.disk_usage(workdir).free < layout.end + SLACK_BYTES:
        raise _error("DISK_FULL", path, f"no space for {layout.end} inflated bytes", "free some space")
    handle, name = tempfile.mkstemp(suffix=".nii", dir=workdir)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(head)
            for piece in pieces:
                if out.tell() + len(piece) > layout.end + SLACK_BYTES:
                    raise _error("NII_BOMB", path, f"gzip data beyond the {layout.end} bytes that the header declares")
                out.write(piece)
            if out.tell() < layout.end:
                code = "NII_SIZE_LIE" if _is_lie(layout, out.tell()) else "NII_TRUNCATED"
                raise _error(code, path, f"{out.tell()} of {layout.end} bytes after inflating")
            out.flush()
            with open(name, "rb") as inflated:
                inflated.seek(layout.end)
                _check_rest(inflated, out.tell() - layout.end, layout, path)
    except BaseException:
        os.unlink(name)
        raise
    return layout, Path(name)


def _inflated(stream: BinaryIO, path: Path) -> Iterator[bytes]:
    """The inflated bytes, never more than a chunk at a time, checksums tested; several gzip members are one stream."""
    while True:
        engine = isal_zlib.decompressobj(wbits=31)
        pending = stream.read(CHUNK_BYTES)
        if not pending.lstrip(b"\0"):  # the end, or the zero padding of a tape
            return
        if len(pending) > 3 and pending[3] & RESERVED_FLAGS:  # isal passes them over
            raise _error("NII_GZIP_CRC", path, "a gzip header with flags that no gzip has")
        while not engine.eof:
            try:
                piece = engine.decompress(pending, CHUNK_BYTES)
            except DAMAGED:
                raise _error("NII_GZIP_CRC", path, "damaged gzip data, or a checksum that does not fit") from None
            if piece:
                yield piece
            pending = engine.unconsumed_tail
            if not pending and not piece and not engine.eof:
                pending = stream.read(CHUNK_BYTES)
                if not pending:
                    raise _error("NII_TRUNCATED", path, "gzip data that stop before their end")
        stream.seek(-len(engine.unused_data), io.SEEK_CUR)


def _loses_digits(layout: _Layout, voxels: Path) -> bool:
    """Whether stored numbers beyond 2^24 change when they become float32; only wide types are looked through."""
    if layout.dtype[1:] not in WIDE:
        return False
    stored = np.memmap(voxels, dtype=layout.dtype, mode="r", offset=layout.offset, shape=layout.grid.shape).reshape(-1)
    for start in range(0, stored.size, SLAB_BYTES // 8):
        part = np.asarray(stored[start : start + SLAB_BYTES // 8])
        if part.dtype.kind == "f":
            with np.errstate(over="ignore", invalid="ignore"):
                back = part.astype(np.float32).astype(np.float64)
            lost = np.isfinite(back) & (np.abs(part) > EXACT_IN_FLOAT32) & (back != part)
        else:  # by the digits between the first and the last bit that is set: float64 would round some as well
            size = part.astype(np.uint64)
            size = np.where(part < 0, ~size + np.uint64(1), size)
            last = np.maximum(size & (~size + np.uint64(1)), 1)
            lost = size // last >= EXACT_IN_FLOAT32
        if lost.any():
            return True
    return False


def _check_rest(stream: BinaryIO, count: int, layout: _Layout, path: Path) -> None:
    """Refuse what follows the voxels, unless it is zeros that fill the last block of the file.

    Air is zeros too: a few of them at the end may be voxels that inserted bytes or a smaller dim have pushed out.
    """
    padding = count < BLOCK_BYTES and (layout.end + count) % BLOCK_BYTES == 0
    if count and not (padding and not stream.read(count).strip(b"\0")):
        found = f"{count} bytes after the {layout.end} that the header declares"
        raise _error("NII_TRAILING", path, found, "save it again with dim, datatype and vox_offset that fit its voxels")


def _extension(comment: str) -> bytes:
    """What follows the header: whether there are extensions, and a comment as one (NIfTI-1.1, ``ecode`` 6)."""
    text = comment.encode()
    if not text:
        return bytes(4)
    length = -(-(8 + len(text)) // 16) * 16
    return b"\1\0\0\0" + struct.pack("<ii", length, 6) + text.ljust(length - 8, b"\0")


def _is_lie(layout: _Layout, size: int) -> bool:
    """Whether the header declares absurdly more than there is, rather than a copy that was cut off."""
    voxels = size - layout.offset
    return layout.end > MAX_BYTES or (voxels > 0 and layout.end - layout.offset > 100 * voxels)


def _packed(raw: BinaryIO) -> gzip.GzipFile:
    """A gzip stream without name and time in its header, so that equal volumes give equal files."""
    return gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=4, mtime=0)


# -- header -----------------------------------------------------------------------------------------------------------


def _layout(head: bytes, path: Path, most: int) -> _Layout:
    """Check a header field by field; ``most`` is how many volumes the file may hold."""
    if len(head) < 4:
        raise _error("NII_TRUNCATED", path, "a header that stops before its end")
    order = next((o for o in "<>" if struct.unpack(o + "i", head[:4])[0] in (348, 540)), None)
    if order is None:
        raise _error("NII_NOT_NIFTI", path, "no NIfTI header")
    length = struct.unpack(order + "i", head[:4])[0]
    if len(head) < length:
        raise _error("NII_TRUNCATED", path, "a header that stops before its end")
    magic = head[344:348] if length == 348 else head[4:8]
    if magic != (b"n+1\0" if length == 348 else b"n+2\0"):
        raise _error("NII_NOT_NIFTI", path, "no single-file NIfTI (n+1 or n+2)", "save it as one .nii file")
    import nibabel

    kind = nibabel.Nifti1Header if length == 348 else nibabel.Nifti2Header
    header = kind(head[:length], endianness=order, check=False)

    dim = [int(n) for n in header["dim"]]
    if not 3 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise _error("NII_BAD_DIM", path, f"dim {dim[: max(1, min(dim[0], 7)) + 1]}", "give a 3D volume")
    volumes, step_s = dim[4] if dim[0] > 3 else 1, _step_s(header)
    if max(dim[5 : dim[0] + 1], default=1) > 1:
        raise _error("NII_4D", path, f"{dim[4 : dim[0] + 1]} volumes", "save one 3D or 4D image per file")
    if volumes > most:
        found = f"{volumes} volumes" + (f", {step_s:g} s from one to the next" if step_s else "")
        remedy = "a PET is ingested with --frames (3, 3-6 or all); of anything else save one 3D volume per file"
        raise _error("NII_4D", path, found, remedy)
    shape = (dim[3], dim[2], dim[1])
    try:
        dtype = header.get_data_dtype().newbyteorder(order).str
    except Exception:  # nibabel has an error of its own for unknown codes
        dtype = ""
    if dtype[1:] not in READABLE:
        raise _error("NII_BAD_TYPE", path, f"datatype {int(header['datatype'])}", "save it as float32 or int16")
    offset = float(header["vox_offset"])
    if not np.isfinite(offset) or offset != int(offset) or (0 < offset < length + 4) or offset < 0:
        raise _error("NII_NOT_NIFTI", path, "a voxel offset inside the header or not a whole number")
    slope, intercept, notes = _scaling(header, path)
    affine, affine_notes = _affine(header, shape, path)
    layout = _Layout(
        grid=Grid(shape, affine),
        dtype=dtype if dtype[0] != "|" else "<" + dtype[1:],
        offset=int(offset) or length + 4,
        slope=slope,
        intercept=intercept,
        notes=notes + affine_notes,
        volumes=volumes,
        step_s=step_s,
    )
    if layout.end > MAX_BYTES:
        raise _error("NII_SIZE_LIE", path, f"{layout.end} bytes declared", "split the volume if it is real")
    return layout


def _step_s(header: "nibabel.Nifti1Header") -> float | None:
    """Time from one volume to the next; None where it is not above 0, or has no unit of time."""
    unit, step = int(header["xyzt_units"]) & 0x38, float(header["pixdim"][4])
    return step * S_PER_UNIT[unit] if unit in S_PER_UNIT and np.isfinite(step) and step > 0 else None


def _scaling(header: "nibabel.Nifti1Header", path: Path) -> tuple[float, float, tuple[str, ...]]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):  # the standard's "no scaling"
        return 1.0, 0.0, ()
    if not np.isfinite(slope) or not np.isfinite(intercept):
        raise _error("NII_BAD_SCALE", path, "scl_slope or scl_inter is not finite")
    return slope, intercept, () if (slope, intercept) == (1.0, 0.0) else ("scaled_by_scl_slope",)


@np.errstate(all="ignore")  # what overflows becomes Inf or NaN, and fails every check below
def _affine(
    header: "nibabel.Nifti1Header", shape: tuple[int, int, int], path: Path
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    spacing = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise _error("NII_BAD_SPACING", path, "a pixdim that is not above 0")
    unit = int(header["xyzt_units"]) & 0x07
    if unit not in MM_PER_UNIT:
        raise _error("NII_BAD_SPACING", path, f"spatial unit {unit}", "save it in mm")
    _check_unit(spacing, unit, path)
    # An unknown code counts as none, as nibabel takes it.
    sform_code, qform_code = (
        code if (code := int(header[name])) in CODES else 0 for name in ("sform_code", "qform_code")
    )
    if sform_code <= 0 and qform_code <= 0:
        raise _error("NII_NO_ORIENTATION", path, "neither sform nor qform", "save it with its orientation")
    affine, qform = None, None
    if sform_code > 0:
        affine = np.asarray(header.get_sform(), dtype=np.float64)
        affine[:3] *= MM_PER_UNIT[unit]
        edges = np.linalg.norm(affine[:3, :3], axis=0)
        sound = np.isfinite(affine).all() and np.isfinite(edges).all() and edges.all()
        # Of the axes' directions, whose determinant does not depend on the voxel's size.
        if not (sound and abs(np.linalg.det(affine[:3, :3] / edges)) > 1e-6):
            raise _error("NII_BAD_AFFINE", path, "an sform that is singular or not finite")
    if qform_code > 0:
        qform = _qform(header, path)
        qform[:3] *= MM_PER_UNIT[unit]
    if affine is not None and qform is not None and not _gap_mm(affine, qform, shape) <= AFFINE_TOLERANCE_MM:
        raise _error(
            "NII_AMBIGUOUS_AFFINE", path, "sform and qform place the volume differently", "set the code of one to 0"
        )
    chosen = affine if affine is not None else qform
    assert chosen is not None
    _check_axes(chosen, spacing * MM_PER_UNIT[unit], path)
    away_mm = float(np.linalg.norm(chosen[:3, 3]))
    if not away_mm <= FARTHEST_MM:
        found = f"a first voxel {away_mm / 1000:.4g} m from the origin"
        raise _error("NII_BAD_AFFINE", path, found, "save it with its place in the scanner, in mm")
    return chosen, {0: ("spatial_unit_missing_read_as_mm",), 2: ()}.get(unit, ("spatial_unit_converted_to_mm",))


def _qform(header: "nibabel.Nifti1Header", path: Path) -> NDArray[np.float64]:
    """The qform's affine; a qfac that is not -1 is read as 1, as nibabel and the C library do."""
    qfac = float(header["pixdim"][0])
    if qfac != -1:
        if not qfac >= 0 or np.isinf(qfac):  # below 0 nibabel takes 1 and the C library -1: one of them turns z round
            raise _error("NII_BAD_AFFINE", path, f"a qfac (pixdim[0]) of {qfac:g}", "set it to 1 or -1")
        header["pixdim"][0] = 1
    try:
        qform = np.asarray(header.get_qform(), dtype=np.float64)
    except Exception:  # nibabel has errors of its own for impossible quaternions
        qform = np.full((4, 4), np.nan)
    if not np.isfinite(qform).all():
        raise _error("NII_BAD_AFFINE", path, "a qform that is no rotation")
    return qform


def _check_axes(affine: NDArray[np.float64], spacing: NDArray[np.float64], path: Path) -> None:
    """Refuse an affine whose axes are not those of a box, or are of another length than pixdim says."""
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / edges
    shear = float(np.abs(directions.T @ directions - np.eye(3)).max())
    if not shear <= SHEAR_TOLERANCE:
        angle = np.degrees(np.arcsin(min(shear, 1.0)))
        found = f"axes {angle:.3g} degrees off a right angle"
        raise _error("NII_BAD_AFFINE", path, found, "resample it to a grid without shear")
    if not np.all(np.abs(edges - spacing) <= np.minimum(PIXDIM_TOLERANCE_MM, PIXDIM_TOLERANCE * spacing)):
        found = f"voxels of {_by(edges)} mm by the affine and {_by(spacing)} mm by pixdim"
        raise _error("NII_AMBIGUOUS_AFFINE", path, found, "set pixdim or the sform to the voxel size that is right")


def _check_unit(spacing: NDArray[np.float64], unit: int, path: Path) -> None:
    """Refuse voxels that are no scanner's in the unit that the header states, naming the unit in which they are."""

    def plausible(unit: int) -> bool:
        mm = spacing * MM_PER_UNIT[unit]
        return bool((mm >= PLAUSIBLE_MM[0]).all() and (mm <= PLAUSIBLE_MM[1]).all())

    if plausible(unit):
        return
    names = {0: "without a unit, read as mm", 1: "in metres", 2: "in mm", 3: "in microns"}
    meant = next(
        (f"{word} ({number})" for number, word in ((2, "mm"), (1, "metre"), (3, "micron")) if plausible(number)), ""
    )
    remedy = f"set xyzt_units to {meant} if that is meant" if meant else "save it with its voxel sizes in mm"
    raise _error("NII_BAD_SPACING", path, f"voxels of {_by(spacing)} {names[unit]}", remedy)


def _by(sizes: NDArray[np.float64]) -> str:
    return " x ".join(f"{size:.5g}" for size in sizes)


def _gap_mm(a: NDArray[np.float64], b: NDArray[np.float64], shape: tuple[int, int, int]) -> float:
    """Largest distance along an axis between the places of one corner voxel."""
    z, y, x = (n - 1 for n in shape)
    corners = np.array([(i, j, k, 1) for i in (0, x) for j in (0, y) for k in (0, z)], dtype=np.float64)
    return float(np.abs(corners @ (a - b).T).max())


def _error(code: str, path: Path, found: str, remedy: str = "copy or save the file again") -> InputError:
    return InputError(code, where=path.name, found=found, remedy=remedy)
