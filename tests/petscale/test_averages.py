"""Several runs and mirror images averaged: the mean and the spread of what each gives, in whatever file, on disk."""

import gc
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import torch
import untrained_runs
from numpy.typing import NDArray

import petscale
from petscale import averages, inference
from petscale.averages import Average, open_estimator
from petscale.cli import main
from petscale.folders import FOLDS, SYNTHESIS, WEIGHTS
from storage import dicom, nifti
from storage.reader import open_cohort
from storage.source import Grid
from trainers import checkpoint

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs of one system and other weights."""
    folder = tmp_path_factory.mktemp("runs")
    return [untrained_runs.red_cnn(folder / name, seed) for seed, name in enumerate(("one", "two", "three"))]


def voxels(path: Path) -> NDArray[np.float32]:
    return np.asarray(nibabel.load(path).dataobj)


@pytest.fixture(scope="module")
def alone(runs: list[Path], scans: Path, tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.float32]:
    """What each run makes of the scan by itself."""
    folder = tmp_path_factory.mktemp("alone")
    for run in runs:
        main(["synthesize", str(run), str(scans / "suv.nii.gz"), "--output", str(folder / f"{run.name}.nii")])
    return np.stack([voxels(folder / f"{run.name}.nii") for run in runs])


def words(runs: list[Path], source: Path, output: Path, *more: object) -> list[str]:
    first, *others = runs
    return list(map(str, ["synthesize", first, source, "--output", output, "--runs", *others, *more]))


def test_the_mean_of_several_runs_and_their_deviation(
    runs: list[Path], alone: NDArray[np.float32], scans: Path, tmp_path: Path
) -> None:
    out, spread = tmp_path / "out.nii.gz", tmp_path / "spread.nii.gz"
    # A run that is named twice counts once: RUN and RUN/fold-* may overlap.
    main(words([*runs, runs[0]], scans / "suv.nii.gz", out, "--deviation", spread))
    assert alone.std(axis=0).max() > 0.01
    np.testing.assert_allclose(voxels(out), alone.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(voxels(spread), alone.std(axis=0, ddof=1), rtol=1e-3, atol=1e-5)
    for made in (nibabel.load(out), nibabel.load(spread)):
        np.testing.assert_array_equal(made.affine, nibabel.load(scans / "suv.nii.gz").affine)
        assert made.get_data_dtype() == np.float32
    assert {path.name for path in tmp_path.iterdir()} == {"out.nii.gz", "spread.nii.gz"}


def test_mean_and_deviation_are_in_the_unit_of_the_file(
    runs: list[Path], alone: NDArray[np.float32], scans: Path, tmp_path: Path
) -> None:
    out, spread = tmp_path / "out.nii", tmp_path / "spread.nii"
    options = ["--units", "Bq/mL", "--weight-kg", "70", "--dose-mbq", "300", "--deviation", spread]
    main(words(runs, scans / "bqml.nii", out, *options))
    bqml = 300e6 / 70e3
    np.testing.assert_allclose(voxels(out), alone.mean(axis=0) * bqml, rtol=1e-3, atol=1e-3 * bqml)
    np.testing.assert_allclose(voxels(spread), alone.std(axis=0, ddof=1) * bqml, rtol=1e-2, atol=1e-3 * bqml)


def test_a_dicom_series_says_how_many_runs_and_mirror_images(runs: list[Path], scans: Path, tmp_path: Path) -> None:
    out, spread = tmp_path / "mean", tmp_path / "spread"
    main(words(runs[:2], scans / "pet", out, "--deviation", spread, "--flips", "x"))
    image = petscale.average(runs[0], scans / "pet", runs=runs[1:2], flips=["x"])
    for folder, wanted, begins in ((out, image.mean, ""), (spread, image.deviation, "standard deviation, ")):
        first = pydicom.dcmread(sorted(folder.iterdir())[0])
        said = f"petscale: {begins}mean of 2 runs x 2 mirror images, red_cnn full-dose estimate."
        assert first.DerivationDescription.startswith(said)
        assert first.Units == "BQML"
        series = dicom.open_series(folder, modality="PT")
        found = series.read(0, series.grid.shape[0])
        bound = 1e-3 * wanted.voxels.max(axis=(1, 2), keepdims=True) + 1e-6  # int16 with a slope per slice
        assert np.all(np.abs(found - wanted.voxels) <= bound)


def test_a_case_is_stored_once_beside_the_first_run_and_its_deviation_in_a_file(
    runs: list[Path], cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["synthesize", str(runs[0]), str(cohort), "--case", "phantom-002", "--runs", str(runs[1])]
    main(asked)
    folder = Path(capsys.readouterr().out.strip())
    assert folder.is_relative_to(runs[0] / SYNTHESIS)
    made = open_cohort(folder.parents[2]).case("phantom-002").image("synth_low_drf4")
    singly = [petscale.synthesize(run, (cohort, "phantom-002")).voxels for run in runs[:2]]
    np.testing.assert_allclose(made.read(0, made.grid.shape[0]), np.mean(singly, axis=0), rtol=1e-5, atol=1e-6)
    assert made.provenance["runs"] == 2
    assert made.provenance["images_averaged"] == 2
    assert made.provenance["weights"] == [inference.open_run(run).weights for run in runs[:2]]
    spread = tmp_path / "spread.nii.gz"
    main([*asked, "--deviation", str(spread)])
    stored = nifti.open_nifti(spread, units="SUVbw", workdir=tmp_path)
    assert stored.grid.matches(made.grid)
    deviation = stored.read(0, made.grid.shape[0])
    np.testing.assert_allclose(deviation, np.std(singly, axis=0, ddof=1), rtol=1e-3, atol=1e-5)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("synthesized again")

    monkeypatch.setattr(averages, "run_case", never)
    main(asked)
    assert not [path for path in runs[0].iterdir() if path.name.startswith(".spool")]


def symmetric(run: Path) -> dict[str, torch.Tensor]:
    """The run's weights with kernels that no mirror changes."""
    tensors, _ = checkpoint.read_weights(run / WEIGHTS)
    return {
        name: torch.stack([value.flip(axes) for axes in ((), (3,), (4,), (3, 4))]).mean(0)
        if value.dim() == 5
        else value
        for name, value in tensors.items()
    }


