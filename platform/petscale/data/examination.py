"""One examination as files: which image is where, at which dose, and what is stated about it beside its headers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from storage import nifti, suv
from storage.frames import Wanted
from storage.label_maps import LabelFile
from storage.source import Dose, Interpolation

FULL = Dose(1.0, "full", None)


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What a table or a sidecar says of one scan, used for what the files themselves lack.

    Args:
        weight_kg: body weight.
        dose_mbq: activity given, at the time of injection unless ``uptake_s`` is None.
        injection_time: HH:MM[:SS] or an ISO date-time.
        uptake_s: from the injection to the time that the voxels are decay-corrected to; None where the dose is already
            that of this time.
        half_life_s: of the nuclide.
        origin: name of a value -> where it was read, for the record: ``table`` or ``sidecar``.
    """

    weight_kg: float | None = None
    dose_mbq: float | None = None
    injection_time: str | None = None
    uptake_s: float | None = None
    half_life_s: float | None = None
    origin: Mapping[str, str] = field(default_factory=dict)

    def for_header(self) -> suv.Stated:
        """Return what a DICOM header may lack."""
        return suv.Stated(self.weight_kg, self.dose_mbq, self.injection_time, self.half_life_s)


@dataclass(frozen=True, kw_only=True)
class FrameTimes:
    """What a sidecar says of the frames of a 4D NIfTI PET, in the order of its volumes.

    Args:
        starts_s: FrameTimesStart, s after its time zero; None where it is not stated.
        durations_s: FrameDuration; None where it is not stated.
        half_life_s: of its TracerRadionuclide.
    """

    starts_s: tuple[float, ...] | None = None
    durations_s: tuple[float, ...] | None = None
    half_life_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class OtherPet:
    """A PET of an examination beside its first.

    Args:
        path: DICOM folder or file, or NIfTI file.
        name: of the image in the case.
        dose: its counts beside the full dose's.
        choice: which of several series, as for ``storage.dicom.open_series``.
    """

    path: Path
    name: str
    dose: Dose
    choice: str = ""


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where the images of one examination are; each is a DICOM folder or file, or a NIfTI file.

    Args:
        pet: the first PET: the full dose, where there is one.
        name: what the case calls it.
        dose: its counts.
        others: low doses, repeats and other reconstructions.
        ct: CT of the same examination; may be the folder that holds the PET too.
        mask: lesion mask on the grid chosen; every value above 0 is lesion.
        labels: label maps, segmentations and structure sets on the grid chosen.
        boxes: folder of boxes around tumours in the CT's slices.
        grid: whose grid the case has.  ``pet``: the CT is resampled.  ``ct``: the PET is, and its maxima are no longer
            those of the reconstruction.
        other_grids: a PET on another grid than the first is refused, or resampled onto it.
        interpolation: how an image is resampled.
        units: unit of a NIfTI PET, empty where nobody has stated it; a DICOM series says its own.
        units_from: who states it: the user or a layout, the file beside the image, or the image's own values.
        overrides: weight, dose and injection time that stand instead of a DICOM header's.
        stated: what a table or a sidecar says.
        choices: ``pet`` or ``ct`` -> which of several series.
        tags: what else is known of the case and may be told.
        frames: which frames of a dynamic or gated PET make its images.
        frame_times: when those of a NIfTI PET were measured, where a layout has read it; None: its sidecar is asked.
    """

    pet: Path
    name: str = "full"
    dose: Dose = FULL
    others: tuple[OtherPet, ...] = ()
    ct: Path | None = None
    mask: Path | None = None
    labels: tuple[LabelFile, ...] = ()
    boxes: Path | None = None
    grid: Literal["pet", "ct"] = "pet"
    other_grids: Literal["refuse", "resample"] = "refuse"
    interpolation: Interpolation = "linear"
    units: nifti.Units | Literal[""] = ""
    units_from: Literal["user", "layout", "sidecar", "values"] = "user"
    overrides: suv.Overrides = field(default_factory=suv.Overrides)
    stated: Stated = field(default_factory=Stated)
    choices: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    frames: Wanted = field(default_factory=Wanted)
    frame_times: FrameTimes | None = None


@dataclass(frozen=True, kw_only=True)
class Examination:
    """One examination that a layout found.

    Args:
        key: what tells it from the others below the source; a case is named after it, hashed unless the user says that
            it identifies nobody.
        files: its images.
        patient: who the patient is where the files do not say it (NIfTI); hashed before it is stored.  Empty: unknown.
        excluded: why it is left out; empty for one that is not.
        doubts: what the user should look at.
    """

    key: str
    files: Files
    patient: str = ""
    excluded: str = ""
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tree:
    """What a layout found below a source.

    Args:
        examinations: sorted by key.
        passed_by: place -> why nothing was taken from there.
    """

    examinations: tuple[Examination, ...]
    passed_by: Mapping[str, str] = field(default_factory=dict)
