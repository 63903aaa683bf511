"""The weights that come with petscale: small, found by their name, and better than what they are given."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import petscale
from petscale import shipped
from petscale.cards.card import open_card
from petscale.cli import main
from storage.reader import open_cohort
from trainers.metrics.image import psnr

NAME = "restore-small"


def test_they_are_found_by_their_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shipped.names() == (NAME,)
    assert shipped.located(Path(NAME)).is_file()
    assert shipped.located(Path(f"folder/{NAME}")) == Path(f"folder/{NAME}")
    assert shipped.located(Path("other")) == Path("other")
    monkeypatch.chdir(tmp_path)
    Path(NAME).mkdir()  # what the user has goes first
    assert shipped.located(Path(NAME)) == Path(NAME)


def test_they_are_small_and_say_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    file = shipped.located(Path(NAME))
    assert file.stat().st_size < 1_000_000
    card, trained = open_card(file)
    assert (card.system, card.units) == ("restore", "SUVbw")
    assert card.drfs == (2.0, 4.0, 10.0, 20.0, 50.0, 100.0)
    assert card.licence.startswith("CC BY 3.0")
    assert any("simulated" in limit for limit in card.limits)
    assert any("phantoms" in limit for limit in card.limits)
    assert [scored.source for scored in card.scores] == ["low_drf4", "low_drf20", "low_drf100"]
    assert trained.config.model.channels == (24, 36)
    assert not re.search(rb"/tmp|/home|/work|sts_\d|phantom-\d", file.read_bytes())
    main(["inspect", NAME])
    assert "Not a medical device" in " ".join(capsys.readouterr().out.split())


def test_a_name_that_is_almost_theirs_is_told_and_export_knows_them(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = refused("apply", "restore-smal", tmp_path / "scan.nii.gz", "--output", tmp_path / "out")
    assert told.startswith("IMG_NO_FILE restore-smal: no such file; check the path, or name weights that come with")
    assert NAME in told
    seen: list[Path] = []
    monkeypatch.setattr("petscale.cards.graph.export_graph", lambda card, *_: seen.append(card))
    main(["export", NAME, str(tmp_path / "model.onnx")])
    assert seen == [shipped.located(Path(NAME))]


def test_they_restore_a_phantom_that_they_have_never_seen(tmp_path: Path) -> None:
    body = [
        "--body.shape",
        "24",
        "64",
        "80",
        "--body.spacing-mm",
        "4",
        "4",
        "4",
        "--body.axial-coverage",
        "0.5",
        "0.57",
    ]
    words = ["--cases", "1", "--scan", "uexplorer", "--drf", "20", "--body.seed", "900", "--workers", "1"]
    main(["phantom", str(tmp_path / "cohort"), *words, *body])
    stored = open_cohort(tmp_path / "cohort").case("phantom-900")
    inside = stored.image("body").read(0, 24) > 0.5
    full = stored.image("full").read(0, 24)
    top = float(full[inside].max())
    low = petscale.open_cohort(tmp_path / "cohort")["phantom-900"]["low_drf20"]
    restored = petscale.apply(NAME, low, drf=20)
    before, after = (psnr(full, image, data_range=top, mask=inside) for image in (low.voxels, restored.voxels))
    assert after > before + 4
    unknown = petscale.apply(NAME, low)  # the dose is estimated from the noise
    assert psnr(full, unknown.voxels, data_range=top, mask=inside) > before + 4
