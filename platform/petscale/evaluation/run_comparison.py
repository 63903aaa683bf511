"""``petscale compare`` of runs: evaluated runs and baselines beside each other, on the cases that all were tested on.

A case is known by the digest of its voxels, whatever it is called.  A case that one run tests and another has seen in
training is left out, and told: on the others the comparison is as fair as it would be without it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np

from petscale.averages import names_of, runs_of
from petscale.config import RunConfig
from petscale.evaluation.current import read_current, weights_of
from petscale.evaluation.external import DIGESTS, SEEN, patients_of
from petscale.evaluation.folds import gather
from petscale.evaluation.paired import BODY, Compared, compare_images, on_shared_patients
from petscale.evaluation.run import run_facts
from petscale.evaluation.scores import REFERENCE, Evaluation
from petscale.folders import CONFIG, EVALUATION, EXTERNAL, FOLDS, SYNTHESIS
from storage import integrity
from storage.errors import InputError
from storage.reader import open_cohort
from trainers.metrics.definitions import Score
from trainers.metrics.presets import BODY_PSNR

NOT_SHARED = "SET_NOT_SHARED"
# What a role is called of a case that a run has seen; weights and the epoch that is kept may follow it.
ROLES = {"train": "was trained on", "unpaired": "was trained on", "validation": "was validated on"}
ALIKE_DB = 4  # decimals of PSNR to which a baseline of two runs is the same image


@dataclass(frozen=True, eq=False)
class RunComparison:
    """Runs and baselines beside each other, from one source image.

    Args:
        source: the image that the runs start from.
        runs: their names; each is a candidate, and so is every baseline.
        best_baseline: the baseline of the highest mean PSNR inside the body, over the same patients.
        compared: means of all candidates; tests of every run against the best baseline, and of every pair of runs.
        left_out: case that not all runs tested, or that one has seen -> code and reason.
        doubts: what a reader must know of the comparison, a sentence each.
    """

    source: str
    runs: tuple[str, ...]
    best_baseline: str
    compared: Compared
    left_out: Mapping[str, str]
    doubts: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Member:
    """A run, or the run of one fold.

    Args:
        scores: image started from -> scores of the cases that it tested.
        digests: case of these scores -> digest of its voxels.
        people: case of these scores -> its patient, as a keyed hash; a case may lack one.
        trained: digests of the cases trained on.
        seen: digest of a case that training has seen -> in what role.
        seen_people: patient whom training has seen -> in what role.
        weights: digest of its weights.
        compared: whether the tested patients could be compared with those of the training.
    """

    name: str
    config: RunConfig
    scores: Mapping[str, Evaluation]
    digests: Mapping[str, str]
    people: Mapping[str, str]
    trained: frozenset[str]
    seen: Mapping[str, str]
    seen_people: Mapping[str, str]
    weights: str
    compared: bool


@dataclass(frozen=True, eq=False)
class _Entry:
    """What was named: a run, or all folds of one system."""

    name: str
    members: tuple[_Member, ...]

    def tested(self, source: str) -> dict[str, tuple[_Member, str]]:
        """Digest of a tested case -> the run that tested it, and its name there."""
        return {
            one.digests[case]: (one, case)
            for one in self.members
            for case in one.scores[source].cases
            if case in one.digests
        }

    def sources(self) -> list[str]:
        """The images that all of its runs start from."""
        return [one for one in self.members[0].scores if all(one in member.scores for member in self.members)]


def compare_runs(folders: Sequence[Path], external: str = "") -> dict[str, RunComparison]:
    """Compare evaluated runs, or folds, and the baselines, over the patients that all of them were tested on.

    Args:
        folders: of runs or of folds, two or more.
        external: name of a cohort on which the runs were scored as on another one, for the scores of that; empty for
            the runs' own test cases.  A run without such scores whose own cohort has this name takes part with its
            test cases.

    Returns:
        Image that all runs start from -> comparison.

    Raises:
        InputError: CFG_RANGE, CFG_NAME, CFG_RUN_FOLDER, CFG_NO_EFFECT; SET_EVALUATION for a run without scores of its
            present weights; SET_RUNS_DIFFER for runs that start from, or were trained to give, other images;
            SET_NOT_SHARED where no case was tested by all.
    """
    places = list({folder.resolve(): folder for folder in folders}.values())
    names = names_of(places)
    if len(places) < 2:
        raise InputError("CFG_RANGE", where="RUN", found=f"{len(places)} to compare", remedy="name two runs or more")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise _bad_name(twice[0], "the name of two folders")
    entries = [_entry(place, name, external) for place, name in zip(places, names, strict=True)]
    first = entries[0]
    for other in entries[1:]:
        ours, theirs = (entry.members[0].config.feed.target for entry in (first, other))
        if ours != theirs:
            raise _differ(other.name, f"was trained to give image '{theirs}', {first.name} '{ours}'")
    shared = [source for source in first.sources() if all(source in other.sources() for other in entries)]
    if not shared:
        starts = "; ".join(f"{entry.name} from {', '.join(entry.sources())}" for entry in entries)
        raise _differ(entries[1].name, f"no image that all start from: {starts}")
    return {source: _compare(entries, source, external) for source in shared}


def _entry(folder: Path, name: str, external: str) -> _Entry:
    if external and (folder / FOLDS).is_file():
        raise InputError(
            "CFG_NO_EFFECT",
            where="--external",
            found=f"given for folds ({name}), each of which has scored the whole cohort",
            remedy="name runs, such as one fold's",
        )
    runs = {name if run == folder else f"{name}/{run.name}": run for run in runs_of([folder])}
    for called, run in runs.items():
        if not (run / CONFIG).is_file():
            raise InputError(
                "CFG_RUN_FOLDER",
                where=called,
                found="no run and no folds" if run == folder else "a fold that is not trained yet",
                remedy="name folders of trained and scored runs, or let petscale folds end",
            )
    return _Entry(name, tuple(_member(run, called, external) for called, run in runs.items()))


def _member(run: Path, name: str, external: str) -> _Member:
    config, facts = run_facts(run)
    own: Mapping[str, str] = facts["cases"]
    known = patients_of(run, facts)
    home, digests, people, sources = run, own, known, list(config.feed.source)
    elsewhere = run / EXTERNAL / external
    if external and (elsewhere.is_dir() or external not in (facts.get("cohort"), *facts.get("cohorts", ()))):
        home = elsewhere
        sources = [path.parent.name for path in sorted((home / EVALUATION).glob("*/scores.json"))]
        if not sources or not (home / DIGESTS).is_file():
            raise _unscored(f"{name}/{EXTERNAL}/{external}")
        digests = integrity.read_json(home / DIGESTS, "cases")["cases"]
        people = {case: who for source in sources for case, who in _people_of(home / SYNTHESIS / source).items()}
    scores = {}
    for source in sources:
        place = home / EVALUATION / source
        where = f"{name}/{place.relative_to(run)}"
        scores[source] = read_current(place, where, {run: home / SYNTHESIS / source})
    seen = {case: told for role, told in ROLES.items() for case in facts.get(role, ())}
    about: list[Any] = [one.metadata.get("external") for one in scores.values()]
    return _Member(
        name,
        config,
        scores,
        digests,
        people,
        trained=frozenset(own[case] for role in ("train", "unpaired") for case in facts.get(role, ())),
        seen={own[case]: told for case, told in seen.items()},
        seen_people={known[case]: told for case, told in seen.items() if case in known},
        weights="".join(weights_of([run])),
        compared=bool(known) and all(one["patients_compared"] for one in about if isinstance(one, dict)),
    )


def _people_of(store: Path) -> dict[str, str]:
    """Case -> patient of synthesized images; nothing where these are gone."""
    try:
        made = open_cohort(store)
        return {name: made.case(name).subject for name in made.cases}
    except InputError:
        return {}


def _compare(entries: Sequence[_Entry], source: str, external: str) -> RunComparison:
    tested = [entry.tested(source) for entry in entries]
    names: dict[str, str] = {}  # digest -> what the case is called: as in the first run that tested it
    people: dict[str, str] = {}
    for digest, (member, case) in chain.from_iterable(held.items() for held in tested):
        names.setdefault(digest, case)
        if case in member.people:
            people.setdefault(digest, member.people[case])
    reasons = {
        digest: list(_reasons(entries, tested, digest, name, people.get(digest, ""))) for digest, name in names.items()
    }
    left_out = {names[digest]: "; ".join(said) for digest, said in reasons.items() if said}
    shared = {digest: name for digest, name in names.items() if not reasons[digest]}
    if not shared:
        raise _not_shared(entries, left_out, external)
    patients = {name: people.get(digest, name) for digest, name in shared.items()}
    each = {entry.name: _on(entry, source, shared, patients) for entry in entries}
    whole, baselines = _joined(each)
    scores = on_shared_patients(whole)
    unscored = [patient for patient in whole.cases if patient not in scores.cases]
    left_out |= dict.fromkeys(unscored, f"{NOT_SHARED}: an image of it has no PSNR inside the body by the present rule")
    if not scores.cases:
        raise _not_shared(entries, left_out, external)
    means = {name: np.mean(list(scores.values(name, BODY_PSNR, BODY).values())) for name in baselines}
    best = max(means, key=lambda name: float(means[name]))
    runs = tuple(each)
    pairs = [*((run, best) for run in runs), *combinations(runs, 2)]
    doubts = tuple(_doubts(entries, [digest for digest in shared if digest not in people]))
    return RunComparison(source, runs, best, compare_images(scores, pairs), left_out, doubts)


def _reasons(
    entries: Sequence[_Entry], tested: Sequence[Mapping[str, tuple[_Member, str]]], digest: str, name: str, person: str
) -> Iterator[str]:
    """Why a case does not count: who has not tested it, and who has seen it or its patient in training."""
    for entry, held in zip(entries, tested, strict=True):
        if digest in held:
            member, _ = held[digest]
            if role := member.seen.get(digest) or member.seen_people.get(person):
                yield f"{SEEN}: {member.name} {role} its patient"
            continue
        by_case = next((one.seen[digest] for one in entry.members if digest in one.seen), "")
        by_person = next((one.seen_people[person] for one in entry.members if person in one.seen_people), "")
        if by_case:
            yield f"{SEEN}: {entry.name} {by_case} this case"
        elif by_person:
            yield f"{SEEN}: {entry.name} {by_person} its patient"
        elif any(one.digests.get(name, digest) != digest for one in entry.members):
            yield f"{NOT_SHARED}: {entry.name} has other voxels under this name"
        else:
            yield f"{NOT_SHARED}: {entry.name} did not test it"


def _on(entry: _Entry, source: str, shared: Mapping[str, str], patients: Mapping[str, str]) -> Evaluation:
    """The scores of one entry on the shared cases, under their common names, a row of every score per patient."""
    order = {name: place for place, name in enumerate(shared.values())}
    parts = {}
    for one in entry.members:
        evaluation = one.scores[source]
        called = {case: shared[one.digests[case]] for case in evaluation.cases if one.digests.get(case) in shared}
        if called:
            rows = tuple(replace(row, case=called[row.case]) for row in evaluation.rows if row.case in called)
            parts[one.name] = replace(evaluation, rows=rows, cases=tuple(called.values()))
    whole = gather(parts, patients)
    about: Any = whole.metadata["patients"]
    label = {old: "+".join(sorted(scans, key=lambda scan: order[scan])) for old, scans in about.items()}
    rows = tuple(replace(row, case=label[row.case]) for row in whole.rows)
    return replace(whole, rows=rows, cases=tuple(sorted(label.values(), key=lambda name: order[name.split("+")[0]])))


def _joined(each: Mapping[str, Evaluation]) -> tuple[Evaluation, list[str]]:
    """Join the scores of all runs, each run an image of its name; returns the names of the baselines too.

    A baseline that was fitted on the same training cases is one image; of others, each says whose it is.
    """
    versions: dict[str, dict[tuple[tuple[str, float], ...], list[str]]] = {}
    for run, evaluation in each.items():
        for image in evaluation.images[:-1]:
            values = evaluation.values(image, BODY_PSNR, BODY)
            key = tuple(sorted((case, round(value, ALIKE_DB)) for case, value in values.items()))
            versions.setdefault(image, {}).setdefault(key, []).append(run)
    called = {
        (owners[0], image): image if len(found) == 1 else f"{image} ({', '.join(owners)})"
        for image, found in versions.items()
        for owners in found.values()
    }
    baselines = list(dict.fromkeys(called.values()))
    rows: list[Score] = []
    for run, evaluation in each.items():
        if run in (*baselines, REFERENCE):
            raise _bad_name(run, "what scores call another image")
        for row in evaluation.rows:
            name = run if row.image == evaluation.synthesized else called.get((run, row.image))
            if name is not None:
                rows.append(replace(row, image=name))
    first = next(iter(each.values()))
    about = {"runs": list(each), "patients": first.metadata["patients"]}
    return Evaluation(tuple(rows), (*baselines, *each), first.cases, about), baselines


def _doubts(entries: Sequence[_Entry], unknown: Sequence[str]) -> Iterator[str]:
    """Say what the scores alone do not show."""
    yield (
        "these are test patients: whoever chooses a run by this table has used them, and must report its score on "
        "other patients"
    )
    named: dict[frozenset[str], list[str]] = {}
    for entry in entries:
        named.setdefault(frozenset(one.weights for one in entry.members), []).append(entry.name)
    for same in named.values():
        if len(same) > 1:
            yield f"{', '.join(same)} have the same weights: no difference between them means anything"
    if len({frozenset(one.trained for one in entry.members) for entry in entries}) > 1:
        counts = {entry.name: len(frozenset[str]().union(*(one.trained for one in entry.members))) for entry in entries}
        said = ", ".join(f"{name} on {count}" for name, count in counts.items())
        yield f"the runs were trained on different cases ({said}): a difference may come from that, not from systems"
    if unknown:
        yield (
            f"who the patients of {len(unknown)} of the cases are is not known: each of these counts as a patient of "
            "its own"
        )
    if unsure := [entry.name for entry in entries if not all(one.compared for one in entry.members)]:
        yield (
            f"whether a tested patient was trained on could be compared by voxels alone for {', '.join(unsure)} "
            "(petscale evaluate on the run's own cohort notes who its patients are)"
        )


def _not_shared(entries: Sequence[_Entry], left_out: Mapping[str, str], external: str) -> InputError:
    case, why = next(iter(left_out.items()), ("", "nothing was tested"))
    scored = "" if external else ", then name that cohort by --external"
    return InputError(
        NOT_SHARED,
        where=", ".join(entry.name for entry in entries),
        found=f"no case was tested by all: {case}: {why}" if case else why,
        remedy=f"evaluate all of them on one cohort that is new to them{scored}",
    )


def _unscored(where: str) -> InputError:
    return InputError(
        "SET_EVALUATION", where=where, found="no scores", remedy="run petscale evaluate on that cohort first"
    )


def _differ(where: str, found: str) -> InputError:
    return InputError(
        "SET_RUNS_DIFFER", where=where, found=found, remedy="compare runs that make the same image from the same scans"
    )


def _bad_name(name: str, found: str) -> InputError:
    return InputError("CFG_NAME", where=name, found=found, remedy="rename the folder")
