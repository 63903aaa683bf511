"""Ingest is bitwise, repeatable, interruptible at any moment, and says no to one case without losing the others."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from storage import geometry, integrity, layout
from storage.errors import InputError
from storage.ingest import CasePlan, create_cohort, ingest, site_key, subject_hash
from storage.nifti import open_nifti
from storage.patches import CELL
from storage.phantom import LABEL_NAMES, PhantomConfig, phantom
from storage.reader import open_cohort
from storage.source import HU, LABEL, SUV, ArraySource, Grid
from storage.verification import verify

PATIENT = phantom(PhantomConfig(shape=(64, 48, 48), spacing_mm=(8.0, 8.0, 8.0), seed=3))


def grid_of(shape: tuple[int, int, int], mm: float = 8.0) -> Grid:
    return Grid(shape, np.diag([-mm, -mm, mm, 1.0]))


def noise(shape: tuple[int, int, int] = (20, 12, 12), seed: int = 0, units: str = SUV) -> ArraySource:
    return ArraySource(np.random.default_rng(seed).random(shape, dtype=np.float32), grid_of(shape), units)


def plan(fingerprint: str = "print", names: dict[int, str] | None = None, **images: Any) -> Callable[..., CasePlan]:
    return lambda _: CasePlan(images, "subject", fingerprint, names or {})


def phantom_plan(**extra: ArraySource) -> Callable[..., CasePlan]:
    images: dict[str, Any] = {"full": PATIENT.activity, "ct": PATIENT.ct, "labels": PATIENT.labels}
    return plan(names=LABEL_NAMES, **images | extra)


def roots(cohort: Path) -> Any:
    return json.loads((cohort / layout.CATALOG).read_bytes())


def state(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What a write would change: inode, time and size of every file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.stat()
        found[str(path)] = (status.st_ino, status.st_mtime_ns, status.st_size if path.is_file() else 0)
    return found


def leftovers(cohort: Path) -> list[str]:
    """Whatever is no part of a cohort."""
    known = {"zarr.json", layout.CASES, layout.CATALOG, ".lock"}
    return [p.name for p in cohort.iterdir() if p.name not in known] + [str(p) for p in cohort.rglob("*partial*")]


# --- what comes in comes out ---


def test_a_phantom_comes_back_bitwise(tmp_path: Path) -> None:
    outcome = ingest(tmp_path, {"p": phantom_plan(low_drf4=noise(PATIENT.config.shape))}, strict=False)
    # Noise on another grid is refused whole; nothing of the case is left behind.
    assert outcome.refused["p"].code == "PAIR_GRID_MISMATCH"
    assert ingest(tmp_path, {"p": phantom_plan()}, strict=True).committed == ["p"]
    case = open_cohort(tmp_path).case("p")
    assert case.images == ("body", "ct", "full", "labels")
    assert case.labels == dict(LABEL_NAMES)
    for name, source in (("full", PATIENT.activity), ("ct", PATIENT.ct), ("labels", PATIENT.labels)):
        image, voxels = case.image(name), source.read(0, 64)
        assert image.units == source.units
        assert image.grid.matches(source.grid, 1e-9)
        assert image.read(0, 64).tobytes() == voxels.tobytes()
        assert image.statistics["max"] == voxels.max()
        assert image.statistics["mean"] == pytest.approx(voxels.mean(dtype=np.float64))
    assert verify(tmp_path) == {}
    assert leftovers(tmp_path) == []


def test_several_shards_and_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SHARD_BYTES", 2**14)
    shape = (141, 20, 17)
    full = noise(shape, 1)
    labels = ArraySource((full.voxels > 0.9).astype(np.float32), full.grid, LABEL)
    ingest(tmp_path, {"c": plan(names={1: "hot"}, full=full, labels=labels)}, strict=True)
    case = tmp_path / "cases" / "c"
    assert len(layout.slabs(shape, 4)) == 5
    assert open_cohort(tmp_path).case("c").image("full").read(0, 141).tobytes() == full.voxels.tobytes()
    ome = json.loads((case / "full" / "zarr.json").read_text())["attributes"]["ome"]
    assert [d["path"] for d in ome["multiscales"][0]["datasets"]] == ["0", "1"]
    padded = np.pad(full.voxels, ((0, 1), (0, 0), (0, 1)), constant_values=np.nan)
    blocks = padded.reshape(71, 2, 10, 2, 9, 2)
    coarse: Any = zarr.open_array(case / "full" / "1", mode="r")[...]
    np.testing.assert_allclose(coarse, np.nanmean(blocks, (1, 3, 5)), rtol=1e-5)
    assert (zarr.open_array(case / "labels" / "1", mode="r")[...] == labels.voxels[::2, ::2, ::2]).all()


def test_labels_become_fractions_of_cells(tmp_path: Path) -> None:
    ingest(tmp_path, {"p": phantom_plan()}, strict=True)
    maps = open_cohort(tmp_path).case("p").sampling_maps
    labels = PATIENT.labels.read(0, 64)
    cells = tuple(-(-n // CELL) for n in labels.shape)
    assert set(maps.rois) == set(LABEL_NAMES.values())
    for value, name in LABEL_NAMES.items():
        share = (labels == value).reshape(cells[0], CELL, cells[1], CELL, cells[2], CELL).mean((1, 3, 5))
        assert maps.rois[name].shape == cells
        assert np.abs(maps.rois[name] - share).max() <= 1 / 255 + 1e-6
        assert ((maps.rois[name] > 0) == (share > 0)).all(), "one voxel is enough to be drawn"
    means = PATIENT.activity.read(0, 64).reshape(cells[0], CELL, cells[1], CELL, cells[2], CELL).mean((1, 3, 5))
    np.testing.assert_allclose(maps.uptake, means, atol=1e-4)
    body = open_cohort(tmp_path).case("p").image("body").read(0, 64)
    np.testing.assert_allclose(
        maps.body, body.reshape(cells[0], CELL, cells[1], CELL, cells[2], CELL).mean((1, 3, 5)), atol=1e-6
    )


def test_a_mask_without_names_is_stored(tmp_path: Path) -> None:
    full = noise()
    mask = ArraySource((full.voxels > 0.5).astype(np.float32), full.grid, LABEL)
    ingest(tmp_path, {"c": plan(full=full, labels=mask, other=mask)}, strict=True)
    case = open_cohort(tmp_path).case("c")
    assert (case.image("other").read(0, 20) == mask.voxels).all()
    assert case.sampling_maps.rois == {}


@pytest.mark.parametrize("names", [("full",), ("full", "ct"), ("low_drf20", "low_drf4")])
def test_the_body_is_where_the_labels_are(tmp_path: Path, names: tuple[str, ...]) -> None:
    person = phantom(PhantomConfig(shape=(128, 80, 96), spacing_mm=(4.0, 4.0, 5.0), seed=5))
    images: dict[str, Any] = {n: person.ct if n == "ct" else person.activity for n in names}
    ingest(tmp_path, {"p": plan(**images)}, strict=True)
    body = open_cohort(tmp_path).case("p").image("body").read(0, 128) > 0
    truth = person.labels.read(0, 128) > 0
    assert (body & truth).sum() / (body | truth).sum() > 0.9


def test_the_overview_is_the_volume_shrunk(tmp_path: Path) -> None:
    ingest(tmp_path, {"p": phantom_plan()}, strict=True)
    overview = open_cohort(tmp_path).case("p").overview("full")
    assert overview.shape == (64, 64, 64)
    assert overview.mean() == pytest.approx(PATIENT.activity.read(0, 64).mean(), rel=1e-5)


def test_a_ct_alone_is_a_case(tmp_path: Path) -> None:
    ingest(tmp_path, {"p": plan(names=LABEL_NAMES, ct=PATIENT.ct, labels=PATIENT.labels)}, strict=True)
    ingest(tmp_path, {"bare": plan(ct=PATIENT.ct)}, strict=True)
    case = open_cohort(tmp_path).case("bare")
    assert case.images == ("body", "ct")
    assert case.image("ct").read(0, 64).tobytes() == PATIENT.ct.read(0, 64).tobytes()
    assert case.sampling_maps.uptake.shape == case.sampling_maps.body.shape
    assert not case.sampling_maps.uptake.any()
    body, truth = case.image("body").read(0, 64) > 0, PATIENT.labels.read(0, 64) > 0
    assert (body & truth).sum() / (body | truth).sum() > 0.9
    assert verify(tmp_path) == {}


def test_neither_a_pet_nor_a_ct_alone_is_no_case(tmp_path: Path) -> None:
    plans = {
        "labels": plan(labels=PATIENT.labels),
        "ct-as-pet": plan(full=PATIENT.ct),
        "twice": plan(full=PATIENT.ct, ct=PATIENT.ct),
    }
    assert {error.code for error in ingest(tmp_path, plans).refused.values()} == {"SET_NO_PET"}
    assert open_cohort(tmp_path).cases == ()


def in_air(values: NDArray[Any]) -> ArraySource:
    """A volume whose border is air at -1000."""
    inside = np.pad(values, 2, constant_values=-1000.0).astype(np.float32)
    return ArraySource(inside, grid_of(inside.shape), HU)


@pytest.mark.parametrize(
    ("ct", "found"),
    {
        "unit range": (lambda v: ArraySource(v, grid_of(v.shape), HU), "values of 0 to 1"),
        "minus one to one": (lambda v: ArraySource(2 * v - 1, grid_of(v.shape), HU), "values of -1 to 1"),
        "bytes": (lambda v: ArraySource(255 * v, grid_of(v.shape), HU), "values of 0 to 255: no fat and no air"),
        "offset": (lambda v: ArraySource(2500 * v, grid_of(v.shape), HU), "values of 0 to 2500"),
        "unit range in air": (in_air, "values of -1000 to 1: no soft tissue"),
    }.values(),
)
def test_a_ct_that_is_not_in_hu_is_refused(
    tmp_path: Path, ct: Callable[[NDArray[Any]], ArraySource], found: str
) -> None:
    values = np.random.default_rng(5).random((12, 10, 10), dtype=np.float32)
    values.flat[:2] = 0, 1
    with pytest.raises(InputError, match=f"CT_UNITS case p, image ct: {found}"):
        ingest(tmp_path, {"p": plan(ct=ct(values))}, strict=True)
    assert open_cohort(tmp_path).cases == ()


@pytest.mark.parametrize(
    ("dtype", "peak", "noted"),
    [
        (np.int16, 32767.0, False),  # scaled to its type, one voxel at the limit
        (np.int16, 60000.0, True),
        (np.uint8, 255.0, False),
        (np.uint8, 400.0, True),
        (np.float32, 60000.0, False),
    ],
)
def test_an_image_that_is_cut_off_at_its_type_is_noted(tmp_path: Path, dtype: Any, peak: float, noted: bool) -> None:
    z, y, x = np.ogrid[:20, :24, :24]
    hot = np.exp(-((z - 10) ** 2 + (y - 12.2) ** 2 + (x - 11.9) ** 2) / 60.0)
    top = np.inf if dtype == np.float32 else np.iinfo(dtype).max
    stored = np.clip(np.rint(peak * hot / hot.max()), 0, top).astype(dtype)
    stored[:, :2] = 0 if dtype != np.int16 else -32768  # padding is no plateau of a scan
    image = nibabel.Nifti1Image(stored.T, np.diag([4.0, 4.0, 5.0, 1.0]))
    nibabel.save(image, tmp_path / "pet.nii.gz")
    pet = open_nifti(tmp_path / "pet.nii.gz", units="Bq/mL", workdir=tmp_path / "work", scale=10 / peak)
    ingest(tmp_path / "cohort", {"one": plan(full=pet)}, strict=True)
    notes = open_cohort(tmp_path / "cohort").case("one").image("full").provenance["notes"]
    assert isinstance(notes, list)
    assert ("saturated" in notes) == noted


@pytest.mark.skipif("PETSCALE_REAL_DATA" not in os.environ, reason="PETSCALE_REAL_DATA names no data folder")
def test_small_crops_of_real_ct_are_hu(tmp_path: Path) -> None:
    data = Path(os.environ["PETSCALE_REAL_DATA"], "ibsi/ibsi_validation/nifti")
    crops = {path.parent.name.lower(): path for path in data.glob("STS_*/CT_image.nii.gz")}
    assert len(crops) == 10
    for name, path in crops.items():

        def open_plan(scratch: Path, path: Path = path) -> CasePlan:
            return CasePlan({"ct": open_nifti(path, units="HU", workdir=scratch)}, "s", "f")

        assert ingest(tmp_path, {name: open_plan}, strict=True).committed == [name]


# --- the same bytes whoever works ---


def test_root_digest_is_independent_of_workers_scheduler_and_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, low = noise((70, 20, 17), 1), noise((70, 20, 17), 2)

    def one(name: str, sources: Any, **options: Any) -> Any:
        ingest(tmp_path / name, {"c": plan(**sources)}, strict=True, **options)
        return roots(tmp_path / name)

    monkeypatch.setattr(layout, "SHARD_BYTES", 2**14)
    reference = one("1", {"full": full, "low_drf4": low}, workers=1)
    assert one("4", {"full": full, "low_drf4": low}, workers=4) == reference
    assert one("sync", {"full": full, "low_drf4": low}, scheduler="synchronous") == reference
    assert one("again", {"full": full, "low_drf4": noise((70, 20, 17), 2)}, workers=2) == reference
    assert one("other", {"full": full, "low_drf4": noise((70, 20, 17), 3)}) != reference


def test_root_digest_is_independent_of_processes(tmp_path: Path) -> None:
    for scheduler in ("threads", "processes"):
        ingest(tmp_path / scheduler, {"p": phantom_plan()}, strict=True, scheduler=scheduler, workers=2)
    assert roots(tmp_path / "threads") == roots(tmp_path / "processes")


@pytest.mark.slow
def test_root_digest_is_independent_of_the_processors_kernels(tmp_path: Path) -> None:
    """A cluster's machines differ, and Ray gives a process other threads than a terminal does."""
    script = """if True:
        import sys
        from pathlib import Path
        from petscale.data.phantom import phantom_plans
        from storage.ingest import ingest
        from storage.lowdose import LowDoseConfig
        from storage.phantom import PhantomConfig
        body = PhantomConfig(shape=(20, 40, 40), spacing_mm=(50.0, 10.0, 10.0))
        ingest(Path(sys.argv[1]), phantom_plans(1, body, LowDoseConfig(iterations=1), [4.0]), strict=True)
    """
    found = []
    for number, kernels in enumerate(
        (
            {"OPENBLAS_CORETYPE": "Haswell", "OPENBLAS_NUM_THREADS": "2"},
            {"OPENBLAS_CORETYPE": "Prescott", "OPENBLAS_NUM_THREADS": "1", "NPY_DISABLE_CPU_FEATURES": "AVX2"},
        )
    ):
        words = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / str(number))]
        subprocess.run(words, check=True, env={**os.environ, **kernels})
        found.append(roots(tmp_path / str(number)))
    assert found[0] == found[1]


