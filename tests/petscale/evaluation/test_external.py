"""A run against a cohort that is not its own: who is scored, who is left out, and what is said about it."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from untrained_runs import prove

from petscale.cli import main
from petscale.evaluation import run as evaluating
from petscale.evaluation.baselines import INPUT
from petscale.evaluation.external import choose_cases, keep_patients
from petscale.evaluation.run import evaluate_run, read_evaluations, run_facts
from petscale.evaluation.scores import SYNTHESIZED, Evaluation
from petscale.folders import CONFIG, EVALUATION, EXTERNAL, PATIENTS, REPORT, SYNTHESIS, WEIGHTS
from petscale.inference import open_run, run_case
from petscale.likeness import FACT, Bounds, Likeness
from storage import integrity
from storage.errors import InputError
from storage.ingest import CasePlan, ingest
from storage.joined import open_cohorts
from storage.reader import open_cohort
from storage.source import ArraySource, Grid
from trainers import checkpoint
from trainers.metrics.presets import BODY_PSNR

Refused = Callable[..., str]
STRETCH = np.diag([1.0, 1.0, 1.3, 1.0])


@pytest.fixture
def tested(run: Path, cohort: Path) -> Path:
    """The run of nobody's training: it was trained on phantom-001 to -003 and is tested on phantom-000."""
    opened = open_cohort(cohort)
    facts = json.loads((run / CONFIG).read_bytes())
    facts |= {"train": opened.cases[1:], "unpaired": [], "validation": [], "test": opened.cases[:1]}
    facts["cases"] = {name: integrity.manifest(opened.case(name).folder)["root"] for name in opened.cases}
    (run / CONFIG).write_text(json.dumps(facts))
    tensors, about = checkpoint.read_weights(run / WEIGHTS)
    told = {"starts_from": json.dumps({"units": "SUVbw", "spacing_mm": [20.0, 11.0, 11.0]}), "drfs": "[4.0]"}
    checkpoint.write_weights(run / WEIGHTS, tensors, {**about, **told})
    prove(run)
    return run


@pytest.fixture
def known(tested: Path, cohort: Path) -> Path:
    """The same, once it was evaluated on its own cohort: it has a Gaussian, and knows its patients."""
    _, facts = run_facts(tested)
    keep_patients(tested, facts, open_cohort(cohort), "low_drf4")
    place = tested / EVALUATION / "low_drf4"
    place.mkdir(parents=True)
    (place / "baseline.json").write_text('{"fwhm_mm": 8.0, "psnr_db": {"6": 30.0, "8": 31.0}, "num_cases": 3}')
    return tested


def other(
    cohort: Path,
    folder: Path,
    cases: Mapping[str, tuple[str, str]],
    *,
    images: Mapping[str, str] | None = None,
    stretched: str = "",
) -> Path:
    """A cohort made of another one's images.

    Args:
        cases: new name -> (case that its images are of, patient).
        images: new name of an image -> name in that case.
        stretched: a case whose voxels are 1.3 times as long along z.
    """
    named = images or {name: name for name in ("full", "low_drf4", "ct")}

    def plan(name: str, scratch: Path) -> CasePlan:
        made_of, patient = cases[name]
        case = open_cohort(cohort).case(made_of)
        sources = {new: case.image(old) for new, old in named.items()}
        doses = {new: case.image(old).dose for new, old in named.items()}
        moved = {
            new: ArraySource(
                image.read(0, image.grid.shape[0]),
                Grid(image.grid.shape, image.grid.affine @ STRETCH) if name == stretched else image.grid,
                image.units,
            )
            for new, image in sources.items()
        }
        return CasePlan(moved, patient, f"{name} of {made_of} {patient}", doses=doses)

    ingest(folder, {name: partial(plan, name) for name in cases}, strict=True, workers=1)
    return folder


def told(evaluations: Mapping[str, Evaluation], source: str = "low_drf4") -> Mapping[str, object]:
    about = evaluations[source].metadata["external"]
    assert isinstance(about, dict)
    return about


def chosen(run: Path, cohort: Path) -> tuple[str, ...]:
    _, facts = run_facts(run)
    return choose_cases(run, facts, open_cohort(cohort)).cases


