"""``petscale card``: a finished run in, one file out that holds its weights and all that using them needs."""

import dataclasses
import hashlib
import json
import math
import platform
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from petscale import config as configs
from petscale import proof
from petscale.cards.card import SUFFIX, Card, Edges, Score, Scored, lineage_of, write_card
from petscale.config import RunConfig
from petscale.console import console
from petscale.data.inspection import origins
from petscale.evaluation.current import is_current
from petscale.evaluation.external import check_unchanged
from petscale.evaluation.run import run_facts
from petscale.evaluation.scores import Evaluation, read_evaluation
from petscale.folders import EVALUATION, FOLDS, SYNTHESIS, WEIGHTS
from petscale.inference import Trained, load_run, with_networks
from petscale.reporting.verdict import verdict
from petscale.splits import Roles
from storage import integrity
from storage.errors import InputError
from storage.joined import open_cohorts
from storage.reader import Cases
from storage.source import HU
from trainers.metrics.clinical import BIASES
from trainers.systems import RECIPES
from trainers.validation import CHOSEN

USE = (
    "Research: to estimate a {gives} from a {takes} like those in the envelope, and to be compared with other methods. "
    "Not a medical device; not for clinical use."
)
ELSEWHERE = "A network trained on one scanner, protocol or tracer is not known to hold on another."
UNSCORED = "It was not evaluated: nothing is known of how it does on patients whom it never saw."
UNREAD = (
    "The cohort was not read when this file was made: voxel size and doses are what the training noted, tracers and "
    "scanners are not known."
)
SIMULATED = "In {count} of {cases} training cases the low dose is simulated: its noise is no scanner's."
PHANTOM = "{count} of {cases} training cases are phantoms: they say nothing about patients."
FILE = re.compile(r"[/\\]|\.[A-Za-z][A-Za-z0-9]*$")  # a path, or a name with an ending


@dataclasses.dataclass(frozen=True)
class Envelope:
    """What the cases are like that a run was trained on.

    Args:
        lowest_mm, highest_mm: of their voxel edges (z, y, x).
        tracers, nuclides, scanners: name -> cases.
        limits: what follows from where the images come from, a sentence each.
    """

    lowest_mm: Edges | None = None
    highest_mm: Edges | None = None
    tracers: Mapping[str, int] = dataclasses.field(default_factory=dict)
    nuclides: Mapping[str, int] = dataclasses.field(default_factory=dict)
    scanners: Mapping[str, int] = dataclasses.field(default_factory=dict)
    limits: tuple[str, ...] = (UNREAD,)


def make_card(run: Path, file: Path, cohorts: Sequence[Path] = (), *, licence: str = "") -> Card:
    """Write a finished run's weights, and what must be known to use them, into one file.

    Args:
        run: folder of the run.
        file: a new ``.safetensors`` file.
        cohorts: those that the run was trained on, for tracers, scanners and the range of voxel sizes; () for none.
        licence: of the weights, as their owner states it.

    Raises:
        InputError: CFG_OUTPUT, DISK_EXISTS; CFG_NO_FILE, CFG_RUN_FOLDER; CKPT_NONE and those of ``proof.read_proven``;
            CKPT_PROOF for weights from before they carried a digest; SET_CASE_CHANGED, SET_CASE_REMOVED where the
            cohorts are not the run's; SET_EVALUATION for damaged scores.
    """
    if file.suffix != SUFFIX:
        raise InputError(
            "CFG_OUTPUT", where=file.name, found="no name of a card", remedy=f"name a new file that ends in {SUFFIX}"
        )
    integrity.check_new(file, "FILE")
    if (run / FOLDS).is_file():
        raise InputError(
            "CFG_RUN_FOLDER", where=run.name, found="the folds of several runs", remedy="name one run in it: fold-0"
        )
    _, record = run_facts(run)
    weights = proof.read_proven(run)
    if weights.notes:
        raise InputError(
            "CKPT_PROOF",
            where=WEIGHTS,
            found="weights from before they carried a digest",
            remedy="the same `petscale train` adds it",
        )
    trained = load_run(run)
    nameless = _nameless(configs.to_json(trained.config), record)
    facts = {**weights.facts, "config": json.dumps(nameless)}
    config = with_networks(weights.tensors, facts, file.name).config  # it still makes the same networks
    seen = Roles.recorded(record)
    names = (*seen.train, *seen.unpaired)
    envelope = _envelope(cohorts, names, config, record) if cohorts and names else Envelope()
    nuclides = envelope.nuclides or dict.fromkeys(sorted(trained.on.nuclides or ()), 0)
    scores = tuple(_scores(run, config))
    spec = RECIPES[config.recipe]
    from_ct = trained.units == HU
    card = Card(
        system=config.recipe,
        summary=((spec.__doc__ or config.recipe).splitlines() or [config.recipe])[0],
        units=trained.units,
        spacing_mm=trained.on.spacing_mm,
        lowest_mm=envelope.lowest_mm,
        highest_mm=envelope.highest_mm,
        drfs=tuple(math.nan if drf is None else float(drf) for drf in json.loads(facts.get("drfs", "[]"))),
        cases=len(names),
        patients=len({record["subjects"].get(name, name) for name in names}) if "subjects" in record else len(names),
        tracers=envelope.tracers,
        nuclides=nuclides,
        scanners=envelope.scanners,
        scores=scores,
        licence=licence,
        use=USE.format(gives="PET in SUV" if from_ct else "full-dose PET", takes="CT" if from_ct else "low-dose PET"),
        limits=(
            ELSEWHERE,
            *envelope.limits,
            *(() if scores else (UNSCORED,)),
            *spec.caveats(config.model),
        ),
        lineage=_lineage(weights.facts, record, trained),
        config=nameless,
    )
    write_card(file, card, weights.tensors, {name: facts[name] for name in facts if name != "digest"})
    return card


