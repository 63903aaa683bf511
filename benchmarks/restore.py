"""restore beside every baseline on simulated low doses of real PET, and with one part changed at a time.

    python benchmarks/restore.py DATA FOLDER [--samples 40000] [--short 4000] > docs/results/restore.md

DATA holds two public releases of TCIA's Soft-tissue-Sarcoma: `ibsi_validation/nifti` (39 patients, crops with tumour
masks) and `sts_001_wholebody_pet/image` (one whole-body DICOM series).  Every fourth patient is held out, and STS_001
with its whole-body scan, as in docs/results/sarcoma.md.  Networks are trained at DRF 4, 20 and 100 and tested at 10 and
50 as well.  What is in FOLDER already is not made again.
"""

import argparse
import datetime
import math
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from petscale.evaluation.run import evaluate_run
from petscale.evaluation.scores import SYNTHESIZED, Evaluation
from petscale.experiments.runs import sarcoma
from petscale.inference import open_run
from storage.reader import open_cohort
from trainers.feed import scan_of
from trainers.metrics.clinical import BIASES
from trainers.metrics.image import psnr
from trainers.metrics.presets import BODY_PSNR, PRESETS
from trainers.metrics.statistics import paired_gain
from trainers.recipe import Synthesizer
from trainers.synthesize import InSuv, case_context, synthesize

ROOT = Path(__file__).parents[1]
TRAINED, UNSEEN = (4, 20, 100), (10, 50)
HELD = sarcoma().split.test
NETWORK = "restore"
SHORT: dict[str, tuple[str, ...]] = {
    "as it comes": (),
    "starts at the linear filter": ("--recipe.start", "linear"),
    "starts at the low dose": ("--recipe.start", "low"),
    "with additive constants": ("--recipe.constants", "additive"),
    "without the count gate": ("--recipe.count-gate", "off"),
    "L1 instead of squares": ("--recipe.loss", "l1"),
    "with local means and maxima (0.2)": ("--recipe.quantification", "0.2"),
    "lesions weigh as all else": ("--recipe.lesion-weight", "0"),  # the last of two counts
    "zeros beyond the faces": ("--feed.beyond", "air"),
    "no mirror images and turns in training": ("--feed.augment", "none"),
    "current weights, not averaged": ("--engine.ema-decay", "0"),
}
LESION_PSNR = next(rule for rule in PRESETS["native"] if (rule.metric, rule.region) == ("PSNR", "ROI"))
Results = dict[int, Evaluation]


def run(*words: object) -> float:
    """Run one command of petscale, and return its seconds on the clock."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "petscale", *map(str, words)], check=True, stdout=sys.stderr)
    return time.perf_counter() - begin


def cohort(data: Path, folder: Path) -> Path:
    """Ingest both releases, and simulate five doses."""
    files = ("--pet", "PET_image.nii.gz", "--ct", "CT_image.nii.gz", "--mask", "PET_mask.nii.gz", "--names", "folder")
    run("ingest", data / "ibsi_validation/nifti", folder / "real", *files)
    run("ingest", data / "sts_001_wholebody_pet/image", folder / "real", "--case", "sts_001_wholebody")
    doses = sorted((*TRAINED, *UNSEEN))
    run("simulate", folder / "real", folder / "sim", "--drf", *doses, "--scan.million-prompts-per-bed", 100)
    return folder / "sim"


def train(made: Path, trained: Path, samples: int, *words: str) -> float:
    """Train on two cores, and return the seconds of all steps as the run has recorded them."""
    options = ["--recipe", NETWORK, "--recipe.patch", 24, 24, 24, "--recipe.samples", samples]
    options += [
        "--recipe.bank-samples",
        800,
        "--recipe.lesion-weight",
        1000,
        "--split.test",
        *HELD,
        "--cluster.workers",
        2,
    ]
    run("train", made, "--run", trained, *options, "--loop.log-every", 50, "--loop.picture-every", 0, *words)
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    return sum(float(line.split('"time_s": ')[1].split(",")[0].rstrip("}")) for line in lines if '"time_s"' in line)


def evaluate(trained: Path, made: Path, shared: Path, doses: tuple[int, ...], known: Results) -> Results:
    """Score the test cases at every dose; scores of baselines are taken from ``known`` where they are there."""
    names = {f"low_drf{drf}": drf for drf in doses}
    held = {name: known[drf] for name, drf in names.items() if drf in known}
    found = evaluate_run(trained, made, sources=tuple(names), baselines=shared, known=held)
    return {names[name]: scores for name, scores in found.items()}


def mean(scores: Evaluation, image: str, rule: object, region: str) -> float:
    """Mean over the cases that have the score."""
    return float(np.mean(list(scores.values(image, rule, region).values())))  # type: ignore[arg-type]


def lesion_bias(scores: Evaluation, image: str, quantity: str) -> tuple[float, float]:
    """Mean, and mean magnitude, of the lesions' bias in %."""
    rows = [r.value for r in scores.rows if (r.image, r.definition, r.kind) == (image, BIASES[quantity], "lesion")]
    return float(np.nanmean(rows)), float(np.nanmean(np.abs(rows)))


