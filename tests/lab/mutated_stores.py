"""Damaged copies of the small files that petscale writes, made from a seed, and what reading one of them came to.

A mutation is a triple (seed, kind, base): equal triples give equal files.  A base is a file in a cohort, a run or a
study, with the reader that commands use.  A mutation is read in this process and must be refused in one coded line, or
give what the whole file gives.  A file whose digests were made anew after the change states other values by itself;
these are its own, and must not end in another exception either.
"""

import contextlib
import hashlib
import json
import random
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
import untrained_runs

from petscale import proof
from petscale.data.inspection import inspect_cohort
from petscale.evaluation.run import run_facts
from petscale.evaluation.scores import Evaluation, read_evaluation
from petscale.folders import CONFIG, WEIGHTS
from petscale.inference import load_run
from petscale.tuning.objectives import objective
from petscale.tuning.study import JOURNAL, hold, open_study
from petscale.tuning.trials import history
from storage import integrity, layout, reader
from storage.errors import InputError
from storage.ingest import CasePlan, ingest
from storage.reader import open_cohort
from storage.source import SUV, ArraySource, Grid
from storage.verification import verify
from trainers import checkpoint
from trainers.metrics.definitions import Score
from trainers.metrics.presets import BODY_PSNR

Triple = tuple[int, str, str]  # seed, kind, base

BASES = (
    "case manifest", "catalog", "cohort zarr.json", "case zarr.json", "image zarr.json", "array zarr.json",
    "config.json", "scores.json", "weights header", "checkpoint manifest", "checkpoint meta", "journal",
)  # fmt: skip

REFUSED, EQUAL, OLDER, OWN = (
    "refused",
    "accepted, equal",
    "an older whole one is used, and said",
    "accepted, the file's own",
)
TRACEBACK, CHANGED = "TRACEBACK", "ACCEPTED, CHANGED"
FAILED = (TRACEBACK, CHANGED)
DEEP = 100_000  # levels that no parser follows
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, 2**31, 10**30, -(10**400), 1e308, float("inf"), float("nan"), "", "x", "../../x",
    "/etc/hostname", "\0", "\ud800", "phantom-000", "9" * 5000, [], {}, [[]], [None], {"": None}, [1, 2, 3],
    [0.0, -1.0, 1e-300], "deep",
)  # fmt: skip


@dataclass(frozen=True)
class Base:
    """A file that is mutated.

    Args:
        file: the file.
        read: reads it as commands do; what it returns is compared.
        renewed: makes the digests over a changed content anew, and writes it; None where there are none.
        proven: whether digests cover the file, so that any other value than before is refused.
        kept: files that reading may write, put back afterwards.
    """

    file: Path
    read: Callable[[], Any]
    renewed: Callable[[Any], None] | None = None
    proven: bool = True
    kept: dict[Path, bytes] = field(default_factory=dict)


# -- what is mutated --------------------------------------------------------------------------------------------------


