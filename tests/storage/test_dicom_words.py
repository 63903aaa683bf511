"""Of free text only known words are told: nothing that somebody typed comes through."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import dicom_words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Fluorodeoxyglucose F^18^", "FDG"),
        ("FDG -- fluorodeoxyglucose", "FDG"),
        ("68Ga-PSMA-11", "PSMA"),
        ("DOTATATE", "DOTA"),
        ("Solution", ""),
        ("", ""),
    ],
)
def test_tracers(text: str, found: str) -> None:
    assert dicom_words.tracer(text) == found


@pytest.mark.parametrize(
    ("maker", "model", "found"),
    [
        ("SIEMENS", "Biograph128_Vision Quadra Edge", "Siemens Vision Quadra"),
        ("UIH", "uEXPLORER", "United Imaging uEXPLORER"),
        ("GE MEDICAL SYSTEMS", "Discovery ST", "GE Discovery ST"),
        ("Dr. Doe's own", "Jane", ""),
    ],
)
def test_scanners(maker: str, model: str, found: str) -> None:
    assert dicom_words.scanner(maker, model) == found


def test_a_description_keeps_its_words_of_imaging() -> None:
    assert dicom_words.technical("PET WB PSF+TOF 4i5s RD85, DOE^JANE 1950") == ["PET", "WB", "PSF", "TOF", "4I5S"]


@given(st.text())
def test_nothing_else_comes_through(text: str) -> None:
    assert set(dicom_words.technical(text)) <= dicom_words.TECHNICAL
    assert dicom_words.tracer(text) in {"", *dicom_words.TRACERS}
    known = {"", *dicom_words.MAKERS, *dicom_words.MODELS}
    assert set(dicom_words.scanner(text, text).split()) <= {word for name in known for word in name.split()}
