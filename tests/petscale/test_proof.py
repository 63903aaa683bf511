"""Weights prove that they are whole and the run's own, to every command; those of before are told to be unproven."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import untrained_runs

import petscale
from petscale import proof
from petscale.cli import main
from petscale.evaluation.run import evaluate_run, read_evaluations
from petscale.folders import CONFIG, REPORT, WEIGHTS
from petscale.reporting.run import report_run
from petscale.tuning.trial import validation_scores
from storage.errors import InputError
from storage.reader import open_cohort
from trainers import checkpoint

Refused = Callable[..., str]
TESTED, OTHER = "phantom-000", "phantom-001"


@pytest.fixture
def own(tmp_path: Path, cohort: Path) -> Path:
    """A run of nobody's training that tests one patient of four."""
    return untrained_runs.red_cnn(tmp_path / "own", 1, cohort=open_cohort(cohort), test=[TESTED])


def without_proof(run: Path) -> None:
    """Rewrite weights as versions before the digest wrote them."""
    from safetensors.torch import save_file

    tensors, facts = checkpoint.read_weights(run / WEIGHTS)
    kept = {
        key: value for key, value in facts.items() if key not in (checkpoint.DIGEST, proof.TRAINED_ON, proof.COHORT)
    }
    save_file(tensors, run / WEIGHTS, metadata={"petscale": json.dumps(kept)})


def made_before(run: Path) -> None:
    without_proof(run)
    record = json.loads((run / CONFIG).read_bytes())
    del record[proof.PROOF]
    (run / CONFIG).write_text(json.dumps(record))


def flipped(run: Path) -> None:
    content = bytearray((run / WEIGHTS).read_bytes())
    content[-3] ^= 1
    (run / WEIGHTS).write_bytes(content)


def test_no_flipped_bit_of_weights_is_used(own: Path) -> None:
    rng = random.Random(0)
    whole, known = (own / WEIGHTS).read_bytes(), proof.read_proven(own)
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*rng.sample(range(header), 150), *rng.sample(range(header, len(whole)), 100)]
    passed = 0
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << rng.randrange(8)
        (own / WEIGHTS).write_bytes(content)
        try:
            found = proof.read_proven(own)
        except InputError as error:
            assert error.code.startswith("CKPT_")  # noqa: PT017
            continue
        passed += 1
        assert found.facts == known.facts
        assert found.tensors.keys() == known.tensors.keys()
        assert all(torch.equal(found.tensors[name], value) for name, value in known.tensors.items())
    assert passed < 10  # spaces that fill the header


def test_weights_of_another_split_or_setting_are_refused(own: Path, tmp_path: Path, cohort: Path) -> None:
    opened = open_cohort(cohort)
    for name, code, told in (
        ("leak", "CKPT_LEAK", f"trained on {TESTED}, which this run tests"),
        ("fewer", "CKPT_FOREIGN", "trained_on: other cases than config.json records; cohort: other cases"),
        ("source", "CKPT_FOREIGN", r"feed.source \['low_drf20'\] -> \['low_drf4'\]"),
    ):
        tests = {"leak": [OTHER], "fewer": [TESTED], "source": [TESTED]}[name]
        source = "low_drf20" if name == "source" else "low_drf4"
        other = untrained_runs.red_cnn(tmp_path / name, 2, cohort=opened, test=tests, source=source)
        if name == "fewer":
            record = json.loads((other / CONFIG).read_bytes())
            gone = record["train"].pop()
            del record["cases"][gone]
            (other / CONFIG).write_text(json.dumps(record))
            untrained_runs.prove(other)
        run = shutil.copytree(own, tmp_path / f"own-{name}")
        shutil.copy2(other / WEIGHTS, run / WEIGHTS)
        with pytest.raises(InputError, match=f"{code} weights.safetensors: .*{told}"):
            proof.read_proven(run)


def test_a_record_that_was_changed_does_not_own_its_weights(own: Path) -> None:
    record = json.loads((own / CONFIG).read_bytes())
    record["test"], record["train"] = [*record["test"], record["train"][0]], record["train"][1:]
    (own / CONFIG).write_text(json.dumps(record))
    with pytest.raises(InputError, match=f"CKPT_LEAK weights.safetensors: trained on {OTHER}"):
        proof.read_proven(own)


@pytest.mark.parametrize(("fault", "code"), [(flipped, "CKPT_DAMAGED"), (without_proof, "CKPT_PROOF")])
def test_every_use_of_weights_refuses_them(
    fault: Callable[[Path], None], code: str, own: Path, tmp_path: Path, cohort: Path, scans: Path, refused: Refused
) -> None:
    whole = shutil.copytree(own, tmp_path / "whole")
    evaluations = evaluate_run(whole, cohort)
    fault(own)
    scan, out = scans / "suv.nii.gz", tmp_path / "out.nii"
    for words in (
        ["synthesize", own, scan, "--output", out],
        ["synthesize", whole, scan, "--runs", own, "--output", out],
        ["synthesize", own, cohort, "--case", TESTED],
        ["evaluate", own, cohort],
        ["evaluate", whole, cohort, "--runs", own],
        ["evaluate", own, cohort, "--flips", "x"],
        ["report", own, cohort],
    ):
        line = refused(*words)
        assert line.startswith(code), (words, line)
        assert WEIGHTS in line
    case = petscale.open_cohort(cohort)[TESTED]
    for work in (
        lambda: validation_scores(own, open_cohort(cohort), [OTHER]),
        lambda: petscale.synthesize(own, case),
        lambda: report_run(own, cohort, evaluations),
    ):
        with pytest.raises(InputError, match=code):
            work()
    assert not out.exists()
    assert not (own / REPORT).exists()


def test_a_run_of_before_works_and_is_told_to_be_unproven(
    own: Path, cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_before(own)
    evaluations = evaluate_run(own, cohort)
    assert "note: run own: weights.safetensors: made before weights carried a digest" in capsys.readouterr().err
    main(["report", str(own), str(cohort)])
    assert "made before weights carried a digest" in capsys.readouterr().err
    assert "made before weights carried a digest" in (own / REPORT).read_text()
    assert read_evaluations(own, cohort)["low_drf4"].rows == evaluations["low_drf4"].rows


def test_weights_alone_prove_themselves(own: Path) -> None:
    (own / CONFIG).unlink()
    assert proof.read_proven(own).notes == ()
    flipped(own)
    with pytest.raises(InputError, match="CKPT_DAMAGED"):
        proof.read_proven(own)