def test_mirror_images_of_a_network_that_mirrors_leave_alone_have_no_deviation(
    runs: list[Path], scans: Path, tmp_path: Path
) -> None:
    run = untrained_runs.red_cnn(tmp_path / "run", 0, weights=symmetric(runs[0]))
    low = petscale.Image.open(scans / "suv.nii.gz")
    one, both = petscale.synthesize(run, low), petscale.average(run, low, flips=["x", "y"])
    scale = float(one.voxels.max())
    assert both.deviation.voxels.max() < 1e-5 * scale  # sums of a convolution run the other way round
    np.testing.assert_allclose(both.mean.voxels, one.voxels, atol=1e-5 * scale)
    assert both.mean.provenance["mirrored_along"] == ["y", "x"]


def test_the_mean_over_mirror_images_is_mirrored_with_the_scan(runs: list[Path], scans: Path) -> None:
    low = petscale.Image.open(scans / "suv.nii.gz")
    backwards = petscale.Image(np.flip(low.voxels, 2), low.grid)

    def apart(flips: list[Any]) -> float:
        made, other = (petscale.synthesize(runs[0], image, flips=flips).voxels for image in (low, backwards))
        return float(np.abs(np.flip(other, 2) - made).max() / made.max())

    assert apart([]) > 1e-3
    assert apart(["x"]) < 1e-5


