"""``petscale apply``: a card and scans in, a folder with an estimate of every scan out; no run and no cohort is needed.

A scan is a NIfTI file or the folder of one DICOM series, and comes back under its name, in the same kind of file.  Its
unit is found as ``petscale ingest`` finds it.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from petscale.batch import Work, make_all, read_record
from petscale.cards.card import Card, open_card
from petscale.console import console
from petscale.data.examination import Examination, Files, Tree
from petscale.data.ingest import content_digest, is_nifti
from petscale.data.table import Table, apply_table
from petscale.inference import Trained, check_effect, synthesize_ct, synthesize_pet
from petscale.plausibility import DOSE_WARNING, tell
from storage import nifti, suv
from storage.errors import InputError, no_file, printable
from storage.source import HU, Dose


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How scans are to be read.

    Args:
        units: of every NIfTI PET; None: what the file beside it says, else what its values leave no doubt of.
        overrides: weight, dose and injection time of the one scan.
        table: these of several scans, by name of file or folder.
        drf: dose reduction factor of all scans, above 1; None where it is not known.
    """

    units: nifti.Units | None = None
    overrides: suv.Overrides = field(default_factory=suv.Overrides)
    table: Table | None = None
    drf: float | None = None


def apply_card(file: Path, scans: Sequence[Path], output: Path, reading: Reading) -> list[Path]:
    """Estimate the full dose of scans, or the PET of CTs; run it again to continue.

    Args:
        file: a card.
        scans: NIfTI files and folders of one DICOM series each.
        output: a new or empty folder, or one that the same card was applied into.

    Returns:
        The results, in the order of ``scans``.

    Raises:
        InputError: those of ``open_card``; SET_NO_CT for a network that sees a CT beside the PET; CKPT_DOSES for a
            stated dose outside those trained on; CFG_RANGE, CFG_NO_EFFECT, CFG_MANY_PATIENTS; IMG_NO_FILE,
            SET_CASE_COLLISION; CFG_OUTPUT, DISK_EXISTS: all before a voxel is read.  Then what is wrong with the one
            scan, or SET_REFUSED where some of several were refused.
    """
    card, trained = open_card(file)
    check_fits(file.name, card, trained, reading)
    names = [_result(scan) for scan in _checked(scans, output, reading)]
    there = [path.name for path in output.iterdir() if path.name[0] != "."] if output.is_dir() else []
    record = read_record(output, trained.weights, [*names, *there])
    works = [
        Work(name, _wanted(files, reading), partial(_apply, card, trained, files, reading.drf))
        for name, files in zip(names, _files(scans, reading), strict=True)
    ]
    return make_all(output, works, record)


def check_fits(name: str, card: Card, trained: Trained, reading: Reading) -> None:
    """Refuse weights that need more than a scan, and what was said of scans and does not fit them.

    Raises:
        InputError: SET_NO_CT, CFG_NO_EFFECT, CFG_RANGE, CKPT_DOSES.
    """
    if trained.on.beside:
        raise InputError(
            "SET_NO_CT",
            where=name,
            found=f"a network that sees {', '.join(trained.on.beside)} beside the scan",
            remedy="use petscale synthesize with its run, and a cohort that holds both",
        )
    check_effect(trained, reading.overrides, image=None, stored=False)
    pet_alone = {"--units": reading.units, "--table": reading.table, "--drf": reading.drf}
    if trained.units == HU and (given := [option for option, value in pet_alone.items() if value is not None]):
        raise InputError("CFG_NO_EFFECT", where=given[0], found="these weights start from HU", remedy="leave it out")
    if reading.drf is None:
        return
    if not 1 < reading.drf < math.inf:
        raise InputError("CFG_RANGE", where="--drf", found=f"{reading.drf:g}", remedy="give a factor above 1")
    known = [drf for drf in card.drfs if not math.isnan(drf)]
    most = 1 + DOSE_WARNING
    if known and len(known) == len(card.drfs) and not min(known) / most <= reading.drf <= max(known) * most:
        raise InputError(
            "CKPT_DOSES",
            where=name,
            found=f"trained at dose reduction factor {', '.join(f'{drf:g}' for drf in sorted(known))}, and --drf is "
            f"{reading.drf:g}",
            remedy="use weights that were trained at the scans' dose",
        )


