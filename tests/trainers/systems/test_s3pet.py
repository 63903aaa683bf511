"""S3PET as a system: schedule, hand-over, resume, variants, saved encoders, learning, whole volumes, configuration."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from doses import stated
from network_facts import seam_score
from numpy.typing import NDArray
from small_s3pet import V0, V2, small
from torch import Tensor, nn

from storage.errors import InputError
from storage.patches import PatchLocation
from storage.stitch import stitch
from trainers import checkpoint
from trainers.assembly import WindowSynthesizer, as_slices, slicewise
from trainers.engine import EngineConfig, deepspeed_engines, plain_engine
from trainers.feed_config import FeedConfig
from trainers.recipe import Batch, EngineFactory, Exporting, Illustrated, Synthesizer, Tiling
from trainers.systems import s3pet
from trainers.systems.s3pet import Bilateral, Config

V1: dict[str, Any] = {**V0, "pretrained": True}

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


def build(config: Config, seed: int = 0) -> s3pet.S3PET:
    torch.manual_seed(seed)
    return s3pet.build(config, make_engine=plain_engine, patches_per_step=2)


def make_batch(recipe: s3pet.S3PET, step: int) -> Batch:
    """What the feed gives: only the doses asked for."""
    random = torch.Generator().manual_seed(step)
    spec = recipe.batch_spec(step)
    low, full = torch.rand(2, 2, 1, *spec.patch, generator=random)
    none = torch.zeros(2, 1, 0, 0, 0)
    return Batch(
        source=none if spec.images == "target" else low,
        target=none if spec.images == "source" else full,
        masks=torch.zeros(2, 0, *spec.patch),
        overview=none,
        drf=torch.full((2,), 10.0),
        cases=2,
        places=("", ""),
    )


def run(recipe: s3pet.S3PET, step: int) -> dict[str, Tensor]:
    batch = make_batch(recipe, step)
    torch.manual_seed(1000 + step)  # as the loop does
    return recipe.step(batch, step)


def flat(recipe: s3pet.S3PET) -> dict[str, Tensor]:
    return {f"{engine}|{key}": value for engine, state in recipe.state().items() for key, value in state.items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    keys = (key for key in before if "|weight/" in key)
    return {key.split("|")[0] for key in keys if not torch.equal(before[key], after[key])}


def test_published_schedule_gives_the_paper_s_steps() -> None:
    with torch.device("meta"):
        recipe = s3pet.build(
            Config(), make_engine=plain_engine, patches_per_step=s3pet.FEED.cases_per_step * Config().patches_per_case
        )
    assert recipe.phase_starts == {"low encoder": 0, "full encoder": 36_000, "token swap": 180_000}
    assert recipe.num_steps == 192_000
    assert [recipe.batch_spec(s).images for s in (0, 36_000, 180_000)] == ["source", "target", "paired"]
    assert recipe.batch_spec(0).patch == (1, 128, 128)
    assert sum(recipe.batch_spec(0).sampler.values()) == pytest.approx(1)


def test_without_the_transfer_loss_the_specific_projector_of_full_dose_learns_nothing() -> None:
    recipe = build(small(pretrained=False, lambda_transfer=0.0))
    network = recipe.network.module
    assert isinstance(network, Bilateral)
    before = network.P_S.weight.detach().clone()
    run(recipe, 0)
    assert torch.equal(network.P_S.weight, before)


def test_a_window_does_not_depend_on_its_batch() -> None:
    recipe = build(small())
    run(recipe, 0)
    run(recipe, recipe.phase_starts["token swap"])
    synthesizer = recipe.synthesizer()
    low = torch.rand(3, 1, 4, 32, 32)
    together = synthesizer(low, {})
    alone = torch.stack([synthesizer(slab[None], {})[0] for slab in low])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)
    for z in range(4):
        torch.testing.assert_close(
            synthesizer(low[:, :, z : z + 1], {}), together[:, :, z : z + 1], atol=1e-6, rtol=1e-5
        )


# Stage hand-over, and what moves when.


def test_the_hand_over_is_bit_equal_and_leaves_the_rest_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = build(small())
    start = recipe.phase_starts["token swap"]
    for step in range(start):
        run(recipe, step)
    before = recipe.state()
    seen: dict[str, Tensor] = {}
    monkeypatch.setattr(recipe, "_swap_step", lambda low, full: seen.update(recipe.network.state()) or {})
    run(recipe, start)
    for dose, place in (("low", "weight/main.E_L."), ("full", "weight/E_S.")):
        trained = before[f"{dose} encoder"]
        for key in [key for key in seen if key.startswith(place)]:
            assert torch.equal(seen[key], trained["weight/encoder." + key.removeprefix(place)])
            assert not torch.equal(seen[key], before["network"][key])
    rest = [key for key in seen if not key.startswith(("weight/main.E_L.", "weight/E_S."))]
    assert all(torch.equal(seen[key], before["network"][key]) for key in rest)
    assert not [key for key in seen if "mask_token" in key or "head" in key]


@pytest.fixture
def zero_engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineFactory]:
    """DeepSpeed in this process, alone in its group: a process of its own would import for seconds."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "DS_ACCELERATOR": "cpu"}.items():
        monkeypatch.setenv(name, value)
    make = deepspeed_engines(EngineConfig(zero_stage=2), device=torch.device("cpu"))
    comm = importlib.import_module("deepspeed.comm")
    monkeypatch.setattr(comm.comm, "cdb", None)  # what it would keep of this group beyond its end
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    yield make
    comm.destroy_process_group()


