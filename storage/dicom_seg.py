"""DICOM segmentations (SEG): segments rasterised by highdicom as one label map, and names by their codes.

Binary, fractional and label-map objects are read.  The voxels are held in memory as uint16: highdicom unpacks whole
segments, and one volume of labels is half the size of its PET.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from storage.dicom_header import Header, items_of, text_of
from storage.errors import InputError
from storage.label_codes import names_of
from storage.label_names import DRAWN, known_name, listed
from storage.source import LABEL, Grid

if TYPE_CHECKING:  # highdicom takes a second to import, and only a SEG needs it
    from highdicom.seg import Segmentation

CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # Segmentation, Label Map Segmentation
GENERIC = ("", "tissue", "organ", "structure", "anatomical_structure", "morphologically_abnormal_structure")
FRACTION = 0.5  # of the highest fractional value: from here on a voxel belongs to its segment
OFF_PLACE = 0.1  # of a voxel: a SEG has the true place of every slice, the grid of a series their mean spacing
MAX_VOXELS = 1 << 30


@dataclass(frozen=True, eq=False)
class SegSource:
    """A SEG as an ``ImageSource``: values are segment numbers.

    ``names`` holds a name for every segment, also for an empty one, and ``drawn`` one of the words ``DRAWN`` where the
    file says how it was drawn.  ``frame_of_reference`` is only to be compared.
    """

    grid: Grid
    voxels: NDArray[np.uint16] = field(repr=False)
    names: Mapping[int, str]
    notes: tuple[str, ...]
    frame_of_reference: str = field(repr=False)
    drawn: Mapping[int, str]
    units: str = LABEL
    provenance: Mapping[str, object] = field(default_factory=lambda: {"format": "dicom seg"})

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        """Return the slab ``z0 <= z < z1`` as (z, y, x)."""
        return np.ascontiguousarray(self.voxels[z0:z1], dtype=np.float32)


def open_seg(path: Path, *, wanted: Mapping[int, str] | None = None) -> SegSource:
    """Read a SEG as a label map.

    Where segments overlap the smaller one keeps the voxel, so that a lesion inside an organ is seen; a note says how
    many voxels that was.  A segment is named by the code of its type and the side that modifies it: as
    ``label_codes`` does, else by their meanings; where the type is only a tissue or an organ, by its label, if that is
    made of words of anatomy; else ``segment_<number>``.

    Args:
        wanted: segment number -> name; names that stand instead of the file's, other segments are left out.

    Raises:
        InputError: ``LBL_SEG`` for a file that is not one volume of segments.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote values of the header
            return _read(path, wanted)
    except InputError:
        raise
    except MemoryError:
        raise _error(path, "more voxels than fit into memory") from None
    except Exception:  # highdicom and pydicom have many errors for what they cannot read, and quote values in them
        raise _error(path, "segments that do not make one volume, or a damaged file") from None


def _read(path: Path, wanted: Mapping[int, str] | None) -> SegSource:
    import highdicom

    seg = highdicom.seg.segread(path)
    geometry = seg.get_volume_geometry(rtol=OFF_PLACE)
    if geometry is None:
        raise _error(path, "slices that are not evenly spaced, or a tiled image")
    if int(np.prod(geometry.spatial_shape)) > MAX_VOXELS:
        raise _error(path, "more voxels than a PET has")
    lps = np.asarray(geometry.affine, dtype=np.float64)[:, [2, 1, 0, 3]]  # highdicom's index is (slice, row, column)
    z, y, x = geometry.spatial_shape
    grid = Grid((z, y, x), np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)
    own = _names(seg)
    if not own:
        raise _error(path, "no segment at all")
    names = own if wanted is None else {number: name for number, name in wanted.items() if number in own}
    left_out = sorted(own.keys() - names.keys())
    if not names:
        raise InputError(
            "LBL_VALUES",
            where=path.name,
            found=f"none of the names given for segments {listed(left_out)}",
            remedy="name segments by their number, as 1=liver,2=brain",
        )
    sizes = {number: int(np.count_nonzero(mask)) for number, mask in _masks(seg, sorted(names))}
    voxels = np.zeros(grid.shape, dtype=np.uint16)
    for number, mask in _masks(seg, sorted(names, key=lambda n: (-sizes[n], n))):
        voxels[mask] = number
    shared = sum(sizes.values()) - int(np.count_nonzero(voxels))
    notes = [f"segments without a name are left out: {listed(left_out)}"] if left_out else []
    if shared:
        notes.append(f"segments overlap: {shared} voxels went to the smaller segment")
    if str(seg.SegmentationType) == "FRACTIONAL":
        notes.append(f"fractional segments: {FRACTION:g} of the highest value and more is inside")
    said = {int(item.SegmentNumber): text_of(item, "SegmentAlgorithmType") for item in seg.SegmentSequence}
    drawn = {number: said[number] for number in names if said[number] in DRAWN}
    return SegSource(grid, voxels, names, tuple(notes), text_of(seg, "FrameOfReferenceUID"), drawn)


def _masks(seg: "Segmentation", numbers: list[int]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Each segment's voxels (z, y, x), one at a time."""
    if str(seg.segmentation_type.value) == "LABELMAP":
        labels = seg.get_volume(combine_segments=True, rtol=OFF_PLACE).array
        for number in numbers:
            yield number, labels == number
        return
    for number in numbers:
        # One segment alone is 0 or 1, and a fraction of the highest value if it is fractional.
        yield number, seg.get_volume(segment_numbers=[number], rtol=OFF_PLACE).array[..., 0] >= FRACTION


def _names(seg: "Segmentation") -> dict[int, str]:
    found = {}
    for number in seg.segment_numbers:
        segment = next(item for item in seg.SegmentSequence if item.SegmentNumber == number)
        name = _coded_name(segment)
        if name in GENERIC:
            name = known_name(text_of(segment, "SegmentLabel"))
        found[int(number)] = name or f"segment_{number}"
    found.pop(0, None)  # background, in some label maps
    return found


def _coded_name(segment: Header) -> str:
    """``kidney_right`` of the type Kidney, modified by Right.

    Of several names of one code the segment's label chooses, then the meaning: Bladder is ``bladder`` as well as
    ``urinary_bladder``.
    """
    for kind in items_of(segment, "SegmentedPropertyTypeCodeSequence"):
        sides = items_of(kind, "SegmentedPropertyTypeModifierCodeSequence")
        meant = known_name(" ".join(text_of(code, "CodeMeaning") for code in (kind, *sides)))
        value = text_of(kind, "CodeValue") or text_of(kind, "LongCodeValue")
        side = " ".join(text_of(code, "CodeValue") for code in sides)
        names = names_of(text_of(kind, "CodingSchemeDesignator"), value, side)
        preferred = (text_of(segment, "SegmentLabel"), meant)
        return next((name for name in preferred if name in names), names[0] if names else meant)
    return ""


def _error(path: Path, found: str) -> InputError:
    return InputError(
        "LBL_SEG", where=path.name, found=found, remedy="save the segmentation on the slices of the PET, or as NIfTI"
    )
