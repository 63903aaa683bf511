"""``petscale score``: images that any tool made, matched with their references by name, and scored as a run's own are.

A folder of images holds one volume per name: a NIfTI file, or a sub-folder with one NIfTI file or one DICOM series.
No voxel is resampled.  What is on another grid, in another unit or not finite is refused, case by case.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from petscale.averages import names_of
from petscale.console import bar, console
from petscale.data.examination import Examination, Files, Tree
from petscale.data.ingest import is_nifti, open_pet
from petscale.data.layouts.patterns import expression
from petscale.data.table import Table, apply_table
from petscale.evaluation.folds import gather
from petscale.evaluation.paired import Compared, compare_images
from petscale.evaluation.scores import REFERENCE, Evaluation
from petscale.evaluation.scoring import presets_of, score_case
from petscale.evaluation.spectra import measure
from storage import geometry, integrity, nifti
from storage.dicom import DicomSource
from storage.errors import InputError, printable
from storage.image_values import SCALE_RATIO
from storage.ingest import coarse_edges
from storage.label_maps import LabelMap, Labels, open_labels
from storage.source import LABEL, SUV, ArraySource, Grid, ImageSource
from trainers.metrics.definitions import Score
from trainers.metrics.slabs import slabs

UNIT_RATIO = 10.0  # between the mean uptakes of an image and its reference, from which on one is in another unit
MISSING = "SET_NO_COUNTERPART"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files are to be read.

    Args:
        units: of every NIfTI file; empty: what the file beside an image says, else what its values leave no doubt of.
        table: weights and doses for NIfTI files in Bq/mL, by name of file or patient.
        label_names: value -> name in the label maps; None: a map of one value is of lesions.
        patient: pattern of a volume's name with ``{patient}`` in it; empty: DICOM's PatientID, or what BIDS calls
            ``sub-``, else every name is a patient.
        presets: conventions of scoring beside the project's own.
    """

    units: nifti.Units | None = None
    table: Table | None = None
    label_names: Mapping[int, str] | None = None
    patient: str = ""
    presets: Sequence[str] = ()


@dataclass(frozen=True)
class Scored:
    """What became of the volumes.

    Args:
        compared: the candidates beside each other, over patients.
        left_out: name of a volume -> why it could not be matched.
        refused: name of a volume -> what is wrong with one of its files.
    """

    compared: Compared
    left_out: Mapping[str, str]
    refused: Mapping[str, InputError]


def volumes_in(place: Path) -> dict[str, Path]:
    """Return name -> volume of a folder of images; a NIfTI file alone is a folder of one.

    Raises:
        InputError: IMG_NO_FILE, SET_VOLUMES.
    """
    if place.is_file() and is_nifti(place):
        return {_bare(place): place}
    if not place.is_dir():
        raise InputError("IMG_NO_FILE", where=place.name, found="no such folder", remedy="name a folder of images")
    found: dict[str, Path] = {}
    for entry in sorted(place.iterdir()):
        if entry.name.startswith("."):
            continue
        volume = entry
        if entry.is_dir():
            inside = [path for path in sorted(entry.iterdir()) if is_nifti(path)]
            if len(inside) > 1:
                raise _several(f"{place.name}/{entry.name}", f"{len(inside)} NIfTI files")
            if not inside and not any(path.is_file() for path in entry.rglob("*")):
                continue
            volume = inside[0] if inside else entry
        elif not is_nifti(entry):
            continue
        if (name := _bare(entry)) in found:
            raise _several(place.name, f"two volumes of the name {name}")
        found[name] = volume
    if not found:
        raise InputError(
            "IMG_NO_FILE",
            where=place.name,
            found="no NIfTI file and no sub-folder of images",
            remedy="give a folder of .nii.gz files, or one with a sub-folder per DICOM series",
        )
    return found


def _bare(path: Path) -> str:
    """A volume's name without the ending of a NIfTI file."""
    return re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def _several(where: str, found: str) -> InputError:
    return InputError("SET_VOLUMES", where=where, found=found, remedy="keep one volume per name")


@dataclass(frozen=True)
class _Matched:
    """Volumes that every candidate has.

    Args:
        references: name -> reference.
        candidates: candidate -> name -> its image.
        left_out: name -> who lacks it.
    """

    references: Mapping[str, Path]
    candidates: Mapping[str, Mapping[str, Path]]
    left_out: Mapping[str, str] = field(default_factory=dict)


