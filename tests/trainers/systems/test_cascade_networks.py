"""Networks of cascades and dense cascades, their losses, images and memory: counts, wirings, worked numbers."""

import math
import weakref
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from network_facts import count
from small_cascade import DENSE, VARIANTS, Fixed, perturb, small
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainers.systems.cascade import (
    Cascade,
    Config,
    Discriminator,
    adversarial_loss,
    ct_to_unit,
    discriminator_loss,
    pet_to_unit,
    psnr,
    to_channels,
    total,
    unit_to_suv,
)

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


# Networks.

TABLE_2 = {3: 163.24, 4: 217.66, 5: 272.07, 6: 326.49, 7: 380.90, 8: 435.31, 9: 489.73, 10: 544.155}


@pytest.mark.parametrize("stages", range(1, 11))
def test_stages_have_the_published_number_of_parameters(stages: int) -> None:
    with torch.device("meta"):
        found = count(Cascade(Config(stages=stages)))
    assert found == stages * 54_413_955
    if stages in TABLE_2:
        assert found / 1e6 == pytest.approx(TABLE_2[stages], rel=1e-4)


@pytest.mark.parametrize(
    ("dense", "two", "three"),
    [
        ("images", 108_830_982, 163_251_081),
        ("images+skips", 111_102_662, 168_929_033),
        ("replace_skips", 108_830_982, 163_251_081),
    ],
)
def test_dense_wirings_have_their_number_of_parameters(dense: Any, two: int, three: int) -> None:
    with torch.device("meta"):
        networks = [Cascade(Config(stages=stages, dense=dense)) for stages in (2, 3)]
    assert [count(network) for network in networks] == [two, three]


def test_modes_have_their_number_of_parameters() -> None:
    deep: dict[str, Any] = {"mode": "3d", "patch": (64, 96, 96), "downs": 5, "width": 32, "critic_width": 32}
    with torch.device("meta"):
        assert count(Cascade(Config(mode="2.5d", patch=(3, 256, 256)))) == 54_413_955
        assert count(Cascade(Config(**deep))) == 16_654_145
        assert count(Discriminator(Config())) == 2_768_705
        assert count(Discriminator(Config(**deep))) == 2_773_921


@pytest.mark.parametrize("name", VARIANTS)
def test_every_stage_gives_an_image(name: str) -> None:
    config = small(**VARIANTS[name])
    ct = torch.rand(2, config.channels, *config.halved)
    network = Cascade(config)
    for stage in network.stages:
        cast(Any, stage).unet.image[-1].bias.data += 3
    images = network(ct)
    assert [image.shape for image in images] == [ct.shape] * config.stages
    assert all((image.detach().max() <= 1) == (config.out_act == "tanh") for image in images)


@pytest.mark.parametrize(("dense", "sees"), [("none", False), ("images", True)])
def test_later_stages_see_the_ct_only_where_connections_are_dense(dense: Any, sees: bool) -> None:
    network = Cascade(small(stages=2, dense=dense)).eval()
    perturb(network)
    network.stages[0] = Fixed(torch.rand(1, 3, 32, 32), [])
    first, second = (network(torch.rand(1, 3, 32, 32))[1] for _ in range(2))
    assert torch.equal(first, second) != sees


@pytest.mark.parametrize(
    ("dense", "first", "second"),
    [("images", False, False), ("images+skips", True, True), ("replace_skips", False, True)],
)
def test_wirings_b_and_c_connect_the_skips(dense: Any, first: bool, second: bool) -> None:
    """Stage 3's skips come from the encoders of stages 1 and 2 in B, from the decoder of stage 2 in C."""
    network = Cascade(small(stages=3, dense=dense)).eval()
    perturb(network)
    x, one, two = torch.rand(3, 1, 3, 32, 32)
    _, features = network.stages[0](x, [])

    def third(change_1: float, change_2: float) -> Tensor:
        network.stages[0] = Fixed(one, [f + change_1 for f in features])
        network.stages[1] = Fixed(two, [f + change_2 for f in features])
        image: Tensor = network(x)[2]
        return image

    same = third(0, 0)
    assert torch.equal(third(1, 0), same) != first
    assert torch.equal(third(0, 1), same) != second


