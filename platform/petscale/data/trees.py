"""``petscale phantom --layout``: phantoms as files laid out like a public data set, with what makes such trees hard.

For whoever has no such data yet: to try the commands, and to test them.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petscale.data.simulate import check_doses, low_doses
from storage import dicom, dicom_write, integrity, nifti, phantom, suv
from storage.dicom_header import text_of
from storage.errors import InputError
from storage.lowdose import LowDoseConfig
from storage.source import ImageSource

WEIGHTS_KG, DOSES_MBQ, UPTAKE_S = (62.0, 85.0, 74.0, 97.0), (210.0, 330.0, 255.0, 372.0), 3600.0


@dataclass(frozen=True, eq=False)
class Person:
    """One phantom patient: its number, its anatomy and its scans by image name."""

    number: int
    body: phantom.Phantom
    scans: dict[str, ImageSource]

    @property
    def weight_kg(self) -> float:
        """Body weight."""
        return WEIGHTS_KG[self.number % len(WEIGHTS_KG)]

    @property
    def dose_mbq(self) -> float:
        """Activity at the time of injection."""
        return DOSES_MBQ[self.number % len(DOSES_MBQ)]

    @property
    def bqml(self) -> float:
        """Bq/mL per SUVbw at the time of the scan, an hour after the injection."""
        left = self.dose_mbq * 1e6 * suv.decay(UPTAKE_S, suv.NUCLIDES["F-18"][0])
        return 1.0 / suv.suv_factor_decay_corrected(self.weight_kg, left)

    def lesions(self, z0: int, z1: int) -> NDArray[np.float32]:
        """A slab of the lesion mask."""
        values = [value for value, name in self.body.label_names.items() if name.startswith("lesion")]
        return np.isin(self.body.labels.read(z0, z1), values).astype(np.float32)


def write_tree(
    layout: str, folder: Path, count: int, config: phantom.PhantomConfig, scan: LowDoseConfig, drfs: Sequence[float]
) -> None:
    """Write phantoms as a data set's files.

    Args:
        layout: ``udpet``, ``autopet``, ``lung`` or ``bids``.
        folder: to be made.
        count: patients.
        config: the phantom; its seed counts up.
        scan: the scanner and its counts.
        drfs: dose reduction factors, where the data set has low doses.

    Raises:
        InputError: CFG_RANGE, CFG_LAYOUT, DISK_EXISTS.
    """
    check_doses(scan, drfs, 1)
    if count < 1:
        raise InputError("CFG_RANGE", where="--cases", found=str(count), remedy="give 1 or more")
    if layout not in TREES:
        raise InputError(
            "CFG_LAYOUT", where="--layout", found=layout, remedy=f"choose one of {', '.join(sorted(TREES))}"
        )
    if folder.exists() and any(folder.iterdir()):
        raise InputError("DISK_EXISTS", where=folder.name, found="it holds files", remedy="give a new folder")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    TREES[layout](folder, _people(count, config, scan, drfs))


def _people(count: int, config: phantom.PhantomConfig, scan: LowDoseConfig, drfs: Sequence[float]) -> Iterator[Person]:
    for number in range(count):
        body = phantom.phantom(replace(config, seed=config.seed + number))
        scans = low_doses(body.activity, body.ct, replace(scan, seed=scan.seed + number), drfs, 1)
        yield Person(number, body, dict(scans))


def _udpet(folder: Path, people: Iterator[Person]) -> None:
    """Two hospitals' ways; two studies in one subject's folder; a study on the organisers' list of wrong tracers."""
    for person in people:
        bern = person.number % 2 == 0
        if bern:
            study = folder / f"Bern-Inselspital-2022/Subject_0-9/0101202{person.number}_1_20210101_100000"
        else:
            name = f"Anonymous_ANO_20230505_17581{person.number:02d}_120417"
            study = folder / "Shanghai-Ruijin-Hospital-2023/PART1/PART1" / name
        places = [study]
        if person.number == 0:
            places.append(folder / "Shanghai-Ruijin-Hospital-2022/PART1/Anonymous_ANO_20220224_1711567_102845")
        for place in places:
            for image, source in person.scans.items():
                drf = float(image.removeprefix("low_drf")) if image != "full" else 1.0
                series = place / (_bern(drf) if bern else f"2.886 x 600 WB {'NORMAL' if drf == 1 else f'D{drf:g}'}")
                _series(series, source, person, number=3 + int(drf), edit=_resampled(drf))
                if bern:
                    for path in series.glob("*.dcm"):
                        path.rename(path.with_suffix(".IMA"))


def _bern(drf: float) -> str:
    return "Full_dose" if drf == 1 else f"1-{drf:g} dose"


def _resampled(drf: float) -> Callable[[int, Any], None]:
    """A low dose's header: begun later than the full dose, the activity divided as its counts are."""

    def edit(z: int, header: Any) -> None:
        if drf > 1:
            header.AcquisitionTime = "120020"
            drug = header.RadiopharmaceuticalInformationSequence[0]
            drug.RadionuclideTotalDose = f"{float(drug.RadionuclideTotalDose) / drf:.6g}"

    return edit


