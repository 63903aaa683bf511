"""Cycle-GAN: its counts, its losses, who learns what and when, and slices restored one by one."""

from typing import Any

import cycles
import pytest
import torch
from network_facts import count
from torch import Tensor, nn

from storage.errors import InputError
from trainers.cycle import Cycle, LeastSquares
from trainers.engine import plain_engine
from trainers.recipe import Batch
from trainers.systems import cycle_gan
from trainers.systems.cycle_gan import Config

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")

SMALL: dict[str, Any] = {
    "width": 2, "blocks": 1, "critic_width": 2, "pool": 3, "patch": (1, 24, 24), "samples": 8, "decay_samples": 8
}  # fmt: skip


def build(**changes: Any) -> Cycle:
    torch.manual_seed(0)
    return cycle_gan.build(Config(**{**SMALL, **changes}), make_engine=plain_engine, patches_per_step=2)


def batch(seed: int, slices: int = 1) -> Batch:
    return cycles.batch(seed, (slices, 24, 24))


def test_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        assert count(cycle_gan.generator(Config())) == 7_825_153
        assert count(cycle_gan.generator(Config(blocks=9))) == 11_365_633
        assert count(cycle_gan.discriminator(Config())) == 2_762_689
        whole = cycle_gan.build(Config(), make_engine=plain_engine, patches_per_step=2)
    assert count(whole.G.module) + count(whole.D.module) == 21_175_684


def test_the_losses_by_hand() -> None:
    """Generators that return 0 and discriminators that score 0.5 everywhere."""
    recipe = build(output="image", patch=(2, 24, 24))
    for parameter in (*recipe.G.module.parameters(), *recipe.D.module.parameters()):
        nn.init.zeros_(parameter)
    for discriminator in (recipe.D.module.of_low, recipe.D.module.of_full):
        nn.init.constant_(discriminator.layers[-1].bias, 0.5)
    given = batch(0, slices=2)
    low, full = float(given.source.abs().mean()), float(given.target.abs().mean())
    found = {name: float(value) for name, value in recipe.step(given, 0).items()}
    expected = {
        "adversarial": 2 * 0.5**2,
        "cycle": low + full,
        "identity": low + full,
        "generators": 2 * 0.5**2 + (10 + 5) * (low + full),
        "discriminators": 2 * (0.5**2 + 0.5**2) / 2,
    }
    assert found == pytest.approx(expected)


def test_generators_learn_from_still_discriminators_and_these_from_still_generators() -> None:
    assert cycles.moves(build(), batch(0)) == [{"G", "F"}, {"D of low", "D of full"}]


def test_discriminators_see_what_the_pools_give(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = build(pool=2)
    for step in range(2):
        torch.manual_seed(step)
        recipe.step(batch(step), step)
    kept = recipe.pools["generated full"].images
    assert kept.shape == (2, 1, 24, 24)
    seen: list[Tensor] = []
    recipe.D.module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1].detach().clone()))
    given = batch(2)
    monkeypatch.setattr(torch, "rand", lambda *shape: torch.zeros(()))  # a kept image every time
    recipe.step(given, 2)
    to_fool, to_tell = seen
    assert torch.equal(to_tell[:2], given.target[:, :, 0])
    assert any(torch.equal(to_tell[2], one) for one in kept), "the first given was kept before this step"
    assert not torch.equal(to_tell[2:], to_fool)


def test_the_rate_falls_to_0_over_the_last_half() -> None:
    recipe = build(lr=1.0)
    assert (recipe.num_steps, recipe.phase_starts) == (8, {"train": 0})
    assert isinstance(recipe.update, LeastSquares)
    assert [recipe.update.rate(step) for step in range(8)] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert build(decay_samples=0).num_steps == 4
    still = build(lr=1e-2)
    before = cycles.parts(still.G, still.D)
    rates = {"G": 1e-2 * 0.25, "D of full": 1e-2 * 0.25}
    still.step(batch(0), 7)  # Adam's first step is the rate itself, where there is a gradient
    after = cycles.parts(still.G, still.D)
    for part, rate in rates.items():
        assert float((after[part] - before[part]).abs().max()) == pytest.approx(rate, rel=1e-2)