# --- again, changed, refused ---


def test_a_second_run_writes_nothing(tmp_path: Path) -> None:
    plans = {"a": plan(full=noise()), "b": plan(full=noise(seed=1))}
    assert ingest(tmp_path, plans).committed == ["a", "b"]
    before = state(tmp_path)
    again = ingest(tmp_path, plans)
    assert (again.committed, again.kept, again.refused) == ([], ["a", "b"], {})
    after = state(tmp_path)
    assert {k: v for k, v in after.items() if k != str(tmp_path)} == {
        k: v for k, v in before.items() if k != str(tmp_path)
    }
    ingest(tmp_path, {**plans, "c": plan(full=noise(seed=2))})
    assert state(tmp_path / "cases" / "a") == {
        k: v for k, v in before.items() if k.startswith(str(tmp_path / "cases" / "a") + os.sep)
    }


def test_changed_inputs_never_overwrite(tmp_path: Path) -> None:
    ingest(tmp_path, {"a": plan(full=noise())})
    before = state(tmp_path / "cases")
    outcome = ingest(tmp_path, {"a": plan("another", full=noise(seed=1))})
    assert outcome.refused["a"].code == "SET_CASE_EXISTS"
    assert state(tmp_path / "cases") == before


def nan() -> ArraySource:
    source = noise(seed=4)
    source.voxels[7, 3, 3] = np.nan
    return source


