"""Cascades and dense cascades as systems: updates, the epoch kept, resume, learning, whole volumes, configuration."""

import dataclasses
import math
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from network_facts import seam_score
from numpy.typing import NDArray
from small_cascade import DENSE, SMALL_3D, VARIANTS, Fixed, perturb, small
from torch import Tensor, nn

from storage.errors import InputError
from storage.patches import PatchLocation
from storage.reader import Case
from storage.source import HU
from trainers import assembly
from trainers.engine import plain_engine
from trainers.feed_config import FeedConfig
from trainers.metrics.slices import ssim_2d
from trainers.recipe import Batch, Engine, OptimizerFactory, Recipe, Synthesizer, Tiling, Validated
from trainers.synthesize import synthesize
from trainers.systems import cascade
from trainers.systems.cascade import (
    Cascade,
    CascadeGAN,
    CascadeSynthesizer,
    Config,
    adversarial_loss,
    ct_to_unit,
    psnr,
    unit_to_suv,
)

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


def build(config: Config, seed: int = 0) -> CascadeGAN:
    torch.manual_seed(seed)
    return cascade.build(config, make_engine=plain_engine, patches_per_step=2)


def as_batch(ct: Tensor, pet: Tensor) -> Batch:
    b = len(ct)
    none = torch.zeros(b, 1, 0, 0, 0)
    return Batch(ct, pet, torch.zeros(b, 0, *pet.shape[2:]), none, torch.full((b,), torch.nan), b, ("",) * b)


def make_batch(config: Config, seed: int, b: int = 2) -> Batch:
    """CT in HU and PET in SUV, both beyond what the windows hold."""
    random = torch.Generator().manual_seed(seed)
    ct, pet = torch.rand(2, b, 1, *config.patch, generator=random)
    return as_batch(2600 * ct - 1300, 25 * pet**3)


def run(recipe: CascadeGAN, step: int) -> dict[str, Tensor]:
    torch.manual_seed(1000 + step)  # as the loop does
    return recipe.step(make_batch(recipe.config, step), step)


def flat(recipe: CascadeGAN) -> dict[str, Tensor]:
    return {f"{name}|{key}": value for name, state in recipe.state().items() for key, value in state.items()}


# What a step changes.


