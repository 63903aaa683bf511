"""Spatial frequencies of a case's images: scores for its table, and curves, averaged over cases, for its chart."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from petscale.evaluation.scores import REFERENCE
from storage.reader import Case
from storage.source import ImageSource
from trainers.metrics.definitions import Region, Score
from trainers.metrics.spectra import FREQUENCIES_PER_MM, Curve, Spectra, spectral_scores, stream_spectra

LIVER = "liver"


def noise_organ(organs: Sequence[str]) -> str:
    """Return the organ that noise is judged in: the liver, or the first one; empty without any."""
    return LIVER if LIVER in organs else next(iter(organs), "")


def measure_stored(
    case: Case, target: str, candidates: Mapping[str, ImageSource]
) -> tuple[list[Score], dict[str, Spectra]]:
    """Measure the images of a committed case: ``measure``."""
    return measure(
        case.name,
        case.image(target),
        candidates,
        body=case.image("body"),
        labels=case.image("labels") if case.labels else None,
        label_names=case.labels,
    )


def measure(
    case: str,
    reference: ImageSource,
    candidates: Mapping[str, ImageSource],
    *,
    body: ImageSource,
    labels: ImageSource | None,
    label_names: Mapping[int, str],
) -> tuple[list[Score], dict[str, Spectra]]:
    """Measure the spectra of one case's images and of its full dose.

    Args:
        case: alias of the case.
        reference: the full-dose image in SUVbw; candidates, body and labels lie on its grid.
        candidates: name -> image.
        body: greater than 0.5 inside the patient.
        labels: integers that name organs and lesions; None without any.
        label_names: what each label is.

    Returns:
        The scores, and image -> its curves.
    """
    organs = {name: label for label, name in label_names.items() if name != "body" and not name.startswith("lesion")}
    chosen = noise_organ(list(organs))
    images = {REFERENCE: reference, **candidates}
    regions = [Region(chosen, "organ", organs[chosen])] if chosen and labels is not None else []
    found = stream_spectra(reference, images, regions, body=body, labels=labels)
    return spectral_scores(case, images, found, reference_name=REFERENCE), found


def as_json(cases: Sequence[Mapping[str, Spectra]]) -> dict[str, Any]:
    """Return the curves of every image, averaged over the cases that have them, as JSON-able values.

    Returns:
        ``frequency_per_mm``; ``correlation``: image -> its ring correlation with the full dose; ``noise``: organ ->
        image -> its noise power spectrum in SUV^2 mm^2.  None stands for a frequency that no case has; an image
        of which nothing is known has an empty list.
    """
    names = dict.fromkeys(name for found in cases for name in found)
    organs = dict.fromkeys(organ for found in cases for one in found.values() for organ in one.noise)
    return {
        "frequency_per_mm": FREQUENCIES_PER_MM.round(4).tolist(),
        "correlation": {
            name: _mean([found[name].correlation for found in cases if name in found])
            for name in names
            if name != REFERENCE
        },
        "noise": {
            organ: {
                name: _mean(
                    [found[name].noise[organ] for found in cases if name in found and organ in found[name].noise]
                )
                for name in names
            }
            for organ in organs
        },
    }


def _mean(curves: Sequence[Curve]) -> list[float | None]:
    if not any(np.isfinite(curve).any() for curve in curves):
        return []
    stacked = np.stack(curves)
    known = np.isfinite(stacked)
    total, count = np.where(known, stacked, 0).sum(axis=0), known.sum(axis=0)
    return [float(value) / int(n) if n else None for value, n in zip(total, count, strict=True)]
