"""What a score is: its region, its value, and the definition by which it was computed.

The fields of a ``ScoreDefinition`` are identifiers (``trainers.metrics.identifiers``).  Two scores may be compared only
where their definitions are equal.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trainers.metrics.identifiers import NO_CLIP, NO_SCALE, ONE_PER_CASE, VOLUMES, sentence
from trainers.metrics.stored_sentences import identifier_of


@dataclass(frozen=True)
class ScoreDefinition:
    """How a score was computed: two scores may be compared only where their definitions are equal.

    Args:
        metric: name of the score, for instance ``PSNR``.
        region: what the definition applies to: ``whole``, ``body`` or ``ROI`` (organs and lesions).
        mask: identifier of which voxels enter, and how.
        units: of the value.
        data_range: identifier of the peak of PSNR and SSIM; empty where none enters.
        normalisation: identifier of what an error is divided by; empty where nothing is.
        window: identifier of the SSIM window; empty for other metrics.
        clip: identifier of the intensity clipping applied before scoring.
        scale: identifier of what intensities were scaled by before scoring.
        dimensionality: ``3D``, or the identifier of how slices were combined.
        aggregation: identifier of what one row is.
        segmenter: key of the fixed network that found organs, where one did.
        preset: whose convention this is, a key of ``presets.PRESETS``, or ``clinical``.
    """

    metric: str
    region: Literal["whole", "body", "ROI"]
    mask: str
    units: str
    data_range: str = ""
    normalisation: str = ""
    window: str = ""
    clip: str = NO_CLIP
    scale: str = NO_SCALE
    dimensionality: str = VOLUMES
    aggregation: str = ONE_PER_CASE
    segmenter: str = ""
    preset: str = "native"

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value is the better one."""
        return self.metric in ("PSNR", "SSIM", "MS-SSIM", "Unet-score", "SCORE")

    def sentences(self) -> dict[str, str]:
        """Return field -> what it says, identifiers replaced by their sentences."""
        return {name: sentence(value) if name in _IDENTIFIERS else value for name, value in vars(self).items()}

    def text(self) -> str:
        """Return the definition as one readable line."""
        told = self.sentences()
        facts = {
            "mask": told["mask"],
            "data range": told["data_range"],
            "normalised by": told["normalisation"],
            "window": told["window"],
            "clip": told["clip"],
            "scale": told["scale"],
            "segmenter": told["segmenter"],
            "unit": self.units,
        }
        line = "; ".join(f"{name}: {fact}" for name, fact in facts.items() if fact)
        return f"{self.metric}, {told['dimensionality']}, preset {self.preset}; {line}; {told['aggregation']}"

    def to_json(self) -> dict[str, str]:
        """Return the fields, identifiers as they are."""
        return asdict(self)


_IDENTIFIERS = (
    "mask", "data_range", "normalisation", "window", "clip", "scale", "dimensionality", "aggregation", "segmenter"
)  # fmt: skip


def definition_from_json(content: Mapping[str, Any]) -> ScoreDefinition:
    """Read what ``ScoreDefinition.to_json`` gave, or what earlier versions stored (sentences, ``judge``).

    Raises:
        TypeError: for missing or unknown fields, and for values that are no texts.
    """
    if not all(isinstance(value, str) for value in content.values()):
        raise TypeError("a definition's fields are texts")
    renamed = {"segmenter" if name == "judge" else name: value for name, value in content.items()}
    fields: dict[str, Any] = {
        name: identifier_of(value) if name in _IDENTIFIERS else value for name, value in renamed.items()
    }
    return ScoreDefinition(**fields)


@dataclass(frozen=True)
class Region:
    """A set of voxels with a name: the whole volume, the body, or a value of the label image."""

    name: str
    kind: Literal["whole", "body", "organ", "lesion"]
    label: int = 0

    def is_scored_by(self, definition: ScoreDefinition) -> bool:
        """Whether ``definition`` is meant for this kind of region."""
        return definition.region == (self.kind if self.kind in ("whole", "body") else "ROI")


@dataclass(frozen=True)
class Score:
    """One number and everything needed to read it.

    Args:
        case: the case's alias.
        image: which image was scored, for instance ``low-dose input``.
        region: name of the region; ``kind`` is what sort of region it is.
        definition: how the value was computed.
        value: in ``definition.units``; infinite where PSNR meets no error, NaN where it is not defined.
        range_value: the data range used, in the image's units unless the definition scales; None where it has none.
        image_rule: how the image itself was made or chosen, where it has parameters.
    """

    case: str
    image: str
    region: str
    kind: str
    definition: ScoreDefinition
    value: float
    range_value: float | None = None
    image_rule: str = ""