def infinite() -> ArraySource:
    source = noise(seed=4)
    source.voxels[0, 0, 0] = np.inf
    return source


BAD: dict[str, Callable[[], dict[str, Any]]] = {
    "IMG_NONFINITE": lambda: {"full": nan()},
    "IMG_CONSTANT": lambda: {"full": ArraySource(np.full((20, 12, 12), 2.0, np.float32), grid_of((20, 12, 12)), SUV)},
    "PAIR_GRID_MISMATCH": lambda: {"full": noise(), "low_drf4": noise((20, 12, 13))},
    "SET_NO_PET": lambda: {"full": noise(units=HU)},
    "CT_UNITS": lambda: {"full": noise(), "ct": noise(units=HU)},
    "CFG_NAME": lambda: {"full": noise(), "body": noise()},
}


@pytest.mark.parametrize("code", BAD)
def test_one_bad_case_costs_itself_only(tmp_path: Path, code: str) -> None:
    plans = {"a": plan(full=noise()), "bad": plan(**BAD[code]()), "z": plan(full=noise(seed=1))}
    outcome = ingest(tmp_path, plans)
    assert outcome.committed == ["a", "z"]
    assert {name: error.code for name, error in outcome.refused.items()} == {"bad": code}
    assert open_cohort(tmp_path).cases == ("a", "z")
    assert verify(tmp_path) == {}
    assert leftovers(tmp_path) == []


