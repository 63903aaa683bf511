"""Damaged copies of small NIfTI files and DICOM series, made from a seed, and what reading one of them came to.

A mutation is a triple (seed, kind, base): equal triples give equal files.  Each is read as ingest reads it, in a
process with bounded memory and time.  What is accepted although it differs from the base is judged by code that is
independent of the reader: whether the file contradicts itself.
"""

import gzip
import multiprocessing
import multiprocessing.connection
import re
import resource
import struct
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid

from storage.dicom import open_series
from storage.dicom_write import write_series
from storage.errors import InputError
from storage.nifti import open_nifti
from storage.source import SUV, ArraySource, Grid, ImageSource

Triple = tuple[int, str, str]  # seed, kind, base

ADDRESS_BYTES = 3 << 29  # that a reading process may map
PEAK_KB = 1_000_000
LIMIT_S = 20.0
SHAPE = (5, 32, 34)  # JPEG 2000 in its usual six resolutions needs 32
SPACING_MM = (3.27, 4.07, 4.1)
SLICE = 2  # of a DICOM series the one that is mutated most often; by seed also the first and the last
COMPRESSED = (uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless)
REFUSED, EQUAL, OWN, CONTRADICTS = (
    "refused",
    "accepted, equal",
    "accepted, the file's own",
    "ACCEPTED, CONTRADICTS ITSELF",
)
CODEC = "accepted, compressed pixels that decode to others"
SHORT = "accepted with the note that slices lack"
FAILED = ("TRACEBACK", "HANG", "MEMORY", "CRASH", CONTRADICTS)
# fmt: off
NIFTI1 = {  # field -> offset, type
    "sizeof_hdr": (0, "i"), "dim_info": (39, "B"), "datatype": (70, "h"), "bitpix": (72, "h"), "vox_offset": (108, "f"),
    "scl_slope": (112, "f"), "scl_inter": (116, "f"), "xyzt_units": (123, "B"), "qform_code": (252, "h"),
    "sform_code": (254, "h"), "magic": (344, "i"), "extension": (348, "i"),
    **{f"dim{i}": (40 + 2 * i, "h") for i in range(8)}, **{f"pixdim{i}": (76 + 4 * i, "f") for i in range(8)},
    **{f"quatern{i}": (256 + 4 * i, "f") for i in range(6)}, **{f"srow{i}": (280 + 4 * i, "f") for i in range(12)},
}
NIFTI2 = {
    "sizeof_hdr": (0, "i"), "magic": (4, "i"), "datatype": (12, "h"), "bitpix": (14, "h"), "vox_offset": (168, "q"),
    "scl_slope": (176, "d"), "scl_inter": (184, "d"), "xyzt_units": (500, "i"), "qform_code": (344, "i"),
    "sform_code": (348, "i"), "extension": (540, "i"),
    **{f"dim{i}": (16 + 8 * i, "q") for i in range(8)}, **{f"pixdim{i}": (104 + 8 * i, "d") for i in range(8)},
    **{f"quatern{i}": (352 + 8 * i, "d") for i in range(6)}, **{f"srow{i}": (400 + 8 * i, "d") for i in range(12)},
}
SIZES = ("dim0", "dim1", "dim2", "dim3", "dim4", "datatype", "bitpix", "vox_offset", "sizeof_hdr", "extension")
INTEGERS = (-1, 0, 1, 2, 3, 4, 7, 8, 16, 32, 64, 127, 255, 256, 511, 512, 768, 1024, 32767, -32768)
FLOATS = (
    0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, 3.4e38, -3.4e38, float("nan"), float("inf"), float("-inf"), 1e10, -1e-5, 0.5,
    352.0, 353.0, 1e6, 4.07,
)
TEXTS = (
    "0", "-0", "1", "-1", "1e308", "-1e308", "1e-320", "1e999", "nan", "inf", "", " ", "1\\2", "1\\2\\3\\4\\5\\6\\7",
    "99999999999999", "0.0000001", "1,5", "0x10", "\xff", "1_0", "+1", "00000001",
)
# fmt: on


