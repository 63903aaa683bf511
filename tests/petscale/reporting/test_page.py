"""The report: self-contained, complete, honest in words, safe with strings; pictures in the right orientation."""

import base64
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from petscale.calibrations import Kept
from petscale.evaluation.baselines import INPUT, GaussianSource
from petscale.evaluation.scores import REFERENCE, SYNTHESIZED, Evaluation
from petscale.evaluation.scoring import score_case
from petscale.reporting import CaseImages, ReportData, write_report
from petscale.reporting import page as page_of
from petscale.reporting.calibration import calibration_facts
from petscale.reporting.pictures import GREY, Frame, case_rows, middle, mip, plane, png, signed_extreme
from petscale.reporting.run import best_epochs, chosen_step
from petscale.reporting.verdict import verdict
from petscale.training.progress import read_metrics
from storage.source import LABEL, SUV, ArraySource, Grid, ImageSource
from trainers.metrics.calibration import LEVELS, Band, Calibration, Coverage
from trainers.metrics.clinical import BIASES
from trainers.metrics.definitions import Score
from trainers.metrics.presets import BODY_PSNR, LESION_PSNR

SHAPE = (20, 16, 18)
GRID = Grid(SHAPE, np.diag([-4.0, -4.0, 6.0, 1.0]))  # x to the left, y to posterior, z to superior
HOSTILE = "</script><script>alert(1)</script> & <img src=x>"
HELD = [Coverage(low, tuple(0.97 * level for level in LEVELS), 0.8, 0.95, 3) for low in (0.0, 1.0)]
CALIBRATED = Kept(
    Calibration((Band(0.0, 0.1, 2.0, 4), Band(1.0, 0.25, 3.5, 4))),
    weights="digest",
    members=("member",),
    description=f"mean of 2 mirror images {HOSTILE}",
    images=("low_drf20",),
    patients=4,
    learned=tuple(HELD),
    checked=(HELD[0], replace(HELD[1], observed=(0.5, 0.6, 0.7, 0.8, 0.84, 0.9, 0.95))),
    checked_patients=3,
)


def source(voxels: ArrayLike, units: str = SUV, grid: Grid = GRID) -> ArraySource:
    return ArraySource(np.asarray(voxels, np.float32), grid, units)


