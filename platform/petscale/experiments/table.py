"""An experiment's table: ours beside the paper's, paired tests, as Markdown, JSON and on the terminal."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from petscale import config as configs
from petscale.evaluation.baselines import BY_HEIGHT, BY_HU, BY_ORGAN, INPUT
from petscale.evaluation.scores import REFERENCE
from petscale.experiments.design import (
    BEST_BY,
    MATCHINGS,
    Column,
    Experiment,
    Networks,
    Order,
    PhantomCohort,
    Published,
    Scores,
    UserCohort,
    counted,
)
from storage import integrity
from trainers.metrics.statistics import Gain, clopper_pearson, paired_gain, poisson_interval
from trainers.metrics.unet_score import UNION

SIGNIFICANT = 0.05


def compare(scores: Scores, better: str, worse: str, column: Column) -> Gain | None:
    """How much better one row is than another, patient by patient, positive where ``column`` calls it better.

    Returns:
        Mean and sd (ddof 1) of the gain, patients in which it is positive, and the two-sided Wilcoxon signed-rank
        test as in ``statistics.Gain``; None without scores.
    """
    ours, theirs = (scores.get(name, {}).get(column.label, {}) for name in (better, worse))
    return paired_gain(ours, theirs, over=worse, sign=column.sign)


def compare_networks(networks: Networks, better: str, worse: str, column: Column) -> Gain | None:
    """How much better one row is than another, network by network: of one fold and one seed each, means over patients.

    Args:
        networks: of every row.
        better: a row.
        worse: a row, or an image that nobody trained.
        column: the score.

    Returns:
        As ``compare``, with networks in the place of patients; None where a row is no trained one.

    Example:
        >>> column = Column(label="PSNR", metric="PSNR")
        >>> by = {"a": {"fold 0, seed 0": {"a": {"PSNR": {"p": 31.0}}, "input": {"PSNR": {"p": 30.0}}}}}
        >>> compare_networks(by, "a", "input", column).mean
        1.0
    """
    if better not in networks:
        return None
    ours, theirs = {}, {}
    for network, scores in networks[better].items():
        beside = networks[worse].get(network, {}) if worse in networks else scores
        one, other = (found.get(column.label, {}) for found in (scores.get(better, {}), beside.get(worse, {})))
        if one and other:
            ours[network], theirs[network] = (float(np.mean([*values.values()])) for values in (one, other))
    return paired_gain(ours, theirs, over=worse, sign=column.sign)


def verdict(gain: Gain | None) -> str:
    """What the patients say about an ordering, in words."""
    if gain is None:
        return "not computed"
    if gain.p_value is None:
        return "not tested"
    if gain.p_value >= SIGNIFICANT:
        return "within noise"
    return "reproduced" if gain.mean > 0 else "not reproduced"


@dataclass(frozen=True)
class _Line:
    """One row of a table: a trained one, or an image that nobody trained."""

    name: str
    paper: Mapping[str, Published]
    against: str


def _lines(experiment: Experiment, scores: Scores) -> list[_Line]:
    trained = [_Line(row.name, row.paper, row.against) for row in experiment.trained]
    published = [
        _Line(image, paper, "") for image, paper in experiment.untrained.items() if image == INPUT or image in scores
    ]
    known = {line.name for line in (*published, *trained)}
    against = {REFERENCE: "", BY_HU: "", BY_HEIGHT: BY_HU, BY_ORGAN: BY_HU}
    others = [_Line(name, {}, against.get(name, INPUT)) for name in scores if name not in known]
    return [*published, *others, *trained]


def best_baseline(experiment: Experiment, scores: Scores) -> str:
    """Return the baseline of the best mean PSNR inside the body over patients; empty where none was scored by it."""
    trained = {row.name for row in experiment.trained}
    means = {
        name: float(np.mean(list(columns[BEST_BY.label].values())))
        for name, columns in scores.items()
        if name not in trained and not name.startswith(REFERENCE) and columns.get(BEST_BY.label)
    }
    return max(means, key=lambda name: means[name]) if means else ""


def _ours(scores: Scores, name: str, column: Column) -> str:
    values = np.array(list(scores.get(name, {}).get(column.label, {}).values()))
    if not values.size:
        return "-"
    mean = f"{values.mean():.{column.places}f}"
    spread = np.isfinite(values).all() and values.size > 1
    return f"{mean} ± {values.std(ddof=1):.{column.places}f}" if spread else mean


def _theirs(paper: Mapping[str, Published], column: Column) -> str:
    if column.label not in paper:
        return "-"
    mean, sd = paper[column.label]
    return f"{mean:g}" if sd is None else f"{mean:g} ± {sd:g}"


def _p(gain: Gain | None) -> str:
    if gain is None or gain.p_value is None:
        return "-"
    return f"{gain.p_value:.3f}" if gain.p_value >= 0.001 else f"{gain.p_value:.1e}"


def _gained(gain: Gain | None, column: Column) -> str:
    return "-" if gain is None else f"{gain.mean:+.{column.places}f} ({gain.num_better} of {gain.num_cases})"


def markdown(experiment: Experiment, scores: Scores, facts: Mapping[str, Any], networks: Networks) -> str:
    """Return the table as a page: per column ours beside the paper's, the gain over a row's reference and its p.

    Of several seeds, a column more holds the same gain network by network.
    """
    seeded = experiment.seeds > 1
    done = [row.name for row in experiment.trained if row.name in scores]
    patients = len({patient for columns in scores.values() for found in columns.values() for patient in found})
    text = [f"# {experiment.title}", ""]
    if len(done) < len(experiment.trained):
        text += [f"**Partial: {len(done)} of {len(experiment.trained)} rows are finished.**", ""]
    text += [
        f"Paper: {experiment.published_in}.  Ours: {_tested(experiment, patients)}; "
        f"scored on {', '.join(experiment.sources)}.",
        "",
        "Mean ± sd (ddof 1) over patients.  The gain is the mean difference, patient by patient, to the row named,"
        " positive where the row is better, with the number of patients in which it is; p: two-sided Wilcoxon"
        f" signed-rank test over patients, not corrected for the number of tests.  {_shared(experiment)}, so p speaks"
        " of these networks and not of other trainings.",
        *(["", _seeds(experiment)] if seeded else []),
        "",
        *(f"- {caveat}" for caveat in experiment.caveats),
        "",
    ]
    for column in experiment.columns:
        units = f" [{column.units}]" if column.units else ""
        text += [f"## {column.label}{units}, {'higher' if column.sign > 0 else 'lower'} is better", ""]
        if done and not any(columns.get(column.label) for columns in scores.values()):
            text += ["**No image has this score: it was not computed.**", ""]
        header = ("row", "ours", "paper", "gain", "over", "p", *(["gain by network", "p"] if seeded else []))
        text += [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        for line in _lines(experiment, scores):
            gain = compare(scores, line.name, line.against, column)
            cells = [line.name, _ours(scores, line.name, column), _theirs(line.paper, column), _gained(gain, column)]
            cells += [line.against or "-", _p(gain)]
            if seeded:
                by = compare_networks(networks, line.name, line.against, column)
                cells += [_gained(by, column), _p(by)]
            text.append(f"| {' | '.join(cells)} |")
        text.append("")
    text += _best_table(experiment, scores)
    if experiment.lesions:
        text += _pooled_table(experiment, scores)
    text += ["## The paper's orderings", ""] if experiment.orders else []
    for order, column, gain in _compared(experiment, scores):
        told = f": {_gained(gain, column)}, p {_p(gain)}" if gain else ""
        if seeded and (by := compare_networks(networks, order.better, order.worse, column)) is not None:
            told += f"; by network {_gained(by, column)}, p {_p(by)}"
        text.append(f"- {order.column}: {order.better} ahead of {order.worse}: **{verdict(gain)}**{told}")
    text += ["", "## How it was made", "", f"`{facts['command']}`", "", "| | |", "|---|---|"]
    text += [f"| {name} | {value} |" for name, value in facts.items() if isinstance(value, str) and name != "command"]
    return "\n".join(text) + "\n"


def _best_table(experiment: Experiment, scores: Scores) -> list[str]:
    """Every trained row against the one baseline that is best."""
    best = best_baseline(experiment, scores)
    trained = [row for row in experiment.rows if row.name in scores and not row.resized]
    if not best or not trained:
        return []
    text = [f"## Every row against the best baseline: {best}", ""]
    text += ["The best baseline is that of the highest mean PSNR inside the body over all patients.", ""]
    text += ["| row | score | gain | p |", "|---|---|---|---|"]
    for row in trained:
        for column in experiment.columns:
            if (gain := compare(scores, row.name, best, column)) is not None:
                text.append(f"| {row.name} | {column.label} | {_gained(gain, column)} | {_p(gain)} |")
    return [*text, ""]


def _tested(experiment: Experiment, patients: int) -> str:
    """Who is tested, and by which networks."""
    own, folds = experiment.cohort, experiment.folds
    if experiment.external is None:
        return f"{_patients(own, patients)}, {folds} folds by patient, each patient tested once"
    return (
        f"{_patients(experiment.external, patients)}, none of whom was trained on; the networks are those of {folds} "
        f"folds of {_patients(own, own.patients)}; every patient is tested by the networks of all folds, and the "
        "scores are averaged over these first"
    )


def _shared(experiment: Experiment) -> str:
    if experiment.external is None:
        return "The patients of a fold share one network"
    return f"All patients share the networks of {experiment.folds} folds"


def _seeds(experiment: Experiment) -> str:
    """What several seeds are, and what is tested over them."""
    return (
        f"Every row was trained {experiment.seeds} times on every fold, from other initial weights and with other "
        "noise, on the same patches in the same order; a patient's scores are averaged over these first.  The gain by "
        f"network is that of the {experiment.seeds * experiment.folds} pairs of one fold and one seed each, means over "
        "the patients that a pair tests; its p: the same test over these pairs, which differ in their patients too."
    )


def _patients(cohort: PhantomCohort | UserCohort, scored: int) -> str:
    """Who the patients of a table are."""
    if isinstance(cohort, PhantomCohort):
        body = cohort.body
        shape, spacing = " x ".join(map(str, body.shape)), " x ".join(f"{mm:g}" for mm in body.spacing_mm)
        return f"{scored} simulated patients (phantoms of {shape} voxels, {spacing} mm)"
    low = f"; its low doses are {' and '.join(cohort.low_doses)}" if cohort.low_doses else ""
    return (
        f"{scored} patients ({cohort.cases} cases) of the cohort {cohort.name}, which the user gave; no phantoms were "
        f"made for this table{low}; a patient's cases are averaged first"
    )


def _pooled_table(experiment: Experiment, scores: Scores) -> list[str]:
    """Lesions found of all lesions, and false positives of all scans, with exact 95 % intervals."""
    assert experiment.lesions is not None
    text = ["## Lesions of all patients together", "", f"{experiment.lesions.text()}.", ""]
    text += ["| row | found, overlap | false positives per scan | found, peak | false positives per scan, peak |"]
    text += ["|---|---|---|---|---|"]
    for line in _lines(experiment, scores):
        cells = []
        for rule in MATCHINGS:
            counts = [scores.get(line.name, {}).get(c.label, {}) for c in counted(experiment.lesions, rule)]
            hits, lesions, false = (round(sum(found.values())) for found in counts)
            scans = len(counts[2])
            found, alarms = clopper_pearson(hits, lesions) if lesions else None, poisson_interval(false, max(scans, 1))
            share = f"{hits}/{lesions} = {hits / lesions:.2f} ({found[0]:.2f} to {found[1]:.2f})" if found else "-"
            rate = f"{false / scans:.2f} ({alarms[0]:.2f} to {alarms[1]:.2f})" if scans else "-"
            cells += [share, rate]
        text.append(f"| {' | '.join((line.name, *cells))} |")
    return [*text, ""]


def _compared(experiment: Experiment, scores: Scores) -> list[tuple[Order, Column, Gain | None]]:
    columns = {column.label: column for column in experiment.columns}
    return [
        (order, columns[order.column], compare(scores, order.better, order.worse, columns[order.column]))
        for order in experiment.orders
    ]


def as_json(experiment: Experiment, scores: Scores, facts: Mapping[str, Any], networks: Networks) -> dict[str, Any]:
    """Return everything behind the table as JSON values: every patient's score, settings, tests and verdicts."""
    lines = []
    settings = {row.name: configs.to_json(row.config) for row in experiment.rows}
    settings |= {row.name: row.config.stored for row in experiment.segmenters}
    best = best_baseline(experiment, scores)
    for line in _lines(experiment, scores):
        cells = {}
        for column in experiment.columns:
            gain = compare(scores, line.name, line.against, column)
            over_best = compare(scores, line.name, best, column) if line.name in settings else None
            values = scores.get(line.name, {}).get(column.label, {})
            cells[column.label] = {
                "patients": {patient: integrity.json_safe(value) for patient, value in values.items()},
                "paper": line.paper.get(column.label),
                "gain": _as_json(gain),
                "gain_over_best_baseline": _as_json(over_best),
                "networks": {
                    network: float(np.mean([*found[line.name][column.label].values()]))
                    for network, found in networks.get(line.name, {}).items()
                    if found.get(line.name, {}).get(column.label)
                },
                "gain_by_network": _as_json(compare_networks(networks, line.name, line.against, column)),
            }
        lines.append({"name": line.name, "columns": cells, "config": settings.get(line.name)})
    return {
        "experiment": experiment.name,
        "source": experiment.published_in,
        "complete": all(row.name in scores for row in experiment.trained),
        "folds": experiment.folds,
        "seeds": experiment.seeds,
        "best_baseline": best,
        "sources": list(experiment.sources),
        "cohort": asdict(experiment.cohort),
        "external": None if experiment.external is None else asdict(experiment.external),
        "columns": [{**asdict(c), "units": c.units, "higher_is_better": c.sign > 0} for c in experiment.columns],
        "rows": lines,
        "orders": [
            {**asdict(order), "verdict": verdict(gain), "p_value": gain.p_value if gain else None}
            for order, _, gain in _compared(experiment, scores)
        ],
        "facts": dict(facts),
    }


