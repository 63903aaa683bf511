"""``petscale phantom``: plans of phantom patients with simulated scans."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from petscale.data.cohorts import Plans, fingerprint
from petscale.data.simulate import check_doses, doses_of, low_doses
from storage import phantom
from storage.errors import InputError
from storage.ingest import CasePlan, subject_hash
from storage.lowdose import LowDoseConfig


def phantom_plans(
    count: int,
    config: phantom.PhantomConfig,
    scan: LowDoseConfig,
    drfs: Sequence[float],
    realisations: int = 1,
) -> Plans:
    """Plan ``count`` phantom patients with their simulated scans.

    Raises:
        InputError: CFG_RANGE.
    """
    check_doses(scan, drfs, realisations)
    if count < 1:
        raise InputError("CFG_RANGE", where="--cases", found=str(count), remedy="give 1 or more")

    def plan(seed: int) -> Callable[[Path], CasePlan]:
        def open_plan(scratch: Path) -> CasePlan:
            person = replace(config, seed=config.seed + seed)
            body = phantom.phantom(person)
            scans = low_doses(body.activity, body.ct, replace(scan, seed=scan.seed + seed), drfs, realisations)
            return CasePlan(
                images={**scans, "truth": body.activity, "ct": body.ct, "labels": body.labels},
                subject=subject_hash(f"phantom {person.seed}", b"phantoms are nobody"),
                fingerprint=fingerprint(b"", phantom.facts_of(person), asdict(scan), list(drfs), realisations),
                labels=body.label_names,
                doses=doses_of(scans),
            )

        return open_plan

    return {f"phantom-{config.seed + seed:03d}": plan(seed) for seed in range(count)}
