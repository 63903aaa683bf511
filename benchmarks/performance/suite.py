"""What is measured, by name: every benchmark at its full size, and at one that takes no time.

A benchmark is made when its turn comes, in a folder of its own that is removed after it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.performance.examinations import command, compressed_nifti, new_python, series, this_python
from benchmarks.performance.loading import loading
from benchmarks.performance.measure import Benchmark
from benchmarks.performance.patches import patches
from benchmarks.performance.resampling import resampling
from benchmarks.performance.similarity import similarity
from benchmarks.performance.splines import splines
from benchmarks.performance.windows import windows

Suite = Mapping[str, Callable[[Path], Benchmark]]


def suite() -> Suite:
    """Return every benchmark at its full size."""
    return {
        "B1 patches": lambda folder: patches(folder, (405, 192, 192), edge=64, count=50),
        "B2 loading": lambda folder: loading(folder, (160, 128, 128), cases=10, edge=64),
        "B3 DICOM series": lambda folder: series(folder, (267, 128, 128)),
        "B3 nii.gz": lambda folder: compressed_nifti(folder, (160, 192, 192)),
        "B3 command": lambda folder: command(folder, (267, 128, 128), python=new_python),
        "B4 order 1": lambda folder: resampling((100, 256, 256), (150, 192, 192)),
        "B4 order 3": lambda folder: splines((100, 256, 256), (150, 192, 192)),
        "B5 windows": lambda folder: windows(folder, (405, 192, 192), tile=96),
        "B6 SSIM": lambda folder: similarity((128, 192, 192)),
    }


def quick_suite() -> Suite:
    """Return the same at sizes that take no time: parity and the way of measuring are tried, no figure is made."""
    return {
        "B1 patches": lambda folder: patches(folder, (40, 36, 34), edge=12, count=3),
        "B2 loading": lambda folder: loading(folder, (20, 18, 18), cases=2, edge=12),
        "B3 DICOM series": lambda folder: series(folder, (6, 9, 8)),
        "B3 nii.gz": lambda folder: compressed_nifti(folder, (6, 9, 8)),
        "B3 command": lambda folder: command(folder, (6, 9, 8), python=this_python),
        "B4 order 1": lambda folder: resampling((10, 24, 26), (15, 18, 19)),
        "B4 order 3": lambda folder: splines((10, 24, 26), (15, 18, 19)),
        "B5 windows": lambda folder: windows(folder, (20, 18, 18), tile=8),
        "B6 SSIM": lambda folder: similarity((12, 20, 18)),
    }
