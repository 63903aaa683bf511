"""Codes of labels: every one stands in PS3.16 as pydicom has it, and no two names are mixed up on the way back."""

from typing import Any

import pytest
from pydicom.sr._concepts_dict import concepts

from storage.label_codes import ABNORMAL, ANATOMICAL, CODES, OWN, SIDES, SNOMED, TISSUE, code_of, names_of
from storage.label_names import TABLES
from storage.phantom import LABEL_NAMES

LISTED: dict[str, set[str]] = {}  # code value -> meanings, in lower case
snomed: Any = concepts["SCT"]
for held in snomed.values():
    for value, (meaning, _) in held.items():
        LISTED.setdefault(value, set()).add(meaning.lower())


@pytest.mark.parametrize("name", CODES)
def test_every_code_stands_in_the_standard_with_its_meaning(name: str) -> None:
    code = CODES[name]
    for value, meaning in (code.kind, code.category, code.side or SIDES["left"]):
        if (value, meaning) != ("86049000", "Neoplasm, Primary"):  # pydicom has SNOMED's newer words
            assert meaning.lower() in LISTED[value]
    assert LISTED["86049000"] == {"malignant neoplasm, primary (morphologic abnormality)"}


@pytest.mark.parametrize("name", [*CODES, *TABLES["totalsegmentator"].values(), *LABEL_NAMES.values(), "lesion_2"])
def test_a_name_is_among_those_of_its_code(name: str) -> None:
    code = code_of(name)
    names = names_of(code.scheme, code.kind[0], code.side[0] if code.side else "")
    assert name in names
    assert len(names) == 1 or names in {("urinary_bladder", "bladder"), ("thyroid_gland", "thyroid")}


def test_values_by_hand() -> None:
    """SNOMED CT 64033007 is Kidney, 24028007 Right, 10200004 Liver, 52988006 Lesion."""
    assert code_of("kidney_right").kind == ("64033007", "Kidney")
    assert code_of("kidney_right").side == ("24028007", "Right")
    assert (code_of("liver").kind[0], code_of("liver").side, code_of("liver").category) == (
        "10200004",
        None,
        ANATOMICAL,
    )
    assert (code_of("lesion").kind[0], code_of("lesion").category) == ("52988006", ABNORMAL)
    assert code_of("vertebrae_t12").kind == ("23215003", "T12 vertebra")
    assert (code_of("my_part_3").scheme, code_of("my_part_3").kind) == (OWN, ("my_part_3", "my part 3"))
    assert (code_of("my_part_3").category, code_of("lesion_2").category) == (TISSUE, ABNORMAL)


def test_what_is_no_code_of_a_label_has_no_name() -> None:
    assert names_of(SNOMED, "1", "") == ()
    assert names_of(SNOMED, "10200004", "24028007") == ()  # a right liver
    assert names_of("FMA", "10200004", "") == ()
    assert names_of(OWN, "Doe^Jane", "") == ()