class Watched:
    """An engine that notes when it steps and all engines' weights then; the others must have no gradients."""

    def __init__(
        self, engine: Engine, others: "list[Watched]", notes: list[tuple[int, list[dict[str, Tensor]]]]
    ) -> None:
        self.engine, self.others, self.notes = engine, others, notes
        self.others.append(self)

    def __call__(self, *inputs: Tensor) -> Any:
        return self.engine(*inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def step(self) -> None:
        for other in self.others:
            if other is not self:
                assert all(p.grad is None or not p.grad.any() for p in other.engine.module.parameters())
        self.engine.step()
        weights = [{n: p.detach().clone() for n, p in o.engine.module.named_parameters()} for o in self.others]
        self.notes.append((self.others.index(self), weights))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", VARIANTS)
def test_d_moves_then_g_and_each_alone(name: str) -> None:
    notes: list[tuple[int, list[dict[str, Tensor]]]] = []
    engines: list[Watched] = []

    def make(network: nn.Module, optimizer: OptimizerFactory) -> Engine:
        return cast(Engine, Watched(plain_engine(network, optimizer), engines, notes))

    config = small(**VARIANTS[name])
    recipe = cascade.build(config, make_engine=make, patches_per_step=2)
    before = [{n: p.detach().clone() for n, p in e.engine.module.named_parameters()} for e in engines]
    metrics = run(recipe, 0)
    assert all(value.isfinite() and not value.requires_grad for value in metrics.values())
    assert [who for who, _ in notes] == ([1, 0] if config.lambda_adversarial else [0])
    if config.lambda_adversarial:
        (_, (g_then, d_then)), (_, (g, d)) = notes
        assert same(g_then, before[0])
        assert same(d_then, d)
        assert all(not torch.equal(d[key], before[1][key]) for key in d if "weight" in key)
    g = notes[-1][1][0]
    still = {key for key in g if torch.equal(g[key], before[0][key])}
    assert not still, "every stage learns"
    assert ("discriminator" in metrics) == bool(config.lambda_adversarial)
    for engine in engines:
        assert all(p.grad is None or not p.grad.any() for p in engine.engine.module.parameters())


def test_g_is_taught_by_the_updated_d_and_passes_its_batch_once() -> None:
    recipe = build(small())
    assert recipe.D is not None
    batch, generator = make_batch(recipe.config, 0), torch.get_rng_state()
    images = recipe.G.module(recipe._images(batch)[0])
    recipe = build(small())
    torch.set_rng_state(generator)
    metrics = recipe.step(batch, 0)
    assert recipe.D is not None
    (logits,) = recipe.D.module(recipe._images(batch)[0], images[-1])
    torch.testing.assert_close(metrics["adversarial"], adversarial_loss(logits, "vanilla"))
    counted = [int(b) for name, b in recipe.G.module.named_buffers() if name.endswith("tracked")]
    assert set(counted) == {1}
    torch.testing.assert_close(metrics["generator"], 100 * metrics["mse"] + metrics["adversarial"])
    torch.testing.assert_close(metrics["clipped"], (batch.target > 20).float().mean())


def test_scoring_every_stage_with_no_weight_but_the_last_is_scoring_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    last = build(small(stages=2))
    run(last, 0)
    monkeypatch.setattr(Config, "stage_weights", property(lambda self: (0.0, 1.0)))
    every = build(small(stages=2, loss_at="all"))
    run(every, 0)
    assert same(flat(last), flat(every))


# Feature maps made again.


@pytest.mark.parametrize("name", ["one stage", "A", "B", "C", "apart", "3d", "cascade"])
def test_checkpointing_changes_no_number(name: str) -> None:
    """Weights, moments, running statistics and losses, dropout included, to the last bit."""
    changes = {**VARIANTS[name], **({} if name == "3d" else {"downs": 5})}  # five halvings have layers with dropout
    plain = build(small(**changes))
    again = build(small(**changes, activation_checkpointing=True))
    assert name == "3d" or any(isinstance(m, nn.Dropout) for m in again.G.module.modules())
    for step in range(2):
        assert same(run(plain, step), run(again, step))
    assert same(flat(plain), flat(again))
    assert flat(plain).keys() == flat(again).keys()


# The epoch that is kept, and resume.


def test_the_best_epoch_is_kept() -> None:
    recipe = build(small())
    assert isinstance(recipe, Validated)
    seen = []
    for step, score in enumerate((20.0, 25.0, 25.0, math.nan, 24.0)):
        run(recipe, step)
        seen.append({name: value.clone() for name, value in assembly.weights_of(recipe.G).items()})
        assert recipe.observe(step + 1, {"psnr": score, "mse": 1.0}) == step + 1
    assert same(recipe.weights(), seen[1])
    assert not same(recipe.weights(), seen[-1])
    assert recipe.state()["best"]["step"] == 2
    module = recipe.synthesizer().network
    assert same(dict(module.state_dict()), seen[-1]), "pictures show the present"


def test_before_any_score_the_weights_are_the_present_ones() -> None:
    recipe = build(small())
    run(recipe, 0)
    assert same(recipe.weights(), dict(recipe.G.module.state_dict()))


@pytest.mark.parametrize("name", ["cascade", "B", "no discriminator"])
def test_resume_is_bit_equal_whenever_it_is_made(name: str) -> None:
    config = small(**VARIANTS[name])
    whole = build(config)

    def advance(recipe: CascadeGAN, step: int) -> None:
        run(recipe, step)
        if (step + 1) % recipe.validate_every == 0:  # the loop's order: score, then save
            recipe.observe(step + 1, {k: float(v) for k, v in recipe.validate(make_batch(config, 99)).items()})

    for step in range(whole.num_steps):
        resumed = build(config, seed=99)
        resumed.load(whole.state())
        advance(resumed, step)
        advance(whole, step)
        a, b = flat(whole), flat(resumed)
        assert a.keys() == b.keys()
        assert same(a, b), step
        assert same(whole.weights(), resumed.weights())


def test_validation_is_inference_and_trains_nothing() -> None:
    recipe = build(small(stages=2))
    run(recipe, 0)
    before, batch = flat(recipe), make_batch(recipe.config, 5)
    scores = recipe.validate(batch)
    assert same(before, flat(recipe))
    suv = recipe.synthesizer()(batch.source, {}) / 20
    target = batch.target.clamp(0, 20) / 20
    torch.testing.assert_close(scores["mse"], F.mse_loss(suv, target))
    torch.testing.assert_close(scores["psnr"], psnr(suv[:, 0], target[:, 0]))
    assert scores["colour_suv"] > 0
    run(recipe, 1)
    assert recipe.G.module.training
    for mode in ("2.5d", "3d"):
        other = build(small(**VARIANTS[mode]))
        assert other.validate(make_batch(other.config, 0)).keys() == {"psnr", "ssim", "mae", "mse"}


def test_every_epoch_is_scored_as_the_papers_figures_are() -> None:
    """On validation patients and on those trained on, by the scores of whole volumes' slices."""
    recipe = build(small())
    batch = make_batch(recipe.config, 5)
    found = recipe.validate(batch)
    image = (recipe.synthesizer()(batch.source, {}) / 20)[:, 0, 0].numpy()
    target = (batch.target.clamp(0, 20) / 20)[:, 0, 0].numpy()
    assert float(found["ssim"]) == pytest.approx(ssim_2d(target, image), abs=1e-5)
    assert float(found["mae"]) == pytest.approx(np.abs(target - image).mean(), rel=1e-5)
    assert {"psnr", "ssim", "mae"} <= run(recipe, 0).keys()
    narrow = build(small(patch=(1, 8, 32), downs=3))  # no window of 11 x 11 fits
    assert "ssim" not in run(narrow, 0).keys() | narrow.validate(make_batch(narrow.config, 0)).keys()


def test_the_square_root_of_suv_is_learnt_and_undone() -> None:
    suv = torch.tensor([-1.0, 0.0, 0.2, 5.0, 20.0, 30.0])
    for act, expected in (("tanh", [0, 0, 0.2, 5, 20, 20]), ("linear", [0, 0, 0.2, 5, 20, 30])):
        unit = cascade.pet_to_unit(suv, 20.0, act, "sqrt")  # type: ignore[arg-type]
        torch.testing.assert_close(unit_to_suv(unit, 20.0, "sqrt"), torch.tensor(expected).float())
    assert cascade.pet_to_unit(torch.tensor(5.0), 20.0, curve="sqrt") == 0  # 2 sqrt(1/4) - 1
    for mode in ("one stage", "2.5d", "3d"):
        recipe = build(small(**VARIANTS[mode], suv_curve="sqrt"))
        run(recipe, 0)
        batch = make_batch(recipe.config, 5)
        scores = recipe.validate(batch)
        assert scores["psnr"].isfinite()
        if mode == "one stage":  # validation is inference, in SUV
            image = recipe.synthesizer()(batch.source, {}) / 20
            torch.testing.assert_close(scores["mse"], F.mse_loss(image, batch.target.clamp(0, 20) / 20))
    assert "square root" in " ".join(cascade.caveats(Config(suv_curve="sqrt")))


@pytest.mark.parametrize(("variant", "curve"), [("A", "linear"), ("2.5d", "sqrt"), ("3d", "sqrt")])
def test_stages_start_at_the_mean_suv_of_every_hu(variant: str, curve: str) -> None:
    config = small(**VARIANTS[variant], suv_curve=curve, residual="hu", table_samples=4, epochs=1)
    recipe = build(config)
    first = recipe.phase_starts["train"]
    assert (recipe.phase_starts, recipe.phase(0)) == ({"table": 0, "train": 2}, "table")
    given = make_batch(config, 0)
    half = torch.arange(config.patch[2]) < config.patch[2] // 2
    hu = torch.where(half, -700.0, 40.0).expand_as(given.source)
    for step, added in enumerate((0.0, 2.0)):  # lung of SUV 0 and 2, muscle of 1 and 3
        suv = torch.where(half, 0.0, 1.0).expand_as(given.target) + added
        before = recipe.weights()
        recipe.step(dataclasses.replace(given, source=hu, target=suv), step)
        assert same(before, recipe.weights())
    resumed = build(config, seed=9)
    resumed.load(recipe.state())
    for one in (recipe, resumed):
        torch.manual_seed(3)
        one.step(make_batch(config, 5), first)
    assert same(recipe.weights(), resumed.weights())

    fresh = build(config)
    wanted = torch.where(half, 1.0, 2.0)
    table = recipe.weights()["table"]
    assembly.set_weights(fresh.G, {"table": table})
    slab = torch.where(half, -700.0, 40.0).expand(1, 1, 8, config.patch[1], config.patch[2])
    image = fresh.synthesizer()(slab, {})
    torch.testing.assert_close(image, wanted.expand_as(image))
    exported = cascade.weights_to_synthesizer(config, recipe.weights())
    assert torch.equal(exported(slab, {}), recipe.synthesizer()(slab, {}))
    assert "mean SUV of every HU" in " ".join(cascade.caveats(config))


def test_colour_is_the_spread_of_the_channels() -> None:
    recipe = build(small())
    network = cast(Cascade, recipe.G.module)
    image, d = torch.rand(2, 1, 32, 32), 0.1
    for step, expected in ((0.0, 0.0), (3 * d, math.sqrt(2) * d)):
        network.stages[0] = Fixed(torch.cat([image, image, image + step], dim=1), [])
        colour = recipe.validate(make_batch(recipe.config, 0))["colour_suv"]
        torch.testing.assert_close(colour, torch.tensor(10 * expected), rtol=1e-4, atol=1e-6)


def test_steps_are_counted_in_epochs() -> None:
    with torch.device("meta"):
        recipe: Recipe = cascade.build(Config(), make_engine=plain_engine, patches_per_step=8)
    assert recipe.num_steps == 200 * 50
    assert recipe.phase_starts == {"train": 0}
    assert recipe.phase(9_999) == "train"
    with pytest.raises(ValueError, match="not one of 10000"):
        recipe.phase(10_000)
    spec = recipe.batch_spec(0)
    assert (spec.patch, spec.halo, spec.units, spec.beyond) == ((1, 256, 256), (0, 0, 0), HU, True)
    assert sum(spec.sampler.values()) == pytest.approx(1)
    assert spec.sampler["uptake"] == 0.5
    assert not build(small(**SMALL_3D)).batch_spec(0).beyond
    assert build(small(epoch_samples=5)).num_steps == 3 * 3


# Learning.


def blobs(patch: tuple[int, int, int], cases: int = 2) -> tuple[Tensor, Tensor]:
    """PETs of hot blobs, and CTs in which they are dense: (cases, 1, z, y, x) each."""
    random = torch.Generator().manual_seed(0)
    places = torch.stack(torch.meshgrid(*[torch.arange(float(edge)) for edge in patch], indexing="ij"), dim=-1)
    centres = torch.tensor(patch) * torch.rand(cases, 6, 3, generator=random)
    blob = torch.exp(-(places - centres[:, :, None, None, None]).square().sum(-1) / 18).sum(1)[:, None]
    return 900 * blob - 900 + 20 * torch.randn(blob.shape, generator=random), 8 * blob


@pytest.mark.parametrize("name", ["one stage", "A", "2.5d", "3d"])
def test_training_overfits_two_cases(name: str) -> None:
    config = small(**VARIANTS[name], width=8, epochs=10**4)
    recipe = build(config)
    batch = as_batch(*blobs(config.patch))
    for step in range(150):
        torch.manual_seed(step)
        recipe.step(batch, step)
    target = batch.target / 20
    constant = psnr(target.mean((1, 2, 3, 4), keepdim=True).expand_as(target)[:, 0], target[:, 0])
    assert recipe.validate(batch)["psnr"] > constant + 10


# Whole volumes.


@pytest.mark.parametrize("name", VARIANTS)
def test_exported_weights_synthesize_what_the_recipe_does(name: str) -> None:
    config = small(**VARIANTS[name])
    recipe = build(config)
    run(recipe, 0)
    before = torch.get_rng_state()
    theirs = cascade.weights_to_synthesizer(config, recipe.weights())
    assert torch.equal(torch.get_rng_state(), before)
    mine: Synthesizer = recipe.synthesizer()
    assert mine.tiling == theirs.tiling
    assert mine.context_batch is None
    halo, depth = mine.tiling.halo[0], config.patch[0] if config.mode == "3d" else 3
    low = 2000 * torch.rand(1, 1, depth + 2 * halo, *config.patch[1:]) - 1000
    a, b = mine(low, mine.context(low, low)), theirs(low, {})
    assert torch.equal(a, b)
    assert a.shape == (1, 1, depth, *config.patch[1:])
    assert not a.requires_grad
    if config.out_act == "tanh":
        assert a.min() >= 0
        assert a.max() <= config.suv_max
    with pytest.raises(InputError, match="CKPT_CONFIG"):
        cascade.weights_to_synthesizer(small(**{**VARIANTS[name], "width": 2}), recipe.weights())


@pytest.mark.parametrize("name", ["cascade", "2.5d"])
def test_a_slice_depends_on_its_neighbours_alone(name: str) -> None:
    """On nothing but itself in 2d, on two slices to either side in 2.5d; and on no batch."""
    config = small(**VARIANTS[name])
    synthesizer = CascadeSynthesizer(Cascade(config), config)
    perturb(synthesizer.network)
    halo = synthesizer.tiling.halo[0]
    low = 1400 * torch.rand(1, 1, 7 + 2 * halo, 32, 32) - 1000
    before = synthesizer(low, {})
    torch.testing.assert_close(synthesizer(torch.cat([low, -low]), {})[:1], before, rtol=1e-5, atol=1e-5)
    assert torch.equal(synthesizer(low, {}), before)
    changed = low.clone()
    changed[:, :, 3 + halo] += 200
    reach = (synthesizer(changed, {}) - before).abs().amax((0, 1, 3, 4)) > 1e-4
    assert reach.nonzero().flatten().tolist() == list(range(3 - halo, 3 + halo + 1))


def test_three_predictions_of_a_slice_are_averaged() -> None:
    config = small(**VARIANTS["2.5d"])
    synthesizer = CascadeSynthesizer(Cascade(config), config)
    perturb(synthesizer.network)
    network = synthesizer.network.eval()
    low = 1400 * torch.rand(1, 1, 5, 32, 32) - 1000
    found = synthesizer(low, {})
    ct = ct_to_unit(low[0, 0], config.ct_window)
    with torch.no_grad():
        one, two, three = (network(ct[None, k : k + 3])[-1][0] for k in range(3))
    expected = (one[2] + 2 * two[1] + three[0]) / 4
    torch.testing.assert_close(found[0, 0, 0], unit_to_suv(expected, 20.0), rtol=1e-5, atol=1e-5)


class Volume:
    """What ``synthesize`` asks of a case and its CT."""

    def __init__(self, hu: NDArray[np.float32]) -> None:
        self.hu, self.grid = hu, self
        self.shape = hu.shape

    def image(self, name: str) -> "Volume":
        return self

    def patch(self, box: PatchLocation, beyond: str = "air") -> NDArray[np.float32]:
        z, y, x = (np.arange(a, b) for a, b in zip(box.start, box.stop, strict=True))
        inside = [(i >= 0) & (i < n) for i, n in zip((y, x), self.shape[1:], strict=True)]
        found = np.full((len(z), len(y), len(x)), -1000, dtype=np.float32)
        found[:, inside[0][:, None] & inside[1]] = self.hu[np.clip(z, 0, self.shape[0] - 1)][
            :, y[inside[0]][:, None], x[inside[1]]
        ].reshape(len(z), -1)
        return found


def whole(synthesizer: Synthesizer, hu: NDArray[np.float32]) -> NDArray[np.float32]:
    result = np.full(hu.shape, np.nan, dtype=np.float32)

    def write(z0: int, slab: NDArray[np.float32]) -> None:
        assert np.isnan(result[z0 : z0 + len(slab)]).all()
        result[z0 : z0 + len(slab)] = slab

    synthesize(synthesizer, cast(Case, Volume(hu)), "ct", write, device=torch.device("cpu"), batch=2)
    return result


class Same(nn.Module):
    def forward(self, ct: Tensor) -> tuple[Tensor, ...]:
        return (ct,)


@pytest.mark.parametrize("name", ["one stage", "2.5d", "3d"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (18, 33, 50), (1, 20, 90)])
def test_windows_cover_every_voxel_once(name: str, shape: tuple[int, int, int]) -> None:
    """A network that gives back what it sees gives back the volume, scaled; smoothed along z in 2.5d by no more."""
    config = small(**VARIANTS[name])
    hu = np.random.default_rng(0).uniform(-1200, 600, shape).astype(np.float32)
    found = whole(CascadeSynthesizer(Same(), config), hu)
    np.testing.assert_allclose(found, 20 * (np.clip(hu, -1000, 400) + 1000) / 1400, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["cascade", "2.5d", "3d"])
def test_small_windows_are_filled_up_as_volumes_are(name: str) -> None:
    """A picture's window, cut to a small volume, shows what the whole volume does."""
    config = small(**VARIANTS[name])
    recipe = build(config)
    run(recipe, 0)
    synthesizer = recipe.synthesizer()
    hu = np.random.default_rng(0).uniform(-1200, 600, (5, 13, 15)).astype(np.float32)
    halo = synthesizer.tiling.halo[0]
    low = Volume(hu).patch(PatchLocation((-halo, 0, 0), (5 + 2 * halo, 13, 15)))
    found = synthesizer(torch.from_numpy(low)[None, None], {})[0, 0].numpy()
    np.testing.assert_allclose(found, whole(synthesizer, hu), rtol=1e-5, atol=1e-5)


def trained(config: Config) -> CascadeSynthesizer:
    """A few steps on windows of textures."""
    recipe = build(config)
    random = torch.Generator().manual_seed(0)
    for step in range(80):
        batch = as_batch(*textures(4, config.patch, random))
        torch.manual_seed(step)
        recipe.step(batch, step)
    return recipe.synthesizer()


def textures(cases: int, shape: tuple[int, int, int], random: torch.Generator) -> tuple[Tensor, Tensor]:
    """CT of fine structure, and a PET that depends on the neighbourhood too: (cases, 1, z, y, x) each."""
    z, y, x = shape
    noise = torch.rand(cases, z, y + 20, x + 20, generator=random)
    fine = ((F.avg_pool2d(noise, 5, stride=1)[..., 8 : 8 + y, 8 : 8 + x] - 0.5) * 3 + 0.5).clamp(0, 1)
    coarse = ((F.avg_pool2d(noise, 21, stride=1) - 0.5) * 9 + 0.5).clamp(0, 1)
    return (1400 * fine - 1000)[:, None], (12 * fine * coarse)[:, None]


def test_a_whole_volume_shows_no_seams() -> None:
    """Blended windows leave no edge where hard ones do, and depend less on where they lie."""
    config = small(stages=2, width=8, epochs=100)
    synthesizer = trained(config)

    class Hard(CascadeSynthesizer):
        @property
        def tiling(self) -> Tiling:
            return Tiling(tile=(4, 32, 32), halo=(0, 0, 0), multiple=(1, 32, 32))

    hard = Hard(synthesizer.network, config)
    hu = textures(1, (2, 112, 160), torch.Generator().manual_seed(1))[0][0, 0].numpy()
    found = {s: whole(s, hu) for s in (synthesizer, hard)}
    assert seam_score(found[synthesizer], 16) < 1.1
    assert seam_score(found[hard], 32) > 1.5
    moved = {}
    for s, shift in ((synthesizer, 8), (hard, 16)):  # half of what windows are apart
        shifted = whole(s, np.pad(hu, ((0, 0), (shift, 0), (shift, 0)), constant_values=-1000))
        moved[s] = np.abs(shifted[:, shift:, shift:] - found[s])[:, 32:80, 32:128].mean()
    assert moved[synthesizer] < 0.6 * moved[hard]


# Configuration and the registry's questions.


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"stages": 0}, "CFG_RANGE", "stages"),
        ({"stages": 11}, "CFG_RANGE", "stages"),
        ({"mode": "4d"}, "CFG_CHOICE", "mode"),
        ({"upsample": "bilinear"}, "CFG_CHOICE", "upsample"),
        ({"dense": "all"}, "CFG_CHOICE", "dense"),
        ({"loss_at": "first"}, "CFG_CHOICE", "loss_at"),
        ({"gan_mode": "wgan"}, "CFG_CHOICE", "gan_mode"),
        ({"out_act": "sigmoid"}, "CFG_CHOICE", "out_act"),
        ({"patch": (2, 256, 256)}, "CFG_PATCH_SIZE", "patch"),
        ({"mode": "2.5d"}, "CFG_PATCH_SIZE", "patch"),
        ({"mode": "3d"}, "CFG_PATCH_SIZE", "patch"),
        ({"patch": (1, 256, 192)}, "CFG_PATCH_SIZE", "patch"),
        ({"patch": (1, 0, 256)}, "CFG_PATCH_SIZE", "patch"),
        ({"width": 0}, "CFG_RANGE", "width"),
        ({"downs": 1}, "CFG_RANGE", "downs"),
        ({"dense": "images"}, "CFG_RANGE", "dense"),
        ({"stages": 2, "stop_gradient_between_stages": True}, "CFG_RANGE", "stop_gradient_between_stages"),
        ({"lambda_mse": -1.0}, "CFG_RANGE", "lambda_mse"),
        ({"lambda_mse": 0.0, "lambda_adversarial": 0.0}, "CFG_RANGE", "lambda_mse"),
        ({"lr": 0.0}, "CFG_RANGE", "lr"),
        ({"betas": (0.5, 1.0)}, "CFG_RANGE", "betas"),
        ({"ct_window": (400.0, -1000.0)}, "CFG_RANGE", "ct_window"),
        ({"suv_max": 0.0}, "CFG_RANGE", "suv_max"),
        ({"critic_strides": ()}, "CFG_RANGE", "critic_strides"),
        ({"critic_strides": (4,)}, "CFG_RANGE", "critic_strides"),
        ({"patch": (1, 16, 16), "downs": 4}, "CFG_RANGE", "critic_strides"),
        ({"epochs": 0}, "CFG_RANGE", "epochs"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(changes: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(InputError) as error:
        Config(**changes)
    assert error.value.code == code
    assert error.value.where == f"cascade.{field}"
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"patch": (1, 192, 192)}, {"downs": 6}),
        ({"mode": "3d", "patch": (64, 96, 96)}, {"downs": 5}),
        ({"mode": "2.5d"}, {"patch": (3, 256, 256)}),
        ({"dense": "images"}, {"stages": 2}),
        ({"stages": 2, "stop_gradient_between_stages": True}, {"loss_at": "all"}),
        ({"patch": (1, 16, 16), "downs": 4}, {"critic_strides": (2, 1)}),
    ],
)
def test_a_remedy_works(changes: dict[str, Any], remedy: dict[str, Any]) -> None:
    with pytest.raises(InputError) as error:
        Config(**changes)
    ((field, value),) = remedy.items()
    told = ",".join(map(str, value)) if field == "patch" else str(value)
    assert told in error.value.remedy
    assert field == "critic_strides" or f"recipe.{field}={told}" in error.value.remedy
    Config(**{**changes, **remedy})


