import dataclasses
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from network_facts import count, moved
from torch import Tensor, nn

from storage.errors import InputError
from trainers import dose_gaussian, losses
from trainers.dose_gaussian import Widths
from trainers.engine import plain_engine
from trainers.organ_segmenter import guide_of
from trainers.recipe import Batch, Exporting, Scan
from trainers.systems import sgsgan
from trainers.systems.sgsgan import Config, networks

SMALL: dict[str, Any] = {
    "growth": 2,
    "style_dim": 8,
    "overview": 16,
    "patch": (24, 24, 24),
    "patches_per_case": 2,
    "context_patches": 3,
    "critic_channels": 2,
    "segmenter_channels": 1,
    "rois": ("liver", "bladder"),
    "phase_samples": (4, 4, 4, 4),
}
PLAIN: dict[str, Any] = {"use_noise": False, "use_adain": False}

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


def small(**changes: Any) -> Config:
    return Config(**{**SMALL, **changes})


def build(config: Config, seed: int = 0) -> sgsgan.SGSGAN:
    torch.manual_seed(seed)
    return sgsgan.build(config, make_engine=plain_engine, patches_per_step=2)


def make_batch(recipe: sgsgan.SGSGAN, step: int, cases: int = 1) -> Batch:
    random = torch.Generator().manual_seed(step)
    spec = recipe.batch_spec(step)
    b = cases * spec.patches_per_case
    full = torch.rand(b, 1, *spec.patch, generator=random)
    low = torch.rand(b, 1, *(n + 2 * h for n, h in zip(spec.patch, spec.halo, strict=True)), generator=random)
    masks = (torch.rand(b, len(spec.rois), *spec.patch, generator=random) > 0.7).float()
    overview = torch.rand(cases, 1, spec.overview, spec.overview, spec.overview, generator=random)
    return Batch(
        source=low,
        target=full,
        masks=masks,
        overview=overview,
        drf=torch.full((b,), 20.0),
        cases=cases,
        places=("",) * b,
        spacing_mm=torch.full((b, 3), 4.0),
        peak=torch.ones(b),
    )


def run(recipe: sgsgan.SGSGAN, step: int) -> dict[str, Tensor]:
    batch = make_batch(recipe, step)
    torch.manual_seed(1000 + step)  # as the loop does
    return recipe.step(batch, step)


def weights(recipe: sgsgan.SGSGAN) -> dict[str, dict[str, Tensor]]:
    return {
        engine: {name: value for name, value in state.items() if name.startswith("weight/")}
        for engine, state in recipe.state().items()
    }


