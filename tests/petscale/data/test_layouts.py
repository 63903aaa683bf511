"""Public data sets as downloaded, made of phantoms: what goes in, on which scale, whose it is, and what stays out."""

import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from petscale.cli import main
from petscale.data.layouts.dose_names import parse_drf, without_drf
from petscale.data.trees import write_tree
from storage import dicom_write, nifti, suv
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig, phantom
from storage.reader import Case, Cohort, open_cohort
from storage.source import SUV, ArraySource, Dose

BODY = PhantomConfig(shape=(24, 32, 32), spacing_mm=(40.0, 14.0, 14.0), num_lesions=2)
SCAN = LowDoseConfig(million_prompts_per_bed=20.0, iterations=1)


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per layout, three patients each; read only."""
    folder = tmp_path_factory.mktemp("trees")
    for layout, drfs in (("udpet", [20.0]), ("autopet", []), ("lung", []), ("bids", [20.0])):
        write_tree(layout, folder / layout, 3, BODY, SCAN, drfs)
    return folder


def ingested(source: Path, cohort: Path, *words: str) -> Cohort:
    main(["ingest", str(source), str(cohort), *words])
    return open_cohort(cohort)


def voxels(case: Case, image: str) -> np.ndarray:
    stored = case.image(image)
    return stored.read(0, stored.grid.shape[0])


@pytest.mark.parametrize(
    ("name", "drf"),
    [
        ("Full_dose", 1),
        ("2.886 x 600 WB NORMAL", 1),
        ("2.886 x 600 WB normal", 1),
        ("1-2 dose", 2),
        ("1-100 dose", 100),
        ("1-10 dose", 10),
        ("2.886 x 600 WB D4", 4),
        ("2.886 x 600 WB D100", 100),
        ("WB DRF_20", 20),
        ("Anonymous-01_DRF-50", 50),
        ("100 dose", None),
        ("PART1", None),
        ("abnormal", None),
        ("Subject_1-4", None),
        ("CT WB", None),
        ("1-4 dose old", None),
    ],
)
def test_every_spelling_of_a_dose_and_no_other_name(name: str, drf: float | None) -> None:
    assert parse_drf(name) == drf


def test_what_is_left_of_a_name_tells_the_examination() -> None:
    assert {without_drf(f"Anonymous-01_DRF-{drf}") for drf in (4, 20, 100)} == {"Anonymous-01"}


def test_udpet_low_doses_are_on_the_full_doses_scale(trees: Path, tmp_path: Path) -> None:
    """Their own headers divide the activity by the DRF and begin later: 20 times the SUV, or nothing at all."""
    cohort = ingested(trees / "udpet", tmp_path / "cohort", "--layout", "udpet")
    assert len(cohort.cases) == 3, "the study on the organisers' list is left out"
    totals = []
    for name in cohort.cases:
        case = cohort.case(name)
        assert case.images == ("body", "full", "low_drf20")
        assert case.image("low_drf20").dose == Dose(20.0, "thinned", True)
        assert case.image("full").dose == Dose(1.0, "full", None)
        facts = case.image("low_drf20").provenance
        assert facts["own_suv_factor_differs_percent"] == pytest.approx(1900, rel=1e-3)
        assert facts["suv_factor"] == "full dose"
        totals.append(voxels(case, "low_drf20").sum() / voxels(case, "full").sum())
    assert totals == pytest.approx([1.0] * 3, abs=0.15)


def test_what_a_list_leaves_out_is_kept_when_asked_and_is_the_same_patient(trees: Path, tmp_path: Path) -> None:
    words = ["--layout", "udpet", "--keep", "Anonymous_ANO_20220224_1711567_102845", "--exclude", "PART1"]
    with pytest.raises(SystemExit):
        ingested(trees / "udpet", tmp_path / "none", "--layout", "udpet", "--exclude", "nobody")
    cohort = ingested(trees / "udpet", tmp_path / "cohort", *words[:4])
    assert len(cohort.cases) == 4
    assert len({cohort.case(name).subject for name in cohort.cases}) == 3


def test_nothing_of_a_tree_that_may_name_a_patient_is_stored(trees: Path, tmp_path: Path) -> None:
    for layout in ("udpet", "lung", "bids", "autopet"):
        ingested(trees / layout, tmp_path / layout, "--layout", layout)
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.suffix == ".json":
            text = path.read_text()
            for secret in ("PHANTOM", "Subject", "Anonymous", "PETCT_", "Lung_Dx", "sub-0", "_20210101_", "NA-PET-CT"):
                assert secret not in text, (path, secret)


def test_parts_in_any_order_and_at_once_are_the_whole(trees: Path, tmp_path: Path) -> None:
    words = ["--layout", "udpet"]
    whole = ingested(trees / "udpet", tmp_path / "whole", *words)

    def roots(cohort: Path) -> Mapping[str, str]:
        found: dict[str, str] = json.loads((cohort / "CATALOG.json").read_bytes())
        return found

    for part in ("3/3", "1/3", "2/3"):
        ingested(trees / "udpet", tmp_path / "ordered", *words, "--part", part)
    with ThreadPoolExecutor(3) as pool:  # each holds the cohort beside the others
        list(pool.map(lambda n: ingested(trees / "udpet", tmp_path / "at-once", *words, "--part", f"{n}/3"), (1, 2, 3)))
    assert roots(tmp_path / "ordered") == roots(tmp_path / "at-once") == roots(whole.folder)
    assert len(roots(whole.folder)) == 3


def test_autopet_tree_and_flat_form(trees: Path, tmp_path: Path) -> None:
    cohort = ingested(trees / "autopet", tmp_path / "cohort", "--layout", "autopet")
    subjects = [cohort.case(name).subject for name in cohort.cases]
    assert (len(subjects), len(set(subjects))) == (4, 3), "two studies of one patient"
    for name in cohort.cases:
        assert cohort.case(name).labels == {1: "lesion"}
        assert voxels(cohort.case(name), "labels").sum() > 0
    flat = tmp_path / "flat"
    for number, study in enumerate(sorted((trees / "autopet").rglob("SUV.nii.gz"))):
        case = f"fdg_{study.parents[1].name.removeprefix('PETCT_')}_{number}"
        (flat / "imagesTr").mkdir(parents=True, exist_ok=True)
        (flat / "labelsTr").mkdir(exist_ok=True)
        places = {"CTres": f"imagesTr/{case}_0000", "SUV": f"imagesTr/{case}_0001", "SEG": f"labelsTr/{case}"}
        for name, there in places.items():
            shutil.copy(study.with_name(f"{name}.nii.gz"), flat / f"{there}.nii.gz")
    other = ingested(flat, tmp_path / "other", "--layout", "autopet")
    assert len({other.case(name).subject for name in other.cases}) == 3
    assert len(other.cases) == 4
    assert all(other.case(name).images == ("body", "ct", "full", "labels") for name in other.cases)


def test_lung_passes_a_ct_alone_by_and_draws_the_boxes(
    trees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = ingested(trees / "lung", tmp_path / "cohort", "--layout", "lung")
    assert "passed by 1 places: no PET (CT alone)" in capsys.readouterr().err
    assert len(cohort.cases) == 2
    assert {cohort.case(name).tags["cancer"] for name in cohort.cases} == {"adenocarcinoma", "small_cell"}
    for name in cohort.cases:
        case = cohort.case(name)
        drawn = voxels(case, "labels") > 0
        assert case.labels == {1: "lesion"}
        hot = voxels(case, "full") > 0.8 * voxels(case, "full")[drawn].max()
        assert drawn.any()
        assert (hot & drawn).any()
        assert drawn.mean() < 0.02


def test_bids_suv_follows_the_sidecar_and_the_table(trees: Path, tmp_path: Path) -> None:
    """The activity is that of the injection: taken for that of the scan, every SUV would be a third too small."""
    cohort = ingested(trees / "bids", tmp_path / "cohort", "--layout", "bids")
    assert len(cohort.cases) == 3
    truth = sorted(float(phantom(person(n)).activity.read(0, 24).sum()) for n in range(3))
    found = sorted(float(voxels(cohort.case(name), "full").sum()) for name in cohort.cases)
    assert found == pytest.approx(truth, rel=0.1), "OSEM keeps the activity"
    suv = ingested(trees / "udpet", tmp_path / "udpet", "--layout", "udpet")
    theirs = sorted(float(voxels(suv.case(name), "full").sum()) for name in suv.cases)
    assert found == pytest.approx(theirs, rel=1e-3), "the same scans as DICOM"
    assert cohort.case(cohort.cases[0]).image("low_drf20").dose == Dose(20.0, "thinned", True)


def person(number: int) -> PhantomConfig:
    return PhantomConfig(shape=BODY.shape, spacing_mm=BODY.spacing_mm, num_lesions=2, seed=number)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"ImageDecayCorrected": False}, "ImageDecayCorrected"),
        ({"Units": "counts"}, "Units"),
        ({"InjectionStart": None}, "InjectionStart"),
        ({"InjectedRadioactivityUnits": "Ci?"}, "InjectedRadioactivityUnits"),
        ({"TracerRadionuclide": "X99"}, "TracerRadionuclide"),
        ({"InjectionStart": 7200}, "before the injection"),
    ],
)
def test_a_sidecar_that_leaves_the_suv_open_is_refused(
    change: dict[str, object], told: str, trees: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    shutil.copytree(trees / "bids", tmp_path / "bids")
    path = next((tmp_path / "bids/sub-01").rglob("*FDG_pet.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    line = refused("ingest", tmp_path / "bids", tmp_path / "cohort", "--layout", "bids")
    assert line.startswith("BIDS_SIDECAR")
    assert told in line


def test_patterns_find_what_a_layout_finds(trees: Path, tmp_path: Path) -> None:
    base = "FDG-PET-CT-Lesions/{patient}/{study}"
    words = ["--pet", f"{base}/SUV.nii.gz", "--ct", f"{base}/CTres.nii.gz", "--mask", f"{base}/SEG.nii.gz"]
    ours = ingested(trees / "autopet", tmp_path / "ours", "--layout", "patterns", *words)
    theirs = ingested(trees / "autopet", tmp_path / "theirs", "--layout", "autopet")
    subjects = [sorted(cohort.case(name).subject for name in cohort.cases) for cohort in (ours, theirs)]
    assert subjects[0] == subjects[1]
    stars = ["--pet", "*/*/*/SUV.nii.gz", "--patient", "2"]
    counted = ingested(trees / "autopet", tmp_path / "stars", "--layout", "patterns", *stars)
    assert sorted(counted.case(name).subject for name in counted.cases) == subjects[0]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Two patients' folders of NIfTI in SUV: full.nii.gz and D20.nii.gz."""
    folder = tmp_path / "pairs"
    for number in range(2):
        activity = phantom(person(number)).activity
        for name, noise in (("full", 0.0), ("D20", 0.05)):
            draw = np.random.default_rng(number).normal(1, noise, activity.grid.shape).astype(np.float32)
            values = np.maximum(activity.read(0, 24) * draw, 0)
            nifti.write_nifti(
                folder / f"p{number}/{name}.nii.gz", activity.grid, ArraySource(values, activity.grid, SUV).read
            )
    return folder