def test_infinite_voxels_and_a_shifted_grid_are_refused(tmp_path: Path) -> None:
    shifted = noise(seed=1)
    affine = shifted.grid.affine.copy()
    affine[2, 3] += 0.2
    moved = ArraySource(shifted.voxels, Grid(shifted.grid.shape, affine), SUV)
    outcome = ingest(tmp_path, {"inf": plan(full=infinite()), "moved": plan(full=noise(), low_drf4=moved)})
    assert {n: e.code for n, e in outcome.refused.items()} == {"inf": "IMG_NONFINITE", "moved": "PAIR_GRID_MISMATCH"}


def test_strict_stops_at_the_first_refusal(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        ingest(tmp_path, {"a": plan(full=noise()), "bad": plan(full=nan()), "z": plan(full=noise())}, strict=True)
    assert error.value.code == "IMG_NONFINITE"
    assert open_cohort(tmp_path).cases == ("a",)
    assert leftovers(tmp_path) == []


@dataclass(frozen=True, eq=False)
class Slow(ArraySource):
    """A source whose first slab is bad at once, and whose others take their time."""

    running: list[int] = field(default_factory=list)

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        self.running.append(z0)
        time.sleep(0.5 if z0 else 0.1)
        self.running.remove(z0)
        return super().read(z0, z1)


def test_a_refusal_waits_for_the_tasks_that_still_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise they write on into a folder that is being removed, when the lock is no longer held."""
    monkeypatch.setattr(layout, "SHARD_BYTES", 2**14)
    slow = Slow(noise((70, 20, 17)).voxels, grid_of((70, 20, 17)), SUV)
    slow.voxels[0, 0, 0] = np.nan
    outcome = ingest(tmp_path, {"a": plan(full=slow)}, workers=3)
    assert outcome.refused["a"].code == "IMG_NONFINITE"
    assert slow.running == []
    assert leftovers(tmp_path) == []


def test_a_case_name_is_checked_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="CFG_NAME"):
        ingest(tmp_path / "new", {"a": plan(full=noise()), "Jane Doe": plan(full=noise())})
    assert not (tmp_path / "new").exists()


def test_a_damaged_case_is_not_kept_silently_and_can_be_made_again(tmp_path: Path) -> None:
    ingest(tmp_path, {"a": plan(full=noise())})
    reference = roots(tmp_path)
    case = tmp_path / "cases" / "a"
    for spoil, code in ((case / "full/0/c/0/0/0", "STORE_DAMAGED"), (case / "MANIFEST.json", "STORE_UNCOMMITTED")):
        spoil.unlink()
        assert ingest(tmp_path, {"a": plan(full=noise())}).refused["a"].code == code
    shutil.rmtree(case)
    assert ingest(tmp_path, {"a": plan(full=noise())}).committed == ["a"]
    assert roots(tmp_path) == reference
    assert verify(tmp_path) == {}


# --- the folder ---


def test_a_strangers_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError) as error:
        ingest(tmp_path, {"a": plan(full=noise())})
    assert error.value.code == "STORE_NOT_EMPTY"
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["thesis.tex"]


def test_a_cohort_half_made_by_a_killed_process_is_finished(tmp_path: Path) -> None:
    create_cohort(tmp_path)
    shutil.rmtree(tmp_path / "cases")
    (tmp_path / ".zarr.json.123.partial").write_text("{")
    assert ingest(tmp_path, {"a": plan(full=noise())}).committed == ["a"]
    assert leftovers(tmp_path) == []


def test_two_ingests_at_once_one_waits(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(_: object) -> CasePlan:
        entered.set()
        leave.wait(20)
        return CasePlan({"full": noise()}, "s", "f")

    thread = threading.Thread(target=ingest, args=(tmp_path, {"a": slow}))
    thread.start()
    try:
        assert entered.wait(20)
        with pytest.raises(InputError) as error:
            ingest(tmp_path, {"b": plan(full=noise())})
        assert error.value.code == "STORE_BUSY"
    finally:
        leave.set()
        thread.join()
    assert open_cohort(tmp_path).cases == ("a",)
    assert ingest(tmp_path, {"b": plan(full=noise())}).committed == ["b"]


# --- nothing identifying ---


def test_no_canary_reaches_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canaries = ["CanaryMusterfrau", "PAT-0815-4711", "canary_folder", "canary note", "canary_scan"]
    monkeypatch.setenv("PETSCALE_SITE_KEY", str(tmp_path / "site.key"))
    folder = tmp_path / "canary_folder"
    folder.mkdir()
    voxels = noise((12, 12, 20)).voxels
    image = nibabel.Nifti1Image(voxels, np.diag([-8.0, -8.0, 8.0, 1.0]))
    image.header["descrip"], image.header["aux_file"], image.header["db_name"] = (
        b"canary note",
        canaries[0],
        b"PAT-0815",
    )
    image.header["intent_name"] = b"canary note"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"CanaryMusterfrau"))
    path = folder / "canary_scan.nii.gz"
    nibabel.save(image, path)

    def open_plan(scratch: Path) -> CasePlan:
        source = open_nifti(path, units="SUVbw", workdir=scratch)
        return CasePlan({"full": source}, subject_hash("PAT-0815-4711", site_key()), "f")

    cohort = tmp_path / "cohort"
    ingest(cohort, {"case-1": open_plan}, strict=True)
    written = b"".join(p.read_bytes() + str(p.relative_to(cohort)).encode() for p in cohort.rglob("*") if p.is_file())
    for canary in (*canaries, "PAT-0815", str(tmp_path), (tmp_path / "site.key").read_bytes().hex()):
        assert canary.lower().encode() not in written.lower()
    assert (tmp_path / "site.key").read_bytes() not in written


def test_a_subject_hash_needs_the_sites_key() -> None:
    assert subject_hash("p", b"k" * 32) == subject_hash("p", b"k" * 32)
    assert subject_hash("p", b"k" * 32) != subject_hash("p", b"l" * 32)
    assert subject_hash("p", b"k" * 32) != subject_hash("q", b"k" * 32)


def test_the_site_key_is_made_once_private_and_never_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "site.key"
    monkeypatch.setenv("PETSCALE_SITE_KEY", str(path))
    key = site_key()
    assert len(key) == 32
    assert site_key() == key
    assert path.stat().st_mode & 0o077 == 0
    assert [p.name for p in path.parent.iterdir()] == ["site.key"]
    path.write_bytes(b"")
    with pytest.raises(InputError) as error:
        site_key()
    assert error.value.code == "CFG_SITE_KEY"


def test_a_site_key_that_cannot_be_made_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PETSCALE_SITE_KEY", str(tmp_path / "file" / "site.key"))
    with pytest.raises(InputError, match=r"CFG_SITE_KEY site\.key: .*PETSCALE_SITE_KEY"):
        site_key()


# --- killed, and out of space ---

COMMON = """
import json, os, signal, sys
from pathlib import Path
import numpy as np
from storage import integrity
from storage.errors import InputError
from storage.ingest import CasePlan, ingest
from storage.source import LABEL, SUV, ArraySource, Grid
from storage.verification import verify

def plans(names, shape=(20, 12, 12)):
    grid = Grid(shape, np.diag([-8.0, -8.0, 8.0, 1.0]))
    def one(seed):
        full = np.random.default_rng(seed).random(shape, dtype=np.float32)
        images = {"full": ArraySource(full, grid, SUV), "labels": ArraySource(np.round(full), grid, LABEL)}
        return lambda _: CasePlan(images, "s", f"print {seed}", {1: "hot"})
    return {name: one(ord(name)) for name in names}
"""

# Forks ingests that kill themselves at their n-th touch of the file system, then runs each again.
KILLS = (
    COMMON
    + """
folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
TOUCHES = {"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir"}

def run(cohort, kill_at):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    touched = 0
    def hook(event, arguments):
        nonlocal touched
        if event in TOUCHES:
            touched += 1
            if touched == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    ingest(cohort, plans("ab"), strict=True, workers=2)
    (folder / "touched").write_text(str(touched))
    os._exit(0)

def files(folder):
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}

