"""restore: where it starts, what scale and noise do to it, the count gate, doses between doses, and windows."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from storage.errors import InputError
from trainers import filter_bank
from trainers.engine import plain_engine
from trainers.filter_bank import COARSE, MEMBERS
from trainers.recipe import Batch, Scan
from trainers.residual_unet import MULTIPLE, ResidualUNet
from trainers.systems import restore
from trainers.systems.restore import FEED, Bank, Config, Residual, Restore

SPACING_MM = (6.0, 5.0, 5.0)
MARGIN = (4, 4, 4)
SMALL: dict[str, Any] = {
    "channels": (4, 6),
    "patch": (16, 16, 16),
    "margin": MARGIN,
    "patches_per_case": 1,
    "bank_samples": 8,
    "samples": 8,
}


def build(**changes: Any) -> Restore:
    torch.manual_seed(0)
    return restore.build(Config(**{**SMALL, **changes}), make_engine=plain_engine, patches_per_step=2)


def anatomy(seed: int, edges: tuple[int, int, int] = (24, 24, 24)) -> Tensor:
    """Two bodies of SUV 1 with a warm and a hot box at places of their own."""
    random = np.random.default_rng(seed)
    image = torch.ones(2, 1, *edges)
    for one in image:
        for uptake in (3.0, 8.0):
            z, y, x = (int(random.integers(2, edge - 8)) for edge in edges)
            one[0, z : z + 6, y : y + 6, x : x + 6] = uptake
    return image


def batch(seed: int, drf: float = 20.0, shared: float = 0.0, noise: float = 0.3) -> Batch:
    """Noise in proportion to the activity, in patches of 16 voxels with their margin."""
    random = torch.Generator().manual_seed(seed)
    truth = anatomy(seed)
    source = truth * (1 + noise * torch.randn(truth.shape, generator=random))
    target = truth[:, :, 4:-4, 4:-4, 4:-4]
    nothing = torch.zeros(2, 1, 16, 16, 16)
    return Batch(
        source=source,
        target=target,
        masks=nothing,
        overview=torch.zeros(2, 1, 0, 0, 0),
        drf=torch.full((2,), drf),
        cases=2,
        places=("", ""),
        spacing_mm=torch.tensor([SPACING_MM] * 2),
        shared=torch.full((2,), shared),
        peak=torch.full((2,), 8.0),
    )


def members(seed: int) -> Tensor:
    given = batch(seed)
    return filter_bank.members(given.source, given.spacing_mm, MARGIN)


def test_the_number_of_parameters() -> None:
    assert sum(p.numel() for p in Residual(Config().channels, "none").parameters()) == 269_568
    assert sum(p.numel() for p in Residual(Config().channels, "additive").parameters()) == 269_568 + 3 * 32 + 2 * 48 + 8


def test_training_starts_at_the_bank() -> None:
    recipe = build()
    for step in range(4):
        recipe.step(batch(step), step)
    bank = members(9)
    known = recipe.synthesizer().bank
    image, _ = restore.restored(recipe.engine, bank, known.coefficients.expand(2, -1, -1), torch.zeros(2))
    assert torch.equal(image, filter_bank.combined(bank, known.coefficients[0], COARSE.of(bank)))


@settings(max_examples=10, deadline=None)
@given(factor=st.floats(0.01, 100))
def test_without_constants_the_network_follows_any_scale(factor: float) -> None:
    torch.manual_seed(1)
    network, other = Residual((4, 6), "none"), Residual((4, 6), "additive")
    for one in (network, other):
        for parameter in one.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    u = torch.randn(1, restore.INPUTS, 8, 8, 8)
    torch.testing.assert_close(network(factor * u), factor * network(u), rtol=1e-4, atol=1e-5 * factor)
    if abs(factor - 1) > 0.1:
        assert not torch.allclose(other(factor * u), factor * other(u), rtol=1e-2)


@pytest.mark.parametrize("shared", [0.0, 0.05, 0.25, 1.0])
def test_the_answer_holds_the_share_of_the_counts_that_both_images_have(shared: float) -> None:
    bank, coefficients = members(3), torch.rand(2, COARSE.count, MEMBERS)
    truth, _ = restore.restored(lambda u: u[:, :1], bank, coefficients, torch.zeros(2))
    image, _ = restore.restored(lambda u: u[:, :1], bank, coefficients, torch.full((2,), shared))
    torch.testing.assert_close(image, shared * bank[:, :1] + (1 - shared) * truth)


def test_the_gate_learns_from_what_the_low_dose_did_not_count() -> None:
    """The full dose here is the low dose's share and something that the bank holds: the second is what is fitted."""
    recipe = build()
    for step in range(4):
        given = batch(step, drf=4.0, shared=0.25)
        bank = filter_bank.members(given.source, given.spacing_mm, MARGIN)
        recipe.step(replace(given, target=0.25 * bank[:, :1] + 0.75 * bank[:, 3:4]), step)
    found = recipe.synthesizer().bank.at(4.0)
    bank = members(5)
    truth = filter_bank.combined(bank, found, COARSE.of(bank))
    torch.testing.assert_close(truth, bank[:, 3:4], rtol=2e-2, atol=2e-2)


