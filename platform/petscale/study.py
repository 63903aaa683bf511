"""A sweep's study: what it optimises, where its trials are kept, and how it goes on after anything that kills it.

What it knows: Optuna's storages, samplers and trials, and scores by name.  What it refuses to know: how a trial is run
(``petscale.tuning``), what a space suggests (``tune_spaces``) and how a study looks (``petscale.report.sweep``).

A journal is written by one process at a time: hold ``hold(folder)`` while a study is open for asking and telling.
Trials carry what a restart needs in their attributes: ``continues`` (number of the trial whose run folder they go on
in), ``restarts`` (number of the trial they take up), ``failures`` (of the chain so far), ``rungs`` (what the chain
reported) and ``note``.
"""

import json
import math
import secrets
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from storage.errors import InputError
from storage.integrity import disk_errors, exclusive, write_bytes
from trainers.metrics.clinical import BIASES, NOISE, QUANTITIES, VOLUME
from trainers.metrics.definitions import Score, ScoreDefinition
from trainers.metrics.presets import PRESETS
from trainers.metrics.slices import CHECKERBOARDS, SCALE_WEIGHTS, ms_ssim_definition
from trainers.metrics.udpet import MAPE, ORGAN_MAPE, SCORE

STUDY_NAME = "petscale"  # always set: Optuna would merge every study of a store under a name of its own
JOURNAL, DATABASE, TOKEN = "study.journal", "study.db", "study.token"
RETRIES = 1  # of a trial that failed by itself; an interrupted one goes on as often as it is interrupted
GENERATION = 10  # of NSGA-II: Optuna's 50 would be a random search for as many trials as a sweep can afford


# ---- objectives -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objective:
    """What a trial is judged by: one stored score, as a mean over validation cases.

    Args:
        name: as the user typed it.
        metric: ``ScoreDefinition.metric`` of the score.
        region: ``whole``, ``body``, ``lesions``, ``organs`` (each averaged within a case first) or an organ's name.
        preset: ``ScoreDefinition.preset`` of the score.
        direction: which way is better.
        absolute: whether a value's magnitude counts, as for biases: +20 % and -20 % do not make a good image.
    """

    name: str
    metric: str
    region: str
    preset: str
    direction: Literal["maximize", "minimize"]
    absolute: bool

    @property
    def key(self) -> str:
        """The explicit form, the same for every way of typing it."""
        return f"{self.metric}:{self.region}:{self.preset}"


# The segmenter's own text is known when it has judged; beside every organ it scores their union and their mean.
_UNET_SCORE, _UNION, _MEAN = (
    ScoreDefinition("Unet-score", "ROI", "", "1", preset="sgsgan"),
    "all organs",
    "mean over organs",
)
_STORED = (
    *(rule for rules in PRESETS.values() for rule in rules),
    *BIASES.values(),
    NOISE,
    ORGAN_MAPE,
    MAPE,
    SCORE,
    ms_ssim_definition(len(SCALE_WEIGHTS)),
    *CHECKERBOARDS.values(),
    _UNET_SCORE,
)
_AIMLESS = [rule.metric for rule in (*QUANTITIES.values(), VOLUME)]  # neither more nor less is better
_REGIONS = ("whole", "body", "lesions", "organs")


def _objective(name: str, rule: ScoreDefinition, region: str) -> Objective:
    direction: Literal["maximize", "minimize"] = "maximize" if rule.higher_is_better else "minimize"
    return Objective(name, rule.metric, region, rule.preset, direction, rule in BIASES.values())


_PSNR, _SSIM, _MAE, _NRMSE = PRESETS["native"][:4]
OBJECTIVES: dict[str, Objective] = {
    name: _objective(name, rule, region)
    for name, rule, region in (
        *((f"{r.metric.lower()}_{region}", r, region) for region in _REGIONS for r in (_PSNR, _SSIM, _MAE, _NRMSE)),
        *((f"{quantity.lower()}_bias_lesions", rule, "lesions") for quantity, rule in BIASES.items()),
        *((f"{quantity.lower()}_bias_organs", BIASES[quantity], "organs") for quantity in ("SUVmean", "SUVmax")),
        ("noise_organs", NOISE, "organs"),
        ("noise_liver", NOISE, "liver"),
        ("unet_score", _UNET_SCORE, _MEAN),
    )
}