def test_the_hand_over_reaches_the_weights_that_zero_steps_on(zero_engines: EngineFactory) -> None:
    config = small(low_samples=4, full_samples=4, swap_samples=8, lr=1e-12)
    recipe = s3pet.build(config, make_engine=zero_engines, patches_per_step=2)
    with torch.no_grad():  # what a silent loss of the hand-over would show: Stage I far from Stage II's start
        trained = {dose: engine.state() for dose, engine in recipe.autoencoders.items()}
        for dose, engine in recipe.autoencoders.items():
            trained[dose] = {k: v + 1 if k.startswith("weight/") else v for k, v in trained[dose].items()}
            engine.load(trained[dose])
    for step in (2, 3):
        run(recipe, step)
    after = recipe.network.state()
    for dose, place in (("low", "weight/main.E_L."), ("full", "weight/E_S.")):
        for key in [key for key in after if key.startswith(place)]:
            wanted = trained[dose]["weight/encoder." + key.removeprefix(place)]
            torch.testing.assert_close(after[key], wanted, rtol=0, atol=1e-6)


def test_each_phase_moves_its_own_networks_alone() -> None:
    recipe = build(small())
    for step in range(recipe.num_steps):
        before = flat(recipe)
        metrics = run(recipe, step)
        assert all(value.isfinite() and not value.requires_grad for value in metrics.values())
        phase = recipe.phase(step)
        assert moved(before, flat(recipe)) == {"network" if phase == "token swap" else phase}


def test_resume_in_every_phase_and_at_every_boundary_is_bit_equal() -> None:
    whole = build(small())
    for step in range(whole.num_steps):
        resumed = build(small(), seed=99)
        resumed.load(whole.state())
        run(resumed, step)
        run(whole, step)
        a, b = flat(whole), flat(resumed)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), step


def test_metrics_tell_when_tokens_collapse() -> None:
    recipe = build(small(pretrained=False))
    network = recipe.network.module
    assert isinstance(network, Bilateral)
    assert run(recipe, 0)["variance_s_ds"] > 1e-3
    nn.init.zeros_(network.P_S.weight)
    assert run(recipe, 1)["variance_s_ds"] < 1e-6


# Variants of Table II, and encoders that outlive their run.


