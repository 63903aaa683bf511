"""BIDS-PET: ``sub-01/ses-1/pet/sub-01_ses-1_trc-FDG_pet.nii.gz`` with its JSON sidecar, and ``participants.tsv``.

A raw BIDS PET is in Bq/mL.  The sidecar states the activity given, when, and the time that the voxels are corrected to;
the weight stands in ``participants.tsv``.  A sidecar nearer to the image stands above one farther up (inheritance).
A reconstruction of fewer counts is told by its ``rec`` or ``desc`` entity (``rec-drf20``).
"""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from petscale.data.examination import FULL, Examination, Files, OtherPet, Stated, Tree
from petscale.data.layouts.options import Options, dose_of
from petscale.data.sidecars import frame_times, stated_by, unit_of, wrong
from petscale.data.table import apply_table, read_table
from storage import dicom_words
from storage.errors import InputError
from storage.layout import low_name

PET = re.compile(r"(?P<stem>sub-[A-Za-z0-9]+(_[a-z]+-[A-Za-z0-9]+)*)_pet\.nii(\.gz)?")
RECONSTRUCTION = re.compile(r"_(?:rec|desc)-(?:acdyn|acstat)?(?P<kind>[A-Za-z]*?)(?P<drf>\d+)?(?=_|$)")


def bids(root: Path, options: Options) -> Tree:
    """Find the PET scans of a BIDS data set; derivatives are not searched.

    Raises:
        InputError: IMG_NO_FILE, SET_NO_PET, BIDS_SIDECAR; those of ``petscale.data.table``.
    """
    if not root.is_dir():
        raise InputError("IMG_NO_FILE", where=root.name, found="no such folder", remedy="name an existing folder")
    groups: dict[str, dict[float, Path]] = defaultdict(dict)
    passed_by: dict[str, str] = {}
    for path in sorted(root.glob("sub-*/**/*_pet.nii*")):
        if not (match := PET.fullmatch(path.name)):
            passed_by[path.relative_to(root).as_posix()] = "not named as BIDS names a PET"
            continue
        stem, drf = _dose(match["stem"])
        if drf in groups[stem]:
            passed_by[path.name] = f"a second image of DRF {drf:g}"
            continue
        groups[stem][drf] = path
    if not groups:
        raise InputError(
            "SET_NO_PET", where=root.name, found="no sub-*/**/*_pet.nii.gz", remedy="give the folder of the data set"
        )
    tree = Tree(tuple(_examination(root, stem, images, options) for stem, images in sorted(groups.items())), passed_by)
    participants = root / "participants.tsv"
    return apply_table(tree, read_table(participants)) if participants.is_file() else tree


def _dose(stem: str) -> tuple[str, float]:
    """A name without the entity that tells its dose, and the dose reduction factor."""
    for found in RECONSTRUCTION.finditer(stem):
        kind = found["kind"].lower()
        if found["drf"] and kind in ("drf", "d", "dose", "lowdosedrf"):
            return stem[: found.start()] + stem[found.end() :], float(found["drf"])
        if not found["drf"] and kind in ("full", "fulldose", "normal"):
            return stem[: found.start()] + stem[found.end() :], 1.0
    return stem, 1.0


def _examination(root: Path, stem: str, images: dict[float, Path], options: Options) -> Examination:
    first = min(images)
    sidecar = _sidecar(root, images[first])
    units = unit_of(f"{images[first].name}, Units", sidecar)
    others = tuple(
        OtherPet(path=images[drf], name=low_name(drf), dose=dose_of(drf, options.relation))
        for drf in sorted(images)
        if drf != first
    )
    folder = images[first].parent.parent
    ct = next(iter(sorted(folder.glob("ct/*_ct.nii*"))), None)
    tracer = dicom_words.tracer(str(sidecar.get("TracerName", "")))
    files = Files(
        pet=images[first],
        name="full" if first == 1.0 else low_name(first),
        dose=FULL if first == 1.0 else dose_of(first, options.relation),
        others=others,
        ct=ct,
        grid=options.grid,
        other_grids=options.other_grids,
        units=units,  # type: ignore[arg-type]
        overrides=options.overrides,
        frames=options.wanted,
        frame_times=frame_times(f"{images[first].name}, sidecar", sidecar) if options.wanted else None,
        stated=stated_by(f"{images[first].name}, sidecar", sidecar) if units == "Bq/mL" else Stated(),
        tags={"tracer": tracer} if tracer else {},
    )
    return Examination(key=stem, files=files, patient=stem.split("_")[0])


def _sidecar(root: Path, image: Path) -> dict[str, Any]:
    """All that JSON files say of an image: of its own name, and above it of a name whose entities are among its own.

    Raises:
        InputError: BIDS_SIDECAR where none is there or one cannot be read.
    """
    entities = set(re.sub(r"\.nii(\.gz)?$", "", image.name).split("_"))
    folders = [image.parent, *image.parent.parents]
    folders = folders[: folders.index(root) + 1]
    said: dict[str, Any] = {}
    for folder in reversed(folders):
        for path in sorted(folder.glob("*pet.json"), key=lambda path: len(path.name)):
            if set(path.stem.split("_")) <= entities:
                try:
                    content = json.loads(path.read_text("utf-8-sig"))
                    said |= content
                except (ValueError, TypeError):
                    raise wrong(path.name, "no JSON object", "write it again") from None
    if not said:
        raise wrong(image.name, "no JSON sidecar beside it", "a BIDS PET needs one: it states unit, dose and times")
    return said