def bases(folder: Path) -> dict[str, Base]:
    """Make a cohort, a run and a study, and return their files by name."""
    grid = Grid((12, 14, 13), np.diag([4.0, 4.0, 4.0, 1.0]))
    voxels = np.random.Generator(np.random.Philox(3)).gamma(4.0, 0.3, grid.shape).astype(np.float32)
    cohort = folder / "cohort"
    images = {"full": ArraySource(voxels, grid, SUV), "low_drf4": ArraySource(voxels + 0.1, grid, SUV)}
    plans = {f"p{n}": lambda _, n=n: CasePlan(images, f"patient {n}", f"made {n}", tags={"fold": "1"}) for n in (0, 1)}
    ingest(cohort, plans, strict=True, workers=1)
    run = untrained_runs.red_cnn(folder / "run", 1, cohort=open_cohort(cohort), test=["p0"])
    rows = [Score("p0", name, "body", "body", BODY_PSNR, 30.0, 5.0) for name in ("low-dose input", "synthesized")]
    evaluation = Evaluation(tuple(rows), ("low-dose input", "synthesized"), ("p0",), {"source": "low_drf4"})
    (folder / "scores").mkdir()
    evaluation.write(folder / "scores")
    for step in (1, 2):
        state = {"G": {"weight/a": torch.arange(6.0) + step}}
        latest = checkpoint.save(folder / "checkpoints", step, state, {"run": {"recipe": "toy"}, "world": 1}, keep=2)
    with hold(folder / "study"):
        study = _study(folder / "study")
        for value in (30.0, 31.0):
            trial = study.ask()
            trial.suggest_float("recipe.lr", 1e-5, 1e-3)
            study.tell(trial, value)
    case = cohort / layout.CASES / "p0"
    journal = folder / "study" / JOURNAL
    found = {
        "case manifest": Base(case / integrity.MANIFEST, lambda: _read_case(cohort), _renew_manifest(case)),
        "catalog": Base(cohort / layout.CATALOG, lambda: _verified(cohort)),
        "cohort zarr.json": Base(cohort / "zarr.json", lambda: _read_case(cohort), proven=False),
        "case zarr.json": Base(case / "zarr.json", lambda: _read_case(cohort), _renew_file(case, "zarr.json")),
        "image zarr.json": Base(
            case / "full" / "zarr.json", lambda: _read_case(cohort), _renew_file(case, "full/zarr.json")
        ),
        "array zarr.json": Base(
            case / "full" / "0" / "zarr.json", lambda: _read_case(cohort), _renew_file(case, "full/0/zarr.json")
        ),
        "config.json": Base(run / CONFIG, lambda: _read_record(run), proven=False),
        "scores.json": Base(
            folder / "scores" / "scores.json", lambda: _read_scores(folder / "scores"), _renew_scores(folder / "scores")
        ),
        "weights header": Base(run / WEIGHTS, lambda: _read_weights(run), _renew_weights(run)),
        "checkpoint manifest": Base(
            latest / integrity.MANIFEST, lambda: _read_checkpoint(folder / "checkpoints"), _renew_manifest(latest)
        ),
        "checkpoint meta": Base(
            latest / checkpoint.META, lambda: _read_checkpoint(folder / "checkpoints"), _renew_file(latest, "meta.json")
        ),
        "journal": Base(
            journal, lambda: _read_study(folder / "study"), proven=False, kept={journal: journal.read_bytes()}
        ),
    }
    manifests = {case: (case / integrity.MANIFEST).read_bytes(), latest: (latest / integrity.MANIFEST).read_bytes()}
    assert tuple(found) == BASES
    for base in found.values():
        base.kept[base.file] = base.file.read_bytes()
        for home, content in manifests.items():
            base.kept[home / integrity.MANIFEST] = content
    return found


def _read_case(cohort: Path) -> Any:
    reader._case.cache_clear()
    opened = open_cohort(cohort)
    case = opened.case("p0")
    told: list[Any] = [case.subject, case.fingerprint, case.voxels, case.labels, case.tags, case.images]
    for name in case.images:
        image = case.image(name)
        told += [image.grid.shape, image.grid.affine.tolist(), image.units, dict(image.provenance), image.dose]
        told += [dict(image.statistics), image.read(0, image.grid.shape[0]).tolist()]
    inspect_cohort(cohort)
    told += [case.sampling_maps.body.tolist(), case.overview("full").tolist(), opened.cases]
    return told


def _verified(cohort: Path) -> Any:
    if damage := verify(cohort):
        name, first = next(iter(damage.items()))
        raise InputError("STORE_DAMAGED", where=name, found=first[0].problem, remedy="as `petscale verify` prints it")
    return []


def _read_record(run: Path) -> Any:
    config, facts = run_facts(run)
    weights = proof.read_proven(run)
    return [config.identity(), {name: facts.get(name) for name in ("train", "unpaired", "cases", "subjects")},
            sorted(weights.facts)]  # fmt: skip


def _read_scores(folder: Path) -> Any:
    found = read_evaluation(folder)
    found.table(), found.csv(), found.json()
    return [found.rows, found.images, found.cases, found.metadata]


def _read_weights(run: Path) -> Any:
    trained, weights = load_run(run), proof.read_proven(run)
    tensors = {name: value.tolist() for name, value in weights.tensors.items()}
    return [trained.config.identity(), trained.on, tensors, weights.notes]


