"""The bank: what a Gaussian must do, sums that can be added, and solutions that no other combination beats."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from trainers import filter_bank
from trainers.filter_bank import CLASSES, FWHMS_MM, MEMBERS, NormalEquations

SPACING_MM = torch.tensor([[6.25, 5.0, 5.0]])


def volume(seed: int, edge: int = 16) -> Tensor:
    """A margin of the bank's reach around ``edge`` voxels, from 0 to 4 SUV with a warm ball."""
    random = torch.Generator().manual_seed(seed)
    margin = filter_bank.reach(SPACING_MM[0].tolist())
    image = torch.rand(1, 1, *(edge + 2 * m for m in margin), generator=random)
    image[:, :, 10:16, 10:18, 10:18] += 3
    return image


def bank_of(seed: int) -> Tensor:
    return filter_bank.members(volume(seed), SPACING_MM, filter_bank.reach(SPACING_MM[0].tolist()))


def case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Members, classes and target of 4096 voxels."""
    bank = bank_of(seed)
    noise = torch.randn(bank[0, 0].numel(), generator=torch.Generator().manual_seed(seed))
    return bank[0].flatten(1), filter_bank.FINE.of(bank).flatten(), bank[0, 2].flatten() + 0.3 * noise


def test_members_are_scipys_gaussians() -> None:
    image = volume(0)
    margin = filter_bank.reach(SPACING_MM[0].tolist())
    found = filter_bank.members(image, SPACING_MM, margin)[0]
    inside = tuple(slice(m, -m) for m in margin)
    assert found.shape == (MEMBERS, 16, 16, 16)
    assert torch.equal(found[0], image[0, 0][inside])
    for width, smooth in zip(FWHMS_MM, found[1:], strict=True):
        sigma = [width / np.sqrt(8 * np.log(2)) / step for step in SPACING_MM[0].tolist()]
        radius = [int(np.ceil(3 * s)) for s in sigma]
        expected = gaussian_filter(image[0, 0].numpy().astype(np.float64), sigma, radius=radius)
        np.testing.assert_allclose(smooth.numpy(), expected[inside], rtol=2e-5)


def test_a_constant_stays_and_a_short_margin_ends_a_gaussian() -> None:
    found = filter_bank.members(torch.full((1, 1, 9, 9, 9), 2.5), SPACING_MM, (2, 2, 2))
    torch.testing.assert_close(found, torch.full((1, MEMBERS, 5, 5, 5), 2.5))


def test_every_image_of_a_batch_has_its_own_voxel_size() -> None:
    image, margin = volume(1), (4, 4, 4)
    both = filter_bank.members(image.repeat(2, 1, 1, 1, 1), torch.tensor([[6.25, 5, 5], [2.0, 2, 2]]), margin)
    for one, spacing in zip(both, ([6.25, 5, 5], [2.0, 2, 2]), strict=True):
        torch.testing.assert_close(one[None], filter_bank.members(image, torch.tensor([spacing]), margin))
    assert not torch.allclose(both[0], both[1])


@settings(max_examples=20, deadline=None)
@given(axes=st.sets(st.sampled_from([2, 3, 4])))
def test_a_mirrored_image_has_mirrored_members_and_classes(axes: set[int]) -> None:
    image, margin, dims = volume(2), (7, 8, 8), sorted(axes)
    there = filter_bank.members(image.flip(dims), SPACING_MM, margin)
    back = filter_bank.members(image, SPACING_MM, margin).flip(dims)
    torch.testing.assert_close(there, back)
    assert (filter_bank.FINE.of(there) == filter_bank.FINE.of(back)).float().mean() > 0.999


def test_classes_by_level_and_sign_of_contrast() -> None:
    bank = torch.ones(1, MEMBERS, 1, 1, 4)
    at = {width: 1 + FWHMS_MM.index(width) for width in (7.0, 10.0, 20.0)}
    bank[0, at[10.0], 0, 0] = torch.tensor([0.1, 1.0, 1.0, 20.0])
    bank[0, at[7.0], 0, 0] = torch.tensor([1.0, 0.5, 1.5, 1.0])  # none, cold, hot, none, against 1 around it
    assert filter_bank.COARSE.of(bank).flatten().tolist() == [3, 3 * 7 + 0, 3 * 7 + 6, 7 * 7 + 3]
    assert filter_bank.FINE.of(bank).flatten().tolist() == [4, 3 * 10 + 1, 3 * 10 + 7, 7 * 10 + 4]
    hotter = torch.ones(1, MEMBERS, 1, 1, 3)
    hotter[0, at[7.0], 0, 0] = torch.tensor([1.5, 2.0, 3.0])  # one class of before is three now
    assert filter_bank.COARSE.of(hotter).flatten().tolist() == [3 * 7 + 6] * 3
    assert filter_bank.FINE.of(hotter).flatten().tolist() == [3 * 10 + 7, 3 * 10 + 8, 3 * 10 + 9]


def test_the_number_of_classes_tells_how_stored_coefficients_are_used() -> None:
    for way in (filter_bank.COARSE, filter_bank.FINE):
        assert filter_bank.classing_of(way.count) is way
        assert filter_bank.no_voxels(way).classing is way
    assert (filter_bank.COARSE.count, filter_bank.FINE.count) == (56, 80)
    with pytest.raises(KeyError):
        filter_bank.classing_of(57)


def spots(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Low dose, full dose and where its small hot spots are: eight of them on a slope with faint, wide elevations."""
    random = np.random.default_rng(seed)
    truth = torch.ones(1, 1, 40, 40, 40) * torch.linspace(0.8, 1.6, 40)[None, None, :, None, None]
    marked = torch.zeros(40, 40, 40, dtype=torch.bool)
    for _ in range(30):
        z, y, x = random.integers(2, 30, 3)
        truth[0, 0, z : z + 6, y : y + 6, x : x + 6] *= 1.15
    for _ in range(8):
        z, y, x = random.integers(8, 30, 3)
        truth[0, 0, z : z + 2, y : y + 2, x : x + 2] = 8.0
        marked[z : z + 2, y : y + 2, x : x + 2] = True
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed))
    return truth * (1 + 0.3 * noise), truth, marked


