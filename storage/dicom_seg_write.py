"""DICOM segmentations (SEG) out: a label map of a cohort over the series that one of its images is exported as.

The voxels are held in memory, at most two bytes each; the file has a bit per voxel of every slice that a segment is in.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid

from storage.dicom_write import (
    NO_HEADER,
    UNKNOWN_DATE,
    UNKNOWN_TIME,
    StoredSeries,
    save_instance,
    series_description,
)
from storage.errors import InputError
from storage.integrity import whole_folder
from storage.label_codes import SNOMED, code_of
from storage.source import ImageSource

FILE = "00001.dcm"
SERIES_NUMBER = 2  # that of the series it lies over is 1
NOT_KNOWN = "not known: labels were given"
MANUAL = "MANUAL"
ACQUIRED = "109101"  # highdicom takes the maker of the slices for their scanner (PS3.16 CID 7005)
SLAB = 16  # slices read at once


@dataclass(frozen=True)
class StoredLabels:
    """What is to be said of a label map.

    Args:
        labels: whole numbers, 0 where nothing is labelled.
        names: value -> name; values without a name are called ``segment_<value>``.
        content: what tells the map from all other images of its scan, for instance a digest.
        description: what it is, a few words.
        algorithm: what drew it, where that is known to be a program.
        drawn: name -> one of ``DRAWN``, for names of which that is known.
    """

    labels: ImageSource
    names: Mapping[int, str]
    content: str
    description: str
    algorithm: str = NOT_KNOWN
    drawn: Mapping[str, str] = field(default_factory=dict)


def write_seg(folder: Path, marked: StoredLabels, over: StoredSeries) -> dict[int, str]:
    """Write a label map as one binary SEG with a segment per value, in study and frame of reference of a series.

    Segments are numbered from 1 in the order of the values, as DICOM demands, and coded by ``label_codes``.  A name
    without a voxel stays as a segment without one.  DICOM has no word for an unknown origin: where it is not known who
    drew a segment it is ``AUTOMATIC``, by an algorithm that is not known.  Equal arguments give equal files.

    Args:
        folder: to be created, with one file; it appears only when that is whole.
        over: the series whose slices are referred to, on the grid of the labels; it need not have been written.

    Returns:
        Segment number -> name.

    Raises:
        InputError: ``LBL_VALUES`` where there is neither a name nor a voxel, ``DISK_EXISTS``.
        ValueError: the series has another grid.
    """
    import highdicom  # takes a second

    if not marked.labels.grid.matches(over.source.grid):
        raise ValueError("a segmentation lies on the grid of its series")
    voxels, names = _segments(marked)
    if not names:
        raise InputError(
            "LBL_VALUES",
            where=marked.description,
            found="neither a name nor a voxel above 0: a segmentation needs a segment",
            remedy="name an image that has labels; a .nii.gz file may be empty",
        )
    slices = [over.header(z) for z in range(over.source.grid.shape[0])]
    ours = version("petscale")  # which the file states, so that another version's has other identifiers
    entropy = [over.scan, over.content, marked.content, marked.description, ours]
    with warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")  # on a map without a voxel
        seg = highdicom.seg.Segmentation(
            slices,
            voxels,
            highdicom.seg.SegmentationTypeValues.BINARY,
            [_described(number, name, marked) for number, name in names.items()],
            UID(generate_uid(entropy_srcs=[*entropy, "series"])),
            SERIES_NUMBER,
            UID(generate_uid(entropy_srcs=[*entropy, "instance"])),
            1,
            "petscale",
            "petscale",
            ours,
            "none",
            content_description="labels",
            content_label="LABELS",
            series_description=series_description(marked.description),
        )
    _without_chance(seg, entropy)
    with whole_folder(folder) as partial:
        save_instance(seg, partial / FILE)
    return names


def _segments(marked: StoredLabels) -> tuple[NDArray[np.uint16], dict[int, str]]:
    """The map (z, y, x) with values from 1 on without a gap, and their names."""
    shape = marked.labels.grid.shape
    voxels = np.empty(shape, dtype=np.uint16)
    for z in range(0, shape[0], SLAB):
        voxels[z : z + SLAB] = marked.labels.read(z, min(z + SLAB, shape[0]))
    values = sorted({int(v) for v in np.unique(voxels) if v} | marked.names.keys())
    number = np.zeros(max(values, default=0) + 1, dtype=np.uint16)
    number[values] = np.arange(1, len(values) + 1)
    names = {n: marked.names.get(value, f"segment_{value}") for n, value in enumerate(values, start=1)}
    return number[voxels], names


def _described(number: int, name: str, marked: StoredLabels) -> Dataset:
    import highdicom

    code = code_of(name)
    concept = highdicom.sr.CodedConcept
    category = concept(code.category[0], SNOMED, code.category[1])
    kind = concept(code.kind[0], code.scheme, code.kind[1])
    segment: Dataset = highdicom.seg.SegmentDescription(number, name, category, kind, MANUAL)
    if code.side is not None:
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [concept(code.side[0], SNOMED, code.side[1])]
    segment.SegmentAlgorithmType = marked.drawn.get(name, "AUTOMATIC")
    if segment.SegmentAlgorithmType != MANUAL:
        segment.SegmentAlgorithmName = marked.algorithm
    return segment


def _without_chance(seg: Dataset, entropy: list[str]) -> None:
    """Put what is known, or nothing, in place of the moment and of identifiers at random."""
    organization = generate_uid(entropy_srcs=[*entropy, "dimensions"])
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    for part in ("Content", "Series", "Study"):
        setattr(seg, f"{part}Date", UNKNOWN_DATE)
        setattr(seg, f"{part}Time", UNKNOWN_TIME)
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        seg.pop(keyword, None)
    equipment = [
        item for item in seg.ContributingEquipmentSequence if item.PurposeOfReferenceCodeSequence[0].value != ACQUIRED
    ]
    for item in equipment:
        item.pop("ContributionDateTime", None)
    seg.ContributingEquipmentSequence = equipment
    seg.PatientIdentityRemoved, seg.DeidentificationMethod = "YES", NO_HEADER
