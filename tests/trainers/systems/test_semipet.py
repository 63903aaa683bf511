"""The SemiPET-like system: regions, norms by region, structure, and steps by turns on pairs and on others."""

from typing import Any

import cycles
import pytest
import torch
import torch.nn.functional as F
from network_facts import count
from torch import Tensor, nn

from storage.errors import InputError
from trainers.cycle import Cycle
from trainers.engine import plain_engine
from trainers.recipe import Batch
from trainers.systems import semipet
from trainers.systems.semipet import Config, RegionNorm, regions_of, smoothed, structure_loss

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")

SMALL: dict[str, Any] = {
    "width": 2, "blocks": 1, "critic_width": 2, "hidden": 2, "pool": 3, "patch": (1, 24, 24), "samples": 16
}  # fmt: skip


def build(**changes: Any) -> Cycle:
    torch.manual_seed(0)
    return semipet.build(Config(**{**SMALL, **changes}), make_engine=plain_engine, patches_per_step=2)


def batch(seed: int, slices: int = 1) -> Batch:
    return cycles.batch(seed, (slices, 24, 24), paired=seed % 2 == 0)


def test_the_numbers_of_parameters() -> None:
    """Cycle-GAN's generator, and of 17 norms of 3,712 channels together 896 a norm and 578 a channel."""
    with torch.device("meta"):
        assert count(semipet.Generator(Config())) == 7_825_153 + 17 * 896 + 578 * 3_712 == 9_985_921
        assert count(semipet.discriminator(Config())) == 2_762_689


def test_smoothing_has_its_width_and_keeps_what_is_even() -> None:
    point = torch.zeros(1, 1, 41, 41)
    point[0, 0, 20, 20] = 1
    spread = smoothed(point, 6.0)[0, 0]
    assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
    assert float(spread[20, 23] / spread[20, 20]) == pytest.approx(0.5, abs=1e-4), "half as high 3 voxels beside"
    even = torch.full((1, 1, 9, 7), 2.5)
    torch.testing.assert_close(smoothed(even, 6.0), even)


def test_every_voxel_is_air_tissue_or_hot() -> None:
    image = torch.zeros(2, 1, 48, 48)
    image[0, 0, 8:40, 8:40] = 1
    image[0, 0, 20:28, 20:28] = 20
    regions = regions_of(image, Config(region_fwhm_voxels=2.0))
    assert torch.equal(regions.sum(1), torch.ones(2, 48, 48))
    assert [int(regions[0, :, y, x].argmax()) for y, x in ((2, 2), (12, 12), (24, 24))] == [0, 1, 2]
    assert regions[1, 0].all(), "an empty slice is air, and has no median"
    brighter = regions_of(10 * image, Config(region_fwhm_voxels=2.0, air=0.4))
    assert torch.equal(brighter, regions), "hot is relative"


