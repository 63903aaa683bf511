"""A trial's scores on validation patients: broken off between two images, they go on and end as without."""

from pathlib import Path

import pytest
from untrained_runs import prove

from petscale.folders import CASES, WEIGHTS
from petscale.tuning.trial import validation_scores
from storage.reader import open_cohort
from trainers import checkpoint
from trainers.metrics.definitions import Score
from trainers.time_limit import OutOfTimeError, Pieces, TimeLimit


def limited(run: Path, cohort: Path, folder: Path) -> list[Score] | None:
    """Scores of two patients where the time is over from the beginning; None where they are not ready."""
    opened = open_cohort(cohort)
    try:
        return validation_scores(run, opened, opened.cases[:2], folder=folder, pieces=Pieces(TimeLimit(0.0)))
    except OutOfTimeError:
        return None


def test_scores_go_on_with_the_patients_that_are_left(run: Path, cohort: Path, tmp_path: Path) -> None:
    opened = open_cohort(cohort)
    straight = validation_scores(run, opened, opened.cases[:2])
    folder = tmp_path / "scores"
    assert limited(run, cohort, folder) is None
    assert [path.name for path in folder.glob(f"*/{CASES}/*")] == [opened.cases[0]]
    found = limited(run, cohort, folder)
    assert found is not None
    assert list(map(repr, found)) == list(map(repr, straight))
    with pytest.raises(OutOfTimeError):
        validation_scores(run, opened, opened.cases[2:3], pieces=Pieces(TimeLimit(0.0), made=True))


def test_scores_of_other_weights_are_not_taken_over(run: Path, cohort: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scores"
    assert limited(run, cohort, folder) is None
    tensors, facts = checkpoint.read_weights(run / WEIGHTS)
    checkpoint.write_weights(run / WEIGHTS, {name: value * 2 for name, value in tensors.items()}, facts)
    prove(run)
    assert limited(run, cohort, folder) is None, "the first patient is scored anew"
    assert limited(run, cohort, folder) is not None
