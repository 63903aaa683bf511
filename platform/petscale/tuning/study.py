"""A sweep's Optuna study: opened, held by one process, repaired after a crash, kept in a journal or a database."""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from petscale.tuning.objectives import Objective
from petscale.tuning.samplers import sampler_of
from storage.errors import InputError
from storage.integrity import disk_errors, exclusive, parse_json, write_bytes
from trainers import feed_config
from tune_spaces import present_names

STUDY_NAME = "petscale"  # always set: Optuna would merge every study of a store under a name of its own

JOURNAL, DATABASE, TOKEN = "study.journal", "study.db", "study.token"


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
    keyed = sampler_of(sampler, seed)
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
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
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
        entry = parse_json(line)
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
    known, facts = _present(known), _present(facts)
    differing = sorted(key for key in known.keys() | facts.keys() if known.get(key) != facts.get(key))
    if differing:
        raise _another(", ".join(differing))


def _present(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A study's facts under the names that spaces and fields have now: it may have been made before."""
    found = dict(facts)
    if "spaces" in found:
        found["spaces"] = present_names(found["spaces"])
    if "feed" in found.get("configuration", {}):
        found["configuration"] = {
            **found["configuration"],
            "feed": feed_config.present_names(found["configuration"]["feed"]),
        }
    return found


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
        raise unreached(scheme, f"{driver} is not installed", "install it into petscale's environment") from None
    except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        reason = type(error).__name__
        if isinstance(error, DBAPIError) and error.orig is not None and str(error.orig):
            reason += f", {_without_secrets(str(error.orig).splitlines()[0], storage)}"
        raise unreached(scheme, reason, "check that the database is there, is Optuna's, and may be written") from None
    except (AttributeError, AssertionError, KeyError, TypeError, ValueError) as error:
        if "://" in storage:  # a URL that cannot be taken apart, a port that is no number
            raise unreached(scheme, "not a URL of a database", "check the URL") from None
        raise InputError(
            "TUNE_JOURNAL",
            where=JOURNAL,
            found=f"its entries contradict each other ({type(error).__name__})",
            remedy="restore the journal from a copy, or begin a new study with another --study folder",
        ) from None


def unreached(scheme: str, found: str, remedy: str) -> InputError:
    """Return the error for a store that cannot be used; it tells the URL's scheme only."""
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
