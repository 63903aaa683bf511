"""Tables from CT to PET: by HU and height, by HU and organ, sums over training cases."""

import json

import numpy as np
import pytest
from volumes import GRID, ellipse, source

from petscale.evaluation.baselines import BY_HEIGHT, BY_HU, BY_ORGAN, Anatomy
from petscale.evaluation.from_ct import HEIGHTS, HuTable, mean_suv_by_hu, organs_of, table_from_json
from storage.source import HU, LABEL, SUV, ArraySource, Grid

NAMES = {1: "body", 2: "liver", 3: "lesion"}
Z = np.indices(GRID.shape)[0]
BODY = ellipse() & (Z >= 4) & (Z < 36)
LIVER = BODY & (Z > 20) & (np.indices(GRID.shape)[2] > 14)
CT = np.where(BODY, 40.0, -1000.0)


def anatomy(labels: bool = True) -> Anatomy:
    found = BODY.astype(int) + LIVER
    return Anatomy(source(BODY, LABEL), source(found, LABEL) if labels else None, NAMES if labels else {})


def test_a_table_by_height_tells_slices_apart_and_one_by_organ_tells_organs_apart() -> None:
    suv = np.where(LIVER, 5.0, 1.0 + Z / 10) * BODY
    table = mean_suv_by_hu([(source(CT, HU), source(suv), anatomy())], organs=("liver",))
    assert isinstance(table, HuTable)
    found = table.beside(source(CT, HU), anatomy())
    assert list(found) == [BY_HU, BY_HEIGHT, BY_ORGAN]
    images = {name: image.read(0, GRID.shape[0]) for name, image in found.items()}
    errors = {name: np.square(image - suv)[BODY].mean() for name, image in images.items()}
    assert errors[BY_HEIGHT] < errors[BY_HU] > errors[BY_ORGAN]
    np.testing.assert_allclose(images[BY_ORGAN][LIVER], 5.0, rtol=1e-6)
    for name, image in found.items():
        assert (image.units, image.grid) == (SUV, GRID)
        np.testing.assert_array_equal(np.concatenate([image.read(z, z + 1) for z in range(40)]), images[name])
        assert "1 training case(s)" in str(image.provenance["rule"])
    # A part of the body's height has one value for one HU, its own mean.
    low = BODY & (Z < 6)
    assert np.unique(images[BY_HEIGHT][low]).size == 1
    assert images[BY_HEIGHT][low][0] == pytest.approx(suv[BODY & (Z < 4 + 32 / HEIGHTS)].mean(), rel=0.1)


def test_height_is_counted_from_the_feet_whatever_the_order_of_slices() -> None:
    suv = np.where(BODY, 1.0 + Z / 10, 0.0)
    table = mean_suv_by_hu([(source(CT, HU), source(suv), anatomy())])
    turned = Grid(GRID.shape, GRID.affine @ np.diag([1.0, 1.0, -1.0, 1.0]))
    upside_down = ArraySource(np.ascontiguousarray(CT[::-1], np.float32), turned, HU)
    body = ArraySource(np.ascontiguousarray(BODY[::-1], np.float32), turned, LABEL)
    straight = table.beside(source(CT, HU), anatomy())[BY_HEIGHT].read(0, 40)
    found = table.beside(upside_down, Anatomy(body))[BY_HEIGHT].read(0, 40)
    np.testing.assert_array_equal(found[::-1], straight)


def test_what_is_not_known_of_a_case_is_not_shown_and_lesions_are_no_organ() -> None:
    assert organs_of(NAMES) == ("liver",)
    pair = (source(CT, HU), source(BODY * 1.0))
    assert mean_suv_by_hu([pair]).heights == ()
    table = mean_suv_by_hu([(*pair, anatomy())], organs=("liver",))
    assert list(table.beside(pair[0])) == [BY_HU]
    assert list(table.beside(pair[0], anatomy(labels=False))) == [BY_HU, BY_HEIGHT]
    assert table_from_json(json.loads(json.dumps(table.to_json()))) == table
    assert table_from_json({"suv_by_hu": [1.0], "num_cases": 2}) == HuTable((1.0,), 2)
