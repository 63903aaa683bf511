"""Filters of a low-dose PET that need no network: banks of Gaussians, non-local means, total variation, BM4D.

Every filtered image is computed in blocks of slices that depend on its shape alone, each with the context it needs,
so that its voxels do not depend on how it is read.  A block is computed once and kept in a temporary file.

Noise of PET grows with uptake.  Non-local means, total variation and BM4D expect one noise level, so they see the
image divided by its local level (the mean within a Gaussian of 14 mm, plus 0.1 SUV), and their result is multiplied by
it.  Their strengths are in units of the scan's own noise there, so that one number serves scans of every noise.
"""

import importlib
import importlib.util
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

from petscale.evaluation.baselines import BM4D, NON_LOCAL_MEANS, TOTAL_VARIATION
from storage.source import BODY_SUV, Grid, ImageSource
from trainers import filter_bank
from trainers.metrics.slabs import read_reflected

BLOCK_VOXELS = 6_000_000  # with their context a few times as many: some hundred MB while a block is computed
LEVEL_FWHM_MM, LEAST_LEVEL_SUV = 14.0, 0.1
NOISE_FWHM_MM = 7.0  # what a Gaussian of this width takes away is noise
NOISE_SLICES = 16  # in which a scan's noise is measured

_SIGMA_PER_FWHM = 1 / math.sqrt(8 * math.log(2))
_TRUNCATE = 3.0  # standard deviations
_MEDIAN_OF_NORMAL = 0.6745  # median of the absolute value, in standard deviations

Voxels = NDArray[np.float32]
Denoise = Callable[[Voxels, float, float], Voxels]  # image with noise of one level, that level times strength, mm