def _read_checkpoint(folder: Path) -> Any:
    saved, told = checkpoint.newest(folder)
    assert saved is not None
    return [saved.step, {name: value.tolist() for name, value in checkpoint.flatten(saved.state).items()}, bool(told)]


def _study(folder: Path) -> optuna.Study:
    return open_study(folder, identity={"recipe": "toy"}, objectives=[objective("psnr_body")], sampler="tpe", seed=0)


def _read_study(folder: Path) -> Any:
    for torn in folder.glob("*.torn-*"):
        torn.unlink()
    with hold(folder):
        study = _study(folder)
        told = [[t.number, t.state.name, t.values, t.params] for t in study.get_trials(deepcopy=False)]
        history(study)
    return told


def _renew_manifest(folder: Path) -> Callable[[Any], None]:
    def write(content: Any) -> None:
        with contextlib.suppress(Exception):  # a content without these parts has no digest to make anew
            content["root"] = integrity.root_digest(content["files"], content["facts"])
        (folder / integrity.MANIFEST).write_text(json.dumps(content))

    return write


def _renew_file(folder: Path, key: str) -> Callable[[Any], None]:
    def write(content: Any) -> None:
        data = json.dumps(content).encode()
        (folder / key).write_bytes(data)
        manifest = json.loads((folder / integrity.MANIFEST).read_bytes())
        manifest["files"][key] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        _renew_manifest(folder)(manifest)

    return write


def _renew_scores(folder: Path) -> Callable[[Any], None]:
    def write(content: Any) -> None:
        if isinstance(content, dict):
            others = {name: value for name, value in content.items() if name != "digest"}
            content["digest"] = hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()
        (folder / "scores.json").write_text(json.dumps(content))

    return write


def _renew_weights(run: Path) -> Callable[[Any], None]:
    tensors, _ = checkpoint.read_weights(run / WEIGHTS)

    def write(content: Any) -> None:
        facts: Any = {}
        with contextlib.suppress(Exception):  # a header without these parts has no facts
            facts = dict(content["__metadata__"]["petscale"])
        texts = {str(key).encode("utf-8", "replace").decode(): _text(value) for key, value in facts.items()}
        checkpoint.write_weights(run / WEIGHTS, tensors, texts)

    return write


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "replace").decode()


# -- mutations --------------------------------------------------------------------------------------------------------


