"""NIfTI volumes keep their values and their place, and no damaged file passes."""

import gzip
import os
import re
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from storage.errors import InputError
from storage.nifti import comment_of, open_nifti, write_nifti
from storage.source import BQML, HU, LABEL, SUV, Grid

SHAPE = (7, 6, 5)
AFFINE = np.array([[-3.9, 0.2, 0.1, 300.3], [0.2, 4.1, -0.3, -881.29999], [-0.1, 0.3, 3.27, 12.5], [0, 0, 0, 1]])


def rigid(affine: NDArray[Any]) -> NDArray[Any]:
    """The affine with orthogonal axes, so that a qform can hold it."""
    u, _, v = np.linalg.svd(affine[:3, :3])
    out = affine.copy()
    out[:3, :3] = u @ v @ np.diag([4.0, 4.1, 3.27])
    return out


@pytest.fixture
def voxels() -> NDArray[Any]:
    rng = np.random.Generator(np.random.Philox(3))
    return rng.standard_normal(SHAPE, dtype=np.float32)


def save(
    path: Path,
    voxels: NDArray[Any],
    affine: NDArray[Any] | None = None,
    *,
    dtype: Any = np.float32,
    sform: int = 1,
    qform: int = 1,
    fields: dict[int, bytes] | None = None,
) -> Path:
    """Write with nibabel, then overwrite header fields ``{offset: bytes}``."""
    affine = rigid(AFFINE) if affine is None else affine
    image = nibabel.Nifti1Image(np.ascontiguousarray(voxels.T).astype(dtype), affine, dtype=np.dtype(dtype))
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=sform)
    image.set_qform(affine, code=qform)
    data = bytearray(image.to_bytes())
    for offset, value in (fields or {}).items():
        data[offset : offset + len(value)] = value
    path.write_bytes(gzip.compress(bytes(data)) if path.suffix == ".gz" else bytes(data))
    return path


def opened(path: Path, **options: Any) -> Any:
    return open_nifti(path, units=options.pop("units", SUV), workdir=path.parent / "work", **options)


def refused(path: Path, **options: Any) -> str:
    def use() -> None:
        source = opened(path, **options)
        source.read(0, source.grid.shape[0])

    with pytest.raises(InputError) as error:
        use()
    assert "\n" not in str(error.value)
    assert not list((path.parent / "work").glob("*")) or error.value.code in ("IMG_NONFINITE", "NII_BAD_LABEL")
    return error.value.code


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_round_trip(tmp_path: Path, voxels: NDArray[Any], name: str) -> None:
    grid = Grid(SHAPE, rigid(AFFINE))
    write_nifti(tmp_path / name, grid, lambda a, b: voxels[a:b])
    source = opened(tmp_path / name)
    assert np.array_equal(source.read(0, 7), voxels)
    assert source.grid.affine == pytest.approx(grid.affine, rel=1e-6, abs=1e-6)
    image = nibabel.load(tmp_path / name)
    assert np.array_equal(image.get_fdata(dtype=np.float32).T, voxels)
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1
    assert image.header.get_qform() == pytest.approx(grid.affine, abs=1e-3)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [name]
    assert (tmp_path / name).stat().st_mode & 0o077 == 0, "a patient's image is for its owner only"


@pytest.mark.parametrize(
    "comment", ["", "a", "x" * 8, "x" * 9, "noise 40 %, trained on 9 to 12 %; voxels of 4.1 mm, \u00b5"]
)
def test_a_comment_is_an_extension_that_other_readers_know_and_moves_no_voxel(
    comment: str, voxels: NDArray[Any], tmp_path: Path
) -> None:
    for name in ("a.nii", "a.nii.gz"):
        write_nifti(tmp_path / name, Grid(SHAPE, rigid(AFFINE)), lambda a, b: voxels[a:b], comment=comment)
        theirs = nibabel.Nifti1Image.from_filename(tmp_path / name)
        np.testing.assert_array_equal(theirs.get_fdata(dtype=np.float32).T, voxels)
        assert [(one.get_code(), one.text) for one in theirs.header.extensions] == ([(6, comment)] if comment else [])
        np.testing.assert_array_equal(opened(tmp_path / name).read(0, SHAPE[0]), voxels)


