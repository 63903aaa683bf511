"""What is checked before a run starts: cohort, split, configuration, other files, an earlier run in the folder."""

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from petscale import config as configs
from petscale.config import RunConfig
from petscale.folders import CONFIG, STOPPED
from petscale.proof import FORM, PROOF, TRAINED_BEFORE, TRAINED_ON, carried
from petscale.splits import Roles, SplitConfig, one_patient_by_name, same_scans, split_cases, stated_split
from petscale.training.cohorts import cohort_notes, open_together
from petscale.training.first import INIT, check_init, check_scale
from petscale.training.job import WorkerJob
from storage import integrity, remote
from storage.errors import InputError
from storage.reader import Cases
from trainers import checkpoint, feed
from trainers.engine import plain_engine
from trainers.recipe import Doses, Followed, Recipe, Validated
from trainers.systems import RECIPES

TOLD = ("error.json", STOPPED)  # what a run's last attempt said of itself


@dataclass(frozen=True)
class Plan:
    """A run that passed every check that can be made before a cluster starts.

    Args:
        run: its folder.
        config: its configuration, files from elsewhere by their names.
        num_steps: of all phases together.
        facts: what its record says.
        job: what a worker needs.
        notes: sentences about cases that the run does not use, and about names that look like one patient.
    """

    run: Path
    config: RunConfig
    num_steps: int
    facts: Mapping[str, Any]
    job: WorkerJob
    notes: tuple[str, ...]

    def record(self, command: str) -> None:
        """Write the run's record, and forget what went wrong before."""
        integrity.write_json(self.run / CONFIG, {**self.facts, "command": command})
        for told in TOLD:
            (self.run / told).unlink(missing_ok=True)
        if held := remote.holding(remote.origin(self.run)):  # the workers' nodes bring it to themselves
            remote.publish(self.run, held.url, held, without=TOLD)


