"""What ``petscale inspect`` shows of a card: what the weights are for, what they were trained on, how they did."""

import math
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from petscale.cards.card import Card, Edges, Scored
from petscale.evaluation.scores import plus_minus
from storage.source import HU

NOT_STATED = "not stated"


def show(name: str, card: Card, console: Console) -> None:
    """Print a card.

    Args:
        name: of its file.
    """
    console.print(f"{name}: weights of {card.system}", markup=False)
    console.print()
    facts = _plain("", "")
    facts.show_header = False
    for what, said in _facts(card):
        facts.add_row(what, said)
    console.print(facts, markup=False)
    console.print()
    for one in card.scores:
        console.print(_scores(one), markup=False)
        for sentence in one.said:
            console.print(sentence, markup=False, soft_wrap=True)
        console.print()
    for sentence in card.limits:
        console.print(f"limit: {sentence}", markup=False, soft_wrap=True)
    console.print()
    lineage = _plain("made from", "")
    for what, value in card.lineage.items():
        lineage.add_row(what, value)
    console.print(lineage, markup=False)


def _facts(card: Card) -> Sequence[tuple[str, str]]:
    from_ct = card.units == HU
    return (
        ("system", card.summary),
        ("starts from", "a CT in HU" if from_ct else "a low-dose PET in SUVbw"),
        ("gives", "a PET in SUVbw" if from_ct else "an estimate of the full-dose PET, on the grid of the scan"),
        ("use", card.use),
        ("licence", card.licence or f"{NOT_STATED}: ask who made the file before you use it or pass it on"),
        ("trained on", f"{_count(card.cases, 'case')} of {_count(card.patients, 'patient')}"),
        *(() if from_ct else (("dose reduction factors", _doses(card.drfs)),)),
        ("voxel size [mm] (z, y, x)", _voxels(card)),
        *((what, _listed(found)) for what, found in _origins(card)),
    )


def _origins(card: Card) -> Sequence[tuple[str, Mapping[str, int]]]:
    return ("tracers", card.tracers), ("nuclides", card.nuclides), ("scanners", card.scanners)


def _doses(drfs: Sequence[float]) -> str:
    return ", ".join("unknown" if math.isnan(drf) else f"{drf:g}" for drf in drfs) or NOT_STATED


def _voxels(card: Card) -> str:
    if card.spacing_mm is None:
        return NOT_STATED
    if card.lowest_mm is None or card.highest_mm is None or card.lowest_mm == card.highest_mm:
        return _mm(card.spacing_mm)
    return f"{_mm(card.spacing_mm)}, from {_mm(card.lowest_mm)} to {_mm(card.highest_mm)}"


def _mm(edges: Edges) -> str:
    return " x ".join(f"{mm:.3g}" for mm in edges)


def _listed(counts: Mapping[str, int]) -> str:
    """Names with the number of their cases, where it is known."""
    return ", ".join(f"{name} ({cases})" if cases else name for name, cases in counts.items()) or NOT_STATED


def _scores(found: Scored) -> Table:
    cases = max((score.cases for score in found.scores), default=0)
    table = _plain(f"from {found.source}, {_count(cases, 'test case')}", *found.images)
    means = {(score.region, score.metric, score.units, score.image): score for score in found.scores}
    for region, metric, units in dict.fromkeys(key[:3] for key in means):
        row = [means.get((region, metric, units, image)) for image in found.images]
        shown = [plus_minus(score.mean, score.sd, metric) if score else "" for score in row]
        table.add_row(f"{metric}, {region}" + ("" if units == "1" else f" [{units}]"), *shown)
    return table


def _plain(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
