"""Seconds, memory and bytes of one examination of a whole-body scanner: a full dose and five low doses as DICOM.

    python benchmarks/real_pairs.py [--shape 644 440 440] [--spacing-mm 1.65 1.65 1.65] [--workers 2]

The examination is made up: uptake in an ellipse with noise that grows with the dose reduction factor, as 16-bit slices
in folders named as UDPET names them.  `petscale ingest --layout udpet` is then run in a process of its own, as a user
does; its time is that on the clock, its memory the largest resident set of the process.
"""

import argparse
import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage import dicom_write
from storage.source import SUV, Grid

DRFS = (1, 4, 10, 20, 50, 100)


@dataclass(frozen=True)
class Uptake:
    """An ellipse of SUV 1 with noise, made slab by slab."""

    grid: Grid
    noise: float
    units: str = SUV
    provenance: Any = None

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        """Return the slab ``z0 <= z < z1``."""
        _, y, x = self.grid.shape
        rows, columns = np.mgrid[-1 : 1 : y * 1j, -1 : 1 : x * 1j]
        inside = (rows / 0.55) ** 2 + (columns / 0.8) ** 2 < 1
        slab = np.zeros((z1 - z0, y, x), dtype=np.float32)
        for z in range(z0, z1):
            draw = np.random.default_rng([z, int(1000 * self.noise)])
            values = 1 + self.noise * draw.standard_normal(int(inside.sum()), dtype=np.float32)
            slab[z - z0][inside] = np.maximum(values, 0)
        return slab


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(644, 440, 440))
    parser.add_argument("--spacing-mm", type=float, nargs=3, default=(1.65, 1.65, 1.65))
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    z, y, x = given.spacing_mm
    grid = Grid(tuple(given.shape), np.diag([x, y, z, 1.0]))
    folder = Path(tempfile.mkdtemp(prefix="real-pairs-"))
    try:
        study = folder / "tree/Bern-Inselspital-2022/Subject_1-2/study"
        for drf in DRFS:
            name = "Full_dose" if drf == 1 else f"1-{drf} dose"
            source = Uptake(grid, 0.02 * math.sqrt(drf))
            dicom_write.write_series(study / name, source, patient_id="P1", series_number=drf)
        words = ["ingest", folder / "tree", folder / "cohort", "--layout", "udpet", "--workers", given.workers]
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "petscale", *map(str, words)], check=True)
        seconds = time.perf_counter() - begin
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            json.dumps(
                {
                    "shape": given.shape,
                    "images": len(DRFS),
                    "workers": given.workers,
                    "seconds": round(seconds, 1),
                    "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
                    "largest_memory_mib": round(used.ru_maxrss / 1024),
                    "read_mb": round(size(folder / "tree") / 1e6),
                    "written_mb": round(size(folder / "cohort") / 1e6),
                }
            )
        )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
