"""Bad and odd input by kinds: what each member is, how it is made, and what ``petscale ingest`` must say of it.

Everything is made here, from one small body; values that are read are compared with what went in.
"""

import contextlib
import io
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from encoded_frames import JPEG, encode
from highdicom.legacy import LegacyConvertedEnhancedPETImage
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, RLELossless, generate_uid

from petscale.cli import main
from storage.dicom_write import write_series
from storage.reader import open_cohort
from storage.source import SUV, ArraySource, Grid

SHAPE, SPACING_MM = (14, 34, 36), (6.0, 8.0, 7.0)  # (z, y, x)
AFFINE = np.array([[-7.0, 0, 0, 90], [0, -8.0, 0, 95], [0, 0, 6.0, -40], [0, 0, 0, 1]])
GRID = Grid(SHAPE, AFFINE)
T = 6586.2  # half-life of F-18 in s
WEIGHT_KG, DOSE_BQ, UPTAKE_S = 70.0, 370e6, 3600.0  # as ``write_series`` writes them
BQML = DOSE_BQ * 2 ** (-UPTAKE_S / T) / (WEIGHT_KG * 1000)  # Bq/mL of SUV 1

Edit = Callable[[int, Dataset], Any]
Make = Callable[[Path], list[str]]


def body(seed: int = 0) -> NDArray[np.float32]:
    """(z, y, x) in SUV: a body of about 1 with a liver of 2.5, air of 0."""
    z, y, x = np.indices(SHAPE)
    inside = ((y - 16.5) / 14) ** 2 + ((x - 17.5) / 15) ** 2 < 1
    liver = ((z - 6) / 4) ** 2 + ((y - 16) / 6) ** 2 + ((x - 12) / 5) ** 2 < 1
    rng = np.random.Generator(np.random.Philox(seed))
    values = np.where(liver, 2.5, np.where(inside, 1.0, 0.0)) * (1 + 0.05 * rng.standard_normal(SHAPE))
    return np.asarray(values, np.float32)


def hu() -> NDArray[np.float32]:
    """(z, y, x) in HU: soft tissue with fat around it, air outside."""
    suv = body()
    return np.where(suv > 2, 60.0, np.where(suv > 0.5, 20.0, -1000.0)).astype(np.float32) - np.where(
        (suv > 0.5) & (np.indices(SHAPE)[2] % 5 == 0), 120, 0
    ).astype(np.float32)


@dataclass(frozen=True)
class Refused:
    """The input must be refused with this code."""

    code: str


@dataclass(frozen=True)
class Read:
    """The input must be read, its SUV ``times`` that of ``body``, with these notes at least; none at all if empty."""

    notes: tuple[str, ...] = ()
    times: float = 1.0
    said: str = ""
    spacing_mm: tuple[float, float, float] = SPACING_MM


@dataclass(frozen=True)
class Member:
    """One input of a kind."""

    kind: str
    name: str
    make: Make
    right: Refused | Read


@dataclass(frozen=True)
class Outcome:
    """What became of one.

    Args:
        code: that it was refused with, empty if it was read.
        notes: of its images.
        off: largest difference of the stored SUV from what is right, as part of the largest SUV.
        told: what was printed.
    """

    code: str
    notes: tuple[str, ...]
    off: float
    told: str


def run(member: Member, folder: Path) -> Outcome:
    """Make the input below ``folder`` and ingest it by the command line."""
    words = member.make(folder)
    cohort = folder / "cohort"
    out = io.StringIO()
    code: str | int | None = 0
    with contextlib.redirect_stderr(out), contextlib.redirect_stdout(out):
        try:
            main(["ingest", words[0], str(cohort), *words[1:]])
        except SystemExit as end:
            code = end.code
    told = out.getvalue()
    assert "Traceback" not in told, told
    if code:
        lines = [line for line in told.splitlines() if line.startswith("petscale: ")]
        assert code == 2, told
        assert len(lines) == 1, told
        return Outcome(lines[0].split()[1], (), math.nan, told)
    case = open_cohort(cohort).case(open_cohort(cohort).cases[0])
    notes: dict[str, None] = {}
    for image in case.images:
        found = case.image(image).provenance.get("notes")
        notes |= dict.fromkeys(str(one) for one in found) if isinstance(found, list) else {}
    stored = case.image("full") if "full" in case.images else case.image(case.images[0])
    off = math.nan
    if stored.grid.shape == SHAPE and isinstance(member.right, Read):
        expected = body() * np.float32(member.right.times)
        off = float(np.abs(stored.read(0, SHAPE[0]) - expected).max() / expected.max())
        assert np.allclose(stored.grid.spacing_mm, member.right.spacing_mm, rtol=1e-4), stored.grid.spacing_mm
    return Outcome("", tuple(notes), off, told)


# -- files ------------------------------------------------------------------------------------------------------------


def each(**values: Any) -> Edit:
    """Set fields of every slice."""

    def edit(z: int, ds: Dataset) -> None:
        for keyword, value in values.items():
            setattr(ds, keyword, value)

    return edit


def drug(**values: Any) -> Edit:
    """Set fields of the radiopharmaceutical."""
    return lambda z, ds: each(**values)(z, ds.RadiopharmaceuticalInformationSequence[0])


def some(first: int, stop: int, **values: Any) -> Edit:
    """Set fields of some slices."""
    return lambda z, ds: each(**values)(z, ds) if first <= z < stop else None


def broken_link(file: Path) -> None:
    """Put a link to no file in a file's place."""
    file.unlink()
    file.symlink_to("../annex/none")


def both(*edits: Edit) -> Edit:
    """Several edits."""
    return lambda z, ds: [edit(z, ds) for edit in edits]


def pet(folder: Path, edit: Edit | None = None, **options: Any) -> Path:
    """A PET series that says NumberOfSlices, as scanners do."""
    told = each(NumberOfSlices=SHAPE[0])
    write_series(folder, ArraySource(body(), GRID, SUV), edit=both(told, edit) if edit else told, **options)
    return folder


