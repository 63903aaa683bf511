"""A system's tile as a module: it answers as the system does, and what has no such tile is refused."""

import pytest
import torch
from untrained_runs import restore_weights

from storage.errors import InputError
from storage.source import HU
from trainers import filter_bank
from trainers.engine import plain_engine
from trainers.graph import TileGraph, check_alone, example, windows_of
from trainers.recipe import Scan
from trainers.synthesize import InSuv
from trainers.systems import RECIPES


def in_suv(name: str, units: str = "SUVbw", **model: object) -> InSuv:
    config = RECIPES[name].Config(**model)
    recipe = RECIPES[name].build(config, make_engine=plain_engine, patches_per_step=2)
    return InSuv(recipe.synthesizer(), 2.0 if name == "unet_3d" else 1.0, units)


def test_gaussians_of_a_spacing_that_is_not_read_are_the_same() -> None:
    image = torch.rand(1, 1, 12, 14, 16, generator=torch.Generator().manual_seed(0))
    spacing_mm = torch.tensor([5.0, 4.07283, 3.0])
    expected = filter_bank.members(image, spacing_mm[None], (2, 3, 4))
    assert torch.equal(filter_bank.members_in_graph(image, spacing_mm, (2, 3, 4)), expected)


@pytest.mark.parametrize("drf", [2.0, 4.0, 9.0, 20.0, 50.0])
def test_a_tile_of_restore_is_that_of_the_system(drf: float) -> None:
    """At, between and beyond the doses of the bank."""
    config, weights = restore_weights(0)
    alone = InSuv(RECIPES["restore"].weights_to_synthesizer(config, weights), 1.0)
    windows = windows_of(alone, (4, 4, 8))
    window = example(alone, windows, torch.device("cpu"))[0]
    scan = Scan((5.0, 4.0, 4.0), drf, 1 / drf)
    expected = alone.for_scan(scan)(window, {"drf": torch.tensor(drf)})
    found = TileGraph(alone)(window, torch.tensor(scan.spacing_mm), torch.tensor(drf), torch.tensor(scan.shared))
    assert found.shape == (1, 1, 4, 4, 8)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - window[:, :, 28:-28, 28:-28, 28:-28]).abs().max() > 0.1


def test_tiles_that_share_what_the_whole_scan_tells_are_refused() -> None:
    shared = in_suv("unet_3d", channels=2, critic_channels=2, patch=(32, 32, 32), patches_per_case=2)
    with pytest.raises(InputError, match=r"^CKPT_GRAPH a card: a network whose tiles share statistics of \d+ patches"):
        check_alone(shared, "a card")
    check_alone(in_suv("restore"), "a card")  # whose dose is an input


def test_whole_slices_are_as_long_as_they_are_said_to_be() -> None:
    small = {"fcn_widths": (4, 4, 8, 8, 8), "fcn_fc": 8, "fcn_fc6_kernel": 3, "generator_width": 4, "blend_levels": 1}
    adversary = {"generator_downs": 3, "critic_width": 4, "critic_strides": (2, 1)}
    seen = in_suv("virtual_pet", HU, patch=(1, 64, 64), **small, **adversary)
    with pytest.raises(InputError, match="CFG_RANGE --tile: none are given, and this system sees whole slices"):
        windows_of(seen, None)
    depth = seen.tiling.multiple[0]
    found = windows_of(seen, (depth, 128, 64))
    assert (found.tile, found.whole) == ((depth, 128, 64), (False, True, True))
    with pytest.raises(InputError, match=r"CFG_RANGE --tile: .* a slice, to 64 voxels"):
        windows_of(seen, (depth, 100, 64))