def plan_run(
    cohort: Path,
    run: Path,
    config: RunConfig,
    *,
    validation: bool = False,
    roles: Roles | None = None,
    others: Sequence[Path] = (),
    init: Path | None = None,
) -> Plan:
    """Check everything that can be checked before a cluster starts.

    A run that exists goes on with the roles that it recorded, also when its cohort has grown since.

    Args:
        validation: keep validation patients apart even if the recipe's own schedule uses no validation scores.
        roles: of a new run, where they were drawn before, as for the trials of a study; None to draw them.
        others: further cohorts that are trained on too.
        init: exported weights of the same system, or a card, that the networks start from; the same one to continue.

    Raises:
        InputError: any mistake.
    """
    opened = open_together([cohort, *others])
    config = fitted(opened, config)
    cohort, run, others = cohort.absolute(), run.absolute(), [other.absolute() for other in others]
    if not others:
        config = replace(config, split=stated_split(cohort, config.split))
    spec = RECIPES[config.recipe]
    files = {field: path.absolute() for field, path in spec.files(config.model).items()}
    used = replace(config, model=replace(config.model, **{field: str(path) for field, path in files.items()}))
    # Records name files by their last component: folders above may name a patient.  The digest says which it was.
    config = replace(config, model=replace(config.model, **{field: path.name for field, path in files.items()}))
    recipe = _dry(used)
    starts = recipe.phase_starts.values()  # two steps of each: a phase may read pairs and others by turns
    specs = [recipe.batch_spec(step) for start in starts for step in (start, start + 1) if step < recipe.num_steps]
    if (earlier := recorded_roles(run / CONFIG, config)) is not None:
        roles = earlier
    if roles is not None:
        _check_there(opened, roles)
    else:
        roles = split_cases(
            opened,
            config.split,
            unpaired="unpaired" in spec.ROLES,
            validation=validation or "validation" in spec.ROLES or config.loop.validate_every > 0,
        )
    doses = feed.doses_fed(opened, (*roles.train, *roles.validation), config.feed)
    spec.check(config.model, config.feed, doses)
    digests = {name: integrity.manifest(opened.case(name).folder)["root"] for name in roles.everyone}
    for path in files.values():
        _check_origin(path, config, doses, {digests[name] for name in (*roles.validation, *roles.test)})
    starts_from = _starts_from(opened, roles.train, config.feed.source[0])
    before: tuple[str, ...] = ()
    if init is not None:
        kept_apart = {digests[name] for name in (*roles.validation, *roles.test)}
        before = check_init(init, used, str(starts_from["units"]), kept_apart)
        files = {**files, INIT: init.absolute()}
    identity = {
        **config.identity(),
        "files": {field: integrity.file_digest(path) for field, path in files.items()},
        "cases": digests,
    }
    _check_run(run, identity)
    feed.check_cases(opened, roles.streams, config.feed, specs)
    if isinstance(recipe, Validated):
        _check_validation(opened, roles, config, recipe)
    if config.loop.validate_every:
        _check_followed(opened, roles, config, recipe)
    starts_from = _starts_from(opened, roles.train, config.feed.source[0])
    remarks = getattr(spec, "remarks", _no_remarks)(config.model, tuple(starts_from["spacing_mm"]))
    facts = {"config": configs.to_json(config), **asdict(roles), "files": identity["files"], "cases": digests}
    facts |= {"cohort": cohort.name, PROOF: FORM}
    facts["subjects"] = {name: opened.case(name).subject for name in roles.everyone}
    if init is not None:
        facts[TRAINED_BEFORE] = list(before)
    if others:
        facts["cohorts"] = [cohort.name, *(other.name for other in others)]
    lease = remote.holding(remote.origin(run))
    proof = carried(roles, digests, facts["subjects"], before)
    job = WorkerJob(
        cohort=str(cohort),
        run=str(run),
        cohort_url=remote.origin(cohort),
        lease=asdict(lease) if lease else None,
        used=configs.to_json(used),
        recorded=configs.to_json(config),
        roles=roles,
        proof=proof,
        identity=identity,
        starts_from=starts_from,
        drfs=_listed(doses),
        others=tuple(map(str, others)),
        init="" if init is None else str(init.absolute()),
    )
    return Plan(
        run,
        config,
        recipe.num_steps,
        facts,
        job,
        (*_notes(opened, roles, config), *cohort_notes(opened, roles, config), *remarks),
    )


def fitted(cohort: Cases, config: RunConfig) -> RunConfig:
    """Return the configuration with what it leaves to the voxel size, which is the median of the source images'."""
    fit = getattr(RECIPES[config.recipe], "at_voxels", None)
    if fit is None:
        return config
    cases = [cohort.case(name) for name in cohort.cases]
    found = [
        case.image(image).grid.spacing_mm for case in cases for image in config.feed.source if image in case.images
    ]
    if not found:  # what is missing is told when cases are asked for
        return config
    z, y, x = np.median(found, axis=0).tolist()
    return replace(config, model=fit(config.model, (z, y, x)))


def recorded_roles(record: Path, config: RunConfig) -> Roles | None:
    """Return the roles in a run's record if they were drawn by the same rules, None where there are none.

    Args:
        record: a run's ``config.json``.
        config: the run as it is to be now.
    """
    if not record.is_file():
        return None
    facts = configs.read_record(record)
    if not facts.get("cases") or configs.read(record).split != config.split:
        return None  # what differs is told later, with all the rest that differs
    return Roles.recorded(facts)


def _check_there(cohort: Cases, roles: Roles) -> None:
    """Refuse to go on without a case that has a role.

    Raises:
        InputError: SET_CASE_REMOVED.
    """
    if absent := sorted(set(roles.everyone) - set(cohort.cases)):
        raise InputError(
            "SET_CASE_REMOVED",
            where=f"case {', '.join(absent)}",
            found="the run recorded it, and it is not in the cohort any more",
            remedy="restore it, or train anew without it in another --run",
        )