def table(results: Results, doses: tuple[int, ...], cell: object) -> None:
    """Print one row per image, one column per dose."""
    images = results[doses[0]].images
    print("| | " + " | ".join(f"DRF {drf}{'' if drf in TRAINED else ' *'}" for drf in doses) + " |")
    print("|---" * (len(doses) + 1) + "|")
    for image in images:
        # the width of the best Gaussian differs from dose to dose: rows follow each other in one order
        place = images.index(image)
        cells = [cell(results[drf], results[drf].images[place]) for drf in doses]  # type: ignore[operator]
        name = "best Gaussian" if image.startswith("Gaussian") else NETWORK if image == SYNTHESIZED else image
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(flush=True)


def against_baselines(results: Results, doses: tuple[int, ...], region: str) -> None:
    """Print the gain over every baseline: mean dB, cases that are better, p of the signed-rank test."""
    images = results[doses[0]].images
    print("| against | " + " | ".join(f"DRF {drf}" for drf in doses) + " |")
    print("|---" * (len(doses) + 1) + "|")
    for place, image in enumerate(images[:-1]):
        cells = []
        for drf in doses:
            scores = results[drf]
            ours = scores.values(SYNTHESIZED, BODY_PSNR, region)
            gain = paired_gain(ours, scores.values(scores.images[place], BODY_PSNR, region), over=image)
            assert gain is not None
            p = "" if gain.p_value is None else f", p = {gain.p_value:.2g}"
            cells.append(f"{gain.mean:+.2f} dB, {gain.num_better} of {gain.num_cases}{p}")
        name = "best Gaussian" if image.startswith("Gaussian") else image
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(flush=True)


def blind(trained: Path, made: Path, drf: int) -> tuple[list[float], list[float]]:
    """Return PSNR inside the body [dB] of the test cases as scans of unknown dose, and the doses estimated."""
    network = open_run(trained)
    assert isinstance(network.synthesizer, InSuv)
    opened = open_cohort(made)
    found, estimates = [], []
    for name in sorted(HELD):
        case = opened.case(name)
        source, full, body = (case.image(image) for image in (f"low_drf{drf}", "full", "body"))
        scan = replace(scan_of(source), drf=math.nan, shared=0.0)
        told = network.synthesizer.for_scan(scan)
        unaware = InSuv(_Told(told.inner), 1.0, beyond=told.beyond)
        slabs: dict[int, NDArray[np.float32]] = {}
        synthesize(unaware, case, source.name, slabs.__setitem__, device=network.device)
        image = np.maximum(np.concatenate([slabs[z] for z in sorted(slabs)]), 0)
        truth, inside = full.read(0, len(image)), body.read(0, len(image)) > 0.5
        found.append(psnr(truth, image, data_range=float(truth[inside].max()), mask=inside))
        estimates.append(float(case_context(unaware, case, source.name, device=network.device)["drf"]))
    return found, estimates


