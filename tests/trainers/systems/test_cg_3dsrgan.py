"""CG-3DSRGAN as a system: what a step changes, schedule, ablations, learning, resume, inference, configuration."""

import dataclasses
import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from doses import stated
from network_facts import moved
from safetensors.torch import save_file
from small_cg_3dsrgan import build, make_batch, module, perturb, small
from torch import Tensor, nn

from storage.errors import InputError
from trainers import dose_gaussian, perceptual
from trainers.assembly import cropped
from trainers.dose_gaussian import Widths
from trainers.engine import plain_engine
from trainers.feed_config import FeedConfig
from trainers.recipe import Batch, Doses, Recipe, Scan, ScanAware, Synthesizer, Validated
from trainers.systems import cg_3dsrgan
from trainers.systems.cg_3dsrgan import CG3DSRGAN, Config, Plateau, synthesizer_of

BASELINE: dict[str, Any] = {"classify": False, "adversarial": False, "refine": False}
VARIANTS: dict[str, dict[str, Any]] = {  # Table II
    "baseline": BASELINE,
    "baseline + CG": {**BASELINE, "classify": True},
    "CG-3DGAN": {"refine": False},
    "CG-3DSRGAN": {},
}

pytestmark = pytest.mark.usefixtures("one_thread", "small_autoencoder", "seeded")


def run(recipe: CG3DSRGAN, step: int) -> dict[str, Tensor]:
    torch.manual_seed(1000 + step)  # as the loop does
    return recipe.step(make_batch(step, around=recipe.config.around), step)


def weights(recipe: CG3DSRGAN, buffers: bool = False) -> dict[str, dict[str, Tensor]]:
    """Tensors by engine, those of M split into its parts; running statistics only where asked for."""
    found: dict[str, dict[str, Tensor]] = {}
    for engine, state in recipe.state().items():
        for key, value in state.items():
            if key.startswith("weight/") and (("running" in key or "tracked" in key) == buffers):
                name = key.removeprefix("weight/")
                part = engine if engine != "M" else ".".join(name.split(".")[: 2 if name.startswith("mlnet") else 1])
                found.setdefault(part, {})[name] = value
    return found


def channels_last(module: nn.Module) -> None:
    """Lay weights out so that convolutions of few channels take a third of the time."""
    module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


# What a step changes.


@pytest.mark.parametrize(
    ("step", "expected"), [(0, {"phi"}), (2, {"mlnet.down", "mlnet.up", "mlnet.head", "contextual", "D"}), (6, set())]
)
def test_exactly_the_listed_networks_change(step: int, expected: set[str]) -> None:
    recipe = build(small())
    before, statistics = weights(recipe), weights(recipe, buffers=True)
    metrics = run(recipe, step)
    assert all(torch.isfinite(value) for value in metrics.values())
    assert not any(value.requires_grad for value in metrics.values())
    assert moved(before, weights(recipe)) == expected
    # Running statistics are M's alone, and only a pre-training step leaves them.
    assert moved(statistics, weights(recipe, buffers=True)) == (set() if step == 0 else {"mlnet.down", "mlnet.up"})
    grads = [p.grad for e in recipe.engines.values() for p in e.module.parameters()]
    assert all(g is None or not g.any() for g in grads)  # nothing leaks into the next step
    assert all(p.requires_grad for e in recipe.engines.values() for p in e.module.parameters())


def test_one_forward_of_m_per_step() -> None:
    recipe = build(small())
    run(recipe, 2)
    counted = [b for name, b in recipe.M.module.named_buffers() if name.endswith("num_batches_tracked")]
    assert {int(b) for b in counted} == {1}


# Contextual-Net starts as the identity.