def _notes(cohort: Cases, roles: Roles, config: RunConfig) -> Iterator[str]:
    """Say which cases of the cohort a run does not use, and which of its cases look like one patient by their names."""
    unused = set(cohort.cases) - set(roles.everyone) - set(config.split.leave_out)
    if config.split.test and not config.split.folds:  # other scans of tested patients: nobody's, as documented
        tested = {cohort.case(name).subject for name in roles.test}
        unused = {name for name in unused if cohort.case(name).subject not in tested}
    if config.split.leave_out:
        yield f"left out: {', '.join(config.split.leave_out)}"
    if unused:
        yield f"{len(unused)} case(s) of the cohort are not part of this run, which goes on with those it recorded"
    share = config.split.validation_fraction
    if share != SplitConfig().validation_fraction and not roles.validation:
        yield (
            f"split.validation_fraction={share:g} keeps nobody apart, since {config.recipe} follows no scores of its "
            "own: those patients are trained on; ask for scores with --set loop.validate_every=100"
        )
    role_of = {name: role for role in ("train", "unpaired", "validation", "test") for name in getattr(roles, role)}
    for names in same_scans({name: getattr(cohort.case(name), "voxels", "") for name in roles.everyone}):
        if len({role_of[name] for name in names}) > 1:
            yield (
                f"{', '.join(names)} hold one and the same scan, voxel for voxel, and lie on both sides of the split: "
                "what is trained on is tested on; take all but one out with petscale remove, or use split.leave_out"
            )
    for names in one_patient_by_name({name: cohort.case(name).subject for name in roles.everyone}):
        yield (
            f"{', '.join(names)} look like scans of one patient by their names, but are of different patients by "
            "their IDs: if they are of one, ingest them with that patient's ID, or use split.leave_out"
        )


def _no_remarks(config: Any, spacing_mm: tuple[float, ...]) -> tuple[str, ...]:
    return ()


def _dry(config: RunConfig) -> Recipe:
    """The recipe with networks nobody trains: its phases and needs can be asked for before a cluster exists."""
    with torch.device("meta"):
        return RECIPES[config.recipe].build(
            config.model, make_engine=plain_engine, patches_per_step=config.patches_per_step
        )


def _starts_from(cohort: Cases, cases: Sequence[str], image: str) -> dict[str, Any]:
    """What a scan must be like to be synthesized from: its unit, and the voxel size that most training cases have."""
    images = [cohort.case(name).image(image) for name in cases]
    spacings = np.array([found.grid.spacing_mm for found in images])
    return {"units": images[0].units, "spacing_mm": np.median(spacings, axis=0).round(4).tolist()}


def _listed(doses: Doses) -> list[float | None]:
    """Every dose reduction factor once, None for an unknown one."""
    factors = sorted(frozenset[float]().union(*doses.values()), key=lambda drf: (math.isnan(drf), drf))
    return [None if math.isnan(drf) else drf for drf in factors]


def _check_origin(path: Path, config: RunConfig, doses: Doses, kept_apart: Collection[str]) -> None:
    """Refuse networks of an earlier run that saw other intensities, or this run's validation or test patients.

    Raises:
        InputError: CKPT_SCALE, CKPT_LEAK, CKPT_DOSES.
    """
    facts = checkpoint.facts(path)
    if "config" not in facts:  # not petscale's
        return
    try:
        seen, told = json.loads(facts.get(TRAINED_ON, "[]")), json.loads(facts.get("drfs", "null"))
        origin = configs.from_json(integrity.parse_json(facts["config"]))
        known = set(seen)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "CKPT_CONFIG",
            where=path.name,
            found="networks whose origin cannot be read",
            remedy="restore the file from a copy, or train them anew",
        ) from None
    if known & set(kept_apart):
        raise InputError(
            "CKPT_LEAK",
            where=path.name,
            found="these networks were trained on cases that this run tests or validates on",
            remedy="use the split of the run that made them, or train them anew",
        )
    # Networks of before doses were facts say the images' names alone.
    theirs = origin.feed
    same = theirs.source == config.feed.source if told is None else told == _listed(doses)
    if not same:
        raise InputError(
            "CKPT_DOSES",
            where=path.name,
            found=f"trained on {', '.join(theirs.source)}, this run is fed {', '.join(config.feed.source)}",
            remedy="use networks of the same dose reduction factor, or train them anew",
        )
    check_scale(path.name, origin, config)