def test_the_error_of_a_filter_is_that_of_its_voxels() -> None:
    bank, classed, target = case(4)
    equations = filter_bank.normal_equations(bank, classed, target, 0.5)
    rng = np.random.Generator(np.random.Philox(2))
    coefficients = rng.random((CLASSES, MEMBERS))
    image = np.einsum("mn,nm->n", bank.double().numpy(), coefficients[classed.numpy()])
    truth = target.double().numpy()
    expected = 0.5 * (np.square(image - truth).sum() - np.square(truth).sum())
    assert equations.error(coefficients) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seeds", [(0, 1, 2, 3), (4, 5, 6)])
def test_the_filter_is_of_the_classes_that_serve_a_case_left_out_best(seeds: tuple[int, ...]) -> None:
    """By voxels, for every way of classing and every ridge: the same is chosen, and fitted on all cases."""
    margin = (5, 5, 5)
    voxels = []
    for seed in seeds:
        low, full, _ = spots(seed)
        bank = filter_bank.members(low, SPACING_MM, margin)
        voxels.append((bank, full[0, 0, 5:-5, 5:-5, 5:-5].flatten()))
    cases = {
        way: [
            filter_bank.normal_equations(bank[0].flatten(1), way.of(bank).flatten(), target, 1.0, way)
            for bank, target in voxels
        ]
        for way in (filter_bank.COARSE, filter_bank.FINE)
    }
    errors: dict[tuple[filter_bank.Classing, float], float] = {}
    for way, equations in cases.items():
        for ridge in filter_bank.RIDGES:
            for out, (bank, target) in enumerate(voxels):
                rest = sum((one for n, one in enumerate(equations) if n != out), filter_bank.no_voxels(way))
                coefficients = torch.from_numpy(filter_bank.adaptive_filter(rest, ridge)).float()
                image = filter_bank.combined(bank, coefficients, way.of(bank)).flatten()
                error = float((image - target).double().square().sum())
                errors[way, ridge] = errors.get((way, ridge), 0.0) + error
    way, ridge = min(errors, key=lambda choice: errors[choice])
    expected = filter_bank.adaptive_filter(sum(cases[way], filter_bank.no_voxels(way)), ridge)
    np.testing.assert_allclose(filter_bank.chosen_filter(cases), expected, atol=1e-9)


def test_of_one_case_there_is_nothing_to_choose_by() -> None:
    (low, full, _), margin = spots(0), (5, 5, 5)
    bank = filter_bank.members(low, SPACING_MM, margin)
    target = full[0, 0, 5:-5, 5:-5, 5:-5].flatten()
    cases = {
        way: [filter_bank.normal_equations(bank[0].flatten(1), way.of(bank).flatten(), target, 1.0, way)]
        for way in (filter_bank.COARSE, filter_bank.FINE)
    }
    (one,) = cases[filter_bank.COARSE]
    np.testing.assert_array_equal(filter_bank.chosen_filter(cases), filter_bank.adaptive_filter(one))


