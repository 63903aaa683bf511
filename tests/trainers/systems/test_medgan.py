"""MedGAN: its counts, each loss by hand, who moves when, VGG16's losses and its file, and blended windows."""

import hashlib
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from network_facts import count, moved
from pairs import check_resumes, noisy, pair, train
from safetensors.torch import save_file
from torch import nn

from storage.errors import InputError
from trainers import perceptual
from trainers.assembly import Assembled
from trainers.engine import plain_engine
from trainers.systems import medgan
from trainers.systems.medgan import Config, Discriminator, casnet, gram, perceptual_loss, style_loss

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")
SMALL: dict[str, Any] = {
    "stages": 2,
    "width": 2,
    "downs": 3,
    "critic_width": 2,
    "lambda_style": 0.0,
    "lambda_content": 0.0,
    "patch": (1, 32, 32),
    "samples": 400,
}


def build(**changes: Any) -> Assembled:
    torch.manual_seed(0)
    return medgan.build(Config(**{**SMALL, **changes}), make_engine=plain_engine, patches_per_step=2)


@pytest.fixture
def small_vgg16(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """VGG16 with two channels, in place of the file's."""
    net = perceptual.VGG16(2).eval().requires_grad_(False)
    monkeypatch.setattr(perceptual, "read_vgg16", lambda file, sha256, remedy: net)
    return net


def test_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        assert count(casnet(Config())) == 6 * 54_407_809 == 326_446_854
        assert count(Discriminator(64)) == 135_489
        assert medgan.build(Config(), make_engine=plain_engine, patches_per_step=8).num_steps == 48_000


def test_d_shows_two_hidden_maps_and_its_logits_of_every_image() -> None:
    D = Discriminator(2)
    low, image, full = torch.rand(3, 2, 1, 32, 32)
    both, alone = D(low, image, full), D(low, image)
    assert [tuple(m.shape) for m in alone] == [(2, 2, 16, 16), (2, 4, 15, 15), (2, 1, 14, 14)]
    assert all(map(torch.equal, alone, both))
    assert torch.equal(D.layers(torch.cat([low, full], dim=1)), both[-1])


def test_the_perceptual_loss_by_hand() -> None:
    a, b = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0])
    assert perceptual_loss([a, b], [b, b]).item() == 1
    assert perceptual_loss([a, a], [b, b]).item() == 2


def test_the_style_loss_by_hand_and_it_knows_no_places() -> None:
    """Two channels on two pixels: V V^T is ((5, 2), (2, 1)) and ((1, 0), (0, 1)), over h w d = 4."""
    a, b = torch.tensor([[1.0, 2.0], [0.0, 1.0]]).view(1, 2, 1, 2), torch.eye(2).view(1, 2, 1, 2)
    torch.testing.assert_close(gram(a)[0], torch.tensor([[5.0, 2.0], [2.0, 1.0]]) / 4)
    squared = (4**2 + 2**2 + 2**2 + 0) / 16
    assert style_loss([a], [b]).item() == pytest.approx(squared / (4 * 2**2))
    assert style_loss([a, a], [b, b]).item() == pytest.approx(2 * squared / 16)
    assert style_loss([torch.cat([a, b])], [torch.cat([b, b])]).item() == pytest.approx(squared / 16 / 2)
    assert style_loss([a], [a.flip(3)]).item() == pytest.approx(0)


def test_the_losses_by_hand() -> None:
    """With weights of 0 the image is 0, and so are D's maps."""
    recipe = build()
    for engine in recipe.engines.values():
        for weight in engine.module.parameters():
            nn.init.zeros_(weight)
    full = torch.zeros(2, 1, 1, 32, 32)
    full[..., :8] = 2
    found = train(recipe, pair(torch.ones_like(full), full), 0, 3)
    assert found[0]["adversarial"] == pytest.approx(math.log(2))
    assert found[0]["perceptual"] == pytest.approx(0.5)
    assert found[0]["generator"] == pytest.approx(math.log(2) + 20 * 0.5)
    assert [metrics["discriminator"] for metrics in found] == [pytest.approx(math.log(2))] * 3, "D is still untrained"


def test_the_image_is_compared_in_d_and_d_is_updated_in_every_third_step() -> None:
    recipe, batch = build(), noisy((1, 32, 32))
    expected = [{"G"}, {"G"}, {"G", "D"}, {"G"}]
    for step, names in enumerate(expected):
        before = recipe.state()
        train(recipe, batch, step, step + 1)
        assert moved(before, recipe.state()) - {"progress"} >= names
        weights = {key for key in before["D"] if "running" not in key and "tracked" not in key}
        after = recipe.state()["D"]
        assert any(not torch.equal(before["D"][key], after[key]) for key in weights) == ("D" in names)


