"""Every kind of output opened by every tool that reads it; the table of docs/results/opened_by.md.

    python benchmarks/opened_by.py

A tool that is not installed has no column entry: dciodvfy (dicom3tools), dcm2niix, SimpleITK, ngff-zarr.
"""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import zarr

from petscale.data.export import export_image
from storage.dicom import open_series
from storage.dicom_write import write_derived_series, write_series, write_synthetic_pet
from storage.ingest import CasePlan, ingest
from storage.source import HU, LABEL, SUV, ArraySource, Grid

ROOT = Path(__file__).parents[1]
SHAPE = (8, 12, 10)
TURN = np.deg2rad(10)
LPS = np.diag([-1.0, -1.0, 1.0])
# x to the left, y to the back, z up, as scanners have it; voxels of 3 x 2.5 x 2 mm along (z, y, x)
AFFINE = np.array(
    [
        [-2 * np.cos(TURN), 2.5 * np.sin(TURN), 0, 31],
        [-2 * np.sin(TURN), -2.5 * np.cos(TURN), 0, 12],
        [0, 0, 3, -700],
        [0, 0, 0, 1],
    ]
)
LAST = (SHAPE[2] - 1, SHAPE[1] - 1, SHAPE[0] - 1)
Found = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]  # voxels (z, y, x); first, last in RAS


def outputs(folder: Path) -> dict[str, tuple[Path, np.ndarray[Any, Any]]]:
    """Name -> what was written, and the voxels that it must hold."""
    rng = np.random.default_rng(0)
    grid = Grid(SHAPE, AFFINE)
    suv = rng.gamma(2.0, 1.0, SHAPE).astype(np.float32)
    hu = np.rint(rng.uniform(-1000, 900, SHAPE)).astype(np.float32)
    labels = rng.integers(0, 3, SHAPE).astype(np.float32)
    images = {
        "full": ArraySource(suv, grid, SUV),
        "ct": ArraySource(hu, grid, HU),
        "labels": ArraySource(labels, grid, LABEL),
    }
    plan = CasePlan(images, "s", "f", labels={1: "liver", 2: "spleen"})
    ingest(folder / "cohort", {"p01": lambda _: plan}, strict=True, workers=1)
    made = {}
    for image, voxels in (("full", suv), ("ct", hu), ("labels", labels)):
        for ending in (".nii.gz", ".mha", ".zarr", ""):
            place = folder / f"{image}{ending}"
            export_image(folder / "cohort", "p01", place, image)
            made[f"{image} as {ending or ('DICOM SEG' if image == 'labels' else 'DICOM')}"] = (place, voxels)
    write_series(folder / "scan", images["full"])
    template = open_series(folder / "scan", modality="PT")
    write_derived_series(folder / "restored", template, lambda a, b: suv[a:b], description="restore", weights="0" * 64)
    made["restored PET as DICOM, in Bq/mL"] = (folder / "restored", suv / np.float32(template.factors[0]))
    ct = open_series(folder / "ct", modality="CT")
    write_synthetic_pet(folder / "from_ct", ct, grid, lambda a, b: suv[a:b], description="cascade", weights="0" * 64)
    made["PET from CT as DICOM"] = (folder / "from_ct", suv)
    return made


def by_nibabel(place: Path) -> Found:
    image = nibabel.load(place)
    return np.asarray(image.dataobj).T, *(nibabel.affines.apply_affine(image.affine, at) for at in ((0, 0, 0), LAST))


def by_simpleitk(place: Path) -> Found:
    import SimpleITK

    files = str(place) if place.is_file() else SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(place))
    image = SimpleITK.ReadImage(files)
    ends = [LPS @ image.TransformIndexToPhysicalPoint(at) for at in ((0, 0, 0), LAST)]
    return SimpleITK.GetArrayFromImage(image), *ends


def by_pydicom(place: Path) -> Found:
    if kind_of(place) == "SEG":
        return by_pydicom_of_segments(place)
    slices = sorted((pydicom.dcmread(file) for file in place.iterdir()), key=lambda ds: ds.ImagePositionPatient[2])
    voxels = np.stack([ds.pixel_array * np.float32(ds.RescaleSlope) + np.float32(ds.RescaleIntercept) for ds in slices])
    (dy, dx), turn = slices[0].PixelSpacing, np.array(slices[0].ImageOrientationPatient, float)
    across = turn[:3] * dx * LAST[0] + turn[3:] * dy * LAST[1]
    first, last = (np.array(ds.ImagePositionPatient, float) for ds in (slices[0], slices[-1]))
    return voxels, LPS @ first, LPS @ (last + across)


