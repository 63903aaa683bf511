"""A JSON file beside a NIfTI PET is believed: what contradicts it is refused, with the figure that would be right."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from petscale.cli import main
from petscale.data.sidecars import check_beside, stated_by, unit_of
from storage.errors import InputError
from storage.reader import open_cohort
from storage.suv import decay

Refused = Callable[..., str]
SAID: dict[str, Any] = {
    "Units": "Bq/mL",
    "TracerRadionuclide": "F18",
    "InjectedRadioactivity": 180,
    "InjectedRadioactivityUnits": "MBq",
    "ImageDecayCorrected": True,
    "ImageDecayCorrectionTime": 3600,
    "InjectionStart": 0,
}
LEFT_MBQ = 180 * 2 ** (-3600 / 6586.2)
WEIGHT_KG = 60.0


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A PET of SUV 2 and 4 in Bq/mL, with its sidecar."""
    values = np.full((12, 12, 12), 2 * LEFT_MBQ * 1e6 / (WEIGHT_KG * 1000), dtype=np.float32)
    values[4:8, 4:8, 4:8] *= 2
    nibabel.Nifti1Image(values, np.diag([4.0, 4.0, 4.0, 1.0])).to_filename(tmp_path / "a_pet.nii.gz")
    (tmp_path / "a_pet.json").write_text(json.dumps(SAID))
    return tmp_path / "a_pet.nii.gz"


def test_what_was_left_is_what_was_given_decayed_to_the_voxels_time() -> None:
    stated = stated_by("a", SAID)
    assert (stated.dose_mbq, stated.uptake_s) == (180.0, 3600.0)
    assert stated.dose_mbq is not None
    assert stated.dose_mbq * decay(3600.0, stated.half_life_s or 0) == pytest.approx(LEFT_MBQ)
    assert unit_of("a", SAID) == "Bq/mL"


def test_the_injected_dose_given_as_the_dose_left_is_refused_with_the_right_one(
    scan: Path, tmp_path: Path, refused: Refused
) -> None:
    words = ["ingest", scan, tmp_path / "c", "--case", "p1", "--units", "Bq/mL", "--weight-kg", "60", "--dose-mbq"]
    told = refused(*words, "180")
    assert told.startswith("NII_DOSE a_pet.nii.gz")
    (right,) = re.findall(r"give --dose-mbq ([0-9.]+)", told)
    assert float(right) == pytest.approx(LEFT_MBQ, abs=0.05)
    main([str(word) for word in (*words, right)])
    voxels = open_cohort(tmp_path / "c").case("p1").image("full").read(0, 12)
    np.testing.assert_allclose([voxels.min(), voxels.max()], [2.0, 4.0], rtol=1e-3)


def test_a_tables_dose_is_compared_too(scan: Path, tmp_path: Path, refused: Refused) -> None:
    table = tmp_path / "table.csv"
    words = ["ingest", scan, tmp_path / "c", "--case", "a_pet", "--units", "Bq/mL", "--table", table]
    table.write_text("file,weight_kg,dose_mbq,uptake_min,nuclide\na_pet.nii.gz,60,180,30,F-18\n")
    assert refused(*words).startswith("NII_DOSE")
    table.write_text("file,weight_kg,dose_mbq,uptake_min,nuclide\na_pet.nii.gz,60,180,60,F-18\n")
    main([str(word) for word in words])


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (
            ["--units", "Bq/mL", "--weight-kg", "60", "--dose-mbq", "180", "--injection-time", "10:35"],
            "--injection-time",
        ),
        (["--weight-kg", "60"], "--weight-kg"),
        (["--dose-mbq", "180"], "--dose-mbq"),
    ],
)
def test_what_a_niftis_suv_does_not_depend_on_is_refused(
    scan: Path, tmp_path: Path, refused: Refused, words: list[str], option: str
) -> None:
    scan.with_name("a_pet.json").unlink()
    assert refused("ingest", scan, tmp_path / "c", "--case", "p1", *words).startswith(f"CFG_NO_EFFECT {option}")


@pytest.mark.parametrize("gone", ["InjectedRadioactivity", "ImageDecayCorrectionTime", "TracerRadionuclide"])
def test_a_sidecar_that_lacks_a_value_says_nothing_of_the_dose(scan: Path, gone: str) -> None:
    said = {name: value for name, value in SAID.items() if name != gone}
    with pytest.raises(InputError, match=f"BIDS_SIDECAR a, {gone}"):
        stated_by("a", said)
    scan.with_name("a_pet.json").write_text(json.dumps(said))
    check_beside(scan, "Bq/mL", 180.0)


@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"Units": 3}', ""])
def test_another_kind_of_file_says_nothing(scan: Path, text: str) -> None:
    scan.with_name("a_pet.json").write_text(text)
    check_beside(scan, "Bq/mL", 180.0)


def test_an_image_in_suv_has_no_dose_to_compare(scan: Path) -> None:
    scan.with_name("a_pet.json").write_text(json.dumps(SAID | {"Units": "g/mL"}))
    check_beside(scan, "SUVbw", None)
    with pytest.raises(InputError, match="NII_UNITS"):
        check_beside(scan, "Bq/mL", LEFT_MBQ)
