"""A run becomes one file: what it tells is the run's, and no name of a case, patient, folder or machine is in it."""

import getpass
import hashlib
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from named_runs import PATIENTS, TESTED, fill
from untrained_runs import prove, red_cnn

from petscale.cards.card import Card, read_card
from petscale.cards.making import ELSEWHERE, PHANTOM, SIMULATED, UNREAD, UNSCORED, _nameless, make_card
from petscale.cli import main
from petscale.folders import CONFIG, EVALUATION, FOLDS, WEIGHTS
from storage import integrity
from storage.reader import open_cohort
from storage.source import Dose
from trainers import checkpoint

Refused = Callable[..., str]


def made(run: Path, *cohorts: Path) -> Card:
    file = run.parent / f"{len(list(run.parent.iterdir()))}.safetensors"
    make_card(run, file, cohorts)
    return read_card(file)


def test_what_is_told_is_the_runs(
    named: Path, clinic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "card.safetensors"
    main(["card", str(named), str(file), "--cohort", str(clinic), "--licence", "CC0"])
    assert capsys.readouterr().out.split() == [str(file)]
    card = read_card(file)
    assert (card.system, card.units, card.licence) == ("red_cnn", "SUVbw", "CC0")
    assert (card.cases, card.patients) == (2, 1)  # both trained cases are Jane's
    assert card.drfs == (4.0, 20.0)
    assert (card.spacing_mm, card.lowest_mm, card.highest_mm) == ((25, 15, 14), (24, 15, 14), (25, 15, 14))
    assert (card.tracers, card.nuclides) == ({"FDG": 2}, {"F-18": 2})
    assert card.scanners == {"SIEMENS Biograph64_Vision": 2}
    (scored,) = card.scores
    assert (scored.source, scored.images) == ("low_drf4", ("low-dose input", "Gaussian", "synthesized"))
    means = {(one.region, one.image): one.mean for one in scored.scores}
    assert means == {
        (region, image): mean
        for region in ("body", "lesions")
        for image, mean in {"low-dose input": 30.0, "Gaussian": 33.0, "synthesized": 36.0}.items()
    }
    assert "Gaussian" in scored.said[0]
    assert any("+3.00 dB" in sentence for sentence in scored.said)
    assert ELSEWHERE in card.limits
    assert UNSCORED not in card.limits
    assert any(sentence.startswith("RED-CNN: a re-implementation") for sentence in card.limits)
    record, (_, facts) = json.loads((named / CONFIG).read_bytes()), checkpoint.read_weights(file)
    assert json.loads(facts["trained_on"]) == sorted(record["cases"][name] for name in PATIENTS if name != TESTED)
    digests = set(card.lineage.values())
    assert {
        integrity.file_digest(named / WEIGHTS),
        integrity.root_digest(record["cases"], record["subjects"]),
    } <= digests
    tensors, run_facts = checkpoint.read_weights(named / WEIGHTS)
    assert hashlib.sha256(run_facts["config"].encode()).hexdigest() in digests
    assert checkpoint.digest(tensors, {}) == checkpoint.digest(checkpoint.read_weights(file)[0], {})


def test_nothing_names_anybody(named: Path, clinic: Path, tmp_path: Path) -> None:
    """What the record and the weights of the run do tell is not in it: cases, patients, folders; nor is the machine."""
    file = tmp_path / "card.safetensors"
    make_card(named, file, [clinic])
    subjects = [open_cohort(clinic).case(name).subject for name in PATIENTS]
    secret = [*PATIENTS, *subjects, "doe", "clinic-", str(tmp_path), tmp_path.name, named.name, socket.gethostname()]
    user = [f"/{getpass.getuser()}", f"{getpass.getuser()}@"]
    content = file.read_bytes().lower()
    assert not [word for word in (*secret, *user) if word.lower().encode() in content]
    kept = ((named / CONFIG).read_bytes() + (named / WEIGHTS).read_bytes()).lower()
    assert all(word.encode() in kept for word in (*PATIENTS, *subjects))  # else the test above could not fail


def test_a_file_from_elsewhere_is_called_by_its_setting(named: Path) -> None:
    record = json.loads((named / CONFIG).read_bytes())
    record["config"]["recipe"] = {"name": "s3pet", "encoders": "jane-doe.safetensors", "swap_samples": 0}
    told = _nameless(record["config"] | {"cluster": {"device": "cuda", "workers": 7}}, {"files": {}})
    assert told["recipe"] == {"name": "s3pet", "encoders": "encoders.safetensors", "swap_samples": 0}
    assert told["cluster"] == {"device": "cuda"}
    assert "split" not in told
    told = _nameless(record["config"] | {"recipe": {"name": "s3pet", "encoders": "jane"}}, {"files": {"encoders": "0"}})
    assert told["recipe"] == {"name": "s3pet", "encoders": "encoders.safetensors"}


def _rewritten(run: Path, record: dict[str, object]) -> None:
    (run / CONFIG).write_text(json.dumps(record))
    prove(run)


def test_what_nobody_states_is_not_told(named: Path, clinic: Path) -> None:
    card = made(named)
    assert (card.tracers, card.nuclides, card.scanners, card.lowest_mm) == ({}, {}, {}, None)
    assert UNREAD in card.limits
    assert UNREAD not in made(named, clinic).limits
    integrity.write_json(named / EVALUATION / "patients.json", {"subjects": {}, "nuclides": ["F-18"]})
    assert made(named).nuclides == {"F-18": 0}  # known, and of how many cases is not


def test_simulated_doses_and_phantoms_are_limits(tmp_path: Path) -> None:
    provenance = {"kind": "simulated low dose", "truth": {"kind": "phantom"}}
    cohort = fill(tmp_path / "simulated", ("a", "b", "c"), provenance, Dose(4.0, "simulated", False))
    run = red_cnn(tmp_path / "run", 0, cohort=open_cohort(cohort), test=["c"])
    limits = made(run, cohort).limits
    assert SIMULATED.format(count=2, cases=2) in limits
    assert PHANTOM.format(count=2, cases=2) in limits
    assert UNSCORED in limits


def test_scores_of_other_weights_are_left_out(named: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors, facts = checkpoint.read_weights(named / WEIGHTS)
    checkpoint.write_weights(named / WEIGHTS, {name: value + 1 for name, value in tensors.items()}, facts)
    assert made(named).scores == ()
    assert "note: the scores from low_drf4 are of other weights" in capsys.readouterr().err


def test_what_is_no_finished_run_is_refused(named: Path, clinic: Path, tmp_path: Path, refused: Refused) -> None:
    new = tmp_path / "new.safetensors"
    assert refused("card", named, tmp_path / "card.bin").startswith("CFG_OUTPUT card.bin")
    assert refused("card", tmp_path / "absent", new).startswith("CFG_RUN_FOLDER absent: no such folder")
    assert refused("card", named, named / WEIGHTS).startswith("DISK_EXISTS weights.safetensors")
    assert refused("card", clinic, new).startswith("CFG_RUN_FOLDER")
    scores = named / EVALUATION / "low_drf4" / "scores.json"
    whole = scores.read_text()
    scores.write_text(whole.replace("36.0", "46.0"))
    assert refused("card", named, new).startswith("SET_EVALUATION")
    scores.write_text(whole)
    (named / FOLDS).write_text("{}")
    assert refused("card", named, new).startswith("CFG_RUN_FOLDER run-of-doe: the folds of several runs")
    (named / FOLDS).unlink()
    tensors, facts = checkpoint.read_weights(named / WEIGHTS)
    bare = {name: value for name, value in facts.items() if name not in ("trained_on", "cohort")}
    record = json.loads((named / CONFIG).read_bytes())
    (named / CONFIG).write_text(json.dumps({name: value for name, value in record.items() if name != "proof"}))
    checkpoint.write_weights(named / WEIGHTS, tensors, bare)
    assert refused("card", named, new).startswith("CKPT_PROOF")
    (named / WEIGHTS).unlink()
    assert refused("card", named, new).startswith("CKPT_NONE")
    assert not new.exists()


def test_another_cohort_than_the_runs_is_refused(named: Path, clinic: Path, tmp_path: Path, refused: Refused) -> None:
    new, cohort = tmp_path / "new.safetensors", fill(tmp_path / "other", ("roe-john",))
    assert refused("card", named, new, "--cohort", cohort).startswith("SET_CASE_REMOVED case doe-jane-1")
    record = json.loads((named / CONFIG).read_bytes())
    record["cases"]["doe-jane-1"] = "0" * 64
    _rewritten(named, record)
    assert refused("card", named, new, "--cohort", clinic).startswith("SET_CASE_CHANGED case doe-jane-1")
    assert not new.exists()