def test_a_sheared_affine_keeps_its_sform_only(tmp_path: Path, voxels: NDArray[Any]) -> None:
    sheared = AFFINE.copy()
    sheared[0, 2] += 1.0
    write_nifti(tmp_path / "a.nii", Grid(SHAPE, sheared), lambda a, b: voxels[a:b])
    image = nibabel.load(tmp_path / "a.nii")
    assert image.header.get_sform(coded=True)[0] == pytest.approx(sheared, rel=1e-6)
    assert int(image.header["qform_code"]) == 0
    assert refused(tmp_path / "a.nii") == "NII_BAD_AFFINE", "no grid of ours is sheared"


def test_equal_volumes_give_equal_files(tmp_path: Path, voxels: NDArray[Any]) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, Grid(SHAPE, AFFINE), lambda a, b: voxels[a:b])
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, voxels: NDArray[Any]) -> None:
    path = tmp_path / "a.nii.gz"
    write_nifti(path, Grid(SHAPE, AFFINE), lambda a, b: voxels[a:b])
    before = path.read_bytes()
    with pytest.raises(InputError, match="IMG_NONFINITE"):
        write_nifti(path, Grid(SHAPE, AFFINE), lambda a, b: voxels[a:b] * np.nan)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="slab of shape"):
        write_nifti(path, Grid(SHAPE, AFFINE), lambda a, b: voxels[a:b, :1])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


def test_slabs_are_pure_and_threads_agree(tmp_path: Path, voxels: NDArray[Any]) -> None:
    source = opened(save(tmp_path / "a.nii.gz", voxels))
    with ThreadPoolExecutor(4) as pool:
        slabs = list(pool.map(lambda z: source.read(z, z + 1), list(range(7)) * 5))
    assert np.array_equal(np.concatenate(slabs[:7]), voxels)
    assert all(s.dtype == np.float32 and s.flags.c_contiguous for s in slabs)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8", ">i2", ">f4"])
def test_stored_types(tmp_path: Path, dtype: str) -> None:
    voxels = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 200
    header = nibabel.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    image = nibabel.Nifti1Image(voxels.T.astype(dtype), np.eye(4), header)
    image.header.set_data_dtype(dtype)
    image.set_qform(np.eye(4), 1)
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    assert np.array_equal(opened(tmp_path / "a.nii").read(0, 7), voxels)


def test_nifti_2(tmp_path: Path, voxels: NDArray[Any]) -> None:
    nibabel.save(nibabel.Nifti2Image(voxels.T, rigid(AFFINE)), tmp_path / "a.nii.gz")
    assert np.array_equal(opened(tmp_path / "a.nii.gz").read(2, 5), voxels[2:5])


@pytest.mark.parametrize(
    ("slope", "inter", "expected"), [(0.5, 3.0, (0.5, 3.0)), (0.0, 9.0, (1, 0)), (np.nan, np.nan, (1, 0))]
)
def test_scaling(
    tmp_path: Path, voxels: NDArray[Any], slope: float, inter: float, expected: tuple[float, float]
) -> None:
    stored = np.rint(voxels * 100)
    path = save(tmp_path / "a.nii", stored, dtype=np.int16, fields={112: struct.pack("<ff", slope, inter)})
    assert np.array_equal(opened(path).read(0, 7), (stored * expected[0] + expected[1]).astype(np.float32))


@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 1), (2, 1), (2, 0)])
def test_either_form_places_the_volume(tmp_path: Path, voxels: NDArray[Any], sform: int, qform: int) -> None:
    source = opened(save(tmp_path / "a.nii", voxels, sform=sform, qform=qform))
    assert source.grid.affine == pytest.approx(rigid(AFFINE), abs=1e-3)
    assert source.grid.affine == pytest.approx(nibabel.load(tmp_path / "a.nii").affine)


