"""A card: one safetensors file that holds a network's weights and, as JSON in its header, all that using it needs.

It holds no name of a case, a patient, a folder or a machine: what it tells of a run is counts, ranges, scores and
digests.  The digest in its header covers every tensor and every word beside them.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from petscale import shipped
from petscale.inference import Trained, with_networks
from petscale.proof import COHORT, TRAINED_ON
from storage import integrity
from storage.errors import InputError, no_file
from storage.integrity import json_safe
from storage.source import HU, SUV
from trainers import checkpoint

CARD = "card"  # among the facts of a file: what follows, as JSON
FORM = 1
SUFFIX = ".safetensors"
Edges = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One score over the test cases of the run.

    Args:
        region: body or lesions.
        metric: its name; units: of its values.
        image: which image was scored.
        mean: over cases; sd is over cases too, NaN for one case.
        cases: how many.
    """

    region: str
    metric: str
    units: str
    image: str
    mean: float
    sd: float
    cases: int


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What the run's own evaluation found, of the test cases that it never saw, from one image.

    Args:
        source: the image that it started from.
        images: what is compared: the untreated input, the best baseline without a network, and the network's image.
        said: what these scores allow to be said, a sentence each.
        scores: of these images.
    """

    source: str
    images: tuple[str, ...]
    said: tuple[str, ...]
    scores: tuple[Score, ...]


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is known of weights.

    Args:
        system: name of the system; summary: what it is, in a line.
        units: of the scans that it starts from: SUVbw of a PET, or HU of a CT.
        spacing_mm: voxel edges (z, y, x) that most training cases have; None where nobody has noted them.
        lowest_mm, highest_mm: the range of these edges; None where no cohort was read.
        drfs: dose reduction factors trained on, NaN for one that is not known.
        cases: trained on; patients: of these.
        tracers, nuclides, scanners: name -> cases; empty where nothing states them.
        scores: one entry per image that the run was evaluated from; none where it was not.
        licence: of the weights, empty where nobody has stated one.
        use: what the weights are meant for.
        limits: what they are not, a sentence each.
        lineage: what they were made from and by -> digest, number or version.
        config: the run's configuration, as files of `petscale train` hold it, without its split.
    """

    system: str
    summary: str
    units: str
    spacing_mm: Edges | None
    lowest_mm: Edges | None
    highest_mm: Edges | None
    drfs: tuple[float, ...]
    cases: int
    patients: int
    tracers: Mapping[str, int]
    nuclides: Mapping[str, int]
    scanners: Mapping[str, int]
    scores: tuple[Scored, ...]
    licence: str
    use: str
    limits: tuple[str, ...]
    lineage: Mapping[str, str]
    config: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; numbers that are not known are null."""
        content = json_safe(asdict(self))
        assert isinstance(content, dict)
        return content


def write_card(file: Path, card: Card, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write weights with their card; the file appears only when it is whole.

    Args:
        file: a new file.
        tensors: of the network, by name.
        facts: what the weights of a run carry, without any name of a case or a file; ``config`` is the card's.
    """
    content = card.to_json()
    config = content.pop("config")
    told = {"config": json.dumps(config), CARD: json.dumps({"form": FORM, **content}, sort_keys=True)}
    with integrity.disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        checkpoint.write_weights(file, tensors, {**facts, **told})


def read_card(file: Path) -> Card:
    """Read what is known of weights; every byte of the file is proven.

    Raises:
        InputError: IMG_NO_FILE; CKPT_CARD for a file that no ``petscale card`` wrote; CKPT_DAMAGED; STORE_SCHEMA.
    """
    return _read(file)[0]


def open_card(file: Path) -> tuple[Card, Trained]:
    """Read weights and what is known of them, ready for inference.

    Raises:
        InputError: those of ``read_card``; CFG_RECIPE for a system that is not installed; CKPT_CONFIG for weights that
            do not fit their configuration.
    """
    card, tensors, facts = _read(file)
    trained = with_networks(tensors, facts, file.name)
    on = replace(
        trained.on,
        nuclides=frozenset(card.nuclides) or trained.on.nuclides,
        tracers=frozenset(card.tracers) or trained.on.tracers,
        scanners=frozenset(card.scanners) or None,
    )
    return card, replace(trained, on=on, weights=integrity.file_digest(file))


