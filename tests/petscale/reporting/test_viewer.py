"""A report's viewer: voxels come back as they were, the page keeps its size, and a real browser shows it."""

import base64
import hashlib
import itertools
import json
import math
import re
import subprocess
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from petscale.evaluation.baselines import INPUT
from petscale.evaluation.scores import REFERENCE, SYNTHESIZED, Evaluation
from petscale.evaluation.scoring import score_case
from petscale.reporting import CaseImages, ReportData, write_report
from petscale.reporting import page as page_module
from petscale.reporting.pdf import find_browser
from petscale.reporting.viewer import (
    HIGHEST,
    STEP,
    Embedded,
    Viewed,
    block_means,
    body_box,
    centres_of,
    coarser,
    embed,
    unpacked,
)
from storage.errors import InputError
from storage.source import HU, LABEL, SUV, ArraySource, Grid

SHAPE = (20, 14, 16)
GRID = Grid(SHAPE, np.diag([-4.0, -4.0, 6.0, 1.0]))  # x to the left, y to posterior, z to superior
NAMES = {1: "body", 2: "liver", 3: "lesion"}
PLENTY = 10**7


def source(voxels: NDArray[Any], units: str = SUV) -> ArraySource:
    return ArraySource(np.asarray(voxels, np.float32), GRID, units)


def case_of(name: str = "case-000001", seed: int = 1, **more: Any) -> Viewed:
    rng = np.random.Generator(np.random.Philox(seed))
    labels = np.zeros(SHAPE)
    labels[5:15, 5:9, 5:11] = 1
    labels[6:9, 6:8, 6:10] = 2
    labels[11:13, 6:8, 9:11] = 3
    labels[13, 7, 5] = 3
    full = np.choose(labels.astype(int), (0.0, 1.0, 3.0, 8.0)) + rng.random(SHAPE) - 0.2
    images = {
        INPUT: source(full + rng.normal(0, 0.5, SHAPE)),
        SYNTHESIZED: source(full * 0.98),
        REFERENCE: source(full),
    }
    facts: dict[str, Any] = {
        "ct": source(rng.uniform(-1000, 1500, SHAPE), HU),
        "deviation": source(rng.random(SHAPE)),
        "labels": source(labels, LABEL),
        "label_names": NAMES,
    }
    return Viewed(
        name, "only case", images, SYNTHESIZED, REFERENCE, body=source(labels > 0, LABEL), **{**facts, **more}
    )


