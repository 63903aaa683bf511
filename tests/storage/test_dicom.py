"""A DICOM series is read as the standard says, or refused with the code of what is wrong with it."""

import contextlib
import itertools
import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

from storage.dicom import open_series
from storage.dicom_pairs import check_pair
from storage.dicom_series import find_series
from storage.dicom_write import write_series
from storage.errors import InputError
from storage.source import HU, SUV, ArraySource, Grid
from storage.suv import Overrides

SHAPE = (8, 6, 5)
AFFINE = np.array([[-4.0, 0, 0, 30], [0, -5.0, 0, 20], [0, 0, 3.0, -100], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def pet() -> ArraySource:
    rng = np.random.Generator(np.random.Philox(7))
    scale = np.linspace(0.1, 20, SHAPE[0], dtype=np.float32)[:, None, None]  # so that every slice has its own slope
    return ArraySource(rng.random(SHAPE, dtype=np.float32) * scale, Grid(SHAPE, AFFINE), SUV)


@pytest.fixture
def ct() -> ArraySource:
    rng = np.random.Generator(np.random.Philox(8))
    voxels = rng.integers(-1024, 2000, SHAPE).astype(np.float32)
    return ArraySource(voxels, Grid(SHAPE, AFFINE), HU)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, pet: ArraySource) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "pt"
    write_series(folder, pet)
    return folder


@pytest.fixture
def folder(tmp_path: Path, whole: Path) -> Path:
    shutil.copytree(whole, tmp_path / "pt")
    return tmp_path / "pt"


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.dcm"))


def change(file: Path, edit: Callable[[pydicom.Dataset], Any]) -> None:
    """Edit one saved slice in place."""
    ds = pydicom.dcmread(file)
    edit(ds)
    ds.save_as(file)


def put_raw(file: Path, keyword: str, text: str) -> None:
    """Put a value into a file that pydicom would not write: of the same tag, VR and place, with its own bytes."""
    ds = pydicom.dcmread(file)
    vr = ds[keyword].VR.encode()
    tag = struct.pack("<HH", ds[keyword].tag.group, ds[keyword].tag.element)
    data = file.read_bytes()
    start = data.index(tag + vr)
    length = struct.unpack("<H", data[start + 6 : start + 8])[0]
    value = text.encode() + b" " * (len(text) % 2)
    file.write_bytes(data[: start + 6] + struct.pack("<H", len(value)) + value + data[start + 8 + length :])


def refused(folder: Path, modality: Literal["PT", "CT"] = "PT") -> str:
    """Return the code that opening or reading ends in."""

    def use() -> None:
        source = open_series(folder, modality=modality)
        source.read(0, source.grid.shape[0])

    with pytest.raises(InputError) as error:
        use()
    assert "\n" not in str(error.value)
    return error.value.code


def test_values_grid_and_units(folder: Path, pet: ArraySource) -> None:
    source = open_series(folder, modality="PT")
    step = pet.voxels.max(axis=(1, 2), keepdims=True) / 32767
    assert source.units == SUV
    assert source.grid.matches(pet.grid, 1e-6)
    assert np.all(np.abs(source.read(0, 8) - pet.voxels) <= 0.51 * step)
    assert len({s.slope for s in source.slices}) == 8
    assert source.provenance["reference_rule"] == "series"
    json.dumps(source.provenance)


def test_ct_in_hu(tmp_path: Path, ct: ArraySource) -> None:
    write_series(tmp_path / "ct", ct)
    source = open_series(tmp_path / "ct", modality="CT")
    assert source.units == HU
    assert np.array_equal(source.read(0, 8), ct.voxels)


def test_slabs_are_pure_and_threads_agree(folder: Path) -> None:
    source = open_series(folder, modality="PT")
    whole = source.read(0, 8)
    assert whole.dtype == np.float32
    assert whole.flags.c_contiguous
    with ThreadPoolExecutor(4) as pool:
        slabs = list(pool.map(lambda z: source.read(z, z + 2), [6, 0, 4, 2] * 8))
    for z, slab in zip([6, 0, 4, 2] * 8, slabs, strict=True):
        assert np.array_equal(slab, whole[z : z + 2])


def test_oblique_grid(tmp_path: Path, pet: ArraySource) -> None:
    a, b = 0.3, 0.2
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ AFFINE[:3, :3], (1.0, 2.0, 3.0)
    write_series(tmp_path / "pt", ArraySource(pet.voxels, Grid(SHAPE, affine), SUV))
    assert open_series(tmp_path / "pt", modality="PT").grid.matches(Grid(SHAPE, affine), 1e-4)


def test_order_of_files_and_other_files_do_not_matter(folder: Path, ct: ArraySource, tmp_path: Path) -> None:
    before = open_series(folder, modality="PT").read(0, 8)
    for i, file in enumerate(reversed(files(folder))):
        file.rename(folder / f"x{i * 5 % 8}.dcm")
    (folder / "deep").mkdir()
    (folder / "x0.dcm").rename(folder / "deep" / "no_suffix")
    (folder / ".DS_Store").write_bytes(b"")
    (folder / "Thumbs.db").write_bytes(b"\0" * 10)
    (folder / "report.pdf").write_bytes(b"%PDF-1.4")
    (folder / "loop").symlink_to(folder)
    write_series(folder / "ct", ct)
    after = open_series(folder, modality="PT")
    assert np.array_equal(before, after.read(0, 8))
    assert after.provenance["files_skipped"] == 10


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_other_native_syntaxes(folder: Path, syntax: UID) -> None:
    before = open_series(folder, modality="PT").read(0, 8)
    for file in files(folder):
        ds = pydicom.dcmread(file)
        if syntax == ExplicitVRBigEndian:
            ds.PixelData = np.frombuffer(ds.PixelData, "<i2").astype(">i2").tobytes()
        ds.file_meta.TransferSyntaxUID = syntax
        implicit, little = syntax.is_implicit_VR, syntax.is_little_endian
        data = pydicom.Dataset({element.tag: element for element in ds})
        data.file_meta = ds.file_meta
        with file.open("wb") as stream:
            pydicom.dcmwrite(stream, data, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    assert np.array_equal(open_series(folder, modality="PT").read(0, 8), before)


def test_compressed_slices(folder: Path) -> None:
    before = open_series(folder, modality="PT").read(0, 8)
    for file in files(folder):
        change(file, lambda ds: ds.compress(RLELossless, generate_instance_uid=False))
    assert np.array_equal(open_series(folder, modality="PT").read(0, 8), before)


def test_bits_above_bits_stored_are_ignored(tmp_path: Path, ct: ArraySource) -> None:
    def twelve_bits(z: int, ds: pydicom.Dataset) -> None:
        stored = np.frombuffer(ds.PixelData, "<i2") & 0x0FFF | 0x5000  # garbage above bit 11
        ds.BitsStored, ds.HighBit = 12, 11
        ds.PixelData = stored.astype("<i2").tobytes()

    write_series(tmp_path / "ct", ct, edit=twelve_bits)
    assert np.array_equal(open_series(tmp_path / "ct", modality="CT").read(0, 8), ct.voxels)


def test_one_pad_byte_is_no_damage(tmp_path: Path) -> None:
    voxels = np.ones((3, 3, 3), np.float32)

    def eight_bits(z: int, ds: pydicom.Dataset) -> None:
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
        ds.PixelData = bytes(9) + b"\0"

    write_series(tmp_path / "ct", ArraySource(voxels, Grid((3, 3, 3), AFFINE), HU), edit=eight_bits)
    assert not open_series(tmp_path / "ct", modality="CT").read(0, 3).any()


# -- one file ---------------------------------------------------------------------------------------------------------


def test_no_such_path(tmp_path: Path) -> None:
    assert refused(tmp_path / "nothing") == "IMG_NO_FILE"


def test_no_dicom(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty") == "DCM_NONE"
    assert refused(folder, "CT") == "DCM_NONE"


CUT = {
    "empty": (b"", "DCM_EMPTY"),
    "random": (bytes(range(7, 200)), "DCM_NOT_DICOM"),
    "pdf": (b"%PDF-1.4", "DCM_NOT_DICOM"),
    "magic only": (bytes(128) + b"DICM", "DCM_TRUNCATED"),
}


@pytest.mark.parametrize("kind", CUT)
def test_a_file_named_dicom_that_is_not(folder: Path, kind: str) -> None:
    (folder / "y.dcm").write_bytes(CUT[kind][0])
    assert refused(folder) == CUT[kind][1]


def test_no_mutation_of_a_file_ends_in_a_traceback(folder: Path) -> None:
    rng = np.random.Generator(np.random.Philox(13))
    good = files(folder)[2].read_bytes()
    header = len(good) - 60
    for _ in range(300):
        data = bytearray(good)
        at, n = int(rng.integers(128, header)), int(rng.integers(1, 8))
        kind = rng.integers(3)
        data[at : at + (n if kind else 0)] = rng.bytes(n) if kind < 2 else b""  # insert, replace, cut
        files(folder)[2].write_bytes(data)
        with contextlib.suppress(InputError):
            open_series(folder, modality="PT")


def test_file_meta_of_another_class(folder: Path) -> None:
    change(files(folder)[7], lambda ds: setattr(ds, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.7"))
    assert refused(folder) == "DCM_BAD_UID"


def test_no_preamble(folder: Path) -> None:
    file = files(folder)[3]
    data = file.read_bytes()
    file.write_bytes(data[data.index(b"\x08\x00\x08\x00CS") :])
    assert refused(folder) == "DCM_NO_PREAMBLE"


@pytest.mark.parametrize("start", [b"MZ", b"\x7fELF", b"#!/bin/sh"])
def test_program_in_preamble(folder: Path, start: bytes) -> None:
    file = files(folder)[0]
    file.write_bytes(start.ljust(128, b"\0") + file.read_bytes()[128:])
    assert refused(folder) == "DCM_PREAMBLE_EXEC"


def test_truncated_anywhere(folder: Path) -> None:
    file = files(folder)[2]
    data = file.read_bytes()
    for length in (133, 150, 200, 400, 700, 1000, 1400, *range(len(data) - 80, len(data))):
        file.write_bytes(data[:length])
        assert refused(folder).startswith(("DCM_", "SER_", "PET_")), length
    assert refused(folder) == "DCM_PIXELS_SHORT"


def test_pixels_of_another_length(folder: Path) -> None:
    change(files(folder)[1], lambda ds: setattr(ds, "PixelData", ds.PixelData + bytes(4)))
    assert refused(folder) == "DCM_PIXELS_LONG"
    change(files(folder)[1], lambda ds: setattr(ds, "PixelData", ds.PixelData[:20]))
    assert refused(folder) == "DCM_PIXELS_SHORT"


@pytest.mark.parametrize(
    "values", [{"Rows": 65535, "Columns": 65535}, {"Rows": 0}, {"BitsAllocated": 12}, {"SamplesPerPixel": 3}]
)
def test_impossible_matrix(folder: Path, values: dict[str, Any]) -> None:
    for file in files(folder):
        change(file, lambda ds: ds.update(values))  # type: ignore[arg-type]
    assert refused(folder) == "DCM_GEOMETRY_INVALID"


def test_deflated_is_refused_before_it_is_inflated(folder: Path) -> None:
    file = files(folder)[0]
    ds = pydicom.dcmread(file)
    ds.PixelData = bytes(50_000_000)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(file)
    started = time.process_time()
    assert refused(folder) == "DCM_BOMB"
    assert time.process_time() - started < 0.5


def test_nesting_too_deep(folder: Path) -> None:
    file = files(folder)[0]
    deep = b"\x40\x00\x75\x02SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 5000
    data = file.read_bytes()
    at = data.index(b"\x54\x00\x01\x10CS")
    file.write_bytes(data[:at] + deep + data[at:])
    assert refused(folder) == "DCM_TOO_DEEP"


def test_codec_missing_is_found_at_scan(folder: Path) -> None:
    for file in files(folder):
        ds = pydicom.dcmread(file)
        ds.PixelData = encapsulate([b"\0" * 16])
        ds["PixelData"].VR = "OB"
        ds.file_meta.TransferSyntaxUID = pydicom.uid.UID("1.2.840.10008.1.2.4.100")  # MPEG-2
        ds.save_as(file)
    with pytest.raises(InputError, match="DCM_CODEC_MISSING"):
        find_series(folder, modality="PT")


def test_a_fragment_that_does_not_end_where_the_next_begins(folder: Path) -> None:
    """Bytes lost or added inside may still decode to an image."""
    file = files(folder)[3]
    change(file, lambda ds: ds.compress(RLELossless, generate_instance_uid=False))
    good = file.read_bytes()
    open_series(folder, modality="PT")
    for data in (good[:-20] + good[-18:], good[:-20] + bytes(2) + good[-20:], good[:-12], good[:-8]):
        file.write_bytes(data)
        assert refused(folder) == "DCM_ENCAPSULATION"


def test_bytes_behind_the_pixels(folder: Path) -> None:
    file = files(folder)[3]
    good = file.read_bytes()
    signature = struct.pack("<HH2sHL", 0xFFFA, 0xFFFA, b"SQ", 0, 0)
    for more in (signature, bytes(-len(good) % 512), b""):
        file.write_bytes(good + more)
        open_series(folder, modality="PT").read(0, 8)
    for more in (good[-40:], b"\x01\x02\x03", bytes(20) + b"\1", bytes(6), bytes(4096)):
        file.write_bytes(good + more)
        assert refused(folder) == "DCM_PIXELS_LONG"
    file.write_bytes(good.replace(b"\xe0\x7f\x10\x00OW", b"\xe0\x7f\x10\x00O_"))
    assert refused(folder) == "DCM_TRUNCATED"


def test_a_slice_is_not_passed_by_for_its_damaged_meta(folder: Path) -> None:
    """The last slice would be lost with only a note."""
    file = files(folder)[-1]
    good = file.read_bytes()
    file.write_bytes(good[: good.index(b"1.2.840.10008.5.1.4.1.1.128") + 20])  # cut off within its class
    assert refused(folder) == "DCM_TRUNCATED"
    file.write_bytes(good)
    change(file, lambda ds: setattr(ds.file_meta, "MediaStorageSOPClassUID", "1.2.840.10008.5.1.4.1.1.129"))
    assert refused(folder) == "DCM_BAD_UID"


def test_damaged_compressed_pixels_are_never_zero_filled(folder: Path) -> None:
    for file in files(folder):
        ds = pydicom.dcmread(file)
        ds.PixelData = encapsulate([b"no jpeg 2000 at all!"])
        ds["PixelData"].VR = "OB"
        ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
        ds.save_as(file)
    assert refused(folder) == "DCM_DECODE_FAILED"


@pytest.mark.parametrize("text", ["1,5", "abc", "NaN", "inf", "1_0"])
@pytest.mark.parametrize("keyword", ["RescaleSlope", "PatientWeight", "SliceThickness"])
def test_bad_numbers(folder: Path, keyword: str, text: str) -> None:
    for file in files(folder):
        put_raw(file, keyword, text)
    if keyword == "SliceThickness":  # not used, so not checked
        open_series(folder, modality="PT")
    else:
        assert refused(folder) == "DCM_BAD_NUMBER"


@pytest.mark.parametrize("text", ["", "0", "-1"])
def test_bad_slopes(folder: Path, text: str) -> None:
    put_raw(files(folder)[4], "RescaleSlope", text)
    assert refused(folder) == "PET_BAD_SLOPE"


def test_bad_intercept(folder: Path) -> None:
    put_raw(files(folder)[4], "RescaleIntercept", "5")
    assert refused(folder) == "PET_BAD_INTERCEPT"


def test_a_uid_that_is_a_path(folder: Path) -> None:
    put_raw(files(folder)[0], "SeriesInstanceUID", "../../../etc/passwd")
    assert refused(folder) == "DCM_BAD_UID"


def test_bad_time(folder: Path) -> None:
    for file in files(folder):
        put_raw(file, "SeriesTime", "25:61")
    assert refused(folder) == "DCM_BAD_TIME"


# -- one series -------------------------------------------------------------------------------------------------------


def series_with(tmp_path: Path, pet: ArraySource, edit: Callable[..., Any]) -> Path:
    write_series(tmp_path / "pt", pet, edit=edit)
    return tmp_path / "pt"


def shift(z: int, dz: float = 0.0, dx: float = 0.0) -> Callable[..., Any]:
    def edit(index: int, ds: pydicom.Dataset) -> None:
        if index == z:
            x, y, along = (float(v) for v in ds.ImagePositionPatient)
            ds.ImagePositionPatient = [x + dx, y, along + dz]

    return edit


def each(**values: Any) -> Callable[..., Any]:
    return lambda z, ds: ds.update(values)


def only(z: Any, **values: Any) -> Callable[..., Any]:
    return lambda index, ds: ds.update(values) if index == z else None


def drop(keyword: str) -> Callable[..., Any]:
    return lambda z, ds: ds.__delattr__(keyword)


def sheared(z: int, ds: pydicom.Dataset) -> None:
    x, y, along = (float(v) for v in ds.ImagePositionPatient)
    ds.ImagePositionPatient = [x, y + 0.5 * z, along]


def enhanced(uid: str) -> Callable[..., Any]:
    return each(SOPClassUID=uid)


BROKEN = {
    "mixed matrix": (only(3, Rows=5, PixelData=bytes(50)), "SER_MIXED_SHAPE"),
    "mixed spacing": (only(3, PixelSpacing=[4, 5]), "SER_MIXED_SHAPE"),
    "mixed orientation": (only(3, ImageOrientationPatient=[1, 0, 0, 0, 0, 1]), "SER_MIXED_ORIENTATION"),
    "no position": (drop("ImagePositionPatient"), "SER_NO_GEOMETRY"),
    "no orientation": (drop("ImageOrientationPatient"), "SER_NO_GEOMETRY"),
    "skewed orientation": (each(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "DCM_GEOMETRY_INVALID"),
    "spacing 0": (each(PixelSpacing=[0, 4]), "DCM_GEOMETRY_INVALID"),
    "tilt": (sheared, "SER_TILT"),
    "one slice off in plane": (shift(3, dx=2.0), "SER_NONUNIFORM"),
    "one gap off": (shift(7, dz=0.3), "SER_NONUNIFORM"),
    "two patients": (only(3, PatientID="CANARYID2"), "SER_INCONSISTENT_HEADER"),
    "two doses": (
        lambda z, ds: drug(RadionuclideTotalDose="370000001")(z, ds) if z == 3 else None,
        "SER_INCONSISTENT_HEADER",
    ),
    "two units": (only(3, Units="CNTS"), "SER_INCONSISTENT_HEADER"),
    "every slice its own series": (
        lambda z, ds: ds.update({"SeriesInstanceUID": generate_uid()}),
        "SER_INCONSISTENT_UID",
    ),
    "enhanced": (enhanced("1.2.840.10008.5.1.4.1.1.130"), "PET_ENHANCED_UNSUPPORTED"),
    "legacy enhanced": (enhanced("1.2.840.10008.5.1.4.1.1.128.1"), "PET_ENHANCED_UNSUPPORTED"),
    "secondary capture": (each(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "DCM_NONE"),
    "multi-frame": (each(NumberOfFrames=2), "DCM_MULTIFRAME"),
    "not attenuation corrected": (each(CorrectedImage=["DECY"]), "PET_NOT_CORRECTED"),
    "proportional counts": (each(Units="PROPCNTS"), "PET_UNITS"),
    "no weight": (drop("PatientWeight"), "PET_WEIGHT"),
    "no drug": (drop("RadiopharmaceuticalInformationSequence"), "PET_NUCLIDE"),
}


def test_an_enhanced_ct_that_says_nothing_of_its_frames(tmp_path: Path, ct: ArraySource) -> None:
    write_series(tmp_path / "ct", ct, edit=enhanced("1.2.840.10008.5.1.4.1.1.2.1"))
    assert refused(tmp_path / "ct", "CT") == "CT_ENHANCED_UNSUPPORTED"


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_series(tmp_path: Path, pet: ArraySource, kind: str) -> None:
    edit, code = BROKEN[kind]
    assert refused(series_with(tmp_path, pet, edit)) == code


def test_two_drugs(tmp_path: Path, pet: ArraySource) -> None:
    def twice(z: int, ds: pydicom.Dataset) -> None:
        drug = ds.RadiopharmaceuticalInformationSequence[0]
        ds.RadiopharmaceuticalInformationSequence = Sequence([drug, Dataset(drug)])

    assert refused(series_with(tmp_path, pet, twice)) == "PET_DOSE"


def test_lutetium_spect_stored_as_pet(tmp_path: Path, pet: ArraySource) -> None:
    def lutetium(z: int, ds: pydicom.Dataset) -> None:
        drug = ds.RadiopharmaceuticalInformationSequence[0]
        drug.RadionuclideHalfLife = "574300"
        del drug.RadionuclideCodeSequence

    assert refused(series_with(tmp_path, pet, lutetium)) == "PET_NUCLIDE"


@pytest.mark.parametrize("mm", ["0.004", "5000", "1e9"])
def test_pixels_that_no_scanner_has(tmp_path: Path, pet: ArraySource, mm: str) -> None:
    assert refused(series_with(tmp_path, pet, each(PixelSpacing=[mm, mm]))) == "DCM_GEOMETRY_INVALID"


def test_missing_end_slice_is_noted(tmp_path: Path, pet: ArraySource) -> None:
    folder = series_with(tmp_path, pet, each(NumberOfSlices=8))
    assert open_series(folder, modality="PT").provenance["notes"] == []
    files(folder)[7].unlink()
    assert "fewer_slices_than_header_says" in open_series(folder, modality="PT").provenance["notes"]


LOST: dict[str, Callable[[Path], Any]] = {
    "empty": lambda place: place.write_bytes(b""),
    "zeros": lambda place: place.write_bytes(bytes(4000)),
    "cut within its preamble": lambda place: place.write_bytes(bytes(100)),
    "link to no file": lambda place: place.symlink_to("../annex/objects/SHA256E-s4000"),
}


@pytest.mark.parametrize("kind", LOST)
@pytest.mark.parametrize("count", [1, 3])
def test_lost_end_slices_are_told_by_what_lies_there_instead(
    tmp_path: Path, pet: ArraySource, kind: str, count: int
) -> None:
    folder = series_with(tmp_path, pet, each(NumberOfSlices=8))
    for number, file in enumerate(files(folder)):
        file.rename(folder / f"IM{number:04d}")
    for number in range(8 - count, 8):
        (folder / f"IM{number:04d}").unlink()
        LOST[kind](folder / f"IM{number:04d}")
    assert refused(folder) == "SER_MISSING_SLICE"


def test_a_copy_that_was_interrupted_leaves_a_hidden_slice(tmp_path: Path, pet: ArraySource) -> None:
    folder = series_with(tmp_path, pet, each(NumberOfSlices=8))
    files(folder)[7].rename(folder / ".00008.dcm.Xy12Zq")
    assert refused(folder) == "SER_MISSING_SLICE"


def test_beside_a_whole_series_they_are_noted(folder: Path) -> None:
    (folder / "IM9").write_bytes(b"")
    (folder / "IM8").symlink_to("nowhere")
    notes = open_series(folder, modality="PT").provenance["notes"]
    assert sorted(notes) == ["broken_links_passed_by", "empty_files_passed_by"]  # type: ignore[call-overload]


def test_a_folder_that_may_not_be_read_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "deep").mkdir()
    listed = os.scandir

    def scandir(place: Any) -> Any:
        if Path(place).name == "deep":
            raise PermissionError(13, "Permission denied", str(place))
        return listed(place)

    monkeypatch.setattr("os.scandir", scandir)
    assert refused(folder) == "IMG_UNREADABLE"


def test_links_are_followed_and_every_file_is_read_once(folder: Path, tmp_path: Path, pet: ArraySource) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in files(folder):
        (linked / file.name).symlink_to(file)
    (linked / "again").symlink_to(folder)
    (linked / "loop").symlink_to(linked)
    source = open_series(linked, modality="PT")
    assert source.provenance["notes"] == []
    assert np.array_equal(source.read(0, 8), open_series(folder, modality="PT").read(0, 8))


def test_only_links_to_nothing_ask_for_their_files(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"IM{number}").symlink_to("../.git/annex/objects/none")
    with pytest.raises(InputError, match=r"DCM_NONE.*3 links to no file.*git annex get"):
        open_series(tmp_path, modality="PT")


@pytest.mark.parametrize("kind", ["LOCALIZER", "MIP", "SCREEN", "PROT"])
def test_a_picture_inside_a_series_is_passed_by(folder: Path, pet: ArraySource, kind: str) -> None:
    before = open_series(folder, modality="PT").read(0, 8)
    ds = pydicom.dcmread(files(folder)[0])
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.ImageType = ["ORIGINAL", "PRIMARY", kind]
    ds.ImageOrientationPatient = ["1", "0", "0", "0", "0", "-1"]
    ds.save_as(folder / "900.dcm")
    del ds.ImagePositionPatient  # a page, with no place in the patient
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.save_as(folder / "901.dcm")
    source = open_series(folder, modality="PT")
    assert np.array_equal(source.read(0, 8), before)
    assert "pictures_in_series_passed_by" in source.provenance["notes"]


def test_a_damaged_series_beside_a_whole_one_is_passed_by(folder: Path, pet: ArraySource) -> None:
    write_series(folder / "other", pet, series_number=2, edit=drop("ImagePositionPatient"))
    source = open_series(folder, modality="PT")
    assert source.grid.shape == SHAPE
    assert "damaged_series_passed_by" in source.provenance["notes"]


def test_unsigned_storage_of_signed_values(tmp_path: Path, pet: ArraySource) -> None:
    def shifted(z: int, ds: pydicom.Dataset) -> None:
        stored = np.frombuffer(ds.PixelData, "<i2").astype(np.int32) + 32768
        ds.PixelData = stored.astype("<u2").tobytes()
        ds.PixelRepresentation = 0
        ds.RescaleIntercept = f"{-32768 * float(ds.RescaleSlope):.10g}"

    write_series(tmp_path / "plain", pet)
    plain = open_series(tmp_path / "plain", modality="PT")
    source = open_series(series_with(tmp_path, pet, shifted), modality="PT")
    step = pet.voxels.max(axis=(1, 2), keepdims=True) / 32767
    assert np.all(np.abs(source.read(0, 8) - plain.read(0, 8)) <= 0.02 * step)
    assert source.provenance["notes"] == ["intercept_applied"]


@pytest.mark.parametrize("text", ["120000.1234567", "12:00:00", "120000.123456789"])
def test_times_as_programs_write_them(tmp_path: Path, pet: ArraySource, text: str) -> None:
    expected = open_series(series_with(tmp_path / "a", pet, each(SeriesTime="120000")), modality="PT")
    folder = series_with(tmp_path / "b", pet, each(SeriesTime="120000"))
    for file in files(folder):
        put_raw(file, "SeriesTime", text)
    source = open_series(folder, modality="PT")
    assert source.factors == pytest.approx(expected.factors, rel=1e-4)


@pytest.mark.parametrize("z", [0, 7])
def test_an_end_slice_under_another_series_uid_is_not_lost(tmp_path: Path, pet: ArraySource, z: int) -> None:
    def stray(number: int, ds: pydicom.Dataset) -> None:
        ds.NumberOfSlices = 8
        if number == z:
            ds.SeriesInstanceUID = "1.2.3.4"

    assert refused(series_with(tmp_path, pet, stray)) == "SER_INCONSISTENT_UID"


def test_missing_slice(folder: Path) -> None:
    files(folder)[4].unlink()
    assert refused(folder) == "SER_MISSING_SLICE"


def test_single_slice(folder: Path) -> None:
    for file in files(folder)[1:]:
        file.unlink()
    assert refused(folder) == "IMG_TOO_SMALL"


def test_small_irregularity_is_noted(tmp_path: Path, pet: ArraySource) -> None:
    source = open_series(series_with(tmp_path, pet, shift(3, dz=0.05)), modality="PT")
    assert "slice_spacing_irregular" in source.provenance["notes"]
    assert source.grid.matches(pet.grid, 0.01)


def test_two_series_are_listed_without_uids(folder: Path, pet: ArraySource) -> None:
    write_series(folder / "other", pet, series_number=2)
    with pytest.raises(InputError) as error:
        open_series(folder, modality="PT")
    assert error.value.code == "SER_AMBIGUOUS"
    line = "PT of 8 slices of 6 x 5, 5.00 x 4.00 mm"
    assert error.value.found == f"series 1: {line}; series 2: {line}"
    assert [len(s.slices) for s in find_series(folder, modality="PT")] == [8, 8]


def test_localizer_is_no_second_series(tmp_path: Path, ct: ArraySource) -> None:
    write_series(tmp_path / "ct", ct)
    localizer = ArraySource(ct.voxels[:1], Grid((1, *SHAPE[1:]), AFFINE), HU)
    write_series(
        tmp_path / "ct" / "scout",
        localizer,
        series_number=2,
        edit=each(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    )
    assert open_series(tmp_path / "ct", modality="CT").grid.shape == SHAPE


@pytest.fixture
def study(tmp_path: Path, pet: ArraySource, ct: ArraySource) -> Path:
    """One folder as an archive exports it: every series of a PET/CT examination, and the CT of another one."""
    folder, series = tmp_path / "study", itertools.count(1)

    def add(name: str, source: ArraySource, **values: Any) -> None:
        write_series(folder / name, source, series_number=next(series), edit=each(**values))

    add("ac", pet)
    half = ArraySource(pet.voxels / 2, pet.grid, SUV)  # type: ignore[arg-type]
    add("nac", half, CorrectedImage=["DECY"])
    add("fused", half, ImageType=["DERIVED", "SECONDARY", "FUSION"])
    add("mip", half, ImageType=["DERIVED", "PRIMARY", "MIP"])
    add("result", half, ImageType=["DERIVED", "SECONDARY"])
    add("ct", ct)
    add("ct_other", ArraySource(ct.voxels - 10, ct.grid, HU), FrameOfReferenceUID=generate_uid())
    add("coronal", ct, ImageType=["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"])
    add("scout", ArraySource(ct.voxels[:1], Grid((1, *SHAPE[1:]), AFFINE), HU), ImageType=["ORIGINAL", "LOCALIZER"])
    add("bolus", ArraySource(ct.voxels[:1], Grid((1, *SHAPE[1:]), AFFINE), HU))
    return folder


def test_the_series_that_is_meant_is_taken_from_a_study(study: Path, pet: ArraySource, ct: ArraySource) -> None:
    source = open_series(study, modality="PT")
    assert np.array_equal(source.read(0, 8), open_series(study / "ac", modality="PT").read(0, 8))
    assert source.provenance["files_skipped"] == 4 * 8 + 3 * 8 + 2
    assert np.array_equal(open_series(study, modality="CT", of=source).read(0, 8), ct.voxels)


def test_two_ct_that_may_be_meant_are_listed(study: Path) -> None:
    with pytest.raises(InputError, match=r"series 6: CT of .* mm; series 7: CT of .* mm; choose one") as error:
        open_series(study, modality="CT")
    assert error.value.code == "SER_AMBIGUOUS"
    shutil.rmtree(study / "ct_other")
    assert open_series(study, modality="CT").grid.shape == SHAPE


def test_a_ct_of_another_examination_is_left_to_the_pair_check(study: Path, pet: ArraySource) -> None:
    shutil.rmtree(study / "ct")  # its coronal reformats and one slice of it remain
    other = open_series(study, modality="CT", of=(source := open_series(study, modality="PT")))
    with pytest.raises(InputError, match="PAIR_FRAME_MISMATCH"):
        check_pair(source, other)


@pytest.mark.parametrize("name", ["fused", "mip", "result", "coronal"])
def test_what_would_be_passed_by_is_read_when_it_is_alone(study: Path, name: str) -> None:
    assert open_series(study / name, modality="CT" if name == "coronal" else "PT").grid.shape == SHAPE


def test_copies_are_dropped_and_different_duplicates_refused(folder: Path) -> None:
    before = open_series(folder, modality="PT").read(0, 8)
    shutil.copy(files(folder)[2], folder / "copy.dcm")
    source = open_series(folder, modality="PT")
    assert np.array_equal(source.read(0, 8), before)
    assert "identical_slices_dropped" in source.provenance["notes"]
    change(folder / "copy.dcm", lambda ds: setattr(ds, "PixelData", ds.PixelData[::-1]))
    assert refused(folder) == "SER_DUPLICATE_SLICE"


def test_dynamic_series(folder: Path) -> None:
    for file in files(folder):
        again = file.with_name(f"frame2_{file.name}")
        shutil.copy(file, again)
        change(again, lambda ds: setattr(ds, "PixelData", ds.PixelData[::-1]))
    assert refused(folder) == "SER_DYNAMIC"
    (folder / "frame2_00003.dcm").unlink()
    assert refused(folder) == "SER_PARTIAL_VOLUME"


# -- PET headers ------------------------------------------------------------------------------------------------------


def ratio(tmp_path: Path, pet: ArraySource, edit: Callable[..., Any], **options: Any) -> tuple[Any, float]:
    """SUV read after an edit of the header over SUV before it."""
    source = open_series(series_with(tmp_path, pet, edit), modality="PT", **options)
    return source, float(source.read(0, 8).sum() / pet.voxels.sum())


def drug(**values: Any) -> Callable[..., Any]:
    return lambda z, ds: ds.RadiopharmaceuticalInformationSequence[0].update(values)


def test_dose_in_mbq_is_recorded(tmp_path: Path, pet: ArraySource) -> None:
    source, r = ratio(tmp_path, pet, drug(RadionuclideTotalDose="370"))
    assert r == pytest.approx(1.0, rel=1e-4)
    assert "dose_read_as_MBq" in source.provenance["notes"]


def test_half_the_dose_is_twice_the_suv(tmp_path: Path, pet: ArraySource) -> None:
    assert ratio(tmp_path, pet, drug(RadionuclideTotalDose="185000000"))[1] == pytest.approx(2.0, rel=1e-4)


def test_overrides(tmp_path: Path, pet: ArraySource) -> None:
    overrides = Overrides(weight_kg=140.0, dose_mbq=370.0, injection_time="11:00")
    source, r = ratio(tmp_path, pet, drop("PatientWeight"), overrides=overrides)
    assert r == pytest.approx(2.0, rel=1e-4)
    assert source.provenance["overridden"] == ["weight_kg", "dose_mbq", "injection_time"]


def test_ge_private_time_counts_only_with_its_creator(tmp_path: Path, pet: ArraySource) -> None:
    def ge(creator: str) -> Callable[..., Any]:
        def edit(z: int, ds: pydicom.Dataset) -> None:
            ds.private_block(0x0009, creator, create=True).add_new(0x0D, "DT", "20200101113000")

        return edit

    known, r = ratio(tmp_path / "ge", pet, ge("GEMS_PETD_01"))
    assert known.provenance["reference_rule"] == "private"
    assert r == pytest.approx(0.5 ** (1800 / 6586.2), rel=1e-4)
    other, r = ratio(tmp_path / "other", pet, ge("SOMEONE ELSE"))
    assert other.provenance["reference_rule"] == "series"
    assert r == pytest.approx(1.0, rel=1e-4)


def test_philips_counts(tmp_path: Path, pet: ArraySource) -> None:
    def counts(z: int, ds: pydicom.Dataset) -> None:
        ds.Units = "CNTS"
        block = ds.private_block(0x7053, "Philips PET Private Group", create=True)
        block.add_new(0x00, "DS", "0.25")
        block.add_new(0x09, "DS", "3.5")

    source = open_series(series_with(tmp_path, pet, counts), modality="PT")
    assert source.factors == (0.25,) * 8


def test_injection_time_with_zone(tmp_path: Path, pet: ArraySource) -> None:
    def zoned(z: int, ds: pydicom.Dataset) -> None:
        ds.TimezoneOffsetFromUTC = "+0100"
        ds.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartDateTime = "20200101100000+0000"

    assert ratio(tmp_path, pet, zoned)[1] == pytest.approx(1.0, rel=1e-4)


def test_nothing_identifying_leaves_the_source(tmp_path: Path, pet: ArraySource) -> None:
    canaries = {
        "PatientName": "CANARY^NAME",
        "PatientID": "CANARYID",
        "PatientBirthDate": "19010203",
        "AccessionNumber": "CANARYACC",
        "InstitutionName": "CANARY HOSPITAL",
        "StudyDescription": "CANARY STUDY",
        "SeriesDescription": "CANARY SERIES",
        "OperatorsName": "CANARY^OPERATOR",
        "SeriesInstanceUID": "1.2.77777777.1",
        "StudyInstanceUID": "1.2.77777777.2",
        "FrameOfReferenceUID": "1.2.77777777.3",
    }
    folder = series_with(tmp_path, pet, lambda z, ds: ds.update(canaries))
    source = open_series(folder, modality="PT")
    assert source.patient_id == "CANARYID"
    told = [repr(source), json.dumps(source.provenance), repr(find_series(folder, modality="PT"))]
    for edit in (only(3, PatientID="CANARY2"), only(3, Units="GML"), drop("PatientWeight"), sheared):
        broken = tmp_path / f"broken{len(told)}"

        def marked(z: int, ds: pydicom.Dataset, edit: Callable[..., Any] = edit) -> None:
            ds.update(canaries)  # type: ignore[arg-type]
            edit(z, ds)

        write_series(broken, pet, edit=marked)
        with pytest.raises(InputError) as error:
            open_series(broken, modality="PT")
        told.append(f"{error.value} {error.value!r}")
    for text in told:
        for secret in ("CANARY", "77777777", "19010203", "20200101", "120000"):
            assert secret not in text


@pytest.mark.parametrize(
    ("edit", "overrides", "option"),
    [
        (each(Units="GML", SUVType="BW"), Overrides(weight_kg=140.0), "--weight-kg"),
        (each(Units="GML", SUVType="BW"), Overrides(dose_mbq=370.0), "--dose-mbq"),
        (each(DecayCorrection="ADMIN"), Overrides(injection_time="11:00"), "--injection-time"),
    ],
)
def test_an_override_that_the_values_do_not_depend_on_is_refused(
    tmp_path: Path, pet: ArraySource, edit: Callable[..., Any], overrides: Overrides, option: str
) -> None:
    with pytest.raises(InputError, match=f"CFG_NO_EFFECT {option}"):
        open_series(series_with(tmp_path, pet, edit), modality="PT", overrides=overrides)
