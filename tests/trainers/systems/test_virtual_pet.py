"""Virtual PET as a system: sizes, scales, losses, what a step changes, learning, resume, inference, configuration."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from network_facts import count
from safetensors.torch import save_file
from torch import Tensor, nn

from storage.errors import InputError
from storage.source import HU
from trainers import hu_table
from trainers.engine import plain_engine
from trainers.feed_config import FeedConfig
from trainers.losses import logistic_discriminator_loss, logistic_generator_loss
from trainers.metrics.presets import PRESETS
from trainers.recipe import Batch, Recipe, Synthesizer, Validated
from trainers.systems import virtual_pet
from trainers.systems.virtual_pet import (
    BlendSynthesizer,
    Config,
    Discriminator,
    Generator,
    VirtualPET,
    fcn_of,
    in_windows,
)
from trainers.systems.virtual_pet.fcn import FCN

SMALL: dict[str, Any] = {
    "patch": (1, 32, 32),
    "fcn_widths": (4, 4, 8, 8, 8),
    "fcn_fc": 8,
    "fcn_fc6_kernel": 3,
    "generator_width": 4,
    "generator_downs": 3,
    "critic_width": 4,
    "critic_strides": (2, 1),
    "fcn_samples": 6,
    "cgan_samples": 8,
    "epoch_samples": 2,
    "validate_batches": 1,
}

pytestmark = pytest.mark.usefixtures("one_thread")


def small(**changes: Any) -> Config:
    return Config(**{**SMALL, **changes})


def build(config: Config, seed: int = 0, patches: int = 2) -> VirtualPET:
    torch.manual_seed(seed)
    return virtual_pet.build(config, make_engine=plain_engine, patches_per_step=patches)


def as_batch(low: Tensor, full: Tensor) -> Batch:
    b, _, z, y, x = full.shape
    empty, overview = torch.zeros(b, 0, z, y, x), torch.zeros(b, 1, 0, 0, 0)
    drf = torch.full((b,), torch.nan)
    return Batch(source=low, target=full, masks=empty, overview=overview, drf=drf, cases=b, places=("",) * b)


def make_batch(seed: int, config: Config, cases: int = 2) -> Batch:
    random = torch.Generator().manual_seed(seed)
    z, y, x = config.patch
    low = 300 * torch.randn(cases, 1, z + 2 * config.halo, y, x, generator=random)
    return as_batch(low, 8 * torch.rand(cases, 1, z, y, x, generator=random))


def run(recipe: VirtualPET, step: int) -> dict[str, Tensor]:
    torch.manual_seed(1000 + step)  # as the loop does
    return recipe.step(make_batch(step, recipe.config), step)


def tensors(recipe: VirtualPET) -> dict[str, dict[str, Tensor]]:
    return {engine: dict(state) for engine, state in recipe.state().items()}


def moved(before: dict[str, dict[str, Tensor]], after: dict[str, dict[str, Tensor]]) -> set[str]:
    """Engines of which anything at all, moments and running statistics included, is not bit for bit what it was."""
    same = {
        name: before[name].keys() == after[name].keys()
        and all(torch.equal(value, after[name][key]) for key, value in before[name].items())
        for name in before
    }
    return {name for name, equal in same.items() if not equal}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def wake(recipe: VirtualPET) -> None:
    """Give F's score layers weights, so that its image is not 0."""
    assert recipe.F is not None
    network = recipe.F.module
    assert isinstance(network, FCN)
    for score in network.scores:
        assert isinstance(score, nn.Conv2d)
        nn.init.normal_(score.weight, std=0.3)
        nn.init.constant_(score.bias, 0.05)  # type: ignore[arg-type]


# Sizes of Sec. 2.


def test_networks_have_the_sizes_of_the_text() -> None:
    with torch.device("meta"):
        flat, deep = Config(mode="2d"), Config()
        F = fcn_of(deep)
        assert count(F) + F.last.numel() == 134_265_652
        assert count(Generator(flat)) == 54_407_809
        assert count(Generator(deep)) == 54_409_857
        assert count(Generator(Config(mode="2d", decoder="listed"))) == 61_419_201
        assert count(Discriminator(flat)) == 2_764_609
        assert count(Discriminator(Config(mode="2d", critic_strides=(2, 2, 2, 2)))) == 2_764_609
        assert count(Discriminator(Config(mode="2d", critic_strides=(2, 1)))) == 135_489
        x = torch.zeros(1, 3, 256, 256)
        (logits,) = Discriminator(deep)(x, x[:, :1])
        assert logits.shape == (1, 1, 30, 30)
        assert Generator(deep)(x).shape == (1, 1, 256, 256)


@pytest.mark.parametrize(("strides", "field"), [((2, 2, 2, 1), 70), ((2, 2, 2, 2), 94), ((2, 1), 16)])
def test_what_one_logit_sees(strides: tuple[int, ...], field: int) -> None:
    D = Discriminator(small(mode="2d", critic_strides=strides, patch=(1, 256, 256))).eval()  # BN sees everything
    image = torch.randn(1, 1, 256, 256, requires_grad=True)
    (logits,) = D(torch.randn(1, 1, 256, 256), image)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    assert image.grad is not None
    seen = image.grad[0, 0].abs().sum(0).nonzero()[:, 0]
    assert int(seen.max() - seen.min()) + 1 == field