def test_refined_is_coarse_at_the_start() -> None:
    coarse, _, refined = cg_3dsrgan.generator(small())(torch.rand(2, 1, 32, 32, 32))
    assert torch.equal(coarse, refined)
    assert coarse.abs().max() < 5  # not tens: PyTorch's fan of a transposed convolution would give that
    recipe = build(small())
    run(recipe, 2)
    coarse, _, refined = recipe.M.module(torch.rand(2, 1, 32, 32, 32))
    assert not torch.equal(coarse, refined)


# Classes and batch norm.


def test_air_has_no_class_to_learn() -> None:
    recipe = build(small())
    batch = make_batch(0)
    batch.target[:] = 0.0
    batch.target[1, :, :1, :, :16] = 1.0  # 1.6 % of the voxels
    metrics = recipe.step(batch, 2)
    assert metrics["class"] == 0
    assert metrics["accuracy"] == 0
    batch.target[1, :, :4] = 1.0  # 12.5 %
    assert recipe.step(batch, 3)["class"] > 0


def test_statistics_become_the_plain_mean_over_the_last_phase() -> None:
    recipe = build(small())
    run(recipe, 2)  # leaves moving averages behind
    first = recipe.phase_starts["statistics"]
    G = module(recipe)
    norm = next(m for m in G.mlnet.down[1].modules() if isinstance(m, nn.BatchNorm3d))
    means = []
    handle = norm.register_forward_hook(lambda module, inputs, output: means.append(inputs[0].mean((0, 2, 3, 4))))
    before = weights(recipe)
    for step in range(first, recipe.num_steps):
        run(recipe, step)
    handle.remove()
    assert len(means) == 3
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
    assert moved(before, weights(recipe)) == set()


def test_one_patch_is_no_batch_to_norm_by() -> None:
    with pytest.raises(InputError, match=r"CFG_RANGE feed\.cases_per_step"):
        cg_3dsrgan.build(small(), make_engine=plain_engine, patches_per_step=1)


# Inference.


def test_tiles_of_any_size_equal_the_whole_volume() -> None:
    G = cg_3dsrgan.generator(small(contextual_channels=2))
    channels_last(G)
    perturb(G)
    synthesizer = synthesizer_of(G)
    tiling = synthesizer.tiling
    assert (tiling.tile, tiling.halo, tiling.overlap, tiling.multiple) == ((64,) * 3, (48,) * 3, (0,) * 3, (32,) * 3)
    shape, covered = (90, 20, 11), (96, 32, 32)
    low = torch.zeros(1, 1, *(edge + 2 * 48 for edge in covered))
    low[:, :, 48 : 48 + 90, 48 : 48 + 20, 48 : 48 + 11] = torch.rand(shape)
    whole = synthesizer(low, {})
    assert whole.shape[2:] == covered
    with torch.no_grad():
        direct = G(low)[2][:, :, 48:-48, 48:-48, 48:-48]  # C on all that R gives
    torch.testing.assert_close(whole, direct, rtol=0, atol=1e-5)
    for begin, edge in ((0, 64), (64, 32), (32, 32)):
        tile = synthesizer(low[:, :, begin : begin + edge + 96], {})
        torch.testing.assert_close(tile, whole[:, :, begin : begin + edge], rtol=0, atol=1e-5)
    off = synthesizer(low[:, :, 16 : 16 + 32 + 96], {})
    assert (off - whole[:, :, 16:48]).abs().max() > 1e-2


@pytest.mark.parametrize("variant", VARIANTS)
def test_exported_weights_synthesize_what_the_recipe_does(variant: str) -> None:
    config = small(**VARIANTS[variant])
    recipe = build(config)
    run(recipe, recipe.phase_starts["joint"])
    before = torch.get_rng_state()
    theirs = cg_3dsrgan.weights_to_synthesizer(config, recipe.weights())
    assert torch.equal(torch.get_rng_state(), before)
    mine: Synthesizer = recipe.synthesizer()
    assert mine.tiling == theirs.tiling
    assert mine.context_batch is None
    assert mine.context(torch.zeros(1), torch.zeros(1)) == {}
    low = torch.rand(1, 1, 128, 128, 128)
    a, b = mine(low, {}), theirs(low, {})
    assert torch.equal(a, b)
    assert a.shape == (1, 1, 32, 32, 32)
    assert not a.requires_grad
    with pytest.raises(InputError, match="CKPT_CONFIG"):
        cg_3dsrgan.weights_to_synthesizer(small(mlnet_channels=2, **VARIANTS[variant]), recipe.weights())


