"""Dynamic and gated PET through the command line: frames chosen, summed and paired, from NIfTI and DICOM."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from dynamic import F18_S, GRID, RATE, UPTAKE_S, Made, long_frame, uniform, write_dynamic
from numpy.typing import NDArray
from pydicom.dataset import Dataset

import petscale
from petscale.cli import main
from petscale.data.cohorts import fingerprint
from petscale.data.examination import Files, FrameTimes
from petscale.data.ingest import open_case
from petscale.data.sidecars import frame_times, times_beside
from petscale.data.simulate import simulation_plans
from storage.dicom_write import write_series
from storage.errors import InputError
from storage.frames import Wanted
from storage.ingest import site_key
from storage.integrity import file_digest
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig, phantom
from storage.reader import Case, open_cohort
from storage.source import HU, ArraySource, Dose
from storage.suv import Overrides
from storage.verification import verify

Refused = Callable[..., str]
STARTS, DURATIONS, LEVELS = [0.0, 60.0, 300.0, 1000.0], [60.0, 240.0, 600.0, 1200.0], [0.5, 2.0, 3.0, 2.5]
WEIGHT_KG, DOSE_MBQ = 60.0, 180.0


@pytest.fixture
def frames() -> list[Made]:
    return uniform(LEVELS, STARTS, DURATIONS)


def sidecar(starts: list[float], durations: list[float]) -> dict[str, Any]:
    return {
        "Units": "Bq/mL",
        "TracerRadionuclide": "F18",
        "InjectedRadioactivity": DOSE_MBQ,
        "InjectedRadioactivityUnits": "MBq",
        "ImageDecayCorrected": True,
        "ImageDecayCorrectionTime": UPTAKE_S,  # the first frame starts there
        "InjectionStart": 0,
        "ScanStart": UPTAKE_S,
        "FrameTimesStart": [UPTAKE_S + s for s in starts],
        "FrameDuration": durations,
    }


def write_4d(path: Path, volumes: list[NDArray[np.float32]], step_s: float | None = None) -> Path:
    """One file of all volumes, axes (x, y, z, t)."""
    image = nibabel.Nifti1Image(np.stack([v.T for v in volumes], axis=-1), GRID.affine)
    image.header.set_xyzt_units("mm", "sec" if step_s else None)
    if step_s:
        image.header["pixdim"][4] = step_s
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def bqml(frame: Made) -> NDArray[np.float32]:
    """A frame in Bq/mL, decay-corrected to the start of the first one."""
    left = DOSE_MBQ * 1e6 * np.exp(-RATE * UPTAKE_S)
    return (frame.suv * np.float32(left / (WEIGHT_KG * 1000))).astype(np.float32)


@pytest.fixture(params=["dyn_pet.nii", "dyn_pet.nii.gz"])
def scan(tmp_path: Path, request: pytest.FixtureRequest, frames: list[Made]) -> Path:
    path = write_4d(tmp_path / request.param, [bqml(f) for f in frames])
    (tmp_path / "dyn_pet.json").write_text(json.dumps(sidecar(STARTS, DURATIONS)))
    return path


BQML = ("--units", "Bq/mL", "--weight-kg", f"{WEIGHT_KG:g}", "--dose-mbq", f"{DOSE_MBQ * np.exp(-RATE * UPTAKE_S):.6f}")


def ingested(source: Path, cohort: Path, *words: str) -> Case:
    main(["ingest", str(source), str(cohort), "--case", "p1", *words])
    assert verify(cohort) == {}
    return open_cohort(cohort).case("p1")


def voxels(case: Case, image: str = "full") -> NDArray[np.float32]:
    return case.image(image).read(0, GRID.shape[0])


# -- NIfTI ------------------------------------------------------------------------------------------------------------


def test_one_frame_of_a_nifti(scan: Path, tmp_path: Path, frames: list[Made]) -> None:
    case = ingested(scan, tmp_path / "c", "--frames", "3", *BQML)
    np.testing.assert_allclose(voxels(case), frames[2].suv, rtol=1e-5)
    facts = case.image("full").provenance["frames"]
    assert facts == {"kind": "frames", "of": 4, "used": [3], "durations_s": [600.0], "starts_s": [300.0]}


def test_the_sum_of_a_nifti_is_the_one_long_frame(scan: Path, tmp_path: Path, frames: list[Made]) -> None:
    case = ingested(scan, tmp_path / "c", "--frames", "all", *BQML)
    np.testing.assert_allclose(voxels(case), long_frame(frames), rtol=1e-5)
    some = ingested(scan, tmp_path / "d", "--frames", "1,3-4", *BQML)
    np.testing.assert_allclose(voxels(some), long_frame([frames[0], *frames[2:]]), rtol=1e-5)


def test_volumes_may_be_stored_in_any_order(tmp_path: Path, frames: list[Made]) -> None:
    order = [2, 0, 3, 1]
    path = write_4d(tmp_path / "dyn_pet.nii", [bqml(frames[n]) for n in order])
    said = sidecar([STARTS[n] for n in order], [DURATIONS[n] for n in order])
    path.with_suffix(".json").write_text(json.dumps(said))
    np.testing.assert_allclose(voxels(ingested(path, tmp_path / "c", "--frames", "2", *BQML)), frames[1].suv, rtol=1e-5)


def test_a_pair_of_a_nifti_is_whole_in_the_cohort(scan: Path, tmp_path: Path, frames: list[Made]) -> None:
    case = ingested(scan, tmp_path / "c", "--frame-pairs", "2", "1", *BQML)
    assert case.images == ("body", "full", "low_frame1", "low_frame2")
    rest = frames[2:]
    np.testing.assert_allclose(voxels(case), long_frame(rest), rtol=1e-5)
    for number in (1, 2):
        low = case.image(f"low_frame{number}")
        np.testing.assert_allclose(low.read(0, 5), frames[number - 1].suv, rtol=1e-5)
        assert low.dose is not None
        assert low.dose.drf == pytest.approx(sum(f.counts for f in rest) / frames[number - 1].counts, rel=1e-5)
        assert (low.dose.relation, low.dose.shares_noise) == ("frames", False)
        notes = low.provenance["notes"]
        assert isinstance(notes, list)
        assert "uptake_may_differ_between_frames" in notes
    full = case.image("full").dose
    assert full is not None
    assert (full.drf, full.relation) == (1.0, "full")


def test_bids(tmp_path: Path, frames: list[Made]) -> None:
    place = tmp_path / "bids/sub-01/ses-1/pet"
    write_4d(place / "sub-01_ses-1_trc-FDG_pet.nii.gz", [bqml(f) for f in frames])
    (place / "sub-01_ses-1_trc-FDG_pet.json").write_text(json.dumps(sidecar(STARTS, DURATIONS)))
    (tmp_path / "bids/participants.tsv").write_text(f"participant_id\tweight\nsub-01\t{WEIGHT_KG:g}\n")
    case = ingested(tmp_path / "bids", tmp_path / "c", "--layout", "bids", "--frame-pairs", "1-2")
    np.testing.assert_allclose(voxels(case), long_frame(frames[2:]), rtol=1e-5)
    np.testing.assert_allclose(voxels(case, "low_frames1-2"), long_frame(frames[:2]), rtol=1e-5)


def test_bids_with_an_injection_during_the_scan(tmp_path: Path, frames: list[Made], refused: Refused) -> None:
    """The dose that would have been there at the first frame's start is more than that injected 25 s later."""
    place = tmp_path / "bids/sub-01/pet"
    left = DOSE_MBQ * 1e6 * np.exp(RATE * 25.0)
    write_4d(place / "sub-01_pet.nii.gz", [f.suv * np.float32(left / (WEIGHT_KG * 1000)) for f in frames])
    said = {**sidecar(STARTS, DURATIONS), "FrameTimesStart": STARTS, "ImageDecayCorrectionTime": 0}
    (place / "sub-01_pet.json").write_text(json.dumps({**said, "InjectionStart": 25}))
    (tmp_path / "bids/participants.tsv").write_text(f"participant_id\tweight\nsub-01\t{WEIGHT_KG:g}\n")
    case = ingested(tmp_path / "bids", tmp_path / "c", "--layout", "bids", "--frames", "all")
    np.testing.assert_allclose(voxels(case), long_frame(frames), rtol=1e-5)
    (place / "sub-01_pet.json").write_text(json.dumps({**said, "InjectionStart": 5000}))
    line = refused("ingest", tmp_path / "bids", tmp_path / "d", "--layout", "bids", "--frames", "all")
    assert line.startswith("BIDS_SIDECAR")