def test_the_gate_can_be_off() -> None:
    recipe = build(count_gate="off")
    given = batch(0, drf=4.0, shared=0.25)
    assert not recipe._shared(given).any()
    assert build()._shared(given).tolist() == [0.25, 0.25]


def bank_of(*drf: float) -> Bank:
    """Coefficients are the logarithm of the dose everywhere; noise rises with its root."""
    doses = torch.tensor(drf)
    level = torch.where(doses.isfinite(), doses, 1.0).log()
    return Bank(doses, level[:, None, None].expand(-1, COARSE.count, MEMBERS).clone(), level / 2 - 3)


@settings(max_examples=30, deadline=None)
@given(drf=st.floats(1, 1000))
def test_between_doses_coefficients_are_interpolated_over_the_logarithm(drf: float) -> None:
    expected = math.log(min(max(drf, 4), 100))
    torch.testing.assert_close(
        bank_of(4, 20, 100).at(drf), torch.full((COARSE.count, MEMBERS), expected), rtol=1e-5, atol=1e-5
    )


def test_a_single_dose_serves_all() -> None:
    for drf in (1.0, 20.0, 400.0):
        torch.testing.assert_close(bank_of(20).at(drf), torch.full((COARSE.count, MEMBERS), math.log(20)))
    unknown = bank_of(math.nan)
    assert torch.equal(unknown.at(20), unknown.coefficients[0])
    assert math.isnan(unknown.estimated_drf(-2.0))


@settings(max_examples=30, deadline=None)
@given(drf=st.floats(4, 100))
def test_the_dose_is_estimated_by_the_noise_that_scans_of_known_doses_had(drf: float) -> None:
    bank = bank_of(4, 20, 100)
    assert bank.estimated_drf(bank.noise_at(drf)) == pytest.approx(drf, rel=1e-4)
    assert bank.estimated_drf(5.0) == pytest.approx(100)  # noisier than anything known
    assert math.isnan(bank.estimated_drf(math.nan))


def test_relative_noise_needs_no_scale_and_rises_with_the_noise() -> None:
    found = [float(restore.relative_noise(bank).mean()) for bank in (members(1), 3 * members(1))]
    assert found[0] == pytest.approx(found[1], abs=0.02)  # 0.3 SUV is where it looks; the body lies above it
    given = [batch(1, noise=noise) for noise in (0.1, 0.2, 0.4)]
    levels = [restore.relative_noise(filter_bank.members(b.source, b.spacing_mm, MARGIN)).mean() for b in given]
    assert levels == sorted(levels)
    air = filter_bank.members(torch.zeros(1, 1, 24, 24, 24), torch.tensor([SPACING_MM]), MARGIN)
    assert restore.relative_noise(air).isnan().all()


