"""DSG-GAN after its abstract: counts, skips and D by hand, who moves when, resume, whole volumes, configuration."""

from typing import Any

import pytest
import torch
from network_facts import count, moved
from pairs import check_resumes, pair
from torch import Tensor

from storage.errors import InputError
from storage.source import HU
from trainers.assembly import Assembled
from trainers.engine import plain_engine
from trainers.feed_config import FeedConfig
from trainers.losses import ssim
from trainers.recipe import Batch
from trainers.systems import dsg_gan
from trainers.systems.dsg_gan import Config, DeepSkip, Discriminator, Stage

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")
SMALL: dict[str, Any] = {
    "width": 2,
    "downs": 3,
    "critic_width": 2,
    "patch": (1, 32, 32),
    "structure_samples": 4,
    "texture_samples": 4,
}


def small(**changes: Any) -> Config:
    return Config(**{**SMALL, **changes})


def build(**changes: Any) -> Assembled:
    torch.manual_seed(0)
    return dsg_gan.build(small(**changes), make_engine=plain_engine, patches_per_step=2)


def batch() -> Batch:
    """Two slices whose uptake follows their density."""
    share = torch.rand(2, 1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    share[..., 8:20, 10:24] *= 0.2
    return pair(1400 * share - 1000, 10 * share**2)


def test_the_numbers_of_parameters() -> None:
    with torch.device("meta"):
        widths = (64, 128, 256, 512, 512, 512, 512, 512)
        skips = 0
        for level, own in enumerate(widths[:-1]):
            skips += sum(deeper * own + own for deeper in widths[level + 1 :])  # projections
            skips += len(widths[level:]) * own**2 + own  # the mixture
            skips += own**2 + own + own + 1  # gates of channels and of pixels
        assert count(Stage(Config(), 1)) == 54_407_809 + skips == 63_593_864
        assert count(Stage(Config(), 2)) == 63_593_864 + 64 * 16
        local = 16 * (2 * 64 + 64 * 128) + 64 + 2 * 128
        context = 16 * (2 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + 64 + 2 * (128 + 256 + 512)
        assert count(Discriminator(64)) == local + context + 16 * (128 + 512) + 1 == 2_900_097


def test_a_skip_selects_from_its_own_map_and_all_deeper_ones() -> None:
    skip = DeepSkip((2, 4, 4))
    maps = [torch.randn(1, c, n, n, requires_grad=True) for c, n in ((2, 8), (4, 4), (4, 2))]
    skip(*maps).square().sum().backward()
    assert all(m.grad is not None and m.grad.any() for m in maps)
    with torch.no_grad():  # closed gates let nothing pass, open ones all of the mixture
        skip.mix.weight.zero_()
        skip.mix.weight[0, 0] = skip.mix.weight[1, 1] = 1.0
        for gate in (skip.channels, skip.places):
            gate.weight.zero_()
            assert gate.bias is not None
            gate.bias.fill_(50.0)
        assert skip.mix.bias is not None
        skip.mix.bias.zero_()
        torch.testing.assert_close(skip(*maps), maps[0])
        assert skip.places.bias is not None
        skip.places.bias.fill_(-200.0)
        assert not skip(*maps).any()


def test_d_scores_a_window_beside_its_surroundings() -> None:
    D = Discriminator(2).eval()
    ct = torch.zeros(1, 1, 64, 64)
    image = torch.randn(1, 1, 64, 64, requires_grad=True)
    hidden, logits = D(ct, image)
    assert hidden.shape[1] == 4 + 16
    assert logits.shape[2:] == (30, 30)
    logits[0, 0, 15, 15].backward()
    assert image.grad is not None
    seen = image.grad[0, 0].abs().sum(0).nonzero()[:, 0]
    assert int(seen.max() - seen.min()) + 1 > 16  # more than a window
    with torch.no_grad():
        both = D(ct, image, -image)
    assert torch.equal(both[1], logits)
    assert len(both) == 4


def test_structure_is_mse_and_ssim() -> None:
    image, target = (2 * torch.rand(2, 1, 16, 16) - 1 for _ in range(2))
    found = dsg_gan.structure_losses(Config(lambda_mse=3.0, lambda_ssim=2.0), image, target)
    expected = 3 * (image - target).square().mean() + 2 * (1 - ssim((image + 1) / 2, (target + 1) / 2))
    torch.testing.assert_close(found["generator"], expected)


def test_structure_is_learnt_first_and_then_fixed() -> None:
    recipe = build()
    assert recipe.phase_starts == {"structure": 0, "texture": 2}
    assert recipe.num_steps == 4
    for step, expected in ((0, {"G1"}), (2, {"G2", "D"})):
        before = dict(recipe.state())
        metrics = recipe.step(batch(), step)
        assert moved(before, recipe.state()) - {"progress"} == expected
        assert all(value.isfinite() and not value.requires_grad for value in metrics.values())
    spec = recipe.batch_spec(0)
    assert (spec.patch, spec.units, spec.beyond) == ((1, 32, 32), HU, True)


def test_training_learns_the_structure() -> None:
    recipe = build(width=8, structure_samples=120, lr=2e-3)
    first, *_, last = (float(recipe.step(batch(), step)["mse"]) for step in range(60))
    assert last < 0.2 * first


def test_a_resumed_run_is_bit_equal() -> None:
    check_resumes(build, batch(), 1, 4)
    check_resumes(build, batch(), 3, 4)


def test_the_image_is_that_of_the_last_stage_begun() -> None:
    recipe = build()
    source: Tensor = 1400 * torch.rand(1, 1, 3, 32, 32) - 1000
    recipe.step(batch(), 0)
    assert {name.split(".")[0] for name in recipe.weights()} == {"G1"}
    alone = recipe.synthesizer()(source, {})
    recipe.step(batch(), 2)
    found = recipe.synthesizer()(source, {})
    assert found.shape == source.shape
    assert found.min() >= 0
    assert found.max() <= 20
    assert not torch.equal(found, alone)
    theirs = dsg_gan.weights_to_synthesizer(small(), recipe.weights())
    assert torch.equal(theirs(source, {}), found)
    with pytest.raises(InputError, match="CKPT_CONFIG"):
        dsg_gan.weights_to_synthesizer(small(width=4), recipe.weights())


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"patch": (1, 16, 32)}, "CFG_PATCH_SIZE", "patch"),
        ({"patch": (0, 32, 32)}, "CFG_PATCH_SIZE", "patch"),
        ({"ct_window": (400.0, -1000.0)}, "CFG_RANGE", "ct_window"),
        ({"lambda_mse": 0.0, "lambda_ssim": 0.0}, "CFG_RANGE", "lambda_mse"),
        ({"lambda_adversarial": 0.0}, "CFG_RANGE", "lambda_adversarial"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(changes: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(InputError) as error:
        small(**changes)
    assert (error.value.code, error.value.where) == (code, f"dsg_gan.{field}")
    assert "\n" not in str(error.value)


def test_what_is_said_and_refused() -> None:
    assert "after its abstract" in " ".join(dsg_gan.caveats(Config()))
    dsg_gan.check(Config(), dsg_gan.FEED, {})
    with pytest.raises(InputError, match=r"CFG_SCALE feed\.suv_scale"):
        dsg_gan.check(Config(), FeedConfig(source=("ct",), suv_scale=5.0), {})
