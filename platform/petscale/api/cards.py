"""Weights that stand alone: a run's weights in one file, and images made by such a file."""

from collections.abc import Sequence
from pathlib import Path

from petscale.api.cohorts import Cohort, PathLike
from petscale.api.training import Run
from petscale.images import Image
from petscale.shipped import located
from storage import integrity, nifti, suv
from storage.errors import InputError
from storage.source import HU, Dose


def card(run: Run | PathLike, file: PathLike, cohort: Sequence[Cohort | PathLike] = (), licence: str = "") -> Path:
    """Write a finished run's weights, and what must be known to use them, into one file that names nobody.

    Args:
        run: a finished run, or its folder; its scores are taken in where ``evaluate`` has made them.
        file: the new ``.safetensors`` file.
        cohort: the cohorts that the run was trained on, for tracers, scanners and the range of voxel sizes.
        licence: of the weights, as their owner states it.

    Raises:
        InputError: CFG_OUTPUT, DISK_EXISTS; CKPT_NONE, CKPT_DAMAGED, CKPT_PROOF; SET_CASE_CHANGED, SET_CASE_REMOVED
            where the cohorts are not the run's; SET_EVALUATION.

    >>> petscale.card(run, "card.safetensors", ["cohort"]).name
    'card.safetensors'
    """
    from petscale.cards.making import make_card

    folders = [one.folder if isinstance(one, Cohort) else Path(one) for one in cohort]
    make_card(run.folder if isinstance(run, Run) else Path(run), Path(file), folders, licence=licence)
    return Path(file)


def apply(
    card: PathLike,
    scan: Image | PathLike,
    *,
    units: nifti.Units | None = None,
    drf: float | None = None,
    weight_kg: float | None = None,
    dose_mbq: float | None = None,
    injection_time: str | None = None,
) -> Image:
    """Estimate the full-dose PET of one scan by a file of ``card``, without any run or cohort.

    Args:
        card: the file, or the name of weights that come with petscale.
        scan: an image in SUVbw (or HU) in memory, a NIfTI file, or a DICOM series' folder.
        units: unit of a NIfTI PET; None: the file beside it is asked, then its values, which must leave no doubt.
        drf: dose reduction factor of the scan, where it is known.
        weight_kg: used instead of the header's, and for a NIfTI PET in Bq/mL.
        dose_mbq: used instead of the header's, and for a NIfTI PET in Bq/mL.
        injection_time: used instead of the header's.

    Returns:
        The estimate in SUVbw, 0 or above, (z, y, x), as ``synthesize`` gives it.

    Raises:
        InputError: CKPT_CARD, CKPT_DAMAGED, CFG_RECIPE; CKPT_DOSES; SET_WRONG_UNITS, IMG_VOXEL_SIZE or IMG_UNITS for a
            scan that is too different from those trained on; CFG_NO_EFFECT; and whatever is wrong with the scan.

    >>> low = petscale.open_cohort("cohort")["phantom-001"]["low_drf20"]
    >>> made = petscale.apply("card.safetensors", low)
    >>> bool((made.voxels == petscale.synthesize(run, low).voxels).all())
    True
    """
    from petscale.cards.applying import Reading, check_fits
    from petscale.cards.card import open_card
    from petscale.data.ingest import Files, open_ct, open_pet
    from petscale.inference import check_effect, synthesize_image

    file = located(Path(card))
    known, trained = open_card(file)
    overrides = suv.Overrides(weight_kg=weight_kg, dose_mbq=dose_mbq, injection_time=injection_time)
    check_fits(file.name, known, trained, Reading(units=units, overrides=overrides, drf=drf))
    check_effect(trained, overrides, image=None, stored=False, read=isinstance(scan, Image))
    dose = None if drf is None else Dose(drf, "thinned", None)
    with integrity.scratch() as scratch:
        if isinstance(scan, Image):
            if scan.units != trained.units:
                raise InputError(
                    "SET_WRONG_UNITS",
                    where="image",
                    found=f"in {scan.units}, these weights start from {trained.units}",
                    remedy="give the kind of scan that they were trained on, in that unit",
                )
            return Image.of(synthesize_image(trained, scan, scratch, dose=dose).mean)
        place = Path(scan)
        if trained.units == HU:
            return Image.of(synthesize_image(trained, open_ct(place, scratch), scratch, where=place.name).mean)
        source, _ = open_pet(Files(pet=place, units=units or "", overrides=overrides), scratch)
        return Image.of(synthesize_image(trained, source, scratch, where=place.name, dose=dose).mean)