@dataclass(frozen=True, eq=False)
class Base:
    """What mutations are made from.

    Args:
        files: name -> bytes; of a NIfTI one file, before it is zipped.
        zipped: whether that file is then zipped.
        syntax: transfer syntax of a DICOM series, empty for a NIfTI.
    """

    files: dict[str, bytes]
    zipped: bool = False
    syntax: str = ""


def _voxels() -> NDArray[np.float32]:
    """A warm body with noise in air of zero, so that many a wrong reading looks like an image too."""
    rng = np.random.Generator(np.random.Philox(11))
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    body = ((y - 15) / 12) ** 2 + ((x - 17) / 14) ** 2 + 0.0 * z < 1
    return np.asarray(np.where(body, rng.gamma(4.0, 0.5, SHAPE), 0.0), dtype=np.float32)


def _affine() -> NDArray[np.float64]:
    """Turned by some degrees about two axes, RAS."""
    a, b = 0.1, -0.2
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-SPACING_MM[2], -SPACING_MM[1], SPACING_MM[0]])
    affine[:3, 3] = (150.5, 120.25, -800.0)
    return affine


def _nifti(
    dtype: str, sform: int, qform: int, *, version: int = 1, order: str = "<", extension: bool = False, slope: float = 0
) -> dict[str, bytes]:
    voxels = _voxels()
    stored = np.rint(voxels / slope) if slope else voxels
    kind, header = (
        (nibabel.Nifti1Image, nibabel.Nifti1Header) if version == 1 else (nibabel.Nifti2Image, nibabel.Nifti2Header)
    )
    empty = header(endianness=order)
    empty.set_data_dtype(np.dtype(order + dtype))
    image = kind(stored.T.astype(order + dtype), _affine(), empty)
    image.header.set_xyzt_units("mm")
    image.set_sform(_affine() if sform else None, code=sform)
    image.set_qform(_affine() if qform else None, code=qform)
    if not sform:
        image.set_sform(None, code=0)
    if extension:
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"a comment of a scanner, some bytes long"))
    raw = bytearray(image.to_bytes())
    if slope:
        at, number = (NIFTI1 if version == 1 else NIFTI2)["scl_slope"]
        struct.pack_into(order + number, raw, at, slope)
    return {"pet.nii": bytes(raw)}


def _fresh(ds: pydicom.Dataset) -> pydicom.Dataset:
    """A copy that was not read from a file, so that it can be written in any byte order."""
    copy = pydicom.Dataset()
    for element in ds:
        if element.VR == "SQ":
            setattr(copy, element.keyword, [_fresh(item) for item in element.value])
        else:
            copy.add_new(element.tag, element.VR, element.value)
    return copy