def test_small_hot_spots_are_not_averaged_with_faint_edges() -> None:
    """Fitted on other volumes, the finer classes keep more of the spots, and are no worse elsewhere."""
    margin = (5, 5, 5)
    errors: dict[filter_bank.Classing, tuple[float, float]] = {}
    for way in (filter_bank.COARSE, filter_bank.FINE):
        equations = filter_bank.no_voxels(way)
        for seed in range(4):
            low, full, _ = spots(seed)
            bank = filter_bank.members(low, SPACING_MM, margin)
            target = full[0, 0, 5:-5, 5:-5, 5:-5].flatten()
            equations += filter_bank.normal_equations(bank[0].flatten(1), way.of(bank).flatten(), target, 1.0, way)
        low, full, marked = spots(9)
        bank = filter_bank.members(low, SPACING_MM, margin)
        coefficients = torch.from_numpy(filter_bank.adaptive_filter(equations)).float()
        error = filter_bank.combined(bank, coefficients, way.of(bank))[0, 0] - full[0, 0, 5:-5, 5:-5, 5:-5]
        there = marked[5:-5, 5:-5, 5:-5]
        errors[way] = float(error[there].square().mean()), float(error[~there].square().mean())
    before, now = errors[filter_bank.COARSE], errors[filter_bank.FINE]
    assert now[0] < 0.9 * before[0]
    assert now[1] < 1.02 * before[1]


def test_sums_of_cases_are_the_sums_of_all_their_voxels() -> None:
    parts = [case(seed) for seed in (3, 4)]
    bank, classed, target = (torch.cat(pieces, dim=-1) for pieces in zip(*parts, strict=True))
    added = sum((filter_bank.normal_equations(*part, weight=0.5) for part in parts), filter_bank.no_voxels())
    whole = filter_bank.normal_equations(bank, classed, target, weight=0.5)
    assert isinstance(added, NormalEquations)
    np.testing.assert_allclose(added.products, whole.products, rtol=1e-12)
    np.testing.assert_allclose(added.targets, whole.targets, rtol=1e-12)


def test_a_voxel_of_weight_3_counts_as_three() -> None:
    bank, classed, target = case(3)
    weight = torch.ones(len(target))
    weight[:100] = 3
    found = filter_bank.normal_equations(bank, classed, target, weight)
    again = filter_bank.normal_equations(bank[:, :100], classed[:100], target[:100], 2.0)
    whole = filter_bank.normal_equations(bank, classed, target, 1.0) + again
    np.testing.assert_allclose(found.products, whole.products, rtol=1e-12)
    np.testing.assert_allclose(found.targets, whole.targets, rtol=1e-12)


def squared_error(coefficients: NDArray[np.float64], bank: Tensor, classed: Tensor, target: Tensor) -> float:
    used = torch.from_numpy(coefficients)[classed]
    return float(((used * bank.T.double()).sum(1) - target.double()).square().sum())


def test_the_linear_filter_is_the_least_squares_solution() -> None:
    bank, classed, target = case(5)
    linear = filter_bank.linear_filter(filter_bank.normal_equations(bank, classed, target, 1.0))
    expected = np.linalg.lstsq(bank.T.double().numpy(), target.double().numpy(), rcond=None)[0]
    assert linear.shape == (CLASSES, MEMBERS)
    assert (linear == linear[0]).all()
    np.testing.assert_allclose(linear[0], expected, rtol=1e-3)  # neighbouring members are nearly alike
    np.testing.assert_allclose(linear[0] @ bank.double().numpy(), expected @ bank.double().numpy(), rtol=1e-4)


def test_the_adaptive_filter_fits_better_and_nears_the_linear_one_as_its_ridge_grows() -> None:
    voxels = case(6)
    equations = filter_bank.normal_equations(*voxels, weight=1.0)
    linear = filter_bank.linear_filter(equations)
    errors = [squared_error(filter_bank.adaptive_filter(equations, r), *voxels) for r in (1e-6, 1e-3, 1e-1, 1e6)]
    assert errors == sorted(errors)
    assert errors[-1] <= squared_error(linear, *voxels) * (1 + 1e-9)
    np.testing.assert_allclose(filter_bank.adaptive_filter(equations, 1e9), linear, atol=1e-6)


def test_a_class_without_a_voxel_is_the_linear_filter() -> None:
    equations = filter_bank.normal_equations(*case(7), weight=1.0)
    empty = np.trace(equations.products, axis1=1, axis2=2) == 0
    assert empty.any()
    found = filter_bank.adaptive_filter(equations)[empty]
    np.testing.assert_allclose(found, filter_bank.linear_filter(equations)[empty], atol=1e-9)


def test_combining_picks_the_low_dose() -> None:
    bank = bank_of(8)
    low = torch.zeros(CLASSES, MEMBERS)
    low[:, 0] = 1
    assert torch.equal(filter_bank.combined(bank, low, filter_bank.FINE.of(bank)), bank[:, :1])


def test_reach_is_in_millimetres() -> None:
    assert filter_bank.reach((30.0, 10.0, 5.0)) == (2, 4, 8)
    with pytest.raises(ValueError, match="unpack"):
        filter_bank.reach((1.0, 1.0))