def _checked(scans: Sequence[Path], output: Path, reading: Reading) -> Sequence[Path]:
    """The scans, all of them there and each with a result of its own."""
    if not scans:
        raise InputError(
            "CFG_RANGE", where="SCAN", found="no scan", remedy="name NIfTI files, or folders of one DICOM series each"
        )
    for scan in scans:
        if not scan.exists():
            raise no_file(scan)
        if scan.is_dir() and output.resolve().is_relative_to(scan.resolve()):
            raise InputError(
                "CFG_OUTPUT", where=output.name, found="inside a scan's folder", remedy="name a folder elsewhere"
            )
    counts = Counter(_result(scan).casefold() for scan in scans)
    if twice := [_result(scan) for scan in scans if counts[_result(scan).casefold()] > 1]:
        raise InputError(
            "SET_CASE_COLLISION",
            where=twice[0],
            found=f"{len(twice)} scans whose results would have one name",
            remedy="apply the weights to each with an --output of its own, or rename files or folders",
        )
    given = [name for name, value in vars(reading.overrides).items() if value is not None]
    if given and len(scans) > 1:
        raise InputError(
            "CFG_MANY_PATIENTS",
            where=f"--{given[0].replace('_', '-')}",
            found=f"one value for {len(scans)} scans",
            remedy="give a --table with a row per file, or one scan at a time",
        )
    if reading.units and not any(map(is_nifti, scans)):
        raise InputError(
            "CFG_NO_EFFECT",
            where="--units",
            found="no NIfTI file: DICOM series state their own unit",
            remedy="leave it out",
        )
    return scans


def _result(scan: Path) -> str:
    """Name of a scan's result: a file's as it is, a folder for DICOM."""
    name = scan.name or scan.resolve().name
    return Path(name).stem if scan.is_file() and not is_nifti(scan) else name


def _files(scans: Sequence[Path], reading: Reading) -> list[Files]:
    """How each scan is opened: its unit where it is NIfTI, and what the table says of it.

    Raises:
        InputError: TAB_NO_MATCH and its kin.
    """
    found = []
    for scan in scans:
        units = reading.units or "" if is_nifti(scan) else ""
        files = Files(pet=scan, units=units, overrides=reading.overrides)
        found.append(Examination(key=_result(scan), files=files))
    if reading.table is None:
        return [one.files for one in found]
    told = apply_table(Tree(tuple(found)), reading.table).examinations
    for one in told:
        for doubt in one.doubts:
            console.print(f"warning: {printable(one.key)}: {doubt}", markup=False, soft_wrap=True)
    return [one.files for one in told]


def _wanted(files: Files, reading: Reading) -> dict[str, object]:
    """What a result is made from."""
    stated = {name: value for name, value in asdict(files.stated).items() if value is not None and name != "origin"}
    given = {name: value for name, value in vars(files.overrides).items() if value is not None}
    return {
        "input": content_digest(files.pet),
        "units": files.units,
        "drf": reading.drf,
        "stated": {**stated, **given},
    }


def _apply(card: Card, trained: Trained, files: Files, drf: float | None, place: Path) -> None:
    """Write one result, and tell what cannot be checked: NIfTI files state no tracer, nor do some weights."""
    if trained.units == HU:
        synthesize_ct(trained, files.pet, place)
        return
    synthesize_pet(trained, files, place, dose=None if drf is None else Dose(drf, "thinned", None))
    seen = ", ".join([*card.tracers, *card.nuclides])
    said = ""
    if not seen:
        said = "nothing states on which tracer the weights were trained: see that it is this scan's"
    elif is_nifti(files.pet):
        said = f"a NIfTI file states no tracer, the weights were trained on {seen}: see that it is this"
    tell(files.pet.name, [said] if said else [])
