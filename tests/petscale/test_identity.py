"""Nothing that identifies a patient leaves the files it came in: canaries in every field, looked for in every byte.

The one place where the patient's module is kept, on purpose, is the derived DICOM series.
"""

import gzip
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset

from petscale import config as configs
from petscale.cli import main
from petscale.cluster import session as sessions
from petscale.folders import WEIGHTS
from petscale.training import driver
from petscale.training.planning import Plan
from storage import dicom_write
from storage.phantom import PhantomConfig, phantom
from trainers import checkpoint
from trainers.engine import plain_engine
from trainers.systems import RECIPES

TEXT = {  # free text, names and numbers of the header, VR by VR
    "PatientName": "CANARYNAME^JANE",
    "PatientID": "CANARYID4711",
    "OtherPatientIDs": "CANARYOTHERID",
    "PatientBirthName": "CANARYBIRTHNAME",
    "PatientAddress": "CANARYADDRESS",
    "PatientTelephoneNumbers": "CANARYPHONE",
    "PatientComments": "CANARYCOMMENT",
    "PatientMotherBirthName": "CANARYMOTHER",
    "AccessionNumber": "CANARYACC",
    "StudyID": "CANARYSTUDYID",
    "InstitutionName": "CANARYHOSPITAL",
    "InstitutionAddress": "CANARYHOSPADDR",
    "InstitutionalDepartmentName": "CANARYWARD",
    "StationName": "CANARYSTATION",
    "DeviceSerialNumber": "CANARYSERIAL",
    "ReferringPhysicianName": "CANARYREFERRER",
    "PerformingPhysicianName": "CANARYPERFORMER",
    "OperatorsName": "CANARYOPERATOR",
    "StudyDescription": "CANARYSTUDY",
    "SeriesDescription": "CANARYSERIES",
    "ProtocolName": "CANARYPROTOCOL",
    "ImageComments": "CANARYIMAGECOMMENT",
    "Manufacturer": "CANARYMAKER",
    "ManufacturerModelName": "CANARYMODEL",
    "SoftwareVersions": "CANARYSOFTWARE",
}
DATES = {
    "PatientBirthDate": "19310729",
    "StudyDate": "19870614",
    "SeriesDate": "19870614",
    "AcquisitionDate": "19870614",
}
CLOCK, INJECTED = "134527.730519", "19870614124527.730519"
UIDS = {
    "StudyInstanceUID": "1.2.826.0.1.987001",
    "SeriesInstanceUID": "1.2.826.0.1.987002",
    "FrameOfReferenceUID": "1.2.826.0.1.987003",
}
SOP, DOSE, WEIGHT = "1.2.826.0.1.987004", "371234567", "71.3719"
DRUG, PRIVATE, CREATOR, PREAMBLE = "CANARYDRUG", "CANARYPRIVATE", "CANARYCREATOR", "CANARYPREAMBLE"
ABOVE, FOLDER, FILE = "CANARYABOVE", "CANARYFOLDER", "CANARYFILE"

HEADER = [*TEXT.values(), *DATES.values(), *UIDS.values(), CLOCK, INJECTED, SOP, DOSE, WEIGHT, DRUG, PRIVATE, CREATOR]
HEADER += ["CANARYNAME", PREAMBLE, ABOVE]
LEAVES = [FOLDER, FILE]  # an error on the terminal names a file by its last component; nothing else may
KEPT = ["PatientName", "PatientID", "AccessionNumber", "StudyID", "ReferringPhysicianName", "StudyDescription"]


def hits(content: bytes, canaries: list[str]) -> list[str]:
    lower = content.lower()
    found = []
    for canary in canaries:
        text = canary.lower()
        if any(text.encode(encoding) in lower for encoding in ("utf-8", "utf-16-le", "utf-16-be")):
            found.append(canary)
    return found


def files(*folders: Path) -> Iterator[tuple[str, bytes]]:
    """Every file's path and bytes; gzip is looked into."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            if path.is_file():
                content = path.read_bytes()
                yield name, name.encode() + content + (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else b"")
            else:
                yield name, name.encode()


def mark(z: int, ds: Dataset) -> None:
    """Fill one slice's header with canaries; times stay consistent, so that SUV can be computed."""
    for keyword, value in (TEXT | DATES | UIDS).items():
        setattr(ds, keyword, value)
    if ds.Modality == "CT":
        ds.SeriesInstanceUID = UIDS["SeriesInstanceUID"] + ".2"
    ds.SOPInstanceUID = f"{SOP}.{ds.SeriesNumber}.{z}"
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = CLOCK
    ds.ContentDate = DATES["StudyDate"]
    block = ds.private_block(0x0033, CREATOR, create=True)
    block.add_new(0x01, "LO", PRIVATE)
    block.add_new(0x02, "UN", PRIVATE.encode("utf-16-le"))
    if ds.Modality == "PT":
        ds.PatientWeight = WEIGHT
        drug = ds.RadiopharmaceuticalInformationSequence[0]
        drug.Radiopharmaceutical, drug.RadionuclideTotalDose = DRUG, DOSE
        drug.RadiopharmaceuticalStartDateTime, drug.RadiopharmaceuticalStartTime = INJECTED, INJECTED[8:]


