"""Regional uptake: spheres, peaks, separation of lesions, bias."""

import numpy as np
import pytest
from scipy.ndimage import correlate, gaussian_filter, label

from storage.errors import InputError
from storage.source import BQML, LABEL, SUV, ArraySource, Grid
from trainers.metrics import clinical as c
from trainers.metrics.definitions import Region

SHAPE, SPACING = (24, 20, 22), (3.0, 2.5, 2.0)
GRID = Grid(SHAPE, np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0]))
ORGAN, LESION = Region("liver", "organ", 1), Region("lesion 1", "lesion", 2)


@pytest.fixture
def scene() -> tuple[ArraySource, ArraySource]:
    rng = np.random.Generator(np.random.Philox(3))
    voxels = rng.gamma(2.0, 1.0, SHAPE).astype(np.float32)
    labels = np.zeros(SHAPE, np.float32)
    labels[0:6, 0:8, 5:14] = 1  # at faces
    labels[12:17, 8:13, 9:15] = 2
    return ArraySource(voxels, GRID, SUV), ArraySource(labels, GRID, LABEL)


def test_the_sphere_holds_one_millilitre() -> None:
    step = 0.5
    assert len(c._sphere((step,) * 3)) * step**3 / 1000 == pytest.approx(1.0, rel=0.01)
    assert c._sphere((50.0, 50.0, 50.0)).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("slab_voxels", [1, 7 * 20 * 22, 10**6])
def test_uptake_equals_whole_array_arithmetic(scene: tuple[ArraySource, ArraySource], slab_voxels: int) -> None:
    image, labels = scene
    x = image.voxels.astype(np.float64)
    offsets = c._sphere(SPACING)
    reach = offsets.max(axis=0)
    kernel = np.zeros(2 * reach + 1)
    kernel[tuple((offsets + reach).T)] = 1
    sphere_mean = correlate(x, kernel, mode="constant") / correlate(np.ones(SHAPE), kernel, mode="constant")
    found = c.stream_uptake(image, labels, [ORGAN, LESION], slab_voxels=slab_voxels)
    for region in (ORGAN, LESION):
        inside = labels.voxels == region.label
        assert found[region].volume_ml == pytest.approx(inside.sum() * 0.015)
        assert found[region].mean == pytest.approx(x[inside].mean())
        assert found[region].sd == pytest.approx(x[inside].std())
        assert found[region].maximum == x[inside].max()
        assert found[region].peak == pytest.approx(sphere_mean[inside].max())


def test_scores_hold_bias_against_the_full_dose(scene: tuple[ArraySource, ArraySource]) -> None:
    image, labels = scene
    half = ArraySource(image.voxels * 0.5, GRID, SUV)
    scores = c.uptake_scores("case", image, {"low": half}, [ORGAN, LESION], labels=labels)
    biases = [s for s in scores if s.definition in c.BIASES.values()]
    assert {s.image for s in biases} == {"low"}
    volume = c.BIASES["MTV"]  # a share of the image's own maximum: the scale changes nothing
    assert [s.value for s in biases if s.definition != volume] == pytest.approx([-50.0] * (len(biases) - 1))
    assert [s.value for s in biases if s.definition == volume] == [0.0]
    assert {s.definition.metric for s in biases if s.kind == "lesion"} == {f"{q} bias" for q in c.QUANTITIES}
    assert "TLG" not in {s.definition.metric for s in scores if s.kind == "organ"}
    tlg = {s.image: s.value for s in scores if s.definition == c.QUANTITIES["TLG"]}
    inside = labels.voxels == 2
    assert tlg["full dose"] == pytest.approx(image.voxels[inside].sum(dtype=np.float64) * 0.015)


@pytest.mark.parametrize("slab_voxels", [1, 10**6])
def test_mtv_holds_the_voxels_above_41_percent_of_the_lesions_own_maximum(slab_voxels: int) -> None:
    labels, voxels = np.zeros(SHAPE, np.float32), np.full(SHAPE, 9.0, np.float32)
    labels[10:13, 5:9, 5:9] = 2
    voxels[labels == 2] = 1.0
    voxels[10:12, 5, 5:7] = (10.0, 4.2)
    image, marks = ArraySource(voxels, GRID, SUV), ArraySource(labels, GRID, LABEL)
    found = c.stream_uptake(image, marks, [LESION], slab_voxels=slab_voxels)[LESION]
    assert found.mtv_ml == pytest.approx(4 * 0.015)
    assert found.tlg41 == pytest.approx((10 + 10 + 4.2 + 4.2) * 0.015)
    organ = c.stream_uptake(image, marks, [Region("liver", "organ", 2)])
    assert np.isnan([*(one.mtv_ml for one in organ.values())]).all()


def test_a_blurred_lesion_has_a_larger_mtv_and_a_cold_one_none() -> None:
    labels, voxels = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    labels[6:19, 4:16, 4:18] = 2
    marks = ArraySource(labels, GRID, LABEL)
    cold = c.stream_uptake(ArraySource(voxels, GRID, SUV), marks, [LESION])[LESION]
    assert np.isnan([cold.mtv_ml, cold.tlg41]).all()
    voxels[11:14, 9:12, 9:12] = 8.0
    sharp, blurred = ArraySource(voxels, GRID, SUV), ArraySource(gaussian_filter(voxels, 2.0), GRID, SUV)
    rows = c.uptake_scores("case", sharp, {"blurred": blurred}, [LESION], labels=marks)
    bias = {s.definition: s.value for s in rows if s.image == "blurred"}
    assert bias[c.BIASES["MTV"]] > 100
    assert bias[c.BIASES["SUVmax"]] < -50
    assert abs(bias[c.BIASES["TLG"]]) < 5


def test_bias_of_nothing_is_not_a_number() -> None:
    assert np.isnan(c.bias_percent(0.0, 1.0))


def test_units_other_than_suv_are_refused(scene: tuple[ArraySource, ArraySource]) -> None:
    image, labels = scene
    with pytest.raises(InputError, match="IMG_UNITS"):
        c.stream_uptake(ArraySource(image.voxels, GRID, BQML), labels, [ORGAN])


def test_lesions_are_separated_as_scipy_does_and_numbered_by_size() -> None:
    rng = np.random.Generator(np.random.Philox(11))
    marks = np.where(rng.random(SHAPE) < 0.06, 10.0, 1.0).astype(np.float32)
    separated = c.separate(ArraySource(marks, GRID, LABEL), 10)
    whole = separated.read(0, SHAPE[0])
    theirs, num = label(marks == 10, structure=np.ones((3, 3, 3)))
    assert set(np.unique(whole)) == {1.0, *np.arange(11.0, 11.0 + num)}
    assert len({(a, b) for a, b in zip(whole[theirs > 0], theirs[theirs > 0], strict=True)}) == num
    sizes = np.bincount(whole[theirs > 0].astype(int))[11:]
    assert (np.diff(sizes) <= 0).all()
    np.testing.assert_array_equal(np.concatenate([separated.read(z, z + 1) for z in range(SHAPE[0])]), whole)


def test_no_lesion_is_no_component(scene: tuple[ArraySource, ArraySource]) -> None:
    _, labels = scene
    np.testing.assert_array_equal(c.separate(labels, 9).read(0, 5), labels.read(0, 5))