def objective(name: str) -> Objective:
    """Return an objective by its handy name or as ``metric:region[:preset]``, in any case, with ``_`` for a space.

    The preset is the first that has the metric there, ``native`` before any other.  Where a preset scores a metric in
    several ways, the first of ``PRESETS`` counts.

    Raises:
        InputError: ``TUNE_OBJECTIVE`` for an unknown name, metric or preset, a region that the preset does not score,
            and quantities that are no better for being larger or smaller.
    """
    typed = name.strip()
    if ":" not in typed:
        if found := OBJECTIVES.get(typed.lower().replace("-", "_")):
            return found
        raise _unknown(typed, "no such objective", list(OBJECTIVES))
    parts = [part.strip() for part in typed.split(":")]
    if len(parts) > 3 or not all(parts):
        raise _unknown(typed, "not of the form metric:region[:preset]", [])
    metric, region, preset = _plain(parts[0]), parts[1].lower(), parts[2].lower() if len(parts) == 3 else ""
    if metric in map(_plain, _AIMLESS):
        raise _unknown(typed, "neither a larger nor a smaller value is better", [f"{parts[0]} bias:{region}"])
    of_metric = [rule for rule in _STORED if _plain(rule.metric) == metric]
    if not of_metric:
        near = get_close_matches(metric, list(map(_plain, (rule.metric for rule in _STORED))), n=1, cutoff=0)
        best = next(rule.metric for rule in _STORED if _plain(rule.metric) == near[0])
        raise _unknown(typed, "no such metric is stored", [f"{best}:{region}"])
    known = (*_REGIONS, _UNION, _MEAN)
    if region not in known and (near := get_close_matches(region, _REGIONS, n=1, cutoff=0.7)):
        raise _unknown(typed, f"no region {region}", [f"{parts[0]}:{near[0]}"])
    place = region if region in ("whole", "body") else "ROI"
    fitting = [rule for rule in of_metric if rule.region == place and preset in ("", rule.preset)]
    if not fitting:
        forms = [f"{r.metric}:{'lesions' if r.region == 'ROI' else r.region}:{r.preset}" for r in of_metric]
        raise _unknown(typed, "no preset scores it so", forms)
    return _objective(typed, fitting[0], region)


def value_of(objective: Objective, rows: Sequence[Score], image: str) -> float:
    """Return a trial's value: the mean over cases of a case's value, which is the mean over its lesions or organs.

    Of an ``absolute`` objective every lesion's or organ's magnitude enters, so that opposite biases do not cancel.
    A score that is not defined for any image of a case (a lesion whose full dose is not positive) is left out; one
    that is undefined for ``image`` alone makes the result NaN, so that a failed image cannot look better by the cases
    it leaves out.

    Args:
        objective: what is asked for.
        rows: scores of the validation cases, of every image.
        image: the name of the image that is judged.

    Raises:
        InputError: ``TUNE_NO_SCORE`` if no row has the score, telling what is missing.
    """
    rows = [
        row for row in rows if (row.definition.metric, row.definition.preset) == (objective.metric, objective.preset)
    ]
    inside = [row for row in rows if _inside(objective.region, row)]
    first = next(
        (rule for rule in PRESETS.get(objective.preset, ()) if any(r.definition == rule for r in inside)), None
    )
    if first is not None:
        inside = [row for row in inside if row.definition == first]
    others = [row for row in inside if row.image != image]
    undefined = {(row.case, row.region) for row in others}
    undefined -= {(row.case, row.region) for row in others if not math.isnan(row.value)}
    cases: dict[str, list[float]] = {}
    for row in inside:
        if row.image == image and not (math.isnan(row.value) and (row.case, row.region) in undefined):
            cases.setdefault(row.case, []).append(abs(row.value) if objective.absolute else row.value)
    if not cases:
        raise _no_score(objective, rows, inside, image)
    return float(np.mean([np.mean(values) for values in cases.values()]))


