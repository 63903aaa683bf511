"""Low-dose PET from full-dose PET: project, draw counts, reconstruct, one transaxial slice at a time.

The scanner has parallel beams and no time of flight, and is one sparse matrix per geometry.  Modelled are attenuation,
scatter, randoms, Poisson counts, and OSEM with a resolution model.

Limits: there are no oblique planes, so slices are coupled only by the axial blur of the truth and the post filter;
scatter is smoothed trues, not single-scatter simulation; a truth that is a real scan already holds that scanner's blur
and noise.  Every number of a simulation is in ``LowDoseSource.provenance``.
"""

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from storage.errors import InputError
from storage.randomness import Counts, generator
from storage.ranges import Range, check_ranges
from storage.source import BODY_SUV, HU, SUV, Grid, ImageSource

MU_WATER_PER_MM = 0.0096  # linear attenuation of water at 511 keV
SIGMA_PER_FWHM = 1 / np.sqrt(8 * np.log(2))
REFERENCE_BED_MM = 200.0  # one bed; the reference patient below fills it
REFERENCE_RADIUS_MM = float(np.sqrt(70e6 / 1700.0 / np.pi))  # 70 kg of water, 1.70 m tall, as a cylinder: 114.5 mm

_SCATTER_SIGMA_MM = 60.0
_RANDOMS_FIELD_MM = 600.0  # transaxial field of view over which randoms are spread
_SLICES_AT_ONCE = 16  # bounds the memory of OSEM, whatever the thickness of a slab
_TRUNCATE = 3.0  # Gaussians end at this many standard deviations
_MATRIX_BYTES = 700e6  # largest system matrix that num_angles=None makes
_ELEMENTS_PER_PIXEL = 2.3  # of one angle; each takes 8 bytes
_MARGIN_MM = 10.0  # air kept around the body

Array = NDArray[np.float32]

_BUILDING = threading.Lock()
_LOCATING = (
    threading.RLock()
)  # module-wide, so that sources can be pickled; re-entrant, as a truth may be simulated too


@dataclass(frozen=True)
class LowDoseConfig:
    """One simulated scan.

    Args:
        drf: dose reduction factor.
        mode: ``thinning`` keeps each prompt of the full-dose scan with probability 1/drf, as a shorter scan would (all
            terms fall with drf); ``activity`` injects less (trues and scatter fall with drf, randoms with drf squared).
        seed: base of all random numbers.
        realisation: number of the full-dose scan.  In ``thinning`` every drf of one realisation holds a part of the
            same prompts; another realisation is an independent scan of the same patient.
        draw: number of the low-dose scan of one realisation: independent parts of the same prompts, as the two low-dose
            images per patient of SGSGAN.
        million_prompts_per_bed: prompts at drf 1 of the reference patient (70 kg water cylinder of SUV 1 and
            114.5 mm radius) in a 200 mm bed, in millions; it fixes the sensitivity, so that the counts depend on the
            patient and not on the matrix or a crop.
        iterations: OSEM iterations.
        subsets: OSEM subsets.
        num_angles: projections over 180 degrees, a multiple of subsets; None takes as many as the resolution needs.
        psf_fwhm_mm: resolution of the scanner, modelled in plane by the reconstruction.
        post_filter_fwhm_mm: three-dimensional Gaussian after the reconstruction.
        scatter_fraction: scatter over trues.
        randoms_fraction: randoms over trues at drf 1, over a 600 mm field of view.

    Raises:
        InputError: ``CFG_RANGE`` when a value is outside its range.
    """

    drf: Annotated[float, Range(1, 10_000)] = 4.0
    mode: Literal["thinning", "activity"] = "thinning"
    seed: Annotated[int, Range(0)] = 0
    realisation: Annotated[int, Range(0)] = 0
    draw: Annotated[int, Range(0)] = 0
    million_prompts_per_bed: Annotated[float, Range(above=0, high=1e6)] = 370.0
    iterations: Annotated[int, Range(1, 1000)] = 3
    subsets: Annotated[int, Range(1, 100)] = 12
    num_angles: Annotated[int | None, Range(1)] = None
    psf_fwhm_mm: Annotated[float, Range(0, 20)] = 5.0
    post_filter_fwhm_mm: Annotated[float, Range(0, 20)] = 4.0
    scatter_fraction: Annotated[float, Range(0, 5)] = 0.35
    randoms_fraction: Annotated[float, Range(0, 50)] = 0.5

    def __post_init__(self) -> None:
        check_ranges(self, "LowDoseConfig")
        for name, good, wanted in (
            ("mode", self.mode in ("thinning", "activity"), "thinning or activity"),
            ("num_angles", self.num_angles is None or self.num_angles % self.subsets == 0, "a multiple of subsets"),
        ):
            if not good:
                found = str(getattr(self, name))
                raise InputError("CFG_RANGE", where=f"LowDoseConfig.{name}", found=found, remedy=f"give {wanted}")


