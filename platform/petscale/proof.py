"""Whether a run's weights are whole and the run's own: what they carry, against what the run has recorded.

Every command that uses a run's weights reads them here.  The digest in the file proves that nothing in it was changed
(``trainers.checkpoint``); the configuration, the cohort and the cases trained on, which it covers, prove whose it is.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from petscale import config as configs
from petscale.folders import CONFIG, WEIGHTS
from petscale.splits import Roles
from storage import integrity
from storage.errors import InputError
from trainers import checkpoint

PROOF = "proof"  # in a run's record: that its weights carry what follows, and in which form
FORM = 1
TRAINED_ON, COHORT = "trained_on", "cohort"  # in weights: digests of the cases trained on; digest of all cases
TRAINED_BEFORE = "trained_before"  # in a run's record: the trained_on of the weights that it started from
BEFORE = (
    "made before weights carried a digest: whether they are whole, and of this run, is not known; "
    "the same petscale train adds it"
)


@dataclass(frozen=True)
class Weights:
    """Weights that passed every check.

    Args:
        tensors: by name.
        facts: what is needed to use them, as texts.
        notes: what could not be checked, a sentence each.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, str]
    notes: tuple[str, ...]


def carried(
    roles: Roles, cases: Mapping[str, str], subjects: Mapping[str, str], before: Collection[str] = ()
) -> dict[str, str]:
    """What exported weights carry of their run beside its configuration: digests, no names.

    Args:
        roles: who was trained on.
        cases: digest of every case of the run.
        subjects: case -> keyed hash of its patient.
        before: digests of the cases that the weights were trained on which it started from.
    """
    trained = sorted(cases[name] for name in (*roles.train, *roles.unpaired))
    trained = sorted({*trained, *before}) if before else trained
    return {TRAINED_ON: json.dumps(trained), COHORT: integrity.root_digest(cases, subjects)}


def trained_before(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Digests of the cases that the weights were trained on which a run started from; none for most runs.

    Args:
        record: the run's, from ``config.read_record``.
    """
    return tuple(record.get(TRAINED_BEFORE, ()))


def read_proven(run: Path, file: str = WEIGHTS) -> Weights:
    """Read a run's weights, and prove them against its record where it has one.

    Args:
        file: name of the file in the run's folder; another one than ``WEIGHTS`` holds what the run exported besides.

    Raises:
        InputError: CKPT_NONE, CKPT_DAMAGED, CKPT_CONFIG; CKPT_PROOF, CKPT_LEAK, CKPT_FOREIGN; CFG_JSON, CFG_RUN_FOLDER.
    """
    if not (run / file).is_file():
        configs.require_run(run)
    tensors, facts = checkpoint.read_weights(run / file)
    record = configs.read_record(run / CONFIG) if (run / CONFIG).is_file() else {}
    if not {checkpoint.DIGEST, TRAINED_ON, COHORT} <= facts.keys():
        if PROOF in record:
            raise InputError(
                "CKPT_PROOF",
                where=file,
                found="weights without a digest, in a run whose weights carry one",
                remedy="restore the run's own weights, or run the same `petscale train` again",
            )
        return Weights(tensors, facts, (f"{file}: {BEFORE}",))
    if record:
        _check_own(facts, record, file)
    return Weights(tensors, facts, ())


def _check_own(facts: Mapping[str, str], record: Mapping[str, Any], file: str) -> None:
    """Refuse weights of another run, with a word of its own where they have seen this run's test patients.

    Raises:
        InputError: CKPT_CONFIG, CKPT_LEAK, CKPT_FOREIGN.
    """
    try:
        trained = json.loads(facts[TRAINED_ON])
        theirs = configs.from_json(integrity.parse_json(facts["config"]))
        known = set(trained)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise no_configuration() from None
    cases: Mapping[str, str] = record.get("cases", {})
    if seen := [name for name in record.get("test", ()) if cases[name] in known]:
        raise InputError(
            "CKPT_LEAK",
            where=file,
            found=f"trained on {', '.join(seen)}, which this run tests",
            remedy="restore the run's own weights, or evaluate in the run that trained these",
        )
    if differs := list(_differences(facts, theirs, trained, record)):
        raise InputError(
            "CKPT_FOREIGN",
            where=file,
            found=f"weights of another run: {'; '.join(differs)}",
            remedy="restore the run's own weights, or run the same `petscale train` again",
        )


def _differences(
    facts: Mapping[str, str], theirs: configs.RunConfig, trained: list[str], record: Mapping[str, Any]
) -> Iterator[str]:
    """In what weights are not those of a run's record."""
    try:
        checkpoint.check_same_run(theirs.identity(), configs.from_json(record["config"]).identity())
    except InputError as error:
        yield error.found
    own = Roles.recorded(record)
    expected = carried(own, record.get("cases", {}), record.get("subjects", {}), trained_before(record))
    if trained != json.loads(expected[TRAINED_ON]):
        yield f"{TRAINED_ON}: other cases than {CONFIG} records"
    if facts[COHORT] != expected[COHORT]:
        yield f"{COHORT}: other cases, voxels or patients than {CONFIG} records"


def no_configuration(where: str = WEIGHTS) -> InputError:
    """Return the error for weights that do not say how they are used."""
    return InputError(
        "CKPT_CONFIG",
        where=where,
        found="weights without their configuration",
        remedy="use the file that `petscale train` wrote",
    )
