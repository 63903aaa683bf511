"""What a page says of the data: notes of the cases that it is about, in sentences."""

from pathlib import Path

from petscale.reporting.doubts import doubts_of, doubts_of_run
from storage.ingest import CasePlan, ingest
from storage.phantom import PhantomConfig, phantom
from storage.reader import open_cohort
from storage.source import ArraySource

BODY = phantom(PhantomConfig(shape=(24, 20, 20), spacing_mm=(24.0, 20.0, 20.0)))


def test_notes_are_counted_over_cases_and_found_behind_a_simulation(tmp_path: Path) -> None:
    facts: dict[str, object] = {
        "notes": ["reference_spread_above_1_percent", "small_animal"],
        "reference_spread_percent": 10.9,
    }
    told: dict[str, dict[str, object]] = {
        "a": facts,
        "b": {**facts, "reference_spread_percent": 2.0},
        "c": {"kind": "simulated low dose", "config": {"drf": 4, "mode": "activity"}, "truth": {"notes": ["no_suv"]}},
        "d": {},
    }
    plans = {
        name: lambda _, name=name: CasePlan(
            {"full": ArraySource(BODY.activity.read(0, 24), BODY.activity.grid, "SUVbw", told[name])}, name, name
        )
        for name in told
    }
    ingest(tmp_path, plans, strict=True)
    cohort = open_cohort(tmp_path)
    lines = doubts_of({name: cohort.case(name) for name in cohort.cases}, "full", "absent", what="test")
    assert len(lines) == 3
    assert lines[0].endswith("by the percentage given (of weight, 2 of 4 test cases, up to 10.9 %).")
    assert lines[1] == "a weight below 1 kg: a small animal (2 of 4 test cases)."
    assert lines[2] == "the values cannot be SUV: check unit, weight and dose (of weight, 1 of 4 test cases)."
    facts_of_run = {"train": ["a"], "validation": ["b"], "test": ["c"]}
    assert len(doubts_of_run(cohort, facts_of_run, ["c"], ["full"])) == 3
    swept = doubts_of_run(cohort, facts_of_run, (), ["full"])
    assert [line.rsplit("(", 1)[1] for line in swept] == [
        "of weight, 2 of 2 training cases, up to 10.9 %).",
        "2 of 2 training cases).",
    ]
    assert len(doubts_of_run(cohort, {"train": ["elsewhere"]}, ["c"], ["full"])) == 1