def by_pydicom_of_segments(place: Path) -> Found:
    """Frames by the segment and the position that each states."""
    (file,) = place.iterdir()
    ds = pydicom.dcmread(file)
    shared = ds.SharedFunctionalGroupsSequence[0]
    spacing = shared.PixelMeasuresSequence[0]
    slices: dict[float, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = {}
    for frame, about in zip(ds.pixel_array, ds.PerFrameFunctionalGroupsSequence, strict=True):
        at = np.array(about.PlanePositionSequence[0].ImagePositionPatient, float)
        held = slices.setdefault(at[2], (at, np.zeros(frame.shape)))[1]
        held[frame > 0] = about.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    (first, _), (last, _) = slices[min(slices)], slices[max(slices)]
    (dy, dx), turn = spacing.PixelSpacing, np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    across = turn[:3] * dx * LAST[0] + turn[3:] * dy * LAST[1]
    return np.stack([slices[z][1] for z in sorted(slices)]), LPS @ first, LPS @ (last + across)


def by_highdicom(place: Path) -> Found:
    import highdicom

    (file,) = place.iterdir()
    volume = highdicom.seg.segread(file).get_volume(combine_segments=True).to_patient_orientation("HPL")
    first, last = volume.map_indices_to_reference(np.array([(0, 0, 0), LAST[::-1]]))
    return volume.array, LPS @ first, LPS @ last


def by_dcm2niix(place: Path) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        words = ["dcm2niix", "-z", "n", "-f", "out", "-o", folder, str(place)]
        subprocess.run(words, check=True, capture_output=True)
        (file,) = Path(folder).glob("*.nii")
        image = nibabel.load(file)
        voxels = np.asarray(image.dataobj).T[:, ::-1]  # it stores rows from the bottom up
        rows = image.shape[1] - 1
        ends = [nibabel.affines.apply_affine(image.affine, (x, rows - y, z)) for x, y, z in ((0, 0, 0), LAST)]
        return voxels, *ends


def by_zarr(place: Path) -> Found:
    root = zarr.open_group(place, mode="r")
    facts: Any = root.attrs["petscale"]
    affine = np.array(facts["affine_ras_mm"])
    return np.asarray(root["0"]), *(nibabel.affines.apply_affine(affine, at) for at in ((0, 0, 0), LAST))


def by_ngff_zarr(place: Path) -> Found:
    """Its reader takes scale and translation, which run along the voxels' own axes."""
    import ngff_zarr

    image = ngff_zarr.from_ngff_zarr(place).images[0]
    directions = AFFINE[:3, :3] / np.linalg.norm(AFFINE[:3, :3], axis=0)
    shift = np.array([image.translation[axis] for axis in "xyz"])
    step = np.array([image.scale[axis] for axis in "xyz"])
    return np.asarray(image.data), *(directions @ (shift + step * at) for at in (np.zeros(3), np.array(LAST)))


def checked(place: Path, wanted: np.ndarray[Any, Any], tool: Callable[[Path], Found]) -> str:
    voxels, first, last = tool(place)
    step = 1e-4 * wanted.max() if kind_of(place) == "DICOM" else 0
    same = voxels.shape == wanted.shape and float(np.abs(voxels - wanted).max()) <= step
    ends = [nibabel.affines.apply_affine(AFFINE, at) for at in ((0, 0, 0), LAST)]
    gap = max(float(np.abs(np.asarray(found) - end).max()) for found, end in zip((first, last), ends, strict=True))
    return "values, place" if same and gap < 0.01 else f"**values {'yes' if same else 'no'}, {gap:.2g} mm**"


def kind_of(place: Path) -> str:
    if place.is_file() or place.suffix == ".zarr":
        return "".join(place.suffixes)
    return "SEG" if place.name == "labels" else "DICOM"


def by_dciodvfy(place: Path) -> str:
    said = [
        subprocess.run(["dciodvfy", "-new", str(file)], capture_output=True, text=True, check=False).stderr
        for file in place.iterdir()
    ]
    errors = sum(line.startswith("Error") for text in said for line in text.splitlines())
    return "no error" if not errors else f"**{errors} errors**"


def main() -> None:
    readers: dict[str, tuple[Callable[[Path], Found], str]] = {
        "nibabel": (by_nibabel, ".nii.gz"),
        "SimpleITK": (by_simpleitk, ".nii.gz .mha DICOM"),
        "pydicom": (by_pydicom, "DICOM SEG"),
        "highdicom": (by_highdicom, "SEG"),
        "dcm2niix": (by_dcm2niix, "DICOM"),
        "zarr": (by_zarr, ".zarr"),
        "ngff-zarr": (by_ngff_zarr, ".zarr"),
    }
    there = {
        name: shutil.which(name) is not None
        if name == "dcm2niix"
        else importlib.util.find_spec(name.replace("-", "_")) is not None
        for name in readers
    }
    with tempfile.TemporaryDirectory() as folder:
        lines = [f"| output | {' | '.join(readers)} | dciodvfy |", "|---" * (len(readers) + 2) + "|"]
        for name, (place, wanted) in outputs(Path(folder)).items():
            kind = kind_of(place)
            cells = [
                ("not installed" if not there[tool] else checked(place, wanted, reader))
                if kind in kinds.split()
                else ""
                for tool, (reader, kinds) in readers.items()
            ]
            verified = ""
            if kind in ("DICOM", "SEG"):
                verified = by_dciodvfy(place) if shutil.which("dciodvfy") else "not installed"
            lines.append(f"| {name} | {' | '.join(cells)} | {verified} |")
            print(lines[-1], flush=True)
    versions = {name: getattr(sys.modules.get(name.replace("-", "_")), "__version__", "") for name in readers}
    told = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
    page = ROOT / "docs/results/opened_by.md"
    head = page.read_text().partition("| output |")[0]
    page.write_text(head + "\n".join(lines) + f"\n\n{told}.\n")


if __name__ == "__main__":
    main()