def test_the_runs_own_cohort_is_scored_as_before_and_tells_who_its_patients_are(tested: Path, cohort: Path) -> None:
    found = evaluate_run(tested, cohort)
    assert found["low_drf4"].cases == ("phantom-000",)
    assert set(found["low_drf4"].metadata) == {"source", "baseline", "ceiling", "spectra", "weights"}
    assert not (tested / EXTERNAL).exists()
    subjects = json.loads((tested / EVALUATION / PATIENTS).read_bytes())["subjects"]
    assert subjects == {name: open_cohort(cohort).case(name).subject for name in open_cohort(cohort).cases}


def test_a_run_of_several_cohorts_is_scored_and_reported_on_all_of_them(
    tested: Path, cohort: Path, tmp_path: Path, refused: Refused
) -> None:
    one = other(cohort, tmp_path / "one", {"p1": ("phantom-000", "ann"), "p2": ("phantom-001", "bob")})
    two = other(cohort, tmp_path / "two", {"p1": ("phantom-002", "eve"), "p3": ("phantom-003", "dan")})
    joined = open_cohorts([one, two])
    assert (joined.name, joined.cases) == ("one+two", ("one.p1", "p2", "p3", "two.p1"))
    facts = json.loads((tested / CONFIG).read_bytes())
    facts |= {"cohorts": ["one", "two"], "train": ["p2", "two.p1"], "test": ["one.p1", "p3"]}
    facts["cases"] = {name: integrity.manifest(joined.case(name).folder)["root"] for name in joined.cases}
    facts["subjects"] = {name: joined.case(name).subject for name in joined.cases}
    (tested / CONFIG).write_text(json.dumps(facts))
    tensors, about = checkpoint.read_weights(tested / WEIGHTS)
    like = Likeness(2, {"length": Bounds(1.0, 2.0, 1.0, 2.0)}, (), (20.0, 11.0, 11.0), (20.0, 11.0, 11.0))
    checkpoint.write_weights(tested / WEIGHTS, tensors, {**about, FACT: json.dumps(like.to_json())})
    prove(tested)
    assert refused("evaluate", tested, one).startswith("SET_NO_TEST one: ")  # p1 is not the name that the run knows
    main(["evaluate", str(tested), str(one), str(two)])
    assert not (tested / EXTERNAL).exists()
    found = read_evaluations(tested, one, others=[two])["low_drf4"]
    assert found.cases == ("one.p1", "p3")
    main(["report", str(tested), str(one), str(two)])
    page = (tested / REPORT).read_text("utf-8")
    assert "one.p1" in page
    assert "p3" in page
    made = open_cohort(tested / SYNTHESIS / "low_drf4").case("p3").image("synth_low_drf4")
    told = made.provenance["differs_from_training"]
    assert isinstance(told, list)
    assert [sentence.endswith(" mm, trained on 1 to 2 mm") for sentence in told] == [True]
    assert f"Case p3: {told[0]}." in page
    alone = evaluate_run(tested, two)["low_drf4"]  # its test case p3 is found under the same name
    assert alone.cases == ("p3",)


def test_several_cohorts_may_be_an_external_validation(known: Path, cohort: Path, tmp_path: Path) -> None:
    one = other(cohort, tmp_path / "one", {"a": ("phantom-000", "ann")})
    two = other(cohort, tmp_path / "two", {"b": ("phantom-001", "bob")})
    found = evaluate_run(known, one, others=[two])
    assert found["low_drf4"].cases == ("a", "b")
    assert told(found)["cohort"] == "one+two"
    assert (known / EXTERNAL / "one+two" / EVALUATION).is_dir()


