"""Slices' scores against scikit-image and MONAI, and the checkerboard measure against planted patterns."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from storage.errors import InputError
from storage.source import BQML, LABEL, SUV, ArraySource, Grid
from trainers.metrics import slices as s
from trainers.metrics.definitions import Region
from trainers.metrics.presets import PRESETS
from trainers.metrics.streaming import stream_scores

SHAPE = (18, 64, 80)


def generator(seed: int = 3) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def pair(shape: tuple[int, ...], noise: float = 0.05) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = generator()
    x = np.clip(gaussian_filter(rng.normal(0, 1, shape), (0,) * (len(shape) - 2) + (2, 2)) * 1.5 + 0.4, 0, 1)
    return x, np.clip(x + rng.normal(0, noise, shape), 0, 1)


def skimage_ssim(x: NDArray[Any], y: NDArray[Any]) -> float:
    return structural_similarity(
        x, y, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, win_size=11
    )


def case(shape: tuple[int, int, int] = SHAPE, ceiling: float = 20.0) -> tuple[ArraySource, ArraySource, ArraySource]:
    x, y = (ceiling * v for v in pair(shape))
    x[-2:], y[-2:] = 0, 0  # air
    body = np.zeros(shape, np.float32)
    body[1:, 2 : shape[1] - 3, 1 : shape[2] - 2] = 1
    grid = Grid(shape, np.diag([4.0, 4.0, 4.0, 1.0]))
    full, image = (ArraySource(v.astype(np.float32), grid, SUV, {"rule": "made"}) for v in (x, y))
    return full, image, ArraySource(body, grid, LABEL)


def scored(full: ArraySource, image: ArraySource, body: ArraySource, **settings: Any) -> dict[tuple[str, str], float]:
    got = s.slice_scores("c", full, {"y": image}, body=body, **settings)
    found = {(score.definition.metric, score.region): score.value for score in got}
    assert len(found) == len(got)
    return found


# ---- structural similarity ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(31, 40), (64, 64)])
def test_ssim_equals_scikit_image_slice_by_slice(shape: tuple[int, int]) -> None:
    x, y = pair((3, *shape))
    assert s.ssim_2d(x[0], y[0]) == pytest.approx(skimage_ssim(x[0], y[0]), abs=1e-12)
    assert s.ssim_2d(x, y) == pytest.approx(np.mean([skimage_ssim(a, b) for a, b in zip(x, y, strict=True)]), abs=1e-12)


def test_ssim_and_ms_ssim_equal_monai() -> None:
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics.regression")
    x, y = pair((2, 181, 190))  # odd: the last row is dropped by both
    tensors = [torch.from_numpy(v)[:, None] for v in (y, x)]
    theirs = metrics.MultiScaleSSIMMetric(spatial_dims=2, data_range=1.0)._compute_metric(*tensors)
    assert [s.ms_ssim(a, b) for a, b in zip(x, y, strict=True)] == pytest.approx(theirs[:, 0].tolist(), abs=1e-5)
    assert s.ms_ssim(x, y) == pytest.approx(float(theirs.mean()), abs=1e-5)  # MONAI computes in float32
    theirs = metrics.SSIMMetric(spatial_dims=2, data_range=1.0)._compute_metric(*tensors)
    assert s.ssim_2d(x, y) == pytest.approx(float(theirs.mean()), abs=1e-5)


def test_fewer_scales_have_renormalised_weights_and_equal_monais() -> None:
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics.regression")
    x, y = pair((1, 64, 50))
    assert s.scales_that_fit((64, 50)) == 3
    weights = np.array(s.SCALE_WEIGHTS[:3]) / sum(s.SCALE_WEIGHTS[:3])
    tensors = [torch.from_numpy(v)[:, None] for v in (y, x)]
    metric = metrics.MultiScaleSSIMMetric(spatial_dims=2, data_range=1.0, weights=weights.tolist())
    assert s.ms_ssim(x, y) == pytest.approx(float(metric._compute_metric(*tensors)), abs=1e-5)


def test_scales_that_fit_and_say_so() -> None:
    fits = {10: 0, 11: 1, 21: 1, 22: 2, 43: 2, 44: 3, 87: 3, 128: 4, 175: 4, 176: 5, 440: 5}
    assert {side: s.scales_that_fit((side, 440)) for side in fits} == fits
    assert s.ms_ssim_definition(4) != s.ms_ssim_definition(5)
    assert "4 of 5 scales" in s.ms_ssim_definition(4).text()
    x, y = pair((1, 12, 12))
    assert s.ms_ssim(x, y) == pytest.approx(s.ssim_2d(x, y))
    x, y = pair((10, 12))
    assert math.isnan(s.ssim_2d(x, y))
    assert math.isnan(s.ms_ssim(x, y))


def test_an_image_is_itself_and_an_inverted_one_has_no_similarity() -> None:
    x, _ = pair((44, 44))
    assert s.ms_ssim(x, x) == pytest.approx(1.0)
    assert s.ssim_2d(x, x) == pytest.approx(1.0)
    assert s.ms_ssim(x, 1 - x) == 0  # negative at a scale: never a NaN


# ---- on sources -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slab_voxels", [1, 5 * 64 * 80, 10**7])
def test_scores_are_means_over_slices(slab_voxels: int) -> None:
    full, image, body = case()
    got = scored(full, image, body, slab_voxels=slab_voxels)
    x, y = (v.voxels.astype(np.float64) / 20 for v in (full, image))
    inside = body.voxels > 0
    lit = range(SHAPE[0] - 2)
    want = {
        ("PSNR", "whole volume"): np.mean([peak_signal_noise_ratio(x[z], y[z], data_range=1.0) for z in lit]),
        ("SSIM", "whole volume"): np.mean([skimage_ssim(a, b) for a, b in zip(x, y, strict=True)]),
        ("MS-SSIM", "whole volume"): s.ms_ssim(x, y),
        ("MAE", "whole volume"): np.abs(x - y).mean(),
        ("PSNR", "body"): np.mean([-10 * np.log10(((x - y)[z][inside[z]] ** 2).mean()) for z in lit if z > 0]),
        ("MAE", "body"): np.mean([np.abs(x - y)[z][inside[z]].mean() for z in range(1, SHAPE[0])]),
        **{(f"CB {p}", "body"): s.checkerboard_db((y - x)[1:, 2:-3, 1:-2], p) for p in s.PERIODS},
    }
    assert np.isfinite(list(got.values())).all()
    assert got == pytest.approx(want, rel=1e-9)


def test_intensities_are_clipped_to_20_suv_and_divided_by_it() -> None:
    full, image, body = case()
    hot = [replace(v, voxels=np.where(v.voxels > 10, 3 * v.voxels + 20, v.voxels - 2)) for v in (full, image)]
    cut = [replace(v, voxels=np.clip(v.voxels, 0, 20)) for v in hot]
    assert scored(*hot, body) == pytest.approx(scored(*cut, body), rel=1e-12)  # type: ignore[call-arg]


def test_a_slice_without_uptake_counts_for_every_image_or_for_none() -> None:
    full, image, body = case()
    voxels = image.voxels.copy()
    voxels[-2:] = 0.5
    first, second = scored(full, image, body), scored(full, replace(image, voxels=voxels), body)
    assert second["PSNR", "whole volume"] == pytest.approx(first["PSNR", "whole volume"])
    assert second["MAE", "whole volume"] > first["MAE", "whole volume"]
    assert second["SSIM", "whole volume"] < first["SSIM", "whole volume"]


def test_a_copy_and_an_empty_scan() -> None:
    full, _, body = case()
    copy = scored(full, full, body)
    assert copy["PSNR", "whole volume"] == copy["PSNR", "body"] == math.inf
    assert copy["SSIM", "whole volume"] == pytest.approx(1.0)
    assert copy["MAE", "body"] == 0
    assert math.isnan(copy["CB 2", "body"])
    nothing = replace(full, voxels=np.zeros(SHAPE, np.float32))
    assert math.isnan(scored(nothing, full, body)["PSNR", "whole volume"])
    bodiless = scored(full, full, replace(body, voxels=np.zeros(SHAPE, np.float32)))
    assert all(math.isnan(value) for (_, region), value in bodiless.items() if region == "body")


def test_too_few_slices_have_no_checkerboard_score() -> None:
    full, image, body = case((16, 64, 80))  # the body has 15
    assert math.isnan(scored(full, image, body)["CB 2", "body"])


def test_every_score_says_what_it_is() -> None:
    full, image, body = case()
    got = s.slice_scores("c", full, {"y": image}, body=body)
    assert {score.definition for score in got} >= {*PRESETS["cascade"], *s.CHECKERBOARDS.values()}
    for score in got:
        assert score.kind == score.definition.region
        assert score.definition.preset == "cascade"
        assert score.definition.dimensionality != "3D"
        assert (score.range_value == 1.0) == (score.definition.metric in ("PSNR", "SSIM", "MS-SSIM"))
        assert score.definition.higher_is_better == (score.definition.metric in ("PSNR", "SSIM", "MS-SSIM"))
        assert score.image_rule == "made"
        assert "SUV from 0 to 20" in score.definition.text()
    assert "6 dB" in s.CHECKERBOARDS[2].text()


def test_volumes_scores_leave_slices_alone() -> None:
    full, image, body = case()
    regions = [Region("whole volume", "whole"), Region("body", "body")]
    assert stream_scores("c", full, {"y": image}, PRESETS["cascade"], regions, body=body) == []


def test_another_unit_is_refused() -> None:
    full, image, body = case()
    for sources in ((replace(full, units=BQML), image), (full, replace(image, units=BQML))):
        with pytest.raises(InputError, match="IMG_UNITS"):
            scored(*sources, body)


# ---- checkerboards --------------------------------------------------------------------------------------------------

STACK = (16, 128, 128)


def smooth(seed: int = 5) -> Any:
    field = gaussian_filter(generator(seed).normal(0, 1, STACK), (0, 4, 4), mode="wrap")
    field /= field.std()
    return field + generator(seed + 1).normal(0, 0.01, STACK)


def board(period: Any) -> Any:
    on = np.indices(STACK[1:]) // (period // 2)
    return (-1.0) ** (on[0] + on[1])


def test_white_noise_has_no_checkerboard() -> None:
    for seed in range(3):
        noise = generator(seed).normal(0, 1, STACK)
        assert abs(s.checkerboard_db(noise, 2)) < 1.5  # 0 +- 0.8 over seeds
        assert abs(s.checkerboard_db(noise, 4)) < 1.0
        assert abs(s.checkerboard_db(noise, 8)) < 0.8
    assert all(s.checkerboard_db(smooth(), period) < 1.0 for period in s.PERIODS)


@pytest.mark.parametrize(("amplitude", "decibels"), [(0.001, 14), (0.003, 23), (0.01, 34)])
def test_a_planted_pattern_is_found_at_its_period_only(amplitude: float, decibels: int) -> None:
    planted = smooth() + amplitude * board(2)
    assert s.checkerboard_db(planted, 2) == pytest.approx(decibels, abs=1.5)
    assert s.checkerboard_db(planted, 2) > s.ALARM_DB
    assert all(s.checkerboard_db(planted, period) < 1.0 for period in (4, 8))


@pytest.mark.parametrize("period", [4, 8])
def test_longer_periods_are_told_apart(period: int) -> None:
    planted = smooth() + {4: 0.01, 8: 0.1}[period] * board(period)  # the field itself has power near period 8
    found = {p: s.checkerboard_db(planted, p) for p in s.PERIODS}
    assert found[period] > s.ALARM_DB
    assert all(found[p] < 1.0 for p in s.PERIODS if p < period)


def test_checkerboards_do_not_depend_on_scale_or_offset_and_not_on_an_odd_last_row() -> None:
    planted = smooth() + 0.003 * board(2)
    for period in s.PERIODS:
        assert s.checkerboard_db(7 * planted, period) == pytest.approx(s.checkerboard_db(planted, period), abs=1e-9)
        assert s.checkerboard_db(planted + 3, period) == pytest.approx(s.checkerboard_db(planted, period), abs=1e-6)
    grown = np.pad(planted, ((0, 0), (0, 7), (0, 1)), mode="reflect")
    assert s.checkerboard_db(grown, 2) == s.checkerboard_db(planted, 2)


def test_a_crop_too_small_for_a_peak_and_its_ring_has_no_score() -> None:
    noise = generator().normal(0, 1, (16, 55, 64))
    assert math.isnan(s.checkerboard_db(noise, 8))
    assert math.isfinite(s.checkerboard_db(noise, 4))