def uri_pixels(uri: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))).convert("L"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.Generator(np.random.Philox(5))
    labels = np.zeros(SHAPE)
    labels[2:18, 3:13, 3:15] = 1
    labels[5:9, 5:9, 5:9] = 2
    labels[12:15, 6:9, 9:12] = 3
    activity = np.choose(labels.astype(int), (0.0, 1.0, 3.0, 8.0))
    full = source(activity)
    low = source(np.abs(activity + rng.normal(0, 0.5, SHAPE)))
    body, marks = source(labels > 0, LABEL), source(labels, LABEL)
    candidates: dict[str, ImageSource] = {
        INPUT: low,
        "Gaussian 5 mm": GaussianSource(low, 5.0),
        SYNTHESIZED: source(activity * 0.98),
    }
    names = {1: "body", 2: f"liver {HOSTILE}", 3: "lesion"}
    scores = score_case(
        "case-000001", full, candidates, body=body, labels=marks, label_names=names, presets=("native", "sgsgan")
    )
    evaluation = Evaluation(tuple(scores), tuple(candidates), ("case-000001",), {"note": HOSTILE})
    metrics = [
        {"step": s, "phase": "gan", "patches_per_s": 3.0, "wait_share": 0.1, "loss/content": 1 / (s + 1)}
        for s in range(5)
    ]
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(
        path,
        ReportData(
            title=f"Run {HOSTILE}",
            evaluation=evaluation,
            images={"case-000001": CaseImages(full, candidates, body)},
            command=f"petscale train {HOSTILE}",
            config={"weight": 100, "text": HOSTILE},
            metrics=metrics,
            environment={"torch": "2.13"},
            trained_with=[("from step 0", {"torch": f"2.12 {HOSTILE}"}), ("from step 40", {"torch": "2.14"})],
            cohort_digest="0123abcd",
            suv_rules={"case-000001": "SeriesTime"},
            doubts=[f"another choice would change SUV {HOSTILE} (of weight, 1 of 1 test cases, up to 10.9 %)."],
            calibrations=[CALIBRATED],
            deviations_said=["Standard deviation of 1 case(s): not calibrated."],
        ),
    )
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return path.read_text("utf-8")


def test_the_page_loads_nothing(page: str) -> None:
    loads = re.findall(r"""(?:src|href|srcset|action|data)\s*=\s*["']([^"']*)""", page) + re.findall(
        r"url\(([^)]*)", page
    )
    assert loads
    assert all(load.startswith(("data:", "#")) for load in loads)
    assert not re.search(r"@import|https?://|<link|<iframe", page)
    assert len(page) < 10e6


def test_what_was_noted_of_the_data_stands_beside_the_verdict(page: str) -> None:
    noted = page.index("Noted of the data: another choice would change SUV")
    assert page.index("<body") < noted < page.index('id="pictures"')
    assert "1 of 1 test cases, up to 10.9 %" in page


def test_the_first_table_has_a_line_per_image_so_that_none_leaves_the_page(page: str) -> None:
    table = page.split('<table class="headline', 1)[1].split("</table>", 1)[0]
    heads, *lines = table.split("<tr")[1:]
    assert 2 <= heads.count("<th") <= 5
    assert all(line.count("<td") == heads.count("<th") for line in lines)
    ours = [line for line in lines if 'class="ours"' in line]
    assert len(ours) == 1
    assert ours == lines[-1:]


def test_uptake_tables_show_input_best_baseline_and_synthesized_alone_so_that_none_leaves_the_page(page: str) -> None:
    section = page.split('id="uptake"', 1)[1].split('id="training"', 1)[0]
    organs, agreement, volumes, lesions = section.split("<table")[1:5]
    for table in (organs, lesions):
        assert re.findall(r'colspan="3">([^<,]*)', table)[-1] == SYNTHESIZED
        assert len(re.findall(r'colspan="3"', table)) <= 4  # of a lesion's full dose too
    assert re.findall(r'colspan="3">([^<,]*)', agreement) == ["SUVmax", "SUVpeak", "SUVmean"]
    assert re.findall(r'colspan="3">([^<,]*)', volumes) == ["MTV", "TLG41"]
    names = [row.split("<td", 2)[1].split(">")[1].split("<")[0] for row in agreement.split("<tr")[3:]]
    assert names == [INPUT, "Gaussian 5 mm", SYNTHESIZED]
    assert agreement.split(SYNTHESIZED)[1].count("−2.0") == 3  # the image is 0.98 of the full dose
    assert volumes.split(SYNTHESIZED)[1].count("−2.0") == 1  # MTV does not depend on an image's scale


def test_activity_detail_and_noise_of_every_image_stand_beside_the_full_dose(page: str) -> None:
    table = page.split("Activity, detail and noise", 1)[1].split("<table", 1)[1].split("</table", 1)[0]
    lines = {line.split('class="t">')[1].split("<")[0]: line for line in table.split("<tr")[3:]}
    assert list(lines) == [INPUT, "Gaussian 5 mm", SYNTHESIZED, REFERENCE]
    assert "−2.00" in lines[SYNTHESIZED]  # the image is 0.98 of the full dose
    assert HOSTILE not in table
    assert 'alt="ring correlation' not in page  # so small a body has no spectrum


def test_spectra_are_drawn_for_the_pictured_images(page: str) -> None:
    curve = [1.0, 0.8, 0.3, None]
    found = {
        "frequency_per_mm": [0.005, 0.015, 0.025, 0.035],
        "correlation": {INPUT: curve, SYNTHESIZED: curve},
        "noise": {"liver": {INPUT: [4.0, 3.0, 0.0, None], REFERENCE: [2.0, 1.0, 0.5, None], SYNTHESIZED: []}},
    }
    rows = (
        Score("c", INPUT, "body", "body", BODY_PSNR, 30.0),
        Score("c", SYNTHESIZED, "body", "body", BODY_PSNR, 31.0),
    )
    images = (INPUT, SYNTHESIZED)
    drawn = page_of._spectra(Evaluation(rows, images, ("c",), {"spectra": found}))
    assert uri_pixels(drawn).std() > 0
    alone = {**found, "noise": {}}
    without = uri_pixels(page_of._spectra(Evaluation(rows, images, ("c",), {"spectra": alone})))
    assert without.shape[1] < uri_pixels(drawn).shape[1]
    assert page_of._spectra(Evaluation(rows, images, ("c",), {})) == ""
    nothing = {**found, "correlation": {INPUT: [], SYNTHESIZED: []}}
    assert page_of._spectra(Evaluation(rows, images, ("c",), {"spectra": nothing})) == ""


def test_lesions_put_in_have_a_line_per_image() -> None:
    one = {"auc": 0.75, "interval": [None, None], "d_prime": 0.95, "false_at_80": 0.44}
    images = [{"image": INPUT, **one}, {"image": SYNTHESIZED, **one}]
    told: dict[str, object] = {"rule": "spheres", "best_baseline": INPUT, "images": images}
    told |= {"gain": {"auc": -0.014, "interval": [-0.043, 0.016]}}
    rows = (Score("c", INPUT, "body", "body", BODY_PSNR, 30.0),)
    found = page_of._task(Evaluation(rows, (INPUT, SYNTHESIZED), ("c",), {"task": told}))
    assert found is not None
    assert found["lines"] == [(name, "0.750", "–", "0.95", "44 %") for name in (INPUT, SYNTHESIZED)]
    assert found["gain"] == f"{SYNTHESIZED} against {INPUT}: −0.014 (−0.043 to +0.016)"
    assert page_of._task(Evaluation(rows, (INPUT,), ("c",), {})) is None


def test_what_trained_is_told_apart_from_what_made_the_page(page: str) -> None:
    run = page.split('id="run"', 1)[1].split('id="claims"', 1)[0]
    first, second, made = (run.index(text) for text in ("2.12", "2.14", "2.13"))
    assert run.index("Trained with, from step 0") < first < run.index("Trained with, from step 40") < second
    assert second < run.index("This page was made with") < made


def test_user_strings_cannot_become_markup(page: str) -> None:
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "<img src=x>" not in page
    assert page.count("<script") == 3  # scores, voxels, and what the page does
    assert page.count("</script>") == 3


def test_numbers_are_embedded_whole(page: str) -> None:
    embedded = re.search(r'<script type="application/json" id="scores-json">(.*?)</script>', page, re.S).group(1)
    content = json.loads(embedded)
    assert content["metadata"]["note"] == HOSTILE
    csv = base64.b64decode(re.search(r'href="data:text/csv;base64,([^"]*)"', page).group(1)).decode()
    rows = content["scores"]["rows"]
    assert len(csv.splitlines()) == len(rows) + 1
    assert all(len(row) == len(content["scores"]["columns"]) for row in rows)
    assert {row[4] for row in rows} == set(range(len(content["rules"])))


def test_sections_and_statements_are_there(page: str) -> None:
    for anchor in ("pictures", "scores", "uptake", "training", "run", "claims"):
        assert f'id="{anchor}"' in page
    for text in (
        "Research use only. Not a medical device.",
        "technical or promise only",
        "Anterior MIP",
        "Lateral MIP",
        "Central coronal slice",
        "synthesized − full dose",
        "SUVbw 0 to 7",
        "Joint histogram",
        "Lesions",
        "Resolved configuration",
        "0123abcd",
        "SeriesTime",
        "by the rules of preset sgsgan",
        "maximum of the full-dose image inside the body",
        "no significance test is made",
    ):
        assert text in page, text


def evaluation_of(gains: Sequence[float], filtered: float = 0.5) -> Evaluation:
    scores = [
        Score(f"c{i}", image, "body", "body", BODY_PSNR, value, 8.0)
        for i, gain in enumerate(gains)
        for image, value in ((INPUT, 30.0), ("Gaussian 5 mm", 30.0 + filtered), (SYNTHESIZED, 30.0 + gain))
    ]
    return Evaluation(tuple(scores), (INPUT, "Gaussian 5 mm", SYNTHESIZED), tuple(f"c{i}" for i in range(len(gains))))


@pytest.mark.parametrize(
    ("gains", "state", "words"),
    [
        ([1.0, 2.0], "mixed", "Not testable with 2 test case(s): higher than the best baseline (Gaussian 5 mm) in"),
        ([9.0] * 5, "mixed", "Not testable with 5 test case(s): higher than the best baseline (Gaussian 5 mm) in"),
        (
            [0.2, 0.3],
            "mixed",
            "Not testable with 2 test case(s): not higher than the best baseline (Gaussian 5 mm), but higher than",
        ),
        (
            [-0.2, 0.1],
            "worse",
            "Not testable with 2 test case(s): not higher than the best baseline (Gaussian 5 mm), and not higher than",
        ),
        (
            [0.0, 0.0],
            "worse",
            "Not testable with 2 test case(s): not higher than the best baseline (Gaussian 5 mm), and not higher than",
        ),
        ([9.0, -1.0, 2.0, -0.5, 3.0, -0.7], "mixed", "No clear difference from the best baseline (Gaussian 5 mm)"),
        ([0.6, 0.2, 0.7, 0.3, 0.9, 0.4, 0.8], "mixed", "No clear difference from the best baseline (Gaussian 5 mm)"),
        ([1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "better", "Better than the best baseline (Gaussian 5 mm) in"),
    ],
)
def test_the_verdict_says_what_the_scores_allow(gains: list[float], state: str, words: str) -> None:
    told = verdict(evaluation_of(gains))
    assert told.state == state
    assert told.headline.startswith(words)
    assert f"{abs(np.mean(gains) - 0.5):.2f}" in told.sentences[0]
    assert f"{abs(np.mean(gains)):.2f}" in told.sentences[1]
    insignificant = any("not statistically significant" in sentence for sentence in told.sentences)
    assert insignificant == ("no clear difference" in told.headline.lower())


def test_the_only_test_is_against_the_baseline_of_the_best_mean_and_the_input_may_be_it() -> None:
    gains = [0.6, 0.2, 0.7, 0.3, 0.9, 0.4, 0.8]
    told = verdict(evaluation_of(gains, filtered=-3.0))
    assert told.state == "better"
    assert told.headline == "Better than the best baseline (low-dose input) in PSNR inside the body."
    assert sum("Wilcoxon" in sentence for sentence in told.sentences) == 1
    assert "Gaussian" not in " ".join(told.sentences)


@pytest.mark.parametrize(("cases", "compared"), [(2, "higher than"), (6, "better than")])
@pytest.mark.parametrize(("ours", "word"), [(4.0, "closer to"), (20.0, "no closer to")])
def test_lesions_are_compared_with_the_best_baseline(ours: float, word: str, cases: int, compared: str) -> None:
    base = evaluation_of([1.0, 2.0, 1.5, 1.2, 1.1, 1.9][:cases])
    lesions = [
        Score(case, image, "lesion 1", "lesion", rule, value, 8.0)
        for case in base.cases
        for image, values in ((INPUT, (20.0, 1.0)), ("Gaussian 5 mm", (25.0, -10.0)), (SYNTHESIZED, (27.0, ours)))
        for rule, value in zip((LESION_PSNR, BIASES["SUVmax"]), values, strict=True)
    ]
    told = verdict(Evaluation((*base.rows, *lesions), base.images, base.cases)).sentences
    assert any(sentence.startswith(f"In lesions: {compared} Gaussian 5 mm in PSNR, +2.00") for sentence in told)
    assert any(f"Lesion SUVmax is {word} the full dose than in Gaussian 5 mm" in sentence for sentence in told)
    assert any("not testable" in sentence for sentence in told) == (cases < 6)


def test_in_lesions_the_baseline_counts_that_is_best_there() -> None:
    """One filter may be best in the body and another in lesions: who is behind the latter is not ahead in lesions."""
    base = evaluation_of([1.0, 2.0, 1.5, 1.2, 1.1, 1.9])
    lesions = [
        Score(case, image, "lesion 1", "lesion", LESION_PSNR, value, 8.0)
        for case in base.cases
        for image, value in ((INPUT, 28.0), ("Gaussian 5 mm", 25.0), (SYNTHESIZED, 27.0))
    ]
    scored = Evaluation((*base.rows, *lesions), base.images, base.cases)
    assert scored.best_baseline == "Gaussian 5 mm"
    (told,) = (sentence for sentence in verdict(scored).sentences if sentence.startswith("In lesions"))
    assert told.startswith(f"In lesions: not better than the baseline that is best in them ({INPUT}) in PSNR, −1.00")


def test_projections_equal_numpy_on_every_axis() -> None:
    rng = np.random.Generator(np.random.Philox(6))
    a, b = rng.random(SHAPE), rng.random(SHAPE)
    for axis in range(3):
        np.testing.assert_allclose(mip(source(a), axis), a.max(axis=axis), rtol=1e-6)
        np.testing.assert_allclose(plane(source(a), axis, 3), a.take(3, axis=axis), rtol=1e-6)
        difference = (a - b).transpose(axis, *(k for k in range(3) if k != axis))
        farthest = np.take_along_axis(difference, np.abs(difference).argmax(axis=0)[None], 0)[0]
        np.testing.assert_allclose(signed_extreme(source(a), source(b), axis), farthest, atol=1e-6)


def test_middle_is_the_centre_of_mass() -> None:
    body = np.zeros(SHAPE)
    body[4:9, 2:5, 10:17] = 1
    assert [middle(source(body, LABEL), axis) for axis in range(3)] == [6, 3, 13]
    assert middle(source(np.zeros(SHAPE), LABEL), 1) == 8


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_views_are_radiological_whatever_the_storage_order(
    axes: tuple[int, int, int], signs: tuple[int, int, int]
) -> None:
    """A spot at the patient's right, front and top is drawn at the upper left of both views."""
    affine = np.zeros((4, 4))
    for voxel_axis, anatomical in enumerate(axes):
        affine[anatomical, voxel_axis] = 4.0 * signs[voxel_axis]
    affine[3, 3] = 1
    grid = Grid((20, 20, 20), affine)
    at = []
    for array_axis in range(3):
        sign = signs[2 - array_axis]
        at.append(17 if sign > 0 else 2)  # far along right, anterior and superior in RAS+
    voxels = np.zeros(grid.shape)
    voxels[tuple(at)] = 5.0
    frame = Frame.of(grid)
    for across, columns in ((1, 0), (0, 1)):
        picture = frame.upright(mip(source(voxels, grid=grid), frame.axes[across]), across, columns)
        assert np.argwhere(picture == 5.0).tolist() == [[2, 2]]


def test_panels_have_one_window_and_the_shape_of_the_patient() -> None:
    body, image = np.zeros(SHAPE), np.zeros(SHAPE)
    body[:] = 1
    image[9:13, 6:10, 7:11] = 7.0
    images = {"a": source(image), "b": source(image * 0.5), "full dose": source(image)}
    rows = case_rows(images, source(body, LABEL), image="b", reference="full dose", window=(0, 7), difference_window=2)
    assert [row.title for row in rows] == ["Anterior MIP", "Lateral MIP", "Central coronal slice"]
    assert (rows[0].left, rows[0].right) == ("R", "L")
    for row in rows[:2]:
        dark = [int(uri_pixels(row.images[name]).min()) for name in ("a", "b")]
        assert dark[0] < 10
        assert 100 < dark[1] < 160
    assert rows[0].height_px / rows[0].width_px == pytest.approx(20 * 6 / (18 * 4), rel=0.05)
    assert rows[1].width_mm == 16 * 4


def test_values_outside_the_window_are_clipped() -> None:
    pixels = uri_pixels(png(np.array([[-5.0, 0.0, 7.0, 99.0]], np.float32), (0, 7), GREY))
    assert pixels.tolist() == [[255, 255, 0, 0]]


def test_a_training_log_cut_off_by_a_crash_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss/g": 0.5}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss/g": 0.5}]
    assert read_metrics(tmp_path / "absent.jsonl") == []