# Schedule.


def observe(recipe: CG3DSRGAN, scores: list[float]) -> tuple[list[int], int, int]:
    """Give one score per epoch; returns the epochs after which the rate was cut, and (last epoch, step to go on)."""
    assert isinstance(recipe, Validated)
    cuts, rate, start = [], recipe.config.lr, recipe.phase_starts["joint"]
    for epoch, score in enumerate(scores, start=1):
        step = start + epoch * recipe.validate_every
        after = recipe.observe(step, {"squared_error": score**2 * 4.0, "reference_power": 4.0})
        for engine in (recipe.M, recipe.D):
            assert engine.optimizer.param_groups[0]["lr"] == recipe._plateau.lr
        if recipe._plateau.lr != rate:
            cuts.append(epoch)
            rate = recipe._plateau.lr
        if after != step:
            break
    return cuts, epoch, after


def test_the_plateau_is_pytorchs_and_ends_after_the_third_cut() -> None:
    recipe = build(small(max_epochs=100, epoch_samples=2))
    cuts, epoch, after = observe(recipe, [0.3] * 100)
    assert (cuts, epoch) == ([7, 13, 19], 19)
    assert after == recipe.phase_starts["statistics"]
    assert recipe.phase(after) == "statistics"
    assert recipe._plateau.lr == pytest.approx(2e-7)
    delayed = build(small(max_epochs=100, epoch_samples=2))
    assert observe(delayed, [0.3] * 5 + [0.2] + [0.3] * 94)[0] == [12, 18, 24]
    falling = build(small(max_epochs=30, epoch_samples=2))
    assert observe(falling, [0.9**n for n in range(30)])[0] == []

    # Against PyTorch's own, on scores that wander.
    random = torch.Generator().manual_seed(0)
    scores = (1 + 0.3 * torch.rand(60, generator=random) * torch.linspace(1, 0.3, 60)).tolist()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2e-4)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=3)
    ours, config = Plateau(2e-4), small(plateau_patience=3)
    for score in scores:
        theirs.step(score)
        ours = ours.after(score, config)
        if ours.lr < 1e-7:  # PyTorch's smallest change of a rate is 1e-8
            break
        assert optimizer.param_groups[0]["lr"] == pytest.approx(ours.lr)


def test_scores_outside_the_joint_phase_change_nothing() -> None:
    recipe = build(small())
    for step in (1, 2, 7):
        assert recipe.observe(step, {"squared_error": 1.0, "reference_power": 1.0}) == step
    assert recipe._plateau == Plateau(recipe.config.lr)


def test_validation_is_inference_and_trains_nothing() -> None:
    recipe = build(small())
    before, statistics, batch = weights(recipe), weights(recipe, buffers=True), make_batch(5)
    scores = recipe.validate(batch)
    assert moved(before, weights(recipe)) | moved(statistics, weights(recipe, buffers=True)) == set()
    refined = module(recipe).eval()(batch.source)[2]
    torch.testing.assert_close(scores["squared_error"], F.mse_loss(refined, batch.target))
    torch.testing.assert_close(scores["reference_power"], batch.target.square().mean())
    run(recipe, 2)
    assert recipe.M.module.training