def test_every_unseen_case_of_another_cohort_is_scored_and_said_to_be_external(
    known: Path, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in (known / EVALUATION).rglob("*") if p.is_file()}
    patient = open_cohort(cohort).case("phantom-002").subject
    elsewhere = other(
        cohort,
        tmp_path / "clinic",
        {"a": ("phantom-000", "ann"), "b": ("phantom-001", "ann"), "c": ("phantom-002", patient)},
    )
    capsys.readouterr()
    found = evaluate_run(known, elsewhere)
    err = " ".join(capsys.readouterr().err.split())
    sentence = "external validation on 2 cases of 1 patient, none of which the run was trained on"
    assert f"clinic: {sentence}" in err
    assert "SET_SEEN case c: the run was trained on this patient" in err
    assert found["low_drf4"].cases == ("a", "b")
    assert told(found)["statement"] == sentence
    assert told(found)["left_out"] == {"c": "the run was trained on this patient"}
    # The Gaussian is that of the training cases, and an image's scores are those of its voxels.
    assert found["low_drf4"].images == (INPUT, "Gaussian 8 mm", SYNTHESIZED)
    trained, case = open_run(known), open_cohort(elsewhere).case("a")
    volume = np.zeros(case.image("full").grid.shape, np.float32)
    run_case(trained, case, "low_drf4", lambda z0, slab: volume.__setitem__(slice(z0, z0 + len(slab)), slab))
    full, body = (case.image(name).read(0, len(volume)) for name in ("full", "body"))
    error = np.mean((np.maximum(volume, 0) - full)[body > 0] ** 2)
    psnr = 10 * np.log10(full[body > 0].max() ** 2 / error)
    assert found["low_drf4"].values(SYNTHESIZED, BODY_PSNR, "body")["a"] == pytest.approx(psnr, abs=1e-3)
    assert {p: p.read_bytes() for p in before} == before
    place = known / EXTERNAL / "clinic"
    assert {p.name for p in place.iterdir()} == {EVALUATION, SYNTHESIS, "cohort.json"}
    main(["report", str(known), str(elsewhere)])
    page = Path(capsys.readouterr().out.strip())
    assert page == place / REPORT
    text = page.read_text()
    assert "external validation on clinic</title>" in text
    assert f"E{sentence[1:]}." in text
    assert "Left out: c: the run was trained on this patient." in text
    assert not (known / REPORT).exists()