def _places(content: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    found: list[tuple[Any, Any]] = []
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        found.append((content, key))
        found += _places(content[key])
    return found


def _change(kind: str, content: Any, rng: random.Random) -> Any:
    places = _places(content)
    holder, key = rng.choice(places)
    if kind == "value replaced":
        holder[key] = rng.choice(VALUES)
    elif kind == "field removed":
        del holder[key]
    elif kind == "field renamed" and isinstance(holder, dict):
        holder[rng.choice(("", "x", "../x", "\0", str(key).upper() + "_"))] = holder.pop(key)
    elif kind == "field added" and isinstance(holder, dict):
        holder[rng.choice(("x", "zarr.json", "../x", "config"))] = rng.choice(VALUES)
    else:  # values exchanged
        other, place = rng.choice(places)
        with contextlib.suppress(KeyError, IndexError, TypeError):
            holder[key], other[place] = other[place], holder[key]
    return content


def _damage(kind: str, data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    match kind:
        case "bit":
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case "bytes overwritten":
            some = rng.randbytes(rng.randrange(1, 9))
            return data[:at] + some + data[at + len(some) :]
        case "cut off":
            return data[:at]
        case "bytes deleted":
            return data[:at] + data[at + rng.randrange(1, 40) :]
        case "block twice":
            return data[:at] + data[max(0, at - rng.randrange(1, 60)) :]
        case _:  # another file
            words = (
                b"",
                b"null",
                b"[]",
                b"{}",
                b"3",
                b'"x"',
                b"[" * DEEP,
                b'{"a":' * DEEP,
                b"\xff\xfe",
                b"\x80\x04\x95",
            )
            return rng.choice(words)


BYTES = ("bit", "bytes overwritten", "cut off", "bytes deleted", "block twice", "another file")
CHANGES = ("value replaced", "field removed", "field renamed", "field added", "values exchanged")
ANEW = "digests made anew"
KINDS = (*BYTES, *CHANGES, *(f"{change}, {ANEW}" for change in CHANGES))


def triples(count: int, first_seed: int = 0) -> list[Triple]:
    """Return mutations, every base and kind in turn; a file without a digest is changed as if none were made anew."""
    seeds = range(first_seed, first_seed + count)
    return [(seed, KINDS[seed // len(BASES) % len(KINDS)], BASES[seed % len(BASES)]) for seed in seeds]


def mutate(triple: Triple, base: Base) -> bool:
    """Write a mutation in the base's place; return whether its digests were made anew."""
    seed, kind, name = triple
    rng = random.Random(f"{seed} {kind} {name}")
    data = base.file.read_bytes()
    change, _, anew = kind.partition(", ")
    if kind in BYTES:
        head = 8 + struct.unpack("<Q", data[:8])[0] if name == "weights header" else len(data)
        base.file.write_bytes(_damage(kind, data[:head], rng) + data[head:])
        return False
    content, write = _parsed(name, data)
    content = _change(change, content, rng)
    if anew and base.renewed is not None:
        base.renewed(_deepened(content))
        return True
    base.file.write_bytes(write(content))
    return False


def _parsed(name: str, data: bytes) -> tuple[Any, Callable[[Any], bytes]]:
    """A file's content as JSON values, and what writes such a content."""
    if name == "journal":
        lines = [json.loads(line) for line in data.splitlines()]
        return lines, lambda content: b"".join(_dumped(line) + b"\n" for line in content)
    if name == "weights header":
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        facts = header["__metadata__"]["petscale"] = json.loads(header["__metadata__"]["petscale"])
        for key in ("config", "starts_from", "trained_on"):  # texts that hold JSON
            facts[key] = json.loads(facts[key])

        def write(content: Any) -> bytes:
            with contextlib.suppress(Exception):
                told = content["__metadata__"]["petscale"]
                told |= {key: json.dumps(value) for key, value in told.items() if not isinstance(value, str)}
                content["__metadata__"]["petscale"] = json.dumps(told)
            text = _dumped(content)
            return struct.pack("<Q", len(text)) + text + data[8 + size :]

        return header, write
    return json.loads(data), _dumped


def _dumped(content: Any) -> bytes:
    """JSON, in which the word ``deep`` stands for a list that is nested more deeply than any parser follows."""
    return json.dumps(content).encode().replace(b'"deep"', b"[" * DEEP + b"]" * DEEP)


def _deepened(content: Any) -> Any:
    """For what is written by others: a depth that ``json.dumps`` can still write."""
    text = json.dumps(content).replace('"deep"', "[" * 400 + "]" * 400)
    return json.loads(text)


# -- verdicts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """What came of one mutation; ``detail`` is the code of a refusal, or what went wrong."""

    triple: Triple
    outcome: str
    detail: str


def run(mutations: list[Triple], folder: Path) -> Iterator[Finding]:
    """Write and read mutations one after another, each in the place of its base, and say what came of each."""
    made = bases(folder)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    wholes = {name: base.read() for name, base in made.items()}
    for triple in mutations:
        base = made[triple[2]]
        try:
            yield Finding(triple, *_judged(triple, base, wholes[triple[2]]))
        finally:
            for file, content in base.kept.items():
                file.write_bytes(content)


def _judged(triple: Triple, base: Base, whole: Any) -> tuple[str, str]:
    anew = mutate(triple, base)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = base.read()
    except InputError as error:
        if "\n" in str(error) or not re.fullmatch(r"[A-Z]+_[A-Z0-9_]+", error.code):
            return TRACEBACK, f"a refusal that is no line: {error.code}"
        return REFUSED, error.code
    except Exception as error:
        return TRACEBACK, f"{type(error).__name__}: {error}"[:200]
    if repr(found) == repr(whole):
        return EQUAL, ""
    if triple[2].startswith("checkpoint") and found[0] == 1 and found[2]:
        return OLDER, ""
    return (OWN, "") if anew or not base.proven else (CHANGED, "")