def test_steps_are_counted_in_samples() -> None:
    recipe: Recipe = build(small(backbone_samples=5, epoch_samples=3, max_epochs=4, calibration_samples=1))
    assert recipe.phase_starts == {"backbone": 0, "joint": 3, "statistics": 3 + 4 * 2}
    assert recipe.num_steps == 12
    assert [recipe.phase(step) for step in (0, 2, 3, 10, 11)] == [
        "backbone",
        "backbone",
        "joint",
        "joint",
        "statistics",
    ]
    with pytest.raises(ValueError, match="not one of 12"):
        recipe.phase(12)
    plain = build(small(calibration_samples=0, **BASELINE))
    assert plain.phase_starts == {"joint": 0}
    spec = recipe.batch_spec(3)
    assert (spec.patch, spec.halo, spec.sampler, spec.images) == ((32, 32, 32), (0, 0, 0), {"body": 1.0}, "paired")


# Ablations.


@pytest.mark.parametrize(
    ("variant", "engines", "terms"),
    [
        ("baseline", {"M"}, {"l1"}),
        ("baseline + CG", {"M"}, {"l1", "class"}),
        ("CG-3DGAN", {"M", "D"}, {"l1", "class", "adversarial"}),
        ("CG-3DSRGAN", {"M", "D", "phi"}, {"l1", "class", "adversarial", "perceptual"}),
    ],
)
def test_every_row_of_the_ablation_has_its_networks_and_losses(
    variant: str, engines: set[str], terms: set[str]
) -> None:
    config = small(**VARIANTS[variant])
    recipe = build(config)
    assert recipe.state().keys() == engines | {"schedule"}
    step = recipe.phase_starts["joint"]
    before = weights(recipe)
    metrics = run(recipe, step)
    assert metrics.keys() & {"l1", "class", "adversarial", "perceptual"} == terms
    weight = {"l1": 300, "class": 10, "perceptual": 10, "adversarial": 1}
    torch.testing.assert_close(metrics["generator"], sum((weight[t] * metrics[t] for t in terms), torch.zeros(())))
    assert moved(before, weights(recipe)) == before.keys() - {"phi"}
    assert ("contextual" in before) == config.refine
    assert ("mlnet.head" in before) == config.classify


# Learning.


def test_training_overfits_two_patches() -> None:
    """Two patches of hot blobs of two doses: the error falls, the doses are told apart, the activity is kept."""
    recipe = build(small(max_epochs=100, lr=4e-3, mlnet_channels=16))
    for engine in recipe.engines.values():
        channels_last(engine.module)
    random = torch.Generator().manual_seed(0)
    places = torch.stack(torch.meshgrid(*[torch.arange(32.0)] * 3, indexing="ij"), dim=-1)
    centres = 32 * torch.rand(2, 10, 3, generator=random)
    distances = (places - centres[:, :, None, None, None]).square().sum(-1)
    full = torch.exp(-distances / 32).sum(1, keepdim=True)
    noise = torch.tensor([0.1, 0.4]).view(2, 1, 1, 1, 1)
    low = full + noise * torch.randn(full.shape, generator=random)
    empty = torch.zeros(2, 0, 32, 32, 32)
    batch = Batch(
        source=low, target=full, masks=empty, overview=empty, drf=torch.tensor([4.0, 100.0]), cases=2, places=("", "")
    )
    start = recipe.phase_starts["joint"]
    history = [recipe.step(batch, start + step) for step in range(26)]
    assert history[-1]["l1"] < 0.2 * history[0]["l1"]
    assert history[-1]["l1"] < 0.5 * F.l1_loss(low, full)
    assert history[-1]["accuracy"] == 1
    ratios = [metrics["activity_ratio"].item() for metrics in history[-8:]]
    assert sum(ratios) / 8 == pytest.approx(1.0, abs=0.15)


# Resume.


