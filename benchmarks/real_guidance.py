"""SGSGAN with organ and tumour guidance on real PET, beside the same network without guidance.

    python benchmarks/real_guidance.py DATA FOLDER [--patches 2400]

DATA holds two public releases of TCIA's Soft-tissue-Sarcoma: `ibsi_validation/nifti` (39 patients, crops with tumour
masks) and `sts_001_wholebody_pet` (one whole-body DICOM series with its RTSTRUCT).  Kidneys, bladder and heart of the
whole-body scan are contoured here by thresholds in SUV, as nobody has contoured them: enough to guide a network, not
to measure an organ.  The low dose is simulated.  A network with guidance needs every organ in every training case, so
organs guide a network of the whole-body scan alone, and tumours one of that scan and the crops of 29 other patients.
All are tested on the crops of nine more patients, for which lesions are detected too.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

import petscale
from petscale import config as configs
from petscale.evaluation.detection import lines
from petscale.evaluation.scores import SYNTHESIZED
from petscale.experiments.runs import sarcoma
from petscale.splits import SplitConfig

WHOLE = "sts_001_wholebody"
HELD = tuple(f"sts_{number:03d}" for number in range(5, 40, 4))  # every fourth patient, as in sarcoma()
NAMES = {"kidneys": 1, "bladder": 2, "heart": 3}
ORGANS = (  # threshold in SUV, voxels (z, y, x) that the organs' hottest parts surround
    ("heart", 3.0, [(177, 59, 76)]),
    ("kidneys", 3.0, [(124, 76, 51), (129, 77, 84)]),
    ("bladder", 8.0, [(62, 71, 66)]),
)


def run(*words: object) -> float:
    """Run one command of petscale, and return its seconds on the clock."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "petscale", *map(str, words)], check=True, stdout=sys.stderr)
    return time.perf_counter() - begin


def component(hot: NDArray[np.bool_], seed: tuple[int, int, int]) -> NDArray[np.bool_]:
    """The connected component nearest to a voxel (z, y, x)."""
    parts, count = ndimage.label(hot)
    middles = np.array(ndimage.center_of_mass(hot, parts, range(1, count + 1)))
    sizes = np.bincount(parts.ravel())[1:]
    far = np.where(sizes < 50, np.inf, np.linalg.norm(middles - seed, axis=1))
    return np.asarray(parts == 1 + far.argmin())


def contour(folder: Path, image: Path, contours: Path) -> None:
    """Write organs.nii.gz and mass.nii.gz of the whole-body scan into ``folder``."""
    run("ingest", image, folder / "scratch", "--case", WHOLE, "--labels", contours, "--names", "1=lesion")
    case = petscale.open_cohort(folder / "scratch")[WHOLE]
    suv = case["full"]
    organs = np.zeros(suv.voxels.shape, dtype=np.uint8)
    for name, threshold, places in ORGANS:
        for place in places:
            organs[component(suv.voxels > threshold, place)] = NAMES[name]
    mass = (np.asarray(case["labels"].voxels) > 0).astype(np.uint8)
    for name, labels in (("organs", organs), ("mass", mass)):
        nibabel.Nifti1Image(labels.transpose(2, 1, 0), suv.grid.affine).to_filename(folder / f"{name}.nii.gz")
    voxel_ml = float(np.abs(np.linalg.det(suv.grid.affine[:3, :3]))) / 1000
    found = {name: round(float((organs == value).sum()) * voxel_ml) for name, value in NAMES.items()}
    print("contoured [mL]:", found | {"tumour": round(float(mass.sum()) * voxel_ml)}, flush=True)


def cohort(data: Path, folder: Path) -> Path:
    """Ingest both releases with their labels, and simulate a twentieth of the dose."""
    image, contours = (data / "sts_001_wholebody_pet" / part for part in ("image", "mask"))
    contour(folder, image, contours)
    names = [f"{value}={name}" for name, value in NAMES.items()]
    labels = ["--labels", folder / "organs.nii.gz", "--names", ",".join(names), "--mask", folder / "mass.nii.gz"]
    run("ingest", image, folder / "real", "--case", WHOLE, *labels)
    crops = ["--pet", "PET_image.nii.gz", "--mask", "PET_mask.nii.gz", "--names", "folder"]
    run("ingest", data / "ibsi_validation/nifti", folder / "real", *crops)
    run("simulate", folder / "real", folder / "sim", "--drf", 20, "--scan.million-prompts-per-bed", 100)
    return folder / "sim"


def main() -> None:
    """Make the cohort, train with and without guidance, score, detect, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--patches", type=int, default=2400)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    made = cohort(given.data, given.folder)
    parts = [given.patches * share // 17 for share in (12, 1, 3, 1)]  # the paper's ratio of the phases
    base = sarcoma()
    crops = [name for name in petscale.open_cohort(made).cases if name not in (WHOLE, "sts_001", *HELD)]
    rows = []
    for name, left_out, rois, phases in (
        ("whole-body scan, organs and tumour guide", crops, (*NAMES, "lesion"), tuple(parts)),
        ("whole-body scan, no guidance", crops, (), (given.patches, 0, 0, 0)),
        ("30 patients, tumours guide", [], ("lesion",), tuple(parts)),
    ):
        split = SplitConfig(test=HELD, leave_out=("sts_001", *left_out), validation_fraction=0.0)
        model = replace(base.model, rois=rois, phase_samples=phases)
        config = replace(
            base,
            model=model,
            split=split,
            feed=replace(base.feed, source=("low_drf20",)),
            loop=replace(base.loop, picture_every=0),
        )
        trained = given.folder / re.sub("[ ,]+", "-", name)
        (given.folder / "run.json").write_text(json.dumps(configs.to_json(config)))
        seconds = run("train", made, "--run", trained, "--config", given.folder / "run.json")
        scores = petscale.evaluate(trained, made, detect="lesion")["low_drf20"]
        petscale.report(trained, made)
        rows.append((name, seconds, scores))
    print("| | PSNR body [dB] | MAE body [SUV] | MAE lesions [SUV] | lesions found | false per scan |")
    print("|---|---|---|---|---|---|")
    for number, (name, seconds, scores) in enumerate(rows):
        detected = {line["image"]: line for line in lines(scores.evaluation.metadata["detection"])}
        for image in scores.evaluation.images if number == 0 else scores.evaluation.images[-1:]:
            cells = [cell(scores, image, *what) for what in (("PSNR", "body"), ("MAE", "body"), ("MAE", "lesions"))]
            cells += [detected[image]["tpr"], detected[image]["false"]]
            told = f"SGSGAN: {name} (trained in {seconds / 60:.0f} min)" if image == SYNTHESIZED else image
            print(f"| {told} | {' | '.join(cells)} |", flush=True)


def cell(scores: petscale.Scores, image: str, metric: str, region: str) -> str:
    """Mean and standard deviation over the test cases of one score."""
    line = scores.summary().query(
        "image == @image and metric == @metric and region == @region and preset == 'native'", engine="python"
    )
    return f"{line['mean'].item():.3f} ± {line['sd'].item():.3f}"


if __name__ == "__main__":
    main()
