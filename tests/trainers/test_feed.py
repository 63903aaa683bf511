"""The feed: sample order as pure arithmetic, whatever the workers, the read-ahead and the resumes."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from storage.errors import InputError
from storage.ingest import CasePlan, ingest
from storage.reader import open_cohort
from storage.source import HU, SUV, ArraySource
from trainers.engine import plain_engine
from trainers.feed import Feed, _square, channel_values, check_cases, doses_fed, drf_of
from trainers.feed_config import FeedConfig, as_stored
from trainers.recipe import Batch, BatchSpec
from trainers.systems import RECIPES

NEEDS = BatchSpec(
    patch=(24, 24, 24), halo=(2, 2, 2), patches_per_case=2, sampler={"body": 0.5, "lesion": 0.5}, overview=64
)
GUIDED = BatchSpec(
    patch=(24, 24, 24), halo=(0, 0, 0), patches_per_case=2, sampler={"roi": 1.0}, rois=("liver", "lesion"), overview=0
)


def feed(cohort: Path, *, rank: int = 0, world: int = 1, needs: BatchSpec = NEEDS, **settings: object) -> Feed:
    config = FeedConfig(**{"source": ("low_drf4", "low_drf20"), "cases_per_step": 12, **settings})  # type: ignore[arg-type]
    cases = open_cohort(cohort).cases
    streams = {"paired": cases, "source": cases[:2], "target": cases[2:], "unpaired": cases}
    return Feed(
        open_cohort(cohort), streams, config, lambda step: needs, rank=rank, world=world, device=torch.device("cpu")
    )


def test_order_is_the_same_for_every_number_of_workers(cohort: Path) -> None:
    for step in (0, 1, 7):
        whole = feed(cohort).plan(step)
        for world in (2, 3, 4, 6, 12):
            shared = [group for rank in range(world) for group in feed(cohort, rank=rank, world=world).plan(step)]
            assert shared == whole


def test_an_epoch_holds_every_sample_once(cohort: Path) -> None:
    single = feed(cohort, cases_per_step=1)
    for epoch in range(3):
        seen = [single.plan(epoch * 8 + i)[0][:2] for i in range(8)]
        assert len(set(seen)) == len(seen) == 8  # 4 cases x 2 doses
    assert [single.plan(i)[0] for i in range(8)] != [single.plan(8 + i)[0] for i in range(8)]


def test_seed_decides_the_order(cohort: Path) -> None:
    assert feed(cohort, seed=1).plan(0) == feed(cohort, seed=1).plan(0)
    assert feed(cohort, seed=1).plan(0) != feed(cohort, seed=2).plan(0)


def test_workers_that_do_not_divide_the_step_are_refused(cohort: Path) -> None:
    with pytest.raises(InputError, match="CFG_WORKERS"):
        feed(cohort, world=5)


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_batches_do_not_depend_on_reading_ahead_or_on_where_a_run_resumes(cohort: Path, ahead: int) -> None:
    straight = feed(cohort, cases_per_step=2, read_ahead=ahead)
    batches = [straight.batch(step, 4) for step in range(4)]
    straight.close()
    resumed = feed(cohort, cases_per_step=2, read_ahead=2)
    for step in (2, 3):
        again = resumed.batch(step, 4)
        assert again.places == batches[step].places
        assert torch.equal(again.source, batches[step].source)
        assert torch.equal(again.target, batches[step].target)
    resumed.close()


def test_batch_holds_what_the_plan_says(cohort: Path) -> None:
    source = feed(cohort, cases_per_step=2, suv_scale=5.0)
    batch = source.batch(3, 4)
    opened = open_cohort(cohort)
    assert batch.source.shape == (4, 1, 28, 28, 28)
    assert batch.target.shape == (4, 1, 24, 24, 24)
    assert batch.overview.shape == (2, 1, 64, 64, 64)
    assert batch.masks.shape == (4, 0, 24, 24, 24)
    for group, (name, low, boxes) in enumerate(source.plan(3)):
        case = opened.case(name)
        torch.testing.assert_close(batch.overview[group, 0], torch.from_numpy(case.overview(low)) / 5)
        for place, box in enumerate(boxes):
            index = 2 * group + place
            assert batch.places[index] == f"{name} {low} {box}"
            torch.testing.assert_close(batch.target[index, 0], torch.from_numpy(case.image("full").patch(box)) / 5)
            torch.testing.assert_close(
                batch.source[index, 0], torch.from_numpy(case.image(low).patch(box.grown((2, 2, 2)))) / 5
            )
    source.close()


def test_masks_are_the_labels_one_channel_per_roi(cohort: Path) -> None:
    source = feed(cohort, cases_per_step=2, needs=GUIDED)
    batch = source.batch(0, 1)
    opened = open_cohort(cohort)
    for group, (name, _, boxes) in enumerate(source.plan(0)):
        case = opened.case(name)
        for place, box in enumerate(boxes):
            labels = case.image("labels").patch(box)
            for channel, roi in enumerate(GUIDED.rois):
                expected = sum((labels == value) for value in channel_values(case.labels, roi))
                assert torch.equal(batch.masks[2 * group + place, channel], torch.from_numpy(expected).float())
            assert batch.masks[2 * group + place].any(), "a patch centred in a guided organ holds none of it"
    source.close()


def test_check_cases_names_what_is_missing(cohort: Path) -> None:
    opened = open_cohort(cohort)
    good = FeedConfig(source=("low_drf4",))
    check_cases(opened, {"paired": opened.cases}, good, [NEEDS, GUIDED])
    with pytest.raises(InputError, match=r"SET_NO_IMAGE.*low_drf7.*low_drf4"):
        check_cases(opened, {"paired": opened.cases}, FeedConfig(source=("low_drf7",)), [NEEDS])
    with pytest.raises(InputError, match="SET_TOO_SMALL"):
        check_cases(opened, {"paired": []}, good, [NEEDS])
    thyroid = BatchSpec(patch=(24, 24, 24), halo=(0, 0, 0), patches_per_case=1, sampler={"roi": 1.0}, rois=("thyroid",))
    with pytest.raises(InputError, match=r"SET_NO_LABELS.*thyroid"):
        check_cases(opened, {"paired": opened.cases}, good, [thyroid])
    for system, source, offers in (
        ("sgsgan", "low_drf4", "train without guidance"),
        ("virtual_pet", "ct", "train on slices of the whole body"),
    ):
        spec = RECIPES[system]
        with torch.device("meta"):
            built = spec.build(replace(spec.Config(), rois=("thyroid",)), make_engine=plain_engine, patches_per_step=4)
        last = built.batch_spec(built.num_steps - 1)
        with pytest.raises(InputError) as refused:
            check_cases(opened, {"paired": opened.cases}, replace(good, source=(source,)), [last])
        assert offers in refused.value.remedy
    huge = BatchSpec(patch=(24, 24, 64), halo=(0, 0, 0), patches_per_case=1, sampler={"body": 1.0})
    with pytest.raises(InputError, match="IMG_TOO_SMALL"):
        check_cases(opened, {"paired": opened.cases}, good, [huge])
    check_cases(opened, {"paired": opened.cases}, good, [replace(huge, beyond=True)])


def test_check_cases_refuses_a_ct_for_a_pet_and_a_pet_for_a_ct(cohort: Path) -> None:
    opened = open_cohort(cohort)
    streams = {"paired": opened.cases}
    ct = replace(NEEDS, units=HU)
    check_cases(opened, streams, FeedConfig(source=("ct",)), [ct])
    with pytest.raises(InputError, match=r"SET_WRONG_UNITS case .*image ct.*in HU.*takes SUVbw"):
        check_cases(opened, streams, FeedConfig(source=("ct",)), [NEEDS])
    with pytest.raises(InputError, match=r"SET_WRONG_UNITS .*image low_drf4.*in SUVbw.*takes HU"):
        check_cases(opened, streams, FeedConfig(source=("low_drf4",)), [ct])
    with pytest.raises(InputError, match=r"SET_WRONG_UNITS .*image ct.*takes SUVbw"):
        check_cases(opened, streams, FeedConfig(source=("low_drf4",), target="ct"), [NEEDS])


def test_a_patch_longer_than_the_volume_holds_air_beyond_it(cohort: Path) -> None:
    opened = open_cohort(cohort)
    need = BatchSpec((1, 48, 56), (1, 0, 0), 2, {"body": 1.0}, units=HU, beyond=True)
    config = FeedConfig(source=("ct",), suv_scale=1.0, cases_per_step=1)
    source = Feed(
        opened, {"paired": opened.cases}, config, lambda step: need, rank=0, world=1, device=torch.device("cpu")
    )
    batch = source.batch(0, 1)
    source.close()
    _, height, width = opened.case(opened.cases[0]).sampling_maps.shape
    assert height < 48
    assert width < 56
    assert batch.source.shape == (2, 1, 3, 48, 56)
    for beyond in ((..., slice(height, None), slice(None)), (..., slice(width, None))):
        assert (batch.source[beyond] == -1000).all()
        assert (batch.target[beyond] == 0).all()
    assert batch.source[..., :height, :width].max() > 0


@pytest.mark.parametrize(
    ("images", "places"), [("source", {"phantom-000", "phantom-001"}), ("target", {"phantom-002", "phantom-003"})]
)
def test_one_dose_alone_comes_from_its_own_patients(
    cohort: Path, images: Literal["source", "target"], places: set[str]
) -> None:
    source = feed(cohort, cases_per_step=4, needs=replace(NEEDS, images=images, overview=0))
    seen = set()
    for step in range(3):
        batch = source.batch(step, 3)
        empty, filled = (batch.target, batch.source) if images == "source" else (batch.source, batch.target)
        assert empty.shape == (8, 1, 0, 0, 0)
        assert filled.any()
        assert torch.isnan(batch.drf).all() if images == "target" else not torch.isnan(batch.drf).any()
        seen |= {place.split()[0] for place in batch.places}
    source.close()
    assert seen == places


UNPAIRED = replace(NEEDS, images="unpaired", overview=0)


def test_an_unpaired_group_holds_a_source_of_one_patient_and_a_target_of_another(cohort: Path) -> None:
    source = feed(cohort, cases_per_step=4, suv_scale=4.0, needs=UNPAIRED)
    opened, seen = open_cohort(cohort), set()
    for step in range(4):
        batch, plan, others = source.batch(step, 4), source.plan(step), source.others(step)
        assert batch.source.shape == (8, 1, 28, 28, 28)
        assert batch.target.shape == (8, 1, 24, 24, 24)
        assert not torch.isnan(batch.drf).any()
        assert not batch.shared.any(), "no counts are in both images"
        for group, ((name, low, boxes), (other, there)) in enumerate(zip(plan, others, strict=True)):
            assert opened.case(name).subject != opened.case(other).subject
            seen.add((name, other))
            start, end = opened.case(name).image(low), opened.case(other).image("full")
            for index, (box, end_box) in enumerate(zip(boxes, there, strict=True), start=2 * group):
                assert batch.places[index] == f"{name} {low} {box} and {other} full {end_box}"
                assert torch.equal(batch.source[index, 0], torch.from_numpy(start.patch(box.grown((2, 2, 2)))) / 4)
                assert torch.equal(batch.target[index, 0], torch.from_numpy(end.patch(end_box)) / 4)
                assert batch.peak[index] == pytest.approx(end.statistics["max"] / 4)
    source.close()
    assert {name for name, _ in seen} == {"phantom-000", "phantom-001"}
    assert {other for _, other in seen} == {*opened.cases}
    assert len(seen) > 4, "the same two patients are not always together"


def test_unpaired_draws_depend_on_seed_and_step_alone(cohort: Path) -> None:
    whole = feed(cohort, needs=UNPAIRED)
    for world in (2, 3):
        ranks = [feed(cohort, needs=UNPAIRED, rank=rank, world=world) for rank in range(world)]
        assert [one for rank in ranks for one in rank.others(5)] == whole.others(5)
    assert feed(cohort, needs=UNPAIRED, seed=1).others(0) != whole.others(0)
    assert whole.others(0) != whole.others(1)
    straight, resumed = (feed(cohort, needs=UNPAIRED, cases_per_step=2, read_ahead=n) for n in (0, 2))
    for step in (2, 3):
        one, again = straight.batch(step, 4), resumed.batch(step, 4)
        assert torch.equal(one.source, again.source)
        assert torch.equal(one.target, again.target)
    straight.close()
    resumed.close()


def test_source_and_target_of_different_patients_are_turned_apart(cohort: Path) -> None:
    needs = replace(UNPAIRED, halo=(0, 0, 0))
    found = {tuple(min(one) for one in each[:2]) for each in ways(cohort, needs, augment="flips_and_turns")}
    assert any(source != target for source, target in found)
    tilted, plain = (feed(cohort, needs=needs, cases_per_step=2, tilt_deg=tilt).batch(0, 1) for tilt in (15.0, 0.0))
    assert tilted.places == plain.places
    assert not torch.equal(tilted.source, plain.source)
    assert not torch.equal(tilted.target, plain.target)


def test_unpaired_steps_need_a_second_patient(cohort: Path) -> None:
    opened = open_cohort(cohort)
    low = FeedConfig(source=("low_drf4",))
    one = {"source": opened.cases[:1], "unpaired": opened.cases[:1]}
    with pytest.raises(InputError, match=r"SET_NO_UNPAIRED train.*case phantom-000.*petscale ingest"):
        check_cases(opened, one, low, [UNPAIRED])
    check_cases(opened, {**one, "unpaired": opened.cases[:2]}, low, [UNPAIRED])
    with pytest.raises(InputError, match=r"SET_NO_UNPAIRED train"):
        check_cases(opened, {"source": opened.cases}, low, [UNPAIRED])
    with pytest.raises(InputError, match="SET_TOO_SMALL"):
        check_cases(opened, {"unpaired": opened.cases}, low, [UNPAIRED])
    both = {"source": opened.cases[:2], "unpaired": opened.cases}
    with pytest.raises(InputError, match=r"SET_NO_IMAGE.*low_drf7"):
        check_cases(opened, both, FeedConfig(source=("low_drf7",)), [UNPAIRED])
    with pytest.raises(InputError, match=r"SET_WRONG_UNITS .*image ct"):
        check_cases(opened, both, replace(low, target="ct"), [UNPAIRED])
    with pytest.raises(InputError, match="IMG_TOO_SMALL"):
        check_cases(opened, both, low, [replace(UNPAIRED, patch=(24, 24, 64))])
    with pytest.raises(InputError, match=r"SET_NO_IMAGE case phantom-000.*mri"):
        check_cases(opened, both, low, [replace(UNPAIRED, beside=("mri",))])


def test_patients_with_one_of_both_images_serve_where_they_have_it(
    cohort: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two with a low dose alone, and two with a full dose alone: no pair at all."""
    opened = open_cohort(cohort)

    def plan(name: str, _: Path) -> CasePlan:
        held = "low_drf4" if name in opened.cases[:2] else "full"
        image = opened.case(name).image(held)
        return CasePlan({held: ArraySource(image.read(0, image.grid.shape[0]), image.grid, SUV)}, name, "f")

    folder = tmp_path_factory.mktemp("apart")
    ingest(folder, {name: partial(plan, name) for name in opened.cases}, strict=True)
    apart, config = open_cohort(folder), FeedConfig(source=("low_drf4",), cases_per_step=2)
    streams = {"paired": apart.cases[:2], "source": apart.cases[:2], "target": apart.cases[2:], "unpaired": apart.cases}
    check_cases(apart, streams, config, [UNPAIRED])
    source = Feed(apart, streams, config, lambda step: UNPAIRED, rank=0, world=1, device=torch.device("cpu"))
    assert {name for step in range(4) for name, _, _ in source.plan(step)} == {*apart.cases[:2]}
    assert {name for step in range(4) for name, _ in source.others(step)} == {*apart.cases[2:]}
    assert source.batch(0, 1).target.any()
    source.close()
    with pytest.raises(InputError, match=r"SET_NO_IMAGE.*full"):
        check_cases(apart, streams, config, [replace(NEEDS, overview=0)])


