"""``petscale simulate``: plans of cases whose low doses are simulated from an image of another cohort."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from petscale.data.cohorts import Plans, fingerprint
from storage import layout
from storage.errors import InputError
from storage.ingest import CasePlan
from storage.lowdose import LowDoseConfig, LowDoseSource
from storage.reader import open_cohort
from storage.source import Dose, ImageSource

MEASURED = ("thinned", "separate", "frames")  # relations of low doses that are no simulation


def check_doses(scan: LowDoseConfig, drfs: Sequence[float], realisations: int) -> None:
    """Refuse before anything is opened.

    Raises:
        InputError: CFG_RANGE, CFG_NAME.
    """
    for drf in drfs:
        layout.check_name(layout.low_name(replace(scan, drf=drf).drf), "--drf")
    if realisations < 1:
        raise InputError("CFG_RANGE", where="--realisations", found=str(realisations), remedy="give 1 or more")


def low_doses(
    truth: ImageSource, ct: ImageSource | None, config: LowDoseConfig, drfs: Sequence[float], realisations: int
) -> dict[str, LowDoseSource]:
    """A full-dose scan of ``truth`` and its low-dose scans, all reconstructed alike."""
    images = {"full": LowDoseSource(truth, ct, replace(config, drf=1.0, realisation=0))}
    for drf in drfs:
        for number in range(realisations):
            images[layout.low_name(drf, number)] = LowDoseSource(truth, ct, replace(config, drf=drf, draw=number))
    return images


def doses_of(scans: Mapping[str, LowDoseSource]) -> dict[str, Dose | None]:
    """Return the doses of what ``low_doses`` simulates, and of its truth, which is no scan of this case."""
    doses: dict[str, Dose | None] = {"truth": None}
    for name, scan in scans.items():
        same_scan = scan.config.mode == "thinning" and scan.config.realisation == scans["full"].config.realisation
        full = scan.config.drf == 1
        doses[name] = Dose(scan.config.drf, "full" if full else "simulated", None if full else same_scan)
    return doses


def simulation_plans(source: Path, truth: str, scan: LowDoseConfig, drfs: Sequence[float], realisations: int) -> Plans:
    """Plan a cohort of simulated scans whose truth is an image of another cohort; CT, labels and real low
    doses come along.

    Real low doses keep their names and what is known of their counts; one whose name a simulated scan has is called
    ``<name>_measured``.

    Raises:
        InputError: STORE_NONE, SET_TOO_SMALL, CFG_RANGE.
    """
    cohort = open_cohort(source)
    check_doses(scan, drfs, realisations)
    if not drfs:
        raise InputError("CFG_RANGE", where="--drf", found="none", remedy="give 1 or more")
    if not cohort.cases:
        raise InputError("SET_TOO_SMALL", where=source.name, found="an empty cohort", remedy="ingest cases into it")

    def plan(name: str, number: int) -> Callable[[Path], CasePlan]:
        def open_plan(scratch: Path) -> CasePlan:
            case = cohort.case(name)
            image = case.image(truth)
            along: dict[str, ImageSource] = {
                other: case.image(other) for other in ("ct", "labels") if other in case.images
            }
            scans = low_doses(image, along.get("ct"), replace(scan, seed=scan.seed + number), drfs, realisations)
            measured = {
                f"{other}_measured" if other in scans else other: case.image(other)
                for other in case.images
                if other != truth and (dose := case.image(other).dose) and dose.relation in MEASURED
            }
            return CasePlan(
                images={**scans, "truth": image, **along, **measured},
                subject=case.subject,
                fingerprint=fingerprint(b"", case.fingerprint, truth, asdict(scan), number, list(drfs), realisations),
                labels=case.labels,
                doses=doses_of(scans) | {other: stored.dose for other, stored in measured.items()},
                tags=case.tags,
            )

        return open_plan

    return {name: plan(name, number) for number, name in enumerate(cohort.cases)}
