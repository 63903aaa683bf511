"""Banks of Gaussians fitted by least squares: the best linear and the best adaptive filter of a low-dose PET.

A voxel's estimate is a combination of the low dose and of the low dose smoothed by Gaussians of several widths.  The
combination is one for all voxels (a linear filter), or one per class of voxels (an adaptive filter); a class is the
local level and the sign and size of the local contrast, both computed from the low dose alone.

Widths are in mm, so that the size of the voxels is no parameter.  The normal equations are sums over voxels, hence
over cases: folds, leave-one-out and further patients cost an addition of small matrices.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import add

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

FWHMS_MM = (3.0, 5.0, 7.0, 10.0, 14.0, 20.0, 30.0)
MEMBERS = 1 + len(FWHMS_MM)  # the low dose itself comes first
LEVEL_EDGES_SUV = (0.15, 0.3, 0.6, 1.2, 2.4, 4.8, 9.6)  # of the 10 mm mean
TRUNCATE = 3.0  # standard deviations at which a Gaussian ends

_SIGMA_PER_FWHM = 1 / math.sqrt(8 * math.log(2))
_LEAST_SUV = 1e-3  # keeps the contrast finite in air
_AT_10 = 1 + FWHMS_MM.index(10.0)


@dataclass(frozen=True)
class Classing:
    """How voxels are put into classes: their level, and how far they stand out of their surroundings.

    Args:
        contrast_edges: of (7 mm mean - wide mean) / wide mean.
        wide_mm: width of the mean that stands for the surroundings, one of ``FWHMS_MM``.
        ridge: how strongly a class is drawn to the linear filter, in parts of the mean trace.
    """

    contrast_edges: tuple[float, ...]
    wide_mm: float
    ridge: float

    @property
    def count(self) -> int:
        """How many classes there are; the number tells one way from the other in what is stored."""
        return (len(LEVEL_EDGES_SUV) + 1) * (len(self.contrast_edges) + 1)

    def of(self, bank: Float[Tensor, "b m z y x"]) -> Int[Tensor, "b z y x"]:
        """Return the class of every voxel, 0 to ``count`` - 1, from ``members`` in SUV: level by signed contrast."""
        near, wide = (bank[:, 1 + FWHMS_MM.index(width)] for width in (7.0, self.wide_mm))
        contrast = (near - wide) / wide.clamp(min=_LEAST_SUV)
        level = torch.bucketize(bank[:, _AT_10].contiguous(), torch.tensor(LEVEL_EDGES_SUV, device=bank.device))
        side = torch.bucketize(contrast.contiguous(), torch.tensor(self.contrast_edges, device=bank.device))
        return level * (len(self.contrast_edges) + 1) + side


# With the finer ones small hot lesions are not averaged with the faint edges of organs (docs/results/restore.md).
FINE = Classing((-0.6, -0.3, -0.12, -0.04, 0.04, 0.12, 0.3, 0.6, 1.2), 30.0, 3e-5)
COARSE = Classing((-0.3, -0.12, -0.04, 0.04, 0.12, 0.3), 20.0, 1e-3)
CLASSES = FINE.count
RIDGES = (1e-3, 1e-4, 3e-5)  # that ``chosen_filter`` tries


def classing_of(count: int) -> Classing:
    """Return the way of classing that has this many classes: how stored coefficients are to be used.

    Raises:
        KeyError: for another number.
    """
    return {way.count: way for way in (FINE, COARSE)}[count]


def reach(spacing_mm: Iterable[float]) -> tuple[int, int, int]:
    """Return the voxels (z, y, x) that the widest Gaussian needs on either side of a voxel."""
    z, y, x = (math.ceil(TRUNCATE * FWHMS_MM[-1] * _SIGMA_PER_FWHM / step) for step in spacing_mm)
    return z, y, x


def members(
    image: Float[Tensor, "b 1 zm ym xm"],
    spacing_mm: Float[Tensor, "b 3"],
    margin: tuple[int, int, int],
    fwhms_mm: tuple[float, ...] = FWHMS_MM,
) -> Float[Tensor, "b m z y x"]:
    """Return the image and what every Gaussian makes of it, without the margin.

    Args:
        image: (b, 1, z + 2 margin_z, y + 2 margin_y, x + 2 margin_x), in any unit.
        spacing_mm: voxel edge lengths (z, y, x) of every image of the batch.
        margin: voxels (z, y, x) of context on either side; a Gaussian that is wider ends there, and its weights still
            sum to 1.
        fwhms_mm: of the Gaussians, full width at half maximum; m = 1 + their number.
    """
    smoothed = []
    for one, steps in zip(image, spacing_mm.tolist(), strict=True):
        axes = zip(steps, one.shape[1:], margin, strict=True)
        along = [_weights(fwhms_mm, round(step, 4), length, edge).to(image) for step, length, edge in axes]
        smoothed.append(_smoothed(one[0], along))
    return _with_members(image, torch.stack(smoothed), margin)


def members_in_graph(
    image: Float[Tensor, "1 1 zm ym xm"],
    spacing_mm: Float[Tensor, "3"],
    margin: tuple[int, int, int],
    fwhms_mm: tuple[float, ...] = FWHMS_MM,
) -> Float[Tensor, "1 m z y x"]:
    """Return ``members`` of one image; no value of ``spacing_mm`` is read, so that ``torch.export`` can follow."""
    axes = zip(_rounded(spacing_mm), image.shape[2:], margin, strict=True)
    along = [gaussians(fwhms_mm, step, length, edge).to(image) for step, length, edge in axes]
    return _with_members(image, _smoothed(image[0, 0], along)[None], margin)


def _smoothed(image: Float[Tensor, "zm ym xm"], along: Sequence[Tensor]) -> Float[Tensor, "g z y x"]:
    """One matrix per Gaussian and axis; the first axis makes one image into as many as there are Gaussians."""
    z, y, x = along
    rows = torch.einsum("gij,jyx->giyx", z, image)
    columns = torch.einsum("gij,gzjx->gzix", y, rows)
    return columns @ x.mT[:, None]


def smoothed_in_graph(
    images: Float[Tensor, "b 1 zm ym xm"],
    spacing_mm: Float[Tensor, "3"],
    margin: tuple[int, int, int],
    fwhm_mm: Float[Tensor, ""],
) -> Float[Tensor, "b 1 z y x"]:
    """Return what one Gaussian makes of images of one scan; no value is read, and edges of images may be symbols."""
    axes = zip(_rounded(spacing_mm), images.shape[2:], margin, strict=True)
    z, y, x = (gaussians((fwhm_mm.double(),), step, length, edge)[0].to(images) for step, length, edge in axes)
    rows = torch.einsum("ij,bcjyx->bciyx", z, images)
    return torch.einsum("ij,bczjx->bczix", y, rows) @ x.mT


def _rounded(spacing_mm: Float[Tensor, "3"]) -> tuple[Tensor, ...]:
    return ((spacing_mm.double() * 1e4).round() / 1e4).unbind()


def _with_members(image: Tensor, smoothed: Tensor, margin: tuple[int, int, int]) -> Tensor:
    """Put the image itself before what the Gaussians make of it."""
    centre = tuple(slice(edge, length - edge) for edge, length in zip(margin, image.shape[2:], strict=True))
    return torch.cat([image[:, :, *centre], smoothed], dim=1)


@lru_cache(maxsize=64)
def _weights(fwhms_mm: tuple[float, ...], spacing_mm: float, length: int, margin: int) -> Tensor:
    return gaussians(fwhms_mm, torch.tensor(spacing_mm, dtype=torch.float64), length, margin)


def gaussians(
    fwhms_mm: Sequence[float | Tensor], spacing_mm: Float[Tensor, ""], length: int, margin: int
) -> Float[Tensor, "g n length"]:
    """Return the matrix of every Gaussian along one axis, for n = length - 2 margin voxels.

    Args:
        spacing_mm: edge of a voxel, in double precision.
    """
    offset = torch.arange(length, dtype=torch.float64) - torch.arange(margin, length - margin)[:, None]
    offset = offset.to(spacing_mm.device)
    found = []
    for width in fwhms_mm:
        sigma = width * _SIGMA_PER_FWHM / spacing_mm
        reach = (TRUNCATE * sigma).ceil().clamp(max=margin)
        taps = torch.exp(-0.5 * (offset / sigma).square()).where(offset.abs() <= reach, 0.0)
        found.append(taps / taps.sum(1, keepdim=True))
    return torch.stack(found).float()


@dataclass(frozen=True, eq=False)
class NormalEquations:
    """Sums over voxels from which the best combination of every class follows; those of two cases can be added.

    Args:
        products: (classes, members, members) sum of w * member * member.
        targets: (classes, members) sum of w * member * target.
    """

    products: NDArray[np.float64]
    targets: NDArray[np.float64]

    @property
    def classing(self) -> Classing:
        """How the voxels were put into classes."""
        return classing_of(len(self.products))

    def __add__(self, other: "NormalEquations") -> "NormalEquations":
        return NormalEquations(self.products + other.products, self.targets + other.targets)

    def __sub__(self, other: "NormalEquations") -> "NormalEquations":
        return NormalEquations(self.products - other.products, self.targets - other.targets)

    def error(self, coefficients: NDArray[np.float64]) -> float:
        """Return the weighted sum of squared errors of ``coefficients``, less the sum of squares of the target."""
        fitted = np.einsum("km,kmn,kn->", coefficients, self.products, coefficients)
        return float(fitted - 2 * (coefficients * self.targets).sum())


def no_voxels(classing: Classing = FINE) -> NormalEquations:
    """Return the sums over no voxel."""
    return NormalEquations(np.zeros((classing.count, MEMBERS, MEMBERS)), np.zeros((classing.count, MEMBERS)))


def normal_equations(
    bank: Float[Tensor, "m n"],
    classed: Int[Tensor, " n"],
    target: Float[Tensor, " n"],
    weight: float | Float[Tensor, " n"],
    classing: Classing = FINE,
) -> NormalEquations:
    """Sum over ``n`` voxels of one case, in double precision and in a fixed order.

    Args:
        bank: ``members`` of these voxels.
        classed: their classes by ``classing``.
        target: what they should be.
        weight: of all voxels or of each; 1 / peak^2 makes the sum of squares that of the PSNR.
        classing: how they were put into classes.
    """
    order = torch.argsort(classed, stable=True)
    sizes = torch.bincount(classed, minlength=classing.count).tolist()
    rows = torch.cat([bank, target[None]])[:, order].double()
    weighted = (
        bank[:, order].double()
        * torch.as_tensor(weight, dtype=torch.float64, device=bank.device).expand(len(classed))[order]
    )
    parts = zip(weighted.split(sizes, dim=1), rows.split(sizes, dim=1), strict=True)
    summed = torch.stack([ours @ all_of.mT for ours, all_of in parts])
    return NormalEquations(summed[:, :, :-1].cpu().numpy(), summed[:, :, -1].cpu().numpy())


def linear_filter(equations: NormalEquations) -> NDArray[np.float64]:
    """Return the best combination for all voxels alike, as (classes, members) with equal rows."""
    products, targets = equations.products.sum(0), equations.targets.sum(0)
    one = np.linalg.lstsq(products, targets, rcond=1e-12)[0]
    return np.tile(one, (len(equations.products), 1))


def adaptive_filter(equations: NormalEquations, ridge: float | None = None) -> NDArray[np.float64]:
    """Return the best combination of every class, (classes, members), drawn to the linear filter where it is rare.

    Args:
        equations: of a case, or of several added.
        ridge: how strongly; None for what the way of classing has.
    """
    ridge = equations.classing.ridge if ridge is None else ridge
    linear = linear_filter(equations)
    trace = np.trace(equations.products, axis1=1, axis2=2)
    known = np.maximum(np.count_nonzero(trace), 1)
    strength = ridge * trace.sum() / known / MEMBERS
    products = equations.products + strength * np.eye(MEMBERS)
    return np.linalg.solve(products, (equations.targets + strength * linear)[..., None])[..., 0]


def chosen_filter(cases: Mapping[Classing, Sequence[NormalEquations]]) -> NDArray[np.float64]:
    """Return the adaptive filter of the classes and the ridge that serve cases best which it was not fitted on.

    Each case in turn is left out; what is compared is its error by the filter of the others, summed over cases.  More
    classes keep more of small lesions, and in much noise, from few cases, they learn the noise.

    Args:
        cases: way of classing -> the sums of every case, in one order.

    Returns:
        (classes, members) of the best way, fitted on all cases; of one case alone, that of ``COARSE``.
    """
    wholes = {way: reduce(add, of_cases) for way, of_cases in cases.items()}
    if len(next(iter(cases.values()))) == 1:
        return adaptive_filter(wholes[COARSE])
    errors = {
        (way, ridge): sum(one.error(adaptive_filter(wholes[way] - one, ridge)) for one in of_cases)
        for way, of_cases in cases.items()
        for ridge in RIDGES
    }
    way, ridge = min(errors, key=lambda choice: errors[choice])
    return adaptive_filter(wholes[way], ridge)


def combined(
    bank: Float[Tensor, "b m z y x"], coefficients: Float[Tensor, "k m"], classed: Int[Tensor, "b z y x"]
) -> Float[Tensor, "b 1 z y x"]:
    """Return the filtered image: every voxel's combination of ``members`` by its class, (classes, members)."""
    return torch.einsum("bmzyx,bzyxm->bzyx", bank, coefficients[classed])[:, None]
