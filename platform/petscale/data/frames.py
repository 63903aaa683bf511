"""The images that are made of the frames of one dynamic or gated PET: of a DICOM series or a 4D NIfTI file."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from petscale.data.examination import Files
from petscale.data.sidecars import times_beside, wrong
from storage import dicom_dynamic, nifti, notes
from storage.errors import InputError
from storage.frames import CHOOSE, FrameImage, FrameSum, Timing, images_of, told_durations
from storage.source import Dose, Grid, ImageSource


@dataclass(frozen=True)
class Opened:
    """Images of one examination that are made of frames.

    Args:
        images: name -> source; the first is the full dose, or the only image.
        doses: of each.
        patient: ID of a DICOM series; empty for NIfTI.
    """

    images: Mapping[str, ImageSource]
    doses: Mapping[str, Dose]
    patient: str


@dataclass(frozen=True)
class Expected:
    """What is known of such images by headers and sidecars alone: name -> dose, and the grid of all."""

    doses: Mapping[str, Dose]
    grid: Grid


def open_dicom(files: Files) -> Opened:
    """Open images of the frames of a DICOM series, as ``storage.dicom_dynamic.open_frames``; no voxel is read yet.

    Raises:
        InputError: of the series, its values and the choice of frames; CFG_CONTRADICTION.
    """
    _check_alone(files)
    found = dicom_dynamic.open_frames(
        files.pet,
        files.frames,
        overrides=files.overrides,
        stated=files.stated.for_header(),
        choice=files.choices.get("pet", ""),
    )
    named = {image.name or files.name: (image, source) for image, source in found}
    return Opened(
        {name: source for name, (_, source) in named.items()},
        {name: image.dose or files.dose for name, (image, _) in named.items()},
        found[0][1].patient_id,
    )


def open_nifti(files: Files, scratch: Path, scale: float, facts: Mapping[str, object]) -> Opened:
    """Open images of the volumes of a 4D NIfTI file in SUVbw; each volume is read from the file when it is needed.

    Args:
        scale: SUVbw per unit of the file.
        facts: for the provenance of every image.

    Raises:
        InputError: of the file, its sidecar and the choice of frames; CFG_CONTRADICTION.
    """
    order, images = _chosen(files, nifti.volumes_of(files.pet))
    assert files.units
    volumes = nifti.open_volumes(files.pet, units=files.units, workdir=scratch, scale=scale)

    def source(image: FrameImage) -> ImageSource:
        parts = tuple(volumes[order[n]] for n in image.used)
        noted = (*notes.of(parts[0].provenance), *notes.of(facts), *image.notes)
        own = {"frames": dict(image.facts), "notes": [*noted]}
        return FrameSum(parts, tuple(float(s) for s in image.shares[:, 0]), {**parts[0].provenance, **facts, **own})

    return Opened(
        {image.name or files.name: source(image) for image in images},
        {image.name or files.name: image.dose or files.dose for image in images},
        "",
    )


def expect_nifti(files: Files) -> Expected:
    """Return what a 4D NIfTI file will be opened as; its header and sidecar are read, no voxel.

    Raises:
        InputError: as ``open_nifti``, of headers.
    """
    volumes = nifti.volumes_of(files.pet)
    _, images = _chosen(files, volumes)
    return Expected({image.name or files.name: image.dose or files.dose for image in images}, volumes.grid)


def with_durations(error: InputError, files: Files) -> InputError:
    """Return the refusal of a 4D NIfTI PET with how long its frames are, where its sidecar says it, and the choice.

    Any other error is returned as it is.
    """
    if error.code != "NII_4D":
        return error
    try:
        volumes = nifti.volumes_of(files.pet)
        timing = _timing(files, volumes)[1]
    except InputError:
        return error
    durations = [None if np.isnan(d) else float(d) for d in timing.durations_s[:, 0]]
    return InputError("NII_4D", where=error.where, found=told_durations(volumes.count, durations), remedy=CHOOSE)


def _chosen(files: Files, volumes: nifti.Volumes) -> tuple[list[int], tuple[FrameImage, ...]]:
    _check_alone(files)
    if volumes.count == 1:
        raise InputError(
            "CFG_NO_EFFECT",
            where="--frames" if files.frames.frames else "--frame-pairs",
            found=f"{files.pet.name} holds a single volume",
            remedy="leave it out",
        )
    order, timing = _timing(files, volumes)
    return order, images_of(files.frames, timing, files.pet.name)


def _timing(files: Files, volumes: nifti.Volumes) -> tuple[list[int], Timing]:
    """The volumes in order of time, and when they were measured: by the sidecar, else by the header's time step.

    Raises:
        InputError: BIDS_SIDECAR for a list of another length.
    """
    count = volumes.count
    said = files.frame_times if files.frame_times is not None else times_beside(files.pet)
    for name, stated in (("FrameTimesStart", said.starts_s), ("FrameDuration", said.durations_s)):
        if stated is not None and len(stated) != count:
            found = f"{len(stated)} values for {count} volumes"
            raise wrong(f"{files.pet.name}, sidecar, {name}", found, "state one value in s for every volume")
    if said.starts_s is None and said.durations_s is None and volumes.step_s:
        steps = volumes.step_s * np.arange(count)
        said = replace(said, starts_s=tuple(steps), durations_s=(volumes.step_s,) * count)
    starts, durations = (
        np.full(count, np.nan) if stated is None else np.array(stated) for stated in (said.starts_s, said.durations_s)
    )
    order = np.argsort(starts, kind="stable")  # unknown starts stay in the file's order
    first = float(starts[order[0]])
    return [int(n) for n in order], Timing(
        (starts[order] - first)[:, None], durations[order][:, None], files.stated.half_life_s or said.half_life_s
    )


def _check_alone(files: Files) -> None:
    """Refuse low doses of their own files beside low doses made of frames.

    Raises:
        InputError: CFG_CONTRADICTION.
    """
    if files.others:
        raise InputError(
            "CFG_CONTRADICTION",
            where="--frames" if files.frames.frames else "--frame-pairs",
            found=f"{files.pet.name} has {len(files.others)} low doses beside it, whose frames are not chosen by it",
            remedy="give the full dose's file alone (without --layout), or save the frames of all as 3D files",
        )
