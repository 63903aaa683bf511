"""``petscale inspect``: what stands in small files is told as it is, and what lies far from the rest is named."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from petscale.cli import main
from petscale.data.inspection import CaseFacts, inspect_cohort, outliers
from petscale.data.inspection_table import GRIDS, _grids
from petscale.splits import one_patient_by_name
from storage import layout
from storage.reader import open_cohort

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def copied(cohort: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cohort, tmp_path / "copied"))


def edit(folder: Path, change: Edit) -> None:
    content = json.loads((folder / "zarr.json").read_bytes())
    change(content["attributes"]["petscale"])
    (folder / "zarr.json").write_text(json.dumps(content))


def test_it_tells_what_the_images_state(cohort: Path) -> None:
    found = inspect_cohort(cohort)
    opened = open_cohort(cohort)
    assert [facts.case for facts in found.cases] == list(opened.cases)
    for facts in found.cases:
        case = opened.case(facts.case)
        assert facts.subject == case.subject
        assert set(facts.images) == set(case.images) - {"body"}
        assert facts.labels == tuple(case.labels.values())
        for name, stated in facts.images.items():
            image = case.image(name)
            assert (facts.shape, facts.spacing_mm) == (image.grid.shape, image.grid.spacing_mm)
            assert stated.units == image.units
            assert stated.statistics == image.statistics
            assert stated.dose == layout.dose_attribute(image.dose)
    summary = found.summary()
    assert (summary["cases"], summary["patients"]) == (4, 4)
    assert summary["labels"]["liver"] == 4
    assert summary["grids"] == [{"voxels": [48, 40, 40], "spacing_mm": [20.0, 11.0, 11.0], "cases": 4}]
    low = summary["images"]["low_drf20"]
    assert low["doses"] == [{"drf": 20.0, "relation": "simulated", "shares_noise": True, "cases": 4}]
    means = sorted(opened.case(name).image("low_drf20").statistics["mean"] for name in opened.cases)
    assert low["statistics"]["mean"]["lowest"] == means[0]
    assert low["statistics"]["mean"]["highest"] == means[-1]
    assert low["statistics"]["mean"]["median"] == pytest.approx((means[1] + means[2]) / 2)


def test_notes_tracers_and_scanners_of_provenance_are_counted(copied: Path) -> None:
    def noted(facts: dict[str, Any]) -> None:
        facts["provenance"] = {
            "nuclide": "F-18",
            "tracer": "FDG",
            "scanner": "Quadra",
            "notes": ["fewer_slices_than_header_says", "reference_spread_above_1_percent"],
            "reference_spread_percent": 4.25,
            "overridden": ["weight_kg"],
        }
        facts["statistics"]["liver_noise"] = 0.12

    def simulated(facts: dict[str, Any]) -> None:
        truth = {"nuclide": "Ga-68", "notes": ["reference_spread_above_1_percent"], "reference_spread_percent": 1.5}
        facts["provenance"]["truth"] = truth

    edit(copied / "cases/phantom-000/full", noted)
    edit(copied / "cases/phantom-001/low_drf4", simulated)
    summary = inspect_cohort(copied).summary()
    assert summary["notes"] == {
        "reference_spread_above_1_percent": {"cases": 2, "largest_percent": 4.25},
        "fewer_slices_than_header_says": {"cases": 1},
        "overridden_weight_kg": {"cases": 1},
    }
    assert summary["images"]["full"]["tracers"] == {"unknown": 3, "FDG": 1}
    assert summary["images"]["full"]["scanners"] == {"unknown": 3, "Quadra": 1}
    assert summary["images"]["full"]["statistics"]["liver_noise"]["highest"] == 0.12
    assert summary["images"]["low_drf4"]["nuclides"] == {"unknown": 3, "Ga-68": 1}  # of the simulation's truth


def test_a_unit_or_a_voxel_size_unlike_the_others_is_an_outlier(cohort: Path) -> None:
    usual = inspect_cohort(cohort).cases[0]

    def scaled(name: str, factor: float) -> CaseFacts:
        full = usual.images["full"]
        values = {name: factor * value for name, value in full.statistics.items()}
        return replace(usual, case=name, images={**usual.images, "full": replace(full, statistics=values)})

    many = [scaled(f"usual-{place}", 0.8 + 0.02 * place) for place in range(21)]
    assert not outliers(many)
    hot = outliers([*many, scaled("odd", 37.0)])
    assert {one.case for one in hot} == {"odd"}
    assert {one.fact for one in hot} >= {"full mean [SUV]", "full max [SUV]", "full uptake [SUV mL]"}
    mean = next(one for one in hot if one.fact == "full mean [SUV]")
    assert mean.value == pytest.approx(37.0 * usual.images["full"].statistics["mean"])
    assert mean.score > 3.5
    assert mean.median == pytest.approx(usual.images["full"].statistics["mean"], rel=0.05)
    thick = outliers([*many, replace(many[10], case="thick", spacing_mm=(30.0, 11.0, 11.0))])
    assert "voxel size along slices [mm]" in {one.fact for one in thick if one.case == "thick"}
    assert {one.case for one in thick} == {"thick"}
    # One part in a thousand is nobody's mistake, though all the others are equal.
    assert not outliers([*many, replace(many[10], case="alike", spacing_mm=(20.02, 11.0, 11.0))])
    assert not outliers([scaled("odd", 37.0), *many[:3]])  # too few to say which of them is odd


@pytest.mark.parametrize(
    ("subjects", "doubtful"),
    [
        ({"p01-baseline": "a", "p01-followup": "b", "p02-baseline": "c"}, [("p01-baseline", "p01-followup")]),
        ({"p01-baseline": "a", "p01-followup": "a"}, []),
        ({"p01": "a", "p01-2": "b", "p01_pre": "a"}, [("p01", "p01-2", "p01_pre")]),
        ({"sub-07-ses-1": "a", "sub-07-ses-2": "b", "sub-08-ses-1": "c"}, [("sub-07-ses-1", "sub-07-ses-2")]),
        ({f"phantom-{n:03}": str(n) for n in range(30)}, []),
        ({f"site2-{n:03}": str(n) for n in range(30)}, []),
        ({"case-0a1b2c3d4e": "a", "case-0a1b2c3d4f": "b"}, []),
    ],
)
def test_names_that_look_like_one_patient(subjects: dict[str, str], doubtful: list[tuple[str, ...]]) -> None:
    assert one_patient_by_name(subjects) == doubtful


def test_doubts_are_told(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for old, new in (("phantom-000", "p01-baseline"), ("phantom-001", "p01-followup")):
        (copied / "cases" / old).rename(copied / "cases" / new)
    main(["inspect", str(copied)])
    told = capsys.readouterr().out
    assert "look at: 2 committed case(s) are missing: phantom-000, phantom-001" in told
    assert "look at: p01-baseline, p01-followup look like scans of one patient" in told


def test_the_screen_the_file_and_the_page_agree(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["inspect", str(cohort), "--cases", "--json", str(tmp_path / "i.json"), "--page", str(tmp_path / "i.html")])
    told = capsys.readouterr().out
    assert "4 cases of 4 patients" in told
    assert "DRF 20, simulated, shares noise" in told
    content = json.loads((tmp_path / "i.json").read_bytes())
    assert content["patients"] == 4
    assert [case["case"] for case in content["each"]] == list(open_cohort(cohort).cases)
    page = (tmp_path / "i.html").read_text()
    assert page.count("data:image/png;base64,") == 2 * 4 * 5  # ct, full, two low doses, truth
    for case in content["each"]:
        assert case["subject"] in told
        assert f">{case['case']}<" in page
    assert "http" not in page


def test_of_many_grids_the_most_common_are_shown_and_the_others_counted() -> None:
    grids = [{"voxels": [9, 8, 7], "spacing_mm": [4.0, 4.0, 4.0], "cases": 5}]
    grids += [{"voxels": [10 + n, 8, 7], "spacing_mm": [4.0, 4.0, 4.0], "cases": 1} for n in range(GRIDS + 2)]
    table = _grids(grids)
    assert table.row_count == GRIDS + 1
    assert [*table.columns[0].cells][::GRIDS] == ["9 x 8 x 7", "3 other grids: --cases"]
    assert [*table.columns[2].cells][::GRIDS] == ["5", "3"]
    assert _grids(grids[:GRIDS]).row_count == GRIDS


def test_metadata_that_cannot_be_read_is_named(copied: Path, refused: Callable[..., str]) -> None:
    (copied / "cases/phantom-002/full/zarr.json").write_text("{")
    assert refused("inspect", copied).startswith("STORE_DAMAGED full/zarr.json")


def test_no_library_for_arrays_is_loaded(cohort: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from petscale.cli import main; main(['inspect', sys.argv[1]]); "
        "print({'torch', 'ray', 'zarr', 'dask', 'scipy', 'numcodecs', 'pandas', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(cohort)], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("set()")