def test_a_run_without_images_labels_or_log_still_has_a_page(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", ReportData("bare", evaluation_of([1.0]), {}, "petscale evaluate", {}))
    page = (tmp_path / "r.html").read_text("utf-8")
    assert "No training log was given" in page
    assert "No images were given" in page
    assert "<p>Not calibrated: how often an interval" in page


def test_validation_is_drawn_beside_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []

    def draw(panels: list[Any]) -> str:
        drawn.extend(panels)
        return ""

    monkeypatch.setattr(page_of, "draw_curves", draw)
    log = [{"step": s, "phase": "train", "loss/mse": 1.0 / s, "patches_per_s": 3.0} for s in (5, 10, 15)]
    scored = [{"step": s, "phase": "train", "validation/gain_db": s / 10, "best_step": s} for s in (10, 15)]
    page_of._curves([*log, *scored])
    assert dict(drawn) == {
        "loss/mse": [("train", [5, 10, 15], [1 / 5, 1 / 10, 1 / 15])],
        "validation: PSNR gained [dB]": [("train", [10, 15], [1.0, 1.5])],
        "patches per second": [("train", [5, 10, 15], [3.0] * 3)],
    }


def test_the_chosen_step_is_told_where_validation_chose_one() -> None:
    assert chosen_step({"recipe": "red_cnn"}) == []
    (told,) = chosen_step({"chosen": json.dumps({"step": 250, "gain_db": 3.456})})
    assert told.startswith("The weights are those of step 250, ")
    assert "+3.46 dB" in told


def test_the_best_epoch_of_each_score_stands_beside_the_one_kept() -> None:
    def epoch(step: int, psnr: float, ssim: float, mae: float) -> dict[str, Any]:
        return {
            "event": "validation",
            "step": step,
            "validation/psnr": psnr,
            "validation/ssim": ssim,
            "validation/mae": mae,
        }

    assert best_epochs([{"event": "validation", "step": 5, "validation/gain_db": 1.0}]) == []
    (told,) = best_epochs([epoch(10, 25.0, 0.91, 0.02), epoch(20, 27.5, 0.90, 0.03), epoch(30, 27.5, 0.8, 0.01)])
    assert "3 epochs" in told
    assert "PSNR 27.50 dB at step 20, SSIM 0.9100 at step 10, MAE 0.0100 at step 30;" in told
    assert "step 20, PSNR 27.50 dB, SSIM 0.9000, MAE 0.0300." in told


def test_a_standard_deviation_s_calibration_stands_on_the_page_with_its_curve(page: str) -> None:
    section = page.split('id="deviation"', 1)[1].split('id="training"', 1)[0]
    heads, *rows = section.split("<table", 1)[1].split("</table", 1)[0].split("<tr")[1:]
    assert [row.count("<td") for row in rows] == [heads.count("<th")] * 2
    wanted = ("above 1", "0.25", "3.50", "87.3", "84.0", "80.0 to 95.0", "4 + 3")
    assert re.findall(r"<td[^>]*>([^<]*)", rows[1]) == list(wanted)
    assert "Intervals of 90% did not hold 87% to 93% of the voxels of 3 test patients: SUV above 1 (84.0%)." in section
    assert 'src="data:image/png;base64,' in section
    assert "Not calibrated" not in section
    assert "The full-dose scan is noisy itself" in section
    assert HOSTILE not in section
    assert "Standard deviation of 1 case(s): not calibrated" in section


def test_a_calibration_that_was_not_checked_is_called_so() -> None:
    unchecked = calibration_facts(replace(CALIBRATED, checked=(), checked_patients=0))
    assert unchecked["verdict"].startswith("Not checked: no test patient.")
    assert unchecked["lines"][0][4:] == ("–", "–", "4 + 0")
