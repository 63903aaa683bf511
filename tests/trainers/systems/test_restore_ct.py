"""restore_ct: where it starts, what the table is, the curve of SUV, sums over ranks, resumes, and windows."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from storage.errors import InputError
from storage.source import HU
from trainers import hu_table
from trainers.engine import plain_engine
from trainers.hu_table import MEANS, RANGES, RunningSums, SuvCurve
from trainers.recipe import Batch, Scan
from trainers.residual_unet import MULTIPLE, RADIUS
from trainers.systems import restore_ct
from trainers.systems.restore_ct import FEED, Config, RestoreCT, Table

SPACING_MM = (5.0, 5.0, 5.0)
MARGIN = (3, 3, 3)
SMALL: dict[str, Any] = {
    "channels": (4, 6),
    "patch": (16, 16, 16),
    "margin": MARGIN,
    "patches_per_case": 1,
    "table_samples": 8,
    "samples": 8,
}

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


def build(**changes: Any) -> RestoreCT:
    torch.manual_seed(0)
    return restore_ct.build(Config(**{**SMALL, **changes}), make_engine=plain_engine, patches_per_step=2)


def batch(seed: int, peak: float = 8.0) -> Batch:
    """Fat with muscle boxes in it, in HU with noise; muscle takes up more, and most in the second patient."""
    random = np.random.default_rng(seed)
    ct, suv = torch.full((2, 1, 22, 22, 22), -100.0), torch.full((2, 1, 22, 22, 22), 0.3)
    for number in range(2):
        z, y, x = (int(random.integers(2, 10)) for _ in range(3))
        ct[number, 0, z : z + 9, y : y + 9, x : x + 9] = 50.0
        suv[number, 0, z : z + 9, y : y + 9, x : x + 9] = 1.0 + number
    ct = ct + 10 * torch.from_numpy(random.standard_normal(ct.shape)).float()
    return Batch(
        source=ct,
        target=suv[:, :, 3:-3, 3:-3, 3:-3].contiguous(),
        masks=torch.zeros(2, 0, 16, 16, 16),
        overview=torch.zeros(2, 1, 0, 0, 0),
        drf=torch.full((2,), torch.nan),
        cases=2,
        places=("", ""),
        spacing_mm=torch.tensor([SPACING_MM] * 2),
        shared=torch.zeros(2),
        peak=torch.tensor([peak, 4.0]),
        units=HU,
    )


def read(given: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    return restore_ct.surroundings(given.source, given.spacing_mm, MARGIN)


def after_the_table(**changes: Any) -> RestoreCT:
    recipe = build(**changes)
    for step in range(4):
        recipe.step(batch(step), step)
    return recipe


@pytest.mark.parametrize("curve", ["linear", "sqrt"])
def test_training_starts_at_the_table(curve: SuvCurve) -> None:
    recipe = after_the_table(suv_curve=curve)
    ct, mean = read(batch(9))
    table = recipe.synthesizer().table
    image = restore_ct.synthesized(recipe.engine, ct, mean, table, curve)
    torch.testing.assert_close(hu_table.off_curve(image, curve), table.at(ct, mean))
    assert len(table.at(ct, mean).unique()) > 10


def test_the_table_by_surroundings_is_nearer_than_that_of_hu_alone_and_both_than_nothing() -> None:
    """In the sum of squares over peak^2 that they were fitted on; the ridge may cost a little."""
    errors = {}
    for start in ("surroundings", "hu", "zero"):
        table = after_the_table(start=start).synthesizer().table
        found = [
            (table.at(*read(given)) - given.target).square().mean((1, 2, 3, 4)) / given.peak.square()
            for given in map(batch, range(4))
        ]
        errors[start] = float(torch.cat(found).mean())
    assert errors["surroundings"] < errors["hu"] < errors["zero"]
    assert not after_the_table(start="zero").synthesizer().table.suv.any()


def nothing() -> RunningSums:
    return RunningSums(hu_table.no_voxels((RANGES, MEANS)))


def test_every_patient_counts_by_its_peak() -> None:
    """One range of HU, two patients of SUV 1 and 2: the mean is that of the weights 1/peak^2, 1/64 and 1/16."""
    sums, shape = nothing(), (1, 4, 4, 4)
    cells = torch.full(shape, int(hu_table.ranges(torch.tensor(0.0))) * MEANS)
    for suv, peak in ((1.0, 8.0), (2.0, 4.0)):
        sums.add(cells, torch.full(shape, suv), 1 / peak**2)
    table = restore_ct.fitted("hu", sums.own())
    assert float(table.suv[hu_table.ranges(torch.tensor(0.0)), 0]) == pytest.approx(
        (1 / 64 + 2 / 16) / (1 / 64 + 1 / 16)
    )
    assert float(table.weight) == pytest.approx((1 / 64 + 1 / 16) / 2)


def test_a_table_of_nothing_is_nothing() -> None:
    for start in ("surroundings", "hu", "zero"):
        table = restore_ct.fitted(start, nothing().own())
        assert table.suv.shape == (RANGES, MEANS)
        assert not table.suv.any()
        assert float(table.weight) == 1


def test_the_mean_of_the_surroundings_is_not_carried_away_by_metal() -> None:
    ct = torch.zeros(1, 1, 11, 11, 11)
    ct[:, :, 5, 5, 5] = 30_000.0
    centre, mean = restore_ct.surroundings(ct, torch.tensor([SPACING_MM]), MARGIN)
    assert float(centre.max()) == 30_000
    assert float(mean.max()) < 300
    u = restore_ct.inputs(centre, mean, torch.zeros_like(mean))
    assert u.shape == (1, restore_ct.INPUTS, 5, 5, 5)
    assert float(u.abs().max()) <= 1


def test_the_curve_has_an_inverse_and_gives_no_negative_activity() -> None:
    suv = torch.tensor([0.0, 0.25, 4.0])
    curves: tuple[SuvCurve, ...] = ("linear", "sqrt")
    for curve in curves:
        torch.testing.assert_close(hu_table.off_curve(hu_table.on_curve(suv, curve), curve), suv)
    assert hu_table.on_curve(suv, "sqrt").tolist() == [0, 0.5, 2]
    assert float(hu_table.off_curve(torch.tensor(-3.0), "sqrt")) == 0
    assert float(hu_table.on_curve(torch.tensor(-3.0), "sqrt")) == 0


@pytest.mark.parametrize("curve", ["linear", "sqrt"])
def test_the_loss_is_the_squared_error_over_the_peak_and_of_roots_over_its_root(curve: str) -> None:
    recipe = after_the_table(lr=1e-12, suv_curve=curve)
    given = batch(7)
    table = recipe.synthesizer().table
    x0, target = table.at(*read(given)), given.target
    weight = 1 / given.peak.square() / table.weight
    if curve == "sqrt":
        x0, target, weight = x0.sqrt(), target.sqrt(), weight.sqrt()
    expected = (weight * (x0 - target).square().mean((1, 2, 3, 4))).mean()
    torch.testing.assert_close(recipe.step(given, 4)["loss"], expected)


def test_it_learns_what_the_table_cannot() -> None:
    """Here uptake lies beside the muscle, which neither its HU nor its surroundings tell."""
    recipe = build(table_samples=4, samples=80, lr=3e-3, channels=(16, 16))
    given = batch(0)
    given = replace(given, target=given.target.roll(2, dims=2))
    losses = [float(next(iter(recipe.step(given, step).values()))) for step in range(recipe.num_steps)][2:]
    assert losses[-1] < 0.5 * losses[0]


def test_the_finished_table_is_among_the_weights_that_validation_may_choose() -> None:
    per_step = Config().patches_per_case * FEED.cases_per_step
    with torch.device("meta"):
        recipe = restore_ct.build(Config(), make_engine=plain_engine, patches_per_step=per_step)
    assert recipe.phase_starts["network"] % restore_ct.LOOP.validate_every == 0
    assert recipe.num_steps % restore_ct.LOOP.validate_every == 0


@pytest.mark.parametrize("middle", [2, 6])  # of the table's phase, of the network's
def test_a_resumed_run_is_bit_equal(middle: int) -> None:
    whole, first, second = build(), build(), build()
    for step in range(8):
        whole.step(batch(step), step)
    for step in range(middle):
        first.step(batch(step), step)
    second.load(first.state())
    for step in range(middle, 8):
        second.step(batch(step), step)
    assert whole.phase_starts == {"table": 0, "network": 4}
    assert all(torch.equal(value, second.weights()[name]) for name, value in whole.weights().items())


def test_a_picture_while_the_table_is_fitted_asks_no_other_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 draws pictures alone: a collective call there would wait for ever."""
    recipe = build()
    recipe.step(batch(0), 0)
    monkeypatch.setattr(RunningSums, "state", lambda sums: pytest.fail("a collective call"))
    recipe.synthesizer()