@pytest.mark.parametrize(
    ("changes", "phases", "terms"),
    [
        (V0, ["token swap"], {"full"}),
        (V1, ["low encoder", "token swap"], {"full"}),
        (V2, ["low encoder", "full encoder", "token swap"], {"full", "low", "align"}),
        ({}, ["low encoder", "full encoder", "token swap"], {"full", "low", "align", "transfer"}),
        ({"pretrained": False}, ["token swap"], {"full", "low", "align", "transfer"}),
        ({"swap_samples": 0}, ["low encoder", "full encoder"], set()),
    ],
)
def test_every_variant_trains_its_phases(changes: dict[str, Any], phases: list[str], terms: set[str]) -> None:
    recipe = build(small(**changes))
    assert list(recipe.phase_starts) == phases
    assert recipe.num_steps == 2 * len(phases)
    assert [recipe.phase(step) for step in recipe.phase_starts.values()] == phases
    for step in range(recipe.num_steps):
        metrics = run(recipe, step)
    assert metrics.keys() & {"full", "low", "align", "transfer"} == terms


def save(recipe: s3pet.S3PET, folder: Path) -> Path:
    """As the launcher does at the end of every phase."""
    assert isinstance(recipe, Exporting)
    path = folder / "encoders.safetensors"
    for step in range(recipe.num_steps):
        run(recipe, step)
        if step + 1 in (*recipe.phase_starts.values(), recipe.num_steps):
            for name, tensors in recipe.exports(step + 1).items():
                assert not path.exists()
                checkpoint.write_weights(folder / f"{name}.safetensors", tensors, {})
    return path


def test_saved_encoders_replace_stage_1(tmp_path: Path) -> None:
    whole = build(small())
    path = save(whole, tmp_path)
    config = small(encoders=str(path), low_samples=0, full_samples=0)
    assert s3pet.files(config) == {"encoders": path}
    again = build(config)
    assert list(again.phase_starts) == ["token swap"]
    trained, started = whole.state(), again.state()["network"]
    for dose, place in (("low", "weight/main.E_L."), ("full", "weight/E_S.")):
        for key in [key for key in started if key.startswith(place)]:
            assert torch.equal(started[key], trained[f"{dose} encoder"]["weight/encoder." + key.removeprefix(place)])
    run(again, 0)
    single = build(small(**V1, encoders=str(path)))  # V1 needs the encoder of low dose alone
    assert list(single.phase_starts) == ["token swap"]
    with torch.device("meta"):  # the launcher's dry run
        s3pet.build(config, make_engine=plain_engine, patches_per_step=2)