def test_it_learns_two_images() -> None:
    """What comes back after both directions is soon what was given, and real images are told from generated ones."""
    # At the paper's weight of 10 losses rise and fall from step to step, and which step is low is the processor's.
    recipe = build(width=4, critic_width=4, lr=5e-3, samples=300, pool=0, lambda_cycle=30.0)
    given = batch(0)
    first, *_, last = [recipe.step(given, step) for step in range(20)]
    assert float(last["cycle"]) < 0.25 * float(first["cycle"])
    assert float(last["discriminators"]) < 0.25 * float(first["discriminators"])


def test_a_resumed_run_is_bit_equal() -> None:
    assert cycles.resumes_bit_equal(build(), build(), build(), [batch(step) for step in range(8)])


def test_slices_are_restored_one_by_one_whatever_lies_beside_them() -> None:
    recipe = build()
    synthesizer = cycle_gan.weights_to_synthesizer(Config(**SMALL), recipe.weights())
    assert (synthesizer.tiling.tile, synthesizer.tiling.overlap) == ((16, 24, 24), (0, 12, 12))
    low = torch.rand(2, 1, 3, 24, 24)
    whole = synthesizer(low, {})
    assert torch.equal(whole, recipe.synthesizer()(low, {}))
    for b, z in ((0, 0), (1, 2)):
        torch.testing.assert_close(synthesizer(low[b : b + 1, :, z : z + 1], {})[0, 0, 0], whole[b, 0, z])
    with pytest.raises(InputError, match="CKPT_CONFIG weights of Cycle-GAN"):
        cycle_gan.weights_to_synthesizer(Config(**{**SMALL, "width": 3}), recipe.weights())


def test_a_residual_is_added_to_the_input() -> None:
    """Of the same weights, and then a brighter window gives a brighter image: instance norm alone would forget it."""
    low = torch.rand(1, 1, 24, 24)
    made = {}
    for output in ("image", "residual"):
        torch.manual_seed(0)
        network = cycle_gan.generator(Config(**{**SMALL, "output": output}))
        made[output] = [network(image).detach() for image in (low, 10 * low)]
    torch.testing.assert_close(made["residual"][0], low + made["image"][0])
    dark, bright = made["image"]
    assert (bright - dark).abs().max() < 0.05 * dark.abs().max()
    dark, bright = made["residual"]
    assert (bright - dark - 9 * low).abs().max() < 0.05 * low.max()


def test_it_reads_different_patients() -> None:
    spec = build().batch_spec(0)
    assert (spec.images, spec.patch, spec.halo) == ("unpaired", (1, 24, 24), (0, 0, 0))


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"width": 0}, "CFG_RANGE", "width"),
        ({"betas": (0.5, 1.0)}, "CFG_RANGE", "betas"),
        ({"lambda_cycle": -1.0}, "CFG_RANGE", "lambda_cycle"),
        ({"output": "both"}, "CFG_CHOICE", "output"),
        ({"patch": (1, 128, 126)}, "CFG_PATCH_SIZE", "patch"),
        ({"patch": (1, 20, 128)}, "CFG_PATCH_SIZE", "patch"),
    ],
)
def test_a_configuration_that_cannot_be_trained_is_refused(changes: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(InputError) as refusal:
        Config(**changes)
    assert (refusal.value.code, refusal.value.where) == (code, f"cycle_gan.{field}")


@pytest.mark.parametrize(("output", "said"), [("residual", "added to the low dose"), ("image", "as published")])
def test_the_report_names_its_origin_and_its_norm(output: Any, said: str) -> None:
    origin, norm = cycle_gan.caveats(Config(output=output))
    assert "re-implementation" in origin
    assert said in origin
    assert "biased" in norm