def series(edit: Edit | None = None, *words: str, **options: Any) -> Make:
    """A PET series with an edit, and options of the command."""
    return lambda folder: [str(pet(folder / "pet", edit, **options)), *words]


def beside(spoil: Callable[[Path], Any], *words: str, edit: Edit | None = None) -> Make:
    """A good PET series and what is done to its folder."""

    def make(folder: Path) -> list[str]:
        place = pet(folder / "pet", edit)
        spoil(place)
        return [str(place), *words]

    return make


def every_second(folder: Path) -> None:
    """Take every second slice away."""
    for file in sorted(folder.glob("*.dcm"))[1::2]:
        file.unlink()


def ends(replace: Callable[[Path], Any], count: int = 2) -> Make:
    """A series of files without a suffix, the last of which are replaced."""

    def spoil(folder: Path) -> None:
        for number, file in enumerate(sorted(folder.glob("*.dcm"))):
            file.rename(folder / f"IM{number:04d}")
        for number in range(SHAPE[0] - count, SHAPE[0]):
            replace(folder / f"IM{number:04d}")

    return beside(spoil)


def again(folder: Path, name: str, **values: Any) -> Path:
    """Another object made of the first slice."""
    ds = pydicom.dcmread(sorted(folder.glob("*.dcm"))[0])
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for keyword, value in values.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.save_as(folder / name)
    return folder / name


def nifti(
    *words: str,
    values: Callable[[], NDArray[Any]] = body,
    affine: NDArray[np.float64] = AFFINE,
    edit: Callable[[Any], Any] | None = None,
    sidecar: dict[str, Any] | None = None,
    name: str = "scan.nii.gz",
) -> Make:
    """A NIfTI PET, an edit of the nibabel image before it is saved, and a JSON file beside it."""

    def make(folder: Path) -> list[str]:
        folder.mkdir(parents=True, exist_ok=True)
        image = nibabel.Nifti1Image(values().T, affine)
        image.header.set_xyzt_units("mm")
        if edit:
            edit(image)
        nibabel.save(image, folder / name)
        if sidecar is not None:
            (folder / f"{name.removesuffix('.nii.gz')}.json").write_text(json.dumps(sidecar))
        return [str(folder / name), *words]

    return make


def placed(factor: float, unit: str | int) -> Callable[[Any], None]:
    """Write the affine in another unit, and say so."""

    def edit(image: Any) -> None:
        affine = AFFINE.copy()
        affine[:3] *= factor
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
        image.header.set_xyzt_units(unit)

    return edit


def sform_only(change: Callable[[NDArray[np.float64]], Any]) -> Make:
    """A NIfTI whose sform alone places it, and contradicts the voxel sizes or itself."""

    def make(folder: Path) -> list[str]:
        words = nifti("--units", "SUVbw", name="scan.nii")(folder)
        affine = AFFINE.copy()
        change(affine)
        data = bytearray((folder / "scan.nii").read_bytes())
        data[252:256] = np.array([0, 1], "<i2").tobytes()  # qform_code, sform_code
        data[280:328] = affine[:3].astype("<f4").tobytes()  # srow_x, srow_y, srow_z
        (folder / "scan.nii").write_bytes(data)
        return words

    return make


def put(file: Path, keyword: str, text: str) -> None:
    """Put a value into a file that pydicom would not write."""
    ds = pydicom.dcmread(file)
    vr = ds[keyword].VR.encode()
    tag = ds[keyword].tag
    key = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little") + vr
    data = file.read_bytes()
    at = data.index(key)
    length = int.from_bytes(data[at + 6 : at + 8], "little")
    value = text.encode() + b" " * (len(text) % 2)
    file.write_bytes(data[: at + 6] + len(value).to_bytes(2, "little") + value + data[at + 8 + length :])


def raw(keyword: str, text: str) -> Callable[[Path], None]:
    """Put a raw value into every slice."""

    def spoil(folder: Path) -> None:
        for file in folder.glob("*.dcm"):
            put(file, keyword, text)

    return spoil


def compressed(*words: str, spoil: Callable[[bytes], bytes] | None = None) -> Make:
    """A series in RLE; ``spoil`` changes the bytes of one file."""

    def make(folder: Path) -> list[str]:
        place = pet(folder / "pet")
        for file in sorted(place.glob("*.dcm")):
            ds = pydicom.dcmread(file)
            ds.compress(RLELossless, generate_instance_uid=False)
            ds.save_as(file)
        if spoil:
            file.write_bytes(spoil(file.read_bytes()))
        return [str(place), *words]

    return make


def packed(syntax: str, spoil: Callable[[bytes], bytes] = bytes, count: int = 1) -> Make:
    """A series in a compressed syntax; ``spoil`` changes the frame of the last ``count`` slices."""

    def make(folder: Path) -> list[str]:
        place = pet(folder / "pet")
        for number, file in enumerate(sorted(place.glob("*.dcm"))):
            ds = pydicom.dcmread(file)
            data = encode(ds.pixel_array, syntax, ds.BitsStored)
            data = spoil(data) if number >= SHAPE[0] - count else data
            ds.PixelData = encapsulate([data + b"\0" * (len(data) % 2)])
            ds["PixelData"].VR = "OB"
            ds.file_meta.TransferSyntaxUID = UID(syntax)
            ds.save_as(file)
        return [str(place)]

    return make


def cut(share: float, end: bytes = b"") -> Callable[[bytes], bytes]:
    """Cut a frame, and put an end marker back."""
    return lambda data: data[: int(len(data) * share)] + end


def lying(data: bytes) -> bytes:
    """Let the JPEG's own header say 65535 x 65535."""
    at = data.index((SHAPE[1]).to_bytes(2, "big") + (SHAPE[2]).to_bytes(2, "big"))
    return data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :]