def test_a_scan_of_unknown_dose_is_restored_by_an_estimate_of_it() -> None:
    recipe = build(bank_samples=16)
    noises = {4.0: 0.1, 20.0: 0.25, 100.0: 0.6}
    for step in range(8):
        drf = tuple(noises)[step % 3]
        recipe.step(batch(step, drf=drf, noise=noises[drf]), step)
    blind = recipe.synthesizer().for_scan(Scan(SPACING_MM, math.nan, 0.0))
    for drf, noise in noises.items():
        found = float(blind.context(torch.zeros(0), batch(31, noise=noise).source)["drf"])
        assert found == pytest.approx(drf, rel=0.5)
    assert blind.remark({"drf": torch.tensor(19.6)}).endswith("restored as one of DRF 19.6")
    assert blind.remark({"drf": torch.tensor(math.nan)}) == ""
    told = recipe.synthesizer().for_scan(Scan(SPACING_MM, 7.0, 0.0))
    context = told.context(torch.zeros(0), batch(31).source)
    assert float(context["drf"]) == 7.0
    assert told.remark(context) == ""


def test_weights_of_the_loss_look_at_the_source_alone() -> None:
    image, g = torch.rand(2, 1, 8, 8, 8), torch.rand(2, 1, 8, 8, 8) + 0.1
    noise = torch.tensor([0.1, 0.4])
    config = Config(loss="squared", quantification=0.0)
    higher, lower = (
        restore.difference(image, image + change, g, noise, torch.ones_like(g), config)["difference"]
        for change in (0.5, -0.5)
    )
    torch.testing.assert_close(higher, lower)
    torch.testing.assert_close(
        4 * restore.difference(image, image + 0.25, g, noise, torch.ones_like(g), config)["difference"], higher
    )


def test_an_error_inside_a_lesion_counts_more() -> None:
    recipe = build(lesion_weight=80.0)
    masks = torch.zeros(3, 1, 4, 4, 4)
    masks[0, :, :, 0, 0] = 1  # 4 voxels, which count as 8
    masks[1, :, :, :, 0] = 1  # 16 voxels
    weight = recipe._weight(masks)
    assert weight[0].unique().tolist() == [1.0, 11.0]
    assert weight[1].unique().tolist() == [1.0, 6.0]
    assert weight[2].unique().tolist() == [1.0]
    ones = torch.ones_like(masks)
    found = restore.difference(ones, 3 * ones, ones, torch.ones(3), weight, Config(loss="squared"))
    assert float(found["difference"]) == pytest.approx(4 * (64 * 3 + 40 + 80) / (64 * 3))


def test_quantification_terms_by_hand() -> None:
    image, target = torch.ones(1, 1, 9, 9, 9), torch.full((1, 1, 9, 9, 9), 3.0)
    found = restore.difference(
        image,
        target,
        torch.ones_like(image),
        torch.ones(1),
        torch.ones_like(image),
        Config(loss="l1", quantification=0.5),
    )
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {"difference": 2.0, "mean_5": 1.0, "peak_5": 1.0, "mean_9": 1.0, "peak_9": 1.0}
    )


def test_it_learns_what_the_bank_cannot() -> None:
    recipe = build(bank_samples=4, samples=120, lr=5e-3, channels=(8, 8))
    given = batch(0)
    found = [recipe.step(given, step) for step in range(recipe.num_steps)]
    losses = [float(metrics["difference"]) for metrics in found[2:]]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("middle", [2, 6])  # of the bank's phase, of the network's
def test_a_resumed_run_is_bit_equal(middle: int) -> None:
    whole, first, second = build(), build(), build()
    for step in range(8):
        whole.step(batch(step), step)
    for step in range(middle):
        first.step(batch(step), step)
    second.load(first.state())
    for step in range(middle, 8):
        second.step(batch(step), step)
    assert whole.phase_starts == {"bank": 0, "network": 4}
    assert all(torch.equal(value, second.weights()[name]) for name, value in whole.weights().items())