def perturb(module: nn.Module) -> None:
    """Move every weight off its initial value, so that no zero bias hides a mistake."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.05 * torch.randn_like(p))


def generator(config: Config) -> networks.Generator:
    torch.manual_seed(0)
    G = sgsgan.generator(config)
    perturb(G)
    return G.eval()


def assert_same_images(a: Tensor, b: Tensor, synthesis: str) -> None:
    """Equal up to fp32 rounding, of which the 3D-UNet on 32^3 patches shows more than DCITN."""
    assert (a - b).abs().mean() < {"dcitn": 1e-5, "unet3d": 1e-3}[synthesis] * b.std()


# 1. Parameter counts against the paper's Table I, in millions with two decimals.


def test_parameter_counts_give_the_published_ones() -> None:
    with torch.device("meta"):
        mapping = count(networks.MappingNetwork(64, 512))
        dcitn = count(sgsgan.generator(Config(**PLAIN)))
        sgsgan_dcitn = count(sgsgan.generator(Config()))
        unet = count(sgsgan.generator(Config(synthesis="unet3d", **PLAIN)))
        sgsgan_unet = count(sgsgan.generator(Config(synthesis="unet3d")))
        critic = count(networks.Critic(64))
        segmenter = count(networks.Segmenter(16, 4))
    assert (mapping, dcitn, sgsgan_dcitn) == (535_400, 25_969, 594_233)
    assert (unet, sgsgan_unet) == (49_395_937, 50_275_737)
    assert (critic, segmenter) == (11_046_977, 4_770_724)  # in no published count: 0.03 M is less than either
    published = {dcitn: 0.03, sgsgan_dcitn: 0.59, unet: 49.40, sgsgan_unet: 50.28}
    assert all(round(found / 1e6, 2) == stated for found, stated in published.items())

    # Every difference explained: A and P of the modulated channels, and the affine factors that A replaces.
    def style(channels: int) -> int:
        return (512 + 1) * 2 * channels + channels

    assert sgsgan_dcitn - dcitn == mapping + style(4 * 8)
    assert sgsgan_unet - unet == mapping + style(48 + 96 + 192) - 2 * (48 + 96 + 192)


def test_modulating_every_layer_misses_the_published_count() -> None:
    with torch.device("meta"):
        every = count(sgsgan.generator(Config(modulated=(0, 1, 2, 3, 4))))
        five_units = count(sgsgan.generator(Config(units=5, **PLAIN)))
        input_too = count(sgsgan.generator(Config(units=5, stem_channels=8, concat_input=True, **PLAIN)))
    assert (every, five_units, input_too) == (610_665, 36_561, 28_588)


# 2. Shapes.


@pytest.mark.parametrize("shape", [(24, 24, 24), (40, 48, 56)])
def test_generator_crops_the_halo_and_nothing_else(shape: tuple[int, int, int]) -> None:
    config = small()
    low = torch.rand(2, 1, *(edge + 2 * config.margin for edge in shape))
    assert generator(config)(low, torch.rand(1, 1, 16, 16, 16), cases=1).shape == (2, 1, *shape)


def test_mapping_network_halves_as_the_count_demands_and_refuses_other_sizes() -> None:
    mapping = networks.MappingNetwork(64, 512)
    sizes: list[int] = []
    for layer in mapping.blocks:
        if isinstance(layer, nn.Conv3d):
            layer.register_forward_hook(lambda _module, _input, output: sizes.append(output.shape[-1]))
    assert mapping(torch.rand(1, 1, 64, 64, 64)).shape == (1, 512)
    assert sizes == [63, 32, 31, 16, 15, 8, 7, 4]
    with pytest.raises(ValueError, match="64"):
        mapping(torch.rand(1, 1, 32, 32, 32))


@pytest.mark.parametrize(("edge", "scores"), [(64, 6), (32, 2), (24, 1)])
def test_critic_scores(edge: int, scores: int) -> None:
    assert networks.Critic(2)(torch.rand(1, 1, edge, edge, edge)).shape == (1, 1, scores, scores, scores)


def test_critic_refuses_patches_that_its_field_cannot_fill() -> None:
    with pytest.raises(ValueError, match="spatial"):
        networks.Critic(2)(torch.rand(1, 1, 16, 16, 16))


def test_critic_is_blind_to_the_level_of_a_patch_but_not_to_its_texture() -> None:
    D = networks.Critic(4)
    image = torch.rand(1, 1, 48, 48, 48)
    scores = D(image)
    assert (D(3 * image) - scores).abs().max() < 0.05 * (D(torch.rand_like(image)) - scores).abs().max()


# 3 to 6. Style.


def adain(channels: int) -> tuple[networks.Modulation, networks.Shared, Tensor, Tensor]:
    factors = nn.Linear(4, 2 * channels)
    style = torch.randn(1, 4)
    gamma, beta = factors(style).detach().chunk(2, dim=1)
    shared = networks.Shared(1, style, networks.live_moments)
    return networks.Modulation("layer", None, factors), shared, gamma[0], beta[0]


def test_adain_sets_mean_and_biased_deviation() -> None:
    torch.manual_seed(0)
    modulation, shared, gamma, beta = adain(3)
    out = modulation(5 * torch.randn(2, 3, 8, 8, 8) + 7, shared, 0)
    torch.testing.assert_close(out.mean((0, 2, 3, 4)), beta, atol=1e-3, rtol=0)
    torch.testing.assert_close(out.std((0, 2, 3, 4), correction=0), gamma.abs(), atol=1e-3, rtol=0)


def test_adain_forgets_scale_and_shift_of_its_input() -> None:
    torch.manual_seed(0)
    modulation, shared, *_ = adain(3)
    f = torch.randn(2, 3, 8, 8, 8)
    torch.testing.assert_close(modulation(3 * f + 2, shared, 0), modulation(f, shared, 0), atol=1e-4, rtol=0)


def test_adain_worked_example() -> None:
    factors = networks.FixedFactors(1)
    with torch.no_grad():
        factors.weight.fill_(0.5)
        factors.bias.fill_(2.0)
    f = torch.tensor([1.0, 3.0]).view(1, 1, 1, 1, 2)
    out = networks.Modulation("layer", None, factors)(f, networks.Shared(1, None, networks.live_moments), 0)
    assert out.flatten().tolist() == pytest.approx([1.5, 2.5], abs=1e-5)


def test_neutral_statistics_and_factors_leave_plain_dcitn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "EPS", 0.0)
    config = small()
    styled = generator(config)
    for module in styled.modules():
        if isinstance(module, networks.Modulation) and isinstance(module.factors, nn.Linear):
            nn.init.zeros_(module.factors.weight)
            with torch.no_grad():
                module.factors.bias.copy_(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    plain = sgsgan.generator(dataclasses.replace(config, **PLAIN)).eval()
    plain.load_state_dict({k: v for k, v in styled.state_dict().items() if k in plain.state_dict()})
    low = torch.rand(1, 1, 30, 30, 30)
    neutral = {f"{key}/layer{i}": torch.full((1, 2), float(key == "var")) for key in ("mean", "var") for i in range(5)}
    neutral["style"] = torch.rand(1, 8)
    assert torch.equal(styled.synthesize(low, neutral), plain.synthesize(low, {}))


def test_noise_is_on_in_training_only() -> None:
    G = generator(small())
    low, overview = torch.rand(2, 1, 36, 36, 36), torch.rand(1, 1, 16, 16, 16)
    assert torch.equal(G(low, overview, cases=1), G(low, overview, cases=1))
    G.train()
    assert not torch.equal(G(low, overview, cases=1), G(low, overview, cases=1))
    for module in G.modules():
        if isinstance(module, networks.Noise):
            nn.init.zeros_(module.scale)
    assert torch.equal(G(low, overview, cases=1), G(low, overview, cases=1))


def test_one_noise_map_is_shared_by_the_channels_and_scaled_per_channel() -> None:
    torch.manual_seed(0)
    noise = networks.Noise(3, std=0.01)
    with torch.no_grad():
        noise.scale.copy_(torch.tensor([2.0, 0.0, -1.0]))
    f = torch.zeros(2, 3, 16, 16, 16)
    out = noise(f)
    assert torch.equal(out[:, 1], f[:, 1])
    torch.testing.assert_close(out[:, 0], -2 * out[:, 2])
    assert out[:, 2].std().item() == pytest.approx(0.01, rel=0.05)
    assert not torch.equal(out[0], out[1])


def test_mapping_ignores_the_scale_of_the_image_and_nothing_else() -> None:
    mapping = generator(small()).mapping
    assert mapping is not None
    a = torch.rand(1, 1, 16, 16, 16)
    b = a * torch.linspace(0, 2, 16)
    torch.testing.assert_close(mapping(3 * a), mapping(a), rtol=1e-4, atol=1e-6)
    assert (mapping(a) - mapping(b)).abs().max() > 1e-2  # two non-negative images: not the sign of x


# DCITN as published: each unit convolves the concatenation of all earlier maps.


@pytest.mark.parametrize("concat_input", [False, True])
@pytest.mark.parametrize("halo", [0, 3, 6, 8])
def test_dcitn_is_the_densely_concatenated_network(concat_input: bool, halo: int) -> None:
    G = generator(small(concat_input=concat_input, halo=halo, **PLAIN))
    net = G.synthesis
    assert isinstance(net, networks.DCITN)
    low = torch.rand(2, 1, 40, 40, 40)

    def padded(layer: Any, f: Tensor) -> Tensor:
        return F.conv3d(f, layer.weight, layer.bias, padding=1)

    f = F.leaky_relu(padded(net.stem, low), 0.2)
    maps = [low, f] if concat_input else [f]
    for unit in net.units:
        maps.append(F.leaky_relu(padded(unit, torch.cat(maps, dim=1)), 0.2))
    expected = padded(net.out, torch.cat(maps, dim=1))
    found = G.synthesize(low, {})
    same = 8 if halo != 3 else 12  # voxels that no zero padding has reached in either network
    torch.testing.assert_close(networks._crop(found, same - halo), networks._crop(expected, same), rtol=1e-4, atol=1e-5)
    if halo == 0:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# 7 to 9. Receptive field, tiles, statistics of a case.


def test_a_voxel_reaches_six_voxels_far_in_a_frozen_context_and_everything_in_a_live_one() -> None:
    G = generator(small())
    assert small().margin == 6
    overview, low = torch.rand(1, 1, 16, 16, 16), torch.rand(1, 1, 41, 41, 41)
    changed = low.clone()
    changed[0, 0, 20, 20, 20] += 5
    context = G.context(low, overview)
    difference = (G.synthesize(changed, context) - G.synthesize(low, context))[0, 0].abs()
    far = torch.stack(torch.meshgrid(*[(torch.arange(29) - 14).abs()] * 3, indexing="ij")).amax(0)
    assert difference[far == 6].max() > 0
    assert difference[far > 6].max() == 0
    live = (G(changed, overview, cases=1) - G(low, overview, cases=1))[0, 0].abs()
    assert (live[far > 6] > 0).float().mean() > 0.99


def tiled(G: networks.Generator, volume: Tensor, context: dict[str, Tensor], tile: int, halo: int) -> Tensor:
    padded = F.pad(volume, [halo] * 6)
    out = torch.full_like(volume, torch.nan)
    starts = [range(0, edge, tile) for edge in volume.shape[2:]]
    for z, y, x in reversed(list(itertools.product(*starts))):  # any order
        window = padded[..., z : z + tile + 2 * halo, y : y + tile + 2 * halo, x : x + tile + 2 * halo]
        out[..., z : z + tile, y : y + tile, x : x + tile] = G.synthesize(window, context)
    return out


@torch.no_grad()
def test_tiles_with_the_halo_equal_the_whole_volume_and_with_less_do_not() -> None:
    G, narrow = generator(small()), generator(small(halo=5))
    assert all(torch.equal(a, b) for a, b in zip(G.parameters(), narrow.parameters(), strict=True))
    volume = torch.rand(1, 1, 40, 40, 40)
    context = G.context(F.pad(volume, [6] * 6), torch.rand(1, 1, 16, 16, 16))
    whole = G.synthesize(F.pad(volume, [6] * 6), context)
    for tile in (16, 24, 40):
        torch.testing.assert_close(tiled(G, volume, context, tile, 6), whole, rtol=1e-5, atol=1e-5)
    assert (tiled(narrow, volume, context, 16, 5) - whole).abs().max() > 1e-3 * whole.abs().max()


def partition(volume: Tensor, tile: int, halo: int) -> Tensor:
    padded = F.pad(volume, [halo] * 6)
    starts = itertools.product(*[range(0, edge, tile) for edge in volume.shape[2:]])
    size = tile + 2 * halo
    return torch.cat([padded[..., z : z + size, y : y + size, x : x + size] for z, y, x in starts])


@torch.no_grad()
def test_statistics_over_an_exact_partition_are_those_of_the_whole_volume() -> None:
    G, overview = generator(small()), torch.rand(1, 1, 16, 16, 16)
    volume = torch.rand(1, 1, 32, 32, 32)
    whole = G.context(F.pad(volume, [6] * 6), overview)
    parts = G.context(partition(volume, 16, 6), overview)
    assert whole.keys() == parts.keys() == {"style", *(f"{k}/layer{i}" for k in ("mean", "var") for i in range(1, 5))}
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("synthesis", ["dcitn", "unet3d"])
def test_cases_of_a_batch_do_not_meet_and_order_within_a_case_is_free(synthesis: str) -> None:
    config = small(synthesis=synthesis, unet_channels=2, patch=(32, 32, 32))
    G = generator(config)
    edge = 32 + 2 * config.margin
    low, overview = torch.rand(4, 1, edge, edge, edge), torch.rand(2, 1, 16, 16, 16)
    both = G(low, overview, cases=2)
    assert_same_images(G(low[:2], overview[:1], cases=1), both[:2], synthesis)
    assert_same_images(G(low[2:], overview[1:], cases=1), both[2:], synthesis)
    assert_same_images(G(low[[1, 0, 2, 3]], overview, cases=2), both[[1, 0, 2, 3]], synthesis)


@torch.no_grad()
@pytest.mark.parametrize("synthesis", ["dcitn", "unet3d"])
def test_a_context_replays_the_statistics_it_was_made_from(synthesis: str) -> None:
    config = small(synthesis=synthesis, unet_channels=2, patch=(32, 32, 32))
    G = generator(config)
    edge = 32 + 2 * config.margin
    low, overview = torch.rand(3, 1, edge, edge, edge), torch.rand(1, 1, 16, 16, 16)
    live = G(low, overview, cases=1)
    assert_same_images(G.synthesize(low[1:2], G.context(low, overview)), live[1:2], synthesis)


# 10. Losses (values of the shared ones are in test_losses.py).


def test_segmentation_loss_worked_example() -> None:
    s = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(1, 1, 1, 1, 4)
    logits = torch.logit(torch.tensor([0.9, 0.2, 0.6, 0.1])).view(1, 1, 1, 1, 4)
    terms = sgsgan.segmentation_losses(logits, s, "bce+dice")
    assert terms["bce"].item() == pytest.approx(0.236173, abs=1e-6)
    assert terms["dice"].item() == pytest.approx(0.210526, abs=1e-6)
    assert set(sgsgan.segmentation_losses(logits, s, "bce")) == {"bce"}
    assert set(sgsgan.segmentation_losses(logits, s, "dice")) == {"dice"}


def test_content_loss_worked_example() -> None:
    y, yh = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 1.0, 5.0, 4.0])
    assert sgsgan.CONTENT["l1"](yh, y).item() == 0.75
    assert sgsgan.CONTENT["l2"](yh, y).item() == 1.25
    for loss in sgsgan.CONTENT.values():
        image = torch.rand(1, 1, 5, 5, 5)
        assert loss(image, image).item() == 0


@pytest.mark.parametrize("content", ["l1", "l2", "gde", "l1+gde"])
@pytest.mark.parametrize("seg_loss", ["bce", "dice", "bce+dice"])
def test_the_generator_loss_is_equation_10(content: Any, seg_loss: Any) -> None:
    recipe = build(small(content=content, seg_loss=seg_loss, lambda_content=7, lambda_seg=3))
    m = run(recipe, 4)
    parts = m["adversarial"] + 7 * sum(m[k] for k in content.split("+")) + 3 * sum(m[k] for k in seg_loss.split("+"))
    torch.testing.assert_close(m["generator"], parts)
    torch.testing.assert_close(m["wasserstein"], -m["critic"])
    assert not any(value.requires_grad for value in m.values())


# 11 to 13. Who moves.


def test_phases_have_the_papers_length_and_order() -> None:
    recipe = sgsgan.build(small(phase_samples=(5, 1, 3, 2)), make_engine=plain_engine, patches_per_step=2)
    assert [recipe.phase(step) for step in range(recipe.num_steps)] == [
        *["gan"] * 3,
        "segmenter",
        *["guided gan"] * 2,
        "final segmenter",
    ]
    with pytest.raises(ValueError, match="7"):
        recipe.phase(7)
    assert recipe.batch_spec(0).rois == ()
    assert recipe.batch_spec(0).sampler == {"body": 1.0}
    for step in range(3, 7):
        assert recipe.batch_spec(step).rois == ("liver", "bladder")
        assert recipe.batch_spec(step).sampler == {"body": 0.5, "roi": 0.5}
    assert recipe.batch_spec(0).overview == 16
    assert recipe.batch_spec(0).halo == (6, 6, 6)


def test_without_organs_only_phase_1_is_left() -> None:
    recipe = sgsgan.build(small(rois=()), make_engine=plain_engine, patches_per_step=1)
    assert recipe.num_steps == 4
    assert {recipe.phase(step) for step in range(4)} == {"gan"}
    assert recipe.state().keys() == {"G", "D"}


@pytest.mark.parametrize(("step", "expected"), [(0, {"G", "D"}), (2, {"S"}), (4, {"G", "D"}), (6, {"S"})])
def test_exactly_the_listed_networks_change(step: int, expected: set[str]) -> None:
    recipe = build(small())
    before = weights(recipe)
    metrics = run(recipe, step)
    assert all(torch.isfinite(value) for value in metrics.values())
    assert moved(before, weights(recipe)) == expected
    grads = [p.grad for e in recipe.engines.values() for p in e.module.parameters()]
    assert all(g is None or not g.any() for g in grads)  # nothing leaks into the next step


def test_style_learns_from_the_content_loss_alone() -> None:
    G = sgsgan.generator(small()).train()
    F.l1_loss(
        G(torch.rand(2, 1, 36, 36, 36), torch.rand(1, 1, 16, 16, 16), cases=1), torch.rand(2, 1, 24, 24, 24)
    ).backward()
    for name, p in G.named_parameters():
        if name.startswith("mapping") or "modulations" in name:
            assert p.grad is not None
            assert p.grad.abs().sum() > 0, name


def test_guidance_reaches_the_generator_through_the_frozen_segmenter() -> None:
    with_guidance, without = build(small()), build(small(lambda_seg=0.0))
    start = weights(with_guidance)
    for recipe in (with_guidance, without):
        run(recipe, 4)
    assert moved(weights(without), weights(with_guidance)) == {"G"}
    assert moved(start, weights(with_guidance)) == {"G", "D"}


def test_guidance_of_weight_0_continues_phase_1() -> None:
    guided, phase_1 = build(small(lambda_seg=0.0)), build(small())
    batch = make_batch(guided, 4)
    for recipe, step in ((guided, 4), (phase_1, 0)):
        torch.manual_seed(3)
        recipe.step(batch, step)
    assert moved(weights(guided), weights(phase_1)) == set()


def test_every_critic_step_ends_in_clipped_weights() -> None:
    recipe = build(small())
    for step in (0, 1, 4):
        run(recipe, step)
        bounds = {name: max(p.abs().max().item() for p in e.module.parameters()) for name, e in recipe.engines.items()}
        assert bounds["D"] == pytest.approx(0.01)
        assert bounds["G"] > 0.01


# 14. Direction.


def test_critic_steps_widen_the_gap_and_a_generator_step_narrows_it() -> None:
    torch.manual_seed(0)
    D = networks.Critic(4)
    optimizer = torch.optim.RMSprop(D.parameters(), lr=1e-4)
    real, fake = torch.ones(1, 1, 24, 24, 24), torch.zeros(1, 1, 24, 24, 24)
    gaps = []
    for _ in range(10):
        loss = losses.critic_loss(D(real), D(fake))
        gaps.append(-loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert gaps[-1] > gaps[0]
    G = sgsgan.generator(small(**PLAIN))
    step = torch.optim.RMSprop(G.parameters(), lr=1e-5)
    low, none = torch.rand(1, 1, 36, 36, 36), torch.zeros(1, 1, 0, 0, 0)
    before = losses.generator_loss(D(G(low, none, cases=1)))
    before.backward()
    step.step()
    assert losses.generator_loss(D(G(low, none, cases=1))) < before


def test_dcitn_starts_near_the_identity() -> None:
    G = sgsgan.generator(small()).eval()
    low = torch.rand(2, 1, 36, 36, 36)
    image = G(low, torch.rand(1, 1, 16, 16, 16), cases=1)
    assert F.l1_loss(image, networks._crop(low, 6)) < 0.2


def test_training_overfits_two_patches() -> None:
    """At the paper's learning rate, two patches of hot blobs lose most of their noise in 30 steps."""
    recipe = build(small(growth=4, phase_samples=(200, 0, 0, 0), rois=()))
    random = torch.Generator().manual_seed(0)
    places = torch.stack(torch.meshgrid(*[torch.arange(36.0)] * 3, indexing="ij"), dim=-1)
    centres = 36 * torch.rand(2, 12, 3, generator=random)
    blobs: list[Any] = [sum(torch.exp(-(places - c).square().sum(-1) / 18) for c in case) for case in centres]
    full = torch.stack(blobs)[:, None]
    low = (full + 0.3 * torch.randn(full.shape, generator=random)).clamp(min=0)
    overview = F.adaptive_avg_pool3d(low[:1], 16)
    target = networks._crop(full, 6).contiguous()
    batch = Batch(low, target, torch.zeros(2, 0, 24, 24, 24), overview, torch.full((2,), 20.0), 1, ("", ""))
    history = [recipe.step(batch, step)["content"].item() for step in range(30)]
    untouched = F.l1_loss(networks._crop(low, 6), target).item()
    assert history[-1] < 0.6 * untouched
    assert history[-1] < 0.6 * history[0]


