"""Baselines that need no network: what each is called, what it has to offer, and the best Gaussian filter.

All are fitted on training cases, as the network is.  Test cases are used only where no training case is at hand, in an
external validation, and the rule says so.  Further filters are in ``filters``, those of a CT in ``from_ct``, and
``fitting`` puts them together.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from storage.errors import InputError
from storage.source import Grid, ImageSource
from trainers.metrics.definitions import Region
from trainers.metrics.presets import BODY_PSNR
from trainers.metrics.slabs import read_reflected
from trainers.metrics.streaming import stream_scores

INPUT, BY_HU = "low-dose input", "mean SUV by HU"
BY_HEIGHT, BY_ORGAN = "mean SUV by HU and height", "mean SUV by HU and organ"
LINEAR, ADAPTIVE = "linear filter", "adaptive filter"
NON_LOCAL_MEANS, TOTAL_VARIATION, BM4D = "non-local means", "total variation", "BM4D"

TRAINING = "training case(s)"
SCORED_HERE = "case(s) scored here (no training case was at hand; this favours it)"  # it, and never the network

FWHMS_MM = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 15.0)

_SIGMA_PER_FWHM = 1 / math.sqrt(8 * math.log(2))

_TRUNCATE = 4.0  # standard deviations


@dataclass(frozen=True, eq=False)
class Anatomy:
    """What is known of where a case's voxels lie in the patient, on the grid of its images.

    Args:
        body: greater than 0.5 inside the patient.
        labels: integers naming organs and lesions; None without.
        names: what each label is.
    """

    body: ImageSource
    labels: ImageSource | None = None
    names: Mapping[int, str] = field(default_factory=dict)


class Baseline(Protocol):
    """What stands beside a network's images, fitted on training cases."""

    @property
    def rule(self) -> str:
        """How it was fitted, in words."""
        ...

    def beside(self, source: ImageSource, anatomy: Anatomy | None = None) -> dict[str, ImageSource]:
        """Return name -> image made without a network from what the network starts from, the plainest first."""
        ...

    def to_json(self) -> dict[str, object]:
        """Return what ``fitting.baseline_from_json`` takes."""
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

    def beside(self, source: ImageSource, anatomy: Anatomy | None = None) -> dict[str, ImageSource]:
        """Return the low dose as it is, and smoothed with the chosen width."""
        smooth = GaussianSource(source, self.fwhm_mm, self.rule)
        return {INPUT: source, smooth.name: smooth}

    def to_json(self) -> dict[str, object]:
        """Return what ``gaussian_from_json`` takes."""
        means = {f"{width:g}": value for width, value in self.psnr_db.items()}
        return {"fwhm_mm": self.fwhm_mm, "psnr_db": means, "num_cases": self.num_cases, **told(self.of)}


def gaussian_from_json(content: Mapping[str, Any]) -> GaussianChoice:
    """Inverse of ``GaussianChoice.to_json``."""
    psnr = {float(width): value for width, value in content["psnr_db"].items()}
    psnr = dict(sorted(psnr.items()))  # a file's names are in the order of letters
    return GaussianChoice(content["fwhm_mm"], psnr, content["num_cases"], str(content.get("of", TRAINING)))


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
    return choose_width([gaussian_scores(low, full, body, fwhms_mm) for low, full, body in pairs], of=of)


def gaussian_scores(
    low: ImageSource, full: ImageSource, body: ImageSource, fwhms_mm: Sequence[float] = FWHMS_MM
) -> dict[float, float]:
    """Return FWHM in mm -> PSNR inside the body of one case, in dB.

    Raises:
        InputError: as ``stream_scores`` does.
    """
    widths = {f"{width:g}": GaussianSource(low, width) for width in fwhms_mm}
    scores = stream_scores("train", full, widths, [BODY_PSNR], [Region("body", "body")], body=body)
    return {width: score.value for width, score in zip(fwhms_mm, scores, strict=True)}


def choose_width(scores: Sequence[Mapping[float, float]], *, of: str = TRAINING) -> GaussianChoice:
    """Return the width of the best mean over cases of ``gaussian_scores``.

    Raises:
        InputError: ``SET_EMPTY`` without a case.
    """
    if not scores:
        raise no_training_case()
    means = {width: float(np.mean([found[width] for found in scores])) for width in scores[0]}
    return GaussianChoice(max(means, key=lambda width: means[width]), means, len(scores), of)


def told(of: str) -> dict[str, object]:
    """Which cases were asked, as a stored baseline says it; nothing for training cases."""
    return {} if of == TRAINING else {"of": of}


def no_training_case() -> InputError:
    """The error of a fit that was given no case."""
    return InputError("SET_EMPTY", where="training cases", found="none", remedy="give at least one pair")
