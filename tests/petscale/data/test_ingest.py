"""Files and phantoms become cohorts: values, grids and patients are kept, names are not."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage, LegacyConvertedEnhancedPETImage
from pydicom.uid import generate_uid

from petscale.cli import main
from petscale.data.cohorts import fill_cohort
from petscale.data.ingest import Files, alias, open_case
from petscale.data.simulate import simulation_plans
from storage import dicom, dicom_write, geometry, nifti
from storage.dicom_write import write_series
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig, phantom
from storage.reader import Case, open_cohort
from storage.source import HU, LABEL, SUV, ArraySource, Dose, ImageSource

ARGS = tuple[str, ...]


def whole(image: ImageSource) -> np.ndarray:
    return image.read(0, image.grid.shape[0])


def only(cohort: Path) -> Case:
    opened = open_cohort(cohort)
    (name,) = opened.cases
    return opened.case(name)


def within_a_thousandth(found: np.ndarray, wanted: np.ndarray) -> None:
    """Of each slice's own maximum: int16 with one slope per slice holds 1/65534 of it."""
    bound = 1e-3 * np.abs(wanted).max(axis=(1, 2), keepdims=True) + 1e-6
    assert np.all(np.abs(found - wanted) <= bound)


def test_dicom_pet_and_ct(scans: Path, tmp_path: Path) -> None:
    main(["ingest", str(scans / "pet"), str(tmp_path / "cohort"), "--ct", str(scans / "ct")])
    case = only(tmp_path / "cohort")
    assert case.images == ("body", "ct", "full")
    assert case.image("full").dose == Dose(1.0, "full", None)
    full, ct = case.image("full"), case.image("ct")
    assert (full.units, ct.units) == (SUV, HU)
    truth = nifti.open_nifti(scans / "suv.nii.gz", units="SUVbw", workdir=tmp_path)
    assert full.grid.matches(truth.grid)
    within_a_thousandth(whole(full), whole(truth))
    # The CT lies on the PET's grid, as resampling its own series says.
    assert ct.grid.matches(full.grid)
    fine = dicom.open_series(scans / "ct", modality="CT")
    assert fine.grid.shape != ct.grid.shape
    np.testing.assert_allclose(whole(ct), whole(geometry.Resampled(fine, full.grid)), atol=1e-3)
    assert whole(ct).min() >= -1024
    assert whole(ct).max() > 0


def test_enhanced_pet_and_ct(scans: Path, tmp_path: Path) -> None:
    """Legacy-converted copies give the cohort of the slices that they were made of, alone and beside them."""
    for kind, convert in (("pet", LegacyConvertedEnhancedPETImage), ("ct", LegacyConvertedEnhancedCTImage)):
        (tmp_path / kind).mkdir()
        slices = [pydicom.dcmread(file) for file in sorted((scans / kind).iterdir())]
        convert(slices, generate_uid(), 9, generate_uid(), 1).save_as(tmp_path / kind / "a.dcm")
    shutil.copytree(scans / "pet", tmp_path / "both" / "classic")
    shutil.copy(tmp_path / "pet" / "a.dcm", tmp_path / "both")
    found = []
    for name, root, pet in (("classic", scans, "pet"), ("enhanced", tmp_path, "pet"), ("both", tmp_path, "both")):
        main(["ingest", str(root / pet), str(tmp_path / f"cohort_{name}"), "--ct", str(root / "ct")])
        case = only(tmp_path / f"cohort_{name}")
        found.append((case.image("full"), case.image("ct")))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a.grid.matches(b.grid)
            np.testing.assert_array_equal(whole(a), whole(b))
    assert found[2][0].provenance["notes"] == ["enhanced_copy_passed_by"]


