"""A calibration on disk: read back as it was, never for other weights, and what results say of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from petscale import calibrations
from petscale.calibrations import Kept
from petscale.folders import CALIBRATION
from storage.errors import InputError
from trainers.metrics.calibration import LEVELS, Band, Calibration, Coverage


def coverage(low_suv: float, at_level: float) -> Coverage:
    observed = tuple(at_level if level == 0.9 else level for level in LEVELS)
    return Coverage(low_suv, observed, at_level - 0.02, at_level + 0.02, 3)


KEPT = Kept(
    Calibration((Band(0.0, 0.1, 2.0, 2), Band(2.0, 0.4, 1.5, 2))),
    weights="0a",
    members=("1b", "2c"),
    description="mean of 2 mirror images, red_cnn full-dose estimate",
    images=("low_drf20",),
    patients=2,
    learned=(coverage(0.0, 0.9), coverage(2.0, 0.9)),
    checked=(coverage(0.0, 0.88), coverage(2.0, 0.95)),
    checked_patients=3,
)


def test_what_is_written_is_read_for_these_weights_alone(tmp_path: Path) -> None:
    path = calibrations.write(tmp_path, "mean-0a", KEPT)
    assert path.parent == tmp_path / CALIBRATION
    assert calibrations.read(tmp_path, "mean-0a", "0a") == KEPT
    assert calibrations.read(tmp_path, "mean-0a", "0b") is None
    assert calibrations.read(tmp_path, "mean-1b", "0a") is None
    assert calibrations.read_all(tmp_path, "2c") == [KEPT]
    assert calibrations.read_all(tmp_path, "0a") == []


def test_it_says_from_whom_it_was_learned_and_how_well_it_holds() -> None:
    assert KEPT.statement == (
        "calibrated on 2 validation patients: the image -+ 1.645 of it is to hold 90% of the full-dose scan's voxels, "
        "that scan's own noise included; it held 88.0% to 95.0% by SUV band on 3 test patients"
    )
    assert replace(KEPT, checked=(), checked_patients=0).statement.endswith("; not checked on test patients")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("form",), 2),
        (("levels",), [0.5]),
        (("calibration", "bands"), []),
        (("calibration", "bands", 0, "low_suv"), 1.0),
        (("calibration", "bands", 1, "low_suv"), 0.0),
        (("calibration", "bands", 0, "factor"), -1.0),
        (("calibration", "bands", 0, "noise_suv"), None),
        (("checked", 0, "observed"), [0.5]),
        (("members",), None),
        (("patients",), "many"),
    ],
)
def test_a_damaged_file_is_told(tmp_path: Path, place: tuple[Any, ...], value: object) -> None:
    path = calibrations.write(tmp_path, "mean-0a", KEPT)
    content = json.loads(path.read_bytes())
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"mean-0a\.json") as caught:
        calibrations.read(tmp_path, "mean-0a", "0a")
    assert caught.value.code == "STORE_DAMAGED"