def test_scores_of_another_cohort_are_read_back_while_it_stays_as_it_is(
    known: Path, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = other(cohort, tmp_path / "clinic", {"a": ("phantom-000", "ann")})
    once = evaluate_run(known, elsewhere)
    asked = []

    def watched(*places: Path, **given: Any) -> dict[str, Evaluation]:
        asked.append(places)
        return evaluate_run(*places, **given)

    monkeypatch.setattr(evaluating, "evaluate_run", watched)
    assert read_evaluations(known, elsewhere)["low_drf4"].rows == once["low_drf4"].rows
    assert not asked
    other(cohort, elsewhere, {"b": ("phantom-001", "bob")})
    assert read_evaluations(known, elsewhere)["low_drf4"].cases == ("a", "b")
    assert len(asked) == 1


def test_without_the_runs_patients_voxels_and_names_are_compared_and_the_page_says_so(
    tested: Path, cohort: Path, tmp_path: Path
) -> None:
    patient = open_cohort(cohort).case("phantom-001").subject
    elsewhere = other(
        cohort, tmp_path / "clinic", {"a": ("phantom-000", patient), "phantom-002": ("phantom-002", "other")}
    )
    found = told(evaluate_run(tested, elsewhere))
    assert "could not be compared" in str(found["statement"])
    assert list(found["left_out"]) == ["phantom-002"]  # type: ignore[call-overload]
    # No training case was at hand: the Gaussian is tuned on the very cases, and says so.
    content = json.loads((tested / EXTERNAL / "clinic" / EVALUATION / "low_drf4" / "baseline.json").read_bytes())
    assert "scored here" in content["of"]
    _, facts = run_facts(tested)
    keep_patients(tested, facts, open_cohort(cohort), "low_drf4")
    assert chosen(tested, elsewhere) == ("phantom-002",)
    again = read_evaluations(tested, elsewhere)  # what was said before is no longer true
    assert again["low_drf4"].cases == ("phantom-002",)
    assert told(again)["left_out"] == {"a": "the run was trained on this patient"}


def test_a_test_case_with_other_voxels_is_refused_unless_it_is_another_patient(
    tested: Path, cohort: Path, tmp_path: Path
) -> None:
    subject = open_cohort(cohort).case("phantom-000").subject
    again = other(cohort, tmp_path / "again", {"phantom-000": ("phantom-000", subject)})
    namesake = other(cohort, tmp_path / "namesake", {"phantom-000": ("phantom-001", "somebody else")})
    for place in (again, namesake):
        with pytest.raises(InputError, match="SET_CASE_CHANGED"):
            chosen(tested, place)
    _, facts = run_facts(tested)
    keep_patients(tested, facts, open_cohort(cohort), "low_drf4")
    with pytest.raises(InputError, match="SET_CASE_CHANGED"):
        chosen(tested, again)
    assert chosen(tested, namesake) == ("phantom-000",)


def test_a_cohort_with_nothing_new_is_refused(known: Path, cohort: Path, tmp_path: Path, refused: Refused) -> None:
    patient = open_cohort(cohort).case("phantom-003").subject
    seen = other(cohort, tmp_path / "seen", {"a": ("phantom-003", patient)})
    line = refused("evaluate", known, seen)
    assert line.startswith("SET_NO_TEST seen")
    assert "trained on this patient" in line
    assert not (known / EXTERNAL).exists()


def test_two_cohorts_of_one_name_do_not_share_a_folder(known: Path, cohort: Path, tmp_path: Path) -> None:
    one = other(cohort, tmp_path / "here/clinic", {"a": ("phantom-000", "ann")})
    two = other(cohort, tmp_path / "there/clinic", {"a": ("phantom-001", "bob")})
    evaluate_run(known, one)
    with pytest.raises(InputError, match="SET_COHORT_NAME external/clinic"):
        evaluate_run(known, two)
    assert evaluate_run(known, one)["low_drf4"].cases == ("a",)


def test_images_of_other_names_are_listed_and_chosen(
    known: Path, cohort: Path, tmp_path: Path, refused: Refused
) -> None:
    names = {"full": "full", "quarter": "low_drf4", "twentieth": "low_drf20"}
    elsewhere = other(cohort, tmp_path / "clinic", {"a": ("phantom-000", "ann")}, images=names)
    line = refused("evaluate", known, elsewhere)
    assert line.startswith(
        "SET_NO_IMAGE clinic: no case has an image 'low_drf4'; there are full (DRF 1), quarter (DRF 4)"
    )
    assert "--source" in line
    found = evaluate_run(known, elsewhere, sources=["quarter", "twentieth"])
    assert told(found, "quarter")["differs_from_training"] == {}
    assert told(found, "twentieth")["differs_from_training"] == {
        "dose reduction factor 20, the run was trained at 4": ["a"]
    }
    assert list(read_evaluations(known, elsewhere)) == ["quarter", "twentieth"]
    nameless = other(cohort, tmp_path / "lone", {"a": ("phantom-000", "ann")}, images={"low_drf4": "low_drf4"})
    assert refused("evaluate", known, nameless).startswith("SET_NO_IMAGE lone: no case has an image 'full'")


def test_a_case_that_cannot_be_started_from_is_left_out_and_another_voxel_size_is_told(
    known: Path, cohort: Path, tmp_path: Path
) -> None:
    elsewhere = other(
        cohort, tmp_path / "clinic", {"a": ("phantom-000", "ann"), "b": ("phantom-001", "bob")}, stretched="b"
    )
    found = told(evaluate_run(known, elsewhere))
    ((sentence, cases),) = found["differs_from_training"].items()  # type: ignore[attr-defined]
    assert (sentence, cases) == ("voxels of 26 x 11 x 11 mm (z, y, x), the run was trained at 20 x 11 x 11 mm", ["b"])
    made = open_cohort(known / EXTERNAL / "clinic" / SYNTHESIS / "low_drf4").case("b").image("synth_low_drf4")
    assert made.provenance["differs_from_training"] == [sentence]
    tensors, about = checkpoint.read_weights(known / WEIGHTS)
    about["starts_from"] = json.dumps({"units": "SUVbw", "spacing_mm": [15.0, 11.0, 11.0]})
    checkpoint.write_weights(known / WEIGHTS, tensors, about)
    again = other(
        cohort, tmp_path / "second", {"a": ("phantom-000", "ann"), "b": ("phantom-001", "bob")}, stretched="b"
    )
    found = told(evaluate_run(known, again))
    assert found["left_out"] == {
        "b": "IMG_VOXEL_SIZE: voxels of 26 x 11 x 11 mm (z, y, x), "
        "the run was trained at 15 x 11 x 11 mm: more than 50% apart"
    }


def test_other_presets_are_scored_when_asked_for_and_only_known_ones(
    tested: Path, cohort: Path, refused: Refused
) -> None:
    assert refused("evaluate", tested, cohort, "--preset", "udpet2023").startswith("CFG_CHOICE --preset: 'udpet2023'")
    plain, asked = (evaluate_run(tested, cohort, presets=presets)["low_drf4"] for presets in ((), ("udpet2022",)))
    added = [row for row in asked.rows if row.definition.preset == "udpet2022"]
    assert {row.definition.metric for row in added} == {"PSNR", "SSIM", "NRMSE", "MAPE", "SCORE"}
    rest = {(r.image, r.region, r.definition): r.value for r in asked.rows if r.definition.preset != "udpet2022"}
    assert rest == pytest.approx({(r.image, r.region, r.definition): r.value for r in plain.rows}, nan_ok=True)
