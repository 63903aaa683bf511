"""Ceilings: what knows everything but noise, how much of what can be gained was gained, and nothing on real scans."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from petscale.evaluation import ceiling
from petscale.evaluation.baselines import INPUT
from petscale.evaluation.ceiling import (
    FULL,
    IDEAL,
    SHARED,
    TRUTH,
    ceiling_lines,
    ceiling_rows,
    oracles,
    share_sentence,
    table,
)
from petscale.evaluation.filters import BlockedSource
from petscale.evaluation.scores import SYNTHESIZED, Evaluation, read_evaluation
from petscale.evaluation.scoring import score_stored_case
from petscale.reporting.verdict import verdict
from storage.ingest import CasePlan, ingest
from storage.lowdose import LowDoseConfig, LowDoseSource
from storage.reader import Case, open_cohort
from storage.source import Dose
from trainers.metrics.presets import BODY_PSNR


@pytest.fixture(scope="module")
def case(cohort: Path) -> Case:
    return open_cohort(cohort).case("phantom-001")


def evaluation(case: Case, source: str = "low_drf4") -> Evaluation:
    """The input, and the best possible image as if it were a network's."""
    images = {INPUT: case.image(source), SYNTHESIZED: oracles(case, source, "full")[SHARED]}
    rows = ceiling_rows(case, source, "full", images)
    scores = score_stored_case(case, "full", images, presets=("native",))
    return Evaluation(tuple(scores), tuple(images), (case.name,), {"ceiling": ceiling.as_json(rows, case, source)})


def test_without_noise_the_scan_is_the_mean_of_many_full_doses(case: Case) -> None:
    truth, ct, full = (case.image(name) for name in ("truth", "ct", "full"))
    scan = LowDoseConfig(**full.provenance["config"])  # type: ignore[arg-type]
    depth = full.grid.shape[0]
    ideal = LowDoseSource(truth, ct, scan, "expected").read(0, depth)
    scans = [LowDoseSource(truth, ct, replace(scan, realisation=k)).read(0, depth) for k in range(1, 9)]
    inside = case.image("body").read(0, depth) > 0.5
    one = np.square(scans[0] - ideal)[inside].mean()
    assert np.square(np.mean(scans, axis=0) - ideal)[inside].mean() == pytest.approx(one / len(scans), rel=0.25)
    stored = oracles(case, "low_drf4", "full")[IDEAL].read(0, depth)
    np.testing.assert_allclose(stored, ideal, atol=1e-4)


def test_the_best_answer_holds_the_share_of_noise_that_the_input_has(case: Case) -> None:
    found = {line.image: line for line in ceiling_lines(evaluation(case))}
    # 1.25 dB at DRF 4: minus ten times the logarithm of 1 - 1/4.
    assert found[SHARED].psnr_full - found[IDEAL].psnr_full == pytest.approx(-10 * np.log10(1 - 1 / 4), abs=0.3)
    assert found[INPUT].psnr_full < found[IDEAL].psnr_full
    assert found[SHARED].psnr_truth < found[IDEAL].psnr_truth  # noise is no merit against the truth
    assert found[INPUT].share == 0
    assert found[SYNTHESIZED].share == pytest.approx(1)
    assert found[SYNTHESIZED].psnr_truth == pytest.approx(found[SHARED].psnr_truth)
    assert found[SYNTHESIZED].suv_max > 0


def test_page_and_terminal_say_how_much_was_gained_first(case: Case) -> None:
    made = evaluation(case)
    assert share_sentence(made).startswith("100 % of what can be gained over the low-dose input was gained")
    assert verdict(made).sentences[0] == share_sentence(made)
    shown = table(made)
    assert shown is not None
    assert shown.row_count == 4


def test_ceilings_are_kept_with_the_scores(case: Case, tmp_path: Path) -> None:
    made = evaluation(case)
    made.write(tmp_path)
    json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail)
    assert ceiling_lines(read_evaluation(tmp_path)) == ceiling_lines(made)


def test_known_rows_are_taken_over_and_nothing_is_simulated_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    low = {INPUT: case.image("low_drf4")}
    known = ceiling_rows(case, "low_drf4", "full", low)
    monkeypatch.setattr(BlockedSource, "read", pytest.fail)
    again = ceiling_rows(case, "low_drf4", "full", {SYNTHESIZED: case.image("low_drf20")}, known)
    assert again[: len(known)] == known
    assert {row["image"] for row in again} == {INPUT, IDEAL, SHARED, SYNTHESIZED}
    assert {row["against"] for row in again if row["image"] == SYNTHESIZED} == {TRUTH}
    assert {row["against"] for row in again if row["image"] == IDEAL} == {TRUTH, FULL}


def test_a_separate_scan_shares_no_noise_and_a_ct_has_no_share(case: Case) -> None:
    assert list(oracles(case, "ct", "full")) == [IDEAL]
    rows = ceiling_rows(case, "ct", "full", {INPUT: case.image("low_drf4")})
    scores = score_stored_case(case, "full", {INPUT: case.image("low_drf4")}, presets=("native",))
    made = Evaluation(tuple(scores), (INPUT,), (case.name,), {"ceiling": ceiling.as_json(rows, case, "ct")})
    assert all(np.isnan(line.share) for line in ceiling_lines(made))
    assert share_sentence(made) == ""


def test_nothing_is_shown_of_real_pairs(case: Case, tmp_path: Path) -> None:
    def plan(scratch: Path, *, images: tuple[str, ...]) -> CasePlan:
        found = {name: replace_provenance(case, name) for name in images}
        doses = {"full": Dose(1.0, "full", None), "low_drf4": Dose(4.0, "thinned", True)}
        return CasePlan(found, "somebody", " ".join(images), {}, doses)

    names = ("full", "low_drf4", "truth")
    ingest(tmp_path / "real", {"a": partial(plan, images=names)}, strict=True, workers=1)
    real = open_cohort(tmp_path / "real").case("a")
    assert oracles(real, "low_drf4", "full") == {}
    assert ceiling_rows(real, "low_drf4", "full", {INPUT: real.image("low_drf4")}) == []
    scores = score_stored_case(real, "full", {INPUT: real.image("low_drf4")}, presets=("native",))
    made = Evaluation(tuple(scores), (INPUT,), ("a",))
    assert (table(made), share_sentence(made), ceiling_lines(made)) == (None, "", [])
    assert made.values(INPUT, BODY_PSNR, "body")


def replace_provenance(case: Case, name: str) -> BlockedSource:
    """An image as a scanner's: nothing says that it was simulated."""
    image = case.image(name)
    return _Measured(image, lambda slab: slab, 0, "")


class _Measured(BlockedSource):
    @property
    def provenance(self) -> dict[str, object]:
        return {"format": "nifti"}