def test_cases_of_one_patient_share_their_subject(tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    for name, patient, seed in (("first", "P1", 0), ("later", "P1", 1), ("other", "P2", 2)):
        body = phantom(PhantomConfig(shape=(16, 16, 16), spacing_mm=(50.0, 25.0, 25.0), seed=seed))
        write_series(tmp_path / name, body.activity, patient_id=patient)
        main(["ingest", str(tmp_path / name), str(cohort), "--case", name])
    # In a tree of folders a DICOM header says who the patient is, not the folder.
    for name in ("first", "later"):
        shutil.copytree(tmp_path / name, tmp_path / "tree" / f"exam-{name}" / "PET")
    main(["ingest", str(tmp_path / "tree"), str(cohort), "--pet", "PET", "--names", "folder"])
    opened = open_cohort(cohort)
    subjects = {name: opened.case(name).subject for name in opened.cases}
    assert len({subjects[n] for n in ("first", "later", "exam-first", "exam-later")}) == 1
    assert subjects["other"] != subjects["first"]
    assert all("P1" not in s and len(s) == 16 for s in subjects.values())


def test_nifti_pet_and_mask(scans: Path, tmp_path: Path) -> None:
    words = [str(scans / "suv.nii.gz"), str(tmp_path / "cohort"), "--mask", str(scans / "mask.nii.gz")]
    main(["ingest", *words])
    case = only(tmp_path / "cohort")
    truth = whole(nifti.open_nifti(scans / "suv.nii.gz", units="SUVbw", workdir=tmp_path))
    np.testing.assert_array_equal(whole(case.image("full")), truth)
    np.testing.assert_array_equal(whole(case.image("labels")), truth > 4)
    assert case.image("labels").units == LABEL
    assert case.labels == {1: "lesion"}


def test_activity_and_suv_agree(scans: Path, tmp_path: Path) -> None:
    main(["ingest", str(scans / "suv.nii.gz"), str(tmp_path / "cohort"), "--case", "suv"])
    words = ["--units", "Bq/mL", "--weight-kg", "70", "--dose-mbq", "300"]
    main(["ingest", str(scans / "bqml.nii"), str(tmp_path / "cohort"), "--case", "bqml", *words])
    opened = open_cohort(tmp_path / "cohort")
    found = opened.case("bqml").image("full")
    assert found.units == SUV
    np.testing.assert_allclose(whole(found), whole(opened.case("suv").image("full")), rtol=1e-5, atol=1e-6)


@pytest.fixture
def examinations(scans: Path, tmp_path: Path) -> Path:
    """Two examinations in a folder each; only the first has a mask."""
    root = tmp_path / "clinic"
    for name in ("DOE_JANE_1961", "Roe_John_1955"):
        (root / name).mkdir(parents=True)
        shutil.copy(scans / "suv.nii.gz", root / name / "pet.nii.gz")
    shutil.copy(scans / "mask.nii.gz", root / "DOE_JANE_1961" / "mask.nii.gz")
    return root


def test_folders_become_hashed_cases(examinations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cohort = tmp_path / "cohort"
    main(["ingest", str(examinations), str(cohort), "--pet", "pet.nii.gz", "--mask", "mask.nii.gz"])
    opened = open_cohort(cohort)
    assert len(opened.cases) == 2
    assert all(name.startswith("case-") for name in opened.cases)
    assert sorted(len(opened.case(name).labels) for name in opened.cases) == [0, 1]
    assert len({opened.case(name).subject for name in opened.cases}) == 2
    written = b"".join(p.read_bytes() + str(p.relative_to(cohort)).encode() for p in cohort.rglob("*") if p.is_file())
    said = "".join(capsys.readouterr()).encode()
    # Short words are looked for where people read: a digest, a number or compressed voxels may hold them by chance.
    for word in (b"doe_", b"jane", b"roe_", b"john", b"_1961"):
        assert word not in written.lower() + said.lower()
    files = [path.relative_to(cohort) for path in cohort.rglob("*") if path.is_file()]
    texts = [(cohort / path).read_text() for path in files if path.suffix == ".json"]
    assert texts
    readable = re.sub(r"[0-9a-f]{8,}|\d*\.\d+", "", " ".join([*map(str, files), *texts, said.decode()]).lower())
    assert not re.search(r"doe|roe|(?<!\d)(1961|1955)(?!\d)", readable)


def test_folders_keep_their_names_where_the_user_says_so(examinations: Path, tmp_path: Path) -> None:
    words = ["--pet", "pet.nii.gz", "--names", "folder"]
    main(["ingest", str(examinations), str(tmp_path / "cohort"), *words])
    assert open_cohort(tmp_path / "cohort").cases == ("doe_jane_1961", "roe_john_1955")


def test_an_alias_needs_the_sites_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = alias("Jane Doe", "hash")
    assert name == alias("Jane Doe", "hash") != alias("Jane Do", "hash")
    monkeypatch.setenv("PETSCALE_SITE_KEY", str(tmp_path / "other.key"))
    assert alias("Jane Doe", "hash") != name


def test_ingesting_again_keeps_what_is_there(scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ingest", str(scans / "pet"), str(tmp_path / "cohort"), "--ct", str(scans / "ct")]
    main(words)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cohort").rglob("*") if p.is_file()}
    capsys.readouterr()
    main(words)
    assert "0 committed, 1 already there" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "cohort").rglob("*") if p.is_file()}


def test_a_suffix_in_capitals_is_a_nifti(scans: Path, tmp_path: Path) -> None:
    shutil.copy(scans / "suv.nii.gz", tmp_path / "SCAN.NII.GZ")
    main(["ingest", str(tmp_path / "SCAN.NII.GZ"), str(tmp_path / "cohort")])
    assert only(tmp_path / "cohort").images == ("body", "full")


def test_simulating_from_a_cohort(cohort: Path, tmp_path: Path) -> None:
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in cohort.rglob("*") if p.is_file()}
    words = ["--drf", "4", "10", "--truth", "truth", "--scan.iterations", "1", "--realisations", "2"]
    main(["simulate", str(cohort), str(tmp_path / "new"), *words])
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in cohort.rglob("*") if p.is_file()}
    source, made = open_cohort(cohort), open_cohort(tmp_path / "new")
    assert made.cases == source.cases
    for name in made.cases:
        old, new = source.case(name), made.case(name)
        lows = ("low_drf10", "low_drf10_r1", "low_drf4", "low_drf4_r1")
        assert new.images == ("body", "ct", "full", "labels", *lows, "truth")
        assert (new.subject, new.labels) == (old.subject, old.labels)
        for image in ("truth", "ct", "labels"):
            np.testing.assert_array_equal(whole(new.image(image)), whole(old.image(image)))
        assert new.image("full").dose == Dose(1.0, "full", None)
        assert new.image("truth").dose is None
        assert [new.image(low).dose for low in lows] == [Dose(drf, "simulated", True) for drf in (10.0, 10.0, 4.0, 4.0)]
    case = made.case(made.cases[0])
    truth, full = whole(case.image("truth")), whole(case.image("full"))
    errors = [float(np.mean((whole(case.image(f"low_drf{drf}")) - full) ** 2)) for drf in (4, 10)]
    assert 0 < errors[0] < errors[1]  # less dose, more noise
    assert np.mean((full - truth) ** 2) < np.mean(truth**2)
    assert not np.array_equal(whole(case.image("low_drf4")), whole(case.image("low_drf4_r1")))


