"""AR-GAN: its counts, its losses and spectrum by hand, who learns from what, and windows that are blended."""

import math
from typing import Any

import pytest
import torch
from network_facts import count, moved
from pairs import check_resumes, noisy, pair, train
from torch import Tensor, nn

from storage.errors import InputError
from trainers.assembly import Assembled, as_slices
from trainers.engine import plain_engine
from trainers.systems import ar_gan
from trainers.systems.ar_gan import ARNet, Config, Generator, spectrum, spectrum_loss

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")
SMALL: dict[str, Any] = {
    "width": 2,
    "downs": 3,
    "rectifier_width": 2,
    "critic_width": 2,
    "patch": (1, 32, 32),
    "patches_per_case": 1,
    "samples": 400,
}


def build(**changes: Any) -> Assembled:
    torch.manual_seed(0)
    return ar_gan.build(Config(**{**SMALL, **changes}), make_engine=plain_engine, patches_per_step=2)


def generator(recipe: Assembled) -> Generator:
    network = recipe.engines["G"].module
    assert isinstance(network, Generator)
    return network


def test_numbers_of_parameters() -> None:
    with torch.device("meta"):
        recipe = ar_gan.build(Config(), make_engine=plain_engine, patches_per_step=32)
        assert count(generator(recipe).preliminary) == 41_822_849
        assert (count(ARNet(64)), count(ARNet(16))) == (3_429_633, 215_361)
        assert count(recipe.engines["D"].module) == 2_764_609
        image, residual = generator(recipe)(torch.zeros(1, 1, 128, 128))
    assert image.shape == residual.shape == (1, 1, 128, 128)
    assert recipe.num_steps == 12_000


def test_what_is_added_is_a_part_of_the_difference_that_is_seen() -> None:
    network, difference = ARNet(2).eval(), torch.randn(2, 1, 16, 24)
    added = network(difference)
    assert (added.abs() <= difference.abs()).all()
    assert not network(torch.zeros(1, 1, 16, 16)).any()


def wave(radius: int, level: float, height: float) -> Tensor:
    """A level and a cosine along x with ``radius`` periods in 32 pixels."""
    x = torch.arange(32) * (2 * math.pi * radius / 32)
    return (level + height * x.cos()).expand(1, 1, 32, 32)


@pytest.mark.parametrize("radius", [1, 5, 12])
def test_a_wave_has_the_power_of_its_radius(radius: int) -> None:
    """Two of the pixels of its ring hold (height / 2)^2 each, beside level^2 at frequency 0."""
    found = spectrum(wave(radius, 2, 1))
    y, x = torch.meshgrid(torch.fft.fftfreq(32) * 32, torch.fft.fftfreq(32) * 32, indexing="ij")
    ring = int(((y**2 + x**2).sqrt().round() == radius).sum())
    expected = torch.zeros(1, 15)
    expected[0, radius - 1] = 2 * 0.25 / 4 / ring
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert torch.allclose(spectrum(7 * wave(radius, 2, 1)), found, atol=1e-7), "no scale"


def test_the_spectrums_loss_by_hand() -> None:
    p, t = (float(spectrum(wave(1, 2, height))[0, 0]) for height in (2, 1))
    expected = -(t * math.log(p) + (1 - t) * math.log(1 - p)) / 15  # the other radii hold nothing in either
    assert float(spectrum_loss(wave(1, 2, 2), wave(1, 2, 1))) == pytest.approx(expected, rel=1e-3)
    best = spectrum_loss(wave(1, 2, 1), wave(1, 2, 1))
    assert best < spectrum_loss(wave(1, 2, 1.1), wave(1, 2, 1))
    assert best < spectrum_loss(wave(1, 2, 0.9), wave(1, 2, 1))