def _read(file: Path) -> tuple[Card, dict[str, Tensor], dict[str, str]]:
    if file.is_dir():
        raise _no_card(file, "a folder")
    if not file.exists():
        if file.suffix or file.is_symlink():
            raise no_file(file)
        remedy = f"check the path, or name weights that come with petscale: {', '.join(shipped.names())}"
        raise InputError("IMG_NO_FILE", where=file.name, found="no such file", remedy=remedy)
    try:
        tensors, facts = checkpoint.read_weights(file)
    except InputError as error:
        if error.code == "CKPT_DAMAGED" and file.suffix != SUFFIX:  # most likely another file than was meant
            raise _no_card(file, "no file of weights") from None
        raise
    if CARD not in facts:
        raise _no_card(file, "weights without a card")
    if checkpoint.DIGEST not in facts:
        raise InputError(
            "CKPT_DAMAGED", where=file.name, found="a card without its digest", remedy="get the file again"
        )
    try:
        content = integrity.parse_json(facts[CARD])
        form = int(content["form"])
        if form > FORM:
            raise InputError(
                "STORE_SCHEMA",
                where=file.name,
                found=f"a card of form {form}, this petscale reads up to {FORM}",
                remedy="install a newer petscale",
            )
        return _card(content, integrity.parse_json(facts["config"])), tensors, facts
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise _no_card(file, "a card that cannot be read") from None


def _no_card(file: Path, found: str) -> InputError:
    return InputError(
        "CKPT_CARD",
        where=file.name,
        found=found,
        remedy="name a file that `petscale card RUN FILE` wrote",
    )


def _card(content: Mapping[str, Any], config: Any) -> Card:
    """Read a card's JSON, and the configuration beside it.

    Raises:
        AttributeError, KeyError, TypeError, ValueError, OverflowError: not what ``Card.to_json`` gives.
    """
    words = {name: _text(content[name]) for name in ("system", "summary", "units", "licence", "use")}
    if words["units"] not in (SUV, HU):
        raise ValueError("no unit that a network starts from")
    if not isinstance(config, dict):
        raise TypeError("no configuration")
    return Card(
        **words,
        spacing_mm=_edges(content["spacing_mm"]),
        lowest_mm=_edges(content["lowest_mm"]),
        highest_mm=_edges(content["highest_mm"]),
        drfs=tuple(_number(drf) for drf in content["drfs"]),
        cases=int(content["cases"]),
        patients=int(content["patients"]),
        tracers=_counts(content["tracers"]),
        nuclides=_counts(content["nuclides"]),
        scanners=_counts(content["scanners"]),
        scores=tuple(_scored(one) for one in content["scores"]),
        limits=tuple(_text(one) for one in content["limits"]),
        lineage={_text(name): _text(value) for name, value in content["lineage"].items()},
        config=config,
    )


def _scored(content: Mapping[str, Any]) -> Scored:
    return Scored(
        source=_text(content["source"]),
        images=tuple(_text(one) for one in content["images"]),
        said=tuple(_text(one) for one in content["said"]),
        scores=tuple(
            Score(
                **{name: _text(one[name]) for name in ("region", "metric", "units", "image")},
                mean=_number(one["mean"]),
                sd=_number(one["sd"]),
                cases=int(one["cases"]),
            )
            for one in content["scores"]
        ),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _edges(value: Any) -> Edges | None:
    if value is None:
        return None
    z, y, x = map(float, value)
    return z, y, x


def _counts(value: Mapping[str, Any]) -> dict[str, int]:
    return {_text(name): int(cases) for name, cases in value.items()}


def lineage_of(facts: Mapping[str, str]) -> dict[str, str]:
    """What weights carry of the cases that they were trained on, as a card's lineage tells it."""
    return {
        "cohort (names, digests and patients of all cases), SHA-256": facts[COHORT],
        "cases trained on, digests of": str(len(json.loads(facts[TRAINED_ON]))),
    }
