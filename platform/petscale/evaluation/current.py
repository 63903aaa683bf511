"""Whether stored scores are of the weights that runs have now: told by digests, never by the times of files."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from petscale.evaluation.scores import Evaluation, read_evaluation
from petscale.folders import WEIGHTS
from petscale.inference import fingerprint_of
from storage import integrity
from storage.errors import InputError
from storage.reader import Cases, open_cohort

OF_WEIGHTS = "weights"  # in the metadata of scores: digests of the weights that made the scored images


def weights_of(runs: Iterable[Path]) -> list[str]:
    """Digests of the weights that runs have now, each once; a run without weights has none."""
    return sorted({integrity.file_digest(run / WEIGHTS) for run in runs if (run / WEIGHTS).is_file()})


def is_current(evaluation: Evaluation, stores: Mapping[Path, Path]) -> bool:
    """Whether scores are of the weights that runs have now.

    Scores of before do not say whose they are.  They are believed where all that the runs have synthesized from the
    same image is of their present weights.

    Args:
        evaluation: the scores.
        stores: run -> its cohort of results from the image that the scored ones start from.
    """
    told = evaluation.metadata.get(OF_WEIGHTS)
    if told is not None:
        return told == weights_of(stores)
    return all(_all_made_by(store, weights_of([run])) for run, store in stores.items())


def read_current(place: Path, where: str, stores: Mapping[Path, Path]) -> Evaluation:
    """Read scores, and refuse those of other weights than the runs have now.

    Args:
        place: folder of the scores.
        where: what messages call it.
        stores: as for ``is_current``.

    Raises:
        InputError: SET_EVALUATION.
    """
    found = "no scores"
    try:
        evaluation = read_evaluation(place)
        if is_current(evaluation, stores):
            return evaluation
        found = "scores of other weights than the run has now"
    except InputError:
        pass
    raise InputError(
        "SET_EVALUATION", where=where, found=found, remedy="run petscale evaluate (or petscale folds) first"
    )


def _all_made_by(store: Path, weights: Sequence[str]) -> bool:
    try:
        made = open_cohort(store)
        return bool(made.cases) and all(made.case(name).fingerprint.split()[-1:] == weights for name in made.cases)
    except InputError:
        return False


def pictured(evaluation: Evaluation, store: Path, cohort: Cases) -> bool:
    """Whether the images that were scored are still there, made of these cases by the weights that the scores name.

    Args:
        evaluation: the scores of one run.
        store: the run's cohort of results.
        cohort: holds the scored cases.
    """
    try:
        made = open_cohort(store)
        found = {name: made.case(name).fingerprint for name in evaluation.cases}
    except InputError:
        return False
    weights = evaluation.metadata.get(OF_WEIGHTS)
    if not isinstance(weights, list) or len(weights) != 1:  # scores of before: ``is_current`` has looked at the weights
        return all(one.startswith(fingerprint_of(cohort.case(name), "")) for name, one in found.items())
    return all(one == fingerprint_of(cohort.case(name), weights[0]) for name, one in found.items())