# Sec. 2.1  Scales.


def test_scales_go_there_and_back_and_saturate() -> None:
    c = Config()
    suv = torch.linspace(0, 20, 201)
    torch.testing.assert_close(virtual_pet.fcn_suv(c, virtual_pet.fcn_target(c, suv)), suv, atol=1e-5, rtol=0)
    torch.testing.assert_close(virtual_pet.cgan_suv(c, virtual_pet.cgan_target(c, suv)), suv, atol=1e-5, rtol=0)
    assert virtual_pet.fcn_target(c, torch.tensor([30.0, -1.0])).tolist() == [1.0, 0.0]
    assert virtual_pet.cgan_target(c, torch.tensor([30.0, -1.0])).tolist() == [1.0, -1.0]
    assert virtual_pet.fcn_suv(c, torch.tensor([-0.2])).tolist() == [0.0]
    hu = torch.tensor([-1000.0, -160.0, 40.0, 240.0, 3000.0])
    torch.testing.assert_close(virtual_pet.window_ct(c, hu), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
    slices = hu.view(5, 1, 1, 1)
    assert virtual_pet.cgan_input(c, slices).flatten().tolist() == [-1.0, -1.0, 0.0, 1.0, 1.0]
    grey = virtual_pet.fcn_input(c, slices)
    assert grey.shape == (5, 3, 1, 1)
    assert torch.equal(grey[:, 0], grey[:, 2])
    scaled = virtual_pet.fcn_input(Config(fcn_weights="vgg16.safetensors"), slices)
    torch.testing.assert_close(scaled[2, :, 0, 0], torch.tensor([0.015 / 0.229, 0.044 / 0.224, 0.094 / 0.225]))


def test_neighbouring_slices_are_channels_in_order() -> None:
    volume = torch.arange(2 * 5).view(2, 1, 5, 1, 1).expand(2, 1, 5, 3, 4).float()
    found = virtual_pet.stacks(volume, 1)
    assert found.shape == (6, 3, 3, 4)
    assert found[:, :, 0, 0].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [5, 6, 7], [6, 7, 8], [7, 8, 9]]
    assert virtual_pet.stacks(volume, 0)[:, 0, 0, 0].tolist() == list(range(10))


def test_voxels_above_the_largest_suv_are_reported() -> None:
    recipe = build(small())
    batch = make_batch(0, recipe.config)
    batch.target[0, 0, 0, :16] = 25.0
    assert recipe.step(batch, 0)["clipped_share"] == 0.25


# Sec. 2.4  Losses.


def test_worked_losses() -> None:
    c = Config(suv_weight_mean=4.0)
    suv = torch.tensor([0.0, 2.0, 10.0])
    predicted = torch.tensor([1.0, 2.5, 8.0], requires_grad=True)
    weights = virtual_pet.suv_weights(c, suv)
    in_suv = virtual_pet.weighted_l2(predicted, suv, weights)
    in_suv.backward()
    assert in_suv.item() == pytest.approx(3.375)
    assert predicted.grad is not None
    assert predicted.grad.tolist() == pytest.approx([0.0, 1 / 6, -10 / 3])
    assert float(predicted.grad[0]) == 0.0
    scaled = virtual_pet.weighted_l2(predicted.detach() / 20, virtual_pet.fcn_target(c, suv), weights)
    assert float(scaled) == pytest.approx(0.0084375)
    unscaled = virtual_pet.suv_weights(Config(suv_weight_floor=0.1), suv)
    assert float(virtual_pet.weighted_l2(predicted.detach(), suv, unscaled)) == pytest.approx(13.533333, rel=1e-6)
    assert virtual_pet.suv_weights(Config(suv_weight_gamma=0), suv).tolist() == [1, 1, 1]
    assert virtual_pet.suv_weights(Config(), torch.tensor([-1.0, 30.0])).tolist() == [0, 20]

    target, image = torch.tensor([-1.0, -0.8, 0.0]), torch.tensor([-0.9, -0.75, -0.2])
    fake, real = torch.tensor([-1.0, 2.0]), torch.tensor([2.0, 0.0])
    l2 = virtual_pet.weighted_l2(image, target, torch.ones(3))
    assert float(100 * l2 + logistic_generator_loss(fake)) == pytest.approx(2.470095, abs=1e-6)
    assert float(logistic_discriminator_loss(real, fake)) == pytest.approx(0.815066, abs=1e-6)


def test_parts_of_a_batch_make_its_loss_and_air_makes_none() -> None:
    c = Config()
    random = torch.Generator().manual_seed(0)
    suv, image = 10 * torch.rand(8, 1, 4, 4, generator=random), torch.rand(8, 1, 4, 4, generator=random)

    def loss(part: slice) -> Tensor:
        s = suv[part]
        return virtual_pet.weighted_l2(image[part], virtual_pet.fcn_target(c, s), virtual_pet.suv_weights(c, s))

    torch.testing.assert_close(loss(slice(8)), (loss(slice(4)) + loss(slice(4, 8))) / 2)
    recipe = build(small())
    air = as_batch(torch.full((2, 1, 3, 32, 32), -1000.0), torch.zeros(2, 1, 1, 32, 32))
    for step in (0, recipe.phase_starts["cgan"]):
        assert all(torch.isfinite(value) for value in recipe.step(air, step).values())
    assert recipe.step(air, 0)["fcn"] == 0


