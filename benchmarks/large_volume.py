"""Peak memory and time of ingesting a total-body scan, 440 x 440 x 644 voxels of 1.65 mm by default.

    python benchmarks/large_volume.py [--shape Z Y X] [--workers N] [--iterations N] [--folder PATH]

Four stages, each in a process of its own, so that one stage's memory does not hide in another's: a phantom with a
simulated full dose, a twentieth of it, CT and labels; that twentieth scored by every preset; a NIfTI file written; that
file ingested with a CT of finer voxels that is resampled onto its grid.
Peak memory is the kernel's high-water mark of resident pages, and beside it
the largest sample of all threads of the process.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

SPACING_MM = (1.65, 1.65, 1.65)
STAGES = ("phantom", "score", "nifti", "ingest")


def watched(stage, arguments):
    """Run one stage and print what it took."""
    done, samples = threading.Event(), [0]

    def sample():
        process = psutil.Process()
        while not done.wait(0.05):
            samples.append(process.memory_info().rss)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    start = time.perf_counter()
    {"phantom": from_phantom, "score": score, "nifti": make_nifti, "ingest": from_nifti}[stage](arguments)
    wall = time.perf_counter() - start
    done.set()
    thread.join()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{stage:8} {wall:8.1f} s   peak {peak / 2**30:.2f} GiB (sampled {max(samples) / 2**30:.2f})", flush=True)


def person(arguments, finer=1.0):
    from storage.phantom import PhantomConfig, phantom

    shape = tuple(round(n * finer) for n in arguments.shape)
    return phantom(PhantomConfig(shape=shape, spacing_mm=tuple(mm / finer for mm in SPACING_MM)))


def commit(cohort, plan, workers):
    from storage.ingest import ingest

    start = time.perf_counter()

    def progress(case, done, total):
        minutes = (time.perf_counter() - start) / 60
        print(
            f"\r{case}: {done} of {total} tasks, {minutes:.1f} min", end="\n" if done == total else "", file=sys.stderr
        )

    ingest(cohort, {"total-body": lambda scratch: plan(scratch)}, strict=True, workers=workers, progress=progress)


def from_phantom(arguments):
    from storage.ingest import CasePlan
    from storage.lowdose import LowDoseConfig, LowDoseSource
    from storage.phantom import LABEL_NAMES

    body = person(arguments)
    images = {
        name: LowDoseSource(body.activity, body.ct, LowDoseConfig(drf=drf, iterations=arguments.iterations))
        for name, drf in (("full", 1.0), ("low_drf20", 20.0))
    }
    images |= {"ct": body.ct, "labels": body.labels}
    plan = CasePlan(images, "benchmark", "benchmark", LABEL_NAMES)
    commit(arguments.folder / "simulated", lambda _: plan, arguments.workers)


def score(arguments):
    from petscale.evaluation.scoring import score_stored_case
    from storage.reader import open_cohort
    from trainers.metrics.presets import PRESETS

    case = open_cohort(arguments.folder / "simulated").case("total-body")
    found = score_stored_case(case, "full", {"low": case.image("low_drf20")}, presets=tuple(PRESETS))
    print(f"{len(found)} scores", flush=True)


def make_nifti(arguments):
    from storage.nifti import write_nifti

    activity = person(arguments).activity
    write_nifti(arguments.folder / "pet.nii.gz", activity.grid, activity.read)


def from_nifti(arguments):
    from storage.geometry import Resampled
    from storage.ingest import CasePlan
    from storage.nifti import open_nifti

    def plan(scratch):
        pet = open_nifti(arguments.folder / "pet.nii.gz", units="SUVbw", workdir=scratch)
        return CasePlan({"full": pet, "ct": Resampled(person(arguments, 1.2).ct, pet.grid)}, "benchmark", "benchmark")

    commit(arguments.folder / "imported", plan, arguments.workers)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[644, 440, 440], metavar=("Z", "Y", "X"))
    parser.add_argument("--workers", type=int, help="tasks at a time (default: the CPUs, 4 at most)")
    parser.add_argument("--iterations", type=int, default=3, help="OSEM iterations of the simulation")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder, removed)")
    parser.add_argument("--stage", choices=STAGES, help="one stage only, in this process")
    arguments = parser.parse_args()
    if arguments.stage:
        watched(arguments.stage, arguments)
        return
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=arguments.folder, prefix="large-volume-"))
    z, y, x = arguments.shape
    print(f"{z} x {y} x {x} voxels (z, y, x), {z * y * x * 4 / 2**30:.2f} GiB an image", flush=True)
    options = ["--shape", *map(str, arguments.shape), "--iterations", str(arguments.iterations)]
    if arguments.workers:
        options += ["--workers", str(arguments.workers)]
    try:
        for stage in STAGES:
            command = [sys.executable, __file__, "--stage", stage, "--folder", str(folder), *options]
            subprocess.run(command, check=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