def _plain(text: str) -> str:
    return text.lower().replace("_", " ").replace("-", " ")


def _inside(region: str, row: Score) -> bool:
    if region == "organs":
        return row.kind == "organ" and row.region not in (_UNION, _MEAN)
    return region in (row.kind, f"{row.kind}s", row.region.lower() if row.kind == "organ" else "")


def _unknown(typed: str, found: str, candidates: Sequence[str]) -> InputError:
    by_name = {candidate.lower(): candidate for candidate in candidates}
    near = get_close_matches(typed.lower(), by_name, n=1, cutoff=0) if typed else []
    forms = "metric:region[:preset]"
    return InputError(
        "TUNE_OBJECTIVE",
        where=f"objective {typed}",
        found=found,
        remedy=f"did you mean {by_name[near[0]]}? Any {forms} will do" if near else f"give {forms} or a handy name",
    )


def _no_score(objective: Objective, rows: Sequence[Score], inside: Sequence[Score], image: str) -> InputError:
    region = objective.region
    if any(row.image == image for row in inside):
        found, remedy = "not defined in any validation case", "choose another objective"
    elif inside:
        found, remedy = f"no score of the image {image}", "score that image"
    elif region in ("whole", "body"):
        found, remedy = f"no score by preset {objective.preset}", f"score with the preset {objective.preset}"
    elif objective.metric == "Unet-score":
        found, remedy = "no organ segmenter has scored there", "train one, or choose another objective"
    elif region in ("lesions", "organs"):
        found = f"no {region} are labelled in the validation cases"
        if objective.preset not in ("native", "clinical") and not rows:
            found += f", or nothing was scored by preset {objective.preset}"
        remedy = f"ingest labels that name {region}, or choose an objective of the body"
    else:
        known = ", ".join(dict.fromkeys(row.region for row in rows if row.kind == "organ"))
        found = f"no organ of that name is labelled in the validation cases (labelled: {known or 'none'})"
        remedy = "choose one that is labelled, or an objective of the body"
    return InputError("TUNE_NO_SCORE", where=f"objective {objective.name}", found=found, remedy=remedy)


# ---- samplers -------------------------------------------------------------------------------------------------------


def _tpe(seed: int) -> BaseSampler:
    with warnings.catch_warnings():  # conditional spaces need groups, which Optuna calls experimental
        warnings.filterwarnings("ignore", message=".*``group``", category=ExperimentalWarning)
        return TPESampler(multivariate=True, group=True, seed=seed)


def _random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


def _nsga2(seed: int) -> BaseSampler:
    return NSGAIISampler(population_size=GENERATION, seed=seed)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {"tpe": _tpe, "random": _random, "nsga2": _nsga2}


