"""Which voxels a run sees: the images to start from and to give, the intensity scale, the order of samples."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from storage.ranges import Range, check_ranges
from storage.reader import Beyond


@dataclass(frozen=True, kw_only=True)
class FeedConfig:
    """Which voxels a run sees.

    Args:
        source: names of the images that a network starts from, low-dose PETs or ``ct``; every pair of a case and one
            of them is one sample of an epoch.
        target: name of the image that it is to give: the full-dose PET.
        suv_scale: SUV that becomes 1 for the networks; fixed, invertible, the same for source and target.  1 keeps
            losses in SUV; the larger it is, the more SGSGAN's critic, blind to scale, outweighs the content loss.
            CT to PET needs 1: these systems clip and scale CT and PET themselves.
        seed: of the sample order.
        cases_per_step: groups of patches that all ranks together see in one step; a multiple of the number of ranks.
        beyond: what a source PET holds beyond its faces, in training and at synthesis: 0, as air is, or its mirror
            image; ``mirror_any`` mirrors a CT as well, which suits crops that cut through the body.
        read_ahead: steps read in advance; changes speed and memory, never the samples.
        augment: what is done to every training patch, source, target and masks alike: nothing, flips along x (left and
            right; the liver is then on either side), flips along z, y and x, or these and quarter turns in the plane
            (y, x), which need a patch that is square there and square voxels, and are left out elsewhere.  Voxels
            change places, never values.
        tilt_deg: largest angle about each axis by which every training patch is tilted, source, target and masks alike.
            Values are interpolated, which takes noise away: for CT to PET, not for low doses.  An overview stays as
            it is.
        scaling: largest part by which the patient in a training patch is made larger or smaller, in the same way.
    """

    source: tuple[str, ...] = ("low_drf20",)
    target: str = "full"
    suv_scale: Annotated[float, Range(above=0)] = 1.0
    seed: Annotated[int, Range(0)] = 0
    cases_per_step: Annotated[int, Range(1)] = 2
    beyond: Beyond = "air"
    read_ahead: Annotated[int, Range(0)] = 2
    augment: Literal["none", "left_right", "flips", "flips_and_turns"] = "none"
    tilt_deg: Annotated[float, Range(0, 45)] = 0.0
    scaling: Annotated[float, Range(0, 0.5)] = 0.0

    def __post_init__(self) -> None:
        check_ranges(self, "feed")


def as_stored(config: FeedConfig) -> FeedConfig:
    """Return the feed of the same patches as they lie in the cohort: what measures and validation see."""
    return replace(config, augment="none", tilt_deg=0.0, scaling=0.0)


FORMER = {"low": "source", "full": "target"}  # fields of ``FeedConfig`` in what was written before, and their names now


def present_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored fields of a ``FeedConfig`` under the names that they have now."""
    return {FORMER.get(name, name): value for name, value in fields.items()}