# Scans whose noise figures (trainers.metrics.noise) lie among those of a scanner's patients at every dose from full to
# 1/100, on the phantom storage.phantom.ADULT: docs/results/simulator.md.  The numbers are fitted to that.  They are not
# the scanners' own: without time of flight, more counts stand for what it gains.
CERTIFIED_SPACING_MM = 1.65
SCANNERS: dict[str, LowDoseConfig] = {
    "quadra": LowDoseConfig(
        million_prompts_per_bed=1250.0, iterations=5, subsets=12, psf_fwhm_mm=3.0, post_filter_fwhm_mm=2.0
    ),
    "uexplorer": LowDoseConfig(
        million_prompts_per_bed=650.0, iterations=5, subsets=12, psf_fwhm_mm=3.0, post_filter_fwhm_mm=3.0
    ),
}


def scanner_of(config: LowDoseConfig) -> str | None:
    """Return which of ``SCANNERS`` a scan was simulated for, by its numbers; None if it is none of them.

    The dose, how it was reduced and the random numbers may be any; every other number is the preset's.
    """
    for name, preset in SCANNERS.items():
        same = {part: getattr(config, part) for part in ("drf", "mode", "seed", "realisation", "draw")}
        if replace(preset, **same) == config:
            return name
    return None


@dataclass(frozen=True, eq=False)
class SystemMatrix:
    """A: pixels of one slice -> strip integrals in mm, and its exact adjoint, by ordered subsets of angles.

    A row is one strip of ``bin_mm`` width, ordered (bin, angle) within a subset; a column is one pixel (y, x).  Its
    elements are areas of pixels cut by strips over the strip width, so every angle counts every pixel in full.  ``psf``
    blurs along the bins: in plane, an isotropic Gaussian before A is this one-dimensional Gaussian after it.
    """

    shape_px: tuple[int, int]
    spacing_mm: tuple[float, float]
    num_angles: int
    num_bins: int
    bin_mm: float
    lines: tuple[Any, ...]  # per subset (num_bins * angles, y * x) CSR float32
    psf: Any  # (num_bins, num_bins) CSR float32, symmetric

    def line_integrals(self, image: Array, subset: int) -> Array:
        """Integrate ``image`` (y * x, slices) along the lines of a subset -> (bins, angles * slices), without blur."""
        return np.asarray(self.lines[subset] @ image, dtype=np.float32).reshape(self.num_bins, -1)

    def forward(self, image: Array, subset: int) -> Array:
        """Project ``image`` (y * x, slices) with the resolution model -> (bins, angles * slices)."""
        return np.asarray(self.psf @ self.line_integrals(image, subset), dtype=np.float32)

    def back(self, sinogram: Array, subset: int) -> Array:
        """Apply the adjoint of ``forward``: (bins, angles * slices) -> (y * x, slices)."""
        rows = self.lines[subset].shape[0]
        # The transpose is a view of the same arrays (CSC): the exact adjoint, measured as fast as a second copy.
        return np.asarray(self.lines[subset].T @ (self.psf @ sinogram).reshape(rows, -1), dtype=np.float32)


def projector(
    shape_px: tuple[int, int], spacing_mm: tuple[float, float], num_angles: int, subsets: int, psf_fwhm_mm: float = 5.0
) -> SystemMatrix:
    """Build, or take from the cache of the last two geometries, the system matrix of a slice.

    Args:
        shape_px: pixels along (y, x).
        spacing_mm: pixel edge lengths along (y, x) in mm.
        num_angles: projections over 180 degrees, a multiple of ``subsets``.
        subsets: subset s holds the angles s, s + subsets, s + 2 subsets, ...
        psf_fwhm_mm: in-plane resolution; 0 for none.
    """
    with _BUILDING:  # two threads that need one geometry build it once
        return _projector(shape_px, spacing_mm, num_angles, subsets, psf_fwhm_mm)