def test_doses_that_are_not_known_stand_last() -> None:
    recipe = build()
    for step, drf in enumerate((20.0, math.nan, 4.0)):
        recipe.step(batch(step, drf=drf), step)
    state = recipe.state()["bank"]
    assert state["drf"].tolist()[:2] == [4.0, 20.0]
    assert math.isnan(state["drf"].tolist()[2])
    again = build()
    again.load(recipe.state())
    assert all(
        torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))
        for a, b in zip(*(r.weights().values() for r in (recipe, again)), strict=True)
    )


def test_windows_equal_the_whole() -> None:
    recipe = build()
    for parameter in recipe.engine.module.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(2))
    recipe.step(batch(0), 0)
    synthesizer = recipe.synthesizer().for_scan(Scan(SPACING_MM, 20.0, 0.05))
    halo = synthesizer.tiling.halo
    assert all(h % MULTIPLE == (m % MULTIPLE) for h, m in zip(halo, MARGIN, strict=True))
    context = synthesizer.context(torch.zeros(0), torch.zeros(0))
    low = anatomy(4, (16 + 2 * halo[0], 16 + 2 * halo[1], 8 + 2 * halo[2]))[:1]
    low = low * (1 + 0.3 * torch.randn(low.shape, generator=torch.Generator().manual_seed(5)))
    whole = synthesizer(low, context)
    assert whole.shape == (1, 1, 16, 16, 8)
    for z in (0, 8):
        for y in (0, 12):
            window = low[:, :, z : z + 8 + 2 * halo[0], y : y + 4 + 2 * halo[1]]
            torch.testing.assert_close(
                synthesizer(window, context), whole[:, :, z : z + 8, y : y + 4], rtol=1e-4, atol=1e-4
            )


