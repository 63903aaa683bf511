"""Boxes of CT slices on another grid: every voxel whose centre lies in one, and no other."""

from pathlib import Path

import numpy as np
import pytest

from storage import dicom_write
from storage.boxes import open_boxes
from storage.dicom import DicomSource, open_series
from storage.dicom_header import text_of
from storage.errors import InputError
from storage.source import HU, ArraySource, Grid


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> DicomSource:
    """Ten slices of 20 x 24 pixels of 2 mm, 4 mm apart."""
    folder = tmp_path_factory.mktemp("ct") / "ct"
    affine = np.array([[-2.0, 0, 0, 11], [0, -2.0, 0, 7], [0, 0, 4.0, -50], [0, 0, 0, 1]])
    voxels = np.random.default_rng(0).uniform(-1000, 1000, (10, 20, 24)).astype(np.float32)
    dicom_write.write_series(folder, ArraySource(voxels, Grid((10, 20, 24), affine), HU))
    return open_series(folder, modality="CT")


def annotate(folder: Path, ct: DicomSource, *boxes: tuple[int, int, int, int, int], text: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    for z, y0, x0, y1, x1 in boxes:
        uid = text_of(ct.slices[z].header, "SOPInstanceUID")
        corners = f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        (folder / f"{uid}.xml").write_text(text or f"<annotation><bndbox>{corners}</bndbox></annotation>")
    (folder / "1.2.3.xml").write_text("of another series")
    return folder


def test_on_the_cts_own_grid_a_box_is_its_pixels(ct: DicomSource, tmp_path: Path) -> None:
    drawn = open_boxes(annotate(tmp_path / "a", ct, (3, 5, 6, 8, 10), (4, 5, 6, 5, 6)), ct, ct.grid)
    wanted = np.zeros(ct.grid.shape, dtype=np.float32)
    wanted[3, 5:9, 6:11] = 1
    wanted[4, 5, 6] = 1
    assert np.array_equal(drawn.voxels, wanted)
    assert drawn.provenance["boxes"] == 2


@pytest.mark.parametrize("seed", range(5))
def test_on_any_grid_a_voxel_is_in_where_its_centre_is(seed: int, ct: DicomSource, tmp_path: Path) -> None:
    draw = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(np.eye(3) + draw.normal(0, 0.2, (3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * draw.uniform(2, 6, 3)
    affine[:3, 3] = ct.grid.affine[:3] @ [12, 10, 5, 1] - affine[:3, :3] @ [6, 6, 4]
    grid = Grid((9, 13, 13), affine)
    drawn = open_boxes(annotate(tmp_path / "a", ct, (5, 3, 2, 15, 20), (6, 3, 2, 15, 20)), ct, grid)
    z, y, x = np.mgrid[tuple(slice(n) for n in grid.shape)]
    place = np.stack([x, y, z, np.ones_like(x)], -1) @ (np.linalg.inv(ct.grid.affine) @ affine).T
    low, high = np.array([1.5, 2.5, 4.5]), np.array([20.5, 15.5, 6.5])
    inside = np.all((place[..., :3] > low) & (place[..., :3] < high), axis=-1)
    assert 0 < inside.sum() < inside.size
    assert np.array_equal(drawn.voxels > 0, inside)


@pytest.mark.parametrize(
    "text",
    [
        "<annotation><bndbox><xmin>1</xmin></bndbox></annotation>",
        "<annotation><bndbox><xmin>5</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></annotation>",
        "<annotation>",
        '<!DOCTYPE a [<!ENTITY b "ha">]><annotation>&b;</annotation>',
    ],
)
def test_what_is_no_box_is_refused(text: str, ct: DicomSource, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="LBL_BOXES"):
        open_boxes(annotate(tmp_path / "a", ct, (3, 1, 1, 2, 2), text=text), ct, ct.grid)


def test_boxes_of_another_ct_are_refused(ct: DicomSource, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="LBL_BOXES a: no box is about a slice"):
        open_boxes(annotate(tmp_path / "a", ct), ct, ct.grid)
