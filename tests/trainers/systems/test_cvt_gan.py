"""3D CVT-GAN: the count of every layer, attention by hand, losses, who moves when, rates, and blended windows."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from network_facts import count, moved
from pairs import check_resumes, noisy, pair, train
from torch import nn

from storage.errors import InputError
from trainers.assembly import Assembled
from trainers.engine import plain_engine
from trainers.systems import cvt_gan
from trainers.systems.cvt_gan import Attention, Block, Config, Discriminator, Generator, tokens, volume

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")
SMALL: dict[str, Any] = {
    "width": 2,
    "critic_width": 1,
    "patch": (16, 16, 16),
    "patches_per_case": 2,
    "samples": 400,
}


def build(**changes: Any) -> Assembled:
    torch.manual_seed(0)
    return cvt_gan.build(Config(**{**SMALL, **changes}), make_engine=plain_engine, patches_per_step=2)


def test_every_layer_has_the_number_of_parameters_of_the_authors_code() -> None:
    with torch.device("meta"):
        G, D = Generator(64), Discriminator(8)
        assert G(torch.zeros(1, 1, 64, 64, 64)).shape == (1, 1, 64, 64, 64)
        assert D(*torch.zeros(2, 1, 1, 64, 64, 64)).shape == (1, 64, 4, 4, 4)
        assert [count(Block(d, 2, 0)) for d in (4, 8)] == [12 * d * d + 97 * d for d in (4, 8)]
    assert [count(stage) for stage in G.encoder] == [1_920, 430_592, 2_508_032, 9_931_264]
    decoder = [7_079_424 + 262_656 + 2_671_872, 3_539_712 + 131_328 + 471_552, 885_120 + 32_896 + 65_600, 276_833]
    assert [count(stage) for stage in G.decoder] == decoder
    assert (count(G), count(D)) == (28_288_801, 294_872)


def test_voxels_become_a_row_and_a_map_again() -> None:
    x = torch.randn(2, 3, 2, 3, 4)
    assert tokens(x).shape == (2, 24, 3)
    assert torch.equal(tokens(x)[:, 4 * 3 + 2 * 4 + 1], x[:, :, 1, 2, 1])
    assert torch.equal(volume(tokens(x), x.shape[2:]), x)


def test_attention_against_its_formula() -> None:
    """Scores over the whole width's root, softmax over the keys of a head, keys and values at half the resolution."""
    attention, x = Attention(4, heads=2).eval(), torch.randn(1, 4, 2, 4, 2)
    q, k, v = (linear(tokens(conv(x)))[0] for conv, linear in zip(attention.project, attention.linear, strict=True))
    assert (len(q), len(k), len(v)) == (16, 2, 2)
    heads = []
    for head in (slice(0, 2), slice(2, 4)):
        scores = q[:, head] @ k[:, head].T / math.sqrt(4)
        heads.append(scores.softmax(1) @ v[:, head])
    torch.testing.assert_close(attention(x)[0], attention.out(torch.cat(heads, dim=1)))


def test_an_image_starts_from_its_input() -> None:
    network = Generator(2)
    for weight in network.decoder[-1].parameters():
        nn.init.zeros_(weight)
    low = torch.rand(2, 1, 16, 16, 16)
    assert torch.equal(network(low), low)


def test_the_losses_by_hand() -> None:
    """With all weights 0, G returns its input and D's logits are 0."""
    recipe = build()
    for engine in recipe.engines.values():
        for weight in engine.module.parameters():
            nn.init.zeros_(weight)
    full = torch.zeros(2, 1, 16, 16, 16)
    full[:, :, :4] = 2
    (found,) = train(recipe, pair(torch.zeros_like(full), full), 0, 1)
    assert found["discriminator"] == pytest.approx(math.log(2))
    assert found["l1"] == pytest.approx(0.5)
    assert found["adversarial"] == pytest.approx(math.log(2), abs=1e-2)  # D has just made one small step
    assert found["generator"] == pytest.approx(found["adversarial"] + 100 * 0.5, rel=1e-5)


def test_d_and_g_move_at_rates_that_fall_twice() -> None:
    recipe, batch = build(samples=14, critic_lr=1e-5), noisy((16, 16, 16))
    before = recipe.state()
    rates = []
    for step in range(7):
        train(recipe, batch, step, step + 1)
        engines: list[Any] = [recipe.engines[name] for name in "GD"]
        rates.append([engine.optimizer.param_groups[0]["lr"] for engine in engines])
    assert moved(before, recipe.state()) - {"progress"} == {"G", "D"}
    factors = [1.0] * 5 + [0.4, 0.16]
    assert rates == [[pytest.approx(2e-4 * factor), pytest.approx(1e-5 * factor)] for factor in factors]


def test_it_overfits_two_cases() -> None:
    """Full doses of twice the uptake: to return the input would not do."""
    recipe, batch = build(width=4, lr=1e-2), noisy((16, 16, 16))
    l1 = [found["l1"] for found in train(recipe, replace(batch, target=2 * batch.target), 0, 22)]
    assert l1[-1] < 0.5 * l1[0]


def test_a_resumed_run_is_bit_equal() -> None:
    check_resumes(build, noisy((16, 16, 16)), 1, 3)


def test_windows_are_blended_and_weights_come_back() -> None:
    recipe = build()
    train(recipe, noisy((16, 16, 16)), 0, 1)
    synthesizer = recipe.synthesizer()
    assert (synthesizer.tiling.tile, synthesizer.tiling.overlap) == ((16, 16, 16), (8, 8, 8))
    low = torch.rand(2, 1, 16, 16, 16)
    torch.testing.assert_close(synthesizer(low[:1], {}), synthesizer(low, {})[:1], rtol=1e-4, atol=1e-6)
    alone = cvt_gan.weights_to_synthesizer(Config(**SMALL), recipe.weights())
    assert torch.equal(alone(low, {}), synthesizer(low, {}))
    with pytest.raises(InputError, match="CKPT_CONFIG weights of 3D CVT-GAN"):
        cvt_gan.weights_to_synthesizer(Config(**{**SMALL, "width": 4}), recipe.weights())


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"width": 3}, "CFG_RANGE", "width"),
        ({"critic_lr": 0.0}, "CFG_RANGE", "critic_lr"),
        ({"patch": (64, 64, 24)}, "CFG_PATCH_SIZE", "patch"),
        ({"patch": (0, 64, 64)}, "CFG_PATCH_SIZE", "patch"),
        ({"patch": (32, 32, 16)}, "CFG_RANGE", "patches_per_case"),
    ],
)
def test_a_configuration_that_cannot_be_trained_is_refused(changes: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(InputError) as refusal:
        Config(**changes)
    assert (refusal.value.code, refusal.value.where) == (code, f"cvt_gan.{field}")
    Config(patch=(48, 16, 16))


def test_the_report_names_its_origin() -> None:
    assert "re-implementation" in " ".join(cvt_gan.caveats(Config()))