# 15. Resume.


def test_resume_in_the_middle_of_each_phase_is_bit_equal() -> None:
    whole = build(small())
    for step in range(whole.num_steps):
        if step % 2:
            resumed = build(small(), seed=99)
            resumed.load(whole.state())
            run(resumed, step)
        run(whole, step)
        if step % 2:
            a, b = whole.state(), resumed.state()
            assert a.keys() == b.keys() == {"G", "D", "S"}
            for engine in a:
                assert a[engine].keys() == b[engine].keys()
                assert all(torch.equal(a[engine][name], b[engine][name]) for name in a[engine]), (step, engine)


# 16. Ablations and inference.


@pytest.mark.parametrize("synthesis", ["dcitn", "unet3d"])
@pytest.mark.parametrize("rois", [(), ("liver",)])
def test_every_row_of_the_ablation_tables_builds_and_runs(synthesis: str, rois: tuple[str, ...]) -> None:
    counts = {}
    for noise, adain_on in itertools.product((False, True), repeat=2):
        config = small(
            synthesis=synthesis, rois=rois, use_noise=noise, use_adain=adain_on, unet_channels=2, patch=(32, 32, 32)
        )
        recipe = build(config)
        before = weights(recipe)
        metrics = run(recipe, 4 if rois else 0)
        assert all(torch.isfinite(value) for value in metrics.values())
        assert moved(before, weights(recipe)) == {"G", "D"}
        counts[noise, adain_on] = count(recipe.G.module)
    channels = 4 * 2 if synthesis == "dcitn" else 2 + 4 + 8
    replaced = 0 if synthesis == "dcitn" else 2 * channels
    mapping = count(networks.MappingNetwork(16, 8))
    plain = counts[False, False]
    assert counts[True, False] - plain == channels
    assert counts[False, True] - plain == mapping + 9 * 2 * channels - replaced
    assert counts[True, True] - plain == mapping + 9 * 2 * channels - replaced + channels