def test_images_of_air_or_below_zero_have_a_spectrum() -> None:
    for image in (torch.zeros(1, 1, 32, 32), wave(3, 0, 1), -wave(3, 1, 5)):
        image = image.clone().requires_grad_()
        loss = spectrum_loss(image, wave(1, 2, 1))
        loss.backward()
        assert loss.isfinite()
        assert image.grad is not None
        assert image.grad.isfinite().all()


def test_the_losses_by_hand() -> None:
    """With weights of 0 both images are 0 and D scores 0."""
    recipe = build()
    for engine in recipe.engines.values():
        for weight in engine.module.parameters():
            nn.init.zeros_(weight)
    full = torch.zeros(2, 1, 1, 32, 32)
    full[..., :16] = 0.5
    (found,) = train(recipe, pair(torch.zeros_like(full), full), 0, 1)
    assert found["discriminator"] == pytest.approx((1 + 0) / 2)
    assert (found["l1"], found["residual"]) == (pytest.approx(0.25), pytest.approx(0.25))
    assert found["adversarial"] == pytest.approx(1, abs=1e-2)  # D has just made one small step
    total = found["adversarial"] + 100 * 0.25 + 10 * 0.25 + 10 * found["spectrum"]
    assert found["generator"] == pytest.approx(total, rel=1e-5)


def test_d_and_both_networks_move_and_prenet_learns_nothing_from_what_is_added() -> None:
    recipe, batch = build(), noisy((1, 32, 32))
    before = recipe.state()
    train(recipe, batch, 0, 1)
    assert moved(before, recipe.state()) - {"progress"} == {"G", "D"}
    network = generator(build())
    _, residual = network(as_slices(batch.source))
    residual.sum().backward()
    assert all(weight.grad is None for weight in network.preliminary.parameters())
    assert all(weight.grad is not None for weight in network.rectify.parameters())


def test_it_overfits_two_slices() -> None:
    recipe, batch = build(width=4, lr=5e-3), noisy((1, 32, 32))
    found = train(recipe, batch, 0, 40)
    assert found[-1]["l1"] < 0.2 * found[0]["l1"]
    assert found[-1]["spectrum"] < found[0]["spectrum"]


def test_a_resumed_run_is_bit_equal() -> None:
    check_resumes(build, noisy((1, 32, 32)), 1, 3)


def test_windows_are_blended_and_slices_apart() -> None:
    recipe = build()
    train(recipe, noisy((1, 32, 32)), 0, 1)
    synthesizer = recipe.synthesizer()
    assert (synthesizer.tiling.tile, synthesizer.tiling.overlap) == ((16, 32, 32), (0, 16, 16))
    low = torch.rand(1, 1, 3, 32, 32)
    whole = synthesizer(low, {})
    torch.testing.assert_close(synthesizer(low[:, :, 1:2], {}), whole[:, :, 1:2], rtol=1e-4, atol=1e-6)
    alone = ar_gan.weights_to_synthesizer(Config(**SMALL), recipe.weights())
    assert torch.equal(alone(low, {}), whole)
    with pytest.raises(InputError, match="CKPT_CONFIG weights of AR-GAN"):
        ar_gan.weights_to_synthesizer(Config(**{**SMALL, "rectifier_width": 3}), recipe.weights())


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"lambda_spectrum": -1.0}, "CFG_RANGE", "lambda_spectrum"),
        ({"downs": 1}, "CFG_RANGE", "downs"),
        ({"patch": (1, 128, 64)}, "CFG_PATCH_SIZE", "patch"),
        ({"patch": (1, 16, 16), "downs": 4}, "CFG_PATCH_SIZE", "patch"),
        ({"patch": (0, 128, 128)}, "CFG_PATCH_SIZE", "patch"),
    ],
)
def test_a_configuration_that_cannot_be_trained_is_refused(changes: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(InputError) as refusal:
        Config(**changes)
    assert (refusal.value.code, refusal.value.where) == (code, f"ar_gan.{field}")


def test_the_report_names_its_origin() -> None:
    assert "re-implementation" in " ".join(ar_gan.caveats(Config()))
