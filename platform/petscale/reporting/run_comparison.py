"""What ``petscale compare`` of runs shows on screen and page: means, tests, and what they allow to be said."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from petscale.evaluation.paired import BODY, PairTest
from petscale.evaluation.run_comparison import RunComparison
from petscale.reporting.candidates import write_candidates_page
from petscale.reporting.verdict import compared, untested
from trainers.metrics.presets import BODY_PSNR
from trainers.metrics.statistics import FEWEST_FOR_A_TEST

SHOWN = 10  # names of a list


def sentences(found: RunComparison) -> list[str]:
    """Say of every pair what its test, corrected for all pairs, allows: PSNR inside the body alone decides."""
    tests = [one for one in found.compared.tests if (one.definition, one.region) == (BODY_PSNR, BODY)]
    return [_sentence(one, found.best_baseline) for one in tests]


def _sentence(one: PairTest, best: str) -> str:
    gain = replace(one.gain, p_value=one.p_holm)
    over = f"the best baseline ({best})" if gain.over == best else gain.over
    tested = "" if gain.p_value is None else f", p (Holm) {gain.p_value:.2g}"
    said = f"{one.candidate}: {compared(gain)} {over} in PSNR inside the body: {gain.mean:+.2f} dB{tested}"
    if not untested(gain):
        return said
    return f"not testable with {gain.num_cases} patient(s), fewer than {FEWEST_FOR_A_TEST}: {said}"


def show(comparisons: Mapping[str, RunComparison], console: Console) -> None:
    """Print the comparisons, each with what it rests on, and who was left out."""
    for found in comparisons.values():
        number = len(found.compared.scores.cases)
        who = "1 patient whom" if number == 1 else f"{number} patients whom"
        told = f"from {found.source}: {who} all of {', '.join(found.runs)} were tested on"
        console.print(f"{told}; a patient's scans are averaged first", markup=False, soft_wrap=True)
        for table in found.compared.mean_tables():
            console.print(table, markup=False)
        if (tests := found.compared.test_table()) is not None:
            console.print(tests, markup=False)
        for line in _lines(found):
            console.print(line, markup=False, soft_wrap=True)


def _lines(found: RunComparison) -> Iterator[str]:
    yield f"best baseline, by mean PSNR inside the body of these patients: {found.best_baseline}"
    yield from found.compared.remarks()
    yield from sentences(found)
    for doubt in found.doubts:
        yield f"look at: {doubt}"
    for why, cases in _by_reason(found.left_out).items():
        more = f" and {len(cases) - SHOWN} more" if len(cases) > SHOWN else ""
        yield f"left out: {why}: {', '.join(cases[:SHOWN])}{more}"


def _by_reason(left_out: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for case, why in left_out.items():
        found.setdefault(why, []).append(case)
    return found


def as_json(comparisons: Mapping[str, RunComparison]) -> dict[str, object]:
    """Return everything as JSON-able values, by the image that the runs start from."""
    return {
        source: {
            **found.compared.json(),
            "runs": list(found.runs),
            "best_baseline": found.best_baseline,
            "left_out": dict(found.left_out),
            "doubts": list(found.doubts),
            "verdict": sentences(found),
        }
        for source, found in comparisons.items()
    }


def write_comparison_page(path: Path, comparisons: Mapping[str, RunComparison]) -> None:
    """Write all that is shown as one HTML file that needs no network.

    Raises:
        InputError: DISK_FULL and its kin.
    """
    runs = next(iter(comparisons.values())).runs
    write_candidates_page(path, f"Comparison of {', '.join(runs)}", lambda console: show(comparisons, console), {})
