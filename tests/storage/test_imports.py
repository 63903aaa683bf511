"""What the command line imports before it knows the command is cheap: no library for arrays, files or training."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from storage.dicom_write import write_series
from storage.ingest import CasePlan, ingest
from storage.source import SUV, ArraySource, Grid

HEAVY = {"torch", "zarr", "dask", "scipy", "numcodecs", "nibabel", "pydicom", "ray", "fsspec"}
CHEAP = (
    "storage.errors, storage.ranges, storage.source, storage.randomness, storage.layout, storage.integrity, "
    "storage.patches, storage.reader, storage.verification, storage.phantom, storage.lowdose, storage.suv, "
    "storage.nifti, storage.remote, storage.stitch, storage.label_names"
)


def heavy_after(code: str) -> list[str]:
    """The heavy libraries that a fresh interpreter holds after ``code``."""
    script = f"import sys\n{code}\nprint(*(sys.modules.keys() & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return done.stdout.split()


def test_signatures_and_readers_import_no_heavy_library() -> None:
    assert heavy_after(f"import {CHEAP}") == []


def test_verifying_a_cohort_imports_no_heavy_library(tmp_path: Path) -> None:
    grid = Grid((20, 12, 12), np.diag([-8.0, -8.0, 8.0, 1.0]))
    source = ArraySource(np.random.default_rng(1).random(grid.shape, dtype=np.float32), grid, SUV)
    ingest(tmp_path / "cohort", {"p": lambda _: CasePlan({"full": source}, "s", "f")}, strict=True)
    code = f"""
from pathlib import Path
from storage.reader import open_cohort
from storage.verification import verify
cohort = Path({str(tmp_path / "cohort")!r})
assert open_cohort(cohort).cases == ("p",)
assert open_cohort(cohort).case("p").images == ("body", "full")
assert open_cohort(cohort).case("p").image("full").units == "SUVbw"
assert verify(cohort) == {{}}
"""
    assert heavy_after(code) == []


def test_reading_a_regular_series_imports_no_heavy_library(tmp_path: Path) -> None:
    grid = Grid((3, 8, 9), np.diag([-4.0, -4.0, 3.0, 1.0]))
    source = ArraySource(np.random.default_rng(1).random(grid.shape, dtype=np.float32), grid, SUV)
    write_series(tmp_path / "series", source)
    code = f"""
from pathlib import Path
from storage.dicom import open_series
source = open_series(Path({str(tmp_path / "series")!r}), modality="PT")
assert source.read(0, 3).shape == (3, 8, 9)
"""
    assert heavy_after(code) == []