def test_suv_without_a_sidecar_is_weighted_by_the_headers_time_step(tmp_path: Path, frames: list[Made]) -> None:
    path = write_4d(tmp_path / "suv.nii.gz", [f.suv for f in frames], step_s=300.0)
    case = ingested(path, tmp_path / "c", "--frames", "2-3", "--units", "SUVbw")
    np.testing.assert_allclose(voxels(case), (frames[1].suv + frames[2].suv) / 2, rtol=1e-5)
    facts = case.image("full").provenance["frames"]
    assert isinstance(facts, dict)
    assert facts["weights"] == "durations, because no half-life is known"


def test_lists_of_a_sidecar(tmp_path: Path) -> None:
    whole = sidecar(STARTS, DURATIONS)
    assert frame_times("a", whole) == FrameTimes(
        starts_s=tuple(UPTAKE_S + s for s in STARTS), durations_s=tuple(DURATIONS), half_life_s=F18_S
    )
    assert frame_times("a", {"FrameDuration": 3}) == FrameTimes(durations_s=(3.0,))
    assert times_beside(tmp_path / "absent.nii.gz") == FrameTimes()
    for bad in (
        {"FrameDuration": ["x"]},
        {"FrameTimesStart": [True]},
        {"FrameDuration": [0]},
        {"FrameDuration": [1e999]},
    ):
        with pytest.raises(InputError, match="BIDS_SIDECAR"):
            frame_times("a", {**whole, **bad})


