"""What a user says of a source beside where it is: options of ``petscale ingest``, the same in a cohort's recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from storage import nifti, suv
from storage.errors import InputError
from storage.frames import Wanted
from storage.label_maps import LabelMap
from storage.label_names import names_from
from storage.layout import low_name
from storage.source import Dose, Interpolation

Relation = Literal["thinned", "separate"]
OTHERS = ("full", "truth", "ct", "labels", "body")  # images of a case that are no low dose


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of one source.

    Args:
        pet: name or pattern of the PET of the full dose.
        low: ``DRF=name or pattern`` of each low dose; a word in place of the DRF names an image of unknown DRF.
        ct: name or pattern of the CT.
        mask: name or pattern of the lesion mask.
        labels: name or pattern of a label map, a segmentation or a structure set.
        label_names: what its values are called, as for ``storage.label_names.names_from``; empty: what the file says.
        relation: ``thinned``: the low doses hold a part of the full dose's own counts.  ``separate``: other scans.
        patient: who the patient is; in a pattern, the wildcard that names the patient.
        series: ``pet=3``, ``ct=soft``, ``low_drf20=5``: which of several DICOM series.
        grid: whose grid a case has.
        other_grids: what becomes of a low dose on another grid than the full dose's.
        interpolation: how an image is put on another grid.
        units: unit of NIfTI PETs; empty: not stated.
        exclude: examinations to leave out, by their name in the source.
        keep: examinations that a layout's own list leaves out and that are wanted.
        overrides: values that stand instead of the headers', for one patient.
        frames: of a dynamic or gated PET: ``3``, ``3-6``, ``1,3-5`` or ``all``; several are summed.
        frame_pairs: frames that are a low dose each, beside a full dose of all the others.
    """

    pet: str = ""
    low: tuple[str, ...] = ()
    ct: str = ""
    mask: str = ""
    labels: str = ""
    label_names: str = ""
    relation: Relation = "thinned"
    patient: str = ""
    series: tuple[str, ...] = ()
    grid: Literal["pet", "ct"] = "pet"
    other_grids: Literal["refuse", "resample"] = "refuse"
    interpolation: Interpolation = "linear"
    units: nifti.Units | Literal[""] = ""
    exclude: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    overrides: suv.Overrides = field(default_factory=suv.Overrides)
    frames: str = ""
    frame_pairs: tuple[str, ...] = ()

    @property
    def wanted(self) -> Wanted:
        """Which frames make which images."""
        return Wanted(self.frames, self.frame_pairs)

    def lows(self) -> dict[str, tuple[str, Dose]]:
        """Return image name -> (name or pattern of its files, its dose).

        Raises:
            InputError: CFG_LOW.
        """
        found: dict[str, tuple[str, Dose]] = {}
        for text in self.low:
            key, equals, where = text.partition("=")
            drf = number(key)
            if not equals or not where or (drf is not None and drf <= 1) or key in OTHERS or key in found:
                raise InputError(
                    "CFG_LOW",
                    where="--low",
                    found=f"'{text}'",
                    remedy="write DRF=name, for instance --low '20=1-20 dose', the DRF above 1; a word in its place "
                    "must be no other image's name",
                )
            if drf is None:
                name, dose = key, Dose(float("nan"), self.relation, self.relation == "thinned")
            else:
                draw = sum(1 for other in found if other.partition("_r")[0] == low_name(drf))
                name, dose = low_name(drf, draw), dose_of(drf, self.relation)
            found[name] = (where, dose)
        return found

    def label_maps(self, path: Path | None) -> tuple[LabelMap, ...]:
        """Return the label map of an examination, its values named; nothing where it has none.

        Raises:
            InputError: ``LBL_NAMES`` and its kin.
        """
        if path is None:
            return ()
        return (LabelMap(path, names_from(self.label_names, where="--names") if self.label_names else None),)

    def choices(self) -> Mapping[str, str]:
        """Return image -> which of several series.

        Raises:
            InputError: CFG_SERIES.
        """
        pairs = [text.partition("=") for text in self.series]
        for text, (name, equals, choice) in zip(self.series, pairs, strict=True):
            if not equals or not name or not choice:
                raise InputError(
                    "CFG_SERIES", where="--series", found=f"'{text}'", remedy="write image=number, as --series pet=3"
                )
        return {name: choice for name, _, choice in pairs}


def dose_of(drf: float, relation: Relation) -> Dose:
    """Return the dose of a low-dose image."""
    return Dose(drf, relation, relation == "thinned")


def number(text: str) -> float | None:
    """Return a text as a finite number, None where it is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def case_naming(names: Sequence[str]) -> Literal["hash", "folder"]:
    """Return how ``--names`` names cases: by a keyed hash unless ``folder`` is among its words."""
    return "folder" if "folder" in names else "hash"


def label_names(names: Sequence[str]) -> str:
    """Return what ``--names`` says of labels: all its words but those about cases."""
    return ",".join(name for name in names if name not in ("hash", "folder"))