@lru_cache(maxsize=2)
def _projector(
    shape_px: tuple[int, int], spacing_mm: tuple[float, float], num_angles: int, subsets: int, psf_fwhm_mm: float
) -> SystemMatrix:
    from scipy import sparse  # scipy takes half a second to import, and a configuration does not need it

    (ny, nx), (dy, dx) = shape_px, spacing_mm
    bin_mm = max(dy, dx)
    sigma = psf_fwhm_mm * SIGMA_PER_FWHM / bin_mm
    radius = int(_TRUNCATE * sigma + 0.5)
    num_bins = int(np.ceil(np.hypot(ny * dy, nx * dx) / bin_mm)) + 2 * radius + 3
    y = ((np.arange(ny) - (ny - 1) / 2) * dy)[:, None]
    x = ((np.arange(nx) - (nx - 1) / 2) * dx)[None, :]
    pixels = np.arange(ny * nx, dtype=np.int32)
    lines = []
    for subset in range(subsets):
        angles = np.arange(subset, num_angles, subsets) * np.pi / num_angles
        rows, columns, values = [], [], []
        for k, angle in enumerate(angles):
            at = (x * np.cos(angle) + y * np.sin(angle)).ravel() / bin_mm + (num_bins - 1) / 2
            nearest = np.rint(at).astype(np.int32)
            # A pixel casts a trapezoid (two boxes convolved), never wider than sqrt 2 bins: it meets at most 3.
            a, b = (max(abs(w) / bin_mm, 1e-3) for w in (dx * np.cos(angle), dy * np.sin(angle)))
            below = [_trapezoid_cdf(nearest + edge - at, a, b) for edge in (-1.5, -0.5, 0.5, 1.5)]
            for step in (-1, 0, 1):
                share = (below[step + 2] - below[step + 1]) * (dy * dx / bin_mm)
                kept = share > 1e-6 * bin_mm
                rows.append((nearest[kept] + step) * np.int32(len(angles)) + np.int32(k))
                columns.append(pixels[kept])
                values.append(share[kept].astype(np.float32))
        index = (np.concatenate(rows), np.concatenate(columns))
        lines.append(sparse.csr_array((np.concatenate(values), index), shape=(num_bins * len(angles), ny * nx)))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / max(sigma, 1e-6)) ** 2)
    offsets = range(-radius, radius + 1)
    diagonals = [np.full(num_bins - abs(o), tap) for o, tap in zip(offsets, taps / taps.sum(), strict=True)]
    psf = sparse.diags_array(diagonals, offsets=offsets).tocsr().astype(np.float32)
    return SystemMatrix(shape_px, spacing_mm, num_angles, num_bins, bin_mm, tuple(lines), psf)


def _trapezoid_cdf(t: NDArray[np.float64], a: float, b: float) -> NDArray[np.float64]:
    """Integral up to ``t`` of the unit-area trapezoid box(a) * box(b), as a second difference of t^2 / 2 for t > 0."""

    def ramp(shift: float) -> NDArray[np.float64]:
        return np.maximum(t + shift, 0) ** 2 / 2

    return (ramp((a + b) / 2) - ramp((a - b) / 2) - ramp((b - a) / 2) + ramp(-(a + b) / 2)) / (a * b)


def mu_per_mm(hu: Array) -> Array:
    """Convert CT numbers at 120 kVp to linear attenuation at 511 keV in 1/mm.

    Bilinear: air to soft tissue as a mixture of air and water, above 47 HU as water and bone (Carney, Townsend,
    Rappoport and Bendriem, Med. Phys. 33 (2006) 976-983, at 120 kVp).
    """
    above_air = np.maximum(hu, -1000).astype(np.float32) + np.float32(1000)
    soft = above_air * np.float32(MU_WATER_PER_MM / 1000)
    bone = above_air * np.float32(5.10e-6) + np.float32(4.71e-3)
    return np.where(above_air > 1047, bone, soft)


def sensitivity(config: LowDoseConfig) -> float:
    """Trues at drf 1 per SUV, mm2 of slice and mm of axial extent, over all angles, before attenuation.

    The reference patient's chord at distance s from the axis is 2 sqrt(R^2 - s^2), attenuated by itself.
    """
    s = (np.arange(2000) + 0.5) / 2000 * REFERENCE_RADIUS_MM
    chord = 2 * np.sqrt(REFERENCE_RADIUS_MM**2 - s**2)
    escaping_mm2 = 2 * np.sum(chord * np.exp(-MU_WATER_PER_MM * chord)) * REFERENCE_RADIUS_MM / 2000
    # The randoms of the whole field of view are prompts too.
    trues = config.million_prompts_per_bed * 1e6 / (1 + config.scatter_fraction + config.randoms_fraction)
    return float(trues / (escaping_mm2 * REFERENCE_BED_MM))