def frames_of_a_series(*words: str, kind: str = "DYNAMIC") -> Make:
    """Three frames of 100 s, or three gates: of half, of all and of twice the activity."""

    def make(folder: Path) -> list[str]:
        for number, times in enumerate((0.5, 1.0, 2.0)):

            def edit(z: int, ds: Dataset, number: int = number, times: float = times) -> None:
                ds.SOPInstanceUID = generate_uid(entropy_srcs=[str(number), str(z)])
                ds.SeriesType, ds.NumberOfSlices = [kind, "IMAGE"], SHAPE[0]
                ds.RescaleSlope = f"{float(ds.RescaleSlope) * times:.10g}"
                ds.ActualFrameDuration = 100000
                if kind == "GATED":
                    ds.TriggerTime = str(300 * number)
                else:
                    ds.AcquisitionTime = f"12{100 * number // 60:02d}{100 * number % 60:02d}"
                    ds.FrameReferenceTime = str(100000 * number + 50000)

            write_series(folder / "pet" / str(number), ArraySource(body(), GRID, SUV), edit=edit)
        return [str(folder / "pet"), *words]

    return make


def volumes(*words: str, times: dict[str, Any] | None = None) -> Make:
    """A NIfTI file of three volumes: of half, of all and of twice the activity."""

    def make(folder: Path) -> list[str]:
        folder.mkdir(parents=True, exist_ok=True)
        voxels = np.stack([body().T * f for f in (0.5, 1.0, 2.0)], -1).astype(np.float32)
        image = nibabel.Nifti1Image(voxels, AFFINE)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, folder / "scan.nii.gz")
        if times:
            (folder / "scan.json").write_text(json.dumps(times))
        return [str(folder / "scan.nii.gz"), "--units", "SUVbw", *words]

    return make


def legacy(beside_classic: bool) -> Make:
    """A legacy-converted enhanced object, alone or beside the series that it was made of."""

    def make(folder: Path) -> list[str]:
        place = pet(folder / "pet")
        slices = [pydicom.dcmread(file) for file in sorted(place.glob("*.dcm"))]
        target = place if beside_classic else folder / "object"
        target.mkdir(exist_ok=True)
        LegacyConvertedEnhancedPETImage(slices, generate_uid(), 9, generate_uid(), 1).save_as(target / "900.dcm")
        return [str(target)]

    return make


def counted(values: Callable[[], NDArray[Any]], slope: float) -> Make:
    """A NIfTI of integers with a scale."""

    def make(folder: Path) -> list[str]:
        folder.mkdir(parents=True, exist_ok=True)
        image = nibabel.Nifti1Image(values().T, AFFINE)
        image.header.set_xyzt_units("mm")
        image.header.set_slope_inter(slope, 0)
        nibabel.save(image, folder / "scan.nii")
        data = bytearray((folder / "scan.nii").read_bytes())
        data[112:116] = np.float32(slope).tobytes()  # scl_slope: nibabel keeps its own
        (folder / "scan.nii").write_bytes(data)
        return [str(folder / "scan.nii"), "--units", "SUVbw"]

    return make


def clipped() -> NDArray[np.int16]:
    """Values that rise to the limit of their type and are cut off there."""
    return np.clip(body() * 14000, -32768, 32767).astype(np.int16)


def shifted(z: int, ds: Dataset) -> None:
    """Store signed values as unsigned ones, as archives do."""
    stored = np.frombuffer(ds.PixelData, "<i2").astype(np.int32) + 32768
    ds.PixelData, ds.PixelRepresentation = stored.astype("<u2").tobytes(), 0
    ds.RescaleIntercept = f"{-32768 * float(ds.RescaleSlope):.10g}"


def philips(suv: str = "", bqml: str = "", creator: str = "Philips PET Private Group", maker: str = "") -> Edit:
    """Counts with Philips' private factors."""

    def edit(z: int, ds: Dataset) -> None:
        ds.Units, ds.Manufacturer = "CNTS", maker or ds.Manufacturer
        block = ds.private_block(0x7053, creator or "Philips PET Private Group", create=True)
        if suv:
            block.add_new(0x00, "DS", suv)
        if bqml:
            block.add_new(0x09, "DS", bqml)
        if not creator:
            del ds[0x70530010]

    return edit


def ge_time(text: str) -> Edit:
    """GE's private scan time."""
    return lambda z, ds: ds.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x0D, "DT", text)


def nuclide(code: str, meaning: str, half_life_s: float | None = None) -> Edit:
    """Another nuclide's code, name and half-life."""

    def edit(z: int, ds: Dataset) -> None:
        info = ds.RadiopharmaceuticalInformationSequence[0]
        info.RadionuclideCodeSequence[0].CodeValue = code
        info.RadionuclideCodeSequence[0].CodeMeaning = meaning
        if half_life_s:
            info.RadionuclideHalfLife = f"{half_life_s:g}"

    return edit


def drop(*keywords: str) -> Edit:
    """Take fields out."""

    def edit(z: int, ds: Dataset) -> None:
        for keyword in keywords:
            delattr(ds, keyword)

    return edit


def at(**clock: str) -> Edit:
    """Set dates and times of the series, the slice and the injection."""

    def edit(z: int, ds: Dataset) -> None:
        info = ds.RadiopharmaceuticalInformationSequence[0]
        for keyword, value in clock.items():
            if keyword.startswith("Radiopharmaceutical"):
                if value:
                    setattr(info, keyword, value)
                else:
                    delattr(info, keyword)
            else:
                setattr(ds, keyword, value)

    return edit


def with_ct(*words: str, cut: slice = slice(None), as_pet: bool = False) -> Make:
    """A PET and a CT as NIfTI, the CT cut along z; or the CT in the PET's place."""

    def make(folder: Path) -> list[str]:
        z0 = cut.indices(SHAPE[0])[0]
        affine = AFFINE.copy()
        affine[:3, 3] += AFFINE[:3, 2] * z0
        ct = nifti(values=lambda: hu()[cut], affine=affine, name="ct.nii.gz")(folder)[0]
        scan = nifti(*words)(folder)
        return [ct, *words] if as_pet else [*scan, "--ct", ct]

    return make