def test_a_picture_while_the_bank_is_fitted_asks_no_other_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 draws pictures alone: a collective call there would wait for ever."""
    recipe = build()
    recipe.step(batch(0), 0)
    monkeypatch.setattr(restore.Sums, "state", lambda sums: pytest.fail("a collective call"))
    recipe.synthesizer()


def test_sums_of_two_ranks_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    one, both = build(), [build(), build()]
    for step in range(2):
        one.step(batch(step), step)
        both[step].step(batch(step), step)
    parts = [{key: restore._flat(value) for key, value in recipe.sums.doses.items()} for recipe in both]
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", lambda found, mine: found.__setitem__(slice(None), parts))
    gathered = both[0].sums.state()
    assert gathered["drf"].tolist() == one.sums.own()["drf"].tolist()
    torch.testing.assert_close(gathered["sums"], one.sums.own()["sums"])
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    both[1].sums.load(gathered)
    assert both[1].sums.doses == {}


def with_ct(given: Batch) -> Batch:
    """The same batch with a CT in HU beside the source, water where the target is hot."""
    hot = torch.nn.functional.pad(given.target, (4,) * 6, mode="replicate") > 2
    return replace(given, source=torch.cat([given.source, torch.where(hot, 40.0, -60.0)], dim=1))


def test_a_ct_is_two_inputs_that_vanish_with_the_noise() -> None:
    recipe = build(beside="ct")
    assert sum(p.numel() for p in ResidualUNet(Config(beside="ct").inputs, Config().channels, "none").parameters()) == (
        269_568 + 2 * 8 * 32 * 27
    )
    assert recipe.batch_spec(0).beside == ("ct",) == recipe.synthesizer().context_batch.beside
    assert build().batch_spec(0).beside == ()
    hu = torch.tensor([-2000.0, -1000.0, -160.0, 40.0, 240.0, 3000.0]).expand(1, 1, 12, 12, 6)
    found = restore.ct_inputs(hu, torch.tensor([0.5]), (4, 4, 0))
    assert found[0, 0, 0, 0].tolist() == pytest.approx([-0.5, -0.5, -0.08, 0.02, 0.12, 0.5])
    assert found[0, 1, 0, 0].tolist() == pytest.approx([-0.5, -0.5, -0.5, 0.0, 0.5, 0.5])
    assert not restore.ct_inputs(hu, torch.tensor([0.0]), (4, 4, 0)).any()


def test_training_reaches_the_weights_of_a_ct_that_varies() -> None:
    recipe = build(beside="ct")
    first = next(recipe.engine.module.parameters())
    before = first.detach().clone()
    for step in range(8):
        recipe.step(with_ct(batch(step)), step)
    moved = (first.detach() - before)[:, 8 * restore.INPUTS :].abs().amax(dim=(0, 2, 3, 4))
    assert moved.shape == (16,)
    assert bool((moved > 0).all())


def test_windows_with_a_ct_equal_the_whole_and_weights_come_back() -> None:
    recipe = build(beside="ct")
    for step in range(2):
        recipe.step(with_ct(batch(step)), step)
    for parameter in recipe.engine.module.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(2))
    made = restore.weights_to_synthesizer(recipe.config, recipe.weights()).for_scan(Scan(SPACING_MM, 20.0, 0.05))
    halo = made.tiling.halo
    edges = (8 + 2 * halo[0], 16 + 2 * halo[1], 8 + 2 * halo[2])
    low = torch.cat([anatomy(4, edges)[:1], 100 * anatomy(6, edges)[:1] - 200], dim=1)
    context = made.context(torch.zeros(0), torch.zeros(0))
    whole = made(low, context)
    window = low[:, :, :, 8 : 16 + 2 * halo[1]]
    torch.testing.assert_close(made(window, context), whole[:, :, :, 8:], rtol=1e-4, atol=1e-4)
    other = torch.cat([low[:, :1], 0 * low[:, 1:]], dim=1)
    assert not torch.allclose(made(other, context), whole, rtol=1e-3)


def test_only_suv_is_taken() -> None:
    restore.check(Config(), FEED, {})
    with pytest.raises(InputError, match="CFG_SCALE"):
        restore.check(Config(), replace(FEED, suv_scale=5.0), {})


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"patch": (16, 16, 18)}, "CFG_PATCH_SIZE"),
        ({"patch": (4, 16, 16)}, "CFG_PATCH_SIZE"),
        ({"margin": (0, 4, 4)}, "CFG_RANGE"),
        ({"channels": (0, 4)}, "CFG_RANGE"),
        ({"uptake_share": 0.6, "lesion_share": 0.6}, "CFG_RANGE"),
        ({"bank_samples": 0}, "CFG_RANGE"),
        ({"loss": "cubic"}, "CFG_CHOICE"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(InputError, match=code):
        Config(**{**SMALL, **changes})


def test_weights_of_another_configuration_are_refused() -> None:
    weights = build().weights()
    with pytest.raises(InputError, match="CKPT_CONFIG"):
        restore.weights_to_synthesizer(Config(**{**SMALL, "channels": (5, 6)}), weights)


@pytest.mark.parametrize("shape", [(1, 57, MEMBERS), (1, 56, MEMBERS + 1), (56, MEMBERS)])
def test_a_bank_of_other_classes_is_refused(shape: tuple[int, ...]) -> None:
    weights = build().weights()
    assert weights["bank.coefficients"].shape == (1, 56, MEMBERS)
    with pytest.raises(InputError, match="CKPT_CONFIG weights of restore"):
        restore.weights_to_synthesizer(Config(**SMALL), weights | {"bank.coefficients": torch.zeros(shape)})


def test_a_second_low_dose_serves_as_the_target() -> None:
    """Noise that is independent of the source's adds to the error and not to the answer (Lehtinen et al. 2018)."""
    answers = []
    for noise in (0.0, 0.3):
        recipe = build(bank_samples=80)
        for step in range(40):
            given = batch(step)
            random = torch.Generator().manual_seed(1000 + step)
            other = given.target * (1 + noise * torch.randn(given.target.shape, generator=random))
            recipe.step(replace(given, target=other), step)
        bank = members(99)
        found = recipe.synthesizer().bank.at(20.0)
        answers.append(filter_bank.combined(bank, found, COARSE.of(bank)))
    truth = batch(99).target
    clean, noisy = ((answer - truth).square().mean().sqrt() for answer in answers)
    assert noisy < 1.1 * clean
    assert clean < 0.7 * (members(99)[:, :1] - truth).square().mean().sqrt()