# -- what changes a case, and what does not ---------------------------------------------------------------------------


def test_a_fingerprint_changes_with_the_frames_and_with_nothing_else(scan: Path, tmp_path: Path) -> None:
    def of(wanted: Wanted) -> str:
        return open_case(Files(pet=scan, units="SUVbw", frames=wanted), tmp_path).fingerprint

    (tmp_path / "dyn_pet.json").write_text(json.dumps({**sidecar(STARTS, DURATIONS), "Units": "g/mL"}))
    made = [of(w) for w in (Wanted("1"), Wanted("2"), Wanted("all"), Wanted(pairs=("1",)), Wanted(pairs=("1", "2")))]
    assert len({*made}) == len(made)
    assert of(Wanted("1")) == made[0]


def test_a_fingerprint_without_frames_is_as_it_was(tmp_path: Path, frames: list[Made]) -> None:
    path = tmp_path / "suv.nii.gz"
    nibabel.save(nibabel.Nifti1Image(frames[0].suv.T, GRID.affine), path)
    content = hashlib.sha256(file_digest(path).encode()).hexdigest()
    expected = fingerprint(site_key(), content, "SUVbw", asdict(Overrides()), {})
    assert open_case(Files(pet=path), tmp_path).fingerprint == expected


# -- the other ways in ------------------------------------------------------------------------------------------------