def _match(reference: Path, candidates: Sequence[Path]) -> _Matched:
    """Match candidates with references by name; a single file with a single file, whatever their names.

    Raises:
        InputError: SET_NO_COUNTERPART, CFG_RANGE, CFG_NAME, CFG_CONTRADICTION, and those of ``volumes_in``.
    """
    places = list({place.resolve(): place for place in candidates}.values())
    if not places:
        raise InputError(
            "CFG_RANGE", where="CANDIDATE", found="no folder to score", remedy="name the folder of a tool's images"
        )
    if any(place.resolve() == reference.resolve() for place in places):
        raise InputError(
            "CFG_CONTRADICTION",
            where=reference.name,
            found="reference and candidate at once",
            remedy="name the candidates' own folders",
        )
    references = volumes_in(reference)
    found = {}
    for name, place in zip(names_of(places), places, strict=True):
        if name == REFERENCE:
            raise InputError("CFG_NAME", where=name, found="what scores call the reference", remedy="rename the folder")
        found[name] = volumes_in(place)
        if reference.is_file() and place.is_file():
            found[name] = dict.fromkeys(references, place)
    left_out = {}
    for volume in sorted({*references, *(volume for held in found.values() for volume in held)}):
        lacking = [name for name, held in {reference.name: references, **found}.items() if volume not in held]
        if lacking:
            left_out[volume] = f"no volume of this name in {', '.join(lacking)}"
    shared = [volume for volume in references if volume not in left_out]
    if not shared:
        name = next(iter(left_out))
        raise InputError(
            MISSING,
            where=printable(name),
            found=f"{left_out[name]}, and no other name is in all folders",
            remedy="give an image the name of its reference (p01.nii.gz, or a folder p01)",
        )
    kept = {name: {volume: held[volume] for volume in shared} for name, held in found.items()}
    return _Matched({volume: references[volume] for volume in shared}, kept, left_out)


def score_files(
    reference: Path,
    candidates: Sequence[Path],
    reading: Reading,
    *,
    labels: Path | None = None,
    show: Callable[[str, Mapping[str, ImageSource]], None] | None = None,
) -> Scored:
    """Score candidates on the volumes that all of them have, and compare them over patients.

    Args:
        reference: folder of the full-dose images, or one NIfTI file.
        candidates: such folders (or files), each with one tool's images.
        reading: how files are read.
        labels: folder of label maps, DICOM SEG or RTSTRUCT under the same names, on the references' voxels.
        show: gets the name of every scored volume, and its images while they can be read, the reference first.

    Raises:
        InputError: SET_NO_COUNTERPART, CFG_NO_EFFECT, CFG_CHOICE; those of ``_match``; what is wrong with the first
            volume where every one is refused.
    """
    presets = presets_of("native", reading.presets)
    matched = _match(reference, candidates)
    for name, why in matched.left_out.items():
        console.print(f"left out: {MISSING} {printable(name)}: {why}", markup=False, soft_wrap=True)
    held = [*matched.references.values(), *(path for one in matched.candidates.values() for path in one.values())]
    if reading.units and not any(map(is_nifti, held)):
        raise InputError("CFG_NO_EFFECT", where="--units", found="no NIfTI file: DICOM series state their own unit",
                         remedy="leave it out")  # fmt: skip
    marked = volumes_in(labels) if labels is not None else {}
    files = {REFERENCE: _files(matched.references, reading)}
    files |= {name: _files(paths, reading) for name, paths in matched.candidates.items()}
    rows: list[Score] = []
    people: dict[str, str] = {}
    refused: dict[str, InputError] = {}
    without: list[str] = []
    with bar("score", len(matched.references)) as advance:
        for number, name in enumerate(matched.references):
            advance(number, printable(name))
            if labels is not None and name not in marked:
                without.append(name)
            try:
                found, people[name] = _score(name, files, marked.get(name), reading, presets, show)
                rows += found
            except InputError as error:
                refused[name] = error
                console.print(f"refused {printable(name)}: {error}", markup=False, soft_wrap=True)
        advance(len(matched.references), "")
    if not rows:
        raise next(iter(refused.values()))
    if without:
        said = f"scored without labels: {', '.join(map(printable, without))}"
        console.print(said, markup=False, soft_wrap=True)
    scored = tuple(name for name in matched.references if name not in refused)
    evaluation = Evaluation(tuple(rows), tuple(matched.candidates), scored)
    joined = gather({reference.name: evaluation}, people)
    about = {
        "reference": reference.name,
        "candidates": list(matched.candidates),
        "left_out": dict(matched.left_out),
        "refused": {name: f"{error.code}: {error.found}" for name, error in refused.items()},
        "without_labels": without,
        "patients": joined.metadata["patients"],
    }
    return Scored(compare_images(replace(joined, metadata=about)), matched.left_out, refused)


