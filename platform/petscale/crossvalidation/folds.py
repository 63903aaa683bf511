"""``petscale folds``: a run per fold, each scored on its own test patients; the same command goes on where it was.

All folds are drawn once, when the first command starts, and kept: a cohort that grows in between moves nobody from one
fold into another.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from petscale import config as configs
from petscale.config import RunConfig
from petscale.console import console
from petscale.evaluation.folds import gather
from petscale.evaluation.run import read_evaluations
from petscale.evaluation.scores import Evaluation
from petscale.folders import EVALUATION, FOLD, FOLDS, WEIGHTS
from petscale.splits import Roles, SplitConfig, stated_split
from petscale.training import driver
from petscale.training.cohorts import open_together
from petscale.training.planning import Plan, plan_run
from storage import integrity
from storage.errors import InputError
from storage.reader import Cases
from trainers import checkpoint
from trainers.time_limit import OutOfTimeError, Pieces, TimeLimit

FOLDS_BY_DEFAULT = 5


def train_folds(
    cohort: Path,
    folder: Path,
    config: RunConfig,
    *,
    k: int | None,
    command: str,
    others: Sequence[Path] = (),
    time_limit_s: float | None = None,
) -> dict[str, Evaluation]:
    """Train every fold that is not trained yet, score each on its own test patients, and gather the scores.

    Args:
        folder: of all folds; made, or continued.  Each fold is a run in it, ``fold-0`` and so on.
        config: of every run; its split says all but which fold.
        k: number of folds; None for that of the split, of the cohort's own folds (``split.fold_tag``), or 5.
        command: what the user typed, for the record.
        others: further cohorts, read as one with the first.
        time_limit_s: seconds from now in which to end: the fold that is trained then stops, with a checkpoint, and
            scoring after a case; no other fold begins.  None for no limit.

    Returns:
        Image that the runs start from -> scores of all patients, each by the run that never saw him or her; empty where
        the time was over before.

    Raises:
        InputError: CFG_CONTRADICTION, CFG_RANGE, SET_NO_FACT, SET_TOO_SMALL, CKPT_DRIFT, CFG_RUN_FOLDER and whatever
            ``plan_run`` refuses of any fold, before anything is trained; then those of ``driver.train``.
    """
    limit = None if time_limit_s is None else TimeLimit(time_limit_s)
    opened = open_together([cohort, *others])
    split = config.split if others else stated_split(cohort, config.split)
    splits = _splits(opened, split, k)
    plans = _plan(cohort, folder, [replace(config, split=one) for one in splits], others)
    with integrity.exclusive(folder, purpose="folds"):
        if not (folder / FOLDS).is_file():
            integrity.write_json(folder / FOLDS, {**_record(plans), "command": command})
        found = []
        pieces = Pieces(limit)  # one at least is trained for a step at least, so that every command gets on
        for number, (plan, one) in enumerate(zip(plans, splits, strict=True), 1):
            run = folder / plan.run.name
            there = (run / WEIGHTS).is_file()
            if not there and pieces.made and limit and limit.near:
                return _stopped(f"before fold {number} of {len(plans)}")
            said = "trained already" if there else f"{len(plan.job.roles.train)} cases to train on"
            console.print(f"fold {number} of {len(plans)}: {run.name}, {said}", markup=False, soft_wrap=True)
            if not there:
                pieces.made = True
                told = replace(config, split=one)
                left_s = limit.left_s if limit else None
                roles = plan.job.roles
                driver.train(cohort, run, told, command=command, others=others, roles=roles, time_limit_s=left_s)
                if not (run / WEIGHTS).is_file():
                    return {}  # the training has said so
                if limit and limit.near:
                    return _stopped(f"before the scores of fold {number} of {len(plans)}")
            try:
                found.append(read_evaluations(run, cohort, others=others, pieces=pieces))
            except OutOfTimeError:
                return _stopped(f"in the scores of fold {number} of {len(plans)}")
        return _gathered(folder, found, plans)


def _stopped(where: str) -> dict[str, Evaluation]:
    console.print(f"stopped in time {where}; the same command continues", markup=False, soft_wrap=True)
    return {}


def _gathered(folder: Path, found: Sequence[Mapping[str, Evaluation]], plans: Sequence[Plan]) -> dict[str, Evaluation]:
    subjects = {name: who for plan in plans for name, who in plan.facts["subjects"].items()}
    results = {}
    for source in found[0]:
        place = folder / EVALUATION / source
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        results[source] = gather({plan.run.name: one[source] for plan, one in zip(plans, found, strict=True)}, subjects)
        results[source].write(place)
        patients = len(results[source].cases)
        console.print(
            f"{len(plans)} folds, from {source}: {patients} patients, each scored once, by the run that never saw "
            "him or her; a patient's scans are averaged first",
            markup=False,
            soft_wrap=True,
        )
        console.print(results[source].table())
    return results


def _splits(cohort: Cases, split: SplitConfig, k: int | None) -> list[SplitConfig]:
    """The split of every fold.

    Raises:
        InputError: CFG_CONTRADICTION, CFG_RANGE, SET_NO_FACT.
    """
    for field, given, remedy in (
        ("split.test", bool(split.test), "every patient is tested once; leave it out"),
        ("split.fold", split.fold != 0, "every fold is trained; leave it out, or train one by petscale train"),
    ):
        if given:
            raise InputError("CFG_CONTRADICTION", where=field, found="given for all folds", remedy=remedy)
    tagged = _tagged(cohort, split) if split.fold_tag else ()
    stated = len(tagged) or split.folds
    if k is not None and stated and k != stated:
        raise InputError(
            "CFG_CONTRADICTION",
            where="--k",
            found=f"{k}, where {'the cohort states' if tagged else 'split.folds is'} {stated}",
            remedy="give the number once",
        )
    count = stated or (FOLDS_BY_DEFAULT if k is None else k)
    if count < 2:
        raise InputError("CFG_RANGE", where="--k", found=str(count), remedy="give 2 or more")
    if tagged:
        return [replace(split, fold=fold) for fold in tagged]
    return [replace(split, folds=count, fold=fold) for fold in range(count)]


def _tagged(cohort: Cases, split: SplitConfig) -> tuple[int, ...]:
    """The folds that the cases of a cohort state; a case without one is refused when the fold is planned.

    Raises:
        InputError: SET_NO_FACT.
    """
    used = [cohort.case(name) for name in cohort.cases if name not in split.leave_out]
    stated = {case.tags[split.fold_tag] for case in used if split.fold_tag in case.tags}
    if odd := sorted(value for value in stated if not value.isdecimal()):
        raise InputError(
            "SET_NO_FACT",
            where=f"split.fold_tag={split.fold_tag}",
            found=f"fold '{odd[0]}' is no number",
            remedy="number the folds 0, 1, 2 and so on",
        )
    return tuple(sorted(map(int, stated)))


def _plan(cohort: Path, folder: Path, runs: Sequence[RunConfig], others: Sequence[Path]) -> list[Plan]:
    """Check every fold before one is trained; folds that were drawn before stay as they were.

    Raises:
        InputError: CFG_RUN_FOLDER, CKPT_DRIFT, SET_TOO_SMALL, and those of ``plan_run``.
    """
    path = folder / FOLDS
    names = [FOLD.format(config.split.fold) for config in runs]
    kept: list[Roles | None] = [None] * len(runs)
    record: dict[str, Any] = {}
    if path.is_file():
        record = integrity.read_json(path, "folds", "config", "roles", "cases")
        found = {**configs.from_json(record["config"]).identity(), "folds": record["folds"]}
        checkpoint.check_same_run(found, {**runs[0].identity(), "folds": names})
        kept = [Roles.recorded(record["roles"][name]) for name in names]
    elif folder.exists() and any(one.name != ".lock" for one in folder.iterdir()):
        raise InputError(
            "CFG_RUN_FOLDER",
            where=folder.name,
            found="the folder holds files that are not folds",
            remedy="choose a new or empty folder for --run",
        )
    plans = [
        plan_run(cohort, folder / name, config, roles=roles, others=others)
        for name, config, roles in zip(names, runs, kept, strict=True)
    ]
    tested = Counter(name for plan in plans for name in plan.job.roles.test)
    if not all(plan.job.roles.test for plan in plans):
        people = len(set(plans[0].facts["subjects"].values()))
        raise InputError(
            "SET_TOO_SMALL",
            where="--k",
            found=f"{len(plans)} folds of {people} patients: one would test nobody",
            remedy="make fewer folds, or ingest more patients",
        )
    assert set(tested.values()) == {1}, "folds are apart"
    if record:
        digests = {name: digest for plan in plans for name, digest in plan.facts["cases"].items()}
        checkpoint.check_same_run({"cases": record["cases"]}, {"cases": digests})
    return plans


def _record(plans: Sequence[Plan]) -> dict[str, Any]:
    return {
        "folds": [plan.run.name for plan in plans],
        "config": configs.to_json(plans[0].config),
        "cohort": plans[0].facts["cohort"],
        "roles": {plan.run.name: asdict(plan.job.roles) for plan in plans},
        "cases": {name: digest for plan in plans for name, digest in plan.facts["cases"].items()},
        "subjects": {name: who for plan in plans for name, who in plan.facts["subjects"].items()},
    }