def test_runs_times_mirror_images_all_count_alike(runs: list[Path], scans: Path) -> None:
    low = petscale.Image.open(scans / "suv.nii.gz")
    both = petscale.average(runs[0], low, runs=[runs[1]], flips=["y"])
    backwards = petscale.Image(np.flip(low.voxels, 1), low.grid)
    images = [petscale.synthesize(run, low).voxels for run in runs[:2]]
    images += [np.flip(petscale.synthesize(run, backwards).voxels, 1) for run in runs[:2]]
    np.testing.assert_allclose(both.mean.voxels, np.mean(images, axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(both.deviation.voxels, np.std(images, axis=0, ddof=1), rtol=1e-3, atol=1e-5)


def test_a_ct_comes_back_at_the_voxel_size_of_the_runs(scans: Path, tmp_path: Path, refused: Refused) -> None:
    sizes = {"a": (25.0, 15.0, 14.0), "b": (25.0, 15.0, 14.3), "c": (25.0, 20.0, 19.0)}
    made = {name: untrained_runs.cascade(tmp_path / name, n, size) for n, (name, size) in enumerate(sizes.items())}
    both = petscale.average(made["a"], scans / "ct", runs=[made["b"]])
    assert both.mean.grid.matches(petscale.synthesize(made["a"], scans / "ct").grid)
    line = refused(*words([made["a"], made["c"]], scans / "ct", tmp_path / "out"))
    assert line.startswith("SET_RUNS_DIFFER c: gives voxels of 25 x 20 x 19 mm, a of 25 x 15 x 14 mm")


def test_what_differs_from_training_is_told_once_for_each_run(
    tmp_path: Path, scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [untrained_runs.red_cnn(tmp_path / name, seed) for seed, name in enumerate(("near", "far", "farther"))]
    for run, edge_mm in zip(runs, (14.0, 11.0, 11.0), strict=True):
        tensors, facts = checkpoint.read_weights(run / WEIGHTS)
        start = {"starts_from": json.dumps({"units": "SUVbw", "spacing_mm": (25.0, 15.0, edge_mm)})}
        checkpoint.write_weights(run / WEIGHTS, tensors, {**facts, **start})
    main(words(runs, scans / "suv.nii.gz", tmp_path / "out.nii", "--flips", "z"))
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert told == [
        "warning: suv.nii.gz: far, farther: voxels of 25 x 15 x 14 mm (z, y, x), the run was trained at 25 x 15 x 11 mm"
    ]


def test_a_submission_is_the_mean_too_and_knows_its_runs(
    runs: list[Path], alone: NDArray[np.float32], scans: Path, tmp_path: Path, refused: Refused
) -> None:
    flat, out = tmp_path / "flat", tmp_path / "out"
    flat.mkdir()
    scan = nifti.open_nifti(scans / "bqml.nii", units="Bq/mL", workdir=tmp_path)
    nifti.write_nifti(flat / "a.nii.gz", scan.grid, scan.read)
    (flat / "t.csv").write_text("NiftiFileName,PatientWeight_kg,RadionuclideTotalDose_Bq,DecayCorrection\n"
                                "a.nii.gz,70,300e6,ADMIN\n")  # fmt: skip
    asked = ["submission", runs[0], flat, out, "--runs", *runs[1:]]
    main(list(map(str, asked)))
    bqml = 300e6 / 70e3
    np.testing.assert_allclose(voxels(out / "a.nii.gz"), alone.mean(axis=0) * bqml, rtol=1e-3, atol=1e-3 * bqml)
    assert refused("submission", runs[0], flat, out).startswith("DISK_EXISTS out: results of other weights")


def test_what_cannot_be_averaged_or_written_is_refused_and_leaves_nothing(
    runs: list[Path], scans: Path, cohort: Path, tmp_path: Path, refused: Refused
) -> None:
    ct = untrained_runs.cascade(tmp_path / "ct", 0, (25.0, 15.0, 14.0))
    empty = tmp_path / "empty"
    empty.mkdir()
    out, spread, there = tmp_path / "out.nii", tmp_path / "spread.nii", tmp_path / "there.nii"
    there.write_text("a result of last year")
    before = sorted(tmp_path.rglob("*"))
    suv = scans / "suv.nii.gz"
    for asked, told in (
        (words([runs[0], ct], suv, out), "SET_RUNS_DIFFER ct: starts from HU, one SUVbw"),
        (words([runs[0], empty], suv, out), "CFG_RUN_FOLDER empty: no run in this folder"),
        (["synthesize", runs[0], suv, "--output", out, "--runs", "s3://bucket/run"], "CLU_URL s3://bucket/run"),
        (words(runs, suv, out, "--deviation", out), "CFG_OUTPUT --deviation"),
        (words(runs, suv, out, "--deviation", there), "DISK_EXISTS there.nii"),
        (words(runs, suv, out, "--deviation", tmp_path / "series"), "IMG_FORMAT series"),
        (["synthesize", runs[0], suv, "--output", out, "--deviation", spread], "CFG_NO_EFFECT --deviation"),
        (
            ["synthesize", runs[0], cohort, "--case", "phantom-000", "--flips", "x", "--deviation", tmp_path / "s"],
            "IMG_FORMAT s: no NIfTI file",
        ),
    ):
        assert refused(*asked).startswith(told)
        assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_of_folds_stands_for_its_runs(tmp_path: Path, scans: Path) -> None:
    made = [untrained_runs.red_cnn(tmp_path / "cv" / f"fold-{k}", k) for k in range(2)]
    (tmp_path / "cv" / FOLDS).write_text(json.dumps({"folds": ["fold-0", "fold-1"]}))
    low = petscale.Image.open(scans / "suv.nii.gz")
    whole = petscale.synthesize(tmp_path / "cv", low)
    np.testing.assert_array_equal(whole.voxels, petscale.synthesize(made[0], low, runs=made[1:]).voxels)
    estimator = open_estimator(tmp_path / "cv", made)
    assert isinstance(estimator, averages.Ensemble)
    assert [member.name for member in estimator.members] == ["fold-0", "fold-1"]


def test_equal_volumes_have_no_deviation_and_a_mean_of_no_other_bits(tmp_path: Path) -> None:
    grid = Grid((6, 4, 5), np.eye(4))
    drawn = np.random.default_rng(0).normal(1.0, 1.0, grid.shape).astype(np.float32)
    average = Average(tmp_path, grid, {})
    for _ in range(5):
        average.begin()
        for z0 in (4, 2, 0):  # as slabs of a volume mirrored along z come
            average.put(z0, drawn[z0 : z0 + 2])
    found = average.estimate()
    assert found.deviation is not None
    assert not found.deviation.read(0, 6).any()
    np.testing.assert_array_equal(found.mean.read(0, 6), np.maximum(drawn, 0))


def test_no_more_is_held_than_a_slab(tmp_path: Path) -> None:
    grid = Grid((512, 64, 64), np.eye(4))
    slab = np.ones((8, 64, 64), np.float32)
    average = Average(tmp_path, grid, {})
    gc.collect()
    tracemalloc.start()
    for _ in range(3):
        average.begin()
        for z0 in range(0, 512, 8):
            average.put(z0, slab)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * slab.nbytes
