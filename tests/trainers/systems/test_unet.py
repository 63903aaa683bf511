"""The plain residual U-Net: where it starts, its loss, its learning, and tiles that equal the whole."""

from typing import Any

import pytest
import torch
from network_facts import count
from pairs import check_resumes, check_tiles_equal_the_whole, noisy, pair, train
from torch import nn

from storage.errors import InputError
from trainers.assembly import Supervised, windows
from trainers.engine import plain_engine
from trainers.systems import unet
from trainers.systems.unet import TILING, Config, UNet

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")
SMALL: dict[str, Any] = {"channels": (4, 4), "patch": (8, 16, 16), "margin": (4, 4, 4), "samples": 400}


def build(**changes: Any) -> Supervised:
    torch.manual_seed(0)
    return unet.build(Config(**{**SMALL, **changes}), make_engine=plain_engine, patches_per_step=2)


def test_its_number_of_parameters() -> None:
    layers = (8, 32), (32, 32), (32, 48), (48, 48), (80, 32), (32, 8)  # 27 weights each, and a bias per output
    assert count(UNet(Config().channels)) == sum(27 * a * b + b for a, b in layers) == 214_472


@pytest.mark.parametrize(("loss", "expected"), [("l1", (2 + 0 + 1) / 3), ("mse", (4 + 0 + 1) / 3)])
def test_the_loss_by_hand(loss: str, expected: float) -> None:
    """Untrained, the image is the low dose; what lies in the margin counts nothing."""
    recipe = build(loss=loss, patch=(12, 8, 8), margin=(4, 0, 0))
    low, full = torch.ones(1, 1, 20, 8, 8), torch.ones(1, 1, 12, 8, 8)
    low[:, :, :4] = 7
    low[:, :, 12:16] = 2
    full[:, :, :4] = 3
    assert train(recipe, pair(low, full), 0, 1) == [{"loss": pytest.approx(expected)}]


def test_it_starts_at_its_input_and_overfits_two_cases() -> None:
    recipe, given = build(channels=(8, 8), lr=3e-3), noisy((8, 16, 16), margin=(4, 4, 4))
    inside = given.source[:, :, 4:-4, 4:-4, 4:-4]
    losses = [found["loss"] for found in train(recipe, given, 0, 120)]
    assert losses[0] == pytest.approx(float((inside - given.target).abs().mean()))
    assert losses[-1] < 0.5 * losses[0]


def test_a_resumed_run_is_bit_equal() -> None:
    check_resumes(build, noisy((8, 16, 16), margin=(4, 4, 4)), 2, 4)


def test_tiles_equal_the_whole() -> None:
    network = UNet((2, 3))
    nn.init.normal_(network.correction.out.weight)
    synthesizer = windows(network.double(), TILING)
    low = torch.rand(1, 1, 48 + 16, 48 + 8, 48 + 8, dtype=torch.float64)
    check_tiles_equal_the_whole(synthesizer, low, (8, 4, 8))


def test_exported_weights_synthesize_what_the_recipe_does() -> None:
    recipe = build()
    train(recipe, noisy((8, 16, 16), margin=(4, 4, 4)), 0, 1)
    alone = unet.weights_to_synthesizer(Config(**SMALL), recipe.weights())
    low = torch.rand(1, 1, 56, 56, 52)
    assert torch.equal(alone(low, {}), recipe.synthesizer()(low, {}))
    with pytest.raises(InputError, match="CKPT_CONFIG weights of the U-Net"):
        unet.weights_to_synthesizer(Config(channels=(4, 5)), recipe.weights())


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"channels": (0, 4)}, "CFG_RANGE", "channels"),
        ({"lr": 0.0}, "CFG_RANGE", "lr"),
        ({"loss": "l2"}, "CFG_CHOICE", "loss"),
        ({"patch": (8, 8, 10)}, "CFG_PATCH_SIZE", "patch"),
        ({"patch": (0, 8, 8)}, "CFG_PATCH_SIZE", "patch"),
        ({"margin": (2, 0, 0)}, "CFG_RANGE", "margin"),
        ({"margin": (-4, 0, 0)}, "CFG_RANGE", "margin"),
    ],
)
def test_a_configuration_that_cannot_be_trained_is_refused(changes: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(InputError) as refusal:
        Config(**changes)
    assert (refusal.value.code, refusal.value.where) == (code, f"unet.{field}")


def test_the_report_says_that_it_is_no_published_system() -> None:
    assert "no published system" in " ".join(unet.caveats(Config()))