@pytest.mark.parametrize("changes", [{}, PLAIN, {"use_adain": False}, {"synthesis": "unet3d", "unet_channels": 2}])
def test_exported_weights_synthesize_what_the_recipe_does(changes: dict[str, Any]) -> None:
    config = small(patch=(32, 32, 32), **changes)
    recipe = build(config)
    run(recipe, 0)
    mine = recipe.synthesizer()
    exported = {k.removeprefix("weight/"): v for k, v in recipe.state()["G"].items() if k.startswith("weight/")}
    before = torch.get_rng_state()
    theirs = sgsgan.weights_to_synthesizer(config, exported)
    assert torch.equal(torch.get_rng_state(), before)
    assert mine.tiling == theirs.tiling
    assert mine.context_batch == theirs.context_batch
    edge = 32 + 2 * mine.tiling.halo[0]
    low, overview = torch.rand(3, 1, edge, edge, edge), torch.rand(1, 1, 16, 16, 16)
    spec = mine.context_batch
    contexts = [{} if spec is None else s.context(overview, low) for s in (mine, theirs)]
    a, b = (s(low[:1], c) for s, c in zip((mine, theirs), contexts, strict=True))
    assert torch.equal(a, b)
    assert a.shape == (1, 1, 32, 32, 32)
    assert not a.requires_grad
    run(recipe, 1)
    assert not torch.equal(mine(low[:1], contexts[0]), a)  # shares the weights in training