def osem(
    system: SystemMatrix, prompts: Array, gain: Array, background: Array, iterations: int, start: Array | None = None
) -> Array:
    """Reconstruct slices: prompts ~ Poisson(gain * A x + background).

    Args:
        system: the projector with its subsets and resolution model.
        prompts: (subsets, bins, angles * slices); ``gain`` (sensitivity times attenuation) and ``background`` alike.
        iterations: passes over all subsets.
        start: (y * x, slices), positive; uniform 1 if None.

    Returns:
        (y * x, slices) in the unit that ``gain`` implies.
    """
    subsets = len(system.lines)
    norms = [system.back(gain[s], s) for s in range(subsets)]
    image = np.ones_like(norms[0]) if start is None else start.copy()
    stride = next(k for k in range(max(round(subsets * 0.382), 1), subsets + 1) if np.gcd(k, subsets) == 1)
    for _ in range(iterations):
        for i in range(subsets):
            s = i * stride % subsets  # successive subsets far apart in angle converge faster
            expected = system.forward(image, s)
            expected *= gain[s]
            expected += background[s]
            np.divide(prompts[s], np.maximum(expected, 1e-9), out=expected)
            expected *= gain[s]
            image *= system.back(expected, s) / np.maximum(norms[s], 1e-9)
    return image