def _dicom(syntax: str) -> dict[str, bytes]:
    grid = Grid(SHAPE, _affine())
    with tempfile.TemporaryDirectory() as folder:

        def edit(_: int, ds: pydicom.Dataset) -> None:
            ds.NumberOfSlices = SHAPE[0]

        write_series(Path(folder) / "pet", ArraySource(_voxels(), grid, SUV), edit=edit)
        files = {}
        for file in sorted((Path(folder) / "pet").iterdir()):
            read = pydicom.dcmread(file)
            ds: pydicom.Dataset = read
            if syntax == uid.ExplicitVRBigEndian:
                ds.PixelData = np.frombuffer(ds.PixelData, "<i2").astype(">i2").tobytes()
            if syntax in COMPRESSED:
                ds.compress(syntax, generate_instance_uid=False)
            else:
                ds = _fresh(read)
                ds.file_meta = read.file_meta
                ds.file_meta.TransferSyntaxUID = uid.UID(syntax)
            implicit, little = syntax == uid.ImplicitVRLittleEndian, syntax != uid.ExplicitVRBigEndian
            ds.save_as(file, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
            files[file.name] = file.read_bytes()
    return files


BASES: dict[str, Callable[[], Base]] = {
    "nii f4 both": lambda: Base(_nifti("f4", 1, 1)),
    "nii f4 sform": lambda: Base(_nifti("f4", 1, 0)),
    "nii f4 qform": lambda: Base(_nifti("f4", 0, 1)),
    "nii i2 scaled, extension": lambda: Base(_nifti("i2", 1, 1, extension=True, slope=0.01)),
    "nii big-endian i2": lambda: Base(_nifti("i2", 1, 1, order=">", slope=0.01)),
    "nii nifti-2 f8 sform": lambda: Base(_nifti("f8", 1, 0, version=2)),
    "gz f4 both": lambda: Base(_nifti("f4", 1, 1), zipped=True),
    "gz u1 sform": lambda: Base(_nifti("u1", 2, 0, slope=0.05), zipped=True),
    "gz u2 qform": lambda: Base(_nifti("u2", 0, 1, slope=0.01), zipped=True),
    "gz nifti-2 i4 both": lambda: Base(_nifti("i4", 1, 1, version=2, slope=0.001), zipped=True),
    "dcm implicit": lambda: Base(_dicom(uid.ImplicitVRLittleEndian), syntax=uid.ImplicitVRLittleEndian),
    "dcm explicit": lambda: Base(_dicom(uid.ExplicitVRLittleEndian), syntax=uid.ExplicitVRLittleEndian),
    "dcm big-endian": lambda: Base(_dicom(uid.ExplicitVRBigEndian), syntax=uid.ExplicitVRBigEndian),
    "dcm RLE": lambda: Base(_dicom(uid.RLELossless), syntax=uid.RLELossless),
    "dcm JPEG-LS": lambda: Base(_dicom(uid.JPEGLSLossless), syntax=uid.JPEGLSLossless),
    "dcm JPEG 2000": lambda: Base(_dicom(uid.JPEG2000Lossless), syntax=uid.JPEG2000Lossless),
}


@cache
def base(name: str) -> Base:
    """Return a base by its name; each is made once per process."""
    return BASES[name]()


# -- mutations --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Field:
    """A numeric or text field of a header: where its bytes lie and how a number is put there."""

    offset: int
    length: int
    number: str  # of struct, empty for text


def _nifti_table(data: bytes) -> dict[str, _Field]:
    order = "<" if data[:4] in (b"\x5c\x01\0\0", b"\x1c\x02\0\0") else ">"
    table = NIFTI1 if struct.unpack(order + "i", data[:4])[0] == 348 else NIFTI2
    return {name: _Field(at, struct.calcsize(number), order + number) for name, (at, number) in table.items()}


@cache
def _dicom_table(data: bytes) -> dict[str, _Field]:
    """Top-level elements of a sound file by their keyword, file meta included."""
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        file.write(data)
        file.flush()
        ds = pydicom.dcmread(file.name)
        order = ">" if ds.file_meta.TransferSyntaxUID == uid.ExplicitVRBigEndian else "<"
        table = {}
        for part in (ds.file_meta, ds):
            for tag in part.keys():  # noqa: SIM118 -- iterating a data set would convert its raw elements
                raw = part.get_item(tag)
                tell, length = getattr(raw, "value_tell", 0), getattr(raw, "length", 0)
                if tell and length < 1 << 31:
                    keyword = pydicom.datadict.keyword_for_tag(tag) or str(tag)
                    vr = pydicom.datadict.dictionary_VR(tag)
                    table[keyword] = _Field(tell, length, order + "H" if vr == "US" else "")
    return table


def _table(data: bytes, made_from: Base) -> dict[str, _Field]:
    return _dicom_table(data) if made_from.syntax else _nifti_table(data)


def _pixels(made_from: Base) -> int:
    """Where the header of the one file ends, before it is mutated."""
    (data,) = made_from.files.values()
    if made_from.syntax:
        tag = b"\x7f\xe0\x00\x10" if made_from.syntax == uid.ExplicitVRBigEndian else b"\xe0\x7f\x10\x00"
        return data.index(tag)
    table = _nifti_table(data)
    field = table["vox_offset"]
    return int(struct.unpack_from(field.number, data, field.offset)[0])


def _place(rng: np.random.Generator, data: bytearray, made_from: Base, where: str) -> int:
    """Somewhere in the ``header``, the ``pixels`` or anywhere."""
    border = min(_pixels(made_from), len(data) - 1)
    low, high = {"header": (0, border), "pixels": (border, len(data)), "": (0, len(data))}[where]
    if where == "header" and made_from.syntax:
        low = 128  # nobody reads the preamble
    return int(rng.integers(low, high))


def _flip(rng: np.random.Generator, data: bytearray, at: int) -> None:
    data[at] ^= 1 << int(rng.integers(8))


def _some(rng: np.random.Generator, most: int) -> bytes:
    """Random bytes, or zeros, or ones."""
    count = int(rng.integers(1, most + 1))
    return [rng.bytes(count), bytes(count), b"\xff" * count][int(rng.integers(3))]


def _put_number(rng: np.random.Generator, data: bytearray, field: _Field) -> None:
    if not field.number:
        _put_text(rng, data, field)
    elif field.number[-1] in "fd":
        value = float(rng.choice(FLOATS)) if rng.random() < 0.7 else float(10 ** rng.uniform(-12, 12))
        with np.errstate(over="ignore"):
            struct.pack_into(field.number, data, field.offset, np.float32(value) if field.number[-1] == "f" else value)
    else:
        bits = 8 * field.length
        value = int(rng.choice(INTEGERS)) if rng.random() < 0.7 else int(rng.integers(0, 1 << min(bits, 62)))
        data[field.offset : field.offset + field.length] = (value % (1 << bits)).to_bytes(
            field.length, "big" if field.number[0] == ">" else "little"
        )


def _put_text(rng: np.random.Generator, data: bytearray, field: _Field) -> None:
    """A value of the same length: padded with blanks or cut."""
    text = str(rng.choice(TEXTS)).encode("latin-1")
    data[field.offset : field.offset + field.length] = text[: field.length].ljust(field.length)


def _bit(rng: np.random.Generator, data: bytearray, made_from: Base) -> None:
    _flip(rng, data, _place(rng, data, made_from, "header"))


def _bit_in_pixels(rng: np.random.Generator, data: bytearray, made_from: Base) -> None:
    _flip(rng, data, _place(rng, data, made_from, "pixels"))


def _bits(rng: np.random.Generator, data: bytearray, made_from: Base) -> None:
    where = str(rng.choice(["header", "pixels", ""]))
    for _ in range(int(rng.integers(2, 17))):
        _flip(rng, data, _place(rng, data, made_from, where))


def _insert(rng: np.random.Generator, data: bytearray, made_from: Base) -> None:
    at = _place(rng, data, made_from, str(rng.choice(["header", "pixels"])))
    data[at:at] = _some(rng, 32)


def _delete(rng: np.random.Generator, data: bytearray, made_from: Base) -> None:
    at = _place(rng, data, made_from, str(rng.choice(["header", "pixels"])))
    del data[at : at + int(rng.integers(1, 33))]


def _overwrite(rng: np.random.Generator, data: bytearray, made_from: Base) -> None:
    at = _place(rng, data, made_from, str(rng.choice(["header", "pixels"])))
    new = _some(rng, 64)[: len(data) - at]
    data[at : at + len(new)] = new


def _truncate(rng: np.random.Generator, data: bytearray, made_from: Base) -> None:
    del data[_place(rng, data, made_from, str(rng.choice(["header", "pixels"]))) :]


def _size(rng: np.random.Generator, data: bytearray, made_from: Base) -> None:
    """A length that lies: of NIfTI one of the fields that give the file's size, of DICOM an element's length."""
    table = _table(bytes(data), made_from)
    if not made_from.syntax:
        field = table[str(rng.choice([name for name in SIZES if name in table]))]
        old = struct.unpack_from(field.number, data, field.offset)[0]
        if rng.random() < 0.5 and field.number[-1] != "f":
            new = int(old + rng.choice([-2, -1, 1, 2]))
            bits = 8 * field.length
            new = new % (1 << bits)
            data[field.offset : field.offset + field.length] = new.to_bytes(
                field.length, "big" if field.number[0] == ">" else "little"
            )
        else:
            _put_number(rng, data, field)
        return
    field = table[str(rng.choice(list(table)))]
    order = ">" if made_from.syntax == uid.ExplicitVRBigEndian else "<"
    long = rng.random() < 0.5
    new = int(rng.choice([0, 1, field.length - 2, field.length + 2, 2 * field.length, 0xFFFE, 0xFFFF]))
    new = int(rng.choice([0xFFFFFFFF, 0x7FFFFFFF, new])) if long else new
    packed = struct.pack(order + ("L" if long else "H"), max(0, new) % (1 << 32 if long else 1 << 16))
    data[field.offset - len(packed) : field.offset] = packed


def _swap(rng: np.random.Generator, data: bytearray, made_from: Base) -> None:
    """Exchange the values of two fields of one length."""
    table = list(_table(bytes(data), made_from).values())
    first = table[int(rng.integers(len(table)))]
    others = [field for field in table if field.length == first.length and field != first] or table
    second = others[int(rng.integers(len(others)))]
    if first.length == second.length:
        one, two = (bytes(data[f.offset : f.offset + f.length]) for f in (first, second))
        data[first.offset : first.offset + first.length] = two
        data[second.offset : second.offset + second.length] = one


def _duplicate(rng: np.random.Generator, data: bytearray, made_from: Base) -> None:
    """A block twice in a row, or over another block."""
    at = _place(rng, data, made_from, str(rng.choice(["header", "pixels", ""])))
    block = bytes(data[at : at + int(rng.integers(4, 512))])
    if rng.random() < 0.5:
        data[at:at] = block
    else:
        to = int(rng.integers(0, len(data) - len(block) + 1))
        data[to : to + len(block)] = block


def _number(rng: np.random.Generator, data: bytearray, made_from: Base) -> None:
    """An extreme number in one field."""
    table = _table(bytes(data), made_from)
    names = [name for name in table if name != "PixelData"]
    _put_number(rng, data, table[str(rng.choice(names))])


ZIPPED = "zipped stream"
KINDS: dict[str, Callable[[np.random.Generator, bytearray, Base], None]] = {
    "bit in the header": _bit,
    "bit in the pixels": _bit_in_pixels,
    "several bits": _bits,
    "bytes inserted": _insert,
    "bytes deleted": _delete,
    "bytes overwritten": _overwrite,
    "cut off": _truncate,
    "length that lies": _size,
    "fields exchanged": _swap,
    "block twice": _duplicate,
    "extreme number": _number,
    ZIPPED: lambda rng, data, made_from: _damage_stream(rng, data),  # of what was zipped before
}


def triples(count: int, first_seed: int = 0) -> Iterator[Triple]:
    """Yield mutations, half of them of NIfTI files: every kind of every base in turn, each with a seed of its own."""
    nifti = [name for name in BASES if not name.startswith("dcm")]
    dicom = [name for name in BASES if name.startswith("dcm")]
    for n in range(count):
        step, names, kinds = n // 2, (nifti, dicom)[n % 2], list(KINDS)
        if n % 2:
            kinds.remove(ZIPPED)
        kind = kinds[step % len(kinds)]
        if kind == ZIPPED:
            names = [name for name in nifti if name.startswith("gz")]
        yield first_seed + n, kind, names[step // len(kinds) % len(names)]


def mutated(triple: Triple) -> tuple[str, bytes]:
    """Return the name and the bytes of the one file that a mutation changes."""
    seed, kind, name = triple
    made_from = base(name)
    rng = np.random.Generator(np.random.Philox(seed))
    names = sorted(made_from.files)
    file = names[[0, SLICE, len(names) - 1][int(rng.integers(3))] if made_from.syntax else 0]
    data = bytearray(made_from.files[file])
    if kind == ZIPPED:
        data = bytearray(gzip.compress(bytes(data), mtime=0))
    KINDS[kind](rng, data, Base({file: bytes(data)}, made_from.zipped, made_from.syntax))
    if made_from.zipped and kind != ZIPPED:
        return "pet.nii.gz", gzip.compress(bytes(data), mtime=0)
    return "pet.nii.gz" if kind == ZIPPED else file, bytes(data)


def _damage_stream(rng: np.random.Generator, data: bytearray) -> None:
    """Damage a gzip file: its header, its deflated data, its checksum and length."""
    at = int(rng.integers(len(data))) if rng.random() < 0.6 else int(rng.choice([*range(12), *range(-9, 0)]))
    at %= len(data)
    action = int(rng.integers(5))
    if action == 0:
        _flip(rng, data, at)
    elif action == 1:
        data[at:at] = _some(rng, 16)
    elif action == 2:
        del data[at : at + int(rng.integers(1, 17))]
    elif action == 3:
        del data[at:]
    else:
        data += [bytes(rng.integers(1, 600)), rng.bytes(8), bytes(data), bytes(data[:40])][int(rng.integers(4))]


# -- judgement --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """What reading one mutation came to.

    Args:
        outcome: one of the words above.
        detail: the code of a refusal, or what is wrong.
    """

    triple: Triple
    outcome: str
    detail: str
    seconds: float = 0.0
    peak_kb: int = 0


Image = tuple[Grid, NDArray[np.float32], object]  # grid, voxels, what the reader noted


def read(path: Path, made_from: Base, workdir: Path) -> Image:
    """Open and read one whole image exactly as ingest does."""
    source: ImageSource = (
        open_series(path, modality="PT") if made_from.syntax else open_nifti(path, units="SUVbw", workdir=workdir)
    )
    return source.grid, source.read(0, source.grid.shape[0]), source.provenance["notes"]


@cache
def _truth(name: str) -> Image:
    made_from = base(name)
    with tempfile.TemporaryDirectory() as folder:
        return read(_written(Path(folder), made_from, {}), made_from, Path(folder) / "work")


def _written(folder: Path, made_from: Base, changed: dict[str, bytes]) -> Path:
    files = made_from.files | changed
    if not made_from.syntax:
        name, data = next(iter(changed.items() or files.items()))
        if made_from.zipped and not changed:
            name, data = "pet.nii.gz", gzip.compress(data)
        (folder / name).write_bytes(data)
        return folder / name
    (folder / "pet").mkdir()
    for name, data in files.items():
        (folder / "pet" / name).write_bytes(data)
    return folder / "pet"


def outcome_of(triple: Triple, folder: Path) -> tuple[str, str]:
    """Read one mutation in this process; returns the outcome and its detail."""
    made_from = base(triple[2])
    name, data = mutated(triple)
    grid, voxels, _ = _truth(triple[2])
    path = _written(folder, made_from, {name: data})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found_grid, found, notes = read(path, made_from, folder / "work")
    except InputError as error:
        if "\n" in str(error) or not re.fullmatch(r"[A-Z]+_[A-Z0-9_]+", error.code):
            return "TRACEBACK", f"a refusal that is no line: {error.code}"
        return REFUSED, error.code
    except MemoryError:
        return "MEMORY", "MemoryError"
    except Exception as error:
        return "TRACEBACK", f"{type(error).__name__}: {error}"[:200]
    same_grid = found_grid.shape == grid.shape and np.allclose(found_grid.affine, grid.affine, rtol=1e-6, atol=1e-6)
    if same_grid and np.allclose(found, voxels, rtol=1e-6, atol=1e-6):
        return EQUAL, ""
    if not made_from.syntax:
        wrong = nifti_contradiction(path, found_grid, found, triple)
        return (CONTRADICTS, wrong) if wrong else (OWN, "")
    if found_grid.shape[0] < grid.shape[0] and "fewer_slices_than_header_says" in notes:  # type: ignore[operator]
        return SHORT, f"{found_grid.shape[0]} slices of {grid.shape[0]}"
    return _judge_series(made_from, name, data, (grid, voxels), (found_grid, found))


def nifti_contradiction(path: Path, grid: Grid, voxels: NDArray[np.float32], triple: Triple) -> str:
    """Tell in what an accepted NIfTI file contradicts itself, by its bytes alone; empty if in nothing.

    Also that it was read as nibabel reads it: what differs from the base then is what the file says.
    """
    if triple[1] == ZIPPED:
        return "a damaged gzip stream gave another image"
    raw = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    table = _nifti_table(raw)

    def value(name: str) -> float:
        field = table[name]
        return float(struct.unpack_from(field.number, raw, field.offset)[0])

    size = {2: 1, 256: 1, 4: 2, 512: 2, 8: 4, 768: 4, 16: 4, 64: 8, 1024: 8, 1280: 8}[int(value("datatype"))]
    end = (value("vox_offset") or table["extension"].offset + 4) + size * np.prod([value(f"dim{i}") for i in (1, 2, 3)])
    if end > len(raw) or raw[int(end) :].strip(b"\0") or (len(raw) > end and len(raw) % 512):
        return "its length does not fit"
    unit = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}[int(value("xyzt_units")) & 7]
    pixdim = np.array([value(f"pixdim{i}") for i in (1, 2, 3)]) * unit
    sform = np.array([[value(f"srow{4 * i + j}") for j in range(4)] for i in range(3)]) * unit
    edges = np.linalg.norm(grid.affine[:3, :3], axis=0)
    if np.any(np.abs(edges - pixdim) > 0.0101):
        return f"voxels of {edges} mm, pixdim {pixdim}"
    directions = grid.affine[:3, :3] / edges
    if np.abs(directions.T @ directions - np.eye(3)).max() > 1.01e-3:
        return "sheared"
    if pixdim.min() < 0.02 or pixdim.max() > 100:
        return f"voxels of {pixdim} mm"
    if 0 < value("sform_code") < 6 and np.abs(sform - grid.affine[:3]).max() > 1e-4:
        return "not the sform"
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = nibabel.load(path)
            theirs = image.get_fdata(dtype=np.float32).reshape(grid.shape[::-1]).T
        except Exception:  # it stops at damaged extensions, which no voxel depends on
            return ""
        affine = image.affine.copy()
        affine[:3] *= unit
        qform = image.header.get_qform(coded=True)
    if np.abs(affine - grid.affine).max() > 1e-3:
        return "nibabel places it elsewhere"
    if value("vox_offset") and not np.allclose(theirs, voxels, rtol=1e-5, atol=1e-6):
        return "nibabel reads other values"
    if value("sform_code") > 0 and qform[1] > 0:
        corners = np.array([(x, y, z, 1) for x in (0, 1) for y in (0, 1) for z in (0, 1)])
        corners = corners * [*(np.array(grid.shape[::-1]) - 1), 1]
        if np.abs(corners @ (qform[0][:3] * unit - grid.affine[:3]).T).max() > 0.101:
            return "sform and qform differ"
    return ""


def _judge_series(
    made_from: Base,
    name: str,
    data: bytes,
    truth: tuple[Grid, NDArray[np.float32]],
    found: tuple[Grid, NDArray[np.float32]],
) -> tuple[str, str]:
    """What differs of an accepted series: its place contradicts the other slices, its values need not."""
    grid, voxels = truth
    if found[0].shape != grid.shape:
        return CONTRADICTS, f"{found[0].shape[0]} slices of {grid.shape[0]}"
    gap_mm = _corner_gap_mm(grid, found[0])
    if gap_mm > 0.1 * SPACING_MM[0]:
        return CONTRADICTS, f"a grid {gap_mm:.3g} mm off"
    order = sorted(made_from.files)
    changed = {z for z in range(grid.shape[0]) if not np.allclose(found[1][z], voxels[z], rtol=1e-6, atol=1e-6)}
    own = order.index(name) if name in order else -1
    if changed - {own}:
        return CONTRADICTS, f"values of {len(changed)} slices changed, by one file"
    if not changed:
        return OWN, f"a grid {gap_mm:.2g} mm off, within the tolerance between slices"
    before, after = (_parsed(bytes_) for bytes_ in (made_from.files[name], data))
    if after is None or before is None:
        return CONTRADICTS, "values changed in a file that pydicom cannot read"
    fields = {key for key in {*before, *after} - {"PixelData"} if before.get(key) != after.get(key)}
    if "RescaleSlope" in fields:
        return OWN, "another RescaleSlope"
    if before.get("PixelData") == after.get("PixelData"):
        return CONTRADICTS, f"values changed by {', '.join(sorted(fields)) or 'nothing that pydicom shows'}"
    if made_from.syntax in COMPRESSED:
        return CODEC, str(made_from.syntax)
    if len(data) > len(made_from.files[name]) and len(data) % 512 and not fields:
        return CONTRADICTS, "bytes put in between, and as many pushed out behind the pixels"
    if len(after["PixelData"]) != len(before["PixelData"]):
        return CONTRADICTS, "pixels of another length"
    return OWN, "other pixels"


def _corner_gap_mm(a: Grid, b: Grid) -> float:
    last = np.array(a.shape[::-1]) - 1
    corners = np.array([(x, y, z, 1) for x in (0, last[0]) for y in (0, last[1]) for z in (0, last[2])])
    return float(np.linalg.norm(corners @ (a.affine - b.affine)[:3].T, axis=1).max())


def _parsed(data: bytes) -> dict[str, Any] | None:
    """Keyword -> raw value."""
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.write(data)
        file.flush()
        try:
            ds = pydicom.dcmread(file.name)
        except Exception:  # a damaged header raises whatever it likes; only whether it parses is asked here
            return None
        found = {}
        for tag in list(ds.keys()):
            try:
                found[pydicom.datadict.keyword_for_tag(tag) or str(tag)] = getattr(ds.get_item(tag), "value", None)
            except Exception:  # one damaged element: the others are still compared
                found[str(tag)] = None
        return found


# -- processes --------------------------------------------------------------------------------------------------------


def _work(pipe: "multiprocessing.connection.Connection[Any, Any]") -> None:
    """Read and compare what comes through the pipe, with bounded memory, until None comes."""
    for name in BASES:  # before memory is bounded: what the bases take is not the mutations'
        _truth(name)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    while (triple := pipe.recv()) is not None:
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcome, detail = outcome_of(triple, Path(folder))
            except Exception as error:  # of this check itself
                outcome, detail = "TRACEBACK", f"in the check: {type(error).__name__}: {error}"[:200]
        peak = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]
        pipe.send((outcome, detail, peak))


def run(mutations: Sequence[Triple]) -> Iterator[Finding]:
    """Try mutations in a process of their own, which is replaced when one of them ends or stops it."""
    context = multiprocessing.get_context("spawn")
    process, pipe = None, None
    try:
        for triple in mutations:
            if process is None or pipe is None:
                pipe, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs,), daemon=True)
                process.start()
                theirs.close()
                pipe.send((0, "bit in the header", next(iter(BASES))))  # until it stands, no time is measured
                if not pipe.poll(120):
                    raise RuntimeError("the reading process does not start")
                pipe.recv()
            began = time.perf_counter()
            pipe.send(triple)
            try:
                if not pipe.poll(LIMIT_S):
                    raise TimeoutError
                outcome, detail, peak = pipe.recv()
                if peak > PEAK_KB:
                    outcome, detail = "MEMORY", f"{peak} KB resident after it"
            except (TimeoutError, EOFError, ConnectionError) as error:
                outcome, detail, peak = ("HANG" if isinstance(error, TimeoutError) else "CRASH"), "", 0
            yield Finding(triple, outcome, detail, time.perf_counter() - began, peak)
            if outcome in ("HANG", "CRASH", "MEMORY"):
                process.kill()
                process.join()
                process = None
    finally:
        if process is not None:
            process.kill()
            process.join()
