"""A run's calibration of standard deviations on disk, bound to the weights, and what results say of it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from petscale.folders import CALIBRATION
from storage import integrity
from trainers.metrics.calibration import LEVEL, LEVELS, Band, Calibration, Coverage

T = TypeVar("T", Band, Coverage)

NOT_CALIBRATED = "not calibrated: what share of voxels an interval made of it holds is not known"
FORM = 1
WIDTH = 1.645  # of the interval of ``LEVEL``, in standard deviations


@dataclass(frozen=True)
class Kept:
    """A calibration as a run keeps it.

    Args:
        calibration: what a standard deviation becomes.
        weights: digest of all weights and of the mirror images that make the images (``averages.Ensemble``).
        members: digest of every run's weights.
        description: how the images are made, a few words.
        images: the images that were started from.
        patients: learned from so many validation patients.
        learned: how often intervals hold the full dose on these.
        checked: how often on test patients; empty where the cohort has none.
        checked_patients: their number.
    """

    calibration: Calibration
    weights: str
    members: tuple[str, ...]
    description: str
    images: tuple[str, ...]
    patients: int
    learned: tuple[Coverage, ...]
    checked: tuple[Coverage, ...]
    checked_patients: int

    @property
    def statement(self) -> str:
        """What an image's metadata say: how to read it, from whom it was learned, and how well it holds."""
        said = (
            f"calibrated on {_patients(self.patients, 'validation')}: the image -+ {WIDTH:.3f} of it is to hold "
            f"{LEVEL:.0%} of the full-dose scan's voxels, that scan's own noise included"
        )
        if not self.checked:
            return f"{said}; not checked on test patients"
        low, high = (end(one.at_level for one in self.checked) for end in (min, max))
        return f"{said}; it held {low:.1%} to {high:.1%} by SUV band on {_patients(self.checked_patients, 'test')}"


def write(home: Path, name: str, kept: Kept) -> Path:
    """Write a calibration into a run's folder, in place of an earlier one of the same weights and mirror images.

    Args:
        home: folder of the run, or of the folds.
        name: of the mean's other results.
    """
    path = _path(home, name)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    integrity.write_json(path, {"form": FORM, "level": LEVEL, "levels": LEVELS, **asdict(kept)})
    return path


def read(home: Path, name: str, weights: str) -> Kept | None:
    """Read the calibration of a mean; None where there is none, or one of other weights.

    Raises:
        InputError: STORE_DAMAGED.
    """
    path = _path(home, name)
    found = _read(path) if path.is_file() else None
    return found if found and found.weights == weights else None


def read_all(home: Path, weights: str) -> list[Kept]:
    """Read every calibration of a run in which its present weights take part.

    Args:
        weights: their digest.

    Raises:
        InputError: STORE_DAMAGED.
    """
    found = [_read(path) for path in sorted((home / CALIBRATION).glob("mean-*.json"))]
    return [one for one in found if weights in one.members]


def _path(home: Path, name: str) -> Path:
    return home / CALIBRATION / f"{name}.json"


def _read(path: Path) -> Kept:
    content = integrity.read_json(path)
    try:
        if content["form"] != FORM or tuple(content["levels"]) != LEVELS:
            raise ValueError("another form")
        bands = tuple(_numbers(Band, one) for one in content["calibration"]["bands"])
        if not bands or [band.low_suv for band in bands] != sorted({0.0, *(band.low_suv for band in bands)}):
            raise ValueError("no bands from SUV 0 on")
        return Kept(
            Calibration(bands),
            str(content["weights"]),
            tuple(map(str, content["members"])),
            str(content["description"]),
            tuple(map(str, content["images"])),
            int(content["patients"]),
            tuple(_numbers(Coverage, one) for one in content["learned"]),
            tuple(_numbers(Coverage, one) for one in content["checked"]),
            int(content["checked_patients"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise integrity.not_ours(path) from None


def _numbers(kind: type[T], content: Mapping[str, Any]) -> T:
    """A dataclass of numbers that are 0 or above, and of tuples of such, one per level.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: anything else.
    """
    found: dict[str, Any] = {}
    for field in fields(kind):
        value = content[field.name]
        numbers = tuple(map(float, value)) if isinstance(value, list) else (float(value),)
        if not all(0 <= number < math.inf for number in numbers):
            raise ValueError(field.name)
        if isinstance(value, list) and len(numbers) != len(LEVELS):
            raise ValueError(field.name)
        found[field.name] = (
            numbers if isinstance(value, list) else int(value) if field.name == "patients" else numbers[0]
        )
    return kind(**found)


def _patients(number: int, what: str) -> str:
    return f"{number} {what} patient{'' if number == 1 else 's'}"
