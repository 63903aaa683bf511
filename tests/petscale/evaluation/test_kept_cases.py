"""Scores of single cases: read back as they were, and never where anything that they depend on has changed."""

import math
from pathlib import Path

import numpy as np
import pytest

from petscale.evaluation import kept_cases
from petscale.evaluation.kept_cases import CaseScores, keep, kept
from petscale.folders import CASES
from trainers.metrics.definitions import Score
from trainers.metrics.presets import BODY_PSNR
from trainers.metrics.spectra import BINS, Spectra

MADE_OF = {"case": "a" * 64, "weights": "b" * 64}
CURVE = np.where(np.arange(BINS) < 30, np.linspace(1, 0.1, BINS) / 3, math.nan)
SPECTRA = Spectra(CURVE, math.nan, {"liver": CURVE * 2}, {"liver": 0.1 + 0.2})
ROWS = (
    Score("one", "low", "body", "body", BODY_PSNR, 31.0 + 1 / 3, 20.5),
    Score("one", "synthesized", "body", "body", BODY_PSNR, math.nan, None, "made so"),
)
CEILING = {"case": "one", "image": "low", "against": "truth", "metric": "PSNR", "region": "body", "value": 1 / 7}


def test_what_was_kept_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    scored = CaseScores(rows=ROWS, ceilings=[CEILING], spectra={"low": SPECTRA})
    keep(tmp_path, "one", ["low", "synthesized"], scored, MADE_OF)
    found = kept(tmp_path, "one", MADE_OF)
    assert found is not None
    assert repr(tuple(found.rows)) == repr(ROWS)
    assert list(found.ceilings) == [CEILING]
    assert found.spectra is not None
    (name, spectra), *others = found.spectra.items()
    assert (name, others) == ("low", [])
    np.testing.assert_array_equal(spectra.correlation, SPECTRA.correlation)
    np.testing.assert_array_equal(spectra.noise["liver"], SPECTRA.noise["liver"])
    assert math.isnan(spectra.detail_mm)
    assert spectra.noise_per_mm == SPECTRA.noise_per_mm
    assert kept(tmp_path, "another", MADE_OF) is None


@pytest.mark.parametrize("name", sorted(MADE_OF))
def test_scores_of_anything_else_are_made_anew(tmp_path: Path, name: str) -> None:
    keep(tmp_path, "one", ["low"], CaseScores(rows=ROWS), MADE_OF)
    assert kept(tmp_path, "one", MADE_OF | {name: "c" * 64}) is None
    assert kept(tmp_path, "one", {}) is None


@pytest.mark.parametrize(
    ("old", "new"), [(b"31.33", b"32.33"), (b"made_of", b"made_by"), (b"}", b""), (b"body", b"b\x00dy")]
)
def test_damaged_scores_are_made_anew(tmp_path: Path, old: bytes, new: bytes) -> None:
    keep(tmp_path, "one", ["low"], CaseScores(rows=ROWS), MADE_OF)
    (path,) = (tmp_path / CASES / "one").iterdir()
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    assert kept(tmp_path, "one", MADE_OF) is None


def test_scores_by_other_code_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, "one", ["low"], CaseScores(rows=ROWS), MADE_OF)
    monkeypatch.setattr(kept_cases, "_code", lambda: "0.2.0")
    assert kept(tmp_path, "one", MADE_OF) is None


def test_what_json_would_change_is_not_kept(tmp_path: Path) -> None:
    endless = Score("one", "low", "body", "body", BODY_PSNR, math.inf)
    keep(tmp_path, "one", ["low"], CaseScores(rows=[*ROWS, endless]), MADE_OF)
    assert kept(tmp_path, "one", MADE_OF) is None
    assert not (tmp_path / CASES).exists()
