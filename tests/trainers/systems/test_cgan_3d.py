"""3D-cGAN: the published count, its losses by hand, stages that move alone, and windows that are blended."""

import math
from typing import Any

import pytest
import torch
from network_facts import count, moved
from pairs import check_resumes, noisy, pair, train
from torch import nn

from storage.errors import InputError
from trainers.assembly import Assembled
from trainers.engine import plain_engine
from trainers.systems import cgan_3d
from trainers.systems.cgan_3d import Config, Discriminator, generator

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")
SMALL: dict[str, Any] = {
    "width": 2,
    "downs": 3,
    "critic_width": 2,
    "patch": (16, 16, 16),
    "patches_per_case": 2,
    "samples": 8,
}


def build(**changes: Any) -> Assembled:
    torch.manual_seed(0)
    return cgan_3d.build(Config(**{**SMALL, **changes}), make_engine=plain_engine, patches_per_step=2)


def test_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        assert count(generator(Config())) == 53_619_329  # 53.62 M in SGSGAN's Table I
        layers = 2 * 64 + 64 * 128 + 128 * 256 + 256 * 512  # kernels of 64 taps, one bias, three norms, a linear layer
        assert count(Discriminator(Config())) == 64 * layers + 64 + 2 * (128 + 256 + 512) + 512 * 64 + 1
        steps = cgan_3d.build(Config(), make_engine=plain_engine, patches_per_step=4).phase_starts
    assert steps == {"1": 0, "2": 100_000}


def test_the_losses_by_hand() -> None:
    """With weights of 0, G makes its last bias and D scores 0 whatever it sees: a cross-entropy of log 2."""
    recipe = build(lambda_l1=300)
    for name in ("G1", "D1"):
        for weight in recipe.engines[name].module.parameters():
            nn.init.zeros_(weight)
    full = torch.zeros(2, 1, 16, 16, 16)
    full[:, :, :8] = 0.5
    (found,) = train(recipe, pair(torch.ones_like(full), full), 0, 1)
    assert found["discriminator"] == pytest.approx(math.log(2))
    assert found["l1"] == pytest.approx(0.25)
    # D has just learnt from its first step, and by Adam's rate alone
    assert found["adversarial"] == pytest.approx(math.log(2), abs=1e-3)
    assert found["generator"] == pytest.approx(found["adversarial"] + 300 * 0.25, rel=1e-5)


def test_a_stage_moves_its_own_networks_alone_and_learns_from_the_image_before() -> None:
    recipe, batch = build(), noisy((16, 16, 16))
    assert recipe.phase_starts == {"1": 0, "2": 4}
    for step, names in ((0, {"G1", "D1"}), (4, {"G2", "D2"})):
        before = recipe.state()
        train(recipe, batch, step, step + 1)
        assert moved(before, recipe.state()) - {"progress"} == names
    first = recipe.engines["G1"].module.eval()
    refined = recipe.synthesizer()(batch.source, {})
    second = recipe.engines["G2"].module.eval()
    assert torch.equal(refined, second(first(batch.source)))


def test_a_stage_that_has_not_begun_is_not_used() -> None:
    recipe, batch = build(), noisy((16, 16, 16))
    train(recipe, batch, 0, 2)
    assert {key.split(".")[0] for key in recipe.weights()} == {"G1"}
    early = cgan_3d.weights_to_synthesizer(Config(**SMALL), recipe.weights())
    assert torch.equal(early(batch.source, {}), recipe.synthesizer()(batch.source, {}))
    train(recipe, batch, 4, 5)
    assert {key.split(".")[0] for key in recipe.weights()} == {"G1", "G2"}


def test_the_rate_falls_to_zero_in_the_second_half_of_a_stage() -> None:
    recipe, batch = build(samples=16), noisy((16, 16, 16))
    engine: Any = recipe.engines["G1"]
    rates = []
    for step in range(8):
        train(recipe, batch, step, step + 1)
        rates.append(engine.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([2e-4 * share for share in (1, 1, 1, 1, 1, 0.75, 0.5, 0.25)])


def test_it_overfits_two_cases() -> None:
    recipe, batch = build(stages=1, width=8, lr=2e-3, samples=400), noisy((16, 16, 16))
    l1 = [found["l1"] for found in train(recipe, batch, 0, 60)]
    assert l1[-1] < 0.4 * l1[0]


def test_a_resumed_run_is_bit_equal() -> None:
    check_resumes(lambda: build(samples=4), noisy((16, 16, 16)), 1, 4)


def test_windows_are_blended() -> None:
    tiling = build().synthesizer().tiling
    assert (tiling.tile, tiling.halo, tiling.overlap) == ((16, 16, 16), (0, 0, 0), (8, 8, 8))


def test_weights_of_another_configuration_are_refused() -> None:
    exported = build(stages=1).weights()
    for changes in ({"width": 3}, {"downs": 4}):
        with pytest.raises(InputError, match="CKPT_CONFIG weights of 3D-cGAN"):
            cgan_3d.weights_to_synthesizer(Config(**{**SMALL, **changes}), exported)


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"stages": 0}, "CFG_RANGE", "stages"),
        ({"lambda_l1": -1.0}, "CFG_RANGE", "lambda_l1"),
        ({"betas": (0.5, 1.0)}, "CFG_RANGE", "betas"),
        ({"patch": (64, 64, 32)}, "CFG_PATCH_SIZE", "patch"),
        ({"patch": (8, 8, 8), "downs": 3}, "CFG_PATCH_SIZE", "patch"),
        ({"patch": (16, 16, 16), "downs": 3}, "CFG_RANGE", "patches_per_case"),
    ],
)
def test_a_configuration_that_cannot_be_trained_is_refused(changes: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(InputError) as refusal:
        Config(**changes)
    assert (refusal.value.code, refusal.value.where) == (code, f"cgan_3d.{field}")


def test_the_report_names_its_origin() -> None:
    assert "re-implementation" in " ".join(cgan_3d.caveats(Config()))