def test_own_skips_are_those_of_the_wiring() -> None:
    """B's mixing of one stage's maps alone is wiring A's skip; C's stage 1 is the plain one."""
    config = small(stages=2, dense="images+skips")
    network, plain = Cascade(config).eval(), Cascade(small(stages=2, dense="images")).eval()
    perturb(network)
    names = plain.load_state_dict(network.state_dict(), strict=False)
    assert not names.missing_keys
    with torch.no_grad():
        for mix in cast(Any, network.stages[1]).mixes:
            channels = mix.out_channels
            mix.bias.zero_()
            mix.weight.zero_()
            mix.weight[:, channels:, 0, 0] = torch.eye(channels)  # its own encoder comes last
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(network(x)[1], plain(x)[1])


def test_wiring_a_without_its_extra_channels_is_the_plain_cascade() -> None:
    plain, dense = Cascade(small(stages=3)).eval(), Cascade(small(stages=3, dense="images")).eval()
    perturb(plain)
    weights = plain.state_dict()
    for k in (1, 2):  # stage k + 1 sees the CT and k images; the last of them is all that the plain one sees
        name = f"stages.{k}.unet.encoder.0.1.weight"
        wide = torch.zeros(weights[name].shape[0], 3 * (k + 1), 4, 4)
        wide[:, 3 * k :] = weights[name]
        weights[name] = wide
    dense.load_state_dict(weights)
    x = torch.rand(1, 3, 32, 32)
    for a, b in zip(plain(x), dense(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_one_stage_is_pix2pix_s_generator_and_an_identity_stage_changes_nothing() -> None:
    class Identity(nn.Module):
        def forward(self, x: Tensor, before: Any) -> tuple[Tensor, list[Tensor]]:
            return x, []

    network = Cascade(small(stages=2)).eval()
    perturb(network)
    network.stages[1] = Identity()
    x = torch.rand(1, 3, 32, 32)
    first, second = network(x)
    assert torch.equal(first, second)
    assert torch.equal(first, torch.tanh(cast(Any, network.stages[0]).unet(x)))


def gradients(**changes: Any) -> list[float]:
    """Largest gradient of every stage's first layer, of the last image's loss."""
    config = small(loss_at="all", **changes)
    network = Cascade(config)
    network(torch.rand(2, 3, 32, 32))[-1].square().mean().backward()
    found = [cast(Any, stage).unet.encoder[0][1].weight.grad for stage in network.stages]
    return [0.0 if grad is None else float(grad.abs().max()) for grad in found]


def test_ten_stages_pass_gradients_to_the_first() -> None:
    assert all(0 < grad < math.inf for grad in gradients(stages=10))


@pytest.mark.parametrize("dense", ["none", "images", "images+skips", "replace_skips"])
def test_stopped_gradients_stay_in_their_stage(dense: str) -> None:
    *before, last = gradients(stages=3, dense=dense, stop_gradient_between_stages=True)
    assert not any(before)
    assert last > 0


# Losses: the worked numbers.

MSE = F.mse_loss(torch.tensor([-0.8, 0.2, 0.5, 0.6]), torch.tensor([-1.0, 0.0, 0.5, 1.0]))
REAL, FAKE = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 2.0])


