"""``petscale best``: runs or folds of the same patients compared, patient by patient, and the best of them named.

What is compared: folds by the scores of all patients, each by the run that never saw him or her; single runs by their
validation patients where a cohort is given, else by their test patients, which is then said.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.table import Table

from petscale import config as configs
from petscale.averages import names_of, runs_of
from petscale.console import console
from petscale.evaluation.averages import read_averages
from petscale.evaluation.current import read_current, weights_of
from petscale.evaluation.folds import gather
from petscale.evaluation.run import run_facts
from petscale.evaluation.scores import SYNTHESIZED, Evaluation, plus_minus, region_group
from petscale.folders import EVALUATION, FOLDS, SYNTHESIS
from petscale.tuning.trial import validation_scores
from storage import integrity
from storage.errors import InputError
from storage.joined import open_cohorts
from trainers.metrics.definitions import ScoreDefinition
from trainers.metrics.presets import BODY_PSNR
from trainers.metrics.statistics import FEWEST_FOR_A_TEST, Gain, mean_sd, paired_gain

Kind = Literal["folds", "validation", "test"]
CHANCE = 0.05


@dataclass(frozen=True, eq=False)
class Candidate:
    """What may be the best: a run, the folds of one system, or the mean of several of these.

    Args:
        name: by which it is told from the others.
        folders: of the runs or folds; several for a mean.
        mirrored_along: axes along which scans are mirrored too, for a mean.
        kind: whose scores are compared.
        people: test patient -> the run of the fold that tested him or her, or who is kept for validation.
        psnr_db: patient -> PSNR inside the body, the mean over the images that all candidates start from.
        lesions_db: patient -> PSNR in lesions, the mean over his or her lesions; empty without lesions.
    """

    name: str
    folders: tuple[Path, ...]
    mirrored_along: tuple[str, ...]
    kind: Kind
    people: Mapping[str, str]
    psnr_db: Mapping[str, float]
    lesions_db: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Ranking:
    """Candidates from the best to the worst, by mean PSNR inside the body over the patients that all have.

    Args:
        candidates: the best first.
        margins: how much better the best is than each of the others, in order.
        lesion_margins: the same in lesions; None where there are none.
        statement: whose scores these are, and what follows from that.
    """

    candidates: tuple[Candidate, ...]
    margins: tuple[Gain, ...]
    lesion_margins: tuple[Gain | None, ...]
    statement: str

    @property
    def best(self) -> Candidate:
        """The candidate with the highest mean."""
        return self.candidates[0]

    def verdict(self) -> str:
        """Say which is the best, by how much, and whether that may be chance."""
        gain = self.margins[0]
        better = f"{gain.mean:+.2f} dB over {gain.over}, better in {gain.num_better} of {gain.num_cases} patients"
        if gain.p_value is None:
            chance = f"no test: fewer than {FEWEST_FOR_A_TEST} patients, or no difference"
        else:
            chance = f"p {gain.p_value:.3g}" + (", which may be chance" if gain.p_value >= CHANCE else "")
        return f"best: {self.best.name}, {better} ({chance})"

    def to_json(self) -> dict[str, object]:
        """Return everything as JSON-able values."""
        lines = []
        for one in self.candidates:
            about = {**asdict(one), "folders": [folder.name for folder in one.folders], "people": dict(one.people)}
            lines.append(about)
        content = integrity.json_safe(
            {
                "candidates": lines,
                "margins_db": [asdict(gain) for gain in self.margins],
                "lesion_margins_db": [asdict(gain) if gain else None for gain in self.lesion_margins],
                "statement": self.statement,
                "verdict": self.verdict(),
            }
        )
        assert isinstance(content, dict)
        return content

    def table(self) -> Table:
        """Return a row per candidate: means, and how much better the best is."""
        table = Table(title=f"{len(self.best.psnr_db)} patients: mean ± sd over patients", title_justify="left")
        table.add_column("")
        for name in ("PSNR body", "PSNR lesions", "best over it", "better in", "p"):
            table.add_column(f"{name} \\[dB]" if name.startswith(("PSNR", "best")) else name, justify="right")
        for place, one in enumerate(self.candidates):
            cells = [_mean(one.psnr_db), _mean(one.lesions_db)]
            if place:
                gain = self.margins[place - 1]
                shown = "-" if gain.p_value is None else f"{gain.p_value:.3g}"
                cells += [f"{gain.mean:+.2f}", f"{gain.num_better} of {gain.num_cases}", shown]
            table.add_row(one.name, *cells)
        return table


def rank(folders: Sequence[Path], cohort: Path | None = None, others: Sequence[Path] = ()) -> Ranking:
    """Compare runs, or folds, that were trained on the same patients; scored means of them take part.

    Args:
        folders: all of runs or all of folds; one is enough where a mean over its mirror images has been scored.
        cohort: for single runs, to be compared by their validation patients: the cohort they were trained on.
        others: further cohorts of these runs.

    Raises:
        InputError: SET_RUNS_DIFFER, SET_EVALUATION, SET_NO_VALIDATION, CFG_NO_EFFECT, CFG_RUN_FOLDER, CFG_RANGE.
    """
    places = list({folder.resolve(): folder for folder in folders}.values())
    names = names_of(places)
    entries = [_entry(folder, name, cohort, others) for folder, name in zip(places, names, strict=True)]
    if not entries:
        raise _too_few(0)
    _check_same_patients(entries)
    first = entries[0]
    shared = [source for source in first.scores if all(source in entry.scores for entry in entries)]
    if not shared:
        raise _differ(entries[1].name, f"starts from {', '.join(entries[1].scores)}, {first.name} from others")
    if first.kind != "validation":
        entries += _means(entries)
    candidates = [_candidate(entry, shared) for entry in entries if set(shared) <= set(entry.scores)]
    if len(candidates) < 2:
        raise _too_few(len(candidates))
    patients = set.intersection(*(set(one.psnr_db) for one in candidates))
    if not patients:
        raise _differ(candidates[1].name, f"has no scored patient in common with {candidates[0].name}")
    cut = [replace(one, psnr_db={p: v for p, v in one.psnr_db.items() if p in patients}) for one in candidates]
    ordered = sorted(cut, key=lambda one: -float(np.mean(list(one.psnr_db.values()))))
    best, *rest = ordered
    margins = [paired_gain(best.psnr_db, one.psnr_db, over=one.name) for one in rest]
    lesions = [paired_gain(best.lesions_db, one.lesions_db, over=one.name) for one in rest]
    return Ranking(
        tuple(ordered), tuple(gain for gain in margins if gain), tuple(lesions), _statement(best, len(ordered))
    )


def show(ranking: Ranking) -> None:
    """Print the comparison, what it rests on, and how to use the best."""
    console.print(ranking.table())
    best = ranking.best
    command = ["petscale synthesize", best.folders[0].name, "SCAN --output RESULT"]
    command += ["--runs", *(folder.name for folder in best.folders[1:])] if len(best.folders) > 1 else []
    command += ["--flips", *best.mirrored_along] if best.mirrored_along else []
    for line in (ranking.statement, ranking.verdict(), f"to use it: {' '.join(command)}"):
        console.print(line, markup=False, soft_wrap=True)


@dataclass(frozen=True, eq=False)
class _Entry:
    """A candidate before the images that all start from are known.

    Args:
        cases: case -> digest, of every case of the split.
        weights: of its runs.
        scores: image started from -> scores by patient.
    """

    name: str
    folders: tuple[Path, ...]
    mirrored_along: tuple[str, ...]
    kind: Kind
    people: Mapping[str, str]
    cases: Mapping[str, str]
    weights: frozenset[str]
    scores: Mapping[str, Evaluation]


def _entry(folder: Path, name: str, cohort: Path | None, others: Sequence[Path]) -> _Entry:
    weights = frozenset(weights_of(runs_of([folder])))
    if (folder / FOLDS).is_file():
        if cohort is not None:
            raise InputError(
                "CFG_NO_EFFECT",
                where="--cohort",
                found="given for folds, whose patients are all scored",
                remedy="leave it out",
            )
        record = integrity.read_json(folder / FOLDS, "config", "roles", "cases")
        sources = configs.from_json(record["config"]).feed.source
        scores = {source: _read(folder, name, source) for source in sources}
        people = {case: fold for fold, roles in record["roles"].items() for case in roles["test"]}
        return _Entry(name, (folder,), (), "folds", people, record["cases"], weights, scores)
    config, facts = run_facts(folder)
    subjects: Mapping[str, str] = facts.get("subjects") or {case: case for case in facts["cases"]}
    if cohort is None:
        scores = {one: gather({name: _read(folder, name, one)}, subjects) for one in config.feed.source}
        people = dict.fromkeys(facts["test"], "test")
        return _Entry(name, (folder,), (), "test", people, facts["cases"], weights, scores)
    scores = dict(_validated(folder, name, config.feed.source, facts, subjects, [cohort, *others]))
    people = dict.fromkeys(facts["validation"], "validation")
    return _Entry(name, (folder,), (), "validation", people, facts["cases"], weights, scores)


def _read(folder: Path, name: str, source: str) -> Evaluation:
    """Scores of a run or of folds, of the weights that they have now."""
    stores = {run: run / SYNTHESIS / source for run in runs_of([folder])}
    return read_current(folder / EVALUATION / source, f"{name}/{EVALUATION}/{source}", stores)


def _validated(
    folder: Path,
    name: str,
    sources: Sequence[str],
    facts: Mapping[str, Any],
    subjects: Mapping[str, str],
    cohorts: Sequence[Path],
) -> Iterator[tuple[str, Evaluation]]:
    """Scores of a run's validation patients, made now.

    Raises:
        InputError: SET_NO_VALIDATION.
    """
    cases = tuple(facts.get("validation", ()))
    if not cases:
        raise InputError(
            "SET_NO_VALIDATION",
            where=f"run {name}",
            found="it kept no patients for validation",
            remedy="leave --cohort out to compare by test patients, or compare folds (petscale folds)",
        )
    rows = validation_scores(folder, open_cohorts(cohorts), cases)
    for source in sources:
        mine = [replace(row, case=row.case.split()[0]) for row in rows if row.case.split()[-1] == source]
        yield source, gather({name: Evaluation(tuple(mine), (SYNTHESIZED,), cases, {"source": source})}, subjects)


def _check_same_patients(entries: Sequence[_Entry]) -> None:
    """Refuse to compare what was trained, or is scored, on other patients.

    Raises:
        InputError: SET_RUNS_DIFFER.
    """
    first = entries[0]
    for other in entries[1:]:
        if other.kind != first.kind:
            raise _differ(other.name, f"scored by {other.kind}, {first.name} by {first.kind}")
        if dict(other.cases) != dict(first.cases):
            raise _differ(other.name, f"was trained on other cases, or other voxels, than {first.name}")
        if dict(other.people) != dict(first.people):
            raise _differ(other.name, f"keeps other patients apart than {first.name}")


def _means(entries: Sequence[_Entry]) -> list[_Entry]:
    """Scored means whose runs are all those of some of the entries, with the weights that these have now."""
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], dict[str, Evaluation]] = {}
    held: dict[tuple[str, ...], list[_Entry]] = {}
    for count in range(1, len(entries) + 1):
        for some in combinations(entries, count):
            held[tuple(sorted(frozenset().union(*(one.weights for one in some))))] = list(some)
    for entry in entries:
        for source, about, evaluation in read_averages(entry.folders[0]):
            key = (tuple(sorted(about["weights"])), tuple(about["mirrored_along"]))
            if key[0] in held and not evaluation.metadata.get("external"):
                found.setdefault(key, {})[source] = evaluation
    made = []
    for (weights, axes), scores in found.items():
        chosen = held[weights]
        name = chosen[0].name if len(chosen) == 1 else f"mean of {' and '.join(one.name for one in chosen)}"
        name = f"{name}, mirrored along {' '.join(axes)}" if axes else name
        folders = tuple(folder for one in chosen for folder in one.folders)
        made.append(replace(chosen[0], name=name, folders=folders, mirrored_along=axes, scores=scores))
    return [one for one in made if len(one.folders) > 1 or one.mirrored_along]


def _candidate(entry: _Entry, sources: Sequence[str]) -> Candidate:
    body = [entry.scores[source].values(SYNTHESIZED, BODY_PSNR, "body") for source in sources]
    rules = _lesion_rules(entry.scores[sources[0]])
    lesions = [entry.scores[source].values(SYNTHESIZED, rule, "lesions") for source in sources for rule in rules[:1]]
    return Candidate(
        entry.name, entry.folders, entry.mirrored_along, entry.kind, entry.people, _over(body), _over(lesions)
    )


def _lesion_rules(evaluation: Evaluation) -> list[ScoreDefinition]:
    """PSNR in lesions by the project's own rule, as tables show it."""
    rules = [row.definition for row in evaluation.rows if region_group(row) == "lesions"]
    return list(dict.fromkeys(rule for rule in rules if (rule.metric, rule.preset) == ("PSNR", "native")))


