"""The small restore that comes with petscale: its data, its training, its scores and its file, from one command.

    python benchmarks/small_restore.py DATA FOLDER restore-small.safetensors

DATA as for benchmarks/restore.py: crops of TCIA's Soft-tissue-Sarcoma, CC BY.  Beside their simulated low doses it
learns phantoms of both scanner presets, in voxels of 4 mm, so that it knows more than one scanner.  Two processes of
one thread train it.  What FOLDER holds already is not made again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from petscale.experiments.runs import sarcoma

DRFS = (2, 4, 10, 20, 50, 100)
SCORED = (4, 20, 100)
LICENCE = (
    "CC BY 3.0. Trained on phantoms made by petscale, and on low doses that petscale simulated from the validation "
    "data set of the Image Biomarker Standardisation Initiative (CC BY 3.0), which are crops of Vallieres et al., "
    "Soft-tissue-Sarcoma, The Cancer Imaging Archive, doi 10.7937/K9/TCIA.2015.7GO2GSKS (CC BY 3.0)"
)
PHANTOMS = {"quadra": 0, "uexplorer": 100}  # scanner preset -> first seed
CASES = 8
BODY = ("--body.shape", 56, 72, 96, "--body.spacing-mm", 4, 4, 4, "--body.axial-coverage", 0.45, 0.66)
NETWORK = ("--recipe", "restore", "--recipe.channels", 24, 36, "--recipe.patch", 24, 24, 24)
LENGTH = ("--recipe.samples", 20_000, "--recipe.bank-samples", 800)


def petscale(*words: object) -> None:
    """Run one command."""
    subprocess.run([sys.executable, "-m", "petscale", *map(str, words)], check=True, stdout=sys.stderr)


def phantoms(folder: Path) -> list[Path]:
    """Make the phantoms' cohorts."""
    made = []
    for name, seed in PHANTOMS.items():
        made.append(folder / name)
        if not (folder / name / "CATALOG.json").exists():
            petscale(
                "phantom", folder / name, "--scan", name, "--drf", *DRFS, *BODY, "--body.seed", seed, "--cases", CASES
            )
    return made


def patients(data: Path, folder: Path) -> Path:
    """Ingest the patients and simulate their low doses."""
    if not (folder / "sarcoma" / "CATALOG.json").exists():
        files = ("--pet", "PET_image.nii.gz", "--ct", "CT_image.nii.gz", "--mask", "PET_mask.nii.gz")
        petscale("ingest", data / "ibsi_validation/nifti", folder / "real", *files, "--names", "folder")
        petscale("simulate", folder / "real", folder / "sarcoma", "--drf", *DRFS, "--scan.million-prompts-per-bed", 100)
    return folder / "sarcoma"


def cases_of(cohort: Path) -> list[str]:
    """Return the names of a cohort's cases."""
    return sorted(json.loads((cohort / "CATALOG.json").read_text()))


def main() -> None:
    """Make the cohorts, train, evaluate, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    cohorts = [*phantoms(given.folder), patients(given.data, given.folder)]
    run = given.folder / "run"
    held = [case for case in cases_of(given.folder / "sarcoma") if case in sarcoma().split.test]
    for name in PHANTOMS:
        held += cases_of(given.folder / name)[-2:]
    sources = [f"low_drf{drf}" for drf in DRFS]
    loop = ("--loop.picture-every", 0, "--loop.log-every", 100, "--cluster.workers", 2)
    petscale(
        "train", *cohorts, "--run", run, *NETWORK, *LENGTH, "--feed.source", *sources, *loop, "--split.test", *held
    )
    petscale("evaluate", run, *cohorts, "--source", *(f"low_drf{drf}" for drf in SCORED))
    petscale("card", run, given.file, "--cohort", *cohorts, "--licence", LICENCE)


if __name__ == "__main__":
    main()