def check_unwritten(output: Path | None, page: Path | None) -> None:
    """Refuse to write over the scores of another call; a folder that is empty takes them.

    Raises:
        InputError: DISK_EXISTS.
    """
    if output is not None and not (output.is_dir() and all(one.name.startswith(".") for one in output.iterdir())):
        integrity.check_new(output, "--output, or remove it")
    if page is not None:
        integrity.check_new(page, "--page, or remove it")


def _files(paths: Mapping[str, Path], reading: Reading) -> dict[str, Files]:
    """How each volume is opened: its unit where it is NIfTI, and what the table says of it."""
    examinations = []
    for name, path in paths.items():
        units = reading.units or "" if is_nifti(path) else ""
        examinations.append(Examination(key=name, files=Files(pet=path, units=units), patient=_person(name, reading)))
    if reading.table is None:
        return {one.key: one.files for one in examinations}
    return {one.key: one.files for one in apply_table(Tree(tuple(examinations)), reading.table).examinations}


def _person(name: str, reading: Reading) -> str:
    """Who the patient of a volume is, by its name; empty where the name does not say it.

    Raises:
        InputError: CFG_PATTERN.
    """
    if not reading.patient:
        found = re.match(r"(sub-[A-Za-z0-9]+)(_|$)", name)
        return found[1] if found else ""
    if "{patient}" not in reading.patient:
        raise InputError(
            "CFG_PATTERN",
            where="--patient",
            found=f"'{reading.patient}'",
            remedy="write {patient} where a name tells it",
        )
    told = expression(reading.patient).fullmatch(name)
    if told is None:
        raise InputError(
            "CFG_PATTERN",
            where="--patient",
            found=f"'{reading.patient}' does not fit the name {printable(name)}",
            remedy="give a pattern that fits the name of every volume, as '{patient}_*'",
        )
    return told["g_patient"]


def _score(
    name: str,
    files: Mapping[str, Mapping[str, Files]],
    marked: Path | None,
    reading: Reading,
    presets: Sequence[str],
    show: Callable[[str, Mapping[str, ImageSource]], None] | None,
) -> tuple[list[Score], str]:
    """Score one volume of every candidate; returns the scores and who the patient is."""
    with integrity.scratch() as scratch:
        reference, patient = open_pet(files[REFERENCE][name], _room(scratch, 0))
        body = _Body.of(reference)
        images = {}
        for number, candidate in enumerate(one for one in files if one != REFERENCE):
            try:
                image, person = open_pet(files[candidate][name], _room(scratch, number + 1))
                images[candidate] = _on_grid(image, reference.grid)
                _check_patient(person, patient)
                _check_scale(images[candidate], reference, body)
            except InputError as error:
                where = f"{candidate}: {error.where}"
                raise InputError(error.code, where=where, found=error.found, remedy=error.remedy) from None
        found: Labels | None = None
        if marked is not None:
            frame = reference.frame_of_reference if isinstance(reference, DicomSource) else ""
            file = LabelMap(marked, reading.label_names)
            found = open_labels([file], grid=reference.grid, workdir=_room(scratch, len(images) + 1),
                                frame_of_reference=frame)  # fmt: skip
        names = dict(found.names) if found else {}
        scores = score_case(
            name,
            reference,
            images,
            body=body,
            labels=found.image if found else None,
            label_names=names,
            lesions=[one for one in names.values() if one.startswith("lesion")],
            presets=presets,
        )
        marks = found.image if found else None
        scores += measure(name, reference, images, body=body, labels=marks, label_names=names)[0]
        if show is not None:
            show(name, {REFERENCE: reference, **images})
        return scores, _person(name, reading) or patient or name