def test_a_dicom_pair_by_the_api_and_by_a_recipe(tmp_path: Path, frames: list[Made]) -> None:
    write_dynamic(tmp_path / "data/p01/pet", frames)
    made = petscale.ingest(tmp_path / "data/p01/pet", tmp_path / "c", case="p1", frame_pairs=["2"])
    assert made.committed == ("p1",)
    by_api = open_cohort(tmp_path / "c").case("p1")
    (tmp_path / "cohort.yaml").write_text("sources:\n  - {path: data, pet: pet, frame_pairs: [2]}\nnames: folder\n")
    main(["ingest", str(tmp_path / "cohort.yaml"), str(tmp_path / "d")])
    by_recipe = open_cohort(tmp_path / "d").case("p01")
    for image in ("full", "low_frame2"):
        assert np.array_equal(voxels(by_api, image), voxels(by_recipe, image))
    np.testing.assert_allclose(voxels(by_api, "low_frame2"), frames[1].suv, rtol=2e-4)
    (tmp_path / "one.yaml").write_text("sources:\n  - {path: data, pet: pet, frames: 3}\nnames: folder\n")
    main(["ingest", str(tmp_path / "one.yaml"), str(tmp_path / "e")])
    np.testing.assert_allclose(voxels(open_cohort(tmp_path / "e").case("p01")), frames[2].suv, rtol=2e-4)


def test_a_sum_with_its_ct_by_the_headers_of_a_study(tmp_path: Path, frames: list[Made]) -> None:
    write_dynamic(tmp_path / "export/pet", frames)
    values = np.linspace(-1000, 500, np.prod(GRID.shape), dtype=np.float32).reshape(GRID.shape)
    write_series(tmp_path / "export/ct", ArraySource(values, GRID, HU), series_number=2)
    case = ingested(tmp_path / "export", tmp_path / "c", "--layout", "study", "--frames", "2-4")
    assert case.images == ("body", "ct", "full")
    np.testing.assert_allclose(voxels(case), long_frame(frames[1:]), rtol=2e-4)
    np.testing.assert_allclose(voxels(case, "ct"), values, atol=0.6)


def test_a_dry_run_tells_the_images(scan: Path, tmp_path: Path, frames: list[Made], capsys: Any) -> None:
    write_dynamic(tmp_path / "pet", frames)
    drf = (frames[0].counts + sum(f.counts for f in frames[2:])) / frames[1].counts
    for source, words in ((scan, BQML), (tmp_path / "pet", ())):
        main(["ingest", str(source), str(tmp_path / "c"), "--dry-run", "--frame-pairs", "2", *words])
        told = "".join(capsys.readouterr())
        assert f"images   full, low_frame2 (DRF {drf:g}"[:45] in told
        assert "frames)" in told
        assert "5 x 6 x 7 voxels" in told
    main(["ingest", str(scan), str(tmp_path / "c"), "--dry-run", *BQML])
    assert "4 frames of 60, 240, 600, 1200 s; choose" in "".join(capsys.readouterr())
    assert not (tmp_path / "c").exists()


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_refusals(scan: Path, tmp_path: Path, frames: list[Made], refused: Refused) -> None:
    pet = write_dynamic(tmp_path / "pet", frames)

    def told(source: Path, *words: str) -> str:
        line = refused("ingest", source, tmp_path / "c", "--case", "p1", *words)
        assert not (tmp_path / "c" / "cases" / "p1").exists()
        return line

    assert told(scan, *BQML).startswith(f"NII_4D {scan.name}: 4 frames of 60, 240, 600, 1200 s; choose")
    assert told(pet).startswith("SER_DYNAMIC pet: 4 frames of 60, 240, 600, 1200 s; choose")
    for source, words in ((scan, BQML), (pet, ())):
        assert told(source, "--frames", "5", *words).startswith("FRM_RANGE --frames: frame 5 of a series of 4")
        assert told(source, "--frames", "x", *words).startswith("FRM_CHOICE --frames: 'x'")
        assert told(source, "--frame-pairs", "1-4", *words).startswith("FRM_PAIR --frame-pairs: no frame is left")
        line = told(source, "--frames", "2", "--low", "20=low.nii.gz", *words)
        assert line.startswith("CFG_CONTRADICTION --low")
    for file in pet.glob("f01_*1.dcm"):
        file.unlink()
    assert told(pet, "--frames", "all").startswith("SER_PARTIAL_VOLUME pet: 4 frames")
    (tmp_path / "dyn_pet.json").unlink()
    assert told(scan, "--frames", "all", *BQML).startswith(f"FRM_TIMES {scan.name}")
    short = {**sidecar(STARTS, DURATIONS), "FrameDuration": [60.0]}
    (tmp_path / "dyn_pet.json").write_text(json.dumps(short))
    assert told(scan, "--frames", "1", *BQML).startswith("BIDS_SIDECAR")
    (tmp_path / "dyn_pet.json").write_text(json.dumps(sidecar([0, 30, 300, 1000], DURATIONS)))
    assert told(scan, "--frames", "all", *BQML).startswith(f"FRM_OVERLAP {scan.name}: frame 2 starts 30.0 s before")
    (tmp_path / "dyn_pet.json").write_text(json.dumps({**sidecar(STARTS, DURATIONS), "ImageDecayCorrected": False}))
    assert told(scan, "--frames", "all", *BQML).startswith("BIDS_SIDECAR")
    still = tmp_path / "still.nii.gz"
    nibabel.save(nibabel.Nifti1Image(frames[0].suv.T, GRID.affine), still)
    assert told(still, "--frames", "1").startswith("CFG_NO_EFFECT --frames: still.nii.gz holds a single volume")
    moved = write_dynamic(tmp_path / "moved", frames, edit=_moved)
    assert told(moved, "--frames", "all").startswith("FRM_GRID moved: frame 2 does not lie where frame 1 lies")