assert run(folder / "whole", 0) == 0
roots = json.loads((folder / "whole" / "CATALOG.json").read_text())
total = int((folder / "touched").read_text())
moments = range(1, total) if kills == 0 else np.random.default_rng(seed).choice(np.arange(1, total), kills, False)
killed = committed_before = 0
for moment in map(int, moments):
    cohort = folder / f"killed at {moment}"
    killed += run(cohort, moment) == signal.SIGKILL
    cases = [path.parent for path in cohort.glob("cases/*/MANIFEST.json")]
    committed_before += len(cases)
    before = {case: files(case) for case in cases}
    assert all(not integrity.verify(case) for case in cases), f"{moment}: a torn case was committed"
    status = run(cohort, 0)
    assert status == 0, f"{moment}: the second run failed"
    assert json.loads((cohort / "CATALOG.json").read_text()) == roots, f"{moment}: other digests"
    assert all(files(case) == before[case] for case in cases), f"{moment}: a committed case was touched"
    assert verify(cohort) == {}, moment
    left = {p.name for p in cohort.iterdir()} - {"zarr.json", "cases", "CATALOG.json", ".lock"}
    assert not left, f"{moment}: {left} left over"
    assert not list(cohort.rglob("*.partial")), moment
print(json.dumps([total, killed, committed_before]))
"""
)


def test_killed_at_random_moments_an_ingest_ends_as_if_it_never_was(tmp_path: Path) -> None:
    kills = int(os.environ.get("PETSCALE_KILLS", "6"))
    done = subprocess.run(
        [sys.executable, "-c", KILLS, tmp_path, str(kills), "24"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    total, killed, committed_before = json.loads(done.stdout)
    assert killed == (kills or total - 1)
    assert committed_before > 0, "some kills came after a commit"


FILE_LIMITS = (
    COMMON
    + """