def _autopet(folder: Path, people: Iterator[Person]) -> None:
    """The first patient has two studies; CTres is filled with -1024 beside the body; PET.nii.gz is in Bq/mL."""
    for person in people:
        for visit in range(2 if person.number == 0 else 1):
            study = folder / f"FDG-PET-CT-Lesions/PETCT_{person.number:04d}/0{visit + 1}-01-2003-NA-PET-CT-{visit}"
            full = person.scans["full"]
            for name, read in (
                ("SUV", full.read),
                ("PET", lambda z0, z1, full=full, person=person: full.read(z0, z1) * np.float32(person.bqml)),
                ("CTres", lambda z0, z1, ct=person.body.ct: np.where((hu := ct.read(z0, z1)) < -900, -1024, hu)),
                ("SEG", person.lesions),
            ):
                nifti.write_nifti(study / f"{name}.nii.gz", full.grid, read)


def _lung(folder: Path, people: Iterator[Person]) -> None:
    """The last subject has a CT alone; every study has a fused series; boxes are told by the CT's slices."""
    everyone = list(people)
    for person in everyone:
        subject = f"{'ABEG'[person.number % 4]}{person.number + 1:04d}"
        study = folder / f"manifest-1/Lung-PET-CT-Dx/Lung_Dx-{subject}/04-04-2007-NA-Chest-07990"
        ct = study / "2.000000-5mm-40805"
        _series(ct, person.body.ct, person, number=2)
        if person is not everyone[-1] or len(everyone) == 1:
            _series(study / "4.000000-PET-68013", person.scans["full"], person, number=4)
            _series(study / "9.000000-Fused-11937", person.scans["full"], person, number=9, edit=_fused)
        _boxes(folder / f"manifest-1/Annotation/{subject}", person, ct)


def _fused(z: int, header: Any) -> None:
    header.SOPClassUID, header.Modality = "1.2.840.10008.5.1.4.1.1.7", "OT"  # a picture (secondary capture)
    header.ImageType = ["DERIVED", "SECONDARY", "FUSED"]


def _boxes(folder: Path, person: Person, ct: Path) -> None:
    """A file per CT slice that cuts a lesion, named by the slice's SOP instance UID."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for z, one in enumerate(dicom.open_series(ct, modality="CT").slices):
        ys, xs = np.nonzero(person.lesions(z, z + 1)[0])
        if not ys.size:
            continue
        corners = {"xmin": xs.min(), "ymin": ys.min(), "xmax": xs.max(), "ymax": ys.max()}
        box = "".join(f"<{name}>{value}</{name}>" for name, value in corners.items())
        text = f"<annotation><object><name>A</name><bndbox>{box}</bndbox></object></annotation>\n"
        integrity.write_bytes(folder / f"{text_of(one.header, 'SOPInstanceUID')}.xml", text.encode())


def _bids(folder: Path, people: Iterator[Person]) -> None:
    """Weights in participants.tsv; what all scans share in a sidecar at the top; low doses told by ``rec``."""
    rows = ["participant_id\tweight\tsex"]
    shared = {"Units": "Bq/mL", "TracerName": "FDG", "TracerRadionuclide": "F18", "ImageDecayCorrected": True}
    integrity.write_json(folder / "trc-FDG_pet.json", shared)
    integrity.write_json(folder / "dataset_description.json", {"Name": "petscale phantoms", "BIDSVersion": "1.10.0"})
    for person in people:
        name = f"sub-{person.number + 1:02d}"
        rows.append(f"{name}\t{person.weight_kg:g}\tn/a")
        place = folder / name / "ses-1/pet"
        for image, source in person.scans.items():
            told = "" if image == "full" else f"_rec-{image.removeprefix('low_')}"
            stem = f"{name}_ses-1_trc-FDG{told}_pet"

            def bqml(z0: int, z1: int, source: ImageSource = source, person: Person = person) -> NDArray[np.float32]:
                return source.read(z0, z1) * np.float32(person.bqml)

            nifti.write_nifti(place / f"{stem}.nii.gz", source.grid, bqml)
            own = {
                "InjectedRadioactivity": person.dose_mbq,
                "InjectedRadioactivityUnits": "MBq",
                "TimeZero": "11:00:00",
                "InjectionStart": 0,
                "ScanStart": UPTAKE_S,
                "FrameTimesStart": [0],
                "FrameDuration": [180],
                "ImageDecayCorrectionTime": UPTAKE_S,
            }
            (place / f"{stem}.json").write_text(json.dumps(own))
    integrity.write_bytes(folder / "participants.tsv", ("\n".join(rows) + "\n").encode())


TREES: dict[str, Callable[[Path, Iterator[Person]], None]] = {
    "udpet": _udpet,
    "autopet": _autopet,
    "lung": _lung,
    "bids": _bids,
}


def _patient_id(person: Person) -> str:
    return f"PHANTOM{person.number:03d}"


def _series(
    folder: Path,
    source: ImageSource,
    person: Person,
    *,
    number: int,
    edit: Callable[[int, Any], None] | None = None,
) -> None:
    dicom_write.write_series(
        folder,
        source,
        patient_id=_patient_id(person),
        series_number=number,
        weight_kg=person.weight_kg,
        dose_mbq=person.dose_mbq,
        uptake_s=UPTAKE_S,
        edit=edit,
    )