def test_every_patch_knows_its_dose(cohort: Path) -> None:
    source = feed(cohort, cases_per_step=4)
    batch = source.batch(0, 1)
    assert [f"low_drf{drf:g}" for drf in batch.drf.tolist()] == [place.split()[1] for place in batch.places]
    assert len(set(batch.drf.tolist())) == 2
    source.close()


def test_every_patch_knows_its_unit_and_voxel_size(cohort: Path) -> None:
    source = feed(cohort, cases_per_step=2)
    batch = source.batch(0, 1)
    source.close()
    grid = open_cohort(cohort).case("phantom-000").image("full").grid
    assert batch.units == SUV
    assert batch.spacing_mm.shape == (len(batch.drf), 3)
    assert torch.allclose(batch.spacing_mm, torch.tensor(grid.spacing_mm))


def test_a_dose_is_what_an_image_states_whatever_it_is_called(cohort: Path) -> None:
    opened = open_cohort(cohort)
    config = FeedConfig(source=("low_drf20", "truth", "full"))
    doses = doses_fed(opened, opened.cases, config)
    assert doses["low_drf20"] == {20.0}
    assert doses["full"] == {1.0}
    assert [math.isnan(drf) for drf in doses["truth"]] == [True]


def test_steps_may_be_skipped(cohort: Path) -> None:
    """A phase that ends early leaves batches that were read ahead for nothing."""
    source, straight = feed(cohort, cases_per_step=2, read_ahead=3), feed(cohort, cases_per_step=2, read_ahead=0)
    source.batch(0, 20)
    assert source.batch(9, 20).places == straight.batch(9, 20).places
    source.close()
    straight.close()


