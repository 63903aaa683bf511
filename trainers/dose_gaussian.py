"""The Gaussian of every dose: the width that comes nearest to the full dose on training patches.

A network may add what it makes to the low dose smoothed so.  Widths are in mm; between doses they are interpolated over
the logarithm of the dose reduction factor, and a dose beyond those of the training takes the nearest one's.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from trainers import assembly, filter_bank
from trainers.recipe import Batch, Scan

FWHMS_MM = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 15.0)
REACH = 6  # voxels that a Gaussian has on either side at least; it ends with the halo where that is longer
UNFITTED_MM = 5.0  # until a patch was seen
FACTS, UNKNOWN = ("spacing_mm", "drf"), ("drf",)  # of ``GraphedInContext`` of a network that adds to a Gaussian
NO_SCAN = Scan((4.0, 4.0, 4.0), math.nan, 0.0)  # until ``ScanAware.for_scan`` has told which


def smoothed(
    source: Float[Tensor, "b 1 zh yh xh"],
    spacing_mm: Float[Tensor, "b 3"],
    halo: int,
    fwhms_mm: tuple[float, ...] = FWHMS_MM,
) -> Float[Tensor, "b m z y x"]:
    """Return what every Gaussian makes of an image, without its halo.

    Args:
        source: an image with ``halo`` voxels on every side; where these are fewer than ``REACH``, its outermost voxels
            are repeated.
        spacing_mm: voxel edge lengths (z, y, x) of every image.
        halo: voxels that the result does not have.
        fwhms_mm: of the m Gaussians, full width at half maximum.
    """
    padded, margin = _reaching(source, halo)
    return filter_bank.members(padded, spacing_mm, (margin,) * 3, fwhms_mm)[:, 1:]


def _reaching(source: Tensor, halo: int) -> tuple[Tensor, int]:
    """Return images with ``REACH`` voxels on every side at least, and how many these are."""
    lacking = max(0, REACH - halo)
    return F.pad(source, (lacking,) * 6, mode="replicate") if lacking else source, halo + lacking


@dataclass(frozen=True, eq=False)
class Widths:
    """The chosen widths.

    Args:
        drf: (doses,) dose reduction factors, rising; NaN for one that is not known, the last.
        fwhm_mm: (doses,) full widths at half maximum.
    """

    drf: Tensor
    fwhm_mm: Tensor

    def at(self, drf: float) -> float:
        """Return the width for a dose; for one that is not known, its own where there is one, else the median."""
        known = self.drf.isfinite()
        if math.isnan(drf) and not bool(known.all()):
            return float(self.fwhm_mm[-1])
        if math.isnan(drf) or not bool(known.any()):
            return float(self.fwhm_mm.median())
        doses, widths = self.drf[known].double().log().cpu().numpy(), self.fwhm_mm[known].cpu().numpy()
        return float(np.interp(math.log(drf), doses, widths))

    def graphed(self) -> Callable[[Tensor, int, Tensor, Tensor], Tensor]:
        """Return ``smooth_scan`` of a source, a halo, voxel edges (3,) and a dose reduction factor (), or NaN.

        No value of a tensor is read, so that ``torch.export`` can follow.
        """
        known = self.drf.isfinite()
        other = (self.fwhm_mm.median() if bool(known.all()) else self.fwhm_mm[-1]).double()
        doses, widths = self.drf[known].double().log(), self.fwhm_mm[known].double()
        steps, lowest, rises = doses.diff(), doses[:-1], widths.diff()
        some, several = len(doses) > 0, len(doses) > 1

        def at(drf: Tensor) -> Tensor:
            if not some:
                return other
            width = widths[0]
            if several:
                shares = ((drf.double().log() - lowest) / steps).clamp(0, 1)  # of every step between doses, its part
                width = width + (shares * rises).sum()
            return torch.where(drf.isnan(), other, width)

        def smooth(source: Tensor, halo: int, spacing_mm: Tensor, drf: Tensor) -> Tensor:
            padded, margin = _reaching(source, halo)
            return filter_bank.smoothed_in_graph(padded, spacing_mm, (margin,) * 3, at(drf))

        return smooth

    def smooth(
        self,
        source: Float[Tensor, "b 1 zh yh xh"],
        spacing_mm: Float[Tensor, "b 3"],
        drf: Float[Tensor, " b"],
        halo: int,
    ) -> Float[Tensor, "b 1 z y x"]:
        """Return every image smoothed by the Gaussian of its dose, without its halo."""
        rows = zip(source.split(1), spacing_mm.split(1), drf.tolist(), strict=True)
        return torch.cat([smoothed(one, spacing, halo, (self.at(dose),)) for one, spacing, dose in rows])

    def smooth_scan(self, source: Float[Tensor, "b 1 zh yh xh"], scan: Scan, halo: int) -> Float[Tensor, "b 1 z y x"]:
        """Return images of one scan smoothed by the Gaussian of its dose, without their halo."""
        b = len(source)
        return self.smooth(source, torch.tensor([scan.spacing_mm] * b), torch.full((b,), scan.drf), halo)


def noise(lacking: Float[Tensor, "b 1 z y x"], cases: int) -> Float[Tensor, "b 1 1 1 1"]:
    """Return the noise of every patch's case: the standard deviation over all its patches.

    Args:
        lacking: the low dose minus what a Gaussian makes of it; the patches of a case are neighbours.
        cases: how many cases they are of.
    """
    by_case = lacking.detach().float().unflatten(0, (cases, -1))
    sd = by_case.std(dim=(1, 2, 3, 4, 5), correction=0, keepdim=True)
    of_patches: Tensor = sd.expand(-1, by_case.shape[1], -1, -1, -1, -1).flatten(0, 1)
    return of_patches


def split_weights(weights: Mapping[str, Tensor], under: str, where: str) -> tuple[dict[str, Tensor], Widths | None]:
    """Return a network's own weights, and the Gaussians that were exported beside them under a name and a dot.

    Args:
        under: that name, empty where there are none.
        where: what the weights are called in the error.

    Raises:
        InputError: CKPT_CONFIG where the Gaussians are missing.
    """
    names = [f"{under}.{name}" for name in ("drf", "fwhm_mm")] if under else []
    own = {name: value for name, value in weights.items() if name not in names}
    if len(own) + len(names) != len(weights):
        raise assembly.another_configuration(where)
    return own, Widths(*(weights[name] for name in names)) if names else None


@dataclass
class Errors:
    """Squared errors of every Gaussian, summed over training patches.

    Args:
        doses: dose reduction factor, 0 where it is not known -> (m,) sums.
    """

    doses: dict[float, Tensor] = field(default_factory=dict)

    def add(self, images: Float[Tensor, "b m z y x"], batch: Batch) -> Float[Tensor, " m"]:
        """Add the patches of a batch, each error over the case's largest value; returns their mean.

        Args:
            images: ``smoothed`` of the batch's sources.
        """
        peak = batch.peak.to(images)[:, None, None, None, None]
        errors = ((images - batch.target) / peak).square().mean((2, 3, 4)).double().cpu()
        for drf, own in zip(batch.drf.tolist(), errors, strict=True):
            key = 0.0 if math.isnan(drf) else drf  # NaN is no key
            self.doses[key] = self.doses[key] + own if key in self.doses else own
        return errors.mean(0)

    def own(self) -> dict[str, Tensor]:
        """Return what this rank has added up."""
        return _as_tensors(self.doses)

    def state(self) -> dict[str, Tensor]:
        """Return what ``load`` takes, of all ranks together (collective)."""
        whole: dict[float, Tensor] = {}
        for part in assembly.of_all_ranks(self.doses):
            for key, sums in part.items():
                whole[key] = whole[key] + sums if key in whole else sums
        return _as_tensors(whole)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state``: the first rank takes all of it, the others start at nothing."""
        rows = zip(state["drf"].tolist(), state["errors"].cpu(), strict=True)
        self.doses = {0.0 if math.isnan(drf) else drf: sums.clone() for drf, sums in rows if assembly.first_rank()}


def _as_tensors(doses: Mapping[float, Tensor]) -> dict[str, Tensor]:
    keys = sorted(doses, key=lambda key: key or math.inf)  # the dose that is not known is the last
    drf = torch.tensor([key or math.nan for key in keys], dtype=torch.float64)
    sums = torch.stack([doses[key] for key in keys]) if keys else torch.zeros(0, len(FWHMS_MM), dtype=torch.float64)
    return {"drf": drf, "errors": sums}


def fitted(state: Mapping[str, Tensor]) -> Widths:
    """Choose the width of the least error for every dose, from what ``Errors.state`` returned."""
    if not len(state["drf"]):
        return Widths(torch.tensor([math.nan]), torch.tensor([UNFITTED_MM]))
    return Widths(state["drf"].float(), torch.tensor(FWHMS_MM)[state["errors"].cpu().argmin(1)])