def _room(scratch: Path, number: int) -> Path:
    """A folder for one volume's inflated copy: two files of one name must not meet."""
    place = scratch / str(number)
    place.mkdir()
    return place


def _on_grid(image: ImageSource, grid: Grid) -> ImageSource:
    """The same voxels in the reference's order: converters reverse and exchange axes.  Nothing is interpolated.

    Raises:
        InputError: PAIR_GRID_MISMATCH.
    """
    if image.grid.matches(grid):
        return image
    placement = geometry.place(image.grid, grid)
    if placement is None or int(np.prod(image.grid.shape)) != int(np.prod(grid.shape)):
        raise InputError(
            "PAIR_GRID_MISMATCH",
            where="grid",
            found=f"not that of the reference: {geometry.difference(image.grid, grid)}",
            remedy="put the image on the reference's voxels with the tool that made it; nothing is resampled here",
        )
    voxels = np.empty(grid.shape, np.float32)
    placement.view(voxels)[...] = image.read(0, image.grid.shape[0])
    return ArraySource(voxels, grid, image.units, image.provenance)


def _check_patient(person: str, patient: str) -> None:
    if person and patient and person != patient:
        raise InputError(
            "PAIR_PATIENT_MISMATCH",
            where="(0010,0020) PatientID",
            found="another patient than the reference's",
            remedy="give an image the name of its own reference",
        )


def _check_scale(image: ImageSource, reference: ImageSource, body: ImageSource) -> None:
    """Refuse an image in another unit than the reference's, by the mean inside the body; tell a lesser difference.

    Raises:
        InputError: PAIR_SCALE.
    """
    ours, theirs = (_mean_inside(one, body) for one in (image, reference))
    if not theirs > 0 or not np.isfinite(ours):
        return  # scoring refuses it by its own code
    ratio = ours / theirs
    if not 1 / UNIT_RATIO < ratio < UNIT_RATIO:
        raise InputError(
            "PAIR_SCALE",
            where="voxels",
            found=f"the mean inside the body is {ratio:.3g} times the reference's",
            remedy="give both in one unit (--units says that of NIfTI files), or undo the image's normalisation",
        )
    if not 1 / SCALE_RATIO < ratio < SCALE_RATIO:
        console.print(f"WARNING: the mean inside the body is {ratio:.3g} times the reference's", markup=False)


def _mean_inside(image: ImageSource, body: ImageSource) -> float:
    total, voxels = 0.0, 0
    for z0, z1 in slabs(image.grid.shape):
        inside = body.read(z0, z1) > 0.5
        total += float(image.read(z0, z1)[inside].sum(dtype=np.float64))
        voxels += int(inside.sum())
    return total / voxels if voxels else float("nan")


@dataclass(frozen=True, eq=False)
class _Body:
    """The body's outline on the reference, drawn as ingest draws it: in blocks of about 5 mm."""

    grid: Grid
    blocks: NDArray[np.bool_]
    edges: tuple[int, int, int]
    units: str = LABEL
    provenance: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, reference: ImageSource) -> "_Body":
        edges = coarse_edges(reference.grid)
        step = edges[0] * max(1, 32 // edges[0])
        depth = reference.grid.shape[0]
        slices = [(z0, min(z0 + step, depth)) for z0 in range(0, depth, step)]
        coarse = np.concatenate([geometry.block_means(reference.read(*one), edges) for one in slices])
        z, y, x = (mm * edge for mm, edge in zip(reference.grid.spacing_mm, edges, strict=True))
        outline = geometry.body_mask(coarse, SUV, (z, y, x), geometry.body_scale(reference.grid))
        return cls(reference.grid, outline, edges)

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        """Return 1 inside the body, 0 outside, of the slab ``z0 <= z < z1``."""
        first = z0 // self.edges[0]
        slab = self.blocks[first : -(-z1 // self.edges[0])]
        for axis, edge in enumerate(self.edges):
            slab = slab.repeat(edge, axis)
        start = z0 - first * self.edges[0]
        return np.ascontiguousarray(
            slab[start : start + z1 - z0, : self.grid.shape[1], : self.grid.shape[2]], dtype=np.float32
        )
