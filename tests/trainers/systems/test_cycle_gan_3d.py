"""3D-CycleGAN: its counts, what it shares with Cycle-GAN, and windows that are blended."""

from typing import Any

import cycles
import pytest
import torch
from network_facts import count

from storage.errors import InputError
from trainers.cycle import Cycle, LeastSquares
from trainers.engine import plain_engine
from trainers.systems import cycle_gan_3d
from trainers.systems.cycle_gan_3d import Config

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")

SIZE = (24, 24, 24)
SMALL: dict[str, Any] = {
    "width": 1, "blocks": 1, "critic_width": 1, "pool": 3, "patch": SIZE, "samples": 4, "decay_samples": 4
}  # fmt: skip


def build(**changes: Any) -> Cycle:
    torch.manual_seed(0)
    return cycle_gan_3d.build(Config(**{**SMALL, **changes}), make_engine=plain_engine, patches_per_step=2)


def test_the_numbers_of_parameters() -> None:
    with torch.device("meta"):
        assert count(cycle_gan_3d.generator(Config())) == 8_540_161
        assert count(cycle_gan_3d.generator(Config(width=64))) == 34_111_489
        assert count(cycle_gan_3d.discriminator(Config())) == 11_047_873


def test_a_step_is_cycle_gans_on_volumes_of_different_patients() -> None:
    recipe = build()
    assert isinstance(recipe.update, LeastSquares)
    assert (recipe.update.lambda_cycle, recipe.update.lambda_identity) == (10, 5)
    spec = recipe.batch_spec(0)
    assert (spec.images, spec.patch) == ("unpaired", SIZE)
    assert cycles.moves(recipe, cycles.batch(0, SIZE, images=1)) == [{"G", "F"}, {"D of low", "D of full"}]
    assert recipe.pools["generated low"].images.shape == (1, 1, *SIZE)
    assert (recipe.num_steps, recipe.phase_starts) == (4, {"train": 0})


def test_it_learns_two_volumes() -> None:
    """One of each dose: what comes back after both directions is soon what was given."""
    recipe = build(width=2, lr=3e-3, samples=100, pool=0, lambda_identity=0.0)
    given = cycles.batch(0, SIZE, images=1)
    first, *_, last = [recipe.step(given, step) for step in range(10)]
    assert float(last["cycle"]) < 0.5 * float(first["cycle"])


def test_a_resumed_run_is_bit_equal() -> None:
    batches = [cycles.batch(step, SIZE, images=1) for step in range(2)]
    assert cycles.resumes_bit_equal(build(), build(), build(), batches)


def test_windows_of_the_training_size_are_blended() -> None:
    recipe = build()
    alone = cycle_gan_3d.weights_to_synthesizer(Config(**SMALL), recipe.weights())
    assert (alone.tiling.tile, alone.tiling.overlap, alone.tiling.halo) == (SIZE, (12, 12, 12), (0, 0, 0))
    low = torch.rand(1, 1, *SIZE)
    assert torch.equal(alone(low, {}), recipe.synthesizer()(low, {}))
    with pytest.raises(InputError, match="CKPT_CONFIG weights of 3D-CycleGAN"):
        cycle_gan_3d.weights_to_synthesizer(Config(**{**SMALL, "width": 2}), recipe.weights())


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"blocks": 0}, "CFG_RANGE", "blocks"),
        ({"output": "both"}, "CFG_CHOICE", "output"),
        ({"patch": (24, 24, 26)}, "CFG_PATCH_SIZE", "patch"),
        ({"patch": (20, 24, 24)}, "CFG_PATCH_SIZE", "patch"),
    ],
)
def test_a_configuration_that_cannot_be_trained_is_refused(changes: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(InputError) as refusal:
        Config(**changes)
    assert (refusal.value.code, refusal.value.where) == (code, f"cycle_gan_3d.{field}")


def test_the_report_names_its_origin_and_its_norm() -> None:
    origin, norm = cycle_gan_3d.caveats(Config())
    assert "re-implementation" in origin
    assert "9 residual blocks, 32 channels" in origin
    assert "biased" in norm