def test_a_run_of_stage_1_alone_makes_encoders_and_no_images(tmp_path: Path) -> None:
    config = small(swap_samples=0)
    recipe = build(config)
    path = save(recipe, tmp_path)
    exported, weights = checkpoint.read_weights(path)[0], recipe.weights()
    assert exported.keys() == weights.keys()
    assert all(torch.equal(exported[key], weights[key]) for key in exported)
    with pytest.raises(InputError, match=r"CFG_STAGE.*recipe\.encoders"):
        s3pet.weights_to_synthesizer(config, weights)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"window": 64}, "window 32 (here 64)"),
        ({"heads": 4}, "heads 2"),
        ({"dim": 32}, "dim 16"),
        ({"blocks": 2}, "blocks"),
    ],
)
def test_encoders_of_other_settings_are_refused(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    path = save(build(small()), tmp_path)
    with pytest.raises(InputError) as error:
        build(small(encoders=str(path), **changes))
    assert error.value.code == "CKPT_CONFIG"
    assert named in error.value.found


def test_broken_missing_and_half_files_of_encoders_are_refused(tmp_path: Path) -> None:
    path = save(build(small(**V1)), tmp_path)
    with pytest.raises(InputError, match=r"CKPT_CONFIG.*full dose"):
        build(small(encoders=str(path)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="CKPT_DAMAGED"):
        build(small(encoders=str(path)))
    for ask in (build, s3pet.files):
        with pytest.raises(InputError, match=r"CKPT_NONE absent\.safetensors"):
            ask(small(encoders=str(tmp_path / "absent.safetensors")))
    assert s3pet.files(small()) == {}


@pytest.mark.parametrize("changes", [{}, V0, V2])
def test_exported_weights_synthesize_what_the_recipe_does(changes: dict[str, Any]) -> None:
    config = small(**changes)
    recipe = build(config)
    run(recipe, recipe.num_steps - 1)
    weights = recipe.weights()
    assert not [name for name in weights if name.startswith(("E_S", "P_S", "D_L", "main"))]
    before = torch.get_rng_state()
    theirs = s3pet.weights_to_synthesizer(config, weights)
    assert torch.equal(torch.get_rng_state(), before)
    mine = recipe.synthesizer()
    assert mine.tiling == theirs.tiling
    assert mine.context_batch is None
    low = torch.rand(2, 1, 3, 32, 32)
    assert torch.equal(mine(low, mine.context(low, low)), theirs(low, {}))
    with pytest.raises(InputError, match="CKPT_CONFIG"):
        s3pet.weights_to_synthesizer(small(**{**changes, "dim": 32}), weights)


# Training.


def blobs(slices: int) -> tuple[Tensor, Tensor]:
    """Two slabs of hot blobs, and the same with noise: (2, 1, slices, 32, 32) each."""
    random = torch.Generator().manual_seed(0)
    yx = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij"), dim=-1)
    centres = 32 * torch.rand(2, slices, 6, 2, generator=random)
    distances = (yx - centres[..., None, None, :]).square().sum(-1)
    full = torch.exp(-distances / 18).sum(2)
    low = (full + 0.3 * torch.randn(full.shape, generator=random)).clamp(min=0)
    return low[:, None], full[:, None]


def nmse(image: Tensor, target: Tensor) -> float:
    return float((image - target).square().sum() / target.square().sum())


def as_batch(low: Tensor, full: Tensor) -> Batch:
    none = torch.zeros(2, 1, 0, 0, 0)
    return Batch(low, full, torch.zeros(2, 0, *low.shape[2:]), none, torch.full((2,), 10.0), 2, ("", ""))


@pytest.mark.parametrize("noise", [True, False])
def test_training_overfits_two_slabs(noise: bool) -> None:
    """Most of the noise goes; without any, the network learns the identity."""
    low, full = blobs(2)
    config = small(pretrained=False, dim=32, decoder_channels=(16, 16, 16, 16), lr=2e-3, swap_samples=10**6)
    recipe = build(config)
    batch = as_batch(low if noise else full, full)
    for step in range(150):
        recipe.step(batch, step)
    assert nmse(recipe.synthesizer()(batch.source, {}), full) < 0.1 * nmse(low, full)


def test_stage_1_learns_to_see_under_the_mask() -> None:
    """Of slices of one level each, new ones in every step, the visible patches tell the level of the masked ones."""
    recipe = build(small(dim=32, lr=2e-3, low_samples=10**6))
    found = []
    for step in range(150):
        torch.manual_seed(step)
        slabs = torch.rand(2, 1, 2, 1, 1).expand(-1, -1, -1, 32, 32)
        found.append(recipe.step(as_batch(slabs, slabs), step)["masked_patches"].item())
    assert np.mean(found[-20:]) < 0.4 * 0.25  # a quarter is the mean error of the best constant


# Whole volumes.


class Ones(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


def whole(synthesizer: Synthesizer, volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cut, synthesize and stitch as whole volumes are; what lies beyond the volume reads as 0."""
    tile = (min(synthesizer.tiling.tile[0], volume.shape[0]), *synthesizer.tiling.tile[1:])
    padded = np.pad(volume, [(0, edge) for edge in tile])
    result = np.full(volume.shape, np.nan, dtype=np.float32)

    def tiles(boxes: list[PatchLocation]) -> Iterator[NDArray[np.float32]]:
        cut = [padded[tuple(map(slice, box.start, box.stop))][None] for box in boxes]
        yield from synthesizer(torch.from_numpy(np.stack(cut)), {})[:, 0].numpy()

    def write(z0: int, slab: NDArray[np.float32]) -> None:
        result[z0 : z0 + len(slab)] = slab[:, : volume.shape[1], : volume.shape[2]]

    stitch(volume.shape, tile, synthesizer.tiling.overlap, tiles, write)
    return result


@pytest.mark.parametrize("shape", [(3, 32, 32), (17, 33, 50), (2, 72, 31), (1, 20, 110)])
def test_windows_cover_every_voxel_and_their_weights_sum_to_one(shape: tuple[int, int, int]) -> None:
    synthesizer = slicewise(Ones(), build(small()).synthesizer().tiling)
    np.testing.assert_allclose(whole(synthesizer, np.zeros(shape, dtype=np.float32)), 1, rtol=1e-6)


def test_one_window_is_the_direct_call_and_slices_keep_their_order() -> None:
    synthesizer = build(small()).synthesizer()
    volume = np.random.default_rng(0).random((5, 32, 32), dtype=np.float32)
    direct = synthesizer(torch.from_numpy(volume)[None, None], {})[0, 0].numpy()
    np.testing.assert_allclose(whole(synthesizer, volume), direct, rtol=1e-5, atol=1e-6)


def test_a_whole_volume_shows_no_seams() -> None:
    recipe = build(small(pretrained=False, lr=1e-3, swap_samples=10**6))
    batch = as_batch(*blobs(2))
    for step in range(40):
        recipe.step(batch, step)
    random = torch.Generator().manual_seed(1)
    volume = F.avg_pool2d(torch.rand(4, 1, 100, 164, generator=random), 5, stride=1)[:, 0].numpy()
    synthesizer = recipe.synthesizer()
    blended = seam_score(whole(synthesizer, volume), 16)
    assert isinstance(synthesizer, WindowSynthesizer)
    hard = slicewise(synthesizer.network, Tiling(tile=(16, 32, 32), halo=(0, 0, 0)))
    assert blended < 1.2
    assert seam_score(whole(hard, volume), 32) > 3  # what blending removes


# Configuration and the registry's questions.


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"window": 0}, "CFG_RANGE", "window"),
        ({"window": 100}, "CFG_PATCH_SIZE", "window"),
        ({"patch_size": 16}, "CFG_PATCH_SIZE", "patch_size"),
        ({"decoder_channels": (256, 128, 64)}, "CFG_PATCH_SIZE", "patch_size"),
        ({"decoder_channels": ()}, "CFG_RANGE", "decoder_channels"),
        ({"dim": 390}, "CFG_RANGE", "dim"),
        ({"heads": 5}, "CFG_RANGE", "dim"),
        ({"mask_low": 1.0}, "CFG_RANGE", "mask_low"),
        ({"lr": 0.0}, "CFG_RANGE", "lr"),
        ({"lambda_rec": -1.0}, "CFG_RANGE", "lambda_rec"),
        ({"decouple": False}, "CFG_RANGE", "transfer"),
        ({"transfer": False, "also_decode_swapped": True}, "CFG_RANGE", "also_decode_swapped"),
        ({"low_samples": 0}, "CFG_STAGE", "low_samples"),
        ({"full_samples": 0}, "CFG_STAGE", "full_samples"),
        ({"pretrained": False, "swap_samples": 0}, "CFG_STAGE", "swap_samples"),
        ({"encoders": "e.safetensors", "swap_samples": 0}, "CFG_STAGE", "swap_samples"),
        ({"encoders": "e.safetensors", "pretrained": False}, "CFG_STAGE", "encoders"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(changes: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(InputError) as error:
        Config(**changes)
    assert error.value.code == code
    assert error.value.where == f"s3pet.{field}"
    assert "\n" not in str(error.value)


def test_what_is_not_trained_needs_no_samples() -> None:
    Config(pretrained=False, low_samples=0, full_samples=0)
    Config(encoders="e.safetensors", low_samples=0, full_samples=0)
    Config(**V1, full_samples=0)


@pytest.mark.parametrize("low", [("low_drf4", "low_drf10"), ("low_drf10", "mine"), ("mine", "other")])
def test_several_doses_are_refused(low: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"CFG_DOSES feed\.source.*--set feed\.source="):
        s3pet.check(Config(), FeedConfig(source=low), stated(*low))


@pytest.mark.parametrize("low", [("low_drf10",), ("mine",), ("low_drf10", "low_drf10_r1")])
def test_one_dose_is_welcome(low: tuple[str, ...]) -> None:
    s3pet.check(Config(), FeedConfig(source=low), stated(*low))


def test_caveats_say_what_was_trained() -> None:
    assert "variant: S3PET;" in s3pet.caveats(Config())[0]
    assert "disentanglement" in s3pet.caveats(Config())[1]
    assert "baseline; encoders not pre-trained" in s3pet.caveats(Config(**V0))[0]
    assert "baseline + DsMAE;" in s3pet.caveats(Config(**V1))[0]
    assert "earlier run" in s3pet.caveats(Config(encoders="e.safetensors"))[0]
    assert "added to the low dose" in s3pet.caveats(Config(residual="low"))[-1]
    assert not [caveat for caveat in s3pet.caveats(Config()) if "added" in caveat]


# What a user is told and shown.


def test_large_tokens_are_told_with_settings_that_make_them_smaller() -> None:
    (told,) = s3pet.remarks(Config(), (3.0, 4.0, 4.0))
    assert "8 x 8 voxels is 32 x 32 mm" in told
    words = told.partition("(")[2].rstrip(")").split()
    assert words == ["--recipe.patch-size", "4", "--recipe.decoder-channels", "256", "128", "64"]
    finer = Config(patch_size=4, decoder_channels=(256, 128, 64))
    assert s3pet.remarks(finer, (3.0, 4.0, 4.0)) == s3pet.remarks(Config(), (5.0, 2.5, 2.5)) == ()


def test_the_size_of_tokens_may_be_left_to_the_voxels() -> None:
    left = Config(patch_size=0, lr=1e-3)
    assert s3pet.at_voxels(left, (5.0, 2.5, 2.5)) == Config(lr=1e-3)
    finer = Config(patch_size=4, decoder_channels=(256, 128, 64), lr=1e-3)
    assert s3pet.at_voxels(left, (1.0, 2.0, 2.6)) == s3pet.at_voxels(left, (1.0, 2.6, 2.0)) == finer
    shorter = Config(patch_size=0, decoder_channels=(64, 32))
    assert (
        s3pet.at_voxels(shorter, (4.0, 4.0, 4.0)).patch_size
        == s3pet.at_voxels(shorter, (1.0, 1.0, 1.0)).patch_size
        == 2
    )
    stated = Config(patch_size=8)
    assert s3pet.at_voxels(stated, (4.0, 4.0, 4.0)) is stated
    with torch.device("meta"):
        unfitted = s3pet.build(left, make_engine=plain_engine, patches_per_step=4)
    assert unfitted.config == Config(lr=1e-3), "without a cohort as in the paper"


def test_stage_1_shows_masked_slices_and_what_is_made_of_them() -> None:
    config = small()
    recipe = build(config)
    low, full = torch.rand(2, 1, 1, 3, 32, 32)
    assert not isinstance(recipe.synthesizer(), Illustrated)
    for phase, dose, x, ratio in (("low encoder", "low", low, 0.75), ("full encoder", "full", full, 0.6)):
        run(recipe, recipe.phase_starts[phase])
        synthesizer = recipe.synthesizer()
        assert isinstance(synthesizer, Illustrated)
        before = torch.get_rng_state()
        shown = synthesizer.shown(low, full)
        assert torch.equal(torch.get_rng_state(), before)
        masked, made, whole = shown.values()
        assert list(shown) == [f"{dose} dose, masked", "reconstructed", f"{dose} dose"]
        assert torch.equal(whole, x)
        hidden = s3pet.patchify(as_slices(masked), 8).eq(0).all(2)
        assert hidden.sum(1).tolist() == [round(ratio * 16)] * 3
        assert torch.equal(masked[masked != 0], x[masked != 0])
        with torch.no_grad():
            wanted = recipe.autoencoders[dose].module(as_slices(x), hidden)
        assert torch.equal(as_slices(made), wanted)
    run(recipe, recipe.phase_starts["token swap"])
    assert not isinstance(recipe.synthesizer(), Illustrated)