# What a step changes.


@pytest.mark.parametrize("mode", ["2d", "2.5d"])
def test_exactly_the_listed_networks_change(mode: str) -> None:
    recipe = build(small(mode=mode, fcn_norm="batch"))
    for step, expected in ((0, {"F"}), (3, {"G", "D"})):
        before = tensors(recipe)
        metrics = run(recipe, step)
        assert moved(before, tensors(recipe)) == expected
        assert all(torch.isfinite(value) for value in metrics.values())
        assert not any(value.requires_grad for value in metrics.values())
        grads = [p.grad for engine in recipe.engines.values() for p in engine.module.parameters()]
        assert all(g is None or not g.any() for g in grads)  # nothing leaks into the next step
        assert all(p.requires_grad for e in recipe.engines.values() for p in e.module.parameters())


class Held:
    """An engine that never updates its network."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def __call__(self, *inputs: Tensor) -> Any:
        return self.engine(*inputs)

    def step(self) -> None:
        self.engine.optimizer.zero_grad()


def test_each_gan_loss_trains_its_own_network() -> None:
    def trained(held: str) -> dict[str, dict[str, Tensor]]:
        recipe = build(small())
        if held:
            setattr(recipe, held, Held(getattr(recipe, held)))
        run(recipe, 3)
        engines = recipe.engines.items()
        return {name: {k: p.detach() for k, p in e.module.named_parameters()} for name, e in engines}

    fresh = build(small()).engines.items()
    start = {name: {k: p.detach() for k, p in e.module.named_parameters()} for name, e in fresh}
    free = trained("")
    assert moved(start, free) == {"G", "D"}
    assert moved(start, trained("G")) == {"D"}
    assert moved(start, trained("D")) == {"G"}
    assert moved(free, trained("G")) == {"G"}  # D's own update never saw G's


def test_one_forward_of_g_per_step() -> None:
    recipe = build(small())
    run(recipe, 3)
    assert recipe.G is not None
    counted = [b for name, b in recipe.G.module.named_buffers() if name.endswith("num_batches_tracked")]
    assert {int(b) for b in counted} == {1}


def test_the_gans_rate_falls_over_the_second_half_of_its_phase() -> None:
    recipe = build(small(cgan_samples=16))
    assert recipe.phase_starts == {"fcn": 0, "cgan": 3}
    assert [recipe._cgan_lr_factor(step) for step in range(3, 11)] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    for step in (3, 9):
        run(recipe, step)
        for engine in (recipe.G, recipe.D):
            (group,) = engine.optimizer.param_groups
            assert group["lr"] == pytest.approx(2e-4 * recipe._cgan_lr_factor(step))
            assert group["betas"] == (0.5, 0.999)
    (group,) = recipe.F.optimizer.param_groups
    assert (group["lr"], group["betas"]) == (1e-4, (0.9, 0.999))


def test_the_suv_weight_of_the_gan_is_a_choice() -> None:
    losses = {}
    for weighted in (False, True):
        recipe = build(small(cgan_suv_weighted=weighted))
        losses[weighted] = run(recipe, 3)["l2"]
    assert losses[True] > 2 * losses[False]  # SUV 0 to 8


def test_without_an_adversarial_weight_g_learns_alone() -> None:
    recipe = build(small(networks="cgan", lambda_adversarial=0.0))
    assert recipe.D is None
    before = tensors(recipe)
    metrics = run(recipe, 0)
    assert metrics.keys() == {"l2", "generator", "clipped_share"}
    assert float(metrics["generator"]) == pytest.approx(100 * float(metrics["l2"]))
    assert moved(before, tensors(recipe)) == {"G"}
    twice, once = (run(build(small(networks="cgan", lambda_adversarial=w)), 0) for w in (2.0, 1.0))
    shares = [float(m["generator"] - 100 * m["l2"]) for m in (twice, once)]
    assert shares[0] == pytest.approx(2 * shares[1], rel=1e-4)


# Phases.


def test_steps_are_counted_in_slices() -> None:
    recipe: Recipe = build(small(patch=(2, 32, 32), fcn_samples=9, cgan_samples=4, epoch_samples=5))
    assert recipe.phase_starts == {"fcn": 0, "cgan": 3}
    assert recipe.num_steps == 4
    assert [recipe.phase(step) for step in range(4)] == ["fcn", "fcn", "fcn", "cgan"]
    with pytest.raises(ValueError, match="not one of 4"):
        recipe.phase(4)
    assert isinstance(recipe, Validated)
    assert recipe.validate_every == 2
    spec = recipe.batch_spec(0)
    assert (spec.patch, spec.halo, spec.images, spec.units) == ((2, 32, 32), (1, 0, 0), "paired", HU)
    assert spec.beyond
    assert build(small(mode="2d")).batch_spec(0).halo == (0, 0, 0)
    assert (spec.sampler, spec.rois) == ({"body": 1.0}, ())
    liver = build(small(rois=("liver",))).batch_spec(0)
    assert (liver.sampler, liver.rois) == ({"roi": 1.0}, ("liver",))


@pytest.mark.parametrize(("networks", "engines"), [("fcn", {"F"}), ("cgan", {"G", "D"}), ("both", {"F", "G", "D"})])
def test_either_network_stands_alone(networks: str, engines: set[str]) -> None:
    recipe = build(small(networks=networks))
    assert recipe.state().keys() == engines | {"best"}
    assert recipe.phase_starts.keys() == ({"fcn", "cgan"} if networks == "both" else {networks})
    for step in range(recipe.num_steps):
        run(recipe, step)
    scores = {name: float(value) for name, value in recipe.validate(make_batch(5, recipe.config)).items()}
    assert recipe.observe(recipe.num_steps, scores) == recipe.num_steps
    assert {name.split(".")[0] for name in recipe.weights()} == engines - {"D"}


# Learning.


def phantom(config: Config) -> Batch:
    """Two slices of a body at 40 HU: one with a hot and a cold spot, both darker and of different shades, one with a
    hot spot elsewhere."""
    _, y, x = config.patch
    low = torch.full((2, 1, 1, y, x), -1000.0)
    full = torch.zeros_like(low)
    low[..., 4:-4, 4:-4], full[..., 4:-4, 4:-4] = 40.0, 2.0
    low[0, ..., 8:14, 8:14], full[0, ..., 8:14, 8:14] = -20.0, 8.0
    low[0, ..., 18:24, 18:24], full[0, ..., 18:24, 18:24] = -90.0, 1.0
    low[1, ..., 16:22, 10:16], full[1, ..., 16:22, 10:16] = -20.0, 8.0
    return as_batch(low.expand(-1, -1, 1 + 2 * config.halo, -1, -1).clone(), full)


def test_training_finds_the_hot_spot_among_dark_ones() -> None:
    config = small(
        fcn_widths=(8, 8, 16, 16, 16),
        fcn_norm="batch",
        fcn_lr=3e-3,
        cgan_lr=2e-3,
        generator_width=8,
        fcn_samples=200,  # at 120 a dark spot is at 2.49 or 2.51, as the processor rounds; at 200 it is below 2
        cgan_samples=120,
    )
    recipe, batch = build(config), phantom(config)
    history = []
    for step in range(recipe.num_steps):
        torch.manual_seed(step)
        history.append(recipe.step(batch, step))
    start = recipe.phase_starts["cgan"]
    assert history[start - 1]["fcn"] < 0.1 * history[0]["fcn"]
    assert history[-1]["l2"] < 0.1 * history[start]["l2"]

    hot, cold = batch.target > 5, torch.zeros_like(batch.target, dtype=torch.bool)
    cold[0, ..., 18:24, 18:24] = True
    found = recipe.synthesizer().fcn  # F in training mode would drop half its features
    assert found is not None
    alone = BlendSynthesizer(config, found, None)(batch.source, {})
    for case in range(2):
        assert alone[case][hot[case]].max() > 2.5
    assert alone[cold].max() < 2.5
    assert alone[hot].mean() > 2 * alone[(batch.target == 2) & ~cold].mean()


# Validation.


def test_validation_is_inference_and_the_best_fcn_is_kept() -> None:
    recipe = build(small(fcn_norm="batch"))
    batch = make_batch(9, recipe.config)
    run(recipe, 0)
    before = tensors(recipe)
    first, again = recipe.validate(batch), recipe.validate(batch)
    assert moved(before, tensors(recipe)) == set()
    assert first == again
    assert first.keys() == {"fcn", "l2"}

    def of_f() -> dict[str, Tensor]:
        return {name: value.clone() for name, value in recipe.weights().items() if name.startswith("F.")}

    assert recipe.observe(1, {"fcn": 0.5, "l2": 1.0}) == 1
    kept = of_f()
    run(recipe, 1)
    assert recipe.observe(2, {"fcn": 0.6, "l2": 0.1}) == 2  # worse
    assert all(torch.equal(value, kept[name]) for name, value in of_f().items())
    run(recipe, 2)
    assert recipe.observe(3, {"fcn": 0.4, "l2": 0.1}) == 3
    best = of_f()
    assert any(not torch.equal(value, kept[name]) for name, value in best.items())
    run(recipe, 3)
    assert recipe.observe(4, {"fcn": 0.1, "l2": 0.1}) == 4  # F no longer learns
    assert all(torch.equal(value, best[name]) for name, value in of_f().items())
    last = recipe.state()["G"]["weight/net.image.1.weight"]
    assert torch.equal(recipe.weights()["G.net.image.1.weight"], last)


# Resume.


def test_resume_in_the_middle_of_each_phase_is_bit_equal() -> None:
    config = small()
    whole = build(config)

    def advance(recipe: VirtualPET, step: int) -> None:
        run(recipe, step)
        scores = {name: float(v) for name, v in recipe.validate(make_batch(99, config)).items()}
        recipe.observe(step + 1, scores)  # the loop's order: score, then save

    for step in range(whole.num_steps):
        resumed = build(config, seed=99)
        resumed.load(whole.state())
        advance(resumed, step)
        advance(whole, step)
        assert moved(tensors(whole), tensors(resumed)) == set(), step
        mine, theirs = whole.weights(), resumed.weights()
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


# Inference.


def blender(**changes: Any) -> BlendSynthesizer:
    recipe = build(small(**changes))
    if recipe.F is not None:
        wake(recipe)
    return recipe.synthesizer()


def volume(depth: int, halo: int) -> Tensor:
    """A CT of 40 x 24 voxels on a window of 64 x 32, its end slices repeated, air beside it."""
    random = torch.Generator().manual_seed(3)
    ct = torch.full((depth, 64, 32), -1000.0)
    ct[:, :40, :24] = 150 * torch.randn(depth, 40, 24, generator=random)
    return torch.cat([ct[:1].expand(halo, -1, -1), ct, ct[-1:].expand(halo, -1, -1)])[None, None]


@pytest.mark.parametrize(
    ("mode", "blend", "levels"), [("2d", "2d", 2), ("2.5d", "2d", 2), ("2.5d", "3d", 0), ("2.5d", "3d", 2)]
)
def test_tiles_equal_the_whole_volume_bit_for_bit(mode: str, blend: str, levels: int) -> None:
    synthesizer = blender(mode=mode, blend=blend, blend_levels=levels, blend_threshold_suv=1.0)
    margin = 12 if (blend, levels) == ("3d", 2) else 0
    tiling, halo = synthesizer.tiling, margin + (mode == "2.5d")
    assert (tiling.halo, tiling.overlap) == ((halo, 0, 0), (0, 0, 0))
    assert tiling.multiple == (4 if margin else 1, 32, 32)
    low = volume(24, halo)
    whole = synthesizer(low, {})
    assert whole.shape == (1, 1, 24, 64, 32)
    assert whole.min() >= 0
    for begin, edge in ((0, 8), (8, 12), (20, 4)):
        tile = synthesizer(low[:, :, begin : begin + edge + 2 * halo], {})
        assert torch.equal(tile, whole[:, :, begin : begin + edge])
    pair = torch.cat([low[:, :, : 12 + 2 * halo], low[:, :, 12:]])
    assert torch.equal(torch.cat(list(synthesizer(pair, {})), 1)[None], whole)
    # It is what blending the two whole images gives, not windows of them.
    f, g = (
        BlendSynthesizer(synthesizer.config, *networks)(low, {})
        for networks in ((synthesizer.fcn, None), (None, synthesizer.generator))
    )
    assert (f > 1.0).any()
    assert (f <= 1.0).any()
    expected = virtual_pet.blended(synthesizer.config, f, g)
    inner = slice(margin, expected.shape[2] - margin)
    assert torch.equal(expected[:, :, inner], whole)


def unreached(module: nn.Module, step: Callable[[], object], steps: int) -> dict[str, Tensor]:
    """Places (y, x) of kernels at which no weight of any channel got a gradient in any of ``steps`` steps."""
    reached = {n: torch.zeros(p.shape[2:], dtype=torch.bool) for n, p in module.named_parameters() if p.dim() == 4}
    hooks = []
    for name, weight in module.named_parameters():
        if name in reached:

            def note(gradient: Tensor, name: str = name) -> None:
                reached[name] |= gradient.ne(0).any(0).any(0)

            hooks.append(weight.register_hook(note))
    for _ in range(steps):
        step()
    for hook in hooks:
        hook.remove()
    return {name: ~places for name, places in reached.items() if not places.all()}


@pytest.mark.parametrize(
    ("network", "changes", "untrained"),
    [
        ("fcn", {"fcn_norm": "batch"}, {"classifier.0.weight": 8, "ups.0.weight": 12}),  # a map of 1 x 1
        ("fcn", {"patch": (1, 64, 64), "fcn_norm": "batch"}, {}),
        ("fcn", {"patch": (1, 64, 64), "fcn_fc6_kernel": 5, "fcn_norm": "batch"}, {"classifier.0.weight": 16}),
        ("cgan", {"generator_downs": 5}, {"net.encoder.4.1.weight": 12, "net.decoder.0.1.weight": 12}),
        ("cgan", {"generator_downs": 4}, {}),
    ],
)
def test_no_weight_that_no_gradient_reached_takes_part(
    network: str, changes: dict[str, Any], untrained: dict[str, int]
) -> None:
    config = small(networks=network, **changes)
    recipe = build(config)
    if network == "fcn":
        wake(recipe)
    engine = recipe.engines["F" if network == "fcn" else "G"]
    batches = iter(range(6))
    places = unreached(engine.module, lambda: run(recipe, next(batches) % recipe.num_steps), 3)
    assert {name: int(where.sum()) for name, where in places.items()} == untrained
    assert config.reaches(network) == (not untrained)
    synthesizer = recipe.synthesizer()
    _, y, x = config.patch
    sources = [300 * torch.randn(1, 1, 3, k * y, k * x) for k in (1, 2, 3)]
    before = [synthesizer(source, {}) for source in sources]
    assert all(image.std() > 0 for image in before)
    for name, where in places.items():
        weight = engine.module.get_parameter(name)
        with torch.no_grad():
            weight[:, :, where] = 10 * torch.randn_like(weight[:, :, where])
    for source, image in zip(sources, before, strict=True):
        assert torch.equal(synthesizer(source, {}), image)


@torch.no_grad()
def test_windows_become_the_slice_that_they_were_cut_from() -> None:
    x = torch.randn(1, 3, 40, 24)
    pointwise = nn.Conv2d(3, 1, 1)
    torch.testing.assert_close(in_windows(pointwise, x, (16, 8)), pointwise(x))
    assert torch.equal(in_windows(pointwise, x, (40, 24)), pointwise(x))
    seen: list[torch.Size] = []

    def network(part: Tensor) -> Tensor:
        seen.append(part.shape)
        return part[:, :1]

    in_windows(network, x, (16, 8))
    assert set(seen) == {torch.Size((1, 3, 16, 8))}
    assert len(seen) == 4 * 5


def test_three_levels_get_a_margin_on_their_grid() -> None:
    tiling = blender().tiling
    assert tiling.halo == (32 + 1, 0, 0)  # 28 are reached, and 8 is the grid
    assert tiling.multiple == (8, 32, 32)


def test_blending_scales_with_suv() -> None:
    random = torch.Generator().manual_seed(0)
    f, g = (5 * torch.rand(1, 1, 9, 8, 8, generator=random) for _ in range(2))
    once = virtual_pet.blended(Config(), f, g)
    twice = virtual_pet.blended(Config(blend_threshold_suv=5.0), 2 * f, 2 * g)
    torch.testing.assert_close(twice, 2 * once)
    hard = virtual_pet.blended(Config(blend_levels=0), f, g)
    assert torch.equal(hard, torch.where(f > 2.5, f, g))
    flat = virtual_pet.blended(Config(blend="2d"), f, g)
    assert torch.equal(flat[:, :, 4:5], virtual_pet.blended(Config(blend="2d"), f[:, :, 4:5], g[:, :, 4:5]))
    at_threshold = torch.full_like(f, 2.5)
    assert torch.equal(virtual_pet.blended(Config(blend_levels=0), at_threshold, g), g)


@pytest.mark.parametrize("networks", ["both", "fcn", "cgan"])
def test_exported_weights_synthesize_what_the_recipe_does(networks: str) -> None:
    config = small(networks=networks, blend_threshold_suv=0.5, blend_levels=1)
    recipe = build(config)
    for step in recipe.phase_starts.values():
        run(recipe, step)
    if networks != "cgan":
        wake(recipe)
    before = torch.get_rng_state()
    theirs = virtual_pet.weights_to_synthesizer(config, recipe.weights())
    assert torch.equal(torch.get_rng_state(), before)
    mine: Synthesizer = recipe.synthesizer()
    assert mine.tiling == theirs.tiling
    assert mine.context_batch is None
    assert mine.context(torch.zeros(1), torch.zeros(1)) == {}
    low = volume(4, mine.tiling.halo[0])
    a, b = mine(low, {}), theirs(low, {})
    assert torch.equal(a, b)
    assert a.shape == (1, 1, 4, 64, 32)
    assert a.max() > 0
    assert not a.requires_grad
    with pytest.raises(InputError, match="CKPT_CONFIG"):
        virtual_pet.weights_to_synthesizer(small(networks=networks, fcn_fc=9, generator_width=5), recipe.weights())


# VGG16 in the system.


def test_the_fcn_starts_from_vgg16s_file(tmp_path: Path) -> None:
    torch.manual_seed(5)
    weights = {f"features.{k}": v for k, v in fcn_of(small()).features.state_dict().items()}
    path = tmp_path / "vgg16.safetensors"
    save_file(weights, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    config = small(fcn_weights=str(path), fcn_weights_sha256=digest)
    assert virtual_pet.files(config) == {"fcn_weights": path}
    exported = build(config).weights()
    assert all(torch.equal(exported[f"F.{name}"], value) for name, value in weights.items())
    assert digest in " ".join(virtual_pet.caveats(config))
    assert virtual_pet.files(small()) == {}
    assert virtual_pet.files(small(networks="cgan", fcn_weights="none.safetensors")) == {}
    missing = small(fcn_weights="none.safetensors", fcn_weights_sha256=digest)
    for refused in (lambda: virtual_pet.files(missing), lambda: build(missing)):
        with pytest.raises(InputError, match=r"CFG_BACKBONE none\.safetensors") as error:
            refused()
        assert "recipe.fcn_weights=" in error.value.remedy
    with torch.device("meta"):
        dry = virtual_pet.build(missing, make_engine=plain_engine, patches_per_step=2)
    assert dry.num_steps == 7


# What the registry asks.


def test_a_run_is_fed_one_ct_in_hu_and_pet_in_suv() -> None:
    config = Config()
    virtual_pet.check(config, virtual_pet.FEED, {})
    virtual_pet.check(config, FeedConfig(source=("ct",), target="low_drf4"), {})
    for feed, code, field in (
        (FeedConfig(source=("ct",), suv_scale=5.0), "CFG_SCALE", "feed.suv_scale"),
        (FeedConfig(source=("ct", "ct_2"), suv_scale=1.0), "CFG_INPUTS", "feed.source"),
    ):
        with pytest.raises(InputError) as error:
            virtual_pet.check(config, feed, {})
        assert (error.value.code, error.value.where) == (code, field)
        assert "\n" not in str(error.value)
    assert virtual_pet.PRESET in PRESETS
    assert set(virtual_pet.ROLES) == {"validation"}


def test_caveats_tell_the_variant_the_start_the_weights_and_the_blending() -> None:
    lines = " ".join(virtual_pet.caveats(Config(blend_levels=2)))
    for part in ("blended", "no ImageNet weights", "SUV^1", "not weighted by SUV", "3d, 2 levels", "grid"):
        assert part in lines
    lines = " ".join(virtual_pet.caveats(Config(networks="fcn", suv_weight_gamma=0)))
    assert "FCN alone" in lines
    assert "not weighted" in lines
    assert "Blending" not in lines
    lines = " ".join(virtual_pet.caveats(Config(networks="cgan", cgan_suv_weighted=True)))
    assert "conditional GAN alone" in lines
    assert "ImageNet" not in lines


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"mode": "3d"}, "CFG_CHOICE", "mode"),
        ({"networks": "none"}, "CFG_CHOICE", "networks"),
        ({"blend": "4d"}, "CFG_CHOICE", "blend"),
        ({"decoder": "mine"}, "CFG_CHOICE", "decoder"),
        ({"fcn_norm": "layer"}, "CFG_CHOICE", "fcn_norm"),
        ({"patch": (1, 128, 256)}, "CFG_PATCH_SIZE", "patch"),
        ({"patch": (0, 256, 256)}, "CFG_PATCH_SIZE", "patch"),
        ({"patch": (1, 0, 256)}, "CFG_PATCH_SIZE", "patch"),
        ({"generator_downs": 5, "patch": (1, 96, 48)}, "CFG_PATCH_SIZE", "patch"),
        ({"generator_downs": 5, "patch": (1, 32, 32), "critic_strides": (2,) * 5}, "CFG_PATCH_SIZE", "critic_strides"),
        ({"critic_strides": ()}, "CFG_RANGE", "critic_strides"),
        ({"critic_strides": (3, 1)}, "CFG_RANGE", "critic_strides"),
        ({"fcn_widths": (64, 128)}, "CFG_RANGE", "fcn_widths"),
        ({"fcn_fc6_kernel": 4}, "CFG_RANGE", "fcn_fc6_kernel"),
        ({"ct_window": (240.0, -160.0)}, "CFG_RANGE", "ct_window"),
        ({"suv_max": 0.0}, "CFG_RANGE", "suv_max"),
        ({"suv_weight_mean": 0.0}, "CFG_RANGE", "suv_weight_mean"),
        ({"suv_weight_gamma": -1.0}, "CFG_RANGE", "suv_weight_gamma"),
        ({"blend_levels": -1}, "CFG_RANGE", "blend_levels"),
        ({"generator_downs": 1}, "CFG_RANGE", "generator_downs"),
        ({"cgan_lr": 0.0}, "CFG_RANGE", "cgan_lr"),
        ({"cgan_betas": (0.5, 1.0)}, "CFG_RANGE", "cgan_betas"),
        ({"rois": ("liver", "liver")}, "CFG_ROI", "rois"),
        ({"fcn_skips": 4}, "CFG_RANGE", "fcn_skips"),
        ({"lambda_adversarial": -1.0}, "CFG_RANGE", "lambda_adversarial"),
        ({"lambda_l2": 0.0, "lambda_adversarial": 0.0}, "CFG_RANGE", "lambda_l2"),
        ({"fcn_samples": 0}, "CFG_STAGE", "fcn_samples"),
        ({"patches_per_case": 0}, "CFG_RANGE", "patches_per_case"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(changes: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(InputError) as error:
        Config(**changes)
    assert error.value.code == code
    assert error.value.where == f"virtual_pet.{field}"
    assert "\n" not in str(error.value)


def test_a_network_that_is_not_trained_asks_nothing_of_the_window() -> None:
    assert Config(networks="fcn", patch=(1, 192, 96), cgan_samples=0).samples("cgan") == 0
    assert Config(networks="cgan", patch=(1, 48, 16), generator_downs=4, critic_strides=(2, 1)).downs == 4


# G's square root of SUV, and its start at the table of HU, which are not the paper's.

OWN: dict[str, Any] = {"suv_curve": "sqrt", "residual": "hu", "table_samples": 4}


def test_the_square_root_of_suv_goes_there_and_back() -> None:
    c = Config(suv_curve="sqrt")
    suv = torch.linspace(0, 20, 201)
    torch.testing.assert_close(virtual_pet.cgan_suv(c, virtual_pet.cgan_target(c, suv)), suv, atol=1e-5, rtol=1e-5)
    assert virtual_pet.cgan_target(c, torch.tensor([5.0, 20.0, 0.0])).tolist() == [0, 1, -1]  # 2 sqrt(1/4) - 1
    assert virtual_pet.fcn_target(c, torch.tensor(5.0)) == 0.25  # F stays as published
    assert virtual_pet.cgan_suv(c, torch.tensor([-1.5])).tolist() == [0]


@pytest.mark.parametrize("curve", ["linear", "sqrt"])
def test_g_starts_at_the_mean_suv_of_every_hu(curve: str) -> None:
    config = small(**{**OWN, "suv_curve": curve}, networks="cgan", mode="2.5d")
    recipe = build(config)
    assert recipe.phase_starts == {"table": 0, "cgan": 2}
    z, y, x = config.patch
    hu = torch.where(torch.arange(x) < x // 2, -700.0, 30.0).expand(2, 1, z + 2, y, x)
    for step, added in enumerate((0.0, 2.0)):  # lung of SUV 0 and 2, muscle of 1 and 3
        recipe.step(as_batch(hu, torch.where(hu[:, :, 1:-1] < 0, 0.0, 1.0) + added), step)
    wanted = torch.where(hu[:1, :, 1:-1] < 0, 1.0, 2.0)
    torch.testing.assert_close(recipe.synthesizer()(hu[:1], {}), wanted)
    scores = recipe.validate(as_batch(hu, wanted.expand(2, -1, -1, -1, -1)))
    assert float(scores["l2"]) == pytest.approx(0, abs=1e-12)

    run(recipe, 2)
    ours = recipe.synthesizer()(hu[:1], {})
    assert not torch.allclose(ours, wanted)
    exported = virtual_pet.weights_to_synthesizer(config, recipe.weights())
    assert torch.equal(exported(hu[:1], {}), ours)
    assert exported.table is not None
    assert len(exported.table) == hu_table.RANGES
    without = {name: value for name, value in recipe.weights().items() if name != "table.suv"}
    with pytest.raises(InputError, match="CKPT_CONFIG"):
        virtual_pet.weights_to_synthesizer(config, without)


def test_a_start_at_the_table_resumes_to_the_same_bits_and_leaves_the_papers_phases_as_they_are() -> None:
    config = small(**OWN)
    plain, whole = build(small()), build(config)
    assert whole.phase_starts == {"table": 0, "fcn": 2, "cgan": 2 + plain.phase_starts["cgan"]}
    assert "table" not in build(small(**OWN, networks="fcn")).phase_starts
    for step in range(0, whole.num_steps, 2):
        resumed = build(config, seed=99)
        resumed.load(whole.state())
        for recipe in (whole, resumed):
            torch.manual_seed(step)
            recipe.step(make_batch(step, config), step)
        assert moved(tensors(whole), tensors(resumed)) == set(), step
        mine, theirs = whole.weights(), resumed.weights()
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    lines = " ".join(virtual_pet.caveats(config))
    assert "square root" in lines
    assert "mean SUV of every HU" in lines


def test_where_g_starts_at_the_table_the_best_g_is_kept() -> None:
    config = small(**OWN, networks="cgan")
    recipe = build(config)

    def of_g(recipe: VirtualPET) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in recipe.weights().items() if name.startswith("G.")}

    def after(step: int, l2: float) -> dict[str, Tensor]:
        run(recipe, step)
        assert recipe.observe(step + 1, {"l2": l2}) == step + 1
        return of_g(recipe)

    after(0, 0.0)  # of half a table
    assert after(1, 0.1).keys() == (first := after(2, 0.5)).keys()
    assert same(after(3, 0.6), first)
    resumed = build(config, seed=9)
    resumed.load(recipe.state())
    assert same(of_g(resumed), first)
    assert resumed.observe(4, {"l2": 0.55}) == 4
    assert same(of_g(resumed), first)
    best = after(4, 0.4)
    assert not same(best, first)
    assert same(best, {f"G.{name}": value for name, value in recipe.G.module.state_dict().items()})


def test_tiles_of_windows_take_their_part_of_the_table() -> None:
    """A network whose windows are smaller than the slice is shown each window's own start."""
    config = small(**OWN, networks="cgan", generator_downs=5)
    assert not config.reaches("cgan")
    recipe = build(config)
    for step in (0, 1):
        run(recipe, step)
    low = volume(2, config.halo)
    table = recipe.synthesizer().table
    assert table is not None
    suv = table[hu_table.ranges(low[:, :, config.halo : -config.halo])].clamp(0, config.suv_max)
    torch.testing.assert_close(recipe.synthesizer()(low, {}), suv, atol=1e-5, rtol=1e-5)


