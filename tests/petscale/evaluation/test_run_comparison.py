"""Runs beside each other: only patients that all tested and none has seen count, and what is left out is named."""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pytest
from scipy.stats import wilcoxon

import petscale
from petscale import config as configs
from petscale.cli import main
from petscale.evaluation.current import weights_of
from petscale.evaluation.run_comparison import compare_runs
from petscale.evaluation.scores import Evaluation
from petscale.folders import CONFIG, EVALUATION, EXTERNAL, FOLDS, WEIGHTS
from petscale.reporting.run_comparison import sentences
from storage.errors import InputError
from trainers.metrics.definitions import Score
from trainers.metrics.presets import BODY_PSNR
from trainers.metrics.statistics import holm

Refused = Callable[..., str]
PATIENTS = [f"p{n}" for n in range(8)]
GAINS = [0.1, 0.3, 0.2, 0.5, 0.4, 0.7, -0.1, 0.6]
IMAGES = {"low-dose input": -3.0, "Gaussian 5 mm": -1.0, "synthesized": 0.0}


def scores(
    place: Path, psnr_db: Mapping[str, float], run: Path, images: Mapping[str, float] = IMAGES, **about: object
) -> None:
    """PSNR inside the body; baselines do not follow the network's."""
    rows = [
        Score(case, image, "body", "body", BODY_PSNR, (value if image == "synthesized" else 30.0 + place_of) + added)
        for place_of, (case, value) in enumerate(psnr_db.items())
        for image, added in images.items()
    ]
    place.mkdir(parents=True)
    Evaluation(tuple(rows), tuple(images), tuple(psnr_db), {"weights": weights_of([run]), **about}).write(place)


def a_run(
    folder: Path,
    psnr_db: Mapping[str, float],
    *,
    trained: Sequence[str] = ("trained",),
    validated: Sequence[str] = (),
    people: Mapping[str, str] | None = None,
    images: Mapping[str, float] = IMAGES,
    voxels: Mapping[str, str] | None = None,
    cohort: str = "cohort",
) -> Path:
    """A run whose test patients have these scores."""
    folder.mkdir(parents=True)
    whole = configs.to_json(configs.from_json({"recipe": "red_cnn", "feed": {"source": ["low_drf4"]}}))
    cases = [*psnr_db, *trained, *validated]
    facts = {"config": whole, "command": "petscale train", "cohort": cohort}
    facts |= {"train": [*trained], "validation": [*validated], "test": [*psnr_db]}
    facts |= {"cases": {case: (voxels or {}).get(case, f"voxels of {case}") for case in cases}}
    facts |= {"subjects": {case: case for case in cases} if people is None else dict(people)}
    (folder / CONFIG).write_text(json.dumps(facts))
    (folder / WEIGHTS).write_bytes(folder.name.encode())
    scores(folder / EVALUATION / "low_drf4", psnr_db, folder, images)
    return folder


def above(values: Iterable[float], gain: float = 1.0, base: float = 32.0) -> dict[str, float]:
    return {name: base + number + gain * value for number, (name, value) in enumerate(zip(PATIENTS, values))}  # noqa: B905


def test_runs_are_tested_against_the_best_baseline_and_each_other_with_holm_over_all_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = a_run(tmp_path / "a", above(GAINS, 2.0)), a_run(tmp_path / "b", above(GAINS))
    main(["compare", str(a), str(b), "--json", str(tmp_path / "c.json"), "--page", str(tmp_path / "c.html")])
    said = capsys.readouterr().out
    kept = json.loads((tmp_path / "c.json").read_bytes())["low_drf4"]
    assert kept["candidates"] == ["low-dose input", "Gaussian 5 mm", "a", "b"]  # a baseline of both runs stands once
    assert kept["best_baseline"] == "Gaussian 5 mm"
    assert [(one["candidate"], one["gain"]["over"]) for one in kept["tests"]] == [
        ("a", "Gaussian 5 mm"),
        ("b", "Gaussian 5 mm"),
        ("a", "b"),
    ]
    plain = [wilcoxon(values).pvalue for values in ([3 + 2 * g for g in GAINS], [3 + g for g in GAINS], GAINS)]
    assert [one["gain"]["p_value"] for one in kept["tests"]] == pytest.approx(plain)
    assert [one["p_holm"] for one in kept["tests"]] == pytest.approx(holm(plain))
    assert kept["tests"][2]["gain"]["mean"] == pytest.approx(sum(GAINS) / 8)
    better = "a: better than the best baseline (Gaussian 5 mm) in PSNR inside the body: +3.67 dB, p (Holm) 0.023"
    page = (tmp_path / "c.html").read_text()
    for line in (better, "8 patients whom all of a, b were tested on", "look at: these are test patients"):
        assert line in said
        assert line in page
    assert "http" not in page
    assert "projection" not in page  # no picture, no word on pictures


