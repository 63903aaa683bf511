"""``petscale compare``: equal content is found by digest, also under other names; what differs is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from petscale.cli import main
from petscale.data.comparison import compare_cohorts
from storage import integrity
from storage.integrity import MANIFEST
from storage.reader import open_cohort


@pytest.fixture
def copied(cohort: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cohort, tmp_path / "copied"))


def committed_again(folder: Path, name: str, change: Any = None, image: str = "full") -> None:
    """Give a case another name, or other facts of an image, as if it had been ingested so."""
    path = folder / image / "zarr.json"
    if change is not None:
        content = json.loads(path.read_bytes())
        change(content["attributes"]["petscale"])
        path.write_text(json.dumps(content))
    (folder / MANIFEST).unlink()
    integrity.commit(folder, {"case": name, "schema": 1})


def test_a_copy_is_equal(cohort: Path, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compare_cohorts(cohort, copied)
    assert found.equal == open_cohort(cohort).cases
    assert (found.only_first, found.only_second, found.changed, found.renamed, found.differences) == (
        (),
        (),
        {},
        {},
        (),
    )
    assert len(found.patients) == 4
    main(["compare", str(cohort), str(copied)])
    told = capsys.readouterr().out
    assert "4 equal in both, 0 with other content" in told
    assert "no difference" in told


def test_what_is_lost_renamed_and_changed_is_named(cohort: Path, copied: Path, tmp_path: Path) -> None:
    cases = copied / "cases"
    shutil.rmtree(cases / "phantom-000")
    (cases / "phantom-001").rename(cases / "other")
    committed_again(cases / "other", "other")

    def scaled(facts: dict[str, Any]) -> None:
        facts["affine_ras_mm"] = [[1.2 * value for value in row] for row in facts["affine_ras_mm"]]
        facts["provenance"] = {"tracer": "PSMA", "nuclide": "Ga-68"}
        facts["statistics"] = {name: 30 * value for name, value in facts["statistics"].items()}

    for image in ("ct", "full"):
        committed_again(cases / "phantom-002", "phantom-002", scaled, image)
    found = compare_cohorts(cohort, copied)
    assert found.only_first == ("phantom-000", "phantom-001")
    assert found.only_second == ("other",)
    assert found.equal == ("phantom-003",)
    assert found.changed == {"phantom-002": ("ct", "full")}
    assert found.renamed == {"phantom-001": "other"}
    assert sorted(map(str, found.patients.values())) == sorted(
        map(
            str,
            [
                ((name,), (other,))
                for name, other in (
                    ("phantom-001", "other"),
                    ("phantom-002", "phantom-002"),
                    ("phantom-003", "phantom-003"),
                )
            ],
        )
    )
    told = {one.fact: (one.first, one.second) for one in found.differences}
    assert told["voxel size [mm]"] == ("20 x 11 x 11", "20 x 11 x 11, 24 x 13.2 x 13.2")
    assert told["full: tracers"] == ("unknown", "PSMA, unknown")
    assert not [fact for fact in told if fact.startswith("low_drf4")]
    main(["compare", str(cohort), str(copied), "--json", str(tmp_path / "c.json")])
    assert json.loads((tmp_path / "c.json").read_bytes())["renamed"] == {"phantom-001": "other"}


def test_doses_and_uptake_in_another_scale_are_told(cohort: Path, copied: Path) -> None:
    def other(facts: dict[str, Any]) -> None:
        facts["statistics"] = {name: 30 * value for name, value in facts["statistics"].items()}
        facts["dose"] = {"drf": 10.0, "relation": "separate", "shares_noise": False}

    for name in open_cohort(copied).cases:
        committed_again(copied / "cases" / name, name, other, "low_drf4")
    told = {one.fact: (one.first, one.second) for one in compare_cohorts(cohort, copied).differences}
    assert told["low_drf4: doses"] == ("DRF 4, simulated", "DRF 10, separate")
    assert float(told["low_drf4: mean, median"][1]) == pytest.approx(
        30 * float(told["low_drf4: mean, median"][0]), rel=0.01
    )
    assert set(told) == {"low_drf4: doses", "low_drf4: mean, median", "low_drf4: max, median"}
