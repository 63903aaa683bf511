"""B3, a DICOM series and a NIfTI file read as petscale reads them, and the command that makes a cohort of a series."""

import gzip
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pydicom
import zarr
from numpy.typing import NDArray

from benchmarks.performance.measure import Benchmark
from benchmarks.performance.volumes import AFFINE, Shape, missing, pet_like
from storage import dicom, nifti
from storage.dicom_write import write_series
from storage.reader import open_cohort
from storage.source import SUV, ArraySource, Grid

Python = Callable[[Sequence[str]], object]  # runs Python with these words
SIMPLEITK, DCM2NIIX = "SimpleITK", "dcm2niix"

# What a user would write: no check, one level, no digest.
SCRIPT = """
import sys
from pathlib import Path
import numpy as np
import pydicom
import zarr

slices = [pydicom.dcmread(file) for file in Path(sys.argv[1]).iterdir()]
slices.sort(key=lambda one: float(one.ImagePositionPatient[2]))
voxels = np.stack([one.pixel_array * np.float32(one.RescaleSlope) for one in slices])
shape = [-(-n // 32) * 32 for n in voxels.shape]
array = zarr.create_array(sys.argv[2], shape=voxels.shape, dtype="f4", chunks=(32, 32, 32), shards=shape)
array[...] = voxels
"""


def series(folder: Path, shape: Shape) -> Benchmark:
    """Make B3 for a series, one file per slice, 16 bits, uncompressed; all values end in memory."""
    _write(folder / "series", shape)

    def ours() -> NDArray[np.float32]:
        source = dicom.open_series(folder / "series", modality="PT")
        return source.read(0, source.grid.shape[0])

    absent = missing(SimpleITK=SIMPLEITK)
    return Benchmark(
        name="B3 DICOM series",
        does=f"a series of {shape[0]} slices of {shape[1]} x {shape[2]}, every check made, as SUV; peers give "
        "Bq/mL, and results are compared but for that factor",
        ours=ours,
        peers={
            "pydicom, a loop": lambda: _by_pydicom(folder / "series"),
            **({} if absent else {SIMPLEITK: lambda: _by_simpleitk(folder / "series")}),
        },
        bounds={"the files read": lambda: [file.read_bytes() for file in (folder / "series").iterdir()]},
        agree=_same_but_for_the_unit,
        others={},
        absent=absent,
    )


def compressed_nifti(folder: Path, shape: Shape) -> Benchmark:
    """Make B3 for a file of float32; all values end in memory."""
    path, voxels = folder / "image.nii.gz", pet_like(shape)
    nifti.write_nifti(path, Grid(shape, AFFINE), ArraySource(voxels, Grid(shape, AFFINE), SUV).read)

    def ours() -> NDArray[np.float32]:
        source = nifti.open_nifti(path, units="SUVbw", workdir=folder / "inflated")
        found = source.read(0, shape[0])
        for file in (folder / "inflated").iterdir():
            file.unlink()
        return found

    absent = missing(SimpleITK=SIMPLEITK)
    return Benchmark(
        name="B3 nii.gz",
        does=f"a .nii.gz of {' x '.join(map(str, shape))} float32, its checksum and header checked, slab by slab",
        ours=ours,
        peers={
            "nibabel": lambda: _by_nibabel(path),
            **({} if absent else {SIMPLEITK: lambda: _file_by_simpleitk(path)}),
        },
        bounds={"zlib alone": lambda: gzip.decompress(path.read_bytes())},
        agree=np.testing.assert_array_equal,
        others={},
        absent=absent,
    )


def command(folder: Path, shape: Shape, *, python: Python) -> Benchmark:
    """Make B3 for `petscale ingest` of a series, from the start of Python to its end."""
    _write(folder / "series", shape)
    os.environ["PETSCALE_SITE_KEY"] = str(folder / "site.key")
    numbers = itertools.count()

    def ours() -> Path:
        cohort = folder / f"cohort{next(numbers)}"
        python(["-m", "petscale", "ingest", str(folder / "series"), str(cohort), "--case", "a"])
        return cohort

    def script() -> Path:
        array = folder / f"array{next(numbers)}"
        python(["-c", SCRIPT, str(folder / "series"), str(array)])
        return array

    def by_dcm2niix() -> None:
        made = folder / f"nifti{next(numbers)}"
        made.mkdir()
        words = [DCM2NIIX, "-z", "n", "-o", str(made), str(folder / "series")]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)

    def agree(cohort: Path, array: Path) -> None:
        image = open_cohort(cohort).case("a").image("full")
        _same_but_for_the_unit(image.read(0, shape[0]), np.asarray(zarr.open_array(array, mode="r")[...]))

    found = which(DCM2NIIX) is not None
    return Benchmark(
        name="B3 command",
        does=f"`petscale ingest` of a series of {shape[0]} slices of {shape[1]} x {shape[2]}: checks, levels, sampling "
        "maps, body, digests, made durable; with the start of Python",
        ours=ours,
        peers={"a script of pydicom and zarr-python, nothing checked": script},
        bounds={"Python and numpy started": lambda: python(["-c", "import numpy"])},
        agree=agree,
        others={f"{DCM2NIIX}, a NIfTI file": by_dcm2niix} if found else {},
        absent=() if found else (DCM2NIIX,),
    )


def new_python(words: Sequence[str]) -> object:
    """Run Python as a process of its own."""
    return subprocess.run([sys.executable, *words], check=True, capture_output=True)


def this_python(words: Sequence[str]) -> object:
    """Run what ``new_python`` would here, for who only tries the benchmark."""
    from petscale.cli import main

    if words[0] == "-m":
        return main(words[2:])
    before, sys.argv = sys.argv, ["-c", *words[2:]]
    try:
        return exec(words[1], {})
    finally:
        sys.argv = before


def _write(folder: Path, shape: Shape) -> None:
    write_series(folder, ArraySource(pet_like(shape), Grid(shape, AFFINE), SUV))


def _by_pydicom(folder: Path) -> NDArray[np.float32]:
    slices = [pydicom.dcmread(file) for file in folder.iterdir()]
    slices.sort(key=lambda one: float(one.ImagePositionPatient[2]))
    return np.stack([one.pixel_array * np.float32(one.RescaleSlope) for one in slices])


def _by_simpleitk(folder: Path) -> NDArray[Any]:
    import SimpleITK

    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    found: NDArray[Any] = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(names, SimpleITK.sitkFloat32))
    return found


def _file_by_simpleitk(path: Path) -> NDArray[Any]:
    import SimpleITK

    found: NDArray[Any] = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    return found


def _by_nibabel(path: Path) -> NDArray[np.float32]:
    import nibabel

    return np.asarray(nibabel.load(path).dataobj, dtype=np.float32).T


def _same_but_for_the_unit(ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    factor = ours.sum(dtype=np.float64) / theirs.sum(dtype=np.float64)
    np.testing.assert_allclose(ours, theirs * factor, rtol=1e-5, atol=1e-6)
