"""Tables of weights, doses and times: every cell checked, every row about somebody, the SUV right."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from pydicom.dataset import Dataset

from petscale.cli import main
from petscale.data.table import read_table
from petscale.splits import SplitConfig, split_cases
from storage import dicom_write, nifti
from storage.errors import InputError
from storage.phantom import PhantomConfig, phantom
from storage.reader import open_cohort
from storage.source import BQML, ArraySource
from storage.suv import NUCLIDES, decay

BODY = phantom(PhantomConfig(shape=(16, 24, 24), spacing_mm=(60.0, 18.0, 18.0), num_lesions=1)).activity
TRUTH = BODY.read(0, 16)
F18_S = NUCLIDES["F-18"][0]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("title", "cell", "name", "value"),
    [
        ("weight", "70", "weight_kg", 70.0),
        ("PatientWeight_kg", "70,5", "weight_kg", 70.5),
        ("weight_g", "70500", "weight_kg", 70.5),
        ("dose", "370", "dose_mbq", 370.0),
        ("dose", "3.7e8", "dose_mbq", 370.0),
        ("dose_mCi", "10", "dose_mbq", 370.0),
        ("RadionuclideTotalDose_Bq", "370000000", "dose_mbq", 370.0),
        ("uptake_min", "60", "uptake_s", 3600.0),
        ("TimeFromInjectionToAcquisition_s", "3600", "uptake_s", 3600.0),
        ("nuclide", "F18", "half_life_s", F18_S),
        ("TracerRadionuclide", "68Ga", "half_life_s", NUCLIDES["Ga-68"][0]),
        ("DoseReductionFactor", "DRF_20", "drf", 20.0),
        ("fold", "3", "fold", 3),
        ("injection_time", "10:35", "injection_time", "10:35"),
        ("exclude", "yes", "exclude", "the table excludes it"),
        ("cancer", "Small cell", "tag_cancer", "small_cell"),
    ],
)
def test_a_column_is_known_by_its_names_and_units(
    title: str, cell: str, name: str, value: object, tmp_path: Path
) -> None:
    table = read_table(write(tmp_path / "t.tsv", f"participant_id\t{title}\np1\t{cell}\np2\tn/a\n"))
    assert table.rows[0].values == {"patient": "p1", name: pytest.approx(value) if isinstance(value, float) else value}
    assert table.rows[1].values == {"patient": "p2"}, "an empty cell says nothing"


@pytest.mark.parametrize(
    ("title", "cell"),
    [
        ("weight", "0.07"),
        ("weight", "heavy"),
        ("weight", "700"),
        ("weight", "-70"),
        ("weight", "inf"),
        ("dose", "50000"),
        ("dose_mbq", "0.3"),
        ("dose_bq", "370"),
        ("injection_time", "soon"),
        ("nuclide", "X-1"),
        ("half_life_s", "0"),
        ("drf", "0.5"),
        ("fold", "1.5"),
        ("uptake_min", "-5"),
        ("cancer", "!"),
        ("DecayCorrection", "NONE"),
        ("ImageUnits", "CNTS"),
        ("SliceThickness_mm", "0"),
    ],
)
def test_a_wrong_cell_is_named_by_row_and_column(title: str, cell: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", f"patient,{title}\np1,\np2,{cell}\n")
    with pytest.raises(InputError, match=r"TAB_CELL t\.csv row 3, column ") as error:
        read_table(path)
    assert cell not in error.value.found.split() or cell in ("inf",)


def test_three_formats_say_the_same(tmp_path: Path) -> None:
    lines = [["SubjectID", "PatientWeight_kg", "Comment"], ["p1", "70", "a, b"], ["p2", "81.5", ""]]
    write(tmp_path / "t.tsv", "\n".join("\t".join(line) for line in lines))
    write(tmp_path / "t.csv", "\ufeffSubjectID;PatientWeight_kg;Comment\np1;70;a, b\np2;81,5;\n")
    book = openpyxl.Workbook()
    for line in (lines[0], ["p1", 70, "a, b"], ["p2", 81.5, None]):
        book.active.append(line)
    book.save(tmp_path / "t.xlsx")
    tables = [read_table(tmp_path / f"t.{kind}") for kind in ("tsv", "csv", "xlsx")]
    assert [table.rows for table in tables] == [tables[0].rows] * 3
    assert all(table.ignored == ("Comment",) for table in tables)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("t.csv", b"", "TAB_NO_KEY"),
        ("t.csv", b"weight\n70\n", "TAB_NO_KEY"),
        ("t.csv", b"patient,weight\n", "TAB_UNREADABLE"),
        ("t.csv", b'patient,weight\n"p1,70\n', "TAB_UNREADABLE"),
        ("t.csv", b"patient,weight,PatientWeight_kg\np1,70,71\n", "TAB_COLUMN_TWICE"),
        ("t.xlsx", b"PK\x03\x04 nothing", "TAB_UNREADABLE"),
    ],
)
def test_what_is_no_table_is_refused(name: str, content: bytes, code: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read_table(tmp_path / name)
    assert error.value.code == code


PATIENTS = {"p01": (50.0, 200.0), "p02": (100.0, 400.0), "p03": (80.0, 100.0)}


@pytest.fixture
def activities(tmp_path: Path) -> Path:
    """Three patients in Bq/mL, an hour after the injection."""
    for name, (weight, dose) in PATIENTS.items():
        bqml = np.float32(dose * 1e6 * decay(3600, F18_S) / (weight * 1000))
        source = ArraySource(TRUTH * bqml, BODY.grid, BQML)
        nifti.write_nifti(tmp_path / f"s/{name}/pet.nii.gz", BODY.grid, source.read)
    return tmp_path / "s"


def suv_of(cohort: Path) -> list[float]:
    opened = open_cohort(cohort)
    return [float(opened.case(name).image("full").read(0, 16).sum() / TRUTH.sum()) for name in opened.cases]


WORDS = ["--pet", "pet.nii.gz", "--units", "Bq/mL", "--names", "folder"]


@pytest.mark.parametrize(
    "columns",
    [
        lambda weight, dose: {"weight": weight, "dose": dose, "uptake_min": 60, "nuclide": "F18"},
        lambda weight, dose: {"weight": weight, "dose_bq": dose * 1e6, "uptake_s": 3600, "half_life_s": F18_S},
        lambda weight, dose: {"weight": weight, "dose_mbq": dose * decay(3600, F18_S)},
        lambda weight, dose: {
            "weight": weight,
            "dose_bq": dose * 1e6 * decay(3600, F18_S),
            "TimeFromInjectionToAcquisition_s": 3600,
            "DecayCorrection": "ADMIN",
            "ImageUnits": "BQML",
        },
        lambda weight, dose: {
            "weight": weight,
            "dose": dose,
            "injection_time": "23:30",
            "scan_time": "00:30",
            "nuclide": "F-18",
        },
    ],
)
def test_each_patient_has_the_suv_of_its_own_row(
    columns: Callable[[float, float], dict[str, object]], activities: Path, tmp_path: Path
) -> None:
    names = list(columns(1, 1))
    rows = ["participant_id\t" + "\t".join(names)]
    rows += [f"{p}\t" + "\t".join(str(columns(*facts)[name]) for name in names) for p, facts in PATIENTS.items()]
    table = write(tmp_path / "participants.tsv", "\n".join(rows))
    main(["ingest", str(activities), str(tmp_path / "cohort"), *WORDS, "--table", str(table)])
    assert suv_of(tmp_path / "cohort") == pytest.approx([1.0] * 3, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("patient,weight\nq1,70\n", "TAB_NO_MATCH"),
        ("patient,weight,dose\np01,50,200\np01,51,200\n", "TAB_AMBIGUOUS"),
        ("patient,dose,uptake_min\np01,200,60\np02,400,60\np03,100,60\n", "PET_NUCLIDE"),
        ("patient,weight\np01,50\np02,100\np03,80\n", "PET_DOSE"),
        ("patient,weight,dose,units\np01,50,200,SUV\n", "TAB_CONTRADICTS"),
        ("patient,exclude\np01,1\np02,1\np03,1\n", "SET_NO_EXAMINATION"),
    ],
)
def test_a_table_that_leaves_the_suv_open_is_refused(
    text: str, code: str, activities: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    table = write(tmp_path / "t.csv", text)
    line = refused("ingest", activities, tmp_path / "cohort", *WORDS, "--table", table)
    assert line.split()[0] == code or (code == "PET_NUCLIDE" and line.startswith("PET_"))


def test_a_voxel_size_that_the_file_contradicts_is_told_and_not_used(
    activities: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{p},{w},{d * decay(3600, F18_S)},18,{1.65 if p == 'p02' else 60}" for p, (w, d) in PATIENTS.items()]
    table = write(tmp_path / "t.csv", "patient,weight,dose,PixelSpacing_x_mm,SliceThickness_mm\n" + "\n".join(rows))
    main(["ingest", str(activities), str(tmp_path / "cohort"), *WORDS, "--table", str(table)])
    told = [line for line in capsys.readouterr().err.splitlines() if "which is used" in line]
    assert told == ["note the table's spacing_z_mm is not the file's, which is used (1 of 3 examinations)"]
    assert open_cohort(tmp_path / "cohort").case("p02").image("full").grid.spacing_mm == (60.0, 18.0, 18.0)


def test_what_was_stated_is_recorded_by_name_and_never_by_value(activities: Path, tmp_path: Path) -> None:
    rows = "patient,weight,dose\n" + "\n".join(f"{p},{w + 0.123},{d}" for p, (w, d) in PATIENTS.items())
    table = write(tmp_path / "t.csv", rows)
    main(["ingest", str(activities), str(tmp_path / "cohort"), *WORDS, "--table", str(table)])
    facts = open_cohort(tmp_path / "cohort").case("p01").image("full").provenance
    assert facts["stated"] == {"weight_kg": "table", "dose_mbq": "table"}
    assert "0.123" not in str(facts)


@pytest.mark.parametrize(
    ("columns", "row", "told"),
    [
        ("weight", "81", "PatientWeight"),
        ("dose", "375", "RadionuclideTotalDose"),
        ("nuclide", "Ga-68", "RadionuclideHalfLife"),
        ("injection_time", "10:40", "RadiopharmaceuticalStartDateTime"),
        ("injection_time", "2020-01-02 11:00:00", "RadiopharmaceuticalStartDateTime"),
        ("weight,dose,nuclide,injection_time", "80.0,370,F18,11:00:30", ""),
    ],
)
def test_table_and_header_must_agree_in_all_that_the_suv_rests_on(
    columns: str, row: str, told: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    dicom_write.write_series(tmp_path / "s/p1/pet", BODY, patient_id="P1", weight_kg=80.0)
    table = write(tmp_path / "t.csv", f"patient,{columns}\np1,{row}\n")
    words = ["ingest", tmp_path / "s", tmp_path / "cohort", "--pet", "pet", "--table", table]
    if told:
        line = refused(*words)
        assert line.startswith("TAB_CONTRADICTS")
        assert told in line
    else:
        main([str(word) for word in words])
        assert suv_of(tmp_path / "cohort") == pytest.approx([1.0], rel=1e-3)


def test_a_weight_in_g_in_a_header_is_the_tables_weight_in_kg(tmp_path: Path) -> None:
    def in_g(z: int, header: Dataset) -> None:
        header.PatientWeight = "80000"

    dicom_write.write_series(tmp_path / "s/p1/pet", BODY, patient_id="P1", weight_kg=80.0, edit=in_g)
    table = write(tmp_path / "t.csv", "patient,weight\np1,80\n")
    main(["ingest", str(tmp_path / "s"), str(tmp_path / "cohort"), "--pet", "pet", "--table", str(table)])
    assert suv_of(tmp_path / "cohort") == pytest.approx([1.0], rel=1e-3)


def test_folds_of_a_table_part_the_patients(activities: Path, tmp_path: Path) -> None:
    rows = "\n".join(f"{p},{w},{d},{n % 2}" for n, (p, (w, d)) in enumerate(PATIENTS.items()))
    table = write(tmp_path / "t.csv", "patient,weight,dose,fold\n" + rows)
    main(["ingest", str(activities), str(tmp_path / "cohort"), *WORDS, "--table", str(table)])
    cohort = open_cohort(tmp_path / "cohort")
    for fold, tested in ((0, ("p01", "p03")), (1, ("p02",))):
        assert split_cases(cohort, SplitConfig(fold_tag="fold", fold=fold)).test == tested
    for config, code in (
        (SplitConfig(fold_tag="fold", fold=7), "fold 7"),
        (SplitConfig(fold_tag="part"), "no such tag"),
    ):
        with pytest.raises(InputError, match=f"SET_NO_FACT.*{code}"):
            split_cases(cohort, config)


def test_rows_leave_cases_out_and_tag_them(activities: Path, tmp_path: Path) -> None:
    rows = "patient,weight,dose,fold,exclude\np01,50,200,0,\np02,100,400,1,no\np03,80,100,2,moved\n"
    table = write(tmp_path / "t.csv", rows)
    main(["ingest", str(activities), str(tmp_path / "cohort"), *WORDS, "--table", str(table)])
    cohort = open_cohort(tmp_path / "cohort")
    assert cohort.cases == ("p01", "p02")
    assert [cohort.case(name).tags for name in cohort.cases] == [{"fold": "0"}, {"fold": "1"}]


def test_a_header_is_completed_and_never_contradicted(tmp_path: Path, refused: Callable[..., str]) -> None:
    def nameless(z: int, header: object) -> None:
        header.PatientWeight = None  # type: ignore[attr-defined]

    dicom_write.write_series(tmp_path / "s/p1/pet", BODY, patient_id="P1", weight_kg=80.0, edit=nameless)
    words = ["--pet", "pet", "--names", "folder"]
    assert refused("ingest", tmp_path / "s", tmp_path / "cohort", *words).startswith("PET_WEIGHT")
    table = write(tmp_path / "t.csv", "patient,weight,dose\np1,80,370\n")
    main(["ingest", str(tmp_path / "s"), str(tmp_path / "cohort"), *words, "--table", str(table)])
    assert suv_of(tmp_path / "cohort") == pytest.approx([1.0], rel=1e-3)
    facts = open_cohort(tmp_path / "cohort").case("p1").image("full").provenance
    assert facts["completed"] == ["weight_kg"]
    assert "overridden" not in facts
    wrong = write(tmp_path / "w.csv", "patient,weight,dose\np1,80,400\n")
    line = refused("ingest", tmp_path / "s", tmp_path / "other", *words, "--table", wrong)
    assert line.startswith("TAB_CONTRADICTS")
    assert "they differ by 8%" in line