def folders(names: Sequence[str], *words: str) -> Make:
    """The same NIfTI layout in several folders, each with a scan of its own."""

    def make(folder: Path) -> list[str]:
        for number, name in enumerate(names):
            nifti(values=lambda number=number: body(number), name="pet.nii.gz")(folder / "scans" / name)  # type: ignore[misc]
        return [str(folder / "scans"), "--pet", "pet.nii.gz", *words]

    return make


def no_encoding(folder: Path) -> list[str]:
    """A folder whose name is no text, with an escape character."""
    words = folders(("x",), "--units", "SUVbw")(folder)
    os.rename(folder / "scans/x", os.fsencode(folder / "scans") + b"/p\xff\x1b1")
    return words


def in_suv(edit: Edit, per_suv: float = 1.0) -> Edit:
    """Store values of ``per_suv`` for SUV 1 instead of Bq/mL."""

    def scaled(z: int, ds: Dataset) -> None:
        ds.RescaleSlope = f"{float(ds.RescaleSlope) / BQML * per_suv:.10g}"

    return both(scaled, edit)


def linked(folder: Path) -> list[str]:
    """A folder of links to the slices, as git-annex makes them."""
    store = pet(folder / "store")
    (folder / "pet").mkdir()
    for file in sorted(store.iterdir()):
        (folder / "pet" / file.name).symlink_to(os.path.relpath(file, folder / "pet"))
    return [str(folder / "pet")]


def linked_folder(folder: Path) -> list[str]:
    """A link to the folder of the slices."""
    (folder / "pet").symlink_to(pet(folder / "store"))
    return [str(folder / "pet")]


def annexed(folder: Path) -> list[str]:
    """Two patients, of whom one has a CT that was not fetched: a link to no file."""
    for number, name in enumerate(("p1", "p2")):
        nifti(values=lambda number=number: body(number), name="pet.nii.gz")(folder / "scans" / name)  # type: ignore[misc]
        (folder / "scans" / name / "ct.nii.gz").symlink_to("../.git/annex/objects/none")
    (folder / "scans/p1/ct.nii.gz").unlink()
    nifti(values=hu, name="ct.nii.gz")(folder / "scans/p1")
    return [str(folder / "scans"), "--pet", "pet.nii.gz", "--ct", "ct.nii.gz", "--units", "SUVbw"]


def twice(folder: Path) -> list[str]:
    """One scan in two patients' folders."""
    make = nifti(name="pet.nii.gz")
    make(folder / "scans/p1")
    make(folder / "scans/p2")
    return [str(folder / "scans"), "--pet", "pet.nii.gz", "--units", "SUVbw"]


def bytes_of(name: str, content: bytes) -> Make:
    """One file of these bytes."""

    def make(folder: Path) -> list[str]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        return [str(folder / name)]

    return make


# -- members ----------------------------------------------------------------------------------------------------------

