"""The scores of single cases, kept until those of all are written: scoring that was broken off goes on where it was."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from petscale.environment import commit
from petscale.evaluation import ceiling
from petscale.evaluation.scores import Evaluation, read_evaluation
from petscale.folders import CASES
from storage.errors import InputError
from trainers.metrics.definitions import Score
from trainers.metrics.spectra import Curve, Spectra

MADE_OF, CEILINGS, SPECTRA = "made_of", "ceilings", "spectra"


@dataclass(frozen=True, kw_only=True)
class CaseScores:
    """What was measured of one case.

    Args:
        rows: its scores.
        ceilings: its scores against the truth, and those of what knows all but noise.
        spectra: image -> its spectra.
    """

    rows: Sequence[Score]
    ceilings: Sequence[ceiling.Row] = ()
    spectra: Mapping[str, Spectra] | None = None


def keep(folder: Path, case: str, images: Sequence[str], scored: CaseScores, made_of: Mapping[str, str]) -> None:
    """Keep the scores of a case, but for those that JSON would change: infinite ones.

    Args:
        folder: of the scores of all cases; it is made where it is not there.
        case: its name.
        images: the scored ones.
        made_of: what the scores depend on beside petscale's code, name -> digest or name.
    """
    if any(math.isinf(value) for row in scored.rows for value in (row.value, row.range_value) if value is not None):
        return
    place = folder / CASES / case
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    about: dict[str, Any] = {MADE_OF: {**made_of, "code": _code()}, CEILINGS: list(scored.ceilings)}
    if scored.spectra is not None:
        about[SPECTRA] = {name: _spectra_json(one) for name, one in scored.spectra.items()}
    Evaluation(tuple(scored.rows), tuple(images), (case,), about).write_json(place)


def kept(folder: Path, case: str, made_of: Mapping[str, str]) -> CaseScores | None:
    """Return what ``keep`` kept of a case; None where there is nothing, or it was made of anything else."""
    try:
        found = read_evaluation(folder / CASES / case)
        about: Any = found.metadata
        if about[MADE_OF] != {**made_of, "code": _code()}:
            return None
        spectra = about.get(SPECTRA)
        curves = None if spectra is None else {name: _spectra(one) for name, one in spectra.items()}
        return CaseScores(rows=found.rows, ceilings=about[CEILINGS], spectra=curves)
    except (InputError, KeyError, TypeError, ValueError, AttributeError):
        return None  # whatever it is, the case is scored anew


@cache
def _code() -> str:
    """Version of petscale, and its commit where it runs from a checkout: other code may score otherwise."""
    return f"{version('petscale')} {commit()}".rstrip()


def _spectra_json(spectra: Spectra) -> dict[str, Any]:
    return {
        "correlation": spectra.correlation.tolist(),
        "detail_mm": spectra.detail_mm,
        "noise": {organ: curve.tolist() for organ, curve in spectra.noise.items()},
        "noise_per_mm": dict(spectra.noise_per_mm),
    }


def _spectra(content: Mapping[str, Any]) -> Spectra:
    """Inverse of ``_spectra_json``; what was not finite comes back as NaN."""
    return Spectra(
        correlation=_curve(content["correlation"]),
        detail_mm=_number(content["detail_mm"]),
        noise={organ: _curve(curve) for organ, curve in content["noise"].items()},
        noise_per_mm={organ: _number(value) for organ, value in content["noise_per_mm"].items()},
    )


def _curve(values: Sequence[float | None]) -> Curve:
    return np.array([_number(value) for value in values])


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