import resource
cohort = Path(sys.argv[1])
ingest(cohort, plans("a"), strict=True)
for limit in (0, 1, 300, 800, 2000, 5000, 9000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        ingest(cohort, plans("b"))
        sys.exit(f"{limit}: no error")
    except InputError as error:
        assert error.code == "DISK_FULL", error
    assert verify(cohort) == {}
    assert sorted(p.name for p in cohort.iterdir()) == [".lock", "CATALOG.json", "cases", "zarr.json"]
    assert [p.name for p in cohort.glob("cases/*/")] == ["a"] or os.listdir(cohort / "cases") == ["a", "zarr.json"]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
ingest(cohort, plans("b"), strict=True)
assert verify(cohort) == {}
"""
)


def test_a_file_that_may_not_grow_is_a_full_disk(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FILE_LIMITS, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


TMPFS = (
    COMMON
    + """
import subprocess
disk = Path(sys.argv[1])
def resize(kib):
    subprocess.run(["mount", "-o", f"remount,size={kib}k", disk], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4096k", "none", disk], check=True)
integrity.require_space = lambda folder, needed: None  # so that the disk fills in the middle of the work
cohort = disk / "cohort"
ingest(cohort, plans("a"), strict=True)
used = int(subprocess.run(["du", "-sk", disk], capture_output=True, text=True, check=True).stdout.split()[0])
full = 0
for free in range(0, 1200, 100):
    resize(used + free + 8)
    try:
        ingest(cohort, plans("b", (60, 40, 40)), workers=2)
        break
    except InputError as error:
        assert error.code == "DISK_FULL", error
        full += 1
    assert verify(cohort) == {}
    assert not list(cohort.glob(".staging*")) and not list(cohort.rglob("*.partial"))
    assert [p.parent.name for p in cohort.glob("cases/*/MANIFEST.json")] == ["a"]
resize(8192)
ingest(cohort, plans("ab", (20, 12, 12)) | plans("b", (60, 40, 40)), strict=True)
assert verify(cohort) == {}
print(full)
"""
)


def may_mount() -> bool:
    unshare = shutil.which("unshare")
    command: list[Any] = [unshare, "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return bool(unshare) and subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not may_mount(), reason="a private tmpfs needs user namespaces (unshare -Urm)")
def test_a_disk_that_fills_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["unshare", "-Urm", sys.executable, "-c", TMPFS, str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 5, "sizes at which the disk was full"


def test_space_is_asked_for_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(folder: Path, needed: int) -> None:
        asked.append(needed)
        raise InputError("DISK_FULL", where="cohort", found="1 MiB free", remedy="free space")

    monkeypatch.setattr(integrity, "require_space", refuse)
    with pytest.raises(InputError, match="DISK_FULL"):
        ingest(tmp_path, {"a": plan(full=noise()), "b": plan(full=noise())})
    assert len(asked) == 1
    assert asked[0] >= noise().voxels.nbytes
    assert leftovers(tmp_path) == []


# --- what is doubtful is said, or refused ---


def body_of(median: float = 1.0, seed: int = 0, shape: tuple[int, int, int] = (20, 24, 24)) -> ArraySource:
    """A cylinder of uptake with noise, air around it."""
    _, y, x = np.indices(shape)
    inside = (y - 11.5) ** 2 + (x - 11.5) ** 2 < 64
    values = np.where(inside, median * (1 + 0.1 * np.random.default_rng(seed).standard_normal(shape)), 0)
    return ArraySource(values.astype(np.float32), grid_of(shape), SUV)


@pytest.mark.parametrize(
    ("factor", "note"),
    [(1e-3, "suv_median_unusual"), (1.0, ""), (8.0, "suv_median_unusual"), (40.0, "no_suv"), (4e3, "no_suv")],
)
def test_a_median_inside_the_body_that_is_no_suv(tmp_path: Path, factor: float, note: str) -> None:
    ingest(tmp_path, {"c": plan(full=body_of(factor))}, strict=True)
    image = open_cohort(tmp_path).case("c").image("full")
    assert image.provenance.get("notes", []) == ([note] if note else [])
    if factor >= 1:  # below it nothing is seen as body
        assert image.statistics["body_median"] == pytest.approx(factor, rel=0.1)
    outcome = ingest(tmp_path / "asked", {"c": plan(full=body_of(factor))}, doubts="refuse impossible")
    assert [error.code for error in outcome.refused.values()] == ["PET_SUV_IMPLAUSIBLE"] * (note == "no_suv")


def test_a_ct_and_a_value_beyond_all_uptake_are_no_suv(tmp_path: Path) -> None:
    hot, ct = body_of(), body_of()
    hot.voxels[3, 12, 12] = 1e30
    ct.voxels[ct.voxels == 0] = -1000
    outcome = ingest(tmp_path, {"hot": plan(full=hot), "ct": plan(full=ct)}, doubts="refuse impossible")
    assert {name: error.code for name, error in outcome.refused.items()} == {
        "hot": "PET_SUV_IMPLAUSIBLE",
        "ct": "PET_SUV_IMPLAUSIBLE",
    }
    assert "like HU" in str(outcome.refused["ct"])


def test_a_case_with_a_note_of_weight_is_refused_where_that_is_asked(tmp_path: Path) -> None:
    plans = {"odd": plan(full=body_of(8.0)), "good": plan(full=body_of(1.0))}
    outcome = ingest(tmp_path, plans, doubts="refuse")
    assert outcome.committed == ["good"]
    assert outcome.refused["odd"].code == "SET_DOUBT"
    assert "suv_median_unusual" in str(outcome.refused["odd"])
    assert ingest(tmp_path, plans).committed == ["odd"]


@pytest.mark.parametrize("kind", [ValueError, ZeroDivisionError, RuntimeError, MemoryError])
def test_an_unexpected_error_costs_its_case_only(tmp_path: Path, kind: type[Exception]) -> None:
    def fails(_: Path) -> CasePlan:
        raise kind("SECRET NAME")

    outcome = ingest(tmp_path, {"bad": fails, "good": plan(full=body_of())})
    assert outcome.committed == ["good"]
    error = outcome.refused["bad"]
    assert error.code == ("IMG_TOO_LARGE" if kind is MemoryError else "SET_CASE_FAILED")
    assert "SECRET" not in str(error)
    assert leftovers(tmp_path) == []


def test_the_outline_goes_on_where_the_ct_ends(tmp_path: Path) -> None:
    shape = (40, 24, 24)
    pet = body_of(shape=shape)
    hu = np.where(pet.voxels > 0.2, 40.0, -1000.0).astype(np.float32)
    hu[:, 11, 11] = -100.0
    half = ArraySource(hu[:20], grid_of((20, 24, 24)), HU)
    whole = ArraySource(hu, pet.grid, HU)
    plans = {
        "half": plan(full=pet, ct=geometry.Resampled(half, pet.grid)),
        "whole": plan(full=pet, ct=geometry.Resampled(whole, pet.grid)),
        "pet": plan(full=pet),
    }
    ingest(tmp_path, plans, strict=True)
    cohort = open_cohort(tmp_path)
    bodies = {name: cohort.case(name).image("body").read(0, 40) for name in plans}
    assert np.array_equal(bodies["half"][:18], bodies["whole"][:18])
    assert np.array_equal(bodies["half"][22:], bodies["pet"][22:])
    assert cohort.case("half").image("ct").provenance["notes"] == ["does_not_cover_body"]
    assert "notes" not in cohort.case("whole").image("ct").provenance


def test_equal_voxels_have_one_digest_whatever_the_case(tmp_path: Path) -> None:
    ingest(
        tmp_path, {"a": plan(full=body_of()), "b": plan(full=body_of()), "c": plan(full=body_of(seed=1))}, strict=True
    )
    digests = [open_cohort(tmp_path).case(name).voxels for name in ("a", "b", "c")]
    assert digests[0] == digests[1] != digests[2]


def test_names_that_differ_in_capitals_only(tmp_path: Path) -> None:
    ingest(tmp_path, {"Patient01": plan(full=body_of())}, strict=True)
    outcome = ingest(tmp_path, {"patient01": plan(full=body_of(seed=1)), "Patient02": plan(full=body_of(seed=2))})
    assert outcome.refused["patient01"].code == "SET_CASE_COLLISION"
    assert open_cohort(tmp_path).cases == ("Patient01", "Patient02")


@pytest.mark.parametrize("mm", [0.15, 0.05])
def test_a_small_file_takes_little_memory_whatever_the_size_of_its_voxels(tmp_path: Path, mm: float) -> None:
    """1 MB of voxels of 0.15 mm took 5 GB for their outline, of 0.05 mm more than there was."""
    z, y, x = np.ogrid[:64, :64, :64]
    values = np.where((y - 30) ** 2 + (x - 34) ** 2 < 24**2 + 0 * z, 1.0, 0.0).astype(np.float32)
    values += np.random.default_rng(1).random(values.shape, dtype=np.float32) * 0.05
    nibabel.save(nibabel.Nifti1Image(values.T, np.diag([mm, mm, mm, 1.0])), tmp_path / "pet.nii.gz")
    code = """
import re, sys
from pathlib import Path
from storage.ingest import CasePlan, ingest
from storage.nifti import open_nifti
from storage.reader import open_cohort
folder = Path(sys.argv[1])
pet = open_nifti(folder / "pet.nii.gz", units="SUVbw", workdir=folder / "work")
ingest(folder / "cohort", {"one": lambda scratch: CasePlan({"full": pet}, "s" * 16, "print")}, strict=True)
inside = open_cohort(folder / "cohort").case("one").image("body").read(0, 64).mean()
assert 0.35 < inside < 0.55, inside  # a cylinder of 0.44 of the volume
peak_kb = int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
assert peak_kb < 1e6, peak_kb
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, timeout=120)


def test_a_case_of_other_inputs_takes_the_place_of_one_where_that_is_asked_for(tmp_path: Path) -> None:
    def plan(level: float, fingerprint: str) -> Callable[[Path], CasePlan]:
        values = np.random.default_rng(1).uniform(0.5, 1.5, (8, 9, 10)).astype(np.float32) * np.float32(level)
        image = ArraySource(values, Grid(values.shape, np.diag([4.0, 4.0, 4.0, 1.0])), SUV)
        return lambda _: CasePlan({"full": image}, "patient", fingerprint)

    def mean() -> float:
        return float(open_cohort(tmp_path / "c").case("a").image("full").read(0, 8).mean())

    ingest(tmp_path / "c", {"a": plan(1.0, "one")}, strict=True, workers=1)
    before = mean()
    with pytest.raises(InputError, match="SET_CASE_EXISTS"):
        ingest(tmp_path / "c", {"a": plan(2.0, "two")}, strict=True, workers=1)
    assert mean() == before
    outcome = ingest(tmp_path / "c", {"a": plan(2.0, "two")}, strict=True, changed="replace", workers=1)
    assert (outcome.committed, mean()) == (["a"], pytest.approx(2 * before))  # though this process has read the first
    outcome = ingest(tmp_path / "c", {"a": plan(2.0, "two")}, strict=True, changed="replace", workers=1)
    assert outcome.kept == ["a"]
    assert verify(tmp_path / "c") == {}


@pytest.mark.parametrize("told", ["", "."])
def test_a_site_key_that_names_no_file_is_told(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETSCALE_SITE_KEY", told)
    with pytest.raises(InputError, match="CFG_SITE_KEY PETSCALE_SITE_KEY"):
        site_key()