MEMBERS = [
    Member("a good scan", "DICOM", series(), Read()),
    Member("a good scan", "NIfTI, unit stated", nifti("--units", "SUVbw"), Read()),
    Member("a good scan", "DICOM in RLE", compressed(), Read()),
    Member("unit of a NIfTI", "none stated, values of SUV", nifti(), Read(("unit_taken_from_values",))),
    Member("unit of a NIfTI", "none stated, Bq/mL", nifti(values=lambda: body() * np.float32(BQML)),
           Refused("NII_UNITS")),
    Member("unit of a NIfTI", "its sidecar says Bq/mL, no dose",
           nifti(values=lambda: body() * np.float32(BQML), sidecar={"Units": "Bq/mL"}), Refused("PET_WEIGHT")),
    Member("unit of a NIfTI", "its sidecar says kBq/mL",
           nifti(values=lambda: body() * np.float32(BQML / 1000), sidecar={"Units": "kBq/mL"}), Refused("NII_UNITS")),
    Member("unit of a NIfTI", "its sidecar says kBq/mL, --units SUVbw",
           nifti("--units", "SUVbw", values=lambda: body() * np.float32(BQML / 1000), sidecar={"Units": "kBq/mL"}),
           Refused("NII_UNITS")),
    Member("unit of a NIfTI", "its sidecar says SUV", nifti(sidecar={"Units": "SUV"}), Read()),
    Member("unit of a NIfTI", "its sidecar contradicts --units", nifti("--units", "SUVbw", sidecar={"Units": "Bq/mL"}),
           Refused("NII_UNITS")),
    Member("unit of a NIfTI", "Bq/mL with weight and dose",
           nifti("--units", "Bq/mL", "--weight-kg", "70", "--dose-mbq", f"{370 * 2 ** (-UPTAKE_S / T):.9g}",
                 values=lambda: body() * np.float32(BQML)), Read(("activity_scaled_to_suv",))),
    Member("values that are no SUV", "Bq/mL said to be SUV",
           nifti("--units", "SUVbw", values=lambda: body() * np.float32(BQML)), Refused("PET_SUV_IMPLAUSIBLE")),
    Member("values that are no SUV", "a thousandth", nifti("--units", "SUVbw", values=lambda: body() / 1000),
           Read(("suv_median_unusual",), times=1e-3)),
    Member("values that are no SUV", "ten times", nifti("--units", "SUVbw", values=lambda: body() * 10),
           Read(("suv_median_unusual",), times=10.0)),
    Member("values that are no SUV", "all negative", nifti("--units", "SUVbw", values=lambda: -1 - body()),
           Refused("PET_SUV_IMPLAUSIBLE")),
    Member("values that are no SUV", "constant", nifti("--units", "SUVbw", values=lambda: np.ones(SHAPE, np.float32)),
           Refused("IMG_CONSTANT")),
    Member("a CT in the PET's place", "NIfTI without a unit", with_ct(as_pet=True), Refused("NII_UNITS")),
    Member("a CT in the PET's place", "NIfTI said to be SUV", with_ct("--units", "SUVbw", as_pet=True),
           Refused("PET_SUV_IMPLAUSIBLE")),
    Member("a CT in the PET's place", "a PET in the CT's",
           lambda folder: [*nifti("--units", "SUVbw")(folder), "--ct", nifti(name="x.nii.gz")(folder)[0]],
           Refused("CT_UNITS")),
    Member("an option without effect", "--units of a DICOM", series(None, "--units", "Bq/mL"),
           Refused("CFG_NO_EFFECT")),
    Member("an option without effect", "--weight-kg of a PET in SUV",
           series(each(Units="GML", SUVType="BW"), "--weight-kg", "80"), Refused("CFG_NO_EFFECT")),
    Member("an option without effect", "--injection-time of a NIfTI",
           nifti("--units", "SUVbw", "--injection-time", "11:00"), Refused("CFG_NO_EFFECT")),
    Member("one value for many patients", "--weight-kg", folders(("p1", "p2"), "--weight-kg", "70"),
           Refused("CFG_MANY_PATIENTS")),
    Member("dose in another unit", "MBq", series(drug(RadionuclideTotalDose="370")), Read(("dose_read_as_MBq",))),
    Member("dose in another unit", "mCi", series(drug(RadionuclideTotalDose="10")), Refused("PET_DOSE")),
    Member("dose in another unit", "kBq", series(drug(RadionuclideTotalDose="370000")), Refused("PET_DOSE")),
    Member("dose in another unit", "mCi given by option", series(None, "--dose-mbq", "0.01"), Refused("PET_DOSE")),
    Member("weight in another unit", "g", series(each(PatientWeight="70000")), Read(("weight_read_as_g",))),
    Member("weight in another unit", "t", series(each(PatientWeight="0.07")), Refused("PET_WEIGHT")),
    Member("weight in another unit", "0", series(each(PatientWeight="0")), Refused("PET_WEIGHT")),
    Member("a note of weight with --strict", "a dose read as MBq",
           series(drug(RadionuclideTotalDose="370"), "--strict"), Refused("SET_DOUBT")),
    Member("a note of weight with --strict", "a light one passes", nifti("--strict"),
           Read(("unit_taken_from_values",))),
    Member("a small animal", "mouse", series(None, weight_kg=0.025, dose_mbq=7.0), Read(("small_animal",))),
    Member("a small animal", "mouse, weight given",
           series(drop("PatientWeight"), "--weight-kg", "0.025", weight_kg=0.025, dose_mbq=7.0),
           Read(("small_animal",))),
    Member("a small animal", "its dose for a patient", series(drug(RadionuclideTotalDose="700000")),
           Refused("PET_DOSE")),
    Member("fields that contradict each other", "two injection times",
           series(drug(RadiopharmaceuticalStartTime="101500")), Read(("injection_times_contradict",))),
    Member("fields that contradict each other", "FDG with Ga-68's half-life",
           series(nuclide("C-131A3", "^68^Gallium", 4062.6)),
           Read(("tracer_contradicts_nuclide",), times=2 ** (UPTAKE_S / 4062.6 - UPTAKE_S / T))),
    Member("fields that contradict each other", "nuclide's name against half-life, no code",
           series(both(nuclide("", "^68^Gallium"))), Refused("PET_NUCLIDE")),
    Member("fields that contradict each other", "NONE and DECY", series(each(DecayCorrection="NONE")),
           Read(("decay_correction_contradicts_corrected_image",),
                times=math.log(2) / T * 180 / -math.expm1(-math.log(2) / T * 180))),
    Member("an option without effect", "--other-grids without a low dose", series(None, "--other-grids", "resample"),
           Refused("CFG_NO_EFFECT")),
    Member("an option without effect", "--series of an image that is not asked for", series(None, "--series", "ct=3"),
           Refused("CFG_NO_EFFECT")),
    Member("fields that contradict each other", "two units among slices",
           series(some(3, 4, Units="CNTS")), Refused("SER_INCONSISTENT_HEADER")),
    Member("a nuclide's code that is a slip", "name and half-life agree", series(nuclide("C-131A3", "^18^Fluorine")),
           Read(("nuclide_code_contradicts_meaning_and_half_life",))),
    Member("a nuclide's code that is a slip", "code and half-life agree", series(nuclide("C-111A1", "Gallium-68")),
           Read(("nuclide_meaning_contradicts_code_and_half_life",))),
    Member("a CT that does not cover the PET", "half of it", with_ct("--units", "SUVbw", cut=slice(0, 7)),
           Read(("does_not_cover_body",))),
    Member("a CT that does not cover the PET", "all of it", with_ct("--units", "SUVbw"), Read()),
    Member("a compressed slice that was cut", "RLE at half", compressed(spoil=lambda data: data[: -len(data) // 8]),
           Refused("DCM_ENCAPSULATION")),
    Member("a compressed slice that was cut", "RLE, its last 20 bytes", compressed(spoil=lambda data: data[:-20]),
           Refused("DCM_ENCAPSULATION")),
    Member("end slices that are lost", "empty files", ends(lambda file: file.write_bytes(b"")),
           Refused("SER_MISSING_SLICE")),
    Member("end slices that are lost", "files of zeros", ends(lambda file: file.write_bytes(bytes(3000))),
           Refused("SER_MISSING_SLICE")),
    Member("end slices that are lost", "cut within the preamble", ends(lambda file: file.write_bytes(bytes(100))),
           Refused("SER_MISSING_SLICE")),
    Member("end slices that are lost", "cut within the header",
           ends(lambda file: file.write_bytes(file.read_bytes()[:300])), Refused("DCM_TRUNCATED")),
    Member("end slices that are lost", "links to no file",
           ends(broken_link), Refused("SER_MISSING_SLICE")),
    Member("end slices that are lost", "hidden by an interrupted copy",
           ends(lambda file: file.rename(file.with_name(f".{file.name}.Xy3aQ1"))), Refused("SER_MISSING_SLICE")),
    Member("end slices that are lost", "simply absent", ends(lambda file: file.unlink()), Read(
        ("fewer_slices_than_header_says",))),
    Member("a slice that is lost", "every second one",
           beside(every_second),
           Read(("gaps_between_slices", "fewer_slices_than_header_says"), times=math.nan)),
    Member("a slice that is lost", "in the middle",
           beside(lambda folder: sorted(folder.glob("*.dcm"))[5].unlink()), Refused("SER_MISSING_SLICE")),
    Member("files without content", "an empty NIfTI", bytes_of("scan.nii.gz", b""), Refused("NII_EMPTY")),
    Member("files without content", "a NIfTI of zeros", bytes_of("scan.nii", bytes(5000)), Refused("NII_NOT_NIFTI")),
    Member("files without content", "an empty file named DICOM",
           beside(lambda folder: (folder / "x.dcm").write_bytes(b"")), Refused("DCM_EMPTY")),
    Member("dates days apart", "series and injection shifted by -37 days",
           series(at(SeriesDate="20191125", RadiopharmaceuticalStartDateTime="20191125110000")), Refused("PET_DATES")),
    Member("dates days apart", "GE's private time", series(ge_time("20191230120000")), Refused("PET_DATES")),
    Member("dates days apart", "reprocessed five days later", series(at(SeriesDate="20200106")),
           Read(("dates_days_apart",))),
    Member("dates days apart", "slices on two days",
           series(some(7, 14, AcquisitionDate="20200104")), Refused("PET_DATES")),
    Member("dates days apart", "the injection's date alone",
           series(at(RadiopharmaceuticalStartDateTime="20200105110000")), Read(("injection_date_impossible",))),
    Member("geometry of a NIfTI", "sheared",
           sform_only(lambda a: a.__setitem__((0, 1), 3.0)), Refused("NII_BAD_AFFINE")),
    Member("geometry of a NIfTI", "sform of 60 mm against a voxel size of 7",
           sform_only(lambda a: a.__setitem__((0, 0), -60.0)),
           Refused("NII_AMBIGUOUS_AFFINE")),
    Member("geometry of a NIfTI", "sform and qform apart",
           nifti("--units", "SUVbw", edit=lambda image: image.header.set_qform(np.diag([7.0, 8, 6, 1]), 1)),
           Refused("NII_AMBIGUOUS_AFFINE")),
    Member("geometry of a NIfTI", "neither sform nor qform",
           nifti("--units", "SUVbw", edit=lambda image: (image.set_sform(None, 0), image.set_qform(None, 0))),
           Refused("NII_NO_ORIENTATION")),
    Member("spatial unit", "metre", nifti("--units", "SUVbw", edit=placed(1e-3, "meter")),
           Read(("spatial_unit_converted_to_mm",))),
    Member("spatial unit", "micron", nifti("--units", "SUVbw", edit=placed(1e3, "micron")),
           Read(("spatial_unit_converted_to_mm",))),
    Member("spatial unit", "metre with voxels of 7", nifti("--units", "SUVbw", edit=placed(1.0, "meter")),
           Refused("NII_BAD_SPACING")),
    Member("the same scan twice", "under two patients", twice, Read(said="hold one and the same scan")),
    Member("a picture beside the slices", "a localizer in the series",
           beside(lambda folder: again(folder, "900.dcm", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
                                       ImageOrientationPatient=["1", "0", "0", "0", "0", "-1"])),
           Read(("pictures_in_series_passed_by",))),
    Member("a picture beside the slices", "a projection in the series",
           beside(lambda folder: again(folder, "900.dcm", ImageType=["DERIVED", "SECONDARY", "MIP"],
                                       ImageOrientationPatient=["1", "0", "0", "0", "0", "-1"])),
           Read(("pictures_in_series_passed_by",))),
    Member("a picture beside the slices", "a secondary capture",
           beside(lambda folder: again(folder, "900.dcm", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")), Read()),
    Member("a picture beside the slices", "a protocol page without a place",
           beside(lambda folder: again(folder, "900.dcm", ImageType=["DERIVED", "SECONDARY", "PROT"],
                                       SeriesInstanceUID=generate_uid(), ImagePositionPatient=None)),
           Read(("pictures_passed_by",))),
    Member("other files beside the slices", "of the system and a PDF",
           beside(lambda folder: [(folder / name).write_bytes(b"\0\1\2") for name in
                                  ("Thumbs.db", ".DS_Store", "._0001.dcm", "report.pdf", "DICOMDIR")]), Read()),
    Member("other files beside the slices", "a damaged other series",
           beside(lambda folder: again(folder, "900.dcm", SeriesInstanceUID=generate_uid(), Rows=0)),
           Read(("damaged_series_passed_by",))),
    Member("Philips counts", "SUV factor", series(philips(suv=f"{1 / BQML:.9g}")), Read()),
    Member("Philips counts", "activity factor", series(philips(bqml="1")), Read()),
    Member("Philips counts", "both", series(philips(suv=f"{1 / BQML:.9g}", bqml="1")), Read()),
    Member("Philips counts", "both, which contradict each other", series(philips(suv=f"{1 / BQML:.9g}", bqml="7")),
           Read(("philips_factors_contradict",))),
    Member("Philips counts", "without their creator",
           series(philips(suv=f"{1 / BQML:.9g}", creator="", maker="Philips Medical Systems")),
           Read(("philips_factor_without_creator",))),
    Member("Philips counts", "without their creator, of another maker",
           series(philips(suv="0.25", creator="", maker="SIEMENS")), Refused("PET_UNITS")),
    Member("Philips counts", "no factor", series(each(Units="CNTS")), Refused("PET_UNITS")),
    Member("names", "capitals in --case", nifti("--units", "SUVbw", "--case", "Patient01"), Read(said="Patient01")),
    Member("names", "a folder's name that cannot be a case's",
           folders(("p1", "Müller Ö", "p2"), "--units", "SUVbw", "--names", "folder"), Refused("SET_REFUSED")),
    Member("names", "folders of any letters", folders(("Patient 01", "患者三", "A" * 80), "--units", "SUVbw"),
           Read(times=math.nan)),
    Member("names", "a folder's name in no encoding", no_encoding, Read()),
    Member("injection after the series time", "by 20 s, the scan 50 minutes later",
           series(at(RadiopharmaceuticalStartDateTime="20200101120020", RadiopharmaceuticalStartTime="120020",
                     AcquisitionTime="125000")),
           Read(("injection_after_reference_time",), times=2 ** ((-UPTAKE_S - 20) / T))),
    Member("injection after the series time", "after the scan",
           series(at(RadiopharmaceuticalStartDateTime="20200101130000", RadiopharmaceuticalStartTime="130000")),
           Refused("PET_TIME_ORDER")),
    Member("links", "to every slice", linked, Read()),
    Member("links", "a CT that was not fetched, of one of two patients", annexed, Refused("SET_REFUSED")),
    Member("links", "to the folder", linked_folder, Read()),
    Member("times as programs write them", "seven digits of seconds", beside(raw("SeriesTime", "120000.0000001")),
           Read()),
    Member("times as programs write them", "colons", beside(raw("SeriesTime", "12:00:00")), Read()),
    Member("intercept", "signed values stored as unsigned", series(shifted), Read(("intercept_applied",))),
    Member("intercept", "an offset", series(each(RescaleIntercept="-5")), Refused("PET_BAD_INTERCEPT")),
    Member("other formats", "NRRD", bytes_of("x.nrrd", b"NRRD0004\n" + bytes(400)), Refused("IMG_FORMAT")),
    Member("other formats", "half of an Analyze pair", bytes_of("x.hdr", b"\x5c\1\0\0" + bytes(400)),
           Refused("IMG_FORMAT")),
    Member("other formats", "ECAT", bytes_of("x.v", b"MATRIX72v" + bytes(503)), Refused("IMG_FORMAT")),
    Member("other formats", "ZIP", bytes_of("x.zip", b"PK\3\4" + bytes(400)), Refused("IMG_FORMAT")),
    *(Member("compressed slices", name, packed(syntax), Read())
      for name, syntax in (("lossless JPEG", JPEG + "70"), ("lossless JPEG, any predictor", JPEG + "57"),
                           ("JPEG-LS", JPEG + "80"), ("JPEG 2000", JPEG + "90"))),
    *(Member("a compressed slice that was cut", f"{name} at 30 %", packed(syntax, cut(0.3)),
             Refused("DCM_DECODE_FAILED"))
      for name, syntax in (("lossless JPEG", JPEG + "70"), ("JPEG-LS", JPEG + "80"), ("JPEG 2000", JPEG + "90"))),
    Member("a compressed slice that was cut", "lossless JPEG at 90 %, its end marker put back",
           packed(JPEG + "70", cut(0.9, b"\xff\xd9")), Refused("DCM_DECODE_FAILED")),
    Member("a compressed slice that was cut", "every one of them", packed(JPEG + "70", cut(0.5), SHAPE[0]),
           Refused("DCM_DECODE_FAILED")),
    Member("frame sizes that lie", "JPEG of 65535 x 65535", packed(JPEG + "70", lying), Refused("DCM_FRAME_LIE")),
    Member("frame sizes that lie", "more rows in the DICOM header",
           beside(lambda folder: None, edit=each(Rows=8000, Columns=8000)), Refused("DCM_PIXELS_SHORT")),
    Member("dynamic and gated series", "4D NIfTI", volumes(), Refused("NII_4D")),
    Member("dynamic and gated series", "4D NIfTI, a frame", volumes("--frames", "2"), Read()),
    Member("dynamic and gated series", "4D NIfTI, frames summed by their durations",
           volumes("--frames", "1,3", times={"FrameTimesStart": [0, 100, 200], "FrameDuration": [60, 60, 180]}),
           Read(times=(0.5 * 60 + 2 * 180) / 240)),
    Member("dynamic and gated series", "4D NIfTI, a sum without durations", volumes("--frames", "all"),
           Refused("FRM_TIMES")),
    Member("dynamic and gated series", "4D NIfTI, a pair",
           volumes("--frame-pairs", "1", times={"FrameTimesStart": [0, 60, 120], "FrameDuration": [60, 60, 60]}),
           Read(("uptake_may_differ_between_frames",), times=1.5)),
    Member("dynamic and gated series", "a frame that is not there", volumes("--frames", "7"), Refused("FRM_RANGE")),
    Member("dynamic and gated series", "DICOM", frames_of_a_series(), Refused("SER_DYNAMIC")),
    Member("dynamic and gated series", "DICOM, a frame", frames_of_a_series("--frames", "2"), Read()),
    Member("dynamic and gated series", "DICOM, a pair", frames_of_a_series("--frame-pairs", "1"),
           Read(("uptake_may_differ_between_frames",), times=(1 + 2 * 2 ** (-100 / T)) / (1 + 2 ** (-100 / T)))),
    Member("dynamic and gated series", "gated DICOM", frames_of_a_series(kind="GATED"), Refused("SER_DYNAMIC")),
    Member("dynamic and gated series", "gated DICOM, two gates", frames_of_a_series("--frames", "2-3", kind="GATED"),
           Read(times=1.5)),
    Member("an option without effect", "--frames of a static series", series(None, "--frames", "2"),
           Refused("CFG_NO_EFFECT")),
    Member("enhanced objects", "legacy-converted PET", legacy(beside_classic=False), Read()),
    Member("enhanced objects", "beside the classic series", legacy(beside_classic=True),
           Read(("enhanced_copy_passed_by",))),
    Member("numbers that a type cannot hold", "integers of 32 bits",
           counted(lambda: (np.rint(body().astype(np.float64) * 2**28) + 1).astype(np.int32), 2.0**-28),
           Read(("scaled_by_scl_slope", "rounded_to_float32"))),
    Member("numbers that a type cannot hold", "clipped at 16 bits", counted(clipped, 1 / 14000),
           Read(("scaled_by_scl_slope", "saturated"), times=math.nan)),
    Member("voxels of microns", "0.05 mm",
           nifti("--units", "SUVbw", affine=np.diag([-0.05, -0.05, 0.05, 1.0])),
           Read(spacing_mm=(0.05, 0.05, 0.05))),
    # The SUV rule, branch by branch; the SUV that went in is what must come out, or a multiple that decay tells.
    Member("SUV rule", "ADMIN", series(each(DecayCorrection="ADMIN")), Read(times=2 ** (-UPTAKE_S / T))),
    Member("SUV rule", "NONE", series(both(each(DecayCorrection="NONE", CorrectedImage=["ATTN"]))),
           Read(("decay_corrected_here",), times=math.log(2) / T * 180 / -math.expm1(-math.log(2) / T * 180))),
    Member("SUV rule", "series time later than the scan: mean count times", series(at(SeriesTime="130000")),
           Read(("reference_spread_above_1_percent",))),
    Member("SUV rule", "series time later, bed offsets only",
           series(both(at(SeriesTime="130000"), each(FrameReferenceTime="0"))),
           Read(("reference_is_earliest_acquisition",))),
    Member("SUV rule", "GE's private time", series(ge_time("20200101113000")),
           Read(("reference_spread_above_1_percent",), times=2 ** (-1800 / T))),
    Member("SUV rule", "injection by time of day", series(at(RadiopharmaceuticalStartDateTime="")), Read()),
    Member("SUV rule", "injection by date-time alone", series(at(RadiopharmaceuticalStartTime="")), Read()),
    Member("SUV rule", "scan after midnight, injection before",
           series(at(SeriesTime="003000", AcquisitionTime="003000", RadiopharmaceuticalStartDateTime="",
                     RadiopharmaceuticalStartTime="233000")), Read(("injection_on_previous_day",))),
    Member("SUV rule", "time zone stated on both sides",
           series(both(each(TimezoneOffsetFromUTC="+0100"),
                       at(RadiopharmaceuticalStartDateTime="20200101100000+0000"))), Read()),
    Member("SUV rule", "time zone stated at the injection alone",
           series(at(RadiopharmaceuticalStartDateTime="20200101100000+0000")), Read(("injection_time_of_day_used",))),
    Member("SUV rule", "Ga-68",
           series(both(nuclide("C-131A3", "^68^Gallium", 4062.6), drug(Radiopharmaceutical="PSMA"))),
           Read(times=2 ** (UPTAKE_S / 4062.6 - UPTAKE_S / T))),
    Member("SUV rule", "C-11",
           series(both(nuclide("C-105A1", "^11^Carbon", 1221.8), drug(Radiopharmaceutical="PiB"))),
           Read(("reference_spread_above_1_percent", "suv_median_unusual"),
                times=2 ** (UPTAKE_S / 1221.8 - UPTAKE_S / T))),
    Member("SUV rule", "a SPECT nuclide", series(nuclide("", "", 574300)), Refused("PET_NUCLIDE")),
    Member("SUV rule", "GML of body weight", series(in_suv(each(Units="GML", SUVType="BW"))), Read()),
    Member("SUV rule", "GML without a type", series(in_suv(each(Units="GML"))), Read()),
    Member("SUV rule", "GML of lean body mass",
           series(in_suv(each(Units="GML", SUVType="LBM", PatientSize="1.75", PatientSex="M"))),
           Read(("normalised_to_body_weight",), times=70 / (1.10 * 70 - 120 * (70 / 175) ** 2))),
    Member("SUV rule", "GML of lean body mass (James 128), a woman",
           series(in_suv(each(Units="GML", SUVType="LBMJAMES128", PatientSize="1.75", PatientSex="F"))),
           Read(("normalised_to_body_weight",), times=70 / (1.07 * 70 - 148 * (70 / 175) ** 2))),
    Member("SUV rule", "GML of lean body mass (Janmahasatian)",
           series(in_suv(each(Units="GML", SUVType="LBMJANMA", PatientSize="1.75", PatientSex="M"))),
           Read(("normalised_to_body_weight",), times=(6680 + 216 * 70 / 1.75**2) / 9270)),
    Member("SUV rule", "GML of ideal body weight, sex O",
           series(in_suv(each(Units="GML", SUVType="IBW", PatientSize="1.75", PatientSex="O"))),
           Read(("normalised_to_body_weight",), times=70 / ((48 + 1.06 * 23 + 45.5 + 0.91 * 23) / 2))),
    Member("SUV rule", "CM2ML of body surface",
           series(in_suv(each(Units="CM2ML", SUVType="BSA", PatientSize="1.75"), 0.25)),
           Read(("normalised_to_body_weight",),
                times=0.25 * 70e3 / (0.007184 * 175**0.725 * 70**0.425 * 1e4))),
    Member("SUV rule", "a slope per slice, files shuffled",
           beside(lambda folder: [file.rename(folder / f"{(7 * number) % 15:03d}_{number}.dcm")
                                  for number, file in enumerate(sorted(folder.glob("*.dcm")))]), Read()),
    Member("SUV rule", "not attenuation-corrected", series(each(CorrectedImage=["DECY"])),
           Refused("PET_NOT_CORRECTED")),
    Member("SUV rule", "counts per second", series(each(Units="CPS")), Refused("PET_UNITS")),
    Member("SUV rule", "proportional counts", series(each(Units="PROPCNTS")), Refused("PET_UNITS")),
    Member("SUV rule", "weight given", series(drop("PatientWeight"), "--weight-kg", "140"),
           Read(times=2.0)),
]  # fmt: skip


def outcome_line(member: Member, found: Outcome) -> str:
    """One row of the page of results."""
    gives = found.code or ("read; " + (", ".join(found.notes) or "no note"))
    off = "" if math.isnan(found.off) else f"{found.off:.1e}"
    return f"| {member.kind} | {member.name} | {gives} | {off} |"


def clean(folder: Path) -> None:
    """Remove what a member made."""
    shutil.rmtree(folder, ignore_errors=True)


def slug(member: Member) -> str:
    """A name for a folder."""
    return re.sub(r"[^a-z0-9]+", "-", f"{member.kind} {member.name}".lower()).strip("-")