def named(folder: Path) -> Path:
    """Give every file a telling name and preamble."""
    for file in sorted(folder.iterdir()):
        content = PREAMBLE.encode().ljust(128, b"\0") + file.read_bytes()[128:]
        file.unlink()
        (folder / f"{FILE}-{file.name}").write_bytes(content)
    return folder


@dataclass
class Clinic:
    """Where the scans are, and where everything made of them goes."""

    scans: Path
    work: Path


def body(seed: int) -> Any:
    return phantom(PhantomConfig(shape=(32, 28, 30), spacing_mm=(25.0, 15.0, 14.0), num_lesions=2, seed=seed))


def marked_nifti(path: Path) -> Path:
    """A NIfTI whose header, extension and gzip name speak too."""
    voxels = np.random.default_rng(0).gamma(2.0, 0.5, (30, 28, 32)).astype(np.float32)
    image = nibabel.Nifti1Image(voxels, np.diag([-14.0, -15.0, 25.0, 1.0]))
    image.header["descrip"], image.header["aux_file"] = TEXT["PatientName"], TEXT["AccessionNumber"]
    image.header["db_name"], image.header["intent_name"] = TEXT["PatientID"], TEXT["StudyID"]
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", TEXT["PatientComments"].encode()))
    with path.open("wb") as raw, gzip.GzipFile(f"{FILE}.nii", "wb", fileobj=raw) as stream:
        stream.write(image.to_bytes())
    return path


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Clinic:
    """Scans below folders with telling names."""
    root = tmp_path_factory.mktemp("clinic")
    scans, work = root / ABOVE / "scans", root / "work"
    scans.mkdir(parents=True)
    work.mkdir()
    dicom_write.write_series(scans / f"{FOLDER}-pet", body(0).activity, edit=mark)
    dicom_write.write_series(scans / f"{FOLDER}-ct", body(0).ct, series_number=2, edit=mark)
    named(scans / f"{FOLDER}-pet")
    named(scans / f"{FOLDER}-ct")
    dicom_write.write_series(scans / "other-pet", body(1).activity, patient_id="OTHER")
    marked_nifti(scans / f"{FOLDER}.nii.gz")
    return Clinic(scans, work)


def test_the_canaries_are_there(clinic: Clinic) -> None:
    """What follows would prove nothing if the headers did not hold them."""
    content = b"".join(content for _, content in files(clinic.scans.parent))
    assert hits(content, [*HEADER[:-1], *LEAVES]) == [*HEADER[:-1], *LEAVES]


def exported(plan: Plan, *, left_s: float | None = None) -> None:
    """In the place of Ray: fresh weights, written as a worker writes them."""
    run, config = plan.run, plan.config
    recipe = RECIPES[config.recipe].build(
        config.model, make_engine=plain_engine, patches_per_step=config.patches_per_step
    )
    facts = {"recipe": config.recipe, "config": json.dumps(configs.to_json(config))}
    facts |= plan.job.proof
    checkpoint.write_weights(run / WEIGHTS, recipe.weights(), facts)