def test_simulating_again_with_another_scanner_is_refused_by_case(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(cohort, source)
    for name in ("phantom-001", "phantom-002", "phantom-003"):
        shutil.rmtree(source / "cases" / name)
    scan = replace(LowDoseConfig(), iterations=1)
    plans = simulation_plans(source, "truth", scan, [4.0], 1)
    fill_cohort("simulate", tmp_path / "new", plans, strict=True, workers=1)
    again = simulation_plans(source, "truth", replace(scan, iterations=2), [4.0], 1)
    with pytest.raises(Exception, match="SET_CASE_EXISTS case phantom-000"):
        fill_cohort("simulate", tmp_path / "new", again, strict=False, workers=1)
    assert open_cohort(tmp_path / "new").cases == ("phantom-000",)


def test_phantoms_are_people_of_their_own(tmp_path: Path) -> None:
    words = ["--body.shape", "16", "16", "16", "--body.spacing-mm", "50", "25", "25", "--scan.iterations", "1"]
    main(["phantom", str(tmp_path / "cohort"), "--cases", "2", "--drf", "20", *words])
    opened = open_cohort(tmp_path / "cohort")
    assert opened.cases == ("phantom-000", "phantom-001")
    first, second = (opened.case(name) for name in opened.cases)
    assert first.subject != second.subject
    assert not np.array_equal(whole(first.image("truth")), whole(second.image("truth")))
    assert first.images == ("body", "ct", "full", "labels", "low_drf20", "truth")
    doses = [first.image(image).dose for image in ("full", "low_drf20", "truth")]
    assert doses == [Dose(1.0, "full", None), Dose(20.0, "simulated", True), None]


def test_the_ct_of_another_patient_is_refused_before_a_voxel_is_read(scans: Path, tmp_path: Path) -> None:
    body = phantom(PhantomConfig(shape=(16, 16, 16), spacing_mm=(50.0, 25.0, 25.0)))
    values = np.full((16, 16, 16), -5.0, dtype=np.float32)
    dicom_write.write_series(tmp_path / "ct", ArraySource(values, body.ct.grid, HU), patient_id="P9", series_number=2)
    with pytest.raises(Exception, match="PAIR_PATIENT_MISMATCH"):
        open_case(Files(pet=scans / "pet", ct=tmp_path / "ct"), tmp_path)
