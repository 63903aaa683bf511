"""A run and a scan in, the same kind of file out: unit, grid and identity kept, and no volume held in memory."""

import gc
import json
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray

from petscale import inference
from petscale.cli import main
from petscale.folders import SYNTHESIS, WEIGHTS
from petscale.inference import check_effect, open_run, run_case, synthesize_case
from storage import dicom, nifti
from storage.errors import InputError
from storage.ingest import CasePlan, ingest
from storage.reader import open_cohort
from storage.source import HU, SUV, ArraySource, Grid
from storage.suv import Overrides
from storage.verification import verify
from trainers import checkpoint


def result(path: Path, units: nifti.Units, tmp_path: Path) -> nifti.NiftiSource:
    return nifti.open_nifti(path, units=units, workdir=tmp_path / "inflated")


def test_nifti_in_suv(run: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "out.nii.gz"
    main(["synthesize", str(run), str(scans / "suv.nii.gz"), "--output", str(out)])
    assert capsys.readouterr().out.strip() == str(out)
    before, after = nibabel.load(scans / "suv.nii.gz"), nibabel.load(out)
    assert after.get_data_dtype() == np.float32
    assert after.shape == before.shape
    np.testing.assert_array_equal(after.affine, before.affine)
    low, made = (np.asarray(image.dataobj) for image in (before, after))
    assert made.min() >= 0
    # DCITN starts near the identity: an untrained run gives back something very like its input.
    assert np.corrcoef(low.ravel(), made.ravel())[0, 1] > 0.9
    assert [p.name for p in out.parent.iterdir()] == ["out.nii.gz"]


def test_nifti_in_activity_comes_back_in_activity(run: Path, scans: Path, tmp_path: Path) -> None:
    words = ["--units", "Bq/mL", "--weight-kg", "70", "--dose-mbq", "300"]
    main(["synthesize", str(run), str(scans / "bqml.nii"), "--output", str(tmp_path / "bqml.nii"), *words])
    main(["synthesize", str(run), str(scans / "suv.nii.gz"), "--output", str(tmp_path / "suv.nii")])
    activity, suv = (np.asarray(nibabel.load(tmp_path / name).dataobj) for name in ("bqml.nii", "suv.nii"))
    assert activity.dtype == np.float32
    np.testing.assert_allclose(activity, suv * (300e6 / 70e3), rtol=1e-3, atol=0.02 * activity.mean())


def test_dicom_comes_back_as_a_derived_series(run: Path, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "derived"
    main(["synthesize", str(run), str(scans / "pet"), "--output", str(out)])
    before = [pydicom.dcmread(file) for file in sorted((scans / "pet").iterdir())]
    after = [pydicom.dcmread(file) for file in sorted(out.iterdir())]
    assert len(after) == len(before)
    assert {ds.Units for ds in after} == {"BQML"}
    assert {ds.Modality for ds in after} == {"PT"}
    assert all(ds.ImageType[0] == "DERIVED" for ds in after)
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert not {ds[keyword].value for ds in after} & {ds[keyword].value for ds in before}
    assert len({ds.SOPInstanceUID for ds in after}) == len(after)
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert {ds[keyword].value for ds in after} == {ds[keyword].value for ds in before}

    reader = SimpleITK.ImageSeriesReader()

    def itk(folder: Path) -> SimpleITK.Image:
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        return reader.Execute()

    old, new = itk(scans / "pet"), itk(out)
    for name in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(new, name)(), getattr(old, name)(), atol=1e-4)

    # Both readers, and our own ingest, give the SUV that was synthesized: the NIfTI of the same scan says which.
    source = dicom.open_series(scans / "pet", modality="PT")
    nifti.write_nifti(tmp_path / "same.nii", source.grid, source.read)
    main(["synthesize", str(run), str(tmp_path / "same.nii"), "--output", str(tmp_path / "wanted.nii")])
    wanted = result(tmp_path / "wanted.nii", "SUVbw", tmp_path).read(0, len(after))
    main(["ingest", str(out), str(tmp_path / "cohort"), "--case", "again"])
    again = open_cohort(tmp_path / "cohort").case("again").image("full")
    assert again.grid.matches(source.grid)
    bound = 1e-3 * wanted.max(axis=(1, 2), keepdims=True) + 1e-6
    assert np.all(np.abs(again.read(0, len(after)) - wanted) <= bound)
    factors = np.array(dicom.open_series(out, modality="PT").factors, dtype=np.float32)
    itk_suv = SimpleITK.GetArrayFromImage(new) * factors[:, None, None]
    assert np.all(np.abs(itk_suv - wanted) <= bound + 1e-3 * wanted)
    assert min(float(v.min()) for v in (wanted, itk_suv)) >= 0


def test_a_case_is_stored_once(
    run: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["synthesize", str(run), str(cohort), "--case", "phantom-002"]
    main(words)
    folder = Path(capsys.readouterr().out.strip())
    assert folder == run / SYNTHESIS / "low_drf4" / "cases" / "phantom-002" / "synth_low_drf4"
    case = open_cohort(cohort).case("phantom-002")
    stored = open_cohort(run / SYNTHESIS / "low_drf4").case("phantom-002")
    made = stored.image("synth_low_drf4")
    assert stored.subject == case.subject
    assert made.grid.matches(case.image("full").grid)
    assert made.units == SUV
    assert made.statistics["min"] >= 0
    assert made.provenance["kind"] == "synthesized"
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}

    def never(*_: object) -> None:
        raise AssertionError("synthesized twice")

    monkeypatch.setattr(inference, "run_case", never)
    main(words)
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before
    assert not [p for p in run.iterdir() if p.name.startswith(".spool")]


def test_weights_leave_no_choice(run: Path, scans: Path, tmp_path: Path) -> None:
    for name in ("a.nii", "b.nii"):
        main(["synthesize", str(run), str(scans / "suv.nii.gz"), "--output", str(tmp_path / name)])
    assert (tmp_path / "a.nii").read_bytes() == (tmp_path / "b.nii").read_bytes()


@pytest.mark.parametrize("kind", ["nifti", "dicom", "case"])
def test_ended_in_the_middle_leaves_nothing(
    kind: str, run: Path, scans: Path, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new"
    words = {
        "nifti": [str(scans / "suv.nii.gz"), "--output", f"{out}.nii.gz"],
        "dicom": [str(scans / "pet"), "--output", str(out)],
        "case": [str(cohort), "--case", "phantom-000"],
    }[kind]
    real = inference.Spool.put

    def put(self: inference.Spool, z0: int, slab: NDArray[np.float32]) -> None:
        real(self, z0, slab)
        raise KeyboardInterrupt

    monkeypatch.setattr(inference.Spool, "put", put)
    before = {p.name for p in tmp_path.iterdir()}
    with pytest.raises(SystemExit) as ended:
        main(["synthesize", str(run), *words])
    assert ended.value.code == 130
    assert {p.name for p in tmp_path.iterdir()} == before
    assert not list(run.rglob("synth_*"))
    assert not [p for p in run.iterdir() if p.name.startswith(".spool")]
    monkeypatch.setattr(inference.Spool, "put", real)
    main(["synthesize", str(run), *words])  # the same command then goes through


def test_no_volume_is_held(run: Path, tmp_path: Path) -> None:
    """Twice as long a patient takes no more memory: what is traced is a slab of tiles, not the volume."""
    trained = open_run(run)

    def peak(depth: int) -> tuple[int, int]:
        grid = Grid((depth, 32, 32), np.diag([-8.0, -8.0, 8.0, 1.0]))
        voxels = np.random.default_rng(0).gamma(1.0, 1.0, grid.shape).astype(np.float32)
        plan = CasePlan({"low_drf1": ArraySource(voxels, grid, SUV)}, "s", "f")
        ingest(tmp_path / f"cohort{depth}", {"tall": lambda _: plan}, strict=True, workers=1)
        case = open_cohort(tmp_path / f"cohort{depth}").case("tall")
        _ = case.sampling_maps
        spool = inference.Spool(tmp_path / f"spool{depth}", grid)
        gc.collect()
        tracemalloc.start()
        run_case(trained, case, "low_drf1", spool.put)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (tmp_path / f"spool{depth}").stat().st_size == voxels.nbytes
        assert spool.read(0, depth).shape == grid.shape
        return used, voxels.nbytes

    peak(48)  # imports and caches
    small, _ = peak(128)  # tiles are at most 64 slices deep
    large, volume = peak(320)
    assert large - small < 0.1 * volume


def test_the_spool_gives_back_any_slab(tmp_path: Path) -> None:
    grid = Grid((7, 3, 4), np.eye(4))
    voxels = np.random.default_rng(1).normal(size=grid.shape).astype(np.float32)
    spool = inference.Spool(tmp_path / "spool", grid)
    for z0, z1 in ((0, 3), (3, 5), (5, 7)):
        spool.put(z0, voxels[z0:z1])
    for z0, z1 in ((0, 7), (2, 4), (6, 7)):
        np.testing.assert_array_equal(spool.read(z0, z1), np.maximum(voxels[z0:z1], 0))


def test_other_weights_results_are_not_taken_for_these(run: Path, cohort: Path) -> None:
    case = open_cohort(cohort).case("phantom-000")
    trained = open_run(run)
    first = synthesize_case(trained, run, case, "low_drf4")
    before = first.read(0, first.grid.shape[0])
    tensors, facts = checkpoint.read_weights(run / WEIGHTS)
    checkpoint.write_weights(run / WEIGHTS, {name: 2 * value for name, value in tensors.items()}, facts)
    os.utime(run / WEIGHTS, (0, 0))  # as `rsync -t` and a clock that was set back leave it
    anew = open_run(run)
    second = synthesize_case(anew, run, case, "low_drf4")
    after = second.read(0, second.grid.shape[0])
    made = open_cohort(run / SYNTHESIS / "low_drf4").case("phantom-000")
    assert made.fingerprint.endswith(anew.weights)
    assert not np.array_equal(after, before)
    assert verify(run / SYNTHESIS / "low_drf4") == {}
    again = synthesize_case(trained, run, case, "low_drf4")
    np.testing.assert_array_equal(again.read(0, again.grid.shape[0]), before)


def test_a_scan_unlike_those_trained_on_is_told_or_refused(
    run: Path, scans: Path, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained_at(*spacing_mm: float) -> None:
        tensors, facts = checkpoint.read_weights(run / WEIGHTS)
        told = {"starts_from": json.dumps({"units": SUV, "spacing_mm": spacing_mm}), "drfs": "[4.0]"}
        checkpoint.write_weights(run / WEIGHTS, tensors, {**facts, **told})

    words = ["synthesize", str(run), str(scans / "suv.nii.gz"), "--output"]
    trained_at(25.0, 15.0, 14.0)
    main([*words, str(tmp_path / "same.nii")])
    assert "warning" not in capsys.readouterr().err
    trained_at(25.0, 15.0, 11.0)
    main([*words, str(tmp_path / "told.nii")])
    told = "voxels of 25 x 15 x 14 mm (z, y, x), the run was trained at 25 x 15 x 11 mm"
    assert f"warning: suv.nii.gz: {told}" in capsys.readouterr().err.splitlines()
    # It is told, not mended: the same network on the same voxels.
    header, extended = (nibabel.Nifti1Image.from_filename(tmp_path / name) for name in ("same.nii", "told.nii"))
    np.testing.assert_array_equal(np.asanyarray(extended.dataobj), np.asanyarray(header.dataobj))
    assert list(header.header.extensions) == []
    (comment,) = extended.header.extensions
    assert (comment.get_code(), comment.text) == (6, f"differs from training: {told}")
    main(["synthesize", str(run), str(scans / "pet"), "--output", str(tmp_path / "series")])
    assert f"warning: pet: {told}" in capsys.readouterr().err.splitlines()
    for file in (tmp_path / "series").iterdir():
        assert pydicom.dcmread(file).ImageComments == f"differs from training: {told}"
    trained_at(12.5, 7.5, 7.0)
    for source, out in (("suv.nii.gz", "refused.nii"), ("pet", "refused")):
        with pytest.raises(SystemExit):
            main(["synthesize", str(run), str(scans / source), "--output", str(tmp_path / out)])
        assert f"petscale: IMG_VOXEL_SIZE {source}: voxels of 25 x 15 x 14 mm" in capsys.readouterr().err
        assert not (tmp_path / out).exists()
    trained_at(20.0, 11.0, 11.0)
    main(["synthesize", str(run), str(cohort), "--case", "phantom-001", "--image", "low_drf20"])
    told = "dose reduction factor 20, the run was trained at 4"
    assert f"warning: case phantom-001: {told}" in capsys.readouterr().err.splitlines()
    made = open_cohort(run / SYNTHESIS / "low_drf20").case("phantom-001").image("synth_low_drf20")
    assert made.provenance["differs_from_training"] == [told]


def test_activity_taken_for_suv_is_refused(
    run: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["synthesize", str(run), str(scans / "bqml.nii"), "--output", str(tmp_path / "out.nii")])
    assert "petscale: IMG_UNITS bqml.nii: a mean of" in capsys.readouterr().err
    assert not (tmp_path / "out.nii").exists()


@pytest.mark.parametrize("given", [{"weight_kg": 70.0}, {"dose_mbq": 300.0}, {"injection_time": "10:35"}])
def test_a_run_that_starts_from_ct_takes_no_weight_dose_or_time(given: dict[str, Any], run: Path) -> None:
    here = open_run(run)
    from_ct = replace(here, on=replace(here.on, units=HU))
    option = next(iter(given)).replace("_", "-")
    with pytest.raises(InputError, match=f"CFG_NO_EFFECT --{option}: this run starts from HU"):
        check_effect(from_ct, Overrides(**given), image=None, stored=False)
    check_effect(here, Overrides(**given), image=None, stored=False)