@pytest.mark.parametrize(("unit", "per_mm"), [(1, 1e-3), (2, 1.0), (3, 1e3)])
@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 1), (1, 1)])
def test_units_of_length(
    tmp_path: Path, voxels: NDArray[Any], unit: int, per_mm: float, sform: int, qform: int
) -> None:
    """A whole header in metres or microns, not one whose unit alone was exchanged."""
    affine = rigid(AFFINE)
    affine[:3] *= per_mm
    path = save(tmp_path / "a.nii", voxels, affine, sform=sform, qform=qform, fields={123: bytes([unit])})
    source = opened(path)
    assert source.grid.affine == pytest.approx(rigid(AFFINE), rel=1e-4, abs=1e-3)
    assert source.provenance["notes"] == ([] if unit == 2 else ["spatial_unit_converted_to_mm"])


@pytest.mark.parametrize(
    ("unit", "per_mm", "told"),
    [
        (1, 1.0, "in metres; set xyzt_units to mm (2)"),
        (3, 1.0, "in microns; set xyzt_units to mm (2)"),
        (0, 1e-3, "without a unit, read as mm; set xyzt_units to metre (1)"),
        (2, 1e-3, "in mm; set xyzt_units to metre (1)"),
        (2, 1e3, "in mm; set xyzt_units to micron (3)"),
        (2, 1e-6, "in mm; save it with its voxel sizes in mm"),
        (0, 1e6, "without a unit, read as mm; save it with its voxel sizes in mm"),
    ],
)
def test_a_unit_that_no_scanner_has_is_refused_with_the_unit_that_is_meant(
    tmp_path: Path, voxels: NDArray[Any], unit: int, per_mm: float, told: str
) -> None:
    affine = rigid(AFFINE)
    affine[:3] *= per_mm
    path = save(tmp_path / "a.nii", voxels, affine, fields={123: bytes([unit])})
    with pytest.raises(InputError) as error:
        opened(path)
    assert error.value.code == "NII_BAD_SPACING"
    assert told in str(error.value)
    if remedy := re.search(r"\((\d)\)", error.value.remedy):  # it works
        data = bytearray(path.read_bytes())
        data[123] = int(remedy.group(1))
        path.write_bytes(data)
        assert opened(path).grid.affine == pytest.approx(rigid(AFFINE), rel=1e-4, abs=1e-3)


def test_activity_is_scaled_to_suv(tmp_path: Path, voxels: NDArray[Any]) -> None:
    path = save(tmp_path / "a.nii", voxels)
    source = opened(path, units=BQML, scale=2.5e-4)
    assert source.units == SUV
    assert source.provenance["stored_units"] == BQML
    assert source.read(0, 7) == pytest.approx(voxels * 2.5e-4)
    assert opened(path, units=BQML).units == BQML
    with pytest.raises(ValueError, match="scale"):
        opened(path, units=HU, scale=2.0)


def test_trailing_axes_of_one_are_no_fourth_axis(tmp_path: Path, voxels: NDArray[Any]) -> None:
    image = nibabel.Nifti1Image(voxels.T[..., None, None], rigid(AFFINE))
    nibabel.save(image, tmp_path / "a.nii")
    assert np.array_equal(opened(tmp_path / "a.nii").read(0, 7), voxels)
    nibabel.save(nibabel.Nifti1Image(np.stack([voxels.T] * 5, -1), rigid(AFFINE)), tmp_path / "b.nii")
    assert refused(tmp_path / "b.nii") == "NII_4D"


