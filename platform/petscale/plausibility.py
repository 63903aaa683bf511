"""Whether a scan is like those that a run was trained on: its unit, voxel size, uptake, dose and tracer.

A network works on voxels and numbers: it knows neither millimetres nor doses, and gives an image for any scan.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from petscale.console import console
from petscale.data.inspection import origins
from petscale.likeness import Likeness, Measured, differences, measure
from storage.errors import InputError
from storage.reader import Case, StoredImage
from storage.source import SUV

# The edge of a voxel over that of the training cases' voxels, or the reverse where it is smaller, less 1.  A network
# learns the size of a blur, of noise grains and of organs in voxels.  Reconstructions of one protocol stay within a
# tenth; at half or one and a half times the size the network meets structures that it has never seen.
VOXEL_WARNING, VOXEL_LIMIT = 0.1, 0.5

# Mean SUVbw inside the body.  A tracer spread evenly over the body gives 1, its loss by urine less; a scan of the head
# alone gives up to about 10.  Bq/mL give thousands, and an image scaled to 0..1 hundredths.
UPTAKE_WARNING, UPTAKE_LIMIT = (0.1, 15.0), (0.01, 100.0)

# Of a dose reduction factor against the nearest one trained on: public sets step by factors of 2 and more, and counts
# of a nominal dose differ by some percent.
DOSE_WARNING = 0.25


@dataclass(frozen=True)
class TrainedOn:
    """What the scans are like that a run was trained on; None for what its record does not tell.

    Args:
        units: SUVbw or HU.
        spacing_mm: voxel edge lengths (z, y, x) that most training cases have; ``like`` tells their range.
        drfs: dose reduction factors.
        nuclides: for instance F-18; known once the run was evaluated on its own cohort, and for DICOM only.
        beside: names of the images that its networks see beside the scan, as its CT.
        tracers: for instance FDG.
        scanners: maker and model.
        like: what is measured in their voxels, and in what range.
    """

    units: str
    spacing_mm: tuple[float, float, float] | None = None
    drfs: frozenset[float] | None = None
    nuclides: frozenset[str] | None = None
    beside: tuple[str, ...] = ()
    tracers: frozenset[str] | None = None
    scanners: frozenset[str] | None = None
    like: Likeness | None = None


def check_scan(run: TrainedOn, case: Case, image: str, *, where: str = "") -> tuple[str, ...]:
    """Compare a scan with those of a run's training.

    Args:
        run: the training cases.
        case: holds the scan; a file is stored as a case of its own first.
        image: the scan's name in it.
        where: what an error calls the scan; default: case and image.

    Returns:
        What differs, a sentence each; empty where nothing that is known does.

    Raises:
        InputError: SET_WRONG_UNITS; SET_NO_CT without what is seen beside it; IMG_VOXEL_SIZE beyond ``VOXEL_LIMIT``;
            IMG_UNITS beyond ``UPTAKE_LIMIT``.
    """
    scan = case.image(image)
    where = where or f"case {case.name}, image {image}"
    if scan.units != run.units:
        raise InputError(
            "SET_WRONG_UNITS",
            where=where,
            found=f"in {scan.units}, this run starts from {run.units}",
            remedy="give the kind of scan that the run was trained on, in that unit",
        )
    if missing := [name for name in run.beside if name not in case.images]:
        raise InputError(
            "SET_NO_CT",
            where=where,
            found=f"no {', '.join(missing)} beside it, which this run was trained with",
            remedy="ingest the scan with its CT (petscale ingest ... --ct ...), and name cohort and --case",
        )
    found = [_voxels(run, scan, where)]
    if scan.units == SUV:
        found += [_uptake(case, scan, where), _dose(run, scan), *_origin(run, scan)]
    return (*(sentence for sentence in found if sentence), *unlike(run, case, image))


def unlike(run: TrainedOn, case: Case, image: str) -> tuple[str, ...]:
    """Say which numbers measured in a scan lie outside the bounds that the training scans set, a sentence each."""
    if run.like is None:
        return ()
    return tuple(differences(run.like, _measured(case.image(image), case.fingerprint)))


@lru_cache(maxsize=4)
def _measured(image: StoredImage, fingerprint: str) -> Measured:
    """Measure a scan once, however many runs it is compared with."""
    return measure(image)


def tell(where: str, differences: Sequence[str]) -> None:
    """Print what differs, a line each."""
    for sentence in differences:
        console.print(f"warning: {where}: {sentence}", markup=False, soft_wrap=True)


def nuclide_of(provenance: Mapping[str, object]) -> str:
    """The nuclide of a PET read from DICOM, also of a scan that was simulated from one; empty where it is not known."""
    truth = provenance.get("truth")
    facts = truth if isinstance(truth, Mapping) else provenance
    return str(facts.get("nuclide") or "")


def _voxels(run: TrainedOn, scan: StoredImage, where: str) -> str:
    if run.spacing_mm is None:
        return ""
    ours = scan.grid.spacing_mm
    low, high = (run.like.lowest_mm, run.like.highest_mm) if run.like else (run.spacing_mm, run.spacing_mm)
    off = max(max(mm / b, a / mm, 1) - 1 for mm, a, b in zip(ours, low, high, strict=True))
    at = _mm(low) if _mm(low) == _mm(high) else f"{_mm(low)} to {_mm(high)}"
    found = f"voxels of {_mm(ours)} mm (z, y, x), the run was trained at {at} mm"
    if off > VOXEL_LIMIT:
        raise InputError(
            "IMG_VOXEL_SIZE",
            where=where,
            found=f"{found}: more than {VOXEL_LIMIT:.0%} apart",
            remedy="use a run that was trained at the scan's voxel size, or reconstruct the scan at the run's",
        )
    return found if off > VOXEL_WARNING else ""


def _uptake(case: Case, scan: StoredImage, where: str) -> str:
    share = float(case.sampling_maps.body.mean())
    mean = scan.statistics["mean"] / share if share > 0 else scan.statistics["mean"]
    found = f"a mean of {mean:.3g} SUV inside the body, where about 1 is usual"
    if not UPTAKE_LIMIT[0] <= mean <= UPTAKE_LIMIT[1]:
        raise InputError(
            "IMG_UNITS",
            where=where,
            found=f"{found}: the values are not in SUVbw",
            remedy="say what they are (--units Bq/mL with --weight-kg and --dose-mbq), or convert them",
        )
    return "" if UPTAKE_WARNING[0] <= mean <= UPTAKE_WARNING[1] else f"{found}: check unit, weight and dose"


def _dose(run: TrainedOn, scan: StoredImage) -> str:
    """A dose that the run has not seen; nothing where either is not known."""
    drf = scan.dose.drf if scan.dose else math.nan
    if not run.drfs or math.isnan(drf):
        return ""
    if any(max(drf / factor, factor / drf) <= 1 + DOSE_WARNING for factor in run.drfs):
        return ""
    return (
        f"dose reduction factor {drf:g}, the run was trained at {', '.join(f'{seen:g}' for seen in sorted(run.drfs))}"
    )


def _origin(run: TrainedOn, scan: StoredImage) -> Iterator[str]:
    """Nuclide, tracer and scanner that the run has not seen; nothing where either is not known."""
    stated = {"nuclide": nuclide_of(scan.provenance)} | {
        fact: next((str(facts[fact]) for facts in origins(scan.provenance) if facts.get(fact)), "")
        for fact in ("tracer", "scanner")
    }
    for (fact, found), seen in zip(stated.items(), (run.nuclides, run.tracers, run.scanners), strict=True):
        if seen and found and found not in seen:
            yield f"{fact} {found}, the run was trained on {', '.join(sorted(seen))}"


def _mm(spacing_mm: Sequence[float]) -> str:
    return " x ".join(f"{mm:.3g}" for mm in spacing_mm)