class _Keyed(BaseSampler):
    """A sampler whose draws depend on the seed, the trial's number and the trials before it, on nothing else.

    A sampler that was merely seeded would begin its draws anew in every session and propose the first ones again.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._sampler = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        key = np.random.SeedSequence([self._seed, trial.number]).generate_state(1)
        self._sampler = self._make(int(key[0]))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._sampler.after_trial(study, trial, state, values)


def _sampler(name: str, seed: int) -> BaseSampler:
    if name not in SAMPLERS:
        near = get_close_matches(name.lower(), SAMPLERS, n=1, cutoff=0)[0]
        raise InputError(
            "TUNE_SAMPLER",
            where=f"sampler {name}",
            found="no such sampler",
            remedy=f"did you mean {near}? One of {', '.join(SAMPLERS)}",
        )
    return _Keyed(SAMPLERS[name], seed)


# ---- opening --------------------------------------------------------------------------------------------------------


def hold(folder: Path) -> AbstractContextManager[None]:
    """Keep a second driver out of ``folder`` (made if need be) while this process lives.

    Raises:
        InputError: ``STORE_BUSY`` while another process holds it.
    """
    return exclusive(folder, purpose="this sweep")


def open_study(
    folder: Path,
    *,
    storage: str = "",
    identity: Mapping[str, Any],
    objectives: Sequence[Objective],
    sampler: str,
    seed: int,
) -> optuna.Study:
    """Create the study of ``folder``, or open it again after repairing its journal; call it inside ``hold(folder)``.

    Args:
        folder: the study's own.
        storage: empty or ``journal`` for ``study.journal`` in the folder, ``sqlite`` for ``study.db`` there, or the
            URL of a database; Optuna's study is always called ``petscale``, so a database holds one.
        identity: JSON-able facts that make trials comparable (recipe, space, cohort, configuration, budget); kept with
            the study and compared whenever it is opened.  The objectives are added.  Sampler and seed may change.
        objectives: one or two.
        sampler: a key of ``SAMPLERS``.
        seed: every draw is keyed by it and the trial's number.

    Raises:
        InputError: ``TUNE_OBJECTIVE`` for none, more than two or the same twice; ``TUNE_SAMPLER``; ``TUNE_STORAGE`` if
            the database cannot be reached; ``TUNE_JOURNAL`` if the journal is damaged before its last line;
            ``TUNE_STUDY`` if the study there is another one; ``DISK_FULL``, ``DISK_DENIED``.
    """
    keyed = _sampler(sampler, seed)
    keys = [objective.key for objective in objectives]
    if not 1 <= len(set(keys)) == len(keys) <= 2:
        raise InputError(
            "TUNE_OBJECTIVE",
            where="objectives",
            found=", ".join(keys) or "none",
            remedy="give one objective, or two different ones for a Pareto front",
        )
    directions = [objective.direction for objective in objectives]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if storage in ("", "journal"):
        repair_journal(folder / JOURNAL)
        # A writer that was killed leaves Optuna's lock, which would cost the next one 30 s; ours is held by now.
        (folder / f"{JOURNAL}.lock").unlink(missing_ok=True)
    facts: dict[str, Any] = {**identity, "objectives": keys}
    if "://" in storage:
        facts["folder"] = _token(folder)
    facts = json.loads(json.dumps(facts))
    with _reached(storage):
        study = optuna.create_study(
            storage=_storage(folder, storage),
            study_name=STUDY_NAME,
            directions=directions,
            sampler=keyed,
            pruner=optuna.pruners.NopPruner(),  # who is stopped early is the scheduler's business
            load_if_exists=True,
        )
        known = study.user_attrs.get("identity")
        if known is None and not study.get_trials(deepcopy=False):  # new, or killed while it was being made
            study.set_user_attr("identity", facts)
            known = facts
    _compare(known, facts)
    if [direction.name.lower() for direction in study.directions] != directions:
        raise _another("the objectives' directions")
    return study


def read_study(folder: Path, storage: str = "") -> optuna.Study:
    """Open a study to look at it, also while a sweep runs: nothing is repaired, made or compared.

    Raises:
        InputError: ``TUNE_STUDY`` if there is none; ``TUNE_STORAGE``, ``TUNE_JOURNAL``.
    """
    missing = InputError("TUNE_STUDY", where=folder.name, found="no study", remedy="run petscale tune first")
    if storage in ("", "journal", "sqlite") and not (folder / (DATABASE if storage == "sqlite" else JOURNAL)).is_file():
        raise missing
    with _reached(storage):
        try:
            return optuna.load_study(study_name=STUDY_NAME, storage=_storage(folder, storage))
        except KeyError:
            raise missing from None


def repair_journal(path: Path) -> Path | None:
    """Cut off a journal's last line if it is not whole, after writing a backup beside it; return the backup.

    A crash or a full disk can only have torn what was written last; Optuna would read such a journal, but glue the
    next entry to the torn line and never read it again.  Cutting loses one entry that nobody was told was written.

    Raises:
        InputError: ``TUNE_JOURNAL`` if a line before the last is not whole, ``DISK_FULL``, ``DISK_DENIED``.
    """
    if not path.exists():
        return None
    with disk_errors(path):
        content = path.read_bytes()
    *lines, tail = content.split(b"\n")
    whole = [_is_entry(line) for line in lines]
    if not tail and all(whole):
        return None
    cut = len(tail)
    if not tail:
        cut = len(lines.pop()) + 1
        whole.pop()
    if not all(whole):
        raise InputError(
            "TUNE_JOURNAL",
            where=path.name,
            found=f"line {whole.index(False) + 1} is damaged, and it is not the last",
            remedy="restore the journal from a copy, or begin a new study with another --study folder",
        )
    number = next(n for n in range(1, 10**6) if not path.with_name(f"{path.name}.torn-{n}").exists())
    backup = path.with_name(f"{path.name}.torn-{number}")
    write_bytes(backup, content)
    write_bytes(path, content[: len(content) - cut])
    return backup


def _is_entry(line: bytes) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:  # also what is not UTF-8
        return False
    return isinstance(entry, dict) and "op_code" in entry


def _storage(folder: Path, storage: str) -> BaseStorage:
    match storage:
        case "" | "journal":  # absolute, for Optuna's lock is a link to it
            return JournalStorage(JournalFileBackend(str((folder / JOURNAL).resolve())))
        case "sqlite":
            return RDBStorage(f"sqlite:///{(folder / DATABASE).resolve()}")
        case url if "://" in url:
            return RDBStorage(url)
        case _:
            raise InputError(
                "TUNE_STORAGE",
                where="--storage",
                found="neither journal nor sqlite nor a URL",
                remedy="leave it out, or give journal, sqlite or for instance postgresql+psycopg://user@host/database",
            )


def _token(folder: Path) -> str:
    """Name the folder by a word of its own, so that a database tells which folder holds its trials' runs."""
    path = folder / TOKEN
    if not path.exists():
        write_bytes(path, secrets.token_hex(8).encode())
    return path.read_text("utf-8")