def test_low_doses_by_name_by_pattern_and_of_unknown_dose(pairs: Path, tmp_path: Path) -> None:
    named = ingested(pairs, tmp_path / "named", "--pet", "full.nii.gz", "--low", "20=D20.nii.gz")
    words = ["--pet", "{patient}/full.nii.gz", "--low", "{drf}={patient}/D{drf}.nii.gz"]
    found = ingested(pairs, tmp_path / "found", "--layout", "patterns", *words)
    for cohort in (named, found):
        case = cohort.case(cohort.cases[0])
        assert case.images == ("body", "full", "low_drf20")
        assert case.image("low_drf20").dose == Dose(20.0, "thinned", True)
    late = ["--low", "late=D20.nii.gz", "--relation", "separate"]
    other = ingested(pairs, tmp_path / "other", "--pet", "full.nii.gz", *late)
    dose = other.case(other.cases[0]).image("late").dose
    assert dose is not None
    assert np.isnan(dose.drf)
    assert (dose.relation, dose.shares_noise) == ("separate", False)


def moved(shift_mm: float, flip: bool, size: float) -> Callable[[Path], None]:
    """A change of a file's geometry."""

    def change(path: Path) -> None:
        source = nifti.open_nifti(path, units="SUVbw", workdir=path.parent)
        values, affine = source.read(0, 24), source.grid.affine.copy()
        affine[0, 3] += shift_mm
        affine[:3, :3] *= size
        if flip:
            affine[:3, 3] += affine[:3, 0] * (values.shape[2] - 1)
            affine[:3, 0] *= -1
            values = values[:, :, ::-1]
        grid = type(source.grid)(source.grid.shape, affine)
        nifti.write_nifti(path, grid, lambda a, b: np.ascontiguousarray(values[a:b]))

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (moved(3.0, False, 1.0), "3.00 mm"),
        (moved(0.0, True, 1.0), "another order or direction"),
        (moved(0.0, False, 1.1), "15.4"),
    ],
)
def test_a_pair_on_two_grids_is_refused_with_the_difference(
    change: Callable[[Path], None], told: str, pairs: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    change(pairs / "p0/D20.nii.gz")
    shutil.rmtree(pairs / "p1")
    words = ["--pet", "full.nii.gz", "--low", "20=D20.nii.gz"]
    line = refused("ingest", pairs, tmp_path / "cohort", *words)
    assert line.startswith("PAIR_GRID_MISMATCH")
    assert told in line
    cohort = ingested(pairs, tmp_path / "asked", *words, "--other-grids", "resample")
    facts = cohort.case(cohort.cases[0]).image("low_drf20").provenance
    assert facts["resampled"] == "linear"


def test_a_low_dose_that_was_left_unscaled_is_refused(pairs: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    path = pairs / "p0/D20.nii.gz"
    source = nifti.open_nifti(path, units="SUVbw", workdir=tmp_path)
    values = source.read(0, 24) / np.float32(20)
    nifti.write_nifti(path, source.grid, ArraySource(values, source.grid, SUV).read)
    shutil.rmtree(pairs / "p1")
    line = refused("ingest", pairs, tmp_path / "cohort", "--pet", "full.nii.gz", "--low", "20=D20.nii.gz")
    assert line.startswith("PAIR_SCALE")
    assert "its total uptake is 0.0" in line


def test_two_scans_are_no_thinned_pair_and_each_has_its_own_scale(tmp_path: Path, refused: Callable[..., str]) -> None:
    activity = phantom(BODY).activity
    dicom_write.write_series(tmp_path / "p/full", activity, patient_id="P1")

    def two_hours_later(z: int, header: Dataset) -> None:
        header.AcquisitionTime = header.SeriesTime = "140000"
        header.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartDateTime = "20200101130000"

    dicom_write.write_series(
        tmp_path / "p/low", activity, patient_id="P1", series_number=2, dose_mbq=37.0, edit=two_hours_later
    )
    words = ["--pet", "full", "--low", "10=low"]
    assert refused("ingest", tmp_path, tmp_path / "cohort", *words).startswith("PAIR_NOT_ONE_SCAN")
    cohort = ingested(tmp_path, tmp_path / "cohort", *words, "--relation", "separate")
    case = cohort.case(cohort.cases[0])
    assert case.image("low_drf10").dose == Dose(10.0, "separate", False)
    assert voxels(case, "low_drf10").sum() == pytest.approx(voxels(case, "full").sum(), rel=1e-3)


def described(text: str, z: int, header: Dataset) -> None:
    header.SeriesDescription = text


def test_one_of_several_series_is_chosen_by_number_or_words(tmp_path: Path, refused: Callable[..., str]) -> None:
    activity = phantom(BODY).activity
    for number, text in ((2, "PET WB PSF TOF"), (3, "PET WB"), (4, "PET DOE^JANE 1950")):
        dicom_write.write_series(
            tmp_path / f"s/{number}",
            activity,
            patient_id="P1",
            series_number=number,
            edit=partial(described, text),
        )
    line = refused("ingest", tmp_path / "s", tmp_path / "cohort")
    assert line.startswith("SER_AMBIGUOUS")
    assert "series 2: PT of 24 slices of 32 x 32, 14.00 x 14.00 mm (PET WB PSF TOF)" in line
    assert "DOE" not in line
    assert "1950" not in line
    for number, choice in enumerate(("3", "PSF TOF")):
        ingested(tmp_path / "s", tmp_path / "cohort", "--series", f"pet={choice}", "--case", f"c{number}")
    assert refused("ingest", tmp_path / "s", tmp_path / "cohort", "--series", "pet=9").startswith("SER_NOT_CHOSEN")


def test_the_patient_of_a_nifti_is_the_users_or_its_contents(pairs: Path, tmp_path: Path) -> None:
    for case, path, words in (
        ("baseline", pairs / "p0/full.nii.gz", ["--patient", "p01"]),
        ("followup", pairs / "p1/full.nii.gz", ["--patient", "p01"]),
        ("alone", pairs / "p0/D20.nii.gz", []),
    ):
        cohort = ingested(path, tmp_path / "cohort", "--case", case, *words)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(pairs / "p0/D20.nii.gz", tmp_path / "elsewhere/copy.nii.gz")
    cohort = ingested(tmp_path / "elsewhere/copy.nii.gz", tmp_path / "cohort", "--case", "copy")
    subject = {name: cohort.case(name).subject for name in cohort.cases}
    assert subject["baseline"] == subject["followup"]
    assert subject["alone"] == subject["copy"], "the same file from another folder is the same patient's"
    assert subject["alone"] != subject["baseline"]


def test_a_preview_writes_nothing(trees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["ingest", str(trees / "udpet"), str(tmp_path / "cohort"), "--layout", "udpet", "--dry-run"])
    told = capsys.readouterr().err
    assert not (tmp_path / "cohort").exists()
    assert told.count("low_drf20 (DRF 20, thinned)") == 3
    assert "left out" in told
    assert "3 cases, 0 of them would be refused; nothing was written" in told


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--layout", "udpte"], "CFG_LAYOUT"),
        (["--layout", "patterns", "--pet", "{patient}_full.nii.gz"], "SET_NO_PET"),
        (["--layout", "patterns", "--pet", "p0/{scan}.nii.gz"], "SET_NO_PATIENT"),
        (["--layout", "patterns", "--pet", "{case}/full.nii.gz", "--patient", "person"], "CFG_PATTERN"),
        (["--layout", "patterns", "--pet", "../x/full.nii.gz"], "CFG_PATTERN"),
        (["--pet", "full.nii.gz", "--low", "D20.nii.gz"], "CFG_LOW"),
        (["--pet", "full.nii.gz", "--low", "1=D20.nii.gz"], "CFG_LOW"),
        (["--pet", "full.nii.gz", "--low", "20=D21.nii.gz"], "SET_NO_LOW"),
        (["--pet", "full.nii.gz", "--series", "3"], "CFG_SERIES"),
        (["--pet", "full.nii.gz", "--part", "4/3"], "CFG_PART"),
        (["--pet", "full.nii.gz", "--part", "0/3"], "CFG_PART"),
        (["--pet", "full.nii.gz", "--weight-kg", "70"], "CFG_MANY_PATIENTS"),
        (["--pet", "full.nii.gz", "--case", "one"], "CFG_MANY_PATIENTS"),
        (["--pet", "full.nii.gz", "--exclude", "p0", "p1"], "SET_NO_EXAMINATION"),
        (["--layout", "udpet", "--exclude", "p7"], "SET_NO_EXAMINATION"),
        (["--pet", "full.nii.gz", "--low", "ct=D20.nii.gz"], "CFG_LOW"),
        (["--pet", "full.nii.gz", "--low", "full=D20.nii.gz"], "CFG_LOW"),
        (["--pet", "full.nii.gz", "--low", "late=D20.nii.gz", "late=full.nii.gz"], "CFG_LOW"),
        (["--pet", "full.nii.gz", "--relation", "separate"], "CFG_NO_EFFECT"),
        (["--pet", "full.nii.gz", "--names", "1=liver"], "CFG_NO_EFFECT"),
        (["--pet", "full.nii.gz", "--keep", "p0"], "CFG_NO_EFFECT"),
        (["--pet", "full.nii.gz", "--interpolation", "cubic"], "CFG_NO_EFFECT"),
        (["--layout", "udpet", "--low", "20=D20.nii.gz"], "CFG_NO_EFFECT"),
        (["--layout", "udpet", "--units", "Bq/mL"], "CFG_NO_EFFECT"),
        (["--layout", "bids", "--ct", "ct"], "CFG_NO_EFFECT"),
        (["--layout", "autopet", "--mask", "SEG.nii.gz"], "CFG_NO_EFFECT"),
        (["--layout", "study", "--patient", "p0"], "CFG_NO_EFFECT"),
        (["--layout", "lung"], "SET_NO_PET"),
        (["--layout", "bids"], "SET_NO_PET"),
        (["--layout", "study"], "SET_NO_PET"),
        (["--layout", "autopet"], "SET_NO_PET"),
    ],
)
def test_a_wrong_request_is_one_coded_line(
    words: list[str], code: str, pairs: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert refused("ingest", pairs, tmp_path / "cohort", *words).split()[0] == code
    assert not (tmp_path / "cohort").exists()


def test_simulated_doses_stand_beside_real_ones(pairs: Path, tmp_path: Path) -> None:
    ingested(pairs, tmp_path / "real", "--pet", "full.nii.gz", "--low", "20=D20.nii.gz", "late=D20.nii.gz")
    scan = ["--scan.iterations", "1", "--scan.million-prompts-per-bed", "20"]
    main(["simulate", str(tmp_path / "real"), str(tmp_path / "more"), "--drf", "4", "20", *scan])
    real, more = (open_cohort(tmp_path / name) for name in ("real", "more"))
    before, after = real.case(real.cases[0]), more.case(real.cases[0])
    assert set(after.images) == {"body", "full", "late", "low_drf20", "low_drf20_measured", "low_drf4", "truth"}
    for name, there in (("late", "late"), ("low_drf20_measured", "low_drf20"), ("truth", "full")):
        assert np.array_equal(voxels(after, name), voxels(before, there))
    assert after.image("low_drf20_measured").dose == Dose(20.0, "thinned", True)
    dose = after.image("low_drf20").dose
    assert dose is not None
    assert dose.relation == "simulated"


@pytest.mark.parametrize(
    ("stated", "units", "wrong"),
    [
        ("Bq/mL", "SUVbw", True),
        ("BQML", "SUVbw", True),
        ("g/mL", "Bq/mL", True),
        ("SUV", "SUVbw", False),
        ("?", "SUVbw", False),
    ],
)
def test_a_sidecar_that_states_another_unit_is_believed(
    stated: str, units: str, wrong: bool, pairs: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (pairs / "p0/full.json").write_text(json.dumps({"Units": stated}))
    words = ["ingest", pairs / "p0/full.nii.gz", tmp_path / "cohort", "--units", units]
    if wrong:
        activity = ["--weight-kg", "70", "--dose-mbq", "300"] if units == "Bq/mL" else []
        assert refused(*words, *activity).startswith("NII_UNITS")
    else:
        main([str(word) for word in words])


def test_a_preview_refuses_what_an_ingest_would(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved(3.0, False, 1.0)(pairs / "p0/D20.nii.gz")
    words = ["ingest", str(pairs), str(tmp_path / "cohort"), "--pet", "full.nii.gz", "--low", "20=D20.nii.gz"]
    main([*words, "--dry-run"])
    told = capsys.readouterr().err
    assert "refused  PAIR_GRID_MISMATCH image low_drf20" in told
    assert "2 cases, 1 of them would be refused" in told
    main([*words, "--dry-run", "--units", "Bq/mL"])
    assert "2 cases, 2 of them would be refused" in capsys.readouterr().err


def test_counts_of_two_series_keep_their_own_scales(tmp_path: Path) -> None:
    """Philips writes counts with a factor per series: that of the full dose is not the low dose's."""
    activity = phantom(BODY).activity

    def counts(scale: float, z: int, header: Dataset) -> None:
        block = header.private_block(0x7053, "Philips PET Private Group", create=True)
        header.Units = "CNTS"
        factor = float(header.RescaleSlope)
        header.RescaleSlope = f"{factor * scale:.10g}"
        block.add_new(0x00, "DS", f"{SUV_PER_BQML / scale:.10g}")

    for number, (name, scale) in enumerate((("full", 1.0), ("low", 3.0)), start=1):
        folder = tmp_path / f"s/p/{name}"
        dicom_write.write_series(folder, activity, patient_id="P1", series_number=number, edit=partial(counts, scale))
    cohort = ingested(tmp_path / "s", tmp_path / "cohort", "--pet", "full", "--low", "20=low")
    case = cohort.case(cohort.cases[0])
    truth = activity.read(0, 24).sum()
    assert voxels(case, "full").sum() == pytest.approx(truth, rel=1e-3)
    assert voxels(case, "low_drf20").sum() == pytest.approx(truth, rel=1e-3)


SUV_PER_BQML = suv.suv_factor_decay_corrected(70.0, 370e6 * suv.decay(3600.0, suv.NUCLIDES["F-18"][0]))