def test_needs_of_inference() -> None:
    styled = build(small()).synthesizer()
    assert styled.tiling.overlap == (0, 0, 0)
    assert styled.tiling.halo == (6, 6, 6)
    assert styled.context_batch is not None
    assert styled.context_batch.patches_per_case == 3
    assert styled.context_batch.sampler == {"body": 1.0}
    assert build(small(**PLAIN)).synthesizer().context_batch is None
    assert build(small(halo=0)).synthesizer().tiling.overlap == (12, 12, 12)
    unet = build(small(synthesis="unet3d", unet_channels=2, patch=(64, 64, 64))).synthesizer()
    assert (unet.tiling.halo, unet.tiling.overlap) == ((0, 0, 0), (32, 32, 32))


def test_weights_of_another_configuration_are_refused() -> None:
    exported = sgsgan.generator(small(growth=3)).state_dict()
    with pytest.raises(InputError, match="CKPT_CONFIG"):
        sgsgan.weights_to_synthesizer(small(), exported)


def test_paper_mode_is_instance_norm_over_the_whole_volume() -> None:
    config = small(halo=0, patches_per_case=1, context_patches=1)
    G = generator(config)
    volume, overview = torch.rand(1, 1, 24, 24, 24), torch.rand(1, 1, 16, 16, 16)
    live = G(volume, overview, cases=1)
    torch.testing.assert_close(G.synthesize(volume, G.context(volume, overview)), live)
    two = G(volume.expand(2, -1, -1, -1, -1), overview.expand(2, -1, -1, -1, -1), cases=2)
    torch.testing.assert_close(two, live.expand_as(two), rtol=1e-4, atol=1e-5)