def _compare(known: Any, facts: Mapping[str, Any]) -> None:
    if not isinstance(known, dict):
        raise _another("its origin (it was not made by petscale tune)")
    differing = sorted(key for key in known.keys() | facts.keys() if known.get(key) != facts.get(key))
    if differing:
        raise _another(", ".join(differing))


def _another(what: str) -> InputError:
    return InputError(
        "TUNE_STUDY",
        where="study",
        found=f"the study that is there differs in {what}",
        remedy="repeat the command that made it, or begin another with another --study folder (and another database)",
    )


@contextmanager
def _reached(storage: str = "") -> Iterator[None]:
    """Tell in one line what a store cannot do; of a URL nothing but its scheme, for any part of it may be secret."""
    scheme = storage.split("://")[0] if "://" in storage else storage or "journal"
    try:
        with disk_errors(Path(JOURNAL)):
            yield
    except InputError:
        raise
    except ImportError as error:
        driver = getattr(error.__cause__, "name", None) or "its driver"
        raise _unreached(scheme, f"{driver} is not installed", "install it into petscale's environment") from None
    except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        reason = type(error).__name__
        if isinstance(error, DBAPIError) and error.orig is not None and str(error.orig):
            reason += f", {_without_secrets(str(error.orig).splitlines()[0], storage)}"
        raise _unreached(scheme, reason, "check that the database is there, is Optuna's, and may be written") from None
    except (AttributeError, AssertionError, KeyError, TypeError, ValueError) as error:
        if "://" in storage:  # a URL that cannot be taken apart, a port that is no number
            raise _unreached(scheme, "not a URL of a database", "check the URL") from None
        raise InputError(
            "TUNE_JOURNAL",
            where=JOURNAL,
            found=f"its entries contradict each other ({type(error).__name__})",
            remedy="restore the journal from a copy, or begin a new study with another --study folder",
        ) from None