def test_missing_unpaired_patients_are_told_with_the_setting_that_makes_them(cohort: Path) -> None:
    opened = open_cohort(cohort)
    with pytest.raises(InputError, match=r"SET_NO_UNPAIRED.*split.unpaired_fraction"):
        check_cases(opened, {"paired": opened.cases, "target": []}, FeedConfig(), [replace(NEEDS, images="target")])
    with pytest.raises(InputError, match=r"SET_NO_IMAGE.*low_drf7"):
        check_cases(
            opened, {"source": opened.cases}, FeedConfig(source=("low_drf7",)), [replace(NEEDS, images="source")]
        )
    check_cases(opened, {"target": opened.cases}, FeedConfig(source=("low_drf7",)), [replace(NEEDS, images="target")])


# (axes flipped, quarter turns), all that a patch may lie like
WAYS = [
    (tuple(axis for axis in (-3, -2, -1) if bits >> -axis & 1), turns) for bits in range(0, 16, 2) for turns in range(4)
]


def lying(image: Tensor, way: tuple[tuple[int, ...], int]) -> Tensor:
    return torch.rot90(torch.flip(image, way[0]), way[1], dims=(-2, -1))


def images(batch: Batch, index: int) -> list[Tensor]:
    return [batch.source[index], batch.target[index], batch.masks[index]]