def test_weights_for_an_fcn_that_is_left_out_are_refused() -> None:
    """Settings of practice train the generator alone: whoever names VGG16's weights wants the FCN."""
    config = replace(Config(), networks="cgan", fcn_weights="vgg16.safetensors")
    with pytest.raises(InputError, match=r"CFG_CONTRADICTION recipe\.fcn_weights: .*--recipe\.networks both"):
        virtual_pet.check(config, virtual_pet.FEED, {})
    virtual_pet.check(replace(config, networks="both"), virtual_pet.FEED, {})


def test_settings_of_an_fcn_that_is_left_out_are_told() -> None:
    alone = replace(Config(), networks="cgan")
    assert virtual_pet.remarks(alone, (4.0, 4.0, 4.0)) == ()
    given = replace(alone, blend_levels=2, fcn_lr=1e-3, suv_weight_gamma=0.5)
    (told,) = virtual_pet.remarks(given, (4.0, 4.0, 4.0))
    assert told.startswith("no effect: recipe.suv_weight_gamma, recipe.fcn_lr, recipe.blend_levels; ")
    (told,) = virtual_pet.remarks(replace(given, cgan_suv_weighted=True), (4.0, 4.0, 4.0))
    assert "suv_weight_gamma" not in told
    assert virtual_pet.remarks(replace(given, networks="both"), (4.0, 4.0, 4.0)) == ()