def _unreached(scheme: str, found: str, remedy: str) -> InputError:
    return InputError("TUNE_STORAGE", where=f"--storage {scheme}", found=found, remedy=remedy)


def _without_secrets(text: str, url: str) -> str:
    try:
        parts = urlsplit(url)
        words = [parts.password or "", *(value for _, value in parse_qsl(parts.query))]
    except ValueError:
        return "no more is told, for the URL cannot be taken apart"
    for secret in {form for word in words if word for form in (word, unquote(word), quote(word))}:
        text = text.replace(secret, "***")
    return text


# ---- trials ---------------------------------------------------------------------------------------------------------


def enqueue_first(study: optuna.Study, params: Mapping[str, Any]) -> None:
    """Let the first trial of a study that has none be ``params``, the paper's values; otherwise do nothing."""
    with _telling():
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial(dict(params))


def requeue(study: optuna.Study, *, alive: Collection[int] = ()) -> list[int]:
    """Queue again what a dead driver left running and what failed less than ``RETRIES`` times; return their numbers.

    Each is taken up once, with its parameters, what it reported, and its run folder.  The successor is queued before
    the interrupted trial is told failed: a death between the two leaves a trial that has its successor already.

    Args:
        study: open in this driver alone.
        alive: numbers of running trials that are this driver's own.
    """
    again = []
    with _telling():
        trials = study.get_trials(deepcopy=False)
        taken_up = {trial.user_attrs.get("restarts") for trial in trials}
        for trial in trials:
            interrupted = trial.state is TrialState.RUNNING and trial.number not in alive
            failures = trial.user_attrs.get("failures", 0)
            failed = trial.state is TrialState.FAIL and failures > 0
            params = _params(trial)
            if (interrupted or failed) and failures <= RETRIES and trial.number not in taken_up and params:
                places = {"continues": folder_of(trial), "restarts": trial.number}
                study.enqueue_trial(params, user_attrs={**places, "failures": failures, "rungs": _rungs(trial)})
                again.append(trial.number)
            if interrupted:
                study.tell(trial.number, state=TrialState.FAIL)
    return again


def ask(
    study: optuna.Study, space: Callable[[optuna.trial.BaseTrial], dict[str, Any]]
) -> tuple[optuna.Trial, dict[str, Any]]:
    """Return the next trial, queued ones first, and the settings that ``space`` makes of it."""
    with _telling():
        trial = study.ask()
        settings = space(trial)
        trial.set_user_attr("settings", settings)
        if len(study.directions) == 1:  # what an interrupted trial has reported counts for its successor
            for rung, value in trial.user_attrs.get("rungs", {}).items():
                trial.report(value, int(rung))
    return trial, settings


def report(trial: optuna.Trial, rung: int, value: float) -> None:
    """Keep what a trial scores at ``rung`` (the scheduler's measure of budget), once; not what is not finite."""
    with _telling():
        known = _rungs(trial.study.get_trials(deepcopy=False)[trial.number])
        if str(rung) in known or not math.isfinite(value):
            return
        if len(trial.study.directions) == 1:
            trial.report(value, rung)
        else:  # Optuna keeps none where there are two objectives
            trial.set_user_attr("rungs", {**known, str(rung): value})