def test_another_scale_and_several_images_are_refused() -> None:
    cascade.check(Config(), cascade.FEED, {})
    assert cascade.FEED.source == ("ct",)
    with pytest.raises(InputError, match=r"CFG_SCALE feed\.suv_scale: 5;.*--set feed\.suv_scale=1"):
        cascade.check(Config(), FeedConfig(source=("ct",), suv_scale=5.0), {})
    with pytest.raises(InputError, match=r"CFG_INPUTS feed\.source: 2 images;.*--set feed\.source=ct"):
        cascade.check(Config(), FeedConfig(source=("ct", "low_drf10")), {})
    assert cascade.files(Config()) == {}


@pytest.mark.parametrize(
    ("changes", "variant"),
    [
        ({}, "cascade of 1 stage"),
        ({"stages": 3}, "cascade of 3 stages"),
        (DENSE, "dense cascade, wiring A (images), 2 stages"),
        ({**DENSE, "loss_at": "last"}, "cascade of 2 stages with dense wiring A (images)"),
        ({"stages": 2, "loss_at": "all"}, "cascade of 2 stages, loss at every stage"),
        (
            {**DENSE, "dense": "replace_skips", "stop_gradient_between_stages": True},
            "dense cascade, wiring C (replaced skips), 2 stages, every stage trained by its own loss",
        ),
        ({"mode": "2.5d", "patch": (3, 256, 256)}, "cascade of 1 stage, 2.5d"),
        ({"lambda_adversarial": 0.0}, "cascade of 1 stage, without discriminator"),
    ],
)
def test_caveats_say_what_was_trained_and_how_the_epoch_was_chosen(changes: dict[str, Any], variant: str) -> None:
    config = Config(**changes)
    assert config.variant == variant
    lines = " ".join(cascade.caveats(config))
    assert f"Variant: {variant};" in lines
    assert "epoch chosen on validation patients, not on test patients as the paper did" in lines
    assert ("neither the wiring" in lines) == (config.dense != "none")
