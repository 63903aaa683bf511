"""Commands killed at random moments: the same command makes what it always makes.  ``make chaos`` kills them all."""

import os
import random
from pathlib import Path

import chaos


def test_what_is_killed_and_run_again_is_as_if_nothing_was(tmp_path: Path) -> None:
    kills = int(os.environ.get("PETSCALE_KILLS", "6"))
    found = list(chaos.findings_of(tmp_path, kills, seed=3, stages=("ingest", "simulate")))
    assert not [one for one in found if one.wrong]
    assert sum(len(one.kills) for one in found) >= kills
    assert {one.stage for one in found} == {"ingest", "simulate"}


def test_a_wrong_result_is_seen(tmp_path: Path) -> None:
    """Else the table of right results would say nothing."""
    undisturbed = chaos.prepare(tmp_path, ("ingest",))
    (name,) = undisturbed.content
    must = dict(undisturbed.content[name])
    other = chaos.Undisturbed(tmp_path, undisturbed.took_s, {name: must | {"p00": "0"}}, {name: frozenset()})
    found = chaos.disturb(other, name, random.Random(0), most=1)
    assert [one.partition(":")[0] for one in found.wrong] == ["p00 differs", "left or missing"]