def tell(
    study: optuna.Study,
    trial: optuna.Trial,
    values: Sequence[float] | None = None,
    *,
    state: Literal["COMPLETE", "PRUNED", "FAIL"] = "COMPLETE",
    note: str = "",
) -> str:
    """End a trial and return the state it ended in.

    A complete trial whose value is not finite becomes PRUNED without a value: to TPE it is then worse than any that
    ended, a failed one would be forgotten and its neighbours tried again, and an invented penalty would enter
    importances and plots as if it had been measured.  It is not retried, for it would diverge again.

    After ``DISK_FULL`` the journal may end in a torn line: end the driver; the next ``open_study`` repairs it.

    Args:
        study: the study.
        trial: from ``ask``.
        values: one per objective, in order; None unless ``state`` is COMPLETE.
        state: COMPLETE; PRUNED when it was stopped early; FAIL when it broke and may be tried again.
        note: one line for the report; nothing that identifies a patient or a path.
    """
    if state == "COMPLETE" and not all(math.isfinite(value) for value in values or ()):
        state, values, note = "PRUNED", None, note or "diverged: the objective is not finite"
    with _telling():
        if note or state == "FAIL":
            trial.set_user_attr("note", note or "failed")
        if state == "FAIL":
            trial.set_user_attr("failures", trial.user_attrs.get("failures", 0) + 1)
        study.tell(trial, values, state=TrialState[state])
    return state


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that need no more work: complete, stopped early, diverged, or failed once more than ``RETRIES``."""
    return [
        trial
        for trial in study.get_trials()
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        or (trial.state is TrialState.FAIL and trial.user_attrs.get("failures", 0) > RETRIES)
    ]


def best(study: optuna.Study) -> list[FrozenTrial]:
    """The best complete trial, or the Pareto front of two objectives, best by the first of them first; none yet: []."""
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return []
    if len(study.directions) == 1:
        return [study.best_trial]
    sign = -1 if study.directions[0].name == "MAXIMIZE" else 1
    return sorted(study.best_trials, key=lambda trial: (sign * trial.values[0], trial.number))


def folder_of(trial: FrozenTrial | optuna.Trial) -> int:
    """Number of the trial in whose run folder this one works: its own, unless it goes on with an interrupted one."""
    return int(trial.user_attrs.get("continues", trial.number))


def history(study: optuna.Study) -> list[dict[str, Any]]:
    """Return every trial as JSON-able facts, in order.

    ``values`` are those of complete trials: a value at a smaller budget is no value, and stands in ``intermediate``.
    ``seconds`` are of this attempt alone, None where nobody saw it end.  ``folder`` is as ``folder_of`` says.
    """
    return [
        {
            "number": trial.number,
            "state": trial.state.name,
            "params": _params(trial),
            "settings": trial.user_attrs.get("settings", {}),
            "values": list(trial.values) if trial.state is TrialState.COMPLETE else None,
            "intermediate": {int(rung): value for rung, value in _rungs(trial).items()},
            "seconds": _seconds(trial),
            "folder": folder_of(trial),
            "note": _note(trial),
        }
        for trial in study.get_trials()
    ]


def _params(trial: FrozenTrial) -> dict[str, Any]:
    """What was suggested, and what a queued trial has not asked for yet."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def _rungs(trial: FrozenTrial) -> dict[str, float]:
    """Rung -> value, of the chain that this trial goes on with as well; keys as JSON has them."""
    return {**trial.user_attrs.get("rungs", {}), **{str(k): v for k, v in sorted(trial.intermediate_values.items())}}


def _interrupted(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.FAIL and "note" not in trial.user_attrs


def _seconds(trial: FrozenTrial) -> float | None:
    return None if trial.duration is None or _interrupted(trial) else trial.duration.total_seconds()


def _note(trial: FrozenTrial) -> str:
    return "interrupted" if _interrupted(trial) else str(trial.user_attrs.get("note", ""))


@contextmanager
def _telling() -> Iterator[None]:
    """A store that is lost while a sweep runs ends in one line too; a mistake of the caller's does not."""
    try:
        with disk_errors(Path(JOURNAL)):
            yield
    except (SQLAlchemyError, StorageInternalError) as error:
        raise _unreached(
            "of this study", f"lost while the sweep ran ({type(error).__name__})", "run the same command again"
        ) from None
