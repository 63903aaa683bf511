"""Scores of volumes read slab by slab, against whole arrays."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from storage.errors import InputError
from storage.source import LABEL, SUV, ArraySource, Grid, ImageSource
from trainers.metrics import image as m
from trainers.metrics.definitions import Region
from trainers.metrics.identifiers import MASK_BOTH, sentence
from trainers.metrics.presets import PRESETS
from trainers.metrics.ssim import WINDOW_RADIUS, ssim
from trainers.metrics.streaming import stream_scores

GRID = Grid((23, 17, 19), np.diag([-4.0, -4.0, 3.0, 1.0]))


def volumes(shape: tuple[int, int, int] = GRID.shape) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.Generator(np.random.Philox(7))
    x = rng.gamma(2.0, 1.0, shape).astype(np.float32)
    return x, (x + rng.normal(0, 0.5, shape)).astype(np.float32)


def label_array() -> NDArray[Any]:
    labels = np.zeros(GRID.shape, np.float32)
    labels[2:9, 3:9, 4:10] = 1
    labels[15:23, 0:6, 12:19] = 3  # touches three faces
    return labels


@pytest.fixture
def case() -> tuple[ArraySource, ArraySource, ArraySource, ArraySource]:
    x, y = volumes()
    body = np.zeros(GRID.shape, np.float32)
    body[1:23, 0:15, 2:19] = 1

    def source(voxels: NDArray[Any], units: Any = SUV) -> ArraySource:
        return ArraySource(voxels, GRID, units)

    return source(x), source(y), source(body, LABEL), source(label_array(), LABEL)


REGIONS = [
    Region("whole volume", "whole"),
    Region("body", "body"),
    Region("liver", "organ", 1),
    Region("absent", "organ", 2),
    Region("lesion 1", "lesion", 3),
]


@pytest.mark.parametrize("slab_voxels", [1, 5 * 17 * 19, 10**6])
def test_streaming_equals_whole_arrays(
    case: tuple[ArraySource, ArraySource, ArraySource, ArraySource], slab_voxels: int
) -> None:
    reference, image, body, labels = case
    scores = stream_scores(
        "c", reference, {"y": image}, PRESETS["native"], REGIONS, body=body, labels=labels, slab_voxels=slab_voxels
    )
    x, y = reference.voxels, image.voxels
    peak = float(x[body.voxels > 0.5].max())
    masks = {"whole": np.ones(x.shape, bool), "body": body.voxels > 0.5}
    masks |= {"organ": labels.voxels == 1, "lesion": labels.voxels == 3}
    assert {score.region for score in scores} == {"whole volume", "body", "liver", "lesion 1"}
    assert len(scores) == 16
    for score in scores:
        mask = masks[score.kind]
        want = {
            "PSNR": m.psnr(x, y, data_range=peak, mask=mask),
            "SSIM": ssim(x, y, data_range=peak, mask=mask),
            "MAE": m.mae(x, y, mask),
            "NRMSE": m.nrmse(x, y, mask),
        }[score.definition.metric]
        assert score.value == pytest.approx(want, rel=1e-9)
        assert score.range_value == (pytest.approx(peak) if score.definition.metric in ("PSNR", "SSIM") else None)


@pytest.mark.parametrize("slab_voxels", [3 * 17 * 19, 10**6])
def test_masking_both_images_equals_the_full_grid_computation(
    case: tuple[ArraySource, ArraySource, ArraySource, ArraySource], slab_voxels: int
) -> None:
    reference, image, body, labels = case
    scores = stream_scores(
        "c", reference, {"y": image}, PRESETS["sgsgan"], REGIONS, body=body, labels=labels, slab_voxels=slab_voxels
    )
    for region in (REGIONS[2], REGIONS[4]):
        mask = labels.voxels == region.label
        x, y = reference.voxels * mask, image.voxels * mask
        got = {s.definition.metric: s for s in scores if s.region == region.name and s.definition.mask == MASK_BOTH}
        peak = float(x.max())
        assert got["PSNR"].range_value == pytest.approx(peak)
        assert got["PSNR"].value == pytest.approx(m.psnr(x, y, data_range=peak))
        assert got["MAE"].value == pytest.approx(m.mae(x, y))
        assert got["SSIM"].value == pytest.approx(ssim(x, y, data_range=peak), rel=1e-9)


@pytest.mark.parametrize("slab_voxels", [17 * 19, 10**6])
def test_bias_and_variance_are_of_the_whole_volume_and_make_up_the_squared_error(
    case: tuple[ArraySource, ArraySource, ArraySource, ArraySource], slab_voxels: int
) -> None:
    reference, image, body, labels = case
    scores = stream_scores(
        "c", reference, {"y": image}, PRESETS["sgsgan"], REGIONS, body=body, labels=labels, slab_voxels=slab_voxels
    )
    (bias,), (variance,) = ([s for s in scores if s.definition.metric == name] for name in ("bias", "variance"))
    x, y = reference.voxels, image.voxels
    assert (bias.region, bias.range_value, bias.definition.units) == ("whole volume", None, "SUVbw")
    assert (variance.region, variance.range_value, variance.definition.units) == ("whole volume", None, "SUVbw^2")
    assert bias.value == pytest.approx(m.bias(x, y), rel=1e-9)
    assert variance.value == pytest.approx(m.variance(x, y), rel=1e-9)
    assert bias.value**2 + variance.value == pytest.approx(m.mse(x, y), rel=1e-9)


def test_a_shift_is_all_bias_and_an_error_that_cancels_is_all_variance() -> None:
    grid = Grid((2, 2, 2), GRID.affine)
    x = np.arange(1, 9, dtype=np.float32).reshape(2, 2, 2)
    turns = np.array([3, -3] * 4, np.float32).reshape(2, 2, 2)
    images = {"lower by 2": x - 2, "3 up and down": x + turns, "both": x - 2 + turns}
    sources: dict[str, ImageSource] = {name: ArraySource(voxels, grid, SUV) for name, voxels in images.items()}
    reference, body = ArraySource(x, grid, SUV), ArraySource(np.ones_like(x), grid, LABEL)
    scores = stream_scores("c", reference, sources, PRESETS["sgsgan"], REGIONS[:2], body=body)
    found = {(s.image, s.definition.metric): s.value for s in scores if s.definition.metric in ("bias", "variance")}
    assert found == {
        ("lower by 2", "bias"): 2.0,
        ("lower by 2", "variance"): 0.0,
        ("3 up and down", "bias"): 0.0,
        ("3 up and down", "variance"): 9.0,
        ("both", "bias"): 2.0,
        ("both", "variance"): 9.0,
    }
    assert not any(s.definition.higher_is_better for s in scores if s.definition.metric in ("bias", "variance"))


class Counting(ArraySource):
    """Notes the thickest slab that was asked for."""

    thickest = 0

    def read(self, z0: Any, z1: Any) -> Any:
        type(self).thickest = max(self.thickest, z1 - z0)
        return super().read(z0, z1)


def test_no_more_than_a_slab_and_its_halo_is_read() -> None:
    x, y = volumes((60, 6, 6))
    grid = Grid((60, 6, 6), GRID.affine)
    Counting.thickest = 0
    sources = [Counting(v, grid, SUV) for v in (x, y, np.ones_like(x))]
    stream_scores("c", sources[0], {"y": sources[1]}, PRESETS["native"], REGIONS[:2], body=sources[2], slab_voxels=144)
    assert Counting.thickest == 4 + 2 * WINDOW_RADIUS


def test_a_rule_tells_range_mask_window_and_preset() -> None:
    for name, rules in PRESETS.items():
        for rule in rules:
            assert rule.preset == name
            assert rule.units
            assert sentence(rule.mask) in rule.text()
            assert bool(rule.data_range) == (rule.metric in ("PSNR", "SSIM"))
            assert bool(rule.window) == (rule.metric == "SSIM")
        assert len(set(rules)) == len(rules)


def test_refusals(case: tuple[ArraySource, ArraySource, ArraySource, ArraySource]) -> None:
    reference, image, body, _ = case
    moved = ArraySource(image.voxels, Grid(GRID.shape, np.diag([-4.0, -4.0, 3.3, 1.0])), SUV)
    broken = ArraySource(np.where(image.voxels > 3, np.nan, image.voxels), GRID, SUV)
    empty = ArraySource(np.zeros(GRID.shape, np.float32), GRID, LABEL)
    for candidate, mask, code in ((moved, body, "IMG_GRID"), (broken, body, "IMG_NAN"), (image, empty, "IMG_EMPTY")):
        with pytest.raises(InputError, match=code):
            stream_scores("c", reference, {"y": candidate}, PRESETS["native"], REGIONS[:2], body=mask)