def _as_json(gain: Gain | None) -> dict[str, object] | None:
    return {key: integrity.json_safe(value) for key, value in asdict(gain).items()} if gain else None


def headline(experiment: Experiment, scores: Scores) -> Table:
    """Return the scores of the whole volume for the terminal: ours, the paper's in brackets, p beside it.

    Of a table with columns of one dose each, those of the last dose; of organ segmenters, the Dice of all organs.
    """
    table = Table(title=f"{experiment.title}: mean ± sd over patients (paper), p", title_justify="left")
    table.add_column("row")
    last = ("", experiment.sources[-1])
    regions = ("whole volume",) if experiment.rows else (UNION,)  # a segmenter's Dice is of organs
    columns = [column for column in experiment.columns if column.region in regions and column.source in last]
    for column in columns:
        table.add_column(f"{column.label} \\[{column.units}]" if column.units else column.label, justify="right")
    for line in _lines(experiment, scores):
        cells = []
        for column in columns:
            gain = compare(scores, line.name, line.against, column)
            paper = f" ({_theirs(line.paper, column)})" if column.label in line.paper else ""
            p_value = f", p {_p(gain)}" if gain and gain.p_value is not None else ""
            cells.append(f"{_ours(scores, line.name, column)}{paper}{p_value}")
        table.add_row(line.name, *cells)
    return table