def test_losses_have_their_worked_values() -> None:
    torch.testing.assert_close(MSE, torch.tensor(0.06))
    adversarial = adversarial_loss(FAKE, "vanilla")
    torch.testing.assert_close(adversarial, torch.tensor(0.720095), rtol=0, atol=1e-6)
    torch.testing.assert_close(discriminator_loss(REAL, [FAKE], "vanilla"), torch.tensor(0.815066), rtol=0, atol=1e-6)
    torch.testing.assert_close(total(Config(), [MSE], [adversarial]), torch.tensor(6.720095), rtol=0, atol=2e-6)
    terms = torch.tensor([0.06, 0.02]), torch.tensor([0.72, 0.50])
    torch.testing.assert_close(total(Config(**DENSE), *(list(t) for t in terms)), torch.tensor(9.22))
    torch.testing.assert_close(total(Config(), [MSE], []), torch.tensor(6.0))


def test_least_squares_have_their_worked_values() -> None:
    torch.testing.assert_close(adversarial_loss(FAKE, "lsgan"), torch.tensor((4.0 + 1.0) / 2))
    torch.testing.assert_close(discriminator_loss(REAL, [FAKE], "lsgan"), torch.tensor((1.0 + 2.5) / 2))
    both = discriminator_loss(REAL, [FAKE, REAL], "lsgan")
    torch.testing.assert_close(both, torch.tensor((1.75 + (1.0 + 2.0) / 2) / 2))  # the mean over the scored stages


def test_psnr_is_the_mean_over_images() -> None:
    target = torch.zeros(2, 1, 4, 4)
    image = torch.stack([torch.full((1, 4, 4), 0.1), torch.full((1, 4, 4), 0.01)])
    torch.testing.assert_close(psnr(image, target), torch.tensor(30.0))
    torch.testing.assert_close(psnr(target, target), torch.tensor(100.0))


# Images.


def test_images_are_scaled_by_fixed_windows_and_back() -> None:
    hu = torch.tensor([-2000.0, -1000.0, -300.0, 400.0, 3000.0])
    torch.testing.assert_close(ct_to_unit(hu, (-1000.0, 400.0)), torch.tensor([-1.0, -1.0, 0.0, 1.0, 1.0]))
    suv = torch.tensor([-1.0, 0.0, 5.0, 20.0, 30.0])
    unit = pet_to_unit(suv, 20.0)
    torch.testing.assert_close(unit, torch.tensor([-1.0, -1.0, -0.5, 1.0, 1.0]))
    torch.testing.assert_close(unit_to_suv(unit, 20.0), suv.clamp(0, 20))
    torch.testing.assert_close(pet_to_unit(suv, 20.0, "linear")[-1], torch.tensor(2.0))


def test_channels_are_copies_neighbours_or_one() -> None:
    volume = torch.rand(2, 1, 3, 4, 4)
    assert torch.equal(to_channels(volume[:, :, :1], "2d"), volume[:, 0, :1].repeat(1, 3, 1, 1))
    assert torch.equal(to_channels(volume, "2.5d"), volume[:, 0])
    assert torch.equal(to_channels(volume, "3d"), volume)


# Memory.


class Live(TorchDispatchMode):
    """Bytes that operations made and still hold."""

    def __init__(self, known: Iterator[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.seen = {t.untyped_storage()._cdata for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for storage in (t.untyped_storage() for t in tree_leaves(result) if isinstance(t, Tensor)):
            if storage._cdata not in self.seen:
                self.seen.add(storage._cdata)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return result

    def _gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


def bytes_of_a_step(again: bool) -> tuple[int, int]:
    """What ten stages keep between forward and backward, and at most at any time."""
    network = Cascade(small(stages=10, width=8, downs=3, activation_checkpointing=again))
    x = torch.rand(2, 3, 64, 64)
    with Live(iter([x, *network.parameters(), *network.buffers()])) as memory:
        loss = network(x)[-1].square().mean()
        kept = memory.live
        loss.backward()
    return kept, memory.peak


def test_checkpointing_saves_memory() -> None:
    kept, peak = bytes_of_a_step(again=False)
    kept_again, peak_again = bytes_of_a_step(again=True)
    assert kept > 6 * kept_again
    assert peak > 3 * peak_again
