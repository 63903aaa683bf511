"""README and docs tell the truth: the page's tree is the tree, and the commands run as they are written."""

import json
import re
import shlex
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
PACKAGES = ("platform/petscale", "storage", "trainers", "tune_spaces")
PAGES = ("README.md", "docs/how-to-own-data.md")
SHAPE, SPACING_MM = (32, 32, 32), (30.0, 13.0, 13.0)


def blocks(page: str) -> list[tuple[bool, list[str]]]:
    """(is run, command lines) of every ``sh`` block of a page; a comment above a block says when it is not run."""
    text = (ROOT / page).read_text()
    text = text.replace("\\\n", " ")
    found = re.findall(r"(<!-- not run:[^>]*-->\n)?```(?:sh|bash)\n(.*?)```", text, flags=re.DOTALL)
    return [(not skip, [line for line in body.splitlines() if line and line[0] != "#"]) for skip, body in found]


def tree() -> dict[str, str]:
    """Path -> what the tree of the architecture page says about it."""
    text = (ROOT / "docs/architecture.md").read_text()
    lines = re.search(r"## The tree.*?```\n(.*?)```", text, flags=re.DOTALL)
    assert lines
    folders: list[str] = []
    found = {}
    for line in lines.group(1).splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, told = line.strip().partition(" ")
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
        else:
            found["".join(folders) + name] = told.strip()
    return found


def test_the_tree_names_every_module_with_one_line_each() -> None:
    modules = {str(p.relative_to(ROOT)) for package in PACKAGES for p in (ROOT / package).rglob("*.py")}
    listed = tree()
    assert {name for name in listed if name.endswith(".py")} == modules
    assert all((ROOT / name).is_file() for name in listed)
    assert all(listed.values())


def test_the_readme_is_short_and_its_picture_small() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110
    assert "](docs/pictures/report.png)" in (ROOT / "README.md").read_text()
    assert (ROOT / "docs/pictures/report.png").stat().st_size < 300_000


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages name, made of small phantoms."""
    from storage import dicom, nifti
    from storage.dicom_write import write_series
    from storage.phantom import PhantomConfig, phantom

    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("p01", "p02", "p03", "p04")):
        body = phantom(PhantomConfig(shape=SHAPE, spacing_mm=SPACING_MM, seed=seed))
        folder = tmp_path / "scans" / name
        folder.mkdir(parents=True)
        write_series(folder / "pet", body.activity, patient_id=name)
        write_series(folder / "ct", body.ct, patient_id=name, series_number=2)
        pet = dicom.open_series(folder / "pet", modality="PT")
        hot = pet.read(0, SHAPE[0]) > 6
        nifti.write_nifti(folder / "lesions.nii.gz", pet.grid, lambda a, b, m=hot: m[a:b].astype(np.float32))  # type: ignore[misc]
    nifti.write_nifti(tmp_path / "scan.nii.gz", body.activity.grid, body.activity.read)
    bqml = np.float32(290e6 / 71e3)
    nifti.write_nifti(tmp_path / "activity.nii.gz", body.activity.grid, lambda a, b: body.activity.read(a, b) * bqml)
    return tmp_path


@pytest.fixture
def tiny_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """`petscale train` without a cluster: everything but Ray and the paper's size is the real thing."""
    from petscale import config as configs
    from petscale.cluster import session as sessions
    from petscale.folders import CHECKPOINTS, WEIGHTS
    from petscale.training import driver
    from petscale.training.planning import Plan
    from storage.reader import open_cohort
    from trainers import checkpoint, feed, loop
    from trainers.engine import plain_engine
    from trainers.systems import RECIPES

    real = driver.train
    small: dict[str, dict[str, Any]] = {
        "sgsgan": {"context_patches": 2, "critic_channels": 2, "phase_samples": (4, 0, 0, 0)},
        "restore": {"channels": (4, 4), "margin": (4, 4, 4), "bank_samples": 8, "samples": 8},
    }

    def train(cohort: Path, run: Path, config: configs.RunConfig, *, command: str, **rest: Any) -> Path:
        model = replace(config.model, patch=(24, 24, 24), patches_per_case=1, **small[config.recipe])
        return real(cohort, run, replace(config, model=model), command=command, **rest)

    def here(plan: Plan, *, left_s: float | None = None) -> None:
        run, config, job = plan.run, plan.config, plan.job
        recipe = RECIPES[config.recipe].build(
            config.model, make_engine=plain_engine, patches_per_step=config.patches_per_step
        )
        source = feed.Feed(
            open_cohort(Path(job.cohort)),
            job.roles.streams,
            config.feed,
            recipe.batch_spec,
            rank=0,
            world=1,
            device=torch.device("cpu"),
        )

        def report(record: dict[str, Any]) -> None:
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")

        loop.fit(
            recipe,
            source,
            replace(config.loop, log_every=1),
            folder=run / CHECKPOINTS,
            meta={**config.identity(), "cases": job.identity["cases"]},
            report=report,
            picture=lambda step, synthesizer: None,
            patches_per_step=config.patches_per_step,
        )
        facts = {"recipe": config.recipe, "config": json.dumps(configs.to_json(config))}
        facts |= job.proof
        checkpoint.write_weights(run / WEIGHTS, recipe.weights(), facts)

    monkeypatch.setattr(driver, "train", train)
    monkeypatch.setattr(sessions, "session", lambda *_: nullcontext())
    monkeypatch.setattr(driver, "train_on_ray", here)


def test_the_commands_run_in_order(desk: Path, tiny_training: None) -> None:
    from petscale.cli import main

    for page in PAGES:
        for is_run, lines in blocks(page):
            for line in lines if is_run else ():
                main(shlex.split(line)[1:])  # a mistake would be SystemExit
    run = desk / "runs/first"
    assert (desk / "restored.nii.gz").is_file()
    assert len(list((desk / "restored").iterdir())) == SHAPE[0]
    assert (run / "report.html").stat().st_size > 10_000
    # What the page says a run folder holds is there (TensorBoard events and pictures come with Ray's workers).
    table = re.search(r"\*\*A run folder\*\* holds(.*?)##", (ROOT / "docs/data-format.md").read_text(), flags=re.DOTALL)
    assert table
    cells = re.findall(r"^\| (`.*?) \|", table.group(1), flags=re.MULTILINE)
    named = {name for cell in cells for name in cell.split("`")[1::2]}
    found = {path.name + "/" * path.is_dir() for path in run.iterdir() if path.name[0] != "."}
    assert found == named - {"tb/", "pictures/"}
