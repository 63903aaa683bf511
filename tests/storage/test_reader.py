"""Reading: a patch is a numpy slice, and what is not whole is never a value."""

import json
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage import layout
from storage.errors import InputError
from storage.ingest import CasePlan, create_cohort, ingest
from storage.patches import PatchLocation
from storage.reader import open_cohort
from storage.source import AIR_HU, HU, LABEL, SUV, ArraySource, Grid

SHAPE = (70, 40, 37)
FULL = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
LABELS = (FULL > 1.5).astype(np.float32)
CT = 1000 * FULL
AFFINE = np.array([[-1.5, 0.1, 0, 30], [0.1, -1.5, 0, -7], [0, 0, 2.0, 90], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One case in three shards per image."""
    folder = tmp_path_factory.mktemp("reader")
    grid = Grid(SHAPE, AFFINE)
    images = {
        "full": ArraySource(FULL, grid, SUV, {"kind": "test"}),
        "low_drf4": ArraySource(FULL[::-1].copy(), grid, SUV),
        "labels": ArraySource(LABELS, grid, LABEL),
        "ct": ArraySource(CT, grid, HU),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "SHARD_BYTES", 2**14)
        ingest(folder, {"c": lambda _: CasePlan(images, "s", "f", {1: "lesion_1"})}, strict=True)
    return folder


@pytest.fixture
def cohort(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "cohort")


def expected(location: PatchLocation) -> NDArray[Any]:
    """The box cut out of the volume in numpy, zeros where it passes."""
    result = np.zeros(location.shape, np.float32)
    for i, z in enumerate(range(location.start[0], location.stop[0])):
        if not 0 <= z < SHAPE[0]:
            continue
        rows, columns = (np.arange(a, b) for a, b in zip(location.start[1:], location.stop[1:], strict=True))
        good_rows, good_columns = (rows >= 0) & (rows < SHAPE[1]), (columns >= 0) & (columns < SHAPE[2])
        result[i][np.ix_(good_rows, good_columns)] = FULL[z][np.ix_(rows[good_rows], columns[good_columns])]
    return result


boxes = st.builds(
    PatchLocation, st.tuples(*[st.integers(-50, 80)] * 3), st.tuples(*[st.integers(1, 50)] * 3)
)  # inside, across a border, around the whole volume, and beside it


@settings(max_examples=60, deadline=None)
@given(boxes)
def test_a_patch_is_a_slice_with_zeros_beyond(pristine: Path, location: PatchLocation) -> None:
    found = open_cohort(pristine).case("c").image("full").patch(location)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert found.flags.writeable
    assert found.tobytes() == expected(location).tobytes()


@settings(max_examples=60, deadline=None)
@given(boxes)
def test_a_ct_patch_goes_on_along_z_and_is_air_beside(pristine: Path, location: PatchLocation) -> None:
    found = open_cohort(pristine).case("c").image("ct").patch(location)
    z, y, x = (np.arange(a, b) for a, b in zip(location.start, location.stop, strict=True))
    within = ((y >= 0) & (y < SHAPE[1]))[:, None] & ((x >= 0) & (x < SHAPE[2]))
    nearest = CT[np.ix_(*(np.clip(axis, 0, n - 1) for axis, n in zip((z, y, x), SHAPE, strict=True)))]
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert found.flags.writeable
    assert found.tobytes() == np.where(within, nearest, np.float32(AIR_HU)).tobytes()


def test_labels_beyond_the_volume_are_none(pristine: Path) -> None:
    found = open_cohort(pristine).case("c").image("labels").patch(PatchLocation((-3, -4, -5), (80, 50, 50)))
    assert (found[3:73, 4:44, 5:42] == LABELS).all()
    assert found.sum() == LABELS.sum()


def test_a_patch_is_the_callers_own(pristine: Path) -> None:
    image = open_cohort(pristine).case("c").image("full")
    location = PatchLocation((0, 0, 0), (8, 8, 8))
    image.patch(location)[...] = 99.0
    assert (image.patch(location) == FULL[:8, :8, :8]).all()
    image.read(0, 4)[...] = 99.0
    assert (image.read(0, 4) == FULL[:4]).all()


def test_a_stored_image_is_a_source(pristine: Path) -> None:
    image = open_cohort(pristine).case("c").image("full")
    np.testing.assert_array_equal(image.grid.affine, AFFINE)
    assert image.grid.shape == SHAPE
    assert image.units == SUV
    assert dict(image.provenance) == {"kind": "test"}
    for a, b in ((0, 70), (31, 33), (69, 70)):
        assert image.read(a, b).tobytes() == FULL[a:b].tobytes()
    labels = open_cohort(pristine).case("c").image("labels")
    assert labels.units == LABEL
    assert (labels.read(0, 70) == LABELS).all()


def test_readers_travel_and_share(pristine: Path) -> None:
    case = open_cohort(pristine).case("c")
    image = case.image("full")
    image.read(0, 1)
    for twin in (pickle.loads(pickle.dumps(image)), pickle.loads(pickle.dumps(case)).image("full")):
        assert (twin.read(3, 9) == FULL[3:9]).all()
    locations = [PatchLocation((z, 3, 5), (9, 20, 20)) for z in range(0, 60, 2)]
    with ThreadPoolExecutor(4) as pool:
        for location, patch in zip(locations, pool.map(image.patch, locations), strict=True):
            assert (patch == expected(location)).all()


def test_what_is_not_there_is_told(pristine: Path, tmp_path: Path) -> None:
    cohort = open_cohort(pristine)
    assert cohort.cases == ("c",)
    calls: dict[str, Callable[[], object]] = {
        "SET_NO_CASE": lambda: cohort.case("d"),
        "SET_NO_IMAGE": lambda: cohort.case("c").image("low_drf20"),
        "STORE_NONE": lambda: open_cohort(tmp_path / "nowhere"),
    }
    for code, call in calls.items():
        with pytest.raises(InputError) as error:
            call()
        assert error.value.code == code
    with pytest.raises(InputError, match="low_drf4"):
        cohort.case("c").image("nothing")
    create_cohort(tmp_path / "empty")
    assert open_cohort(tmp_path / "empty").cases == ()


@pytest.mark.parametrize(
    ("schema", "code"), [(layout.SCHEMA + 1, "STORE_SCHEMA"), ("x", "STORE_DAMAGED"), (None, "STORE_DAMAGED")]
)
def test_a_cohort_of_the_future_is_refused(tmp_path: Path, schema: int | str | None, code: str) -> None:
    create_cohort(tmp_path)
    layout.create_group(tmp_path, {"petscale": {"schema": schema}})
    with pytest.raises(InputError) as error:
        open_cohort(tmp_path)
    assert error.value.code == code


def test_an_uncommitted_case_is_invisible(cohort: Path) -> None:
    shutil.copytree(cohort / "cases" / "c", cohort / "cases" / "d")
    (cohort / "cases" / "d" / "MANIFEST.json").unlink()
    assert open_cohort(cohort).cases == ("c",)
    with pytest.raises(InputError) as error:
        open_cohort(cohort).case("d")
    assert error.value.code == "STORE_UNCOMMITTED"


def shard(cohort: Path, image: str = "full", number: int = 1) -> Path:
    return cohort / "cases" / "c" / image / "0" / "c" / str(number) / "0" / "0"


def test_a_flipped_chunk_is_an_error_that_names_it(cohort: Path) -> None:
    path = shard(cohort)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 4
    path.write_bytes(raw)
    image = open_cohort(cohort).case("c").image("full")
    with pytest.raises(InputError) as error:
        image.read(32, 64)
    assert error.value.code == "STORE_DAMAGED"
    assert error.value.where.startswith("case c, image full, shard 1/0/0, chunk 0, ")
    assert (image.read(0, 32) == FULL[:32]).all(), "the others are good"
    assert (open_cohort(cohort).case("c").image("low_drf4").read(32, 64) == FULL[::-1][32:64]).all()


def test_a_flipped_shard_index_is_an_error(cohort: Path) -> None:
    path = shard(cohort)
    raw = bytearray(path.read_bytes())
    raw[-20] ^= 1
    path.write_bytes(raw)
    with pytest.raises(InputError, match="case c, image full, shard 1/0/0"):
        open_cohort(cohort).case("c").image("full").patch(PatchLocation((40, 0, 0), (4, 4, 4)))


def test_a_flipped_aid_is_an_error(cohort: Path) -> None:
    for name in ("body", "uptake", "rois", "overview_full"):
        path = next(p for p in (cohort / "cases" / "c" / "aids" / name / "c").rglob("*") if p.is_file())
        whole = path.read_bytes()
        path.write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
        case = open_cohort(cohort).case("c")
        with pytest.raises(InputError, match=f"STORE_DAMAGED case c, sampling map {name}"):
            case.overview("full") if name == "overview_full" else case.sampling_maps
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "spoil", [lambda p: p.unlink(), lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"x" * 99)]
)
def test_a_missing_shard_is_an_error_at_opening(cohort: Path, spoil: Callable[[Path], Any]) -> None:
    spoil(shard(cohort))
    with pytest.raises(InputError) as error:
        open_cohort(cohort).case("c")
    assert error.value.code == "STORE_DAMAGED"
    assert error.value.where == "c/full/0/c/1/0/0"


@pytest.mark.parametrize("spoil", [lambda p: p.unlink(), lambda p: p.write_bytes(b"")])
def test_a_shard_that_vanishes_while_we_read_is_an_error_and_never_zeros(
    cohort: Path, spoil: Callable[[Path], Any]
) -> None:
    image = open_cohort(cohort).case("c").image("full")
    assert (image.read(0, 4) == FULL[:4]).all()
    spoil(shard(cohort))
    with pytest.raises(InputError) as error:
        image.read(32, 36)
    assert error.value.code == "STORE_DAMAGED"
    assert "image full, shard 1/0/0" in error.value.where


def test_changed_metadata_is_an_error_at_opening(cohort: Path) -> None:
    """An affine that lies would put every lesion elsewhere; no chunk checksum sees it."""
    path = cohort / "cases" / "c" / "full" / "zarr.json"
    content = json.loads(path.read_text())
    content["attributes"]["petscale"]["affine_ras_mm"][0][3] = 31.0
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    assert len(text) == path.stat().st_size, "so that the size does not tell"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        open_cohort(cohort).case("c")
    assert error.value.code == "STORE_DAMAGED"
    assert error.value.where == "c/full/zarr.json"


def test_a_case_is_opened_once_per_process(pristine: Path) -> None:
    case = open_cohort(pristine).case("c")
    again = open_cohort(pristine).case("c")
    assert again.sampling_maps is case.sampling_maps
    assert again.image("full")._array is case.image("full")._array
    assert pickle.loads(pickle.dumps(case)).image("full").statistics == case.image("full").statistics  # for other nodes


@settings(max_examples=60, deadline=None)
@given(boxes)
def test_a_mirrored_patch_is_numpys_symmetric_padding(pristine: Path, location: PatchLocation) -> None:
    found = open_cohort(pristine).case("c").image("full").patch(location, "mirror")
    z, y, x = (
        np.pad(np.arange(n), 150, mode="symmetric")[a + 150 : b + 150]
        for a, b, n in zip(location.start, location.stop, SHAPE, strict=True)
    )
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert found.tobytes() == FULL[np.ix_(z, y, x)].tobytes()


@settings(max_examples=30, deadline=None)
@given(boxes)
def test_a_ct_is_mirrored_where_that_is_asked_for(pristine: Path, location: PatchLocation) -> None:
    """As a PET is, and labels never."""
    case = open_cohort(pristine).case("c")
    z, y, x = (
        np.pad(np.arange(n), 150, mode="symmetric")[a + 150 : b + 150]
        for a, b, n in zip(location.start, location.stop, SHAPE, strict=True)
    )
    assert case.image("ct").patch(location, "mirror_any").tobytes() == CT[np.ix_(z, y, x)].astype(np.float32).tobytes()
    for name, like in (("full", "mirror"), ("labels", "air")):
        found = case.image(name).patch(location, "mirror_any")
        assert found.tobytes() == case.image(name).patch(location, like).tobytes()  # type: ignore[arg-type]


@settings(max_examples=20, deadline=None)
@given(boxes)
def test_only_a_pet_is_mirrored(pristine: Path, location: PatchLocation) -> None:
    case = open_cohort(pristine).case("c")
    for name in ("ct", "labels"):
        assert case.image(name).patch(location, "mirror").tobytes() == case.image(name).patch(location).tobytes()