def voxels_of(image: Mapping[str, Any], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    stored = unpacked(zlib.decompress(base64.b64decode(image["voxels"])), shape)
    return stored.astype(np.float64) * float(image["step"])


def cases_of(found: Embedded) -> list[Any]:
    cases = found.content["cases"]
    assert isinstance(cases, list)
    return cases


def size_of(told: Any) -> int:
    return (
        sum(len(image["voxels"]) for image in told["images"]) + len(json.dumps(told["places"])) + len(told["lesions"])
    )


def test_voxels_come_back_within_half_a_step() -> None:
    case = case_of()
    box = body_box(case.body)
    assert box == (slice(3, 17), slice(2, 12), slice(2, 14))  # 15 mm: two voxels of 6 mm, three of 4 mm
    (told,) = cases_of(embed([case], PLENTY))
    assert told["shape"] == [14, 10, 12]
    assert case.deviation
    assert case.ct
    stored = {**case.images, "standard deviation": case.deviation, "CT": case.ct}
    assert [image["name"] for image in told["images"]] == list(stored)
    for image in told["images"]:
        expected = stored[image["name"]].read(0, SHAPE[0])[box]
        assert np.abs(voxels_of(image, tuple(told["shape"])) - expected).max() <= STEP[image["kind"]] / 2 * 1.0001


def test_values_beyond_the_integers_are_clipped_and_the_page_says_so() -> None:
    hot = np.ones(SHAPE)
    hot[10, 7, 7] = 900.0
    case = case_of()
    images = {**case.images, REFERENCE: source(hot)}
    found = embed([replace(case, images=images)], PLENTY)
    voxels = voxels_of(cases_of(found)[0]["images"][2], (14, 10, 12))
    assert voxels.max() == pytest.approx(HIGHEST * STEP["SUV"])
    assert [note for note in found.notes if "beyond ±327.7" in note and REFERENCE in note]
    assert not embed([case], PLENTY).notes


def test_the_limit_holds_at_any_size_and_blocks_grow_until_it_does() -> None:
    case = case_of()
    needed = size_of(cases_of(embed([case], PLENTY))[0])
    edges = []
    for limit in (needed, needed - 1, needed // 3, needed // 20, 500):
        found = embed([case], limit)
        (told,) = cases_of(found)
        assert size_of(told) <= limit
        edges.append(math.prod(told["spacing_mm"]))
        blocks = [round(mm / own) for mm, own in zip(told["spacing_mm"], GRID.spacing_mm, strict=True)]
        assert bool(found.notes) == (blocks != [1, 1, 1])
        if found.notes:
            assert f"means over {blocks[0]} x {blocks[1]} x {blocks[2]} voxels" in found.notes[0]
    assert edges[0] == 96.0
    assert all(a < b for a, b in itertools.pairwise(edges))
    assert cases_of(embed([case], 50)) == []


def test_a_further_case_is_shown_whole_or_not_at_all() -> None:
    first, second = case_of("case-a"), case_of("case-b", seed=2)
    needed = size_of(cases_of(embed([first], PLENTY))[0])
    assert [told["name"] for told in cases_of(embed([first, second], PLENTY))] == ["case-a", "case-b"]
    found = embed([first, second], needed + 1000)
    assert [told["name"] for told in cases_of(found)] == ["case-a"]
    assert found.notes == ("case-b is left out of the viewer: the page has no room for its voxels.",)


def test_means_over_blocks_are_those_of_the_voxels() -> None:
    values = np.random.Generator(np.random.Philox(3)).random((5, 4, 7))
    means = block_means(values, (2, 1, 3))
    assert means.shape == (3, 4, 3)
    assert means[1, 2, 1] == pytest.approx(values[2:4, 2, 3:6].mean())
    assert means[2, 3, 2] == pytest.approx(values[4, 3, 6])
    assert coarser((1, 1, 1), (6.0, 4.0, 4.0)) == (1, 2, 1)
    assert coarser((1, 1, 1), (6.0, 4.0, 4.0), wanted=0.2) == (2, 2, 2)


def test_lesions_and_organs_are_gone_to_by_a_voxel_of_theirs() -> None:
    case = case_of()
    (told,) = cases_of(embed([case], PLENTY))
    marks = case.labels.read(0, SHAPE[0])[body_box(case.body)]
    places = {place["name"]: tuple(place["at"]) for place in told["places"]}
    assert list(places) == ["lesion 1", "lesion 2", "liver"]
    assert [marks[places[name]] for name in places] == [3, 3, 2]
    assert places["lesion 2"] == (13 - 3, 7 - 2, 5 - 2)
    ring = np.zeros(SHAPE)
    ring[4:9, 4:9, 4:9] = 7
    ring[5:8, 5:8, 5:8] = 0
    (at,) = centres_of(source(ring, LABEL), [7]).values()
    assert ring[at] == 7


@pytest.mark.parametrize("limit", [PLENTY, 3000])
def test_lesions_are_outlined_by_their_own_voxels_or_by_the_blocks_that_hold_one(limit: int) -> None:
    case = case_of()
    (told,) = cases_of(embed([case], limit))
    shape = tuple(told["shape"])
    found = unpacked(zlib.decompress(base64.b64decode(told["lesions"])), shape)
    wanted = case.labels.read(0, SHAPE[0])[body_box(case.body)] == 3
    blocks = [round(mm / own) for mm, own in zip(told["spacing_mm"], GRID.spacing_mm, strict=True)]
    assert (blocks == [1, 1, 1]) == (limit == PLENTY)
    places = {tuple(int(a) // b for a, b in zip(at, blocks, strict=True)) for at in np.argwhere(wanted)}
    assert {tuple(map(int, at)) for at in np.argwhere(found == 1)} == places
    assert not np.any((found != 0) & (found != 1))
    assert cases_of(embed([replace(case, label_names={1: "body", 2: "liver"})], PLENTY))[0]["lesions"] == ""


@pytest.fixture(autouse=True)
def _no_histogram(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes most of a page's time, and is none of the viewer's."""
    monkeypatch.setattr(page_module, "draw_histograms", lambda *_: "")


def test_nothing_but_voxels_names_and_places_is_embedded() -> None:
    case = case_of()
    named = {**vars(case), "images": {**case.images, REFERENCE: replace(source(np.ones(SHAPE)), provenance={"n": "X"})}}
    found = embed([Viewed(**named)], PLENTY)
    assert found.content.keys() == {"cases", "colours"}
    (told,) = cases_of(found)
    grid = {"shape", "axes", "positive", "spacing_mm"}
    assert told.keys() == {"name", "why", *grid, "images", "synthesized", "reference", "places", "lesions"}
    assert all(image.keys() == {"name", "kind", "step", "voxels", "clipped"} for image in told["images"])
    assert all(place.keys() == {"name", "kind", "at"} for place in told["places"])


def page_of(folder: Path, page_mb: float = 20.0) -> Path:
    case = case_of()
    candidates = {name: image for name, image in case.images.items() if name != REFERENCE}
    scores = score_case("case-000001", case.images[REFERENCE], candidates, body=case.body)
    evaluation = Evaluation(tuple(scores), tuple(candidates), ("case-000001",))
    images = CaseImages(
        case.images[REFERENCE],
        candidates,
        case.body,
        anatomy=case.ct,
        deviation=case.deviation,
        labels=case.labels,
        label_names=case.label_names,
    )
    path = folder / "report.html"
    write_report(path, ReportData("run", evaluation, {"case-000001": images}, "petscale train", {}, page_mb=page_mb))
    return path


def test_the_page_keeps_its_size_and_says_when_there_is_no_viewer(tmp_path: Path) -> None:
    whole = page_of(tmp_path).stat().st_size
    absent = page_of(tmp_path, 0.0).read_text("utf-8")
    assert "No viewer: a page of 0 MB has no room for voxels" in absent
    assert 'id="viewer"' not in absent
    tight = (whole - 5_000) / 1e6
    assert page_of(tmp_path, tight).stat().st_size <= tight * 1e6


def test_the_page_allows_its_own_script_and_no_address(tmp_path: Path) -> None:
    page = page_of(tmp_path).read_text("utf-8")
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = dict(rule.split(" ", 1) for rule in policy.replace("&#39;", "'").split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert rules["img-src"] == "data:"
    assert not re.search(r"https?:|//\w+\.|ws:|\*", policy)
    assert page.index("Content-Security-Policy") < page.index("<style>")


DRIVER = Path(__file__).with_name("viewer_driver.js").read_text("utf-8")


def test_a_browser_opens_scrolls_and_windows_and_no_request_leaves_the_page(tmp_path: Path) -> None:
    """The page's copy allows one more script, which does what a reader does; everything else is the page's own."""
    try:
        browser = find_browser()
    except InputError as absent:
        pytest.skip(absent.found)
    page = page_of(tmp_path).read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(DRIVER.encode()).digest()).decode()
    page = page.replace("script-src ", f"script-src &#39;sha256-{digest}&#39; ", 1)
    driven = tmp_path / "driven.html"
    driven.write_text(page.replace("</body>", f"<script>alert(1)</script><script>{DRIVER}</script></body>"), "utf-8")
    log = tmp_path / "net.json"
    done = subprocess.run(
        [
            browser,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
            *("--disable-component-update", "--disable-sync", "--window-size=1200,1600", "--enable-logging=stderr"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"),
            *(f"--log-net-log={log}", "--virtual-time-budget=8000", "--dump-dom", driven.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'data-said="([^"]*)"', done.stdout)
    assert found, done.stderr
    said = {what: (one, two) for what, one, two in json.loads(found.group(1).replace("&quot;", '"'))}
    assert "error" not in said
    assert said["lesion 2"][0] == said["back"][0]
    place = [int(number) for number in said["lesion 2"][0].split()]
    # The affine runs to the left, to the back and to the head: x and y as stored, z from the other end.
    assert place == [5 - 2, 7 - 2, 14 - 1 - (13 - 3)]
    assert said["wheel"][0] == f"{place[0]} {place[1]} {place[2] + 1}"
    assert said["key"][0] == f"{place[0] + 1} {place[1]} {place[2]}"
    assert said["start"][1] == "0.00 7.00"
    assert float(said["window"][1].split()[1]) == pytest.approx(7 * math.exp(-50 / 150), abs=0.01)
    assert said["darker"] == ("true", "")
    values, where = said["values"][0].split(";"), said["where"][0]
    x, y, z = (int(number) for number in said["projection"][0].split())
    full = case_of().images[REFERENCE].read(0, SHAPE[0])[3:17, 2:12, 2:14]
    assert z == 4
    assert values[2] == f"{full[13 - z, y, x]:.2f} SUV"
    assert full[13 - z, y, x] == full[13 - z, :, x].max(), "a projection from the front shows the hottest of its ray"
    assert [value.split()[-1] for value in values] == ["SUV"] * 6
    assert "Projection: 8°." in where
    assert said["columns"] == ("5", "20")
    assert said["outlined"] == ("0", "true")
    assert said["fetch"] == ("refused", "")
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert len(console) >= 3
    for line in console:  # the picture, the request and the script that this test has put there; nothing else
        assert "Content Security Policy" in line
        assert "leaves.invalid" in line or "inline script" in line
    events = [event.get("params", {}) for event in json.loads(log.read_text("utf-8"))["events"]]
    # What the browser asks for on its own account (the time, its updates) has no origin, and is refused above.
    asked = {(event["initiator"], event["url"]) for event in events if "initiator" in event}
    assert not [url for initiator, url in asked if initiator != "not an origin"]
