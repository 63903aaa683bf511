"""3D-UNet as SGSGAN's tables compare with it: the published count, its losses, who moves when, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from network_facts import count, moved
from pairs import check_resumes, noisy, train

from storage.errors import InputError
from trainers.engine import plain_engine
from trainers.recipe import Batch
from trainers.systems import sgsgan, unet_3d
from trainers.systems.unet_3d import Config, published

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")
SMALL: dict[str, Any] = {
    "channels": 2,
    "critic_channels": 2,
    "patch": (32, 32, 32),
    "patches_per_case": 2,
    "context_patches": 2,
    "samples": 8,
}


def build(**changes: Any) -> sgsgan.SGSGAN:
    torch.manual_seed(0)
    return unet_3d.build(Config(**{**SMALL, **changes}), make_engine=plain_engine, patches_per_step=2)


def images() -> Batch:
    """Two patches of one case: the deepest norm sees a voxel of each."""
    return replace(noisy((32, 32, 32)), cases=1)


def test_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        recipe = unet_3d.build(Config(), make_engine=plain_engine, patches_per_step=4)
    assert count(recipe.G.module) == 49_395_937
    assert recipe.phase_starts == {"gan": 0}, "no organ guides it"
    assert recipe.num_steps == 60_000
    config = published(Config())
    assert (config.use_noise, config.use_adain, config.rois) == (False, False, ())


def test_its_fields_are_sgsgans_with_the_same_defaults() -> None:
    renamed = {"channels": "unet_channels", "samples": "phase_samples"}
    ours, theirs = Config(), sgsgan.Config(synthesis="unet3d")
    for name, value in vars(ours).items():
        assert getattr(theirs, renamed.get(name, name)) in (value, (value, *theirs.phase_samples[1:])), name


def test_d_and_g_move_and_the_total_is_wgan_and_l1() -> None:
    recipe, batch = build(), images()
    before = recipe.state()
    (found,) = train(recipe, batch, 0, 1)
    assert moved(before, recipe.state()) == {"G", "D"}
    assert found["generator"] == pytest.approx(found["adversarial"] + 100 * found["content"], rel=1e-5)
    assert max(float(weight.abs().max()) for weight in recipe.D.module.state_dict().values()) <= 0.01 + 1e-7


def test_content_is_l1_by_hand() -> None:
    recipe, batch = build(), images()
    with torch.no_grad():
        image = recipe.G.module(batch.source, batch.overview, cases=1)
    (found,) = train(recipe, batch, 0, 1)
    assert found["content"] == pytest.approx(float((image - batch.target).abs().mean()), rel=1e-4)


def test_it_overfits_two_cases() -> None:
    recipe, batch = build(lr=3e-3, clip=1e-4, samples=40), images()
    content = [found["content"] for found in train(recipe, batch, 0, 14)]
    assert content[-1] < 0.3 * content[0]


def test_a_resumed_run_is_bit_equal() -> None:
    check_resumes(build, images(), 1, 2)


def test_windows_are_blended_and_share_the_statistics_of_a_case() -> None:
    synthesizer = build().synthesizer()
    assert synthesizer.tiling.overlap == (16, 16, 16)
    low = images().source
    context = synthesizer.context(torch.zeros(1, 1, 0, 0, 0), low)
    both, alone = synthesizer(low, context), synthesizer(low[:1], context)
    assert (both[:1] - alone).abs().mean() < 1e-3 * alone.std()  # the deepest norms enlarge rounding
    other = synthesizer(low[:1], synthesizer.context(torch.zeros(1, 1, 0, 0, 0), low[:1]))
    assert (other - alone).abs().mean() > 1e-2 * alone.std()


def test_a_volume_smaller_than_a_window_is_filled_up_with_air() -> None:
    """The network takes multiples of 32 voxels alone; what is drawn of a smaller volume is as large as the volume."""
    synthesizer, nothing = build().synthesizer(), torch.zeros(1, 1, 0, 0, 0)
    small, whole = torch.rand(1, 1, 24, 30, 32), torch.zeros(1, 1, 32, 32, 32)
    whole[:, :, :24, :30] = small
    found, expected = synthesizer.context(nothing, small), synthesizer.context(nothing, whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"channels": 0}, "CFG_RANGE", "channels"),
        ({"content": "l3"}, "CFG_CHOICE", "content"),
        ({"patch": (48, 32, 32)}, "CFG_PATCH_SIZE", "patch"),
        ({"patch": (0, 32, 32)}, "CFG_PATCH_SIZE", "patch"),
        ({"patch": (32, 32, 32), "patches_per_case": 1}, "CFG_RANGE", "patches_per_case"),
    ],
)
def test_a_configuration_that_cannot_be_trained_is_refused(changes: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(InputError) as refusal:
        Config(**changes)
    assert (refusal.value.code, refusal.value.where) == (code, f"unet_3d.{field}")
    Config(patch=(32, 32, 64), patches_per_case=1)


def test_the_report_names_its_origin() -> None:
    assert "re-implementation" in " ".join(unet_3d.caveats(Config()))