# ---- images computed in blocks --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class BlockedSource:
    """An image made of another one block by block; safe to read from several threads.

    Args:
        source: what it is made of.
        make: (slices + 2 halo, y, x) of the source -> (slices, y, x) of this image.
        halo: slices of context on either side; beyond the faces they are reflected.
        rule: how it was made, in words.
        block_voxels: size of a block without its context.
    """

    source: ImageSource
    make: Callable[[Voxels], Voxels]
    halo: int
    rule: str
    block_voxels: int = BLOCK_VOXELS
    _kept: set[int] = field(default_factory=set)
    _lock: Lock = field(default_factory=Lock)

    @property
    def grid(self) -> Grid:
        """The grid of the source."""
        return self.source.grid

    @property
    def units(self) -> str:
        """The unit of the source."""
        return self.source.units

    @property
    def provenance(self) -> Mapping[str, object]:
        """The source's facts, and how the image was made."""
        return {**self.source.provenance, "rule": self.rule}

    @cached_property
    def _file(self) -> IO[bytes]:
        return tempfile.TemporaryFile()

    def read(self, z0: int, z1: int) -> Voxels:
        """Return the slab ``z0 <= z < z1``."""
        depth, y, x = self.grid.shape
        slices = max(1, self.block_voxels // (y * x))
        with self._lock:
            for number in range(z0 // slices, (z1 - 1) // slices + 1):
                if number not in self._kept:
                    start, stop = number * slices, min((number + 1) * slices, depth)
                    slab = read_reflected(self.source, start, stop, self.halo).astype(np.float32)
                    made = np.ascontiguousarray(self.make(slab), dtype=np.float32)
                    self._file.seek(start * y * x * made.itemsize)
                    self._file.write(made.data)
                    self._file.flush()
                    self._kept.add(number)
            found = np.empty((z1 - z0, y, x), dtype=np.float32)
            self._file.seek(z0 * y * x * found.itemsize)
            self._file.readinto(found)  # type: ignore[attr-defined]
        return found


# ---- banks of Gaussians ---------------------------------------------------------------------------------------------


def bank(slab: Voxels, spacing_mm: tuple[float, float, float]) -> torch.Tensor:
    """Return the Gaussians of a block.

    Args:
        slab: (slices + 2 ``bank_halo``, y, x) in SUV.
        spacing_mm: voxel edge lengths (z, y, x).

    Returns:
        (1, members, slices, y, x) as ``filter_bank.members`` has it, faces along y and x reflected.
    """
    margin = filter_bank.reach(spacing_mm)
    grown = np.pad(slab, [(0, 0), (margin[1],) * 2, (margin[2],) * 2], mode="symmetric")
    return filter_bank.members(torch.from_numpy(grown)[None, None], torch.tensor([spacing_mm]), margin)


def bank_halo(spacing_mm: tuple[float, float, float]) -> int:
    """Return the slices of context that a bank needs on either side."""
    return filter_bank.reach(spacing_mm)[0]


def banked(source: ImageSource, coefficients: NDArray[np.float64], rule: str) -> BlockedSource:
    """Return a low dose filtered by a bank; ``coefficients`` (classes, members) as ``filter_bank`` fits them."""
    spacing, chosen = source.grid.spacing_mm, torch.from_numpy(coefficients).float()
    classing = filter_bank.classing_of(len(coefficients))

    def make(slab: Voxels) -> Voxels:
        found = bank(slab, spacing)
        made: Voxels = filter_bank.combined(found, chosen, classing.of(found))[0, 0].numpy()
        return made

    return BlockedSource(source, make, bank_halo(spacing), rule)


# ---- filters for noise of one level ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A filter for noise of one level.

    Args:
        denoise: (image, noise times strength, mean edge length of a voxel in mm) -> image.
        strengths: those to try, in units of the noise.
        reach: voxels of context that it gets on either side.
        told: what it is, in words.
    """

    denoise: Denoise
    strengths: tuple[float, ...]
    reach: int
    told: str


def _non_local_means(image: Voxels, noise: float, spacing_mm: float) -> Voxels:
    """Compare cubes of about 10 mm within about 10 mm, at most 5 voxels within 2: the time grows with their number."""
    patch = 2 * min(max(round(5 / spacing_mm), 1), 2) + 1
    distance = min(max(round(10 / spacing_mm), 1), 2)
    made: Voxels = denoise_nl_means(image, patch, distance, h=noise, fast_mode=True)
    return made


def _total_variation(image: Voxels, noise: float, spacing_mm: float) -> Voxels:
    made: Voxels = denoise_tv_chambolle(image, weight=noise, max_num_iter=50)
    return made


def _bm4d(image: Voxels, noise: float, spacing_mm: float) -> Voxels:
    made: NDArray[np.float64] = importlib.import_module("bm4d").bm4d(image, noise)
    return made.astype(np.float32)


METHODS: Mapping[str, Method] = {
    NON_LOCAL_MEANS: Method(
        _non_local_means,
        (0.25, 0.5, 1.0, 2.0, 4.0),
        4,
        "non-local means of scikit-image, cubes of about 10 mm within 10 mm, at most 5 voxels within 2",
    ),
    TOTAL_VARIATION: Method(
        _total_variation,
        (0.125, 0.25, 0.5, 1.0, 2.0, 4.0),
        8,
        "total variation of scikit-image (Chambolle), 50 iterations",
    ),
    BM4D: Method(_bm4d, (0.5, 1.0, 1.5, 2.0), 16, "BM4D of the package bm4d"),
}


def installed(method: str) -> bool:
    """Whether a method can run here: BM4D's licence is not free for all uses, so the user has to install it."""
    return method != BM4D or importlib.util.find_spec("bm4d") is not None


def relative_noise(source: ImageSource) -> float:
    """Return the noise of a PET over its local level, a standard deviation measured in up to 16 slices of the scan.

    It is the median of what a Gaussian of 7 mm takes away, over the local level, where the level is above 0.1 SUV;
    0 where it is nowhere.
    """
    depth = source.grid.shape[0]
    halo = _level_halo(source.grid.spacing_mm)
    found = []
    for z in sorted({int((i + 0.5) * depth / NOISE_SLICES) for i in range(NOISE_SLICES)}):
        slab = read_reflected(source, z, z + 1, halo).astype(np.float32)
        level = _level(slab, source.grid.spacing_mm)
        rest = np.abs(slab - _smooth(slab, source.grid.spacing_mm, NOISE_FWHM_MM)) / level
        found.append(rest[halo][level[halo] > BODY_SUV + LEAST_LEVEL_SUV])
    values = np.concatenate(found)
    return float(np.median(values)) / _MEDIAN_OF_NORMAL if values.size else 0.0


def levelled(source: ImageSource, method: str, strength: float, rule: str) -> BlockedSource:
    """Return a PET filtered by one of ``METHODS``; ``strength`` in units of the scan's noise."""
    spacing, chosen = source.grid.spacing_mm, METHODS[method]
    halo = _level_halo(spacing) + chosen.reach
    measured: list[float] = []  # read when the first block is

    def make(slab: Voxels) -> Voxels:
        if not measured:
            measured.append(relative_noise(source))
        made = denoised(slab, spacing, method, strength * measured[0])
        return made[halo : len(made) - halo]

    return BlockedSource(source, make, halo, rule)


def denoised(slab: Voxels, spacing_mm: tuple[float, float, float], method: str, noise: float) -> Voxels:
    """Return a part of a PET, divided by its local level, filtered for noise of one level, and multiplied by it.

    Rows and columns far from the body, which are half of a scan and more, are smoothed by a Gaussian of 7 mm instead.

    Args:
        slab: (z, y, x) in SUV; its outermost slices lack context.
        spacing_mm: voxel edge lengths (z, y, x).
        method: a key of ``METHODS``.
        noise: standard deviation over the level, times the strength; without noise the part stays as it is.
    """
    if noise <= 0:
        return slab
    level = _level(slab, spacing_mm)
    made = _smooth(slab, spacing_mm, NOISE_FWHM_MM)
    box = _box(level > BODY_SUV + LEAST_LEVEL_SUV, METHODS[method].reach)
    if slab[box].size:
        made[box] = level[box] * METHODS[method].denoise(slab[box] / level[box], noise, float(np.mean(spacing_mm)))
    return made


def _box(inside: NDArray[np.bool_], margin: int) -> tuple[slice, slice, slice]:
    """The rows and columns that hold the body, and a margin."""
    found = [slice(0, len(inside))]
    for axis in (1, 2):
        at = np.flatnonzero(inside.any(axis=(0, 3 - axis)))
        found.append(slice(max(int(at[0]) - margin, 0), int(at[-1]) + margin + 1) if at.size else slice(0, 0))
    return found[0], found[1], found[2]


def _smooth(slab: Voxels, spacing_mm: tuple[float, float, float], fwhm_mm: float) -> Voxels:
    sigma = [fwhm_mm * _SIGMA_PER_FWHM / step for step in spacing_mm]
    made: Voxels = gaussian_filter(slab, sigma, truncate=_TRUNCATE)
    return made


def _level(slab: Voxels, spacing_mm: tuple[float, float, float]) -> Voxels:
    made: Voxels = np.maximum(_smooth(slab, spacing_mm, LEVEL_FWHM_MM), 0) + np.float32(LEAST_LEVEL_SUV)
    return made


def _level_halo(spacing_mm: tuple[float, float, float]) -> int:
    return math.ceil(_TRUNCATE * LEVEL_FWHM_MM * _SIGMA_PER_FWHM / spacing_mm[0]) + 1
