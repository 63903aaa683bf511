"""The papers' conventions against scikit-image and plain numpy, and the numbers worked by hand."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.metrics import normalized_root_mse, peak_signal_noise_ratio, structural_similarity

from storage.source import LABEL, SUV, ArraySource, Grid
from trainers.metrics import udpet
from trainers.metrics.definitions import Region, Score
from trainers.metrics.identifiers import FROM_0_TO_1, NONZERO, OWN_MAXIMA
from trainers.metrics.presets import BODY_PSNR, BODY_SSIM, PRESETS
from trainers.metrics.streaming import stream_scores

SHAPE = (23, 17, 19)


def volumes(lowest: float = 0.0) -> tuple[NDArray[Any], NDArray[Any]]:
    """A full dose of which a third is exactly ``lowest``, and a noisy image whose maximum is another."""
    rng = np.random.Generator(np.random.Philox(11))
    y = np.maximum(rng.gamma(2.0, 1.0, SHAPE) - 1.0, 0.0) + lowest
    return y.astype(np.float32), (1.3 * y + rng.normal(0, 0.4, SHAPE)).astype(np.float32)


def scores(preset: str, y: NDArray[Any], x: NDArray[Any], slab_voxels: int = 4 * 17 * 19) -> list[Score]:
    def source(voxels: NDArray[Any], units: Any = SUV) -> ArraySource:
        return ArraySource(np.asarray(voxels, np.float32), Grid(np.shape(y), np.diag([-4.0, -4.0, 3.0, 1.0])), units)

    return stream_scores(
        "c",
        source(y),
        {"x": source(x)},
        PRESETS[preset],
        [Region("whole volume", "whole")],
        body=source(np.ones_like(y), LABEL),
        slab_voxels=slab_voxels,
    )


def values(preset: str, y: NDArray[Any], x: NDArray[Any], **settings: Any) -> dict[tuple[str, str], float]:
    """(metric, data range) -> value."""
    return {(s.definition.metric, s.definition.data_range[:1]): s.value for s in scores(preset, y, x, **settings)}


@pytest.mark.parametrize("slab_voxels", [1, 4 * 17 * 19, 10**6])
@pytest.mark.parametrize("lowest", [0.0, 0.7])
def test_udpet2022_is_the_challenges_evaluator(slab_voxels: int, lowest: float) -> None:
    y, x = volumes(lowest)
    got = values("udpet2022", y, x, slab_voxels=slab_voxels)
    y, x = y.astype(np.float64), x.astype(np.float64)
    want = {
        ("PSNR", "m"): peak_signal_noise_ratio(y, x, data_range=y.max()),
        ("NRMSE", ""): 100 * normalized_root_mse(y, x, normalization="min-max"),
        **{
            ("SSIM", str(peak)): structural_similarity(
                y / y.max(), x / x.max(), win_size=7, gaussian_weights=False, data_range=float(peak)
            )
            for peak in (1, 2)
        },
    }
    assert got == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("slab_voxels", [1, 10**6])
@pytest.mark.parametrize("lowest", [0.0, -0.7])
def test_s3pet_is_the_laboratorys_script_in_3d_with_the_papers_text_beside_it(slab_voxels: int, lowest: float) -> None:
    y, x = volumes(lowest)
    got = {(s.definition.metric, s.definition.scale): s for s in scores("s3pet", y, x, slab_voxels=slab_voxels)}
    y, x = y.astype(np.float64), x.astype(np.float64)
    ys, xs = ((v - y.min()) / (y.max() - y.min()) for v in (y, x))
    want = {
        ("PSNR", FROM_0_TO_1): peak_signal_noise_ratio(ys[y != 0], xs[y != 0], data_range=1.0),
        ("SSIM", FROM_0_TO_1): structural_similarity(ys, xs, win_size=7, data_range=1.0),
        ("NMSE", "none"): ((y - x) ** 2).sum() / (y**2).sum(),
        ("PSNR", "none"): peak_signal_noise_ratio(y, x, data_range=y.max()),
        ("SSIM", "none"): structural_similarity(y, x, win_size=7, data_range=y.max()),
    }
    assert {key: score.value for key, score in got.items()} == pytest.approx(want, rel=1e-9)
    assert got["PSNR", FROM_0_TO_1].range_value == 1.0
    assert got["PSNR", "none"].range_value == pytest.approx(y.max())
    assert got["NMSE", "none"].range_value is None
    if lowest == 0:
        assert got["SSIM", "none"].value == pytest.approx(got["SSIM", FROM_0_TO_1].value, rel=1e-9)


def test_numbers_worked_by_hand() -> None:
    y, x = (np.array(v, np.float32).reshape(1, 2, 2) for v in ((1, 2, 0, 2), (1, 1, 0, 3)))
    got = values("s3pet", y, x)
    assert got["NMSE", ""] == pytest.approx(0.2222, abs=5e-5)
    assert got["PSNR", "m"] == pytest.approx(9.0309, abs=5e-5)  # every voxel: mean square 1/2
    assert got["PSNR", "1"] == pytest.approx(7.7815, abs=5e-5)  # voxels with uptake: 2/3
    assert values("s3pet", x, y)["NMSE", ""] == pytest.approx(0.1818, abs=5e-5)
    assert math.isnan(got["SSIM", "1"])  # no window of 7 voxels fits
    assert values("s3pet", y, y)["NMSE", ""] == 0
    assert values("s3pet", y, y)["PSNR", "1"] == math.inf


def test_nrmse_in_per_cent_and_psnr_are_one_number_where_the_minimum_is_0() -> None:
    y, x = volumes()
    got = values("udpet2022", y, x)
    assert got["NRMSE", ""] == pytest.approx(100 * 10 ** (-got["PSNR", "m"] / 20), rel=1e-9)


def test_tables_of_several_patients_obey_jensens_bound() -> None:
    y, x = volumes()
    pairs = [values("udpet2022", y, y + share * (x - y)) for share in (0.1, 0.5, 1.0)]
    nrmse = np.mean([pair["NRMSE", ""] for pair in pairs])
    psnr = np.mean([pair["PSNR", "m"] for pair in pairs])
    assert nrmse > 100 * 10 ** (-psnr / 20)


@pytest.mark.parametrize("preset", ["udpet2022", "s3pet"])
def test_scores_do_not_depend_on_the_unit_of_both_images(preset: str) -> None:
    y, x = volumes()
    assert values(preset, 4096 * y, 4096 * x) == pytest.approx(values(preset, y, x), rel=1e-9)


def test_an_error_of_scale_alone_escapes_udpets_ssim_and_shows_in_nrmse() -> None:
    y, x = volumes()
    plain, doubled = values("udpet2022", y, x), values("udpet2022", y, 2 * x)
    for peak in "12":
        assert doubled["SSIM", peak] == pytest.approx(plain["SSIM", peak], rel=1e-12)
    assert doubled["NRMSE", ""] > 1.5 * plain["NRMSE", ""]


def test_air_does_not_enter_s3pets_masked_psnr() -> None:
    y, x = volumes()
    worse = np.where(y == 0, x + 1, x)
    assert values("s3pet", y, worse)["PSNR", "1"] == pytest.approx(values("s3pet", y, x)["PSNR", "1"])
    assert values("s3pet", y, worse)["PSNR", "m"] < values("s3pet", y, x)["PSNR", "m"]


def test_an_empty_image_has_no_own_maximum_and_therefore_no_ssim() -> None:
    y, _ = volumes()
    got = values("udpet2022", y, np.zeros_like(y))
    assert math.isnan(got["SSIM", "1"])
    assert math.isfinite(got["PSNR", "m"])


LIVER, HEART, SPLEEN = Region("liver", "organ", 1), Region("heart", "organ", 2), Region("spleen", "organ", 3)


def organs(y: Any, x: Any, slab_voxels: int = 4 * 17 * 19) -> tuple[NDArray[Any], Any]:
    labels = np.zeros(SHAPE, np.float32)
    labels[2:9, 3:9, 4:10], labels[12:20, 6:12, 6:12] = 1, 2
    sources = [ArraySource(v.astype(np.float32), Grid(SHAPE, np.eye(4)), SUV) for v in (y, x)]
    return labels, udpet.udpet_scores(
        "c",
        sources[0],
        {"x": sources[1]},
        [LIVER, HEART, SPLEEN],
        scores("udpet2022", y, x),
        labels=ArraySource(labels, Grid(SHAPE, np.eye(4)), LABEL),
        slab_voxels=slab_voxels,
    )


@pytest.mark.parametrize("slab_voxels", [1, 10**6])
def test_udpets_organ_errors_and_score(slab_voxels: int) -> None:
    y, x = volumes(0.5)
    labels, got = organs(y, x, slab_voxels)
    value = {(s.region, s.definition.metric): s.value for s in got}
    assert set(value) == {("liver", "MAPE"), ("heart", "MAPE"), ("whole volume", "MAPE"), ("whole volume", "SCORE")}
    of: list[Callable[[NDArray[Any]], Any]] = [
        np.mean,
        np.max,
        np.sum,
        lambda v: np.sqrt(np.mean(v**2)),
        lambda v: np.percentile(v, 90),
        np.median,
    ]
    weights = np.array([4, 4, 3, 1, 1, 1]) / 14
    for region in (LIVER, HEART):
        a, b = (v[labels == region.label].astype(np.float64) for v in (y, x))
        want = 100 * sum(w * abs(f(b) - f(a)) / f(a) for w, f in zip(weights, of, strict=True))
        assert value[region.name, "MAPE"] == pytest.approx(want, rel=1e-9)
    mean = (value["liver", "MAPE"] + value["heart", "MAPE"]) / 2
    assert value["whole volume", "MAPE"] == pytest.approx(mean)
    whole = values("udpet2022", y, x)
    quality = 0.4 * whole["PSNR", "m"] + 0.2 * whole["SSIM", "2"] - 0.004 * whole["NRMSE", ""]
    assert value["whole volume", "SCORE"] == pytest.approx(0.5 * quality - 0.5 * mean)


def test_an_image_ten_per_cent_too_hot_has_an_organ_error_of_ten() -> None:
    y, _ = volumes(0.5)
    assert [s.value for s in organs(y, 1.1 * y)[1] if s.definition.metric == "MAPE"] == pytest.approx(
        [10.0] * 3, rel=1e-5
    )
    assert {s.definition.higher_is_better for s in organs(y, 1.1 * y)[1] if s.definition.metric == "SCORE"} == {True}


def test_presets_side_by_side_score_as_alone() -> None:
    y, x = volumes()

    def source(voxels: NDArray[Any], units: Any = SUV) -> ArraySource:
        return ArraySource(voxels, Grid(SHAPE, np.eye(4)), units)

    regions = [Region("whole volume", "whole"), Region("body", "body")]
    body = source((y > 0).astype(np.float32), LABEL)

    def run(rules: Any) -> list[Score]:
        return stream_scores("c", source(y), {"x": source(x)}, rules, regions, body=body, slab_voxels=999)

    together = {s.definition: s.value for s in run([rule for rules in PRESETS.values() for rule in rules])}
    alone = {s.definition: s.value for rules in PRESETS.values() for s in run(rules)}
    assert together == pytest.approx(alone, rel=1e-12)


def test_rules_tell_what_was_done() -> None:
    for name, phrases in {
        "udpet2022": ("own maximum", "uniform, 7 x 7 x 7", "sample covariance", "data range: 2", "data range: 1", "%"),
        "s3pet": (
            "whose full dose is not 0",
            "minimum and maximum to 0 and 1",
            "sum of squares",
            "data range: maximum",
        ),
    }.items():
        told = " | ".join(rule.text() for rule in PRESETS[name])
        assert all(phrase in told for phrase in phrases), told
        assert all(
            rule.region == "whole" and rule.clip == "none" and rule.dimensionality == "3D" for rule in PRESETS[name]
        )
    assert {rule.scale for rule in PRESETS["udpet2022"] if rule.metric == "SSIM"} == {OWN_MAXIMA}
    assert [rule.mask for rule in PRESETS["s3pet"]].count(NONZERO) == 1
    assert all(rule.scale == "none" for name in ("native", "sgsgan") for rule in PRESETS[name])
    assert (BODY_PSNR.metric, BODY_SSIM.metric, BODY_PSNR.region) == ("PSNR", "SSIM", "body")