def _nameless(content: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration without what names cases, files or how its machines were used.

    The split lists cases, and is over.  Files from elsewhere are called by the setting that named them.
    """
    sections = {name: value for name, value in content.items() if name not in ("split", "cluster")}
    sections["cluster"] = {"device": content["cluster"]["device"]}
    named = [name for name, value in content["recipe"].items() if name != "name" and _is_file(name, value, record)]
    sections["recipe"] = content["recipe"] | {name: f"{name}{SUFFIX}" for name in named}
    return sections


def _is_file(field: str, value: object, record: Mapping[str, Any]) -> bool:
    return field in record.get("files", {}) or (isinstance(value, str) and bool(FILE.search(value)))


def _envelope(folders: Sequence[Path], names: Sequence[str], config: RunConfig, record: Mapping[str, Any]) -> Envelope:
    """Read what the images that a run was trained on state, from the cohorts that hold them."""
    opened = open_cohorts(folders)
    edges, told = [], {fact: Counter[str]() for fact in ("tracer", "nuclide", "scanner")}
    simulated = phantoms = 0
    for name in names:
        _check_there(opened, name)
        check_unchanged(opened, name, record)
        case = opened.case(name)
        images = [case.image(one) for one in config.feed.source if one in case.images]
        images = images or [case.image(config.feed.target)]  # of a patient who gives the full dose alone
        known: list[Mapping[str, Any]] = [facts for image in images for facts in origins(image.provenance)]
        edges.append(images[0].grid.spacing_mm)
        for fact, counts in told.items():
            counts.update({str(facts[fact]) for facts in known if facts.get(fact)})
        simulated += any(image.dose is not None and image.dose.relation == "simulated" for image in images)
        phantoms += any(facts.get("kind") == "phantom" for facts in known)
    low, high = np.min(edges, axis=0).round(4).tolist(), np.max(edges, axis=0).round(4).tolist()
    limits = []
    if simulated:
        limits.append(SIMULATED.format(count=simulated, cases=len(names)))
    if phantoms:
        limits.append(PHANTOM.format(count=phantoms, cases=len(names)))
    facts = {fact: dict(counts.most_common()) for fact, counts in told.items()}
    return Envelope(
        (low[0], low[1], low[2]),
        (high[0], high[1], high[2]),
        facts["tracer"],
        facts["nuclide"],
        facts["scanner"],
        tuple(limits),
    )


def _check_there(cohort: Cases, name: str) -> None:
    if name not in cohort.cases:
        raise InputError(
            "SET_CASE_REMOVED",
            where=f"case {name}",
            found="the run was trained on it, and it is in none of the cohorts named",
            remedy="name by --cohort all cohorts that the run was trained on, or leave --cohort out",
        )


def _scores(run: Path, config: RunConfig) -> Iterator[Scored]:
    """What the run's own evaluation found from every image that it was trained on."""
    for source in config.feed.source:
        folder = run / EVALUATION / source
        if not (folder / "scores.json").is_file():
            continue
        found = read_evaluation(folder)
        if not is_current(found, {run: run / SYNTHESIS / source}):
            console.print(
                f"note: the scores from {source} are of other weights than the run has now, and are left out; "
                "petscale evaluate makes them anew",
                markup=False,
                soft_wrap=True,
            )
            continue
        yield _scored(source, found)


def _scored(source: str, found: Evaluation) -> Scored:
    said = verdict(found)
    rows = [
        Score(
            region=one.region,
            metric=one.definition.metric,
            units=one.definition.units,
            image=one.image,
            mean=one.mean,
            sd=one.sd,
            cases=one.num_cases,
        )
        for one in found.summary()
        if (one.definition.preset == "native" or one.definition in BIASES.values())
        and one.region in ("body", "lesions")
        and one.image in found.pictured
    ]
    return Scored(source=source, images=found.pictured, said=(said.headline, *said.sentences), scores=tuple(rows))


def _lineage(facts: Mapping[str, str], record: Mapping[str, Any], trained: Trained) -> dict[str, str]:
    """What the weights were made from, by digests, and what wrote the card."""
    chosen: dict[str, str] = {}
    if CHOSEN in facts:
        best = integrity.parse_json(facts[CHOSEN])
        chosen = {"weights of step, chosen on validation patients": str(best["step"])}
    files = {f"file {field}, SHA-256": str(digest) for field, digest in record.get("files", {}).items()}
    return {
        "weights of the run, SHA-256 of the file": trained.weights,
        "configuration of the run, SHA-256": hashlib.sha256(facts["config"].encode()).hexdigest(),
        **lineage_of(facts),
        **files,
        **chosen,
        "card written by": f"petscale {version('petscale')}, torch {version('torch')}, "
        f"Python {platform.python_version()}",
    }
