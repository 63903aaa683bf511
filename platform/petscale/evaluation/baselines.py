"""Baselines that need no network: a Gaussian filter of the low dose, and for a CT the mean SUV of every range of HU.

Both are fitted on training cases, as the network is.  Test cases are used only where no training case is at hand, in an
external validation, and the rule says so.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from storage.errors import InputError
from storage.source import SUV, Grid, ImageSource
from trainers.metrics.definitions import Region
from trainers.metrics.presets import BODY_PSNR
from trainers.metrics.slabs import read_reflected, slabs
from trainers.metrics.streaming import stream_scores

INPUT, BY_HU = "low-dose input", "mean SUV by HU"

TRAINING = "training case(s)"
SCORED_HERE = "case(s) scored here (no training case was at hand; this favours it)"  # it, and never the network

FWHMS_MM = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 15.0)

HU_EDGES = np.array([-1024.0, *range(-1000, 301, 20), 400.0, 600.0, 1000.0, 1600.0, 3072.0])

_SIGMA_PER_FWHM = 1 / math.sqrt(8 * math.log(2))

_TRUNCATE = 4.0  # standard deviations


class Baseline(Protocol):
    """What stands beside a network's images, fitted on training cases."""

    @property
    def rule(self) -> str:
        """How it was fitted, in words."""
        ...

    def beside(self, source: ImageSource) -> dict[str, ImageSource]:
        """Return name -> image made without a network from what the network starts from, the plainest first."""
        ...

    def to_json(self) -> dict[str, object]:
        """Return what ``baseline_from_json`` takes."""
        ...


@dataclass(frozen=True, eq=False)
class GaussianSource:
    """A source smoothed with an isotropic Gaussian, edges reflected; slabs carry the halo they need.

    Args:
        source: what is smoothed.
        fwhm_mm: full width at half maximum in mm, the same along z, y and x.
        chosen: how the width was chosen, copied into every score's ``image_rule``.
    """

    source: ImageSource
    fwhm_mm: float
    chosen: str = "width given"

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
        """The source's facts, the width, and how it was chosen."""
        rule = f"Gaussian, FWHM {self.fwhm_mm:g} mm, {self.chosen}"
        return {**self.source.provenance, "gaussian_fwhm_mm": self.fwhm_mm, "rule": rule}

    @property
    def name(self) -> str:
        """What tables and pictures call it."""
        return f"Gaussian {self.fwhm_mm:g} mm"

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        """Return the smoothed slab ``z0 <= z < z1``."""
        z, y, x = (self.fwhm_mm * _SIGMA_PER_FWHM / step for step in self.grid.spacing_mm)
        halo = int(_TRUNCATE * z + 0.5)
        slab = read_reflected(self.source, z0, z1, halo)
        slab = gaussian_filter1d(slab, z, axis=0, radius=halo)[halo : halo + z1 - z0]
        slab = gaussian_filter1d(gaussian_filter1d(slab, y, axis=1, truncate=_TRUNCATE), x, axis=2, truncate=_TRUNCATE)
        return np.ascontiguousarray(slab, dtype=np.float32)


@dataclass(frozen=True)
class GaussianChoice:
    """The width that restored the training cases best.

    Args:
        fwhm_mm: the width.
        psnr_db: mean PSNR inside the body per width tried.
        num_cases: how many cases were asked.
        of: which cases these are.
    """

    fwhm_mm: float
    psnr_db: Mapping[float, float]
    num_cases: int
    of: str = TRAINING

    @property
    def rule(self) -> str:
        """How the width was chosen, in words."""
        tried = ", ".join(f"{width:g}" for width in self.psnr_db)
        return f"best mean PSNR inside the body of {self.num_cases} {self.of} among FWHM {tried} mm"

    def beside(self, source: ImageSource) -> dict[str, ImageSource]:
        """Return the low dose as it is, and smoothed with the chosen width."""
        smooth = GaussianSource(source, self.fwhm_mm, self.rule)
        return {INPUT: source, smooth.name: smooth}

    def to_json(self) -> dict[str, object]:
        """Return what ``baseline_from_json`` takes."""
        means = {f"{width:g}": value for width, value in self.psnr_db.items()}
        return {"fwhm_mm": self.fwhm_mm, "psnr_db": means, "num_cases": self.num_cases, **_told(self.of)}