class _Told:
    """A synthesizer that was told of its scan, and is not told again."""

    def __init__(self, inner: Synthesizer) -> None:
        self._inner = inner
        self.tiling, self.context_batch, self.context = inner.tiling, inner.context_batch, inner.context

    def __call__(self, source: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        return self._inner(source, context)


def main() -> None:
    """Make the cohort, train, score, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=40_000)
    parser.add_argument("--short", type=int, default=4_000)
    parser.add_argument("--variants", nargs="*", default=list(SHORT), help="rows of the second table")
    given = parser.parse_args()
    torch.set_num_threads(2)
    given.folder.mkdir(parents=True, exist_ok=True)
    made = cohort(given.data, given.folder)
    doses = tuple(sorted((*TRAINED, *UNSEEN)))
    shared = given.folder / "baselines"
    seconds = train(made, given.folder / "runs/restore", given.samples)
    results = evaluate(given.folder / "runs/restore", made, shared, doses, {})
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    print("# restore: real PET at simulated low doses\n")
    print(
        f"`python benchmarks/restore.py DATA FOLDER --samples {given.samples} --short {given.short}`, commit {commit}, "
        f"{datetime.datetime.now(datetime.UTC).date()}, two cores of an {platform.machine()} virtual machine, no GPU. "
        f"One network for DRF 4, 20 and 100, one seed, {given.samples} patches of 24^3 voxels, {seconds / 60:.0f} min "
        f"in steps. {len(results[4].cases)} test cases; * a dose that was never trained.\n"
    )
    print("PSNR inside the body [dB], mean over the test cases:\n")
    table(results, doses, lambda scores, image: f"{mean(scores, image, BODY_PSNR, 'body'):.2f}")
    print("The gain of restore, case by case, in PSNR inside the body:\n")
    against_baselines(results, doses, "body")
    print("PSNR inside the lesions [dB]:\n")
    table(results, doses, lambda scores, image: f"{mean(scores, image, LESION_PSNR, 'lesions'):.2f}")
    for quantity in ("SUVmean", "SUVmax"):
        print(f"Bias of the lesions' {quantity} [%], mean and (mean magnitude):\n")

        def cell(scores: Evaluation, image: str, quantity: str = quantity) -> str:
            bias, size = lesion_bias(scores, image, quantity)
            return f"{bias:+.1f} ({size:.1f})"

        table(results, doses, cell)
    print("## Doses that are not known\n\nThe same test cases, their dose kept from the network:\n")
    print("| | PSNR inside the body [dB] | dose known | estimated DRF, median and range |\n|---|---|---|---|")
    for drf in doses:
        found, estimates = blind(given.folder / "runs/restore", made, drf)
        known = mean(results[drf], SYNTHESIZED, BODY_PSNR, "body")
        spread = f"{np.median(estimates):.3g} ({min(estimates):.3g} to {max(estimates):.3g})"
        print(f"| DRF {drf} | {np.mean(found):.2f} | {known:.2f} | {spread} |", flush=True)
    print()
    if given.variants:
        print(
            f"## One part changed at a time\n\nThe same with {given.short} patches each: PSNR inside the body [dB].\n"
        )
        print("| | " + " | ".join(f"DRF {drf}" for drf in TRAINED) + " | lesion SUVmean bias at DRF 20 [%] |")
        print("|---" * (len(TRAINED) + 2) + "|")
        for name in given.variants:
            trained = given.folder / "runs" / name.replace(" ", "-").replace("(", "").replace(")", "")
            train(made, trained, given.short, *SHORT[name])
            found = evaluate(trained, made, shared, TRAINED, results)
            cells = [f"{mean(found[drf], SYNTHESIZED, BODY_PSNR, 'body'):.2f}" for drf in TRAINED]
            cells.append(f"{lesion_bias(found[20], SYNTHESIZED, 'SUVmean')[0]:+.1f}")
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