@dataclass(frozen=True, eq=False)
class LowDoseSource:
    """A simulated scan of ``truth``, reconstructed slab by slab.

    The random numbers of a slice depend on (seed, realisation, draw, drf, mode, z) only, so any partition into slabs
    gives the same image.  A slab costs a halo of a few slices on either side: read at least 32 slices at once.

    Args:
        truth: activity in SUVbw.
        ct: HU on the grid of ``truth``, for attenuation; if None, the body is taken as water.
        config: the scan.
        counts: ``drawn``, as a scanner counts; or ``expected``: no noise at all, the same reconstruction of the mean of
            the prompts.

    Raises:
        InputError: ``PAIR_UNITS`` if ``truth`` is not in SUVbw or ``ct`` not in HU; ``PAIR_GRID`` if their grids
            differ; on reading, ``IMG_EMPTY`` if ``truth`` holds no activity.
    """

    truth: ImageSource
    ct: ImageSource | None
    config: LowDoseConfig
    counts: Literal["drawn", "expected"] = "drawn"
    _box: list[tuple[slice, slice]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, image, units in (("truth", self.truth, SUV), ("ct", self.ct, HU)):
            if image is not None and image.units != units:
                remedy = f"give an image in {units}"
                raise InputError("PAIR_UNITS", where=f"LowDoseSource.{name}", found=image.units, remedy=remedy)
        if self.ct is not None and not self.ct.grid.matches(self.truth.grid):
            found, remedy = f"{self.ct.grid.shape}, not on the PET grid", "resample the CT to the PET grid first"
            raise InputError("PAIR_GRID", where="LowDoseSource.ct", found=found, remedy=remedy)

    @property
    def grid(self) -> Grid:
        """The grid of the truth."""
        return self.truth.grid

    @property
    def units(self) -> str:
        """SUVbw."""
        return SUV

    @property
    def provenance(self) -> Mapping[str, object]:
        """Every number of the simulation, and where the truth came from."""
        scanner = scanner_of(self.config)
        return {
            "kind": "simulated low dose" if self.counts == "drawn" else "noise-free reconstruction",
            "config": asdict(self.config),
            **({"scanner": scanner} if scanner else {}),  # absent where there is none, as in older cohorts
            "attenuation": "uniform water in the body" if self.ct is None else "CT, bilinear at 120 kVp",
            "mu_water_per_mm": MU_WATER_PER_MM,
            "reference_radius_mm": REFERENCE_RADIUS_MM,
            "reference_bed_mm": REFERENCE_BED_MM,
            "trues_per_suv_mm3": sensitivity(self.config),
            "scatter_sigma_mm": _SCATTER_SIGMA_MM,
            "randoms_field_mm": _RANDOMS_FIELD_MM,
            "body_suv": BODY_SUV,
            "geometry": "parallel beam, 2D slices, no TOF",
            "truth": dict(self.truth.provenance),
            "ct": None if self.ct is None else dict(self.ct.provenance),
        }

    def read(self, z0: int, z1: int) -> Array:
        """Simulate and reconstruct the slab ``z0 <= z < z1``."""
        nz, ny, nx = self.grid.shape
        dz, dy, dx = self.grid.spacing_mm
        config = self.config
        rows, columns = self.body_box()
        shape_px = (rows.stop - rows.start, columns.stop - columns.start)
        system = projector(shape_px, (dy, dx), self._num_angles(shape_px), config.subsets, config.psf_fwhm_mm)

        post = [config.post_filter_fwhm_mm * SIGMA_PER_FWHM / d for d in (dz, dy, dx)]
        blur = config.psf_fwhm_mm * SIGMA_PER_FWHM / dz
        first, last = max(z0 - _reach(post[0]), 0), min(z1 + _reach(post[0]), nz)
        low, high = max(first - _reach(blur), 0), min(last + _reach(blur), nz)
        truth = np.maximum(self.truth.read(low, high)[:, rows, columns], 0)
        truth = _gaussian(truth, blur, 0)[first - low : last - low]
        if self.ct is not None:
            mu = mu_per_mm(self.ct.read(first, last)[:, rows, columns])
        else:
            mu = np.stack([_water_body(s, (dy, dx)) for s in truth])

        image = np.empty_like(truth)
        for start in range(0, last - first, _SLICES_AT_ONCE):
            group = slice(start, min(start + _SLICES_AT_ONCE, last - first))
            image[group] = self._scan(system, truth[group], mu[group], first + start)
        for axis in (2, 1, 0):
            image = _gaussian(image, post[axis], axis)
        slab = np.zeros((z1 - z0, ny, nx), dtype=np.float32)
        slab[:, rows, columns] = image[z0 - first : z1 - first]
        return slab

    def body_box(self) -> tuple[slice, slice]:
        """Return the rows and columns that hold activity.

        This takes one pass over the truth, in slabs, and is done once; the result travels with the source, so find it
        before the source is sent to other processes.
        """
        with _LOCATING:
            if not self._box:
                nz, ny, nx = self.grid.shape
                _, dy, dx = self.grid.spacing_mm
                active = np.zeros((ny, nx), dtype=bool)
                for z in range(0, nz, _SLICES_AT_ONCE):
                    active |= (self.truth.read(z, min(z + _SLICES_AT_ONCE, nz)) > BODY_SUV).any(axis=0)
                if not active.any():
                    found, remedy = f"no voxel above {BODY_SUV} SUV", "check the SUV conversion of this image"
                    raise InputError("IMG_EMPTY", where="LowDoseSource.truth", found=found, remedy=remedy)
                rows, columns = np.flatnonzero(active.any(axis=1)), np.flatnonzero(active.any(axis=0))
                self._box.append((_box_side(rows, ny, dy), _box_side(columns, nx, dx)))
            return self._box[0]

    def _num_angles(self, shape_px: tuple[int, int]) -> int:
        """pi/2 times the diameter over the resolution, as sampling asks for, as far as memory allows."""
        if self.config.num_angles is not None:
            return self.config.num_angles
        _, dy, dx = self.grid.spacing_mm
        diameter = max(shape_px[0] * dy, shape_px[1] * dx)
        wanted = np.pi / 2 * diameter / max(self.config.psf_fwhm_mm, 1.5 * max(dy, dx))
        allowed = _MATRIX_BYTES / (_ELEMENTS_PER_PIXEL * 8 * shape_px[0] * shape_px[1])
        per_subset = min(np.ceil(wanted / self.config.subsets), allowed // self.config.subsets)
        return self.config.subsets * max(int(per_subset), 4)

    def _scan(self, system: SystemMatrix, truth: Array, mu: Array, z_first: int) -> Array:
        """Measure and reconstruct some slices (slices, y, x), the first of which is slice ``z_first``."""
        config = self.config
        count, (dz, _, _) = len(truth), self.grid.spacing_mm
        subsets, bins, angles = config.subsets, system.num_bins, system.num_angles // config.subsets
        activity, attenuation = (np.ascontiguousarray(v.reshape(count, -1).T) for v in (truth, mu))
        per_line = sensitivity(config) * dz * system.bin_mm / system.num_angles
        gain = np.empty((subsets, bins, angles * count), dtype=np.float32)
        trues = np.empty_like(gain)
        for s in range(subsets):
            gain[s] = np.float32(per_line) * np.exp(-system.line_integrals(attenuation, s))
            trues[s] = gain[s] * system.forward(activity, s)

        randoms_drf = config.drf if config.mode == "thinning" else config.drf**2
        lines = (subsets, bins, angles, count)
        prompts, background = np.empty(lines, dtype=np.float32), np.empty(lines, dtype=np.float32)
        for i in range(count):
            slice_trues = np.ascontiguousarray(trues.reshape(lines)[..., i])
            total = float(slice_trues.sum(dtype=np.float64))
            scatter = _smooth(slice_trues, _SCATTER_SIGMA_MM / system.bin_mm)
            scatter *= np.float32(config.scatter_fraction * total / max(float(scatter.sum(dtype=np.float64)), 1e-9))
            randoms = config.randoms_fraction * total * system.bin_mm / _RANDOMS_FIELD_MM / system.num_angles
            prompts[..., i] = self._count(slice_trues + scatter, randoms, z_first + i)
            background[..., i] = scatter / np.float32(config.drf) + np.float32(randoms / randoms_drf)
        gain /= np.float32(config.drf)
        image = osem(system, prompts.reshape(gain.shape), gain, background.reshape(gain.shape), config.iterations)
        return np.ascontiguousarray(image.T).reshape(truth.shape)

    def _count(self, trues_and_scatter: Array, randoms: float, z: int) -> NDArray[np.int64] | NDArray[np.float64]:
        """Draw the prompts of slice ``z`` from its expected counts at drf 1, or return what is expected at the dose."""
        config = self.config
        if self.counts == "expected":
            randoms_drf = config.drf if config.mode == "thinning" else config.drf**2
            return trues_and_scatter.astype(np.float64) / config.drf + randoms / randoms_drf
        drf = round(config.drf * 1000)
        if config.mode == "activity":
            expected = trues_and_scatter.astype(np.float64) / config.drf + randoms / config.drf**2
            key = config.seed, config.realisation, z, Counts.LOW_ACTIVITY, drf, config.draw
            return generator(*key).poisson(expected)
        full_key = config.seed, config.realisation, z, Counts.FULL_DOSE
        full = generator(*full_key).poisson(trues_and_scatter.astype(np.float64) + randoms)
        if config.drf == 1:
            return full
        key = config.seed, config.realisation, z, Counts.THINNED, drf, config.draw
        return generator(*key).binomial(full, 1 / config.drf)


def _reach(sigma_px: float) -> int:
    return int(_TRUNCATE * sigma_px + 0.5)


def _gaussian(image: Array, sigma_px: float, axis: int) -> Array:
    from scipy import ndimage

    if _reach(sigma_px) == 0:
        return image
    mode = "nearest" if axis == 0 else "constant"  # beyond the scan's ends is more of the patient; beside the body, air
    return np.asarray(ndimage.gaussian_filter1d(image, sigma_px, axis=axis, mode=mode, truncate=_TRUNCATE))


def _smooth(sinogram: Array, sigma_bins: float) -> Array:
    """Blur (subsets, bins, angles) along the bins: three running means, which is a Gaussian near enough for scatter."""
    from scipy import ndimage

    width = 2 * int(np.sqrt(4 * sigma_bins**2 + 1) / 2) + 1
    for _ in range(3):
        sinogram = ndimage.uniform_filter1d(sinogram, width, axis=1, mode="constant")
    return sinogram


def _water_body(slice_suv: Array, spacing_mm: tuple[float, float]) -> Array:
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(slice_suv, [5.0 / d for d in spacing_mm], truncate=_TRUNCATE)
    body = ndimage.binary_fill_holes(smooth > BODY_SUV)
    return np.where(body, np.float32(MU_WATER_PER_MM), np.float32(0))


def _box_side(active: NDArray[np.intp], length: int, spacing_mm: float) -> slice:
    """Extent of the activity with a margin of air, in steps of 16 pixels, so that patients share system matrices."""
    first, last = int(active[0]), int(active[-1])
    margin = int(np.ceil(_MARGIN_MM / spacing_mm))
    size = min(-(-(last - first + 1 + 2 * margin) // 16) * 16, length)
    start = min(max((first + last + 1 - size) // 2, 0), length - size)
    return slice(start, start + size)
