"""``petscale export``: one image of a case, of a cohort or of a run's results, as NIfTI, MHA, OME-Zarr or DICOM."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from petscale.data.ingest import is_nifti
from petscale.data.sidecars import sidecar_of
from petscale.folders import CONFIG, SYNTHESIS
from storage import dicom_seg_write, layout, mha, nifti, ome_zarr
from storage.dicom_write import StoredSeries, write_stored_series
from storage.errors import InputError
from storage.integrity import check_new, disk_errors, manifest, write_json
from storage.reader import Case, open_cohort
from storage.source import HU, LABEL, SUV

DEFAULT = "full"
LABELS = "labels"
MHA, ZARR = ".mha", ".zarr"
BODY = "body"  # every case has one; it is exported when it is named
PETSCALE = "petscale"


def export_image(folder: Path, case: str, file: Path, image: str = "") -> tuple[Path, ...]:
    """Write one image of a case in its own unit and on its own grid; nothing is resampled.

    A NIfTI file holds no unit: a JSON file beside it states it, and the names of labels.  An OME-Zarr holds the
    labels of the case as well.  As DICOM labels are one segmentation (SEG), which refers to the slices of the case's
    ``full``, or of its first PET or CT, as they are written here.

    Args:
        folder: of a cohort, or of a run, for what it has synthesized.
        case: name of the case.
        file: a new ``.nii``, ``.nii.gz``, ``.mha`` or ``.zarr``, or a new folder for DICOM.
        image: name of the image; empty for ``full``, or the only one.

    Returns:
        What was written.

    Raises:
        InputError: SET_NO_CASE, SET_NO_IMAGE; IMG_FORMAT for another ending; LBL_VALUES for a SEG of nothing;
            DISK_EXISTS; STORE_NONE, STORE_DAMAGED; DISK_FULL and its kin.
    """
    beside = sidecar_of(file) if is_nifti(file) else None
    if beside is None and file.suffix.lower() not in ("", MHA, ZARR):
        raise InputError(
            "IMG_FORMAT",
            where=file.name,
            found=f"no format that is written ends in {file.suffix}",
            remedy="name a .nii, .nii.gz, .mha or .zarr, or for DICOM a folder, whose name has no dot",
        )
    for path in (file, beside):
        if path is not None:
            check_new(path, "FILE")
    held, name = _chosen(list(_cases(folder, case)), case, image)
    stored = held.image(name)
    labels = held.labels if name == LABELS else {}
    if beside is not None:
        nifti.write_nifti(file, stored.grid, stored.read)
        words = {str(value): label for value, label in labels.items()}
        write_json(beside, {"Units": stored.units, **({"Labels": words} if words else {})})
        return file, beside
    if file.suffix.lower() == MHA:
        facts = {"Units": stored.units, **{f"Label_{value}": label for value, label in labels.items()}}
        mha.write_mha(file, stored.grid, stored.read, layout.storage_dtype(stored.units), facts)
        return (file,)
    if file.suffix.lower() == ZARR:
        marked = held.image(LABELS) if name != LABELS and LABELS in held.images else None
        with disk_errors(file):
            ome_zarr.write_ome_zarr(file, name, stored, marked, held.labels if marked else labels)
        return (file,)
    with disk_errors(file):
        if stored.units == LABEL:
            dicom_seg_write.write_seg(file, _marked(held, name), _series(held, _beneath(held)))
        else:
            write_stored_series(file, _series(held, name))
    return (file,)


def _series(held: Case, image: str) -> StoredSeries:
    """An image as a series of the case's study, also one that a run has made."""
    scan = f"{held.subject} {held.name}"
    return StoredSeries(held.image(image), held.subject, held.name, scan, _content(held, image), f"image {image}")


def _marked(held: Case, image: str) -> dicom_seg_write.StoredLabels:
    stored = held.image(image)
    names = held.labels if image == LABELS else {1: BODY} if image == BODY else {}
    ours = image == BODY or "phantom" in str(stored.provenance.get("kind", ""))
    drawn = stored.provenance.get("drawn")
    return dicom_seg_write.StoredLabels(
        stored,
        names,
        _content(held, image),
        f"image {image}",
        PETSCALE if ours else dicom_seg_write.NOT_KNOWN,
        drawn if isinstance(drawn, Mapping) else {},
    )


def _content(held: Case, image: str) -> str:
    return f"{manifest(held.folder)['root']} {image}"


def _beneath(held: Case) -> str:
    """The image over which labels are shown."""
    by_unit = [name for unit in (SUV, HU) for name in held.images if held.image(name).units == unit]
    return DEFAULT if DEFAULT in by_unit else by_unit[0]


def _cases(folder: Path, case: str) -> Iterator[Case]:
    """The case in a cohort, or in each of the cohorts of results that a run has.

    Raises:
        InputError: SET_NO_CASE.
    """
    if not (folder / CONFIG).is_file():
        yield open_cohort(folder).case(case)
        return
    made = [open_cohort(path.parent) for path in sorted((folder / SYNTHESIS).glob("*/zarr.json"))]
    if not any(case in one.cases for one in made):
        there = sorted({name for one in made for name in one.cases})
        raise InputError(
            "SET_NO_CASE",
            where=f"case {case}",
            found=f"run {folder.name} has synthesized {', '.join(there) or 'no case'}",
            remedy="name one of these, or run petscale synthesize with --case first",
        )
    yield from (one.case(case) for one in made if case in one.cases)


def _chosen(held: list[Case], case: str, image: str) -> tuple[Case, str]:
    """The case that holds the image, and the image's name.

    Raises:
        InputError: SET_NO_IMAGE.
    """
    there = {name: one for one in held for name in one.images}
    shown = [name for name in there if name != BODY]
    if not image and DEFAULT not in there and len(shown) != 1:
        found, remedy = "several images and none is called full", "say which by --image"
    elif image and image not in there:
        found, remedy = f"no image '{image}'", "name one of these"
    else:
        name = image or (DEFAULT if DEFAULT in there else shown[0])
        return there[name], name
    raise InputError(
        "SET_NO_IMAGE", where=f"case {case}", found=f"{found}; there are {', '.join(there)}", remedy=remedy
    )