def ways(cohort: Path, needs: BatchSpec, augment: str, steps: int = 4) -> Iterator[list[set[int]]]:
    """For every patch of a step, which of ``WAYS`` turn the stored source, target and masks into those fed."""
    turned, stored = feed(cohort, needs=needs, augment=augment), feed(cohort, needs=needs)
    for step in range(steps):
        fed, plain = turned.batch(step, steps), stored.batch(step, steps)
        assert fed.places == plain.places
        assert torch.equal(fed.drf, plain.drf)
        for index in range(len(fed.drf)):
            per = len(fed.drf) // fed.cases
            pairs = list(zip(images(fed, index), images(plain, index), strict=True))
            if needs.overview:
                pairs.append((fed.overview[index // per], plain.overview[index // per]))
            assert all(torch.equal(one.flatten().sort()[0], other.flatten().sort()[0]) for one, other in pairs)
            yield [
                {number for number, way in enumerate(WAYS) if torch.equal(one, lying(other, way))}
                for one, other in pairs
            ]
    turned.close()
    stored.close()


@pytest.mark.parametrize("needs", [replace(GUIDED, halo=(1, 3, 3)), NEEDS])
def test_source_target_masks_and_overview_are_turned_alike_and_no_voxel_changes(cohort: Path, needs: BatchSpec) -> None:
    found = [set.intersection(*each) for each in ways(cohort, needs, augment="flips_and_turns")]
    assert all(found)
    assert len({min(one) for one in found}) > 8  # of 16 different ones


@pytest.mark.parametrize(
    ("needs", "augment"),
    [
        (GUIDED, "flips"),
        (replace(GUIDED, patch=(24, 24, 16)), "flips_and_turns"),
        (replace(GUIDED, halo=(0, 2, 4)), "flips_and_turns"),
    ],
)
def test_patches_that_are_not_square_are_flipped_only(cohort: Path, needs: BatchSpec, augment: str) -> None:
    found = [set.intersection(*each) for each in ways(cohort, needs, augment=augment)]
    assert all(any(WAYS[number][1] == 0 for number in each) for each in found)
    assert len({min(each) for each in found}) == 8


@pytest.mark.parametrize(("x_mm", "turns"), [(2.0, True), (2.001, True), (2.01, False)])
def test_voxels_that_are_not_square_are_not_turned(x_mm: float, turns: bool) -> None:
    assert _square(GUIDED, (3.0, 2.0, x_mm)) == turns


def test_turns_do_not_depend_on_workers_or_on_where_a_run_resumes(cohort: Path) -> None:
    settings: dict[str, Any] = {"augment": "flips_and_turns", "cases_per_step": 4}
    whole = feed(cohort, **settings)
    batches = [whole.batch(step, 2) for step in range(2)]
    whole.close()
    parts = [feed(cohort, rank=rank, world=2, **settings) for rank in range(2)]
    shares = [part.batch(1, 2) for part in parts]
    for part in parts:
        part.close()
    for name in ("source", "target", "overview"):
        assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(batches[1], name))
    other = feed(cohort, **settings, seed=1)
    assert not torch.equal(other.batch(1, 2).source, batches[1].source)
    other.close()


def test_left_and_right_alone_may_change_sides(cohort: Path) -> None:
    found = [set.intersection(*each) for each in ways(cohort, NEEDS, augment="left_right")]
    assert {min(each) for each in found} == {WAYS.index(((), 0)), WAYS.index(((-1,), 0))}


def test_tilts_are_off_unless_asked_for_and_do_not_depend_on_workers_or_resumes(cohort: Path) -> None:
    settings: dict[str, Any] = {"tilt_deg": 15.0, "scaling": 0.15, "cases_per_step": 4, "needs": GUIDED}
    whole, stored = feed(cohort, **settings), feed(cohort, cases_per_step=4, needs=GUIDED)
    batches, plain = [whole.batch(step, 2) for step in range(2)], [stored.batch(step, 2) for step in range(2)]
    parts = [feed(cohort, rank=rank, world=2, **settings) for rank in range(2)]
    shares = [part.batch(1, 2) for part in parts]
    for source in (whole, stored, *parts):
        source.close()
    for name in ("source", "target", "masks"):
        assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(batches[1], name))
        for tilted, untilted in zip(batches, plain, strict=True):
            assert tilted.places == untilted.places
            assert getattr(tilted, name).shape == getattr(untilted, name).shape
            assert not torch.equal(getattr(tilted, name), getattr(untilted, name))
    assert set(batches[0].masks.unique().tolist()) <= {0.0, 1.0}
    assert FeedConfig().tilt_deg == FeedConfig().scaling == 0


def test_source_and_target_are_tilted_alike(cohort: Path) -> None:
    """The full dose as its own source: what the halo surrounds is what is wanted."""
    needs = replace(NEEDS, overview=0)
    source = feed(cohort, source=("full",), tilt_deg=15.0, scaling=0.15, cases_per_step=4, needs=needs)
    batch = source.batch(0, 1)
    source.close()
    torch.testing.assert_close(batch.source[:, :, 2:-2, 2:-2, 2:-2], batch.target, atol=1e-4, rtol=1e-4)


def test_no_corner_of_a_tilted_patch_is_empty_where_its_source_is_not(cohort: Path) -> None:
    """With mirrored faces, the full dose as its own source: an empty target beyond a face would differ from it."""
    needs = replace(NEEDS, halo=(0, 0, 0), overview=0, sampler={"uniform": 1.0})
    for beyond in ("mirror", "mirror_any"):
        settings: dict[str, Any] = {"source": ("full",), "tilt_deg": 30.0, "cases_per_step": 4, "needs": needs}
        source = feed(cohort, beyond=beyond, **settings)
        batch = source.batch(0, 1)
        source.close()
        assert torch.equal(batch.source, batch.target)


def test_measures_and_validation_see_patches_as_they_lie_in_the_cohort() -> None:
    turned = FeedConfig(augment="flips", tilt_deg=15.0, scaling=0.15, seed=3)
    assert as_stored(turned) == FeedConfig(seed=3)


def test_marked_labels_are_masks_where_there_are_any_and_nothing_elsewhere(cohort: Path) -> None:
    needs = replace(GUIDED, rois=(), marked=("lesion", "thyroid"))
    check_cases(open_cohort(cohort), {"paired": open_cohort(cohort).cases}, FeedConfig(source=("low_drf4",)), [needs])
    found = feed(cohort, needs=replace(needs, sampler={"lesion": 1.0})).batch(0, 1)
    guided = feed(cohort, needs=replace(GUIDED, rois=("lesion",), sampler={"lesion": 1.0})).batch(0, 1)
    assert found.masks.shape[1] == 2
    assert found.masks[:, 0].any()
    assert not found.masks[:, 1].any()
    assert guided.masks.shape[1] == 1


def test_a_batch_tells_the_counts_that_both_images_hold_and_the_targets_peak(cohort: Path) -> None:
    source = feed(cohort, cases_per_step=4)
    found = source.batch(0, 1)
    expected = [
        (1 / drf_of(case.image(image)), case.image("full").statistics["max"])
        for name, image, boxes in source.plan(0)
        for case in [open_cohort(cohort).case(name)]
        for _ in boxes
    ]
    np.testing.assert_allclose(found.shared, [shared for shared, _ in expected], rtol=1e-6)
    np.testing.assert_allclose(found.peak, [peak for _, peak in expected], rtol=1e-6)


def test_images_beside_the_source_are_channels_after_it_in_their_own_unit(cohort: Path) -> None:
    needs = replace(NEEDS, beside=("ct",))
    settings: dict[str, Any] = {"augment": "flips_and_turns", "suv_scale": 5.0}
    alone, both = (feed(cohort, needs=one, **settings).batch(0, 1) for one in (NEEDS, needs))
    assert torch.equal(both.source[:, :1], alone.source)
    assert torch.equal(both.target, alone.target)
    plain = feed(cohort, needs=needs, suv_scale=5.0)
    name, _, boxes = plain.plan(0)[0]
    wanted = torch.from_numpy(open_cohort(cohort).case(name).image("ct").patch(boxes[0].grown(NEEDS.halo)))
    assert torch.equal(plain.batch(0, 1).source[0, 1], wanted)


def test_what_is_seen_beside_the_source_must_be_there(cohort: Path) -> None:
    cases = open_cohort(cohort)
    with pytest.raises(InputError, match="SET_NO_IMAGE"):
        check_cases(cases, {"paired": sorted(cases.cases)}, FeedConfig(), [replace(NEEDS, beside=("mri",))])


def test_a_mirrored_feed_differs_beyond_the_faces_alone(cohort: Path) -> None:
    needs = replace(NEEDS, halo=(30, 30, 30), sampler={"uniform": 1.0})
    air, mirror = (feed(cohort, needs=needs, beyond=beyond).batch(0, 1) for beyond in ("air", "mirror"))
    same = air.source == mirror.source
    assert not same.all()
    assert (air.source[~same] == 0).all()
    assert torch.equal(air.target, mirror.target)