def test_a_whole_study_leaves_no_trace(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    scans, work = clinic.scans, clinic.work
    pet, ct, nii = scans / f"{FOLDER}-pet", scans / f"{FOLDER}-ct", scans / f"{FOLDER}.nii.gz"
    typed = scans / "work"  # how the folders are named on the command line that is recorded
    monkeypatch.setattr(sessions, "session", lambda *_: nullcontext())
    monkeypatch.setattr(driver, "train_on_ray", exported)

    def petscale(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["petscale", *(str(w).replace(str(work), str(typed)) for w in words)])
        main([str(word) for word in words])

    petscale("ingest", pet, work / "cohort", "--ct", ct)
    petscale("ingest", scans / "other-pet", work / "cohort", "--case", "other")
    petscale("ingest", nii, work / "cohort")
    petscale("ingest", scans.parent, work / "tree", "--pet", f"{FOLDER}-pet", "--ct", f"{FOLDER}-ct")
    petscale("verify", work / "cohort")
    petscale("simulate", work / "cohort", work / "low", "--drf", "4", "--scan.iterations", "1")
    names = sorted(p.name for p in (work / "low" / "cases").iterdir() if p.is_dir())
    held = [name for name in names if name != "other"]
    settings = ["recipe.patch=24,24,24", "recipe.patches_per_case=1", "recipe.context_patches=2", "recipe.rois=()"]
    settings += ["recipe.critic_channels=2", "feed.source=low_drf4", f"split.test={','.join(held)}"]
    petscale("train", work / "low", "--run", work / "run", "--set", *settings)
    petscale("synthesize", work / "run", work / "low", "--case", held[0])
    petscale("synthesize", work / "run", nii, "--output", work / "restored.nii.gz")
    petscale("evaluate", work / "run", work / "low")
    petscale("report", work / "run", work / "low")
    petscale("synthesize", work / "run", pet, "--output", scans / "derived")  # kept out of ``work``: see below

    everything = dict(files(work))
    assert len(everything) > 100
    assert "run/report.html" in everything
    command = json.loads((work / "run" / "config.json").read_text())["command"]
    assert command.startswith("petscale train low --run run --set ")
    assert {name: found for name, content in everything.items() if (found := hits(content, [*HEADER, *LEAVES]))} == {}
    out, err = capfd.readouterr()
    printed = out.replace(str(scans / "derived"), "")  # the output's place, as it was typed
    assert hits((printed + err + caplog.text).encode(), [*HEADER, *LEAVES]) == []
    assert str(work / "run" / "report.html") in out

    # The derived series keeps whose it is, and nothing beyond.
    derived = b"".join(content for _, content in files(scans / "derived"))
    slices = [pydicom.dcmread(path) for path in sorted((scans / "derived").iterdir())]
    assert {str(ds.PatientName) for ds in slices} == {TEXT["PatientName"]}
    dropped = {k: v for k, v in TEXT.items() if k not in (*KEPT, "Manufacturer", "ManufacturerModelName")}
    assert hits(derived, [*dropped.values(), PRIVATE, CREATOR, PREAMBLE, ABOVE, *LEAVES]) == []
    shutil.rmtree(scans / "derived")


def test_failing_commands_tell_nothing(
    clinic: Clinic,
    run: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    refused: Callable[..., str],
) -> None:
    pet = clinic.scans / f"{FOLDER}-pet"

    def broken(name: str, edit: Callable[[Dataset], object]) -> Path:
        folder = clinic.scans / name
        shutil.copytree(pet, folder)
        for file in folder.iterdir():
            with disable_value_validation():
                ds = pydicom.dcmread(file)
                edit(ds)
                ds.save_as(file)
        return folder

    def drug(ds: Dataset) -> Any:
        return ds.RadiopharmaceuticalInformationSequence[0]

    def cut(folder: Path) -> Path:
        first = min(folder.iterdir())
        first.write_bytes(first.read_bytes()[:-700])
        return folder

    def gap(folder: Path) -> Path:
        sorted(folder.iterdir())[9].unlink()
        return folder

    def set_to(keyword: str, value: Any) -> Callable[[Dataset], None]:
        return lambda ds: setattr(ds, keyword, value)

    mistakes = {
        "weight": broken("weight", lambda ds: ds.pop("PatientWeight")),
        "dose": broken("dose", lambda ds: drug(ds).pop("RadionuclideTotalDose")),
        "order": broken("order", lambda ds: setattr(drug(ds), "RadiopharmaceuticalStartDateTime", "19870615134527")),
        "units": broken("units", set_to("Units", "CNTS")),
        "time": broken("time", lambda ds: [ds.pop("SeriesTime"), ds.pop("AcquisitionTime")]),
        "cut": cut(broken("cut", lambda ds: None)),
        "gap": gap(broken("gap", lambda ds: None)),
        "two": broken("two", lambda ds: setattr(ds, "SeriesInstanceUID", f"{SOP}.{ds.InstanceNumber % 2}")),
        "patients": broken("patients", lambda ds: setattr(ds, "PatientID", f"{TEXT['PatientID']}{ds.InstanceNumber}")),
        "number": broken("number", lambda ds: ds.add_new("RescaleSlope", "LO", TEXT["PatientName"])),
        "date": broken("date", set_to("SeriesDate", TEXT["PatientID"])),
        "uid": broken("uid", set_to("SeriesInstanceUID", f"../../{TEXT['PatientID']}")),
    }
    lines = [refused("ingest", folder, tmp_path / "cohort") for folder in mistakes.values()]
    lines += [refused("synthesize", run, mistakes["weight"], "--output", tmp_path / "out")]
    lines += [refused("ingest", clinic.scans / f"{FOLDER}-absent", tmp_path / "cohort")]
    lines += [refused("ingest", clinic.scans / f"{FOLDER}-ct", tmp_path / "cohort", "--case", TEXT["PatientName"])]
    lines += [refused("ingest", pet, tmp_path / "cohort", "--ct", clinic.scans / "other-pet")]
    lines += [refused("ingest", clinic.scans.parent, tmp_path / "cohort", "--pet", "weight")]
    for line in lines:
        assert hits(line.encode(), HEADER) == [], line
    assert hits(caplog.text.encode(), [*HEADER, *LEAVES]) == []
    assert not (tmp_path / "cohort").exists()
    assert not (tmp_path / "out").exists()
    assert [name for name, content in files(run) if hits(content, [*HEADER, *LEAVES])] == []