def test_sums_of_two_ranks_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    one, both = build(), [build(), build()]
    for step in range(2):
        one.step(batch(step), step)
        both[step].step(batch(step), step)
    parts = [recipe.sums.own() for recipe in both]
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", lambda found, mine: found.__setitem__(slice(None), parts))
    gathered = both[0].sums.state()
    for name, value in one.sums.own().items():
        torch.testing.assert_close(gathered[name], value)
    for rank, voxels in ((0, 2 * 2 * 16**3), (1, 0)):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        both[1].sums.load(gathered)
        assert both[1].sums.voxels == voxels
        assert both[1].sums.cells.weight.any() == (rank == 0)


def test_windows_equal_the_whole() -> None:
    recipe = after_the_table()
    for parameter in recipe.engine.module.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(2))
    synthesizer = recipe.synthesizer().for_scan(Scan(SPACING_MM, torch.nan, 0.0))
    halo = synthesizer.tiling.halo
    assert halo == tuple(RADIUS + margin for margin in MARGIN)
    ct = torch.randn(1, 1, 16 + 2 * halo[0], 8 + 2 * halo[1], 4 + 2 * halo[2]) * 200
    whole = synthesizer(ct, {})
    assert whole.shape == (1, 1, 16, 8, 4)
    assert synthesizer.remark({}) == ""
    for z in (0, 2 * MULTIPLE):
        window = ct[:, :, z : z + 8 + 2 * halo[0]]
        torch.testing.assert_close(synthesizer(window, {}), whole[:, :, z : z + 8], rtol=1e-4, atol=1e-4)


