"""Names of labels are read from pairs, tables and files, and no free text of a file gets through."""

from pathlib import Path

import pytest

from storage.errors import InputError
from storage.label_names import (
    LABEL_NAME,
    TABLES,
    is_lesion,
    known_name,
    names_from,
    parse_names,
    plain_name,
    read_dseg,
)


def refused(text: str) -> str:
    with pytest.raises(InputError) as error:
        parse_names(text)
    assert "\n" not in str(error.value)
    return error.value.code


def test_pairs() -> None:
    assert parse_names(" 1=liver, 5 = brain,") == {1: "liver", 5: "brain"}
    assert parse_names("65535=rib_left_1") == {65535: "rib_left_1"}


def test_two_values_may_have_one_name() -> None:
    assert parse_names("2=kidneys,3=kidneys") == {2: "kidneys", 3: "kidneys"}


def test_a_pair_stands_instead_of_a_tables_name_wherever_it_is_written() -> None:
    names = parse_names("totalsegmentator,2=kidneys,3=kidneys,200=lesion")
    assert (names[1], names[2], names[3], names[5], names[200]) == ("spleen", "kidneys", "kidneys", "liver", "lesion")
    assert parse_names("2=kidneys,3=kidneys,200=lesion,TotalSegmentator") == names


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "LBL_NAMES_EMPTY"),
        (" , ", "LBL_NAMES_EMPTY"),
        ("liver", "LBL_NAMES_FORM"),
        ("1=liver;5=brain", "LBL_NAMES_NAME"),
        ("1=liver,1=brain", "LBL_NAMES_TWICE"),
        ("1=liver,1=liver", "LBL_NAMES_TWICE"),
        ("=liver", "LBL_NAMES_NUMBER"),
        ("0=air", "LBL_NAMES_NUMBER"),
        ("-1=liver", "LBL_NAMES_NUMBER"),
        ("1.5=liver", "LBL_NAMES_NUMBER"),
        ("65536=liver", "LBL_NAMES_NUMBER"),
        ("1_0=liver", "LBL_NAMES_NUMBER"),
        ("²=liver", "LBL_NAMES_NUMBER"),
        ("1=", "LBL_NAMES_NAME"),
        ("1=Liver", "LBL_NAMES_NAME"),
        ("1=left kidney", "LBL_NAMES_NAME"),
        ("1=1liver", "LBL_NAMES_NAME"),
        ("1=../liver", "LBL_NAMES_NAME"),
        ("1=" + "a" * 65, "LBL_NAMES_NAME"),
    ],
)
def test_mistakes_have_codes(text: str, code: str) -> None:
    assert refused(text) == code


def test_a_refused_name_is_not_repeated() -> None:
    with pytest.raises(InputError) as error:
        parse_names("3=Jane Doe")
    assert "Jane" not in str(error.value)
    assert "value 3" in str(error.value)


def test_tables_hold_the_classes_of_their_programs() -> None:
    total = TABLES["totalsegmentator"]
    assert list(total) == list(range(1, 118))
    assert len(set(total.values())) == 117
    some = {1: "spleen", 5: "liver", 21: "urinary_bladder", 25: "sacrum", 26: "vertebrae_s1", 50: "vertebrae_c1"}
    some |= {51: "heart", 79: "spinal_cord", 90: "brain", 92: "rib_left_1", 104: "rib_right_1", 116: "sternum"}
    some |= {117: "costal_cartilages"}
    assert {value: total[value] for value in some} == some
    assert TABLES["autopet"] == {1: "lesion"}
    assert all(LABEL_NAME.fullmatch(name) for table in TABLES.values() for name in table.values())


def test_lesions_are_those_that_evaluation_takes_for_lesions() -> None:
    assert [is_lesion(name) for name in ("lesion", "lesion_2", "liver", "old_lesion")] == [True, True, False, False]


@pytest.mark.parametrize("separator", ["\t", ",", ";"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_bids_tables(tmp_path: Path, separator: str, ending: str) -> None:
    rows = [
        ("index", "name", "abbreviation", "mapping"),
        ("0", "Background", "BG", ""),
        ("5", "Left-Cerebral-White-Matter", "LWM", "2"),
        ("7.0", "Liver", "n/a", "1"),
    ]
    path = tmp_path / "atlas_dseg.tsv"
    path.write_text("\ufeff" + ending.join(separator.join(row) for row in rows) + ending, encoding="utf-8")
    assert read_dseg(path) == {5: "left_cerebral_white_matter", 7: "liver"}
    assert names_from(str(path)) == read_dseg(path)


def test_columns_of_a_bids_table_may_stand_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("Name\tColor\tIndex\n'Liver'\t#ff53bb\t3\n\n")
    assert read_dseg(tmp_path / "t.tsv") == {3: "liver"}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "LBL_TABLE"),
        ("1\tliver\n", "LBL_TABLE"),
        ("index\tlabel\n1\tliver\n", "LBL_TABLE"),
        ("index\tname\n1\n", "LBL_TABLE"),
        ("index\tname\n", "LBL_NAMES_EMPTY"),
        ("index\tname\n0\tbackground\n", "LBL_NAMES_EMPTY"),
        ("index\tname\nx\tliver\n", "LBL_NAMES_NUMBER"),
        ("index\tname\n1\tliver\n1\tbrain\n", "LBL_NAMES_TWICE"),
        ("index\tname\n1\t--\n", "LBL_NAMES_NAME"),
    ],
)
def test_mistakes_of_a_bids_table_have_codes(tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "t.tsv").write_text(text)
    with pytest.raises(InputError) as error:
        read_dseg(tmp_path / "t.tsv")
    assert (error.value.code, error.value.where) == (code, "t.tsv")


def test_a_table_that_is_no_text_or_no_file(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_bytes(b"index\tname\n1\t\xff\xfe\n")
    with pytest.raises(InputError, match="LBL_TABLE"):
        read_dseg(tmp_path / "t.tsv")
    with pytest.raises(InputError, match="IMG_NO_FILE"):
        names_from(str(tmp_path / "none.tsv"))


def test_names_from_takes_pairs_and_tables() -> None:
    assert names_from("autopet") == {1: "lesion"}
    assert names_from("4=liver") == {4: "liver"}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Liver", "liver"),
        ("Neoplasm, Primary", "neoplasm_primary"),
        ("vertebrae_L5", "vertebrae_l5"),
        ("  1st  Rib ", "rib"),
        ("3", ""),
        ("", ""),
        ("ü", ""),
    ],
)
def test_words_become_names(text: str, name: str) -> None:
    assert plain_name(text) == name
    assert not name or LABEL_NAME.fullmatch(name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Liver", "liver"),
        ("GTV_Mass", "gtv_mass"),
        ("Neoplasm, Primary", "neoplasm_primary"),
        ("Kidney Right", "kidney_right"),
        ("Lesion 2", "lesion"),
        ("liver Smith", ""),
        ("GTV 19570412", "gtv"),
        ("MRN", ""),
        ("12345", ""),
    ],
)
def test_only_words_of_anatomy_come_out_of_a_patients_file(text: str, name: str) -> None:
    assert known_name(text) == name
