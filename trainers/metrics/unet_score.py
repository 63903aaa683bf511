"""Unet-score (Zhou et al. 2022, arXiv 2205.08887, Sec. IV-B): can a fixed U-Net still find the organs in a made image?

The score is the Dice of p > 0.5 against an organ's mask over the whole volume.  The same network segments every image;
its Dice on the full dose itself is what an image can reach.  How the network is trained is told in
``trainers.organ_segmenter``.

Readings where the text is silent: "All" of the tables exceeds every organ, so it is no mean.  It is given as the Dice
of the union of the organs, with the mean over the organs beside it.  An organ that a scan does not show has no Dice.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from storage.errors import InputError
from storage.source import SUV, ImageSource
from trainers.metrics.definitions import Score, ScoreDefinition
from trainers.metrics.identifiers import DICE_MASK

UNION, MEAN = "all organs", "mean over organs"
UNET, GUIDE = "Unet-score", "Unet-score-SG"  # by a U-Net of full doses; by the network that guided the synthesis


class OrganFinder(Protocol):
    """A fixed network that finds organs in an image."""

    @property
    def rois(self) -> tuple[str, ...]:
        """Names of the organs it finds."""

    @property
    def cases(self) -> tuple[str, ...]:
        """Cases it was trained on."""

    @property
    def definition(self) -> ScoreDefinition:
        """How the Dice of one organ comes about."""

    def label_values(self, label_names: Mapping[int, str], case: str) -> list[list[int]]:
        """Return the label values that make up every organ, in the order of ``rois``; ``case`` is for errors.

        Raises:
            InputError: SET_NO_LABELS where the labels do not name an organ.
        """

    def masks(self, image: ImageSource) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Find the organs of a whole volume.

        Yields:
            z0 and (k, dz, y, x) masks of the slab ``z0 <= z < z0 + dz``, in order, every voxel once.

        Raises:
            InputError: IMG_NAN.
        """


def unet_score_definition(segmenter: str, metric: str = UNET) -> ScoreDefinition:
    """Return how the Dice of one organ comes about, by the network of key ``segmenter``; ``metric`` is whose."""
    return ScoreDefinition(metric, "ROI", DICE_MASK, "1", segmenter=segmenter, preset="sgsgan")


def unet_scores(
    segmenter: OrganFinder,
    case_name: str,
    candidates: Mapping[str, ImageSource],
    labels: ImageSource,
    label_names: Mapping[int, str],
) -> list[Score]:
    """Score every image of a test case by the Dice of the organs that a fixed network finds in it.

    Args:
        segmenter: one that was not trained on the case.
        case_name: the case's alias, copied into every score.
        candidates: name to image in SUVbw; the full dose and the low-dose input belong among them.
        labels: integers, on the candidates' grid.
        label_names: what each label is.

    Returns:
        For every image the Dice of each organ, of the union of the organs (``UNION``) and the mean over the organs
        (``MEAN``); NaN where the labels hold no voxel of it.

    Raises:
        InputError: SET_NO_LABELS where the labels do not name an organ; CKPT_LEAK where the segmenter was trained on
            the case; IMG_GRID, IMG_UNITS, IMG_NAN.
    """
    if case_name in segmenter.cases:
        raise InputError(
            "CKPT_LEAK",
            where=f"case {case_name}",
            found="the organ segmenter of the Unet-score was trained on it",
            remedy="train it on the run's training cases alone",
        )
    organs = segmenter.label_values(label_names, case_name)
    definition = segmenter.definition
    scores = []
    for name, image in candidates.items():
        _check(name, image, labels)
        counts = np.zeros((3, len(organs) + 1), dtype=np.int64)  # overlap, found, true; the union last
        for z0, found in segmenter.masks(image):
            mark = np.rint(labels.read(z0, z0 + found.shape[1]))
            true = np.stack([np.isin(mark, values) for values in organs])
            found, true = (np.concatenate([masks, masks.any(axis=0, keepdims=True)]) for masks in (found, true))
            counts += [masks.sum(axis=(1, 2, 3)) for masks in (found & true, found, true)]
        overlap, size_found, size_true = counts
        dice = np.where(size_true > 0, 2 * overlap / np.maximum(size_found + size_true, 1), np.nan).tolist()
        seen = [value for value in dice[:-1] if not math.isnan(value)]
        values = [*dice, sum(seen) / len(seen) if seen else math.nan]
        how = str(image.provenance.get("rule", ""))
        scores += [
            Score(case_name, name, region, "organ", definition, value, None, how)
            for region, value in zip((*segmenter.rois, UNION, MEAN), values, strict=True)
        ]
    return scores


def _check(name: str, image: ImageSource, labels: ImageSource) -> None:
    if not image.grid.matches(labels.grid):
        raise InputError(
            "IMG_GRID",
            where=name,
            found=f"shape {image.grid.shape} against the labels' {labels.grid.shape}, or another affine",
            remedy="score images on one grid: resample none of them silently",
        )
    if image.units != SUV:
        raise InputError("IMG_UNITS", where=name, found=f"units {image.units}", remedy="convert it to SUVbw at ingest")
