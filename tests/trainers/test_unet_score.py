"""The Unet-score of masks that any segmenter gives: Dice of organs, of their union, and their mean."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from storage.errors import InputError
from storage.source import BQML, LABEL, SUV, ArraySource, Grid, ImageSource
from trainers.metrics.definitions import ScoreDefinition
from trainers.metrics.unet_score import MEAN, UNION, unet_score_definition, unet_scores


def source(voxels: Any, units: str = SUV) -> ArraySource:
    return ArraySource(np.asarray(voxels, np.float32), Grid(np.shape(voxels), np.diag([-4.0, -4.0, 3.0, 1.0])), units)


DEFINITION = unet_score_definition("a threshold")


@dataclass(frozen=True)
class Above:
    """Finds the first organ above 0.5 SUV, the second above 10.5, and so on; five slices at a time."""

    rois: tuple[str, ...]
    cases: tuple[str, ...] = ()
    definition: ScoreDefinition = DEFINITION

    def label_values(self, label_names: Mapping[int, str], case: str) -> list[list[int]]:
        return [[value for value, name in label_names.items() if name.startswith(roi)] for roi in self.rois]

    def masks(self, image: ImageSource) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        for z0 in range(0, image.grid.shape[0], 5):
            slab = image.read(z0, min(z0 + 5, image.grid.shape[0]))
            if not np.isfinite(slab).all():
                raise InputError("IMG_NAN", where="image", found="not finite", remedy="repair")
            yield z0, np.stack([slab > 0.5 + 10 * k for k in range(len(self.rois))])


def test_a_case_the_segmenter_was_trained_on_is_refused() -> None:
    with pytest.raises(InputError, match="CKPT_LEAK"):
        unet_scores(Above(("liver",), ("c",)), "c", {}, source(np.ones((4, 4, 4)), LABEL), {1: "liver"})


def asked(rois: tuple[str, ...], image: Any, labels: Any, names: dict[int, str]) -> dict[str, float]:
    scores = unet_scores(Above(rois), "c", {"y": source(image)}, source(labels, LABEL), names)
    assert {(s.case, s.image, s.kind, s.definition.metric) for s in scores} == {("c", "y", "organ", "Unet-score")}
    return {score.region: score.value for score in scores}


def test_dice_of_organs_union_and_mean() -> None:
    labels, image = np.zeros((2, 20, 20, 20))
    labels[0, 0, :8], labels[5, 5, :4] = 1, 2  # liver in two parts, 12 voxels
    labels[9, 9, :6] = 3  # brain
    image[0, 0, 2:8], image[9, 9, :4] = 1, 20  # liver's threshold 0.5 finds the brain too
    names = {1: "liver", 2: "liver left", 3: "brain", 4: "spleen"}
    got = asked(("liver", "brain"), image, labels, names)
    assert got == pytest.approx(
        {"liver": 2 * 6 / (12 + 10), "brain": 2 * 4 / (6 + 4), UNION: 2 * 10 / (18 + 10), MEAN: (6 / 11 + 0.8) / 2}
    )
    absent = asked(("liver", "spleen"), image, labels, names)
    assert math.isnan(absent["spleen"])
    assert absent[MEAN] == pytest.approx(absent["liver"])
    nothing = asked(("spleen",), image, labels, names)
    assert all(math.isnan(value) for value in nothing.values())


def test_the_union_may_exceed_every_organ_as_the_papers_full_dose_does() -> None:
    labels, image = np.zeros((2, 16, 16, 16))
    labels[0, 0, :6], labels[0, 0, 6:12] = 1, 2
    image[0, 0, :4], image[0, 0, 4:12] = 1, 20  # organ 2 takes a third of organ 1
    got = asked(("liver", "brain"), image, labels, {1: "liver", 2: "brain"})
    assert got[UNION] == 1.0 > max(got["liver"], got["brain"])


def test_images_that_do_not_fit_are_refused() -> None:
    labels = source(np.ones((16, 16, 16)), LABEL)
    ours = Above(("liver",))
    for image, code in (
        (source(np.ones((16, 16, 17))), "IMG_GRID"),
        (source(np.ones((16, 16, 16)), BQML), "IMG_UNITS"),
        (source(np.full((16, 16, 16), np.nan)), "IMG_NAN"),
    ):
        with pytest.raises(InputError, match=code):
            unet_scores(ours, "c", {"y": image}, labels, {1: "liver"})