def test_under_bf16_statistics_stay_fp32_and_images_close() -> None:
    G, low, overview = generator(small()), torch.rand(2, 1, 36, 36, 36), torch.rand(1, 1, 16, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, context = G(low, overview, cases=1).float(), G.context(low, overview)
    assert {value.dtype for value in context.values()} == {torch.float32}
    exact = G(low, overview, cases=1)
    assert (rounded - exact).abs().mean() < 0.02 * exact.std()


# Configuration.


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"synthesis": "unet"}, "CFG_CHOICE", "synthesis"),
        ({"content": "l3"}, "CFG_CHOICE", "content"),
        ({"seg_loss": "focal"}, "CFG_CHOICE", "seg_loss"),
        ({"patch": (16, 16, 16)}, "CFG_PATCH_SIZE", "patch"),
        ({"patch": (64, 64, 60)}, "CFG_PATCH_SIZE", "patch"),
        ({"synthesis": "unet3d", "patch": (48, 64, 64)}, "CFG_PATCH_SIZE", "patch"),
        ({"synthesis": "unet3d", "halo": 6}, "CFG_RANGE", "halo"),
        ({"overview": 60}, "CFG_RANGE", "overview"),
        ({"units": 3, "modulated": (1, 4)}, "CFG_RANGE", "modulated"),
        ({"modulated": ()}, "CFG_RANGE", "modulated"),
        ({"lr": 0.0}, "CFG_RANGE", "lr"),
        ({"clip": -0.01}, "CFG_RANGE", "clip"),
        ({"lambda_seg": -1.0}, "CFG_RANGE", "lambda_seg"),
        ({"phase_samples": (0, 1, 1, 1)}, "CFG_RANGE", "phase_samples"),
        ({"rois": ("liver", "liver")}, "CFG_ROI", "rois"),
        ({"roi_fraction": 0.7, "lesion_fraction": 0.5}, "CFG_RANGE", "roi_fraction"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(changes: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(InputError) as error:
        Config(**changes)
    assert error.value.code == code
    assert error.value.where == f"sgsgan.{field}"
    assert "\n" not in str(error.value)


# The residual, which is not the paper's.

RESIDUAL: dict[str, Any] = {"residual": "gaussian", "gaussian_samples": 4}


def test_the_residual_has_a_phase_of_its_own_and_leaves_the_papers_phases_as_they_are() -> None:
    plain, added = build(small()), build(small(**RESIDUAL))
    assert {name: step + 2 for name, step in plain.phase_starts.items()} == {
        name: step for name, step in added.phase_starts.items() if name != "gaussian"
    }
    assert added.phase_starts["gaussian"] == 0
    assert [added.batch_spec(step + 2) for step in range(8)] == [plain.batch_spec(step) for step in range(8)]
    assert added.batch_spec(0) == plain.batch_spec(0)
    before = weights(added)
    run(added, 0)
    assert moved(before, weights(added)) == set()


@pytest.mark.parametrize("changes", [{}, PLAIN, {"synthesis": "unet3d", "unet_channels": 2, "patch": (32, 32, 32)}])
def test_the_residual_starts_at_the_gaussian_of_the_dose_and_is_exported_with_it(changes: dict[str, Any]) -> None:
    config = small(**RESIDUAL, **changes)
    recipe = build(config)
    batches = [make_batch(recipe, step) for step in (0, 1)]
    for step, batch in enumerate(batches):  # the full dose is the low dose at 5 mm, so that this width is chosen
        wanted = dose_gaussian.smoothed(batch.source, batch.spacing_mm, config.margin, (5.0,))
        recipe.step(dataclasses.replace(batch, target=wanted), step)
    low, overview = batches[0].source, batches[0].overview
    synthesizer = recipe.synthesizer().for_scan(Scan((4.0, 4.0, 4.0), 20.0, 0.0))
    start = dose_gaussian.smoothed(low, torch.full((2, 3), 4.0), config.margin, (5.0,))
    assert torch.equal(synthesizer(low, synthesizer.context(overview, low)), start)

    run(recipe, 2)
    exported = sgsgan.weights_to_synthesizer(config, recipe.weights()).for_scan(synthesizer.scan)
    ours, theirs = (one(low, one.context(overview, low)) for one in (synthesizer, exported))
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, start)
    for lacking in ("gaussian.drf", "synthesis.out.bias"):
        weights_left = {name: value for name, value in recipe.weights().items() if name != lacking}
        with pytest.raises(InputError, match="CKPT_CONFIG"):
            sgsgan.weights_to_synthesizer(config, weights_left)


def test_what_the_residual_adds_grows_with_the_noise_of_the_case() -> None:
    config = small(**RESIDUAL, **PLAIN)
    G = generator(config)
    low = torch.rand(2, 1, 36, 36, 36)
    start = dose_gaussian.smoothed(low, torch.full((2, 3), 4.0), 6, (5.0,))
    added = G.synthesize(low, G.context(low, low[:, :, :0], start), start) - start
    context = G.context(low, low[:, :, :0], start)
    assert context.keys() == {"mean/start", "var/start"}
    rest = low[:, :, 6:-6, 6:-6, 6:-6] - start
    torch.testing.assert_close(
        added, G.synthesis(low, networks.Shared(1, None, networks.live_moments)) * rest.std(correction=0)
    )
    louder = {**context, "var/start": 4 * context["var/start"]}
    torch.testing.assert_close(G.synthesize(low, louder, start) - start, 2 * added, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_tiles_of_the_residual_equal_the_whole_volume() -> None:
    config = small(**RESIDUAL, units=2)  # whose own radius is less than the Gaussian's
    G = generator(config)
    widths = Widths(torch.tensor([20.0]), torch.tensor([15.0]))
    synthesizer = sgsgan._synthesizer(config, G, widths).for_scan(Scan((2.0, 3.0, 4.0), 20.0, 0.0))
    assert (synthesizer.tiling.halo, synthesizer.tiling.overlap) == ((6, 6, 6), (0, 0, 0))
    volume = F.pad(torch.rand(1, 1, 32, 32, 32), [6] * 6)
    context = synthesizer.context(torch.rand(1, 1, 16, 16, 16), volume)
    whole = synthesizer(volume, context)
    tile = synthesizer(volume[..., 16:, :28, :28], context)
    torch.testing.assert_close(tile, whole[..., 16:, :16, :16], rtol=1e-5, atol=1e-5)


def test_s_is_exported_when_phase_4_ends_and_finds_organs_again() -> None:
    recipe = build(small())
    assert isinstance(recipe, Exporting)
    assert [step for step in range(1, recipe.num_steps + 1) if recipe.exports(step)] == [recipe.num_steps]
    exported = recipe.exports(recipe.num_steps)[sgsgan.GUIDE]
    found = guide_of(recipe.config, exported, suv_scale=2.0, device=torch.device("cpu"))
    assert (found.rois, found.suv_scale, found.cases) == (recipe.config.rois, 2.0, ())
    assert found.definition.metric == "Unet-score-SG"
    assert recipe.S is not None
    image = torch.rand(1, 1, 24, 24, 24)
    with torch.no_grad():
        assert torch.equal(found.network(image), recipe.S.module.eval()(image))
    with pytest.raises(InputError, match="CKPT_CONFIG"):
        guide_of(small(segmenter_channels=3), exported, suv_scale=1.0, device=torch.device("cpu"))
    for unguided in (small(rois=()), small(phase_samples=(4, 0, 4, 0))):
        assert not any(build(unguided).exports(step) for step in range(1, 9))


def test_a_residual_resumes_to_the_same_bits_in_each_phase() -> None:
    config = small(**RESIDUAL)
    whole = build(config)
    for step in range(5):
        resumed = build(config, seed=99)
        resumed.load(whole.state())
        run(resumed, step)
        run(whole, step)
        a, b = whole.state(), resumed.state()
        assert a.keys() == b.keys() == {"G", "D", "S", "gaussian"}
        assert all(torch.equal(a[engine][name], b[engine][name]) for engine in a for name in a[engine]), step


def test_a_norm_of_one_voxel_is_refused_where_a_3d_unet_is_trained() -> None:
    for patch, patches, valid in (((32, 32, 32), 1, False), ((32, 32, 32), 2, True), ((64, 32, 32), 1, True)):
        config = small(synthesis="unet3d", patch=patch, patches_per_case=patches)
        if valid:
            sgsgan.check(config, sgsgan.FEED, {})
        else:
            with pytest.raises(InputError, match=r"CFG_RANGE sgsgan.patches_per_case: 1; .*use 2 or more"):
                sgsgan.check(config, sgsgan.FEED, {})
    sgsgan.check(small(patch=(32, 32, 32), patches_per_case=1), sgsgan.FEED, {})