def test_each_region_is_normed_by_itself() -> None:
    """Values of a region become 0 on average with a standard deviation of 1, whatever the other regions hold."""
    norm = RegionNorm(2, 4)
    for conv in (norm.gamma, norm.beta):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    regions = torch.zeros(1, 3, 8, 8)
    regions[:, 0, :, :3] = 1
    regions[:, 1, :, 3:] = 1
    x = torch.randn(1, 2, 8, 8)
    x[..., 3:] = 100 + 50 * x[..., 3:]
    for part in (slice(0, 3), slice(3, 8)):
        values = norm(x, regions)[0, :, :, part].flatten(1)
        torch.testing.assert_close(values.mean(1), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(values.var(1, correction=0), torch.ones(2), atol=1e-3, rtol=0)
    changed = x.clone()
    changed[..., :3] *= 7
    assert torch.equal(norm(changed, regions)[..., 3:], norm(x, regions)[..., 3:])
    nn.init.constant_(norm.gamma.bias, 1.0)  # type: ignore[arg-type]
    nn.init.constant_(norm.beta.bias, 5.0)  # type: ignore[arg-type]
    values = norm(x, regions)[..., :3].flatten(2)
    torch.testing.assert_close(values.mean(2), torch.full((1, 2), 5.0), atol=1e-4, rtol=0)
    halved = norm(F.avg_pool2d(x, 2), regions)
    assert halved.shape == (1, 2, 4, 4), "the map of regions follows the features' size"


def test_structure_sees_edges_and_not_levels() -> None:
    image = torch.rand(2, 1, 16, 16)
    assert float(structure_loss(image, image + 3, 3.6)) == pytest.approx(0, abs=1e-5)
    ramp = torch.arange(30.0).expand(1, 1, 30, 30)
    inside = structure_loss(ramp, 3 * ramp, 0.5)
    assert float(inside) == pytest.approx(2, rel=0.1), "ramps of slopes 1 and 3"


def test_the_losses_of_both_kinds_by_hand() -> None:
    """Generators that add 0, and discriminators that score 0.5 everywhere."""
    recipe = build(patch=(2, 24, 24))
    for parameter in (*recipe.G.module.parameters(), *recipe.D.module.parameters()):
        nn.init.zeros_(parameter)
    for discriminator in (recipe.D.module.of_low, recipe.D.module.of_full):
        nn.init.constant_(discriminator.layers[-1].bias, 0.5)
    start = {name: {key: value.clone() for key, value in t.items()} for name, t in recipe.state().items()}
    pair = batch(0, slices=2)
    found = recipe.step(pair, 0)
    distance = float((pair.source - pair.target).abs().mean())
    assert {name: float(value) for name, value in found.items()} == pytest.approx({"supervised": 2 * distance})
    recipe.load(start)
    found = recipe.step(batch(1, slices=2), 1)
    expected = {"adversarial": 0.5, "cycle": 0.0, "structure": 0.0, "generators": 0.5, "discriminators": 0.5}
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, abs=1e-6)


def test_pairs_teach_both_generators_and_others_the_discriminators_too() -> None:
    recipe = build()
    assert [recipe.batch_spec(step).images for step in range(4)] == ["paired", "unpaired"] * 2
    assert cycles.moves(recipe, batch(0), 0) == [{"G", "F"}]
    assert cycles.moves(build(), batch(1), 1) == [{"G", "F"}, {"D of low", "D of full"}]


def test_the_structural_loss_reaches_the_generator() -> None:
    moved: list[Tensor] = []
    for weight in (0.0, 100.0):
        recipe = build(lambda_structure=weight)
        for step in (1, 3):
            recipe.step(batch(step), step)
        moved.append(cycles.parts(recipe.G, recipe.D)["G"])
    assert not torch.equal(*moved)


def test_it_learns_two_pairs() -> None:
    recipe = build(width=4, hidden=4, lr=5e-3)
    given = batch(0)
    first, *_, last = [recipe.step(given, 0) for _ in range(20)]
    assert float(last["supervised"]) < 0.6 * float(first["supervised"])


def test_a_resumed_run_is_bit_equal() -> None:
    assert cycles.resumes_bit_equal(build(), build(), build(), [batch(step) for step in range(6)])


def test_slices_are_restored_one_by_one_in_windows_that_are_blended() -> None:
    recipe = build()
    alone = semipet.weights_to_synthesizer(Config(**SMALL), recipe.weights())
    assert (alone.tiling.tile, alone.tiling.overlap) == ((16, 24, 24), (0, 12, 12))
    low = torch.rand(1, 1, 3, 24, 24)
    whole = alone(low, {})
    assert torch.equal(whole, recipe.synthesizer()(low, {}))
    torch.testing.assert_close(alone(low[:, :, 1:2], {}), whole[:, :, 1:2])
    with pytest.raises(InputError, match="CKPT_CONFIG weights of the SemiPET-like system"):
        semipet.weights_to_synthesizer(Config(**{**SMALL, "hidden": 3}), recipe.weights())


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"hidden": 0}, "CFG_RANGE", "hidden"),
        ({"hot": 0.5}, "CFG_RANGE", "hot"),
        ({"region_fwhm_voxels": 0.0}, "CFG_RANGE", "region_fwhm_voxels"),
        ({"patch": (4, 128, 126)}, "CFG_PATCH_SIZE", "patch"),
    ],
)
def test_a_configuration_that_cannot_be_trained_is_refused(changes: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(InputError) as refusal:
        Config(**changes)
    assert (refusal.value.code, refusal.value.where) == (code, f"semipet.{field}")


def test_the_report_says_that_it_is_a_stand_in() -> None:
    (caveat,) = semipet.caveats(Config())
    assert caveat.startswith("SemiPET-like, not the original: a re-implementation")