def _over(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over images, for patients that have a finite score from each."""
    patients = [patient for patient in values[0] if all(patient in one for one in values)] if values else []
    means = {patient: float(np.mean([one[patient] for one in values])) for patient in patients}
    return {patient: mean for patient, mean in means.items() if np.isfinite(mean)}


def _mean(values: Mapping[str, float]) -> str:
    return plus_minus(*mean_sd(np.array(list(values.values()))), "PSNR") if values else ""


def _statement(best: Candidate, compared: int) -> str:
    number = len(best.psnr_db)
    patients = f"{'' if best.kind == 'folds' else best.kind + ' '}patient{'' if number == 1 else 's'}"
    if best.kind == "folds":
        return (
            f"compared by cross-validation: {number} {patients}, each scored by a run that never saw him or her; the "
            f"best of {compared} is likely to do a little worse on new patients; p is not corrected for several pairs"
        )
    if best.kind == "validation":
        return (
            f"compared by {number} {patients}; no test patient was looked at, but a system whose training "
            "follows its validation scores is favoured"
        )
    return (
        f"WARNING: compared by the {number} {patients} of a single split. They have now been used to choose: the "
        "best one's score on them is no test score any more. Report it on other patients (petscale evaluate on another "
        "cohort), or compare folds (petscale folds)"
    )


def _too_few(count: int) -> InputError:
    return InputError(
        "CFG_RANGE",
        where="RUN",
        found=f"{count} to compare",
        remedy="name two runs or more, or score a mean first (petscale evaluate --flips x)",
    )


def _differ(where: str, found: str) -> InputError:
    return InputError(
        "SET_RUNS_DIFFER",
        where=where,
        found=found,
        remedy="compare runs, or folds, of the same cohort and split that start from the same images",
    )