def _moved(number: int, z: int, ds: Dataset) -> None:
    x, y, along = ds.ImagePositionPatient
    ds.ImagePositionPatient = [f"{float(x) + 4 * number:g}", y, along]


def test_where_frames_cannot_be_chosen_the_remedy_is_another(
    scan: Path, tmp_path: Path, frames: list[Made], refused: Refused
) -> None:
    pet = write_dynamic(tmp_path / "pet", frames)
    still = write_dynamic(tmp_path / "still", frames[:1])
    nibabel.save(nibabel.Nifti1Image(frames[0].suv.T, GRID.affine), tmp_path / "still.nii.gz")
    (tmp_path / "dyn_pet.json").unlink()
    for full, low, code in ((still, pet, "SER_DYNAMIC"), (tmp_path / "still.nii.gz", scan, "NII_4D")):
        line = refused("ingest", full, tmp_path / "c", "--low", f"20={low}")
        assert line.startswith(code)
        assert "give a static low dose" in line


def test_simulated_doses_come_beside_those_of_frames(tmp_path: Path) -> None:
    body = phantom(PhantomConfig(shape=(24, 32, 32), spacing_mm=(40.0, 14.0, 14.0))).activity
    voxels_ = body.read(0, 24)
    write_4d(tmp_path / "suv.nii.gz", [voxels_, voxels_ * np.float32(1.1)], step_s=60.0)
    main(["ingest", str(tmp_path / "suv.nii.gz"), str(tmp_path / "c"), "--case", "p1", "--frame-pairs", "2"])
    plan = simulation_plans(tmp_path / "c", "full", LowDoseConfig(), [4.0], 1)["p1"](tmp_path)
    assert {*plan.images} == {"full", "low_drf4", "truth", "low_frame2"}
    assert plan.doses["low_frame2"] == Dose(1.0, "frames", False)


def test_a_layout_that_knows_no_frames(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "data").mkdir()
    line = refused("ingest", tmp_path / "data", tmp_path / "c", "--layout", "udpet", "--frames", "1")
    assert line.startswith("CFG_NO_EFFECT --frames")