def test_resume_in_the_middle_of_each_phase_is_bit_equal() -> None:
    config = small(plateau_patience=0)
    whole = build(config)

    def advance(recipe: CG3DSRGAN, step: int) -> None:
        run(recipe, step)
        if (step + 1) % recipe.validate_every == 0:  # the loop's order: score, then save
            recipe.observe(step + 1, {k: float(v) for k, v in recipe.validate(make_batch(99)).items()})

    for step in range(whole.num_steps):
        resumed = build(config, seed=99)
        resumed.load(whole.state())
        assert resumed._plateau == whole._plateau
        for engine in (resumed.M, resumed.D):
            assert engine.optimizer.param_groups[0]["lr"] == whole._plateau.lr
        advance(resumed, step)
        advance(whole, step)
        a, b = whole.state(), resumed.state()
        assert a.keys() == b.keys() == {"M", "D", "phi", "schedule"}
        for engine_name in a:
            assert a[engine_name].keys() == b[engine_name].keys()
            assert all(torch.equal(a[engine_name][k], b[engine_name][k]) for k in a[engine_name]), (step, engine_name)


# VGG16 in the system.


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vgg16") / "vgg16.safetensors"
    save_file({name: 0.5 * value for name, value in perceptual.VGG16().state_dict().items()}, path)
    return {"vgg16_file": str(path), "vgg16_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_vgg16_is_read_from_its_file_and_kept_out_of_training(
    vgg16: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perceptual, "slice_loss", partial(perceptual.slice_loss, count=1))
    config = small(perceptual="vgg16", **vgg16)
    assert cg_3dsrgan.files(config) == {"vgg16_file": Path(vgg16["vgg16_file"])}
    recipe = build(config)
    assert recipe.vgg16 is not None
    assert "backbone" not in recipe.phase_starts
    assert recipe.state().keys() == {"M", "D", "schedule"}
    frozen = {k: v.clone() for k, v in recipe.vgg16.state_dict().items()}
    metrics = run(recipe, 0)
    assert metrics["perceptual"] > 0
    assert all(torch.equal(v, frozen[k]) for k, v in recipe.vgg16.state_dict().items())
    assert all(p.grad is None for p in recipe.vgg16.parameters())
    assert vgg16["vgg16_sha256"] in cg_3dsrgan.caveats(config)[0]


def test_a_dry_run_needs_no_weights_and_the_real_one_refuses_to_go_without() -> None:
    with torch.device("meta"):
        recipe = cg_3dsrgan.build(Config(), make_engine=plain_engine, patches_per_step=4)
    assert recipe.phase_starts == {"joint": 0, "statistics": 100_000}
    assert recipe.num_steps == 100_200
    assert recipe.validate_every == 1000
    for refused in (lambda: cg_3dsrgan.files(Config()), lambda: build(small(perceptual="vgg16"))):
        with pytest.raises(InputError, match="CFG_BACKBONE") as error:
            refused()
        assert "recipe.perceptual=masked" in error.value.remedy
    without: list[dict[str, Any]] = [{"perceptual": "masked"}, {"refine": False}, {"lambda_perceptual": 0.0}]
    for changes in without:
        assert cg_3dsrgan.files(Config(**changes)) == {}
    assert build(small(perceptual="vgg16", lambda_perceptual=0.0)).vgg16 is None


# Configuration.


def fed(*images: str) -> tuple[FeedConfig, Doses]:
    return FeedConfig(source=images), stated(*images)


def test_doses_must_be_those_of_the_images_fed() -> None:
    config = Config()
    named = {dose: f"low_drf{dose}" for dose in (4, 10, 20, 50, 100, 200)}
    fits = [named[dose] for dose in (100, 4, 10, 20, 50)]
    cg_3dsrgan.check(config, *fed(*fits, "low_drf4_r1"))  # two noise realisations of one dose
    for low in (fits[:2], [*fits, named[200]], [*fits[:4], "mine"]):
        with pytest.raises(InputError) as error:
            cg_3dsrgan.check(config, *fed(*low))
        assert (error.value.code, error.value.where) == ("CFG_DOSES", "feed.source")
        assert "--set feed.source=" in error.value.remedy
        assert "recipe.doses=" in error.value.remedy
        assert "\n" not in str(error.value)
        cg_3dsrgan.check(Config(classify=False), *fed(*low))
    cg_3dsrgan.check(config, *fed(*cg_3dsrgan.FEED.source))


