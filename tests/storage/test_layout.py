"""The contract on disk: shards one task can own, names that hurt nobody, metadata other tools read."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec

from storage import layout
from storage.errors import InputError
from storage.source import LABEL, SUV, Grid

sides = st.integers(1, 700)
shapes = st.tuples(sides, sides, sides)


@given(shapes, st.sampled_from([2, 4]))
def test_a_shard_is_whole_slabs_of_64_mib_or_the_volume(shape: tuple[int, int, int], itemsize: int) -> None:
    depth = layout.shard_depth(shape, itemsize)
    padded = [-(-n // 32) * 32 for n in shape]
    assert depth % 32 == 0
    assert depth == padded[0] or depth * padded[1] * padded[2] * itemsize >= 64 * 2**20
    smaller = (depth - 32) * padded[1] * padded[2] * itemsize
    assert smaller < 64 * 2**20, "the fewest chunks that do"
    spans = layout.slabs(shape, itemsize)
    assert [z for a, b in spans for z in range(a, b)] == list(range(shape[0]))
    assert all(a % depth == 0 for a, _ in spans)


def test_a_total_body_scan_has_several_shards_and_a_brain_one() -> None:
    assert len(layout.slabs((644, 440, 440), 4)) > 4
    assert len(layout.slabs((90, 128, 128), 4)) == 1


@pytest.mark.parametrize("name", ["a", "low_drf20", "case-0.1", "9" * 64])
def test_good_names_stand(name: str) -> None:
    assert layout.check_name(name, "case name") == name


@pytest.mark.parametrize(
    "name", ["", ".lock", "A", "a b", "a/b", "../a", "ä", "a\n", "x" * 65, "aids", "body", "zarr.json"]
)
def test_bad_names_are_refused_without_being_repeated(name: str) -> None:
    with pytest.raises(InputError) as error:
        layout.check_name(name, "case name")
    assert error.value.code == "CFG_NAME"


@given(st.sampled_from([1, 2, 2.5, 4, 10, 20, 50, 100, 1000]), st.integers(0, 3))
def test_a_low_dose_name_tells_its_factor(drf: float, realisation: int) -> None:
    name = layout.low_name(drf, realisation)
    assert layout.check_name(name, "image") == name
    assert name.startswith(f"low_drf{drf:g}")


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize("shape", [(70, 33, 40), (5, 7, 9), (32, 32, 32)])
def test_shards_come_back_bitwise_and_their_count_is_the_slabs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], dtype: Any
) -> None:
    monkeypatch.setattr(layout, "SHARD_BYTES", 2**16)
    voxels = np.random.default_rng(1).integers(0, 1000, shape).astype(dtype)
    depth = layout.shard_depth(shape, voxels.itemsize)
    layout.create_array(tmp_path / "0", shape, voxels.dtype, depth=depth)
    spans = layout.slabs(shape, voxels.itemsize)
    for z0, z1 in reversed(spans):
        layout.write_shard(tmp_path / "0", z0, voxels[z0:z1])
    assert (zarr.open_array(tmp_path / "0", mode="r")[...] == voxels).all()
    assert sum(p.is_file() for p in (tmp_path / "0" / "c").rglob("*")) == len(spans)


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.uint8])
@pytest.mark.parametrize(("shape", "depth"), [((70, 33, 40), 64), ((3, 5, 40, 33), None)])
def test_files_are_byte_for_byte_those_of_zarr(
    tmp_path: Path, shape: tuple[int, ...], depth: int | None, dtype: Any
) -> None:
    voxels = np.random.default_rng(2).integers(0, 200, shape).astype(dtype)
    voxels[:2] = 0
    layout.create_array(tmp_path / "ours", shape, voxels.dtype, depth=depth)
    edge = depth or 32
    for z0 in range(0, shape[0], edge):
        layout.write_shard(tmp_path / "ours", z0, voxels[z0 : z0 + edge])
    array = zarr.create_array(
        tmp_path / "theirs",
        shape=shape,
        dtype=dtype,
        chunks=(32,) * len(shape),
        shards=(edge, *(-(-n // 32) * 32 for n in shape[1:])),
        compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"), Crc32cCodec()],
        fill_value=0,
        dimension_names=("roi", "z", "y", "x")[-len(shape) :],
        config={"write_empty_chunks": True},
    )
    array[...] = voxels
    ours, theirs = (
        {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (tmp_path / "ours", tmp_path / "theirs")
    )
    assert ours == theirs


def test_a_write_that_is_not_one_shard_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SHARD_BYTES", 2**16)
    layout.create_array(tmp_path / "0", (70, 33, 40), np.dtype(np.float32), depth=32)
    for z0, length in ((0, 31), (1, 32), (32, 38), (64, 5)):
        with pytest.raises(AssertionError):
            layout.write_shard(tmp_path / "0", z0, np.zeros((length, 33, 40), np.float32))


def test_an_all_background_shard_is_still_a_file(tmp_path: Path) -> None:
    layout.write_array(tmp_path / "0", np.zeros((40, 33, 5), np.float32))
    assert any(p.is_file() for p in (tmp_path / "0" / "c").rglob("*"))


def test_a_group_gains_attributes_and_keeps_the_old(tmp_path: Path) -> None:
    layout.create_group(tmp_path / "g", {"a": 1})
    layout.create_group(tmp_path / "g", {"b": 2})
    assert dict(zarr.open_group(tmp_path / "g", mode="r", zarr_format=3).attrs) == {"a": 1, "b": 2}


def test_units_choose_the_type() -> None:
    assert layout.storage_dtype(LABEL) == np.uint16
    assert layout.storage_dtype(SUV) == np.float32


@settings(max_examples=50)
@given(shapes, st.tuples(*[st.floats(0.3, 6.0)] * 3))
def test_levels_keep_the_volume_in_place(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> None:
    dz, dy, dx = spacing
    ome = layout.ome_attributes("full", Grid(shape, np.diag([dx, dy, dz, 1.0])))["ome"]
    assert ome["version"] == "0.5"
    datasets = ome["multiscales"][0]["datasets"]
    assert [d["path"] for d in datasets] == [str(n) for n in range(layout.num_levels(shape))]
    assert max(layout.level_shape(shape, len(datasets) - 1)) <= 128
    for level, dataset in enumerate(datasets):
        scale, translation = dataset["coordinateTransformations"]
        step, shift = np.array(scale["scale"]), np.array(translation["translation"])
        np.testing.assert_allclose(step, np.array(spacing) * 2**level)
        # The outer face of the first voxel is where it was: half a fine voxel before the first fine centre.
        np.testing.assert_allclose(shift - step / 2, -np.array(spacing) / 2, atol=1e-9)


@pytest.mark.parametrize("module", ["ome_zarr_models", "ngff_zarr"])
def test_other_tools_accept_an_image(tmp_path: Path, module: str) -> None:
    tool = pytest.importorskip(module, reason=f"{module} is not installed")
    grid = Grid((140, 20, 24), np.diag([-2.0, -2.0, 3.0, 1.0]))
    layout.create_group(tmp_path / "image", layout.ome_attributes("full", grid))
    for level in range(layout.num_levels(grid.shape)):
        layout.write_array(tmp_path / "image" / str(level), np.ones(layout.level_shape(grid.shape, level), np.float32))
    if module == "ngff_zarr":
        image = tool.from_ngff_zarr(tmp_path / "image", validate=True).images[0]
        assert image.scale == {"z": 3.0, "y": 2.0, "x": 2.0}
    else:
        models = importlib.import_module("ome_zarr_models.v05")
        image = models.Image.from_zarr(zarr.open_group(tmp_path / "image", mode="r"))
        assert len(image.ome_attributes.multiscales[0].datasets) == 2
    assert json.loads((tmp_path / "image" / "zarr.json").read_text())["zarr_format"] == 3