def best_gaussian(
    pairs: Iterable[tuple[ImageSource, ImageSource, ImageSource]],
    fwhms_mm: Sequence[float] = FWHMS_MM,
    *,
    of: str = TRAINING,
) -> GaussianChoice:
    """Choose the Gaussian width on training cases, so that the baseline is tuned as fairly as the network.

    Args:
        pairs: (low dose, full dose, body mask) of TRAINING cases; test cases would flatter the baseline.
        fwhms_mm: widths to try, in mm.
        of: which cases these are, where they are no training cases.

    Raises:
        InputError: ``SET_EMPTY`` without a training case, or as ``stream_scores`` does.
    """
    found: dict[float, list[float]] = {width: [] for width in fwhms_mm}
    for low, full, body in pairs:
        widths = {f"{width:g}": GaussianSource(low, width) for width in fwhms_mm}
        regions = [Region("body", "body")]
        for width, score in zip(
            fwhms_mm, stream_scores("train", full, widths, [BODY_PSNR], regions, body=body), strict=True
        ):
            found[width].append(score.value)
    num_cases = len(found[fwhms_mm[0]])
    if num_cases == 0:
        raise _no_training_case()
    means = {width: float(np.mean(values)) for width, values in found.items()}
    return GaussianChoice(max(means, key=lambda width: means[width]), means, num_cases, of)


@dataclass(frozen=True)
class HuTable:
    """Mean SUV of every range of HU: what a CT value alone tells of uptake, without any anatomy.

    Args:
        suv: mean SUV in ``HU_EDGES[i]`` to ``HU_EDGES[i + 1]``; values beyond the edges belong to the outermost ranges,
            and ranges that no training voxel has take the nearest one that has.
        num_cases: how many cases were asked.
        of: which cases these are.
    """

    suv: tuple[float, ...]
    num_cases: int
    of: str = TRAINING

    @property
    def rule(self) -> str:
        """How it was fitted, in words."""
        return f"mean SUV of the voxels of each of {len(self.suv)} ranges of HU in {self.num_cases} {self.of}"

    def beside(self, source: ImageSource) -> dict[str, ImageSource]:
        """Return the CT turned into SUV by the table."""
        return {BY_HU: _LookedUp(source, self)}

    def to_json(self) -> dict[str, object]:
        """Return what ``baseline_from_json`` takes."""
        return {"suv_by_hu": list(self.suv), "num_cases": self.num_cases, **_told(self.of)}


@dataclass(frozen=True, eq=False)
class _LookedUp:
    """A CT as SUV by a table."""

    ct: ImageSource
    table: HuTable
    units: str = SUV

    @property
    def grid(self) -> Grid:
        return self.ct.grid

    @property
    def provenance(self) -> Mapping[str, object]:
        return {"kind": BY_HU, "rule": self.table.rule}

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        return np.array(self.table.suv, dtype=np.float32)[_range_of(self.ct.read(z0, z1))]


def _range_of(hu: NDArray[np.float32]) -> NDArray[np.intp]:
    return np.clip(np.searchsorted(HU_EDGES, hu, side="right") - 1, 0, len(HU_EDGES) - 2)


def mean_suv_by_hu(pairs: Iterable[tuple[ImageSource, ImageSource]], *, of: str = TRAINING) -> HuTable:
    """Fit the table.

    Args:
        pairs: (CT in HU, PET in SUVbw) of TRAINING cases, each pair on one grid.
        of: which cases these are, where they are no training cases.

    Raises:
        InputError: ``SET_EMPTY`` without a training case.
    """
    count, total = np.zeros(len(HU_EDGES) - 1), np.zeros(len(HU_EDGES) - 1)
    num_cases = 0
    for num_cases, (ct, pet) in enumerate(pairs, 1):  # noqa: B007
        for z0, z1 in slabs(ct.grid.shape):
            found = _range_of(ct.read(z0, z1)).ravel()
            count += np.bincount(found, minlength=len(count))
            total += np.bincount(found, pet.read(z0, z1).ravel().astype(np.float64), len(count))
    if num_cases == 0:
        raise _no_training_case()
    known = np.flatnonzero(count)
    nearest = known[np.abs(np.arange(len(count))[:, None] - known).argmin(axis=1)]
    return HuTable(tuple((total[nearest] / count[nearest]).tolist()), num_cases, of)


def baseline_from_json(content: Mapping[str, object]) -> Baseline:
    """Inverse of ``Baseline.to_json``."""
    of = str(content.get("of", TRAINING))
    if "suv_by_hu" in content:
        return HuTable(tuple(content["suv_by_hu"]), content["num_cases"], of)  # type: ignore[arg-type]
    psnr = {float(width): value for width, value in content["psnr_db"].items()}  # type: ignore[attr-defined]
    return GaussianChoice(content["fwhm_mm"], psnr, content["num_cases"], of)  # type: ignore[arg-type]


def _told(of: str) -> dict[str, object]:
    return {} if of == TRAINING else {"of": of}


def _no_training_case() -> InputError:
    return InputError("SET_EMPTY", where="training cases", found="none", remedy="give at least one pair")