def test_vgg16_adds_style_and_content(small_vgg16: nn.Module) -> None:
    batch = noisy((1, 32, 32))
    (plain,) = train(build(), batch, 0, 1)
    recipe = build(lambda_style=3.0, lambda_content=2.0)
    (found,) = train(recipe, batch, 0, 1)
    assert found["style"] > 0
    assert found["content"] > 0
    assert found["generator"] == pytest.approx(plain["generator"] + 3 * found["style"] + 2 * found["content"], rel=1e-5)
    assert all(weight.grad is None for weight in small_vgg16.parameters())
    (content,) = train(build(lambda_content=2.0), batch, 0, 1)
    assert content["generator"] == pytest.approx(plain["generator"] + 2 * found["content"], rel=1e-5)
    image = torch.rand(2, 1, 32, 32, requires_grad=True)
    sum(medgan.vgg16_losses(small_vgg16, image, torch.rand(2, 1, 32, 32)).values(), torch.zeros(())).backward()
    assert image.grad is not None
    assert image.grad.any()


def test_a_file_of_vgg16_is_asked_for_with_this_systems_fields(tmp_path: Path) -> None:
    assert medgan.files(Config(**SMALL)) == {}
    with pytest.raises(InputError, match="CFG_BACKBONE") as refusal:
        medgan.files(Config())
    assert "recipe.lambda_style=0 recipe.lambda_content=0" in refusal.value.remedy
    other = tmp_path / "vgg16.pth"
    other.write_bytes(b"PK")
    with pytest.raises(InputError, match="a pickle") as refusal:
        medgan.files(Config(vgg16_file=str(other)))
    assert refusal.value.remedy == perceptual.CONVERT
    other = tmp_path / "another_network.safetensors"
    save_file({"features.0.weight": torch.zeros(2, 3, 3, 3)}, other)
    config = Config(vgg16_file=str(other), vgg16_sha256=hashlib.sha256(other.read_bytes()).hexdigest())
    for refuse in (medgan.files, partial(medgan.build, make_engine=plain_engine, patches_per_step=2)):
        with pytest.raises(InputError, match=r"no 'features\.0\.weight' of shape \(64, 3, 3, 3\)") as refusal:
            refuse(config)
        assert "recipe.lambda_style=0 recipe.lambda_content=0" in refusal.value.remedy


def test_it_overfits_two_slices() -> None:
    recipe, batch = build(stages=1, width=8, lr=5e-3), noisy((1, 32, 32))
    found = train(recipe, batch, 0, 40)
    assert found[-1]["perceptual"] < 0.4 * found[0]["perceptual"]


def test_a_resumed_run_is_bit_equal() -> None:
    check_resumes(build, noisy((1, 32, 32)), 2, 4)


def test_windows_are_blended_and_slices_apart() -> None:
    recipe = build()
    train(recipe, noisy((1, 32, 32)), 0, 1)
    synthesizer = recipe.synthesizer()
    assert (synthesizer.tiling.tile, synthesizer.tiling.overlap) == ((16, 32, 32), (0, 16, 16))
    low = torch.rand(1, 1, 3, 32, 32)
    whole = synthesizer(low, {})
    torch.testing.assert_close(synthesizer(low[:, :, 1:2], {}), whole[:, :, 1:2], rtol=1e-4, atol=1e-6)
    alone = medgan.weights_to_synthesizer(Config(**SMALL), recipe.weights())
    assert torch.equal(alone(low, {}), whole)
    with pytest.raises(InputError, match="CKPT_CONFIG weights of MedGAN"):
        medgan.weights_to_synthesizer(Config(**{**SMALL, "stages": 3}), recipe.weights())


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"stages": 11}, "CFG_RANGE", "stages"),
        ({"g_steps": 0}, "CFG_RANGE", "g_steps"),
        ({"lambda_style": -1.0}, "CFG_RANGE", "lambda_style"),
        ({"patch": (1, 256, 128)}, "CFG_PATCH_SIZE", "patch"),
        ({"patch": (1, 4, 4), "downs": 2}, "CFG_PATCH_SIZE", "patch"),
        ({"patch": (0, 256, 256)}, "CFG_PATCH_SIZE", "patch"),
    ],
)
def test_a_configuration_that_cannot_be_trained_is_refused(changes: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(InputError) as refusal:
        Config(**changes)
    assert (refusal.value.code, refusal.value.where) == (code, f"medgan.{field}")


def test_the_report_names_its_origin_and_its_losses() -> None:
    assert "re-implementation" in " ".join(medgan.caveats(Config()))
    assert "VGG-19" in " ".join(medgan.caveats(Config(vgg16_sha256="ab")))
    assert "losses: none" in " ".join(medgan.caveats(Config(**SMALL)))