def test_a_scan_of_another_voxel_size_has_surroundings_of_the_same_size_in_mm() -> None:
    recipe = after_the_table()
    fine, coarse = (recipe.synthesizer().for_scan(Scan((mm,) * 3, torch.nan, 0.0)) for mm in (4.0, 8.0))
    assert fine.spacing_mm != coarse.spacing_mm
    ct = torch.randn(1, 1, *(4 + 2 * h for h in fine.tiling.halo)) * 100
    assert not torch.equal(fine(ct, {}), coarse(ct, {}))


def test_only_one_ct_in_hu_is_taken() -> None:
    restore_ct.check(Config(), FEED, {})
    with pytest.raises(InputError, match="CFG_SCALE"):
        restore_ct.check(Config(), replace(FEED, suv_scale=5.0), {})
    with pytest.raises(InputError, match="CFG_INPUTS"):
        restore_ct.check(Config(), replace(FEED, source=("ct", "other")), {})


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"patch": (16, 16, 18)}, "CFG_PATCH_SIZE"),
        ({"patch": (4, 16, 16)}, "CFG_PATCH_SIZE"),
        ({"margin": (0, 4, 4)}, "CFG_RANGE"),
        ({"channels": (0, 4)}, "CFG_RANGE"),
        ({"table_samples": 0}, "CFG_RANGE"),
        ({"start": "organ"}, "CFG_CHOICE"),
        ({"suv_curve": "log"}, "CFG_CHOICE"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(InputError, match=code):
        Config(**{**SMALL, **changes})


def test_weights_of_another_configuration_are_refused() -> None:
    weights = build().weights()
    restore_ct.weights_to_synthesizer(Config(**SMALL), weights)
    with pytest.raises(InputError, match="CKPT_CONFIG"):
        restore_ct.weights_to_synthesizer(Config(**{**SMALL, "channels": (5, 6)}), weights)


def test_the_table_of_exported_weights_is_the_fitted_one() -> None:
    recipe = after_the_table()
    alone = restore_ct.weights_to_synthesizer(recipe.config, recipe.weights())
    assert isinstance(alone.table, Table)
    assert torch.equal(alone.table.suv, recipe.synthesizer().table.suv)