def test_caveats_tell_the_backbone_the_classes_and_which_model_is_kept() -> None:
    lines = " ".join(cg_3dsrgan.caveats(small()))
    assert "not the paper's VGG16" in lines
    assert "4, 10, 20, 50, 100" in lines
    assert "last" in lines
    lines = " ".join(cg_3dsrgan.caveats(small(**BASELINE)))
    assert "perceptual loss: none" in lines
    assert "classes: none" in lines


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"perceptual": "vgg19"}, "CFG_CHOICE", "perceptual"),
        ({"patch": (96, 96, 48)}, "CFG_PATCH_SIZE", "patch"),
        ({"patch": (0, 32, 32)}, "CFG_PATCH_SIZE", "patch"),
        ({"doses": (4.0, 4.0)}, "CFG_RANGE", "doses"),
        ({"doses": (0.0, 4.0)}, "CFG_RANGE", "doses"),
        ({"doses": (4.0,)}, "CFG_RANGE", "doses"),
        ({"mlnet_channels": 0}, "CFG_RANGE", "mlnet_channels"),
        ({"epoch_samples": 0}, "CFG_RANGE", "epoch_samples"),
        ({"calibration_samples": -1}, "CFG_RANGE", "calibration_samples"),
        ({"lambda_l1": -1.0}, "CFG_RANGE", "lambda_l1"),
        ({"lambda_perceptual": 0.0, "adversarial": False}, "CFG_RANGE", "lambda_perceptual"),
        ({"lr": 0.0}, "CFG_RANGE", "lr"),
        ({"stop_lr": 1.0}, "CFG_RANGE", "stop_lr"),
        ({"plateau_factor": 1.0}, "CFG_RANGE", "plateau_factor"),
        ({"betas": (0.5, 1.0)}, "CFG_RANGE", "betas"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(changes: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(InputError) as error:
        Config(**changes)
    assert error.value.code == code
    assert error.value.where == f"cg_3dsrgan.{field}"
    assert "\n" not in str(error.value)


def test_one_dose_trains_without_classes() -> None:
    assert Config(doses=(100.0,), classify=False).doses == (100.0,)


# The residual, which is not the paper's.

RESIDUAL: dict[str, Any] = {"residual": "gaussian", "gaussian_samples": 4}


def of_scan(synthesizer: Synthesizer) -> Synthesizer:
    assert isinstance(synthesizer, ScanAware)
    return synthesizer.for_scan(Scan((4.0, 4.0, 4.0), 20.0, 0.0))


def test_the_residual_has_a_phase_of_its_own_and_leaves_the_papers_phases_as_they_are() -> None:
    plain, added = build(small()), build(small(**RESIDUAL))
    assert {name: step + 2 for name, step in plain.phase_starts.items()} == {
        name: step for name, step in added.phase_starts.items() if name != "gaussian"
    }
    assert added.phase(0) == "gaussian"
    assert (plain.batch_spec(0).halo, added.batch_spec(0).halo) == ((0, 0, 0), (6, 6, 6))
    before, statistics = weights(added), weights(added, buffers=True)
    run(added, 0)
    assert moved(before, weights(added)) | moved(statistics, weights(added, buffers=True)) == set()


@pytest.mark.parametrize("variant", ["baseline", "CG-3DSRGAN"])
def test_the_residual_starts_at_the_gaussian_of_the_dose_and_is_exported_with_it(variant: str) -> None:
    config = small(**RESIDUAL, **VARIANTS[variant])
    recipe = build(config)
    for step in (0, 1):  # the full dose is the low dose at 5 mm, so that this width is chosen for either dose
        batch = make_batch(step, around=6)
        wanted = dose_gaussian.smoothed(batch.source, batch.spacing_mm, 6, (5.0,))
        recipe.step(dataclasses.replace(batch, target=wanted), step)
    assert recipe.validate(dataclasses.replace(batch, target=wanted))["squared_error"] < 1e-12
    low = torch.rand(1, 1, 128, 128, 128)
    synthesizer = of_scan(recipe.synthesizer())
    context = synthesizer.context(torch.zeros(1), batch.source)
    near = cropped(low, (42, 42, 42))
    start = dose_gaussian.smoothed(near, torch.full((1, 3), 4.0), 6, (5.0,))
    torch.testing.assert_close(synthesizer(low, context), start)

    run(recipe, recipe.phase_starts["joint"])
    exported = of_scan(cg_3dsrgan.weights_to_synthesizer(config, recipe.weights()))
    ours = synthesizer(low, context)
    assert torch.equal(ours, exported(low, exported.context(torch.zeros(1), batch.source)))
    assert not torch.allclose(ours, start)
    for lacking in ("gaussian.drf", "mlnet.down.0.0.bias"):
        weights_left = {name: value for name, value in recipe.weights().items() if name != lacking}
        with pytest.raises(InputError, match="CKPT_CONFIG"):
            cg_3dsrgan.weights_to_synthesizer(config, weights_left)


@torch.no_grad()
def test_what_the_residual_adds_grows_with_the_noise_of_the_case_and_tiles_equal_the_whole() -> None:
    G = cg_3dsrgan.generator(small(contextual_channels=2, **RESIDUAL))
    channels_last(G)
    perturb(G)
    G.contextual = None  # what refines sees the sum
    widths = Widths(torch.tensor([20.0]), torch.tensor([8.0]))
    synthesizer = of_scan(cg_3dsrgan.residual_of(G, small(), widths))
    low = torch.rand(1, 1, 160, 128, 128)
    quiet, loud = ({"noise": torch.full((1, 1, 1, 1, 1), sd)} for sd in (0.1, 0.2))
    start = widths.smooth(cropped(low, (42, 42, 42)), torch.full((1, 3), 4.0), torch.tensor([20.0]), 6)
    whole = synthesizer(low, quiet)
    torch.testing.assert_close(synthesizer(low, loud) - start, 2 * (whole - start), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(synthesizer(low[:, :, 32:], quiet), whole[:, :, 32:], rtol=0, atol=1e-5)


def test_the_noise_of_a_case_is_that_of_all_its_patches() -> None:
    lacking = torch.randn(4, 1, 3, 3, 3)
    noise = dose_gaussian.noise(lacking, 2)
    assert noise.shape == (4, 1, 1, 1, 1)
    torch.testing.assert_close(noise[0], noise[1])
    torch.testing.assert_close(noise[2, 0, 0, 0, 0], lacking[2:].std(correction=0))


def test_a_residual_resumes_to_the_same_bits_in_each_phase() -> None:
    config = small(**RESIDUAL, max_epochs=1)
    whole = build(config)
    for step in range(0, whole.num_steps, 2):
        resumed = build(config, seed=99)
        resumed.load(whole.state())
        run(resumed, step)
        run(whole, step)
        a, b = whole.state(), resumed.state()
        assert a.keys() == b.keys() == {"M", "D", "phi", "schedule", "gaussian"}
        assert all(torch.equal(a[engine][name], b[engine][name]) for engine in a for name in a[engine]), step


def test_a_patch_may_be_longer_than_a_volume_and_what_lies_beyond_is_the_same_in_both_doses() -> None:
    assert build(small()).batch_spec(2).beyond
    with pytest.raises(InputError, match=r"CFG_CHOICE feed\.beyond"):
        cg_3dsrgan.check(Config(), dataclasses.replace(cg_3dsrgan.FEED, beyond="mirror"), {})
