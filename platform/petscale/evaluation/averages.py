"""``petscale evaluate`` of a mean: each case is synthesized by those runs that never saw it, and the mean is scored.

On the cohort of the runs, a run takes part where a case is one of its test cases, so that of all folds of a system one
does.  On another cohort, every run takes part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petscale.averages import AXES, Axis, Ensemble, open_members, runs_of
from petscale.console import console
from petscale.evaluation.current import OF_WEIGHTS
from petscale.evaluation.external import check_unchanged, choose_cases, statement
from petscale.evaluation.folds import gather
from petscale.evaluation.run import baseline_of, candidates_of, external_baseline, run_facts
from petscale.evaluation.scores import Evaluation, read_evaluation
from petscale.evaluation.scoring import presets_of, score_stored_case
from petscale.evaluation.spectra import measure_stored
from petscale.folders import EVALUATION, EXTERNAL
from petscale.plausibility import tell
from storage.errors import InputError
from storage.joined import open_cohorts
from storage.reader import Cases
from trainers.systems import RECIPES


@dataclass(frozen=True)
class _Shares:
    """Who synthesizes what.

    Args:
        cases: case -> the runs whose mean is scored there.
        external: name of the cohort where it is another one, empty for the runs' own.
        statement: of an external validation.
    """

    cases: Mapping[str, tuple[Path, ...]]
    external: str
    statement: str


def evaluate_average(
    folders: Sequence[Path],
    cohort: Path,
    *,
    flips: Sequence[Axis] = (),
    others: Sequence[Path] = (),
    sources: Sequence[str] = (),
    presets: Sequence[str] = (),
) -> dict[str, Evaluation]:
    """Score the mean over runs and mirror images, patient by patient; results stand beside those of the first folder.

    Args:
        folders: of runs or of folds; each takes part in every case that is scored.
        cohort: the one that they were trained on, or another one.
        flips: axes along which every scan is mirrored too.
        others: further cohorts, read as one with the first.
        sources: the images to start from; () for those of the first run.
        presets: conventions of scoring beside the project's own and the first run's.

    Returns:
        Image started from -> scores; a patient's scans are averaged.

    Raises:
        InputError: SET_NO_TEST, SET_RUNS_DIFFER, CKPT_NONE, SET_CASE_CHANGED, and those of ``plausibility.check_scan``.
    """
    runs = runs_of(folders)
    axes = tuple(index for index, axis in enumerate(AXES) if axis in flips)
    opened = open_cohorts([cohort, *others])
    members = {member.folder.resolve(): member for member in open_members(runs)}
    whole = Ensemble(tuple(members.values()), axes)
    shares = _shares(folders, opened)
    home = folders[0] / EXTERNAL / shares.external if shares.external else folders[0]
    config = whole.config
    used = presets_of(RECIPES[config.recipe].PRESET, presets)
    groups: dict[tuple[Path, ...], list[str]] = {}
    for case, own in shares.cases.items():
        groups.setdefault(own, []).append(case)
    if shares.statement:
        console.print(f"{shares.external}: {shares.statement}", markup=False, soft_wrap=True)
    results = {}
    for source in sources or config.feed.source:
        found = {}
        for own, cases in groups.items():
            ensemble = Ensemble(tuple(members[run] for run in own), axes)
            found[" ".join(members[run].name for run in own)] = _scored(
                ensemble, own[0], cases, opened, source, home=home, external=bool(shares.external), presets=used
            )
        subjects = {case: opened.case(case).subject for case in shares.cases}
        joined = gather(found, subjects)
        about = {**joined.metadata, "average": _told(whole), "external": shares.statement or None}
        results[source] = Evaluation(joined.rows, joined.images, joined.cases, about)
        place = home / EVALUATION / whole.folder / source
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        results[source].write(place)
        said = f"{whole.description}, from {source}: {len(joined.cases)} patient(s); a patient's scans are averaged"
        console.print(said, markup=False, soft_wrap=True)
        console.print(results[source].table())
    return results


def _told(ensemble: Ensemble) -> dict[str, object]:
    return {
        "runs": [member.name for member in ensemble.members],
        "weights": [member.weights for member in ensemble.members],
        "mirrored_along": [AXES[axis] for axis in ensemble.flips],
        "description": ensemble.description,
    }


def _scored(
    ensemble: Ensemble,
    first: Path,
    names: Sequence[str],
    cohort: Cases,
    source: str,
    *,
    home: Path,
    external: bool,
    presets: Sequence[str],
) -> Evaluation:
    """The scores of cases that are synthesized by the same runs."""
    target = ensemble.config.feed.target
    cases = [cohort.case(name) for name in names]
    if external:
        baseline = external_baseline(first, home / EVALUATION / ensemble.folder, cases, source, target)
    else:
        baseline = baseline_of(first, cohort, source)
    rows = []
    images: tuple[str, ...] = ()
    _, facts = run_facts(first)
    for case in cases:
        if not external:
            check_unchanged(cohort, case.name, facts)
        differences = ensemble.check(case, source)
        tell(f"case {case.name}", differences)
        made = ensemble.store(home, case, source, differences)
        candidates = candidates_of(case, source, baseline, made)
        images = tuple(candidates)
        rows += score_stored_case(case, target, candidates, presets=presets)
        rows += measure_stored(case, target, candidates)[0]
    made_by = sorted({member.weights for member in ensemble.members})
    about = {"source": source, "baseline": baseline.rule, OF_WEIGHTS: made_by}
    return Evaluation(tuple(rows), images, tuple(names), about)


def _shares(folders: Sequence[Path], cohort: Cases) -> _Shares:
    """Decide which runs synthesize which cases.

    Raises:
        InputError: SET_NO_TEST, SET_RUNS_DIFFER, and those of ``choose_cases``.
    """
    found: list[dict[str, tuple[Path, ...]]] = []
    kinds: dict[str, str] = {}
    said = ""
    for folder in folders:
        own: dict[str, tuple[Path, ...]] = {}
        chosen = [(run, choose_cases(run, run_facts(run)[1], cohort)) for run in map(Path.resolve, runs_of([folder]))]
        for run, one in chosen:
            kinds[one.cohort] = run.name
            for case in one.cases:
                own[case] = (*own.get(case, ()), run)
        if chosen[0][1].cohort:  # a case that a fold has seen is new to none of them
            own = {case: runs for case, runs in own.items() if len(runs) == len(chosen)}
            said = said or statement(cohort, chosen[0][1], tuple(own))
        found.append(own)
    if len(kinds) > 1:
        raise InputError(
            "SET_RUNS_DIFFER",
            where=cohort.name,
            found=f"the cohort of some runs ({kinds['']}), and another one for others",
            remedy="average runs that were trained on the same cohort",
        )
    common: dict[str, tuple[Path, ...]] = {
        case: tuple(dict.fromkeys(run for own in found for run in own[case]))
        for case in found[0]
        if all(case in own for own in found)
    }
    if not common:
        raise InputError(
            "SET_NO_TEST",
            where=cohort.name,
            found="no case that none of the runs has seen",
            remedy="average runs of one split: the same patients kept for testing",
        )
    return _Shares(common, next(iter(kinds)), said)


def read_averages(folder: Path) -> list[tuple[str, dict[str, Any], Evaluation]]:
    """Read the scored means that stand beside a run's or folds' own scores: image started from, facts, scores."""
    found = []
    for path in sorted((folder / EVALUATION).glob("mean-*/*/scores.json")):
        evaluation = read_evaluation(path.parent)
        about = evaluation.metadata.get("average")
        if isinstance(about, dict):
            found.append((path.parent.name, about, evaluation))
    return found
