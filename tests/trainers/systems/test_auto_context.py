"""Auto-Context CNN: its count, errors by hand, who moves when, all together as one network, exact tiles."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from network_facts import count, moved
from pairs import check_resumes, check_tiles_equal_the_whole, noisy, pair, train
from torch import Tensor, nn

from storage.errors import InputError
from trainers.assembly import Assembled
from trainers.engine import plain_engine
from trainers.systems import auto_context
from trainers.systems.auto_context import CNN, AutoContext, Config, cropped_to, inference, networks

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")
SMALL: dict[str, Any] = {
    "channels": 4,
    "patch": (1, 32, 32),
    "stage_samples": 4,
    "joint_samples": 4,
    "patches_per_case": 1,
}


def build(**changes: Any) -> Assembled:
    torch.manual_seed(0)
    return auto_context.build(Config(**{**SMALL, **changes}), make_engine=plain_engine, patches_per_step=2)


def test_the_published_number_of_parameters() -> None:
    made = [make() for make in networks(Config()).values()]
    assert [count(network) for network in made] == [75_073, 75_649, 75_649]
    assert sum(map(count, made)) == 226_371


def test_every_network_sees_the_image_before_and_the_low_dose_of_its_size() -> None:
    """Against the layers written out with PyTorch's 2D functions."""
    made: Any = {name: make() for name, make in networks(Config(channels=3)).items()}
    low = torch.randn(1, 1, 1, 31, 29)

    def four(network: nn.Module, x: Tensor) -> Tensor:
        convolutions = [layer for layer in network if isinstance(layer, nn.Conv3d)]  # type: ignore[attr-defined]
        assert len(convolutions) == 4
        for number, layer in enumerate(convolutions):
            assert layer.bias is not None
            x = F.conv2d(x.relu() if number else x, layer.weight[:, :, 0], layer.bias)
        return x

    image = four(made["stage1"], low[:, :, 0])
    image = four(made["stage2"], torch.cat([image, low[:, :, 0, 4:-4, 4:-4]], dim=1))
    image = four(made["stage3"], torch.cat([image, low[:, :, 0, 8:-8, 8:-8]], dim=1))
    torch.testing.assert_close(AutoContext(made)(low)[:, :, 0], image)
    assert image.shape[2:] == (7, 5)


def test_the_loss_by_hand_is_over_the_full_dose_of_the_images_size() -> None:
    recipe = build()
    for engine in recipe.engines.values():
        for weight in engine.module.parameters():
            nn.init.zeros_(weight)
    full = torch.zeros(2, 1, 1, 32, 32)
    full[:, :, :, 4:8, 4:28] = 1  # of the 24 x 24 voxels that the first network makes, 4 x 24
    full[:, :, :, :4] = 9  # beyond
    assert train(recipe, pair(full, full), 0, 1) == [{"loss": pytest.approx(4 / 24)}]


def test_a_phase_moves_its_own_network_alone_and_the_last_one_all() -> None:
    recipe, batch = build(), noisy((1, 32, 32))
    assert recipe.phase_starts == {"stage1": 0, "stage2": 2, "stage3": 4, "joint": 6}
    expected = [{"stage1"}, {"stage2"}, {"stage3"}, {"stage1", "stage2", "stage3"}]
    for step, names in zip(recipe.phase_starts.values(), expected, strict=True):
        before = recipe.state()
        train(recipe, batch, step, step + 1)
        assert moved(before, recipe.state()) - {"progress"} == names
        assert {key.split(".")[0] for key in recipe.weights()} == {f"stage{n}" for n in range(1, min(step // 2, 2) + 2)}


def test_all_together_are_trained_as_one_network_would_be() -> None:
    """One backward pass for every engine gives the gradient of the sum of all errors."""
    recipe, batch = build(), noisy((1, 32, 32))
    torch.manual_seed(0)
    whole = [make() for make in networks(Config(**SMALL)).values()]
    image, losses = None, []
    for network in whole:
        image = network(auto_context.beside(batch.source, image))
        losses.append(F.mse_loss(image, cropped_to(batch.target, image)))
    torch.stack(losses).sum().backward()
    gradients: dict[str, Tensor | None] = {}

    def noted(name: str, parameter: Tensor) -> None:
        gradients[name] = parameter.grad

    for name, engine in recipe.engines.items():
        for key, parameter in engine.module.named_parameters():
            parameter.register_post_accumulate_grad_hook(partial(noted, f"{name}.{key}"))
    (found,) = train(recipe, batch, 6, 7)
    assert found["sum"] == pytest.approx(sum(map(Tensor.item, losses)), rel=1e-5)
    for name, network in zip(recipe.engines, whole, strict=True):
        for key, parameter in network.named_parameters():
            torch.testing.assert_close(gradients[f"{name}.{key}"], parameter.grad, rtol=1e-4, atol=1e-7)


def test_it_overfits_two_slices() -> None:
    recipe, batch = build(channels=16, lr=3e-3, stage_samples=100, joint_samples=100), noisy((1, 40, 40))
    losses = [found["loss"] for found in train(recipe, batch, 0, 200)]
    assert losses[-1] < 0.1 * losses[0]


def test_a_resumed_run_is_bit_equal() -> None:
    check_resumes(build, noisy((1, 32, 32)), 3, 8)


def test_tiles_equal_the_whole() -> None:
    synthesizer = inference({name: make().double() for name, make in networks(Config(channels=2)).items()})
    assert synthesizer.tiling.halo == (0, 12, 12)
    check_tiles_equal_the_whole(synthesizer, torch.rand(1, 1, 2, 24 + 24, 36 + 24, dtype=torch.float64), (1, 8, 12))


def test_a_network_that_has_not_begun_takes_nothing_off_a_window() -> None:
    recipe = build()
    train(recipe, noisy((1, 32, 32)), 0, 1)
    assert recipe.synthesizer().tiling.halo == (0, 4, 4)
    early = auto_context.weights_to_synthesizer(Config(**SMALL), recipe.weights())
    low = torch.rand(1, 1, 2, 20, 20)
    assert torch.equal(early(low, {}), recipe.synthesizer()(low, {}))
    with pytest.raises(InputError, match="CKPT_CONFIG weights of Auto-Context CNN"):
        auto_context.weights_to_synthesizer(Config(channels=5), recipe.weights())


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"stages": 0}, "CFG_RANGE", "stages"),
        ({"weight_decay": -1.0}, "CFG_RANGE", "weight_decay"),
        ({"joint_samples": -1}, "CFG_RANGE", "joint_samples"),
        ({"patch": (1, 128, 24)}, "CFG_PATCH_SIZE", "patch"),
        ({"patch": (0, 128, 128)}, "CFG_PATCH_SIZE", "patch"),
    ],
)
def test_a_configuration_that_cannot_be_trained_is_refused(changes: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(InputError) as refusal:
        Config(**changes)
    assert (refusal.value.code, refusal.value.where) == (code, f"auto_context.{field}")


def test_the_report_names_its_origin() -> None:
    assert "re-implementation" in " ".join(auto_context.caveats(Config()))
    assert count(CNN(1, 2)) == 2 * 9 + 2 + 2 * (36 + 2) + 18 + 1
