"""A system's tile as a module: it answers as the system does, and what has no such tile is refused."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from untrained_runs import restore_weights

from storage.errors import InputError
from storage.source import HU
from trainers import filter_bank
from trainers.dose_gaussian import Widths
from trainers.engine import plain_engine
from trainers.graph import ContextGraph, TileGraph, check_graphed, example, example_of_scan, shared_of, windows_of
from trainers.recipe import BatchSpec, Scan, Tiling
from trainers.synthesize import InSuv
from trainers.systems import RECIPES
from trainers.systems.sgsgan import StyleSynthesizer


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
    window = example(alone, windows, ())["window"]
    scan = Scan((5.0, 4.0, 4.0), drf, 1 / drf)
    expected = alone.for_scan(scan)(window, {"drf": torch.tensor(drf)})
    found = TileGraph(alone, None)(window, torch.tensor(scan.spacing_mm), torch.tensor(drf), torch.tensor(scan.shared))
    assert found.shape == (1, 1, 4, 4, 8)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - window[:, :, 28:-28, 28:-28, 28:-28]).abs().max() > 0.1


def test_a_context_of_patches_and_its_tile_are_those_of_the_system() -> None:
    """Of a run whose unit is 2 SUV."""
    of_scan = in_suv(
        "unet_3d", channels=2, critic_channels=2, patch=(32, 32, 32), patches_per_case=2, context_patches=3
    )
    shared = shared_of(of_scan)
    assert shared is not None
    assert (shared.patch, shared.short, shared.overview, len(shared.centres)) == ((32, 32, 32), "filled", 0, 3)
    patches = example_of_scan(of_scan, shared)["patches"]
    expected = of_scan.context(torch.zeros(1, 1, 1, 1, 1), patches)
    line = ContextGraph(of_scan, shared)(patches)
    assert line.shape == (shared.size,)
    found = shared.parted(line)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    window = example(of_scan, windows_of(of_scan, None), ())["window"]
    graph = TileGraph(of_scan, shared)
    assert graph.inputs == ("window", "context_out")
    torch.testing.assert_close(graph(window, line), of_scan(window, expected))


@pytest.mark.parametrize("drf", [math.nan, 2.0, 4.0, 9.0, 20.0, 50.0])
@pytest.mark.parametrize("fitted", [(4.0, 20.0, math.nan), (4.0, 20.0), (10.0,), (math.nan,)])
def test_the_gaussian_of_a_dose_that_is_not_read_is_the_same(drf: float, fitted: tuple[float, ...]) -> None:
    """At, between and beyond the doses of the training, and where one is not known."""
    widths = Widths(torch.tensor(fitted), torch.tensor([12.0, 6.0, 9.0][: len(fitted)]))
    image = torch.rand(2, 1, 18, 19, 20, generator=torch.Generator().manual_seed(0))
    for halo in (4, 7):  # shorter than what a Gaussian has at least, and longer
        expected = widths.smooth_scan(image, Scan((5.0, 4.0, 3.0), drf, 0.0), halo)
        found = widths.graphed()(image, halo, torch.tensor([5.0, 4.0, 3.0]), torch.tensor(drf))
        torch.testing.assert_close(found, expected)


@dataclass(frozen=True)
class OfOnesOwn:
    """A system of one's own whose tiles share a context."""

    context_batch: BatchSpec
    tiling: Tiling

    def context(self, overview: Tensor, source: Tensor, /) -> dict[str, Tensor]:
        return {"mean": source.mean()}

    def __call__(self, source: Tensor, context: Mapping[str, Tensor], /) -> Tensor:
        return source - context["mean"]


def test_a_context_that_is_not_offered_as_a_graph_is_refused() -> None:
    spec = BatchSpec((8, 8, 8), (0, 0, 0), 3, {"body": 1.0})
    with pytest.raises(
        InputError, match=r"^CKPT_GRAPH a card: a network whose tiles share what 3 patches of the whole"
    ):
        check_graphed(InSuv(OfOnesOwn(spec, Tiling((8, 8, 8), (0, 0, 0))), 1.0), "a card")
    check_graphed(in_suv("restore"), "a card")  # whose dose is an input
    unet = in_suv("unet_3d", channels=2, critic_channels=2, patch=(32, 32, 32), patches_per_case=2)
    check_graphed(unet, "a card")
    with pytest.raises(InputError, match=r"^CKPT_GRAPH a card: .* what patches of a body tell that a CT outlines"):
        check_graphed(replace(unet, units=HU), "a card")
    assert isinstance(unet.inner, StyleSynthesizer)
    lesions = replace(spec, sampler={"lesion": 1.0})
    with pytest.raises(InputError, match=r"^CKPT_GRAPH a card: .* that are not drawn from the body alone"):
        check_graphed(replace(unet, inner=replace(unet.inner, context_batch=lesions)), "a card")


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