def test_five_patients_are_not_testable(tmp_path: Path) -> None:
    few = [a_run(tmp_path / name, above(GAINS[:5], gain)) for name, gain in (("a", 2.0), ("b", 1.0))]
    found = petscale.compare(few[0], few[1])
    assert isinstance(found, dict)
    assert found["low_drf4"].verdict[2].startswith("not testable with 5 patient(s), fewer than 6: a: higher than b in")
    tests = found["low_drf4"].tests()
    assert tests["p_holm"].isna().all()
    assert tests["difference"].tolist() == pytest.approx([3.6, 3.3, 0.3])


def test_a_patient_of_the_training_of_another_run_is_left_out_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the voxels, or by the patient alone; so is one that kept the best epoch, and one that was not tested."""
    a = a_run(tmp_path / "a", {**above(GAINS), "q": 40.0})
    known = {**{name: name for name in PATIENTS}, "p2-again": "p2"}
    b_scores = {name: value for name, value in above(GAINS).items() if name not in ("p0", "p1", "p2")}
    b = a_run(tmp_path / "b", b_scores, trained=["p0", "p2-again"], validated=["p1"], people=known)
    main(["compare", str(a), str(b)])
    said = capsys.readouterr().out.splitlines()
    assert "left out: SET_SEEN: b was trained on this case: p0" in said
    assert "left out: SET_SEEN: b was validated on this case: p1" in said
    assert "left out: SET_SEEN: b was trained on its patient: p2" in said
    assert "left out: SET_NOT_SHARED: b did not test it: q" in said
    assert any(line.startswith("from low_drf4: 5 patients whom all of a, b") for line in said)
    trained = "the runs were trained on different cases (a on 1, b on 2)"
    assert any(line.startswith(f"look at: {trained}") for line in said)


def test_a_tested_case_whose_patient_was_trained_on_does_not_count_though_all_tested_it(tmp_path: Path) -> None:
    a = a_run(tmp_path / "a", above(GAINS))
    b = a_run(tmp_path / "b", above(GAINS), people={**{name: name for name in PATIENTS}, "trained": "p3"})
    found = compare_runs([a, b])["low_drf4"]
    assert found.left_out == {"p3": "SET_SEEN: b was trained on its patient"}
    assert "p3" not in found.compared.scores.cases


def test_a_case_is_known_by_its_voxels_whatever_it_is_called(tmp_path: Path) -> None:
    renamed = {f"site.{name}": value for name, value in above(GAINS, 2.0).items()}
    b = a_run(tmp_path / "b", renamed, voxels={f"site.{name}": f"voxels of {name}" for name in PATIENTS})
    a = a_run(tmp_path / "a", above(GAINS))
    found = compare_runs([a, b])["low_drf4"]
    assert found.compared.scores.cases == tuple(PATIENTS)
    assert found.compared.tests[2].gain.mean == pytest.approx(-sum(GAINS) / 8)
    c = a_run(tmp_path / "c", above(GAINS), voxels={"p7": "others"})
    assert compare_runs([a, c])["low_drf4"].left_out == {
        "p7": "SET_NOT_SHARED: a has other voxels under this name",
    }


def test_a_patient_without_a_score_is_left_out_by_name(tmp_path: Path) -> None:
    """As where the rule has changed since: scores of two definitions are never compared."""
    a, b = a_run(tmp_path / "a", above(GAINS)), a_run(tmp_path / "b", {**above(GAINS), "p4": math.nan})
    found = compare_runs([a, b])["low_drf4"]
    assert found.compared.scores.cases == tuple(name for name in PATIENTS if name != "p4")
    assert found.left_out["p4"].startswith("SET_NOT_SHARED: an image of it has no PSNR")


def test_several_scans_of_a_patient_count_once_over_those_that_all_tested(tmp_path: Path) -> None:
    people = {**{name: name for name in PATIENTS}, "p1": "p0", "p2": "p0", "trained": "trained"}
    a = a_run(tmp_path / "a", above(GAINS), people=people)
    b = a_run(tmp_path / "b", dict(reversed([*above(GAINS, 2.0).items()][1:])), people=people)
    found = compare_runs([a, b])["low_drf4"]
    assert found.compared.scores.cases == ("p1+p2", *PATIENTS[3:])
    psnr = found.compared.scores.values("a", BODY_PSNR, "body")
    assert psnr["p1+p2"] == pytest.approx((33.3 + 34.2) / 2)


def test_folds_stand_beside_a_single_run(tmp_path: Path) -> None:
    """A patient of the folds is scored by the fold that never saw him or her."""
    values = above(GAINS)
    halves = {"fold-0": PATIENTS[::2], "fold-1": PATIENTS[1::2]}
    for number, (name, half) in enumerate(halves.items()):
        widths = {"low-dose input": -3.0, f"Gaussian {5 + number} mm": -1.0, "synthesized": 0.0}
        others = [case for case in PATIENTS if case not in half]
        a_run(tmp_path / "folds" / name, {case: values[case] for case in half}, trained=others, images=widths)
    (tmp_path / "folds" / FOLDS).write_text(json.dumps({"folds": list(halves)}))
    single = a_run(tmp_path / "single", above(GAINS, 2.0))
    found = compare_runs([tmp_path / "folds", single])["low_drf4"]
    assert found.left_out == {}
    assert set(found.compared.scores.cases) == set(PATIENTS)
    assert "Gaussian, chosen in each fold" in found.compared.scores.images
    assert found.compared.tests[-1].gain.mean == pytest.approx(-sum(GAINS) / 8)
    with pytest.raises(InputError, match="CFG_NO_EFFECT --external"):
        compare_runs([tmp_path / "folds", single], external="elsewhere")
    shutil.rmtree(tmp_path / "folds" / "fold-1")
    with pytest.raises(InputError, match="CFG_RUN_FOLDER folds/fold-1: a fold that is not trained yet"):
        compare_runs([tmp_path / "folds", single])


def test_a_baseline_that_was_fitted_on_other_cases_says_whose_it_is(tmp_path: Path) -> None:
    other = {**IMAGES, "Gaussian 5 mm": -0.5}
    a, b = a_run(tmp_path / "a", above(GAINS)), a_run(tmp_path / "b", above(GAINS), images=other)
    found = compare_runs([a, b])["low_drf4"]
    assert found.compared.scores.images[:3] == ("low-dose input", "Gaussian 5 mm (a)", "Gaussian 5 mm (b)")
    assert found.best_baseline == "Gaussian 5 mm (b)"
    assert len(sentences(found)) == 3


def test_scores_of_another_cohort_are_compared_where_it_is_named(tmp_path: Path, refused: Refused) -> None:
    """One run has tested them as its own, the other as an external validation."""
    a = a_run(tmp_path / "a", above(GAINS), cohort="elsewhere")
    b = a_run(tmp_path / "b", {"mine": 30.0}, trained=["b-trained"])
    said = refused("compare", a, b)
    assert said.startswith("SET_NOT_SHARED a, b: no case was tested by all: p0: ")
    assert "b did not test it" in said
    assert "--external" in said
    missing = "SET_EVALUATION b/external/elsewhere: no scores"
    assert refused("compare", a, b, "--external", "elsewhere").startswith(missing)

    def validated(run: Path, gain: float) -> None:
        home = run / EXTERNAL / "elsewhere"
        about = {"cohort": "elsewhere", "patients_compared": False}
        scores(home / EVALUATION / "low_drf4", above(GAINS, gain), run, external=about)
        (home / "cohort.json").write_text(json.dumps({"cases": {name: f"voxels of {name}" for name in PATIENTS}}))

    validated(b, 2.0)
    found = compare_runs([a, b], external="elsewhere")["low_drf4"]
    assert found.compared.scores.cases == tuple(PATIENTS)
    assert found.compared.tests[-1].gain.mean == pytest.approx(-sum(GAINS) / 8)
    assert any("could be compared by voxels alone for b" in doubt for doubt in found.doubts)
    validated(a, 4.0)  # of another cohort that is called as its own: these are the scores that are asked for
    again = compare_runs([a, b], external="elsewhere")["low_drf4"]
    assert again.compared.tests[-1].gain.mean == pytest.approx(2 * sum(GAINS) / 8)


def test_a_copy_of_a_run_is_told(tmp_path: Path) -> None:
    a = a_run(tmp_path / "a", above(GAINS))
    found = compare_runs([a, Path(shutil.copytree(a, tmp_path / "copy")), a_run(tmp_path / "b", above(GAINS))])
    (told,) = [doubt for doubt in found["low_drf4"].doubts if "same weights" in doubt]
    assert told.startswith("a, copy have the same weights")
    assert found["low_drf4"].compared.tests[3].gain.mean == 0.0


def test_who_the_patients_are_is_asked_for(tmp_path: Path) -> None:
    found = compare_runs([a_run(tmp_path / name, above(GAINS), people={}) for name in "ab"])["low_drf4"]
    assert any("patients of 8 of the cases are is not known" in doubt for doubt in found.doubts)


def test_what_cannot_be_compared_is_refused(tmp_path: Path, refused: Refused) -> None:
    cohort = tmp_path / "cohort"
    cohort.mkdir()
    (cohort / "zarr.json").write_text("{}")
    a, b = a_run(tmp_path / "a", above(GAINS)), a_run(tmp_path / "b", above(GAINS))
    assert refused("compare", a, a).startswith("CFG_RANGE")
    assert refused("compare", a, cohort).startswith("CFG_KINDS")
    assert refused("compare", cohort, cohort, cohort).startswith("CFG_KINDS")
    assert refused("compare", cohort, cohort, "--page", tmp_path / "page.html").startswith("CFG_NO_EFFECT")
    assert refused("compare", a, tmp_path / "nothing").startswith("CFG_RUN_FOLDER nothing: no run")
    named = a_run(tmp_path / "x/Gaussian 5 mm", above(GAINS))
    assert refused("compare", a, named).startswith("CFG_NAME")
    (tmp_path / "page.html").write_text("mine")
    assert refused("compare", a, b, "--page", tmp_path / "page.html").startswith("DISK_EXISTS")
    record = json.loads((b / CONFIG).read_text())
    for feed, said in (
        ({"target": "truth"}, "SET_RUNS_DIFFER b: was trained to give image 'truth', a 'full'"),
        ({"source": ["low_drf20"]}, "SET_EVALUATION b/evaluation/low_drf20: no scores"),
    ):
        changed = {**record, "config": {**record["config"], "feed": {**record["config"]["feed"], **feed}}}
        (b / CONFIG).write_text(json.dumps(changed))
        assert refused("compare", a, b).startswith(said)
    scores(b / EVALUATION / "low_drf20", above(GAINS), b)
    assert refused("compare", a, b).startswith("SET_RUNS_DIFFER b: no image that all start from: a from low_drf4; b")
    (b / CONFIG).write_text(json.dumps(record))
    (b / WEIGHTS).write_bytes(b"trained anew")
    assert refused("compare", a, b).startswith("SET_EVALUATION b/evaluation/low_drf4: scores of other weights")