def test_labels(tmp_path: Path, voxels: NDArray[Any]) -> None:
    whole = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    assert np.array_equal(opened(save(tmp_path / "a.nii", whole, dtype=np.int32), units=LABEL).read(0, 7), whole)
    assert refused(save(tmp_path / "b.nii", voxels), units=LABEL) == "NII_BAD_LABEL"


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_no_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "nothing.nii") == "IMG_NO_FILE"


def test_files_that_are_something_else(tmp_path: Path, voxels: NDArray[Any]) -> None:
    good = save(tmp_path / "good.nii", voxels).read_bytes()
    pair = bytearray(good)
    pair[344:348] = b"ni1\0"
    for name, data, code in [
        ("empty.nii", b"", "NII_EMPTY"),
        ("empty.nii.gz", b"", "NII_EMPTY"),
        ("dicom.nii", bytes(128) + b"DICM" + bytes(400), "NII_NOT_NIFTI"),
        ("plain.nii.gz", good, "NII_NOT_GZIP"),
        ("zipped.nii", gzip.compress(good), "NII_NOT_NIFTI"),
        ("text.nii.gz", gzip.compress(b"hello world" * 99), "NII_NOT_NIFTI"),
        ("pair.nii", bytes(pair), "NII_NOT_NIFTI"),
        ("three.nii", b"abc", "NII_TRUNCATED"),
        ("header.nii", good[:352], "NII_TRUNCATED"),
        ("half_header.nii", good[:200], "NII_TRUNCATED"),
        ("half.nii", good[:-400], "NII_TRUNCATED"),
        ("half.nii.gz", gzip.compress(good[:-400]), "NII_TRUNCATED"),
    ]:
        (tmp_path / name).write_bytes(data)
        assert refused(tmp_path / name) == code, name


def test_every_cut_of_a_gzip_file_is_found(tmp_path: Path, voxels: NDArray[Any]) -> None:
    data = save(tmp_path / "a.nii.gz", voxels).read_bytes()
    for length in (2, 5, 12, 100, len(data) // 2, len(data) - 9, len(data) - 4, len(data) - 1):
        (tmp_path / "a.nii.gz").write_bytes(data[:length])
        assert refused(tmp_path / "a.nii.gz") == "NII_TRUNCATED", length


def test_every_flipped_byte_of_a_gzip_body_is_found(tmp_path: Path, voxels: NDArray[Any]) -> None:
    data = save(tmp_path / "a.nii.gz", voxels).read_bytes()
    for at in range(10, len(data), 37):
        flipped = bytearray(data)
        flipped[at] ^= 0x10
        (tmp_path / "a.nii.gz").write_bytes(flipped)
        assert refused(tmp_path / "a.nii.gz").startswith("NII_"), at
    flipped = bytearray(data)
    flipped[-6] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(flipped)
    assert refused(tmp_path / "a.nii.gz") == "NII_GZIP_CRC"


@pytest.mark.parametrize("bit", [0x20, 0x40, 0x80])
def test_a_flag_that_no_gzip_header_has_is_found(bit: int, tmp_path: Path, voxels: NDArray[Any]) -> None:
    data = bytearray(save(tmp_path / "a.nii.gz", voxels).read_bytes())
    data[3] |= bit
    (tmp_path / "a.nii.gz").write_bytes(data)
    assert refused(tmp_path / "a.nii.gz") == "NII_GZIP_CRC"


def test_gzip_in_several_members_and_padding(tmp_path: Path, voxels: NDArray[Any]) -> None:
    raw = save(tmp_path / "a.nii", voxels).read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(raw[:500]) + gzip.compress(raw[500:]) + bytes(512))
    assert np.array_equal(opened(tmp_path / "a.nii.gz").read(0, 7), voxels)


