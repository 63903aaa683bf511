"""What a network must beat: a Gaussian filter of the low dose, and the mean SUV of every HU of a CT."""

import json
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from volumes import GRID, ellipse, noisy, source

from petscale.evaluation.baselines import BY_HU, INPUT, GaussianSource, best_gaussian, gaussian_from_json
from petscale.evaluation.fitting import baseline_from_json
from petscale.evaluation.from_ct import mean_suv_by_hu
from storage.errors import InputError
from storage.source import HU, LABEL, SUV
from trainers.hu_table import HU_EDGES


def truth() -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    inside, x = ellipse(), np.indices(GRID.shape)[2]
    return inside, np.where(inside, 1.0 + (x > 14), 0.0)


def test_gaussian_is_scipys_whatever_the_slabs() -> None:
    volume = noisy(truth()[1], 0.6, 1)
    smooth = GaussianSource(volume, 7.0)
    sigma = [7.0 / math.sqrt(8 * math.log(2)) / step for step in GRID.spacing_mm]
    whole = smooth.read(0, 40)
    np.testing.assert_allclose(whole, gaussian_filter(volume.voxels.astype(np.float64), sigma), atol=1e-5)
    np.testing.assert_array_equal(np.concatenate([smooth.read(z, z + 1) for z in range(40)]), whole)
    assert whole.dtype == np.float32


def test_best_gaussian_maximises_psnr_inside_the_body_and_says_so() -> None:
    inside, activity = truth()
    low, full, body = noisy(activity, 0.6, 2), source(activity), source(inside, LABEL)
    choice = best_gaussian([(low, full, body)] * 2, (2.0, 6.0, 20.0))

    def error(width: float) -> float:
        return float(np.square(GaussianSource(low, width).read(0, 40) - activity)[inside].mean())

    assert choice.fwhm_mm == min((2.0, 6.0, 20.0), key=error)
    assert choice.num_cases == 2
    untouched, smooth = choice.beside(low).values()
    assert untouched is low
    told = str(smooth.provenance["rule"])
    assert f"{choice.fwhm_mm:g} mm" in told
    assert "2 training case(s)" in told
    with pytest.raises(InputError, match="SET_EMPTY"):
        best_gaussian([])


def test_a_gaussian_is_kept_as_json() -> None:
    inside, activity = truth()
    choice = best_gaussian([(noisy(activity, 0.6, 2), source(activity), source(inside, LABEL))], (2.0, 6.0, 10.0))
    again = gaussian_from_json(json.loads(json.dumps(choice.to_json(), sort_keys=True)))  # as files are written
    assert again == choice
    assert again.rule == choice.rule
    assert list(choice.beside(source(activity))) == [INPUT, f"Gaussian {choice.fwhm_mm:g} mm"]


def test_the_table_holds_the_mean_suv_of_every_range_of_hu_over_all_training_cases() -> None:
    rng = np.random.Generator(np.random.Philox(5))
    pairs = [(rng.uniform(-1100, 250, GRID.shape), rng.uniform(0, 9, GRID.shape)) for _ in range(2)]
    table = mean_suv_by_hu((source(ct, HU), source(pet)) for ct, pet in pairs)
    ct, pet = (np.stack(arrays).astype(np.float32) for arrays in zip(*pairs, strict=True))
    for low, high, suv in zip(HU_EDGES, HU_EDGES[1:], table.suv, strict=False):
        inside = (ct >= low) & (ct < high)
        if low == HU_EDGES[0]:
            inside |= ct < low
        if inside.any():
            assert suv == pytest.approx(pet[inside].mean(dtype=np.float64), rel=1e-6)
    last = np.searchsorted(HU_EDGES, 250.0) - 1
    assert set(table.suv[last + 1 :]) == {table.suv[last]}, "ranges nobody has take the nearest one"
    assert "2 training case(s)" in table.rule
    assert baseline_from_json(json.loads(json.dumps(table.to_json()))) == table
    with pytest.raises(InputError, match="SET_EMPTY"):
        mean_suv_by_hu([])


def test_a_ct_looked_up_is_a_pet_of_its_grid_and_best_in_the_mean_on_its_own_case() -> None:
    inside, activity = truth()
    ct = source(np.where(inside, 40.0 + 60 * (activity > 1), -1000.0), HU)
    pet = noisy(activity, 0.3, 1)
    (name, image), *rest = mean_suv_by_hu([(ct, pet)]).beside(ct).items()
    assert (name, rest) == (BY_HU, [])
    assert (image.units, image.grid) == (SUV, GRID)
    found = image.read(0, 40)
    np.testing.assert_array_equal(np.concatenate([image.read(z, z + 1) for z in range(40)]), found)
    for part in (activity == 0, activity == 1, activity == 2):
        assert np.unique(found[part]).size == 1
        assert found[part][0] == pytest.approx(pet.voxels[part].mean(), rel=1e-5)
    assert "ranges of HU" in str(image.provenance["rule"])
