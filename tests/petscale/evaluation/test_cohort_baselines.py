"""``petscale baseline``: every patient once, by baselines that were fitted on the others, printed and written."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from petscale.cli import main
from petscale.evaluation.baselines import ADAPTIVE, BY_HEIGHT, BY_HU, BY_ORGAN, INPUT, LINEAR
from petscale.evaluation.ceiling import IDEAL, SHARED
from petscale.evaluation.cohort_baselines import BEST_GAUSSIAN, baseline_scores
from petscale.evaluation.fitting import anatomy_of, fit_baseline
from storage.reader import open_cohort
from trainers.metrics.presets import BODY_PSNR


def test_a_case_is_scored_by_what_was_fitted_without_its_patient(cohort: Path) -> None:
    opened = open_cohort(cohort)
    found = baseline_scores(opened, folds=4, sources=("low_drf20",))["low_drf20"]
    case = opened.case("phantom-002")
    others = [opened.case(name) for name in opened.cases if name != case.name]
    image = fit_baseline(others, "low_drf20", "full").beside(case.image("low_drf20"), anatomy_of(case))[ADAPTIVE]
    full, body = (case.image(name).read(0, case.image(name).grid.shape[0]) for name in ("full", "body"))
    error = np.square(image.read(0, len(full)) - full)[body > 0.5].mean()
    psnr = 10 * np.log10(full[body > 0.5].max() ** 2 / error)
    values = found.evaluation.values(ADAPTIVE, BODY_PSNR, "body")
    assert set(values) == set(opened.cases)
    assert values[case.name] == pytest.approx(psnr, abs=1e-3)
    assert len(found.rules) == 4


def test_the_command_prints_one_table_of_all_doses_and_writes_it(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "table"
    main(["baseline", str(cohort), "--folds", "2", "--output", str(place)])
    out, err = capsys.readouterr()
    assert out.strip() == str(place / "baselines.json")
    content = json.loads((place / "baselines.json").read_text(), parse_constant=pytest.fail)
    assert content["metadata"]["folds"] == 2
    assert set(content) == {"metadata", "low_drf4", "low_drf20"}
    for name in (INPUT, BEST_GAUSSIAN, LINEAR, ADAPTIVE, "non-local means", "total variation"):
        assert name in content["low_drf4"]["images"]
    assert content["low_drf20"]["best_baseline"] != INPUT
    with (place / "baselines.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["source"] for row in rows} == {"low_drf4", "low_drf20"}
    assert {row["case"] for row in rows} == set(open_cohort(cohort).cases)
    assert "adaptive" in err
    behind = content["low_drf20"]["gain_of_the_best_in_psnr_inside_the_body_db"]
    assert len(behind) == len(content["low_drf20"]["images"]) - 1
    assert all(gain["mean"] > 0 and gain["num_cases"] == 4 and gain["p_value"] is None for gain in behind)
    ceiling = content["low_drf20"]["metadata"]["ceiling"]
    assert {row["image"] for row in ceiling["rows"]} == {*content["low_drf20"]["images"], IDEAL, SHARED}


def test_a_ct_has_its_tables(cohort: Path) -> None:
    (found,) = baseline_scores(open_cohort(cohort), folds=2, sources=("ct",)).values()
    assert found.evaluation.images == (BY_HU, BY_HEIGHT, BY_ORGAN)
    psnr = {
        name: np.mean([*found.evaluation.values(name, BODY_PSNR, "body").values()]) for name in found.evaluation.images
    }
    assert psnr[BY_ORGAN] > psnr[BY_HU]


@pytest.mark.parametrize(
    ("words", "code"),
    [(("--source", "low_drf7"), "SET_NO_IMAGE"), (("--folds", "5"), "SET_TOO_SMALL"), (("--folds", "1"), "CFG_RANGE")],
)
def test_what_cannot_be_scored_is_refused(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["baseline", str(cohort), *words, "--output", str(tmp_path / "x")])
    assert ended.value.code == 2
    assert code in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