def test_lies_about_size_cost_nothing(tmp_path: Path, voxels: NDArray[Any]) -> None:
    huge = {40: struct.pack("<4h", 3, 32767, 32767, 32767)}
    big = {40: struct.pack("<4h", 3, 1024, 1024, 1024)}
    started = time.process_time()
    assert refused(save(tmp_path / "a.nii", voxels, fields=huge)) == "NII_SIZE_LIE"
    assert refused(save(tmp_path / "a.nii.gz", voxels, fields=huge)) == "NII_SIZE_LIE"
    assert refused(save(tmp_path / "b.nii", voxels, fields=big)) == "NII_SIZE_LIE"
    assert refused(save(tmp_path / "b.nii.gz", voxels, fields=big)) == "NII_SIZE_LIE"
    assert time.process_time() - started < 1


def test_gzip_bomb(tmp_path: Path, voxels: NDArray[Any]) -> None:
    raw = save(tmp_path / "a.nii", voxels).read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(raw + bytes(200 << 20), compresslevel=1))
    assert refused(tmp_path / "a.nii.gz") == "NII_BOMB"


def f32(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("NII_BAD_DIM", {42: struct.pack("<h", -5)}),
        ("NII_BAD_DIM", {42: struct.pack("<h", 0)}),
        ("NII_BAD_DIM", {40: struct.pack("<h", 2)}),
        ("NII_BAD_DIM", {40: struct.pack("<h", 99)}),
        ("NII_BAD_TYPE", {70: struct.pack("<h", 32)}),  # complex64
        ("NII_BAD_TYPE", {70: struct.pack("<h", 128)}),  # RGB
        ("NII_BAD_TYPE", {70: struct.pack("<h", 12345)}),
        ("NII_BAD_SPACING", {80: f32(np.nan)}),
        ("NII_BAD_SPACING", {80: f32(0.0)}),
        ("NII_BAD_SPACING", {84: f32(-2.0)}),
        ("NII_NO_ORIENTATION", {252: struct.pack("<hh", 0, 0)}),
        ("NII_AMBIGUOUS_AFFINE", {280: f32(4.0)}),
        ("NII_BAD_AFFINE", {280: f32(np.nan)}),
        ("NII_BAD_AFFINE", {280: f32(0, 0, 0, 0)}),
        ("NII_BAD_AFFINE", {252: struct.pack("<hh", 1, 0), 256: f32(5.0, 5.0, 5.0)}),
        ("NII_BAD_SCALE", {112: f32(np.inf)}),
        ("NII_BAD_SCALE", {112: f32(1.0, np.nan)}),
        ("NII_NOT_NIFTI", {108: f32(np.nan)}),
        ("NII_NOT_NIFTI", {108: f32(100.0)}),
        ("NII_TRUNCATED", {108: f32(1e6)}),
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_bad_headers(tmp_path: Path, voxels: NDArray[Any], name: str, code: str, fields: dict[int, Any]) -> None:
    assert refused(save(tmp_path / name, voxels, fields=fields)) == code


def crooked(columns: NDArray[Any], **lengths: float) -> NDArray[Any]:
    """An affine whose axes are the columns; ``x=2`` makes the first axis twice as long."""
    affine = rigid(AFFINE)
    affine[:3, :3] = columns * [lengths.get(axis, 1.0) for axis in "xyz"]
    return affine


def moved(affine: NDArray[Any], x_mm: float) -> NDArray[Any]:
    affine[:3, 3] = (x_mm, 0, 0)
    return affine


STRAIGHT = rigid(AFFINE)[:3, :3]
TURN = np.array([[1.0, 0.05, 0], [0, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("code", "told", "affine"),
    [
        ("NII_BAD_AFFINE", "degrees off a right angle", crooked(TURN @ STRAIGHT)),
        ("NII_AMBIGUOUS_AFFINE", "8 x 4.1 x 3.27 mm by the affine and 4 x 4.1 x 3.27", crooked(STRAIGHT, x=2)),
        ("NII_AMBIGUOUS_AFFINE", "60 x 4.1 x 3.27 mm by the affine", crooked(STRAIGHT, x=15)),
        ("NII_AMBIGUOUS_AFFINE", "x 1e+09 x", crooked(STRAIGHT, y=1e9 / 4.1)),
        ("NII_AMBIGUOUS_AFFINE", "5e+19 mm by the affine", crooked(STRAIGHT, z=5e19 / 3.27)),
        ("NII_AMBIGUOUS_AFFINE", "mm by pixdim", crooked(STRAIGHT, x=1.005)),
        ("NII_BAD_AFFINE", "20 m from the origin", moved(rigid(AFFINE), 2e4)),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_an_sform_that_contradicts_itself_or_pixdim(
    tmp_path: Path, voxels: NDArray[Any], code: str, told: str, affine: NDArray[Any], version: int
) -> None:
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    image = kind(voxels.T, rigid(AFFINE))
    image.set_qform(None, code=0)
    raw = bytearray(image.to_bytes())
    at, number = (280, "<f4") if version == 1 else (400, "<f8")  # of the sform
    raw[at : at + 12 * int(number[2])] = affine[:3].astype(number).tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(InputError) as error:
        opened(tmp_path / "a.nii")
    assert error.value.code == code
    assert told in str(error.value)


@pytest.mark.parametrize("decimals", [2, 3, 5])
def test_a_pixdim_that_was_rounded_is_no_contradiction(tmp_path: Path, voxels: NDArray[Any], decimals: int) -> None:
    sizes = np.array([4.07283, 0.976562, 3.26999])
    affine = crooked(STRAIGHT / np.linalg.norm(STRAIGHT, axis=0) * sizes)
    fields = {80: f32(*np.round(sizes, decimals))}
    source = opened(save(tmp_path / "a.nii", voxels, affine, qform=0, fields=fields))
    assert source.grid.spacing_mm == pytest.approx(sizes[::-1], rel=1e-6), "the affine's, which is the finer one"


@pytest.mark.parametrize("qfac", [0.0, 1.0, 2.0, 1e-3, -1.0])
def test_qfac_is_read_as_nibabel_does(tmp_path: Path, voxels: NDArray[Any], qfac: float) -> None:
    path = save(tmp_path / "a.nii", voxels, sform=0, fields={76: f32(qfac)})
    assert opened(path).grid.affine == pytest.approx(nibabel.load(path).affine)


@pytest.mark.parametrize("qfac", [-2.0, -1e-3, np.nan, np.inf])
def test_a_qfac_that_libraries_read_differently(tmp_path: Path, voxels: NDArray[Any], qfac: float) -> None:
    assert refused(save(tmp_path / "a.nii", voxels, sform=0, fields={76: f32(qfac)})) == "NII_BAD_AFFINE"


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_bytes_after_the_voxels(tmp_path: Path, voxels: NDArray[Any], name: str) -> None:
    """A dim, datatype or offset that was made smaller leaves bytes over; zeros up to a block are padding."""
    for at, value in ((42, 4), (44, 5), (46, 6), (70, 4)):
        whole = voxels * 0 if at != 70 else voxels  # of a volume of zeros too
        assert refused(save(tmp_path / name, whole, fields={at: struct.pack("<h", value)})) == "NII_TRAILING"
    good = save(tmp_path / "good.nii", voxels).read_bytes()
    for more, fits in ((bytes(-len(good) % 512), True), (bytes(16), False), (b"\0\0\0\1", False), (bytes(4096), False)):
        (tmp_path / name).write_bytes(gzip.compress(good + more) if name.endswith("gz") else good + more)
        if fits:
            assert np.array_equal(opened(tmp_path / name).read(0, 7), voxels)
            for left in (tmp_path / "work").glob("*"):
                left.unlink()
        else:
            assert refused(tmp_path / name) == "NII_TRAILING"


@pytest.mark.parametrize(
    ("dtype", "value", "noted"),
    [
        ("i4", 2**24, False),
        ("i4", 2**24 + 1, True),
        ("u4", 2**32 - 1, True),
        ("i8", -(2**24) - 1, True),
        ("i8", 2**60, False),
        ("u8", 2**64 - 1, True),
        ("f8", 0.1, False),
        ("f8", 2**25 + 0.5, True),
        ("f4", 1e30, False),
    ],
)
def test_numbers_that_float32_rounds_are_noted(
    tmp_path: Path, voxels: NDArray[Any], dtype: str, value: float, noted: bool
) -> None:
    stored = np.zeros(SHAPE, dtype)
    stored[5, 2, 3] = value
    source = opened(save(tmp_path / "a.nii.gz", stored, dtype=dtype))
    assert (source.provenance["notes"] == ["rounded_to_float32"]) == noted
    assert source.read(5, 6)[0, 2, 3] == np.float32(value)
    if value > 65535:
        assert refused(save(tmp_path / "l.nii", stored, dtype=dtype), units=LABEL) == "NII_BAD_LABEL"


def test_a_slope_that_overflows_is_told_as_such(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.full(SHAPE, 300), dtype=np.int16, fields={112: f32(3e38)})
    with pytest.raises(InputError, match=r"210 voxels overflow float32 .* scl_slope") as error:
        opened(path).read(0, 7)
    assert error.value.code == "IMG_NONFINITE"


def test_labels_are_judged_before_they_are_rounded(tmp_path: Path) -> None:
    for value in (1.00000001, 65535.001, -1e-9):
        path = save(tmp_path / "a.nii", np.full(SHAPE, value), dtype=np.float64)
        assert refused(path, units=LABEL) == "NII_BAD_LABEL", value


def test_a_flip_between_sform_and_qform_is_no_choice_of_ours(tmp_path: Path, voxels: NDArray[Any]) -> None:
    path = save(tmp_path / "a.nii", voxels)
    image = nibabel.load(path)
    image = nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header)
    image.set_sform(rigid(AFFINE) @ np.diag([-1, 1, 1, 1]), 1)
    path.write_bytes(image.to_bytes())
    assert refused(path) == "NII_AMBIGUOUS_AFFINE"


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_nonfinite_voxels_are_counted_and_placed(tmp_path: Path, voxels: NDArray[Any], bad: float) -> None:
    broken = voxels.astype(np.float64)
    broken[4, 2, 1:3] = bad
    source = opened(save(tmp_path / "a.nii", broken, dtype=np.float64))
    assert np.array_equal(source.read(0, 4), voxels[:4])
    with pytest.raises(InputError) as error:
        source.read(4, 6)
    assert error.value.code == "IMG_NONFINITE"
    found = "overflow float32 (beyond 3.4e38 once scaled)" if bad == 1e300 else "are NaN or Inf"
    assert error.value.found == f"2 voxels {found} in slices 4 to 5"


@pytest.mark.skipif("PETSCALE_REAL_DATA" not in os.environ, reason="PETSCALE_REAL_DATA names no data folder")
def test_real_files_read_as_nibabel_reads_them(tmp_path: Path) -> None:
    found = sorted(Path(os.environ["PETSCALE_REAL_DATA"]).rglob("*.nii.gz"))
    assert len(found) > 80
    for file in found[::5]:
        source = open_nifti(file, units="HU", workdir=tmp_path)
        image = nibabel.load(file)
        assert source.grid.affine == pytest.approx(image.affine)
        assert np.array_equal(source.read(0, source.grid.shape[0]), image.get_fdata(dtype=np.float32).T)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_comment_is_read_back(tmp_path: Path, ending: str) -> None:
    grid = Grid((2, 3, 4), np.diag([-4.0, -4.0, 5.0, 1.0]))
    for comment in ("", "standard deviation not calibrated", "μ" * 400):
        path = tmp_path / f"x{ending}"
        write_nifti(path, grid, lambda a, b: np.zeros((b - a, 3, 4), np.float32), comment=comment)
        assert comment_of(path) == comment
    (tmp_path / "short.nii").write_bytes(b"n+1")
    assert comment_of(tmp_path / "short.nii") == ""