def _check_validation(cohort: Cases, roles: Roles, config: RunConfig, recipe: Validated) -> None:
    """Refuse a run whose schedule needs validation scores and would get none.

    Raises:
        InputError: SET_NO_VALIDATION, and those of ``feed.check_cases``.
    """
    if not roles.validation:
        raise InputError(
            "SET_NO_VALIDATION",
            where="split",
            found=f"{config.recipe} follows its scores on patients kept apart for that, and there are none",
            remedy="give it some (--set split.validation_fraction=0.1), or ingest more patients",
        )
    feed.check_cases(cohort, {"paired": roles.validation}, config.feed, [recipe.validation_batch])


def _check_followed(cohort: Cases, roles: Roles, config: RunConfig, recipe: Recipe) -> None:
    """Refuse validation by the loop where the system has its own, or the loop would have nothing to restore.

    Raises:
        InputError: CFG_SCHEDULE, SET_NO_VALIDATION, and those of ``feed.check_cases``.
    """
    phases = {name: recipe.batch_spec(start) for name, start in recipe.phase_starts.items()}
    restoring = [name for name, spec in phases.items() if spec.restores]
    if isinstance(recipe, Validated):
        raise InputError(
            "CFG_SCHEDULE",
            where="loop.validate_every",
            found=f"{config.loop.validate_every}; {config.recipe} follows validation scores on a schedule of its own",
            remedy="leave it out: --set loop.validate_every=0 loop.patience=0",
        )
    if not restoring:
        raise InputError(
            "CFG_SCHEDULE",
            where="loop.validate_every",
            found=f"{config.loop.validate_every}; no phase of this run trains what restores, so that nothing is scored",
            remedy="leave it out: --set loop.validate_every=0 loop.patience=0",
        )
    if config.loop.patience and not isinstance(recipe, Followed) and restoring != [list(phases)[-1]]:
        raise InputError(
            "CFG_SCHEDULE",
            where="loop.patience",
            found=f"{config.loop.patience}; {config.recipe} trains what restores in phases ({', '.join(restoring)}), "
            "some of which leave the image as it is, and the training would end in one of them",
            remedy="let all phases end: --set loop.patience=0",
        )
    if not roles.validation:
        raise InputError(
            "SET_NO_VALIDATION",
            where="split",
            found="loop.validate_every asks for scores of patients kept apart for that, and there are none",
            remedy="give some (--set split.validation_fraction=0.1), ingest more patients, or do without "
            "(--set loop.validate_every=0 loop.patience=0)",
        )
    # Tiles are cut to the volume, so that no patch is too large.
    spec = replace(phases[restoring[-1]], images="paired", beyond=True, rois=())
    feed.check_cases(cohort, {"paired": roles.validation}, config.feed, [spec])


def _check_run(run: Path, identity: Mapping[str, Any]) -> None:
    """Refuse to continue a run under other settings or on other voxels, before anything starts."""
    if (run / CONFIG).is_file():
        found = configs.read(run / CONFIG).identity()
        facts = configs.read_record(run / CONFIG)
        held = {"files": facts.get("files", {}), "cases": facts.get("cases", {})}
        checkpoint.check_same_run({**found, **held}, identity)
    elif run.is_file() or (run.exists() and any(path.name != ".lock" for path in run.iterdir())):
        raise InputError(
            "CFG_RUN_FOLDER",
            where=run.name,
            found="a file, and no folder" if run.is_file() else "the folder holds files that are not a run",
            remedy="choose a new or empty folder for --run",
        )
