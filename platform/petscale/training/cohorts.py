"""A run over several cohorts: they are read as one, after what they state has been compared."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from petscale.config import RunConfig
from petscale.splits import Roles
from storage import remote
from storage.errors import InputError
from storage.joined import JoinedCohort, open_cohorts
from storage.reader import Cases

TOLD, REFUSED = 1.1, 1.5  # ratio of the voxel sizes of two cohorts that is said, and one that is refused


def open_together(folders: Sequence[Path]) -> Cases:
    """Open the cohorts of a run.

    Raises:
        InputError: as ``open_cohorts``; CLU_URL where one of several is in an object store.
    """
    if len(folders) > 1:
        for folder in folders:
            if url := remote.url_of(folder) or remote.origin(folder):
                raise InputError(
                    "CLU_URL",
                    where=url,
                    found="several cohorts are trained on from folders that every node mounts",
                    remedy="copy them to shared storage, or train on one",
                )
    return open_cohorts([folder.absolute() for folder in folders])


def cohort_notes(opened: Cases, roles: Roles, config: RunConfig) -> Iterator[str]:
    """Say in what the cohorts of a run differ; equal units are checked image by image (``feed.check_cases``).

    Raises:
        InputError: SET_VOXEL_SIZES where voxel sizes are so far apart that one network cannot serve both.
    """
    if not isinstance(opened, JoinedCohort):
        return
    names: dict[str, list[str]] = {}
    for name in roles.everyone:
        names.setdefault(opened.cohort_of(name), []).append(name)
    image = config.feed.target
    sizes = {
        cohort: np.median([opened.case(name).image(image).grid.spacing_mm for name in cases], axis=0)
        for cohort, cases in names.items()
    }
    yield from _size_notes(sizes)
    tracers = {
        cohort: {_tracer(opened.case(name).image(image).provenance) for name in cases}
        for cohort, cases in names.items()
    }
    if len(set(map(frozenset, tracers.values()))) > 1:
        told = "; ".join(f"{cohort}: {', '.join(sorted(held))}" for cohort, held in tracers.items())
        yield f"the cohorts have different tracers ({told}): the network learns all of them as one"


def _size_notes(sizes: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Compare the median voxel sizes (z, y, x) in mm of the cohorts."""
    table = np.stack(list(sizes.values()))
    ratio = float((table.max(axis=0) / table.min(axis=0)).max())
    if ratio <= TOLD:
        return
    told = "; ".join(f"{cohort}: {' x '.join(f'{mm:.2f}' for mm in size)} mm" for cohort, size in sizes.items())
    if ratio > REFUSED:
        raise InputError(
            "SET_VOXEL_SIZES",
            where="train",
            found=f"voxel sizes of the cohorts differ by a factor of {ratio:.2f} ({told})",
            remedy="train one run per cohort: a network works on voxels, not on mm",
        )
    yield f"voxel sizes of the cohorts differ by a factor of {ratio:.2f} ({told}): a network works on voxels, not on mm"


def _tracer(provenance: Mapping[str, object]) -> str:
    """Tracer or nuclide of an image, or of the image that a simulation started from."""
    known = provenance.get("tracer") or provenance.get("nuclide")
    truth = provenance.get("truth")
    if known is None and isinstance(truth, Mapping):
        return _tracer(truth)
    return str(known or "unknown")
