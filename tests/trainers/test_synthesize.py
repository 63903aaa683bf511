"""Whole volumes: an identity returns its input, tiles of SGSGAN equal the whole volume, memory stays within a slab."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from storage.ingest import CasePlan, ingest
from storage.patches import PatchLocation, grid
from storage.reader import Case, open_cohort
from storage.source import HU, SUV, ArraySource
from trainers.engine import plain_engine
from trainers.recipe import BatchSpec, Tiling
from trainers.synthesize import InSuv, Mirrored, Rows, case_context, fitted, mirrors, synthesize
from trainers.systems import sgsgan

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Identity:
    """A network that returns its input."""

    tiling: Tiling
    context_batch: BatchSpec | None = None

    def context(self, overview: Tensor, low: Tensor) -> Mapping[str, Tensor]:
        raise AssertionError("asks for no context")

    def __call__(self, low: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        z, y, x = self.tiling.halo
        return low[:, :, z : low.shape[2] - z, y : low.shape[3] - y, x : low.shape[4] - x]


def volume(synthesizer: object, case: Case, **options: object) -> NDArray[Any]:
    grid = case.image("low_drf4").grid
    result = np.full(grid.shape, np.nan, dtype=np.float32)

    def write(z0: int, slab: NDArray[Any]) -> None:
        assert np.isnan(result[z0 : z0 + len(slab)]).all(), "a voxel was written twice"
        result[z0 : z0 + len(slab)] = slab

    in_suv = InSuv(synthesizer, 7.0)  # type: ignore[arg-type]
    synthesize(in_suv, case, "low_drf4", write, device=CPU, **options)  # type: ignore[arg-type]
    assert not np.isnan(result).any(), "a voxel was not written"
    return result


@pytest.fixture(scope="module")
def case(cohort: Path) -> Case:
    return open_cohort(cohort).case("phantom-001")


@pytest.mark.parametrize(
    "tiling",
    [
        Tiling((24, 24, 24), halo=(3, 3, 3)),
        Tiling((16, 24, 32), halo=(0, 0, 0), overlap=(8, 8, 8)),
        Tiling((64, 64, 64), halo=(1, 0, 2)),  # larger than the volume
        Tiling((17, 13, 11), halo=(2, 2, 2), overlap=(0, 5, 3)),
        Tiling((32, 32, 16), halo=(5, 5, 5), multiple=(16, 16, 16)),  # tiles pass the volume
        Tiling((5, 1024, 1024), halo=(1, 0, 0), multiple=(1, 32, 32)),  # whole slices
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_an_identity_network_returns_the_input(case: Case, tiling: Tiling, batch: int) -> None:
    low = case.image("low_drf4").read(0, case.image("low_drf4").grid.shape[0])
    np.testing.assert_allclose(volume(Identity(tiling), case, batch=batch), low, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("beyond", ["air", "mirror", "mirror_any"])
@pytest.mark.parametrize("image", ["low_drf4", "ct"])
@pytest.mark.parametrize(
    ("tile", "halo", "overlap"),
    [
        ((16, 24, 32), (0, 0, 0), (8, 12, 16)),
        ((10, 16, 16), (4, 3, 2), (0, 0, 0)),
        ((9, 16, 16), (0, 0, 0), (7, 0, 5)),  # most of a slab is kept
        ((96, 96, 96), (70, 60, 80), (0, 0, 0)),  # one window passes the volume on every side, by more than it is long
    ],
)
def test_windows_cut_from_rows_are_those_read_one_by_one(
    case: Case, image: str, beyond: Any, tile: Any, halo: Any, overlap: Any
) -> None:
    stored, decoded = case.image(image), 0

    def read(box: PatchLocation) -> NDArray[np.float32]:
        nonlocal decoded
        decoded += box.shape[0]
        return stored.patch(box, beyond)[None]

    rows = Rows(read, stored.grid.shape, tile, halo)
    boxes = list(grid(stored.grid.shape, tile, overlap))
    for box in boxes:
        np.testing.assert_array_equal(rows.window(box)[0], stored.patch(box.grown(halo), beyond))
    # No plane of voxels is read twice.
    assert decoded == max(stored.grid.shape[0], tile[0]) + 2 * halo[0]


@given(st.tuples(*[st.integers(1, 90)] * 3), st.sampled_from([1, 8, 32]), st.integers(1, 3))
def test_tiles_tied_to_multiples_start_and_end_on_them(shape: tuple[int, int, int], multiple: int, count: int) -> None:
    tiling = Tiling((count * multiple, 2 * multiple, multiple), halo=(3, 3, 3), multiple=(multiple,) * 3)
    covered, tile = fitted(tiling, shape)
    for length, end, edge, largest in zip(shape, covered, tile, tiling.tile, strict=True):
        assert edge <= largest
        assert length <= end
        if multiple > 1:
            assert edge % multiple == 0
            assert end % edge == 0
            assert end - length < edge
        else:
            assert end == length


def small(**settings: object) -> sgsgan.Config:
    return sgsgan.Config(rois=(), critic_channels=2, context_patches=4, **settings)  # type: ignore[arg-type]


def test_sgsgan_tiles_equal_the_whole_volume_without_seams(case: Case) -> None:
    torch.manual_seed(0)
    results: list[NDArray[Any]] = []
    for patch in ((24, 24, 24), (32, 40, 24), (48, 40, 40)):
        config = small(patch=patch)
        if not results:
            weights = sgsgan.build(config, make_engine=plain_engine, patches_per_step=1).weights()
            in_suv = InSuv(sgsgan.weights_to_synthesizer(config, weights), 7.0)
            context = case_context(in_suv, case, "low_drf4", device=CPU)
        synthesizer = sgsgan.weights_to_synthesizer(config, weights)

        @dataclass(frozen=True)
        class Shared:
            """The same context whatever the tile."""

            tiling = synthesizer.tiling
            context_batch = None

            def __call__(self, low: Tensor, _: Mapping[str, Tensor]) -> Tensor:
                return synthesizer(low, context)  # noqa: B023

        results.append(volume(Shared(), case))
    scale = np.abs(results[-1]).max()
    for tiled in results[:-1]:
        assert np.abs(tiled - results[-1]).max() / scale < 1e-5


def test_context_depends_on_the_low_dose_image_alone_and_on_its_seed(case: Case) -> None:
    torch.manual_seed(0)
    config = small(patch=(24, 24, 24))
    weights = sgsgan.build(config, make_engine=plain_engine, patches_per_step=1).weights()
    synthesizer = sgsgan.weights_to_synthesizer(config, weights)
    one, same, other = (case_context(synthesizer, case, "low_drf4", device=CPU, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


@dataclass(frozen=True)
class Recorder:
    """Doubles what it is given, and remembers it."""

    seen: list[Tensor]
    tiling: Tiling = Tiling(tile=(8, 8, 8), halo=(0, 0, 0))  # noqa: RUF009  (frozen)
    context_batch: None = None

    def context(self, overview: Tensor, source: Tensor) -> Mapping[str, Tensor]:
        self.seen.extend((overview, source))
        return {}

    def __call__(self, source: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        self.seen.append(source)
        return 2 * source


def test_a_synthesizer_in_suv_owns_the_scale_and_leaves_hu_alone() -> None:
    x = torch.full((1, 1, 2, 2, 2), 10.0)
    pet, ct = Recorder([]), Recorder([])
    assert torch.equal(InSuv(pet, 5.0)(x, {}), 2 * x)
    assert torch.equal(pet.seen[0], x / 5)
    InSuv(pet, 5.0).context(x, x)
    assert all(torch.equal(seen, x / 5) for seen in pet.seen)
    assert torch.equal(InSuv(ct, 5.0, HU)(x, {}), 10 * x)
    assert torch.equal(ct.seen[0], x)


TILINGS = [
    Tiling((24, 24, 24), halo=(3, 3, 3)),
    Tiling((17, 13, 11), halo=(2, 2, 2), overlap=(0, 5, 3)),
    Tiling((32, 32, 16), halo=(5, 5, 5), multiple=(16, 16, 16)),  # tiles pass the volume, at its other end too
    Tiling((5, 1024, 1024), halo=(1, 0, 0), multiple=(1, 32, 32)),
]


@dataclass(frozen=True)
class Edge:
    """A network that no mirror leaves alone: the difference of a voxel and its neighbours before it."""

    tiling: Tiling
    context_batch: None = None

    def context(self, overview: Tensor, source: Tensor) -> Mapping[str, Tensor]:
        raise AssertionError("asks for no context")

    def __call__(self, source: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        z, y, x = self.tiling.halo
        before = sum(source.roll(1, axis) for axis in (2, 3, 4))
        image = source - 0.1 * before
        return image[:, :, z : source.shape[2] - z, y : source.shape[3] - y, x : source.shape[4] - x]


def test_mirror_images_are_all_of_the_axes_and_each_once() -> None:
    for axes in ((), (2,), (0, 2), (0, 1, 2)):
        found = mirrors(axes)
        assert found[0] == ()
        assert len(found) == len(set(found)) == 2 ** len(axes)
        assert {axis for one in found for axis in one} == set(axes)


@given(st.lists(st.integers(0, 2), unique=True), st.tuples(*[st.integers(-6, 45)] * 3))
def test_a_mirrored_box_holds_the_same_voxels_backwards(
    cohort: Path, axes: list[int], start: tuple[int, int, int]
) -> None:
    image = open_cohort(cohort).case("phantom-001").image("low_drf4")
    whole = np.pad(image.read(0, image.grid.shape[0]), 60)  # a PET is 0 beyond itself
    box = PatchLocation(start, (7, 5, 9))
    z, y, x = (slice(a + 60, b + 60) for a, b in zip(box.start, box.stop, strict=True))
    seen = Mirrored(image, tuple(axes))
    np.testing.assert_array_equal(seen.patch(box), np.flip(whole, tuple(axes))[z, y, x])
    assert seen.across(seen.across(box)) == box


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("mirrored", [(0,), (1, 2), (0, 1, 2)])
def test_a_network_that_mirrors_leave_alone_gives_the_same_image(
    case: Case, tiling: Tiling, mirrored: tuple[int, ...]
) -> None:
    low = case.image("low_drf4").read(0, case.image("low_drf4").grid.shape[0])
    made = volume(Identity(tiling), case, mirrored=mirrored, batch=2)
    np.testing.assert_allclose(made, low, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tiling", [TILINGS[0], TILINGS[2]])
def test_an_image_of_a_mirrored_case_is_that_of_the_mirrored_file(cohort: Path, tmp_path: Path, tiling: Tiling) -> None:
    """Not only the window is mirrored: the tiles lie as they would in the mirrored patient."""
    case, axes = open_cohort(cohort).case("phantom-001"), (0, 2)
    image = case.image("low_drf4")
    backwards = np.flip(image.read(0, image.grid.shape[0]), axes).copy()
    plan = CasePlan({"low_drf4": ArraySource(backwards, image.grid, SUV)}, "s", "f")
    ingest(tmp_path, {"mirrored": lambda _: plan}, strict=True, workers=1)
    wanted = volume(Edge(tiling), open_cohort(tmp_path).case("mirrored"))
    made = volume(Edge(tiling), case, mirrored=axes)
    np.testing.assert_array_equal(np.flip(made, axes), wanted)
    assert np.abs(made - volume(Edge(tiling), case)).max() > 0.01


def test_the_context_of_a_mirrored_case_is_drawn_at_the_same_places(case: Case) -> None:
    """A context of means alone, as statistics of instances are, is then the same in every mirror."""
    seen: list[Tensor] = []
    spec = BatchSpec((8, 8, 8), (2, 2, 2), patches_per_case=3, sampler={"body": 1.0})
    recorder = replace(Recorder(seen), context_batch=spec)  # type: ignore[arg-type]
    for mirrored in ((), (0, 1)):
        case_context(recorder, case, "low_drf4", device=CPU, mirrored=mirrored)
    for plain, backwards in zip(seen[:2], seen[2:], strict=True):
        assert torch.equal(backwards, plain.flip(2, 3))
