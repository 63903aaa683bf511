"""A card as an ONNX graph: what onnxruntime and the page's script make of a volume is what ``petscale apply`` makes."""

import importlib.util
import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from untrained_runs import cg_3dsrgan, cgan_3d, restore, sgsgan, unet_3d

from petscale.cards import graph
from petscale.cards.making import make_card
from petscale.cli import main
from storage import integrity
from storage.errors import InputError
from storage.ingest import CasePlan, ingest
from storage.patches import PatchLocation
from storage.reader import Beyond, open_cohort
from storage.source import HU, SUV, ArraySource, Grid
from trainers.systems import RECIPES

Refused = Callable[..., str]
ROOT = Path(__file__).parents[3]
onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script of docs/how-to-onnx.md."""
    found = importlib.util.spec_from_file_location("onnx_volume", ROOT / "docs/onnx_volume.py")
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def of_doses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card of restore, of doses 1/4 and 1/20."""
    folder = tmp_path_factory.mktemp("restore")
    make_card(restore(folder / "run", 3), folder / "card.safetensors")
    return folder / "card.safetensors"


def exported(card: Path, file: Path, *words: str) -> tuple[Any, dict[str, str]]:
    main(["export", str(card), str(file), *words])
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session, session.get_modelmeta().custom_metadata_map


def test_a_dose_restored_by_the_graph_is_what_apply_restores(
    of_doses: Path, script: ModuleType, tmp_path: Path
) -> None:
    """Of a dose between those of the bank, and of voxels that are not those trained on."""
    spacing_mm = (24.0, 15.5, 14.0)
    low = np.random.default_rng(0).gamma(1.0, 1.0, (13, 9, 11)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(low.T, np.diag([*spacing_mm[::-1], 1.0])), tmp_path / "low.nii.gz")
    words = ["--units", "SUVbw", "--drf", "9", "--output", str(tmp_path / "out")]
    main(["apply", str(of_doses), str(tmp_path / "low.nii.gz"), *words])
    wanted = np.asarray(nibabel.load(tmp_path / "out/low.nii.gz").dataobj).T
    session, told = exported(of_doses, tmp_path / "model.onnx", "--tile", "8", "12", "12")
    facts = {"spacing_mm": spacing_mm, "drf": 9.0, "shared": 0.0}
    found = script.synthesize(session, [low], facts)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.abs(found - low).max() > 1, "the network changes the image"
    other = script.synthesize(session, [low[:8]], {**facts, "drf": 4.0})
    assert np.abs(other - found[:8])[:4].max() > 1e-2, "the dose is seen"
    kept = script.synthesize(session, [low[:8]], {**facts, "shared": 1.0})
    np.testing.assert_allclose(kept, low[:8], atol=1e-5)  # all counts are the full dose's own
    assert (json.loads(told["opset"]), told["units"], told["output_units"]) == (18, "SUVbw", "SUVbw")
    assert json.loads(told["tile"]) == [8, 12, 12]
    assert json.loads(told["overlap"]) == [0, 0, 0]
    assert json.loads(told["drfs"]) == []  # the run notes none
    assert told["card_sha256"] == integrity.file_digest(of_doses)
    assert "research" in told["use"].lower()
    assert json.loads(told["limits"])


def test_a_graph_says_nothing_of_the_machine_that_made_it(of_doses: Path, tmp_path: Path) -> None:
    """torch notes the line of every operation, with its folder: in a file that is passed on."""
    main(["export", str(of_doses), str(tmp_path / "model.onnx"), "--tile", "8", "12", "12"])
    content = (tmp_path / "model.onnx").read_bytes()
    for trace in (Path(torch.__file__).parents[1], ROOT, tmp_path):
        assert str(trace).encode() not in content
    assert b"stack_trace" not in content
    assert b".py" not in content


def test_blended_tiles_are_those_of_apply(script: ModuleType, tmp_path: Path) -> None:
    make_card(cgan_3d(tmp_path / "run", 0), tmp_path / "card.safetensors")
    low = np.random.default_rng(0).gamma(1.0, 1.0, (14, 23, 18)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(low.T, np.diag([14.0, 15.0, 25.0, 1.0])), tmp_path / "low.nii.gz")
    words = [str(tmp_path / "low.nii.gz"), "--units", "SUVbw", "--output", str(tmp_path / "out")]
    main(["apply", str(tmp_path / "card.safetensors"), *words])
    wanted = np.asarray(nibabel.load(tmp_path / "out/low.nii.gz").dataobj).T
    session, told = exported(tmp_path / "card.safetensors", tmp_path / "model.onnx")
    assert json.loads(told["overlap"]) == [8, 8, 8]
    assert json.loads(told["facts"]) == []
    np.testing.assert_allclose(script.synthesize(session, [low], {}), wanted, atol=1e-4)
    assert wanted.std() > 0.01


def body_in_air(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Noise in an off-centre ellipsoid with a hole, above a lower noise in air."""
    rng = np.random.default_rng(seed)
    places = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = sum((place / axis) ** 2 for place, axis in zip(places, (1.1, 0.6, 0.7), strict=True))
    level = np.where(radius < 1, 1.0 + places[0], 0.004) * np.where(radius < 0.1, 0.01, 1)
    return (level * rng.gamma(4.0, 0.25, shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("made", "shape", "drf"),
    [
        (unet_3d, (40, 50, 36), None),
        (unet_3d, (20, 70, 66), None),
        (partial(sgsgan, residual="none"), (40, 50, 70), None),
        (partial(sgsgan, residual="gaussian"), (20, 40, 66), 9.0),
        (cg_3dsrgan, (40, 33, 70), 9.0),
        (cg_3dsrgan, (20, 40, 33), math.nan),
    ],
    ids=["unet_3d", "unet_3d-short", "sgsgan", "sgsgan-residual-short", "cg_3dsrgan", "cg_3dsrgan-short-no-dose"],
)
def test_tiles_that_share_statistics_of_the_scan_are_those_of_apply(
    made: Callable[[Path, int], Path],
    shape: tuple[int, int, int],
    drf: float | None,
    script: ModuleType,
    tmp_path: Path,
) -> None:
    """Of volumes longer than a patch, and shorter along an axis; with a dose, and with one that is not known."""
    spacing_mm = (10.0, 9.0, 8.0)
    make_card(made(tmp_path / "run", 2), tmp_path / "card.safetensors")
    low = body_in_air(shape, 0)
    nibabel.save(nibabel.Nifti1Image(low.T, np.diag([*spacing_mm[::-1], 1.0])), tmp_path / "low.nii.gz")
    words = [str(tmp_path / "low.nii.gz"), "--units", "SUVbw", "--output", str(tmp_path / "out")]
    words += [] if drf is None or math.isnan(drf) else ["--drf", str(drf)]
    main(["apply", str(tmp_path / "card.safetensors"), *words])
    wanted = np.asarray(nibabel.load(tmp_path / "out/low.nii.gz").dataobj).T
    session, told = exported(tmp_path / "card.safetensors", tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
    assert json.loads(told["facts"]) == ([] if drf is None else ["spacing_mm", "drf"])
    assert json.loads(told["unknown"]) == ([] if drf is None else ["drf"])
    found = script.synthesize(session, [low], {"spacing_mm": spacing_mm, "drf": drf})
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert wanted.std() > 0.01

    def tile(patches_of: np.ndarray) -> np.ndarray:
        context, channels = json.loads(told["context"]), json.loads(told["channels"])
        of_scan = script.of_whole_scan(context, [patches_of], channels, spacing_mm)
        known = {} if drf is None else {"spacing_mm": spacing_mm, "drf": drf}
        facts = {name: np.array(value, np.float32) for name, value in known.items()}
        return np.asarray(session.run(["tile"], {"window": window, **of_scan, **facts})[0])

    window = np.ones(session.get_inputs()[0].shape, np.float32)
    assert np.abs(tile(low) - tile(low[::-1] ** 2)).max() > 1e-3, "another scan has another context"


@pytest.mark.parametrize("spacing_mm", [(3.0, 2.0, 2.0), (6.0, 4.1, 4.1), (0.8, 0.4, 0.3)])
def test_the_script_outlines_a_body_as_petscale_does(
    spacing_mm: tuple[float, float, float], script: ModuleType, tmp_path: Path
) -> None:
    """And draws patches in it at the same places."""
    low = body_in_air((37, 90, 81), 3)
    low[-5:, :9, -8:] = 2.0  # a piece of its own
    image = ArraySource(low, Grid(low.shape, np.diag([*spacing_mm[::-1], 1.0])), SUV)
    ingest(tmp_path, {"p01": lambda _: CasePlan({"low": image}, "s", "f")}, strict=True, workers=1)
    case = open_cohort(tmp_path).case("p01")
    wanted = case.image("body").read(0, 37) > 0
    found = script.body(low, spacing_mm)
    assert 0.05 < wanted.mean() < 0.7
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(script.resized(low, 64), case.overview("low"), atol=1e-5)


@pytest.mark.parametrize("units", [SUV, HU])
@pytest.mark.parametrize("beyond", ["air", "mirror", "mirror_any"])
def test_the_script_reads_beyond_a_volume_as_petscale_does(
    units: str, beyond: Beyond, script: ModuleType, tmp_path: Path
) -> None:
    voxels = np.linspace(-1000 if units == HU else 1, 60, 60).reshape(3, 4, 5)
    image = ArraySource(voxels.astype(np.float32), Grid((3, 4, 5), np.eye(4)), units)
    name = "ct" if units == HU else "full"
    plan = CasePlan({name: image}, "s", "f")
    ingest(tmp_path, {"p01": lambda _: plan}, strict=True, workers=1)
    box = PatchLocation((-4, -1, 2), (11, 7, 9))
    wanted = open_cohort(tmp_path).case("p01").image(name).patch(box, beyond)
    channel = graph.beyond_of(units, beyond)
    np.testing.assert_array_equal(script.read(voxels, list(zip(box.start, box.stop, strict=True)), channel), wanted)


def test_what_cannot_be_a_graph_is_refused(of_doses: Path, from_ct: Path, tmp_path: Path, refused: Refused) -> None:
    card, model = str(of_doses), str(tmp_path / "model.onnx")
    assert refused("export", card, model, "--tile", "6", "8", "8").startswith(
        "CFG_RANGE --tile: 6 x 8 x 8; give edges in voxels, z: any multiple of 4"
    )
    assert "y: 32, x: 32" in refused("export", from_ct, model, "--tile", "2", "16", "32")
    assert refused("export", card, model, "--image", "full").startswith("CFG_NO_EFFECT --image")
    assert refused("export", card, "model.bin").startswith("CFG_ARGUMENT FILE: missing")
    assert refused("export", card, "p01", str(tmp_path / "a.nii"), "--tile", "8", "8", "8").startswith("CFG_NO_EFFECT")
    (tmp_path / "there.onnx").touch()
    assert refused("export", card, str(tmp_path / "there.onnx")).startswith("DISK_EXISTS there.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_a_package_that_is_missing_is_named(
    of_doses: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert refused("export", str(of_doses), str(tmp_path / "model.onnx")) == (
        'CFG_PACKAGE onnxscript: not installed; install it: pip install "petscale[onnx]"'
    )


def test_the_page_of_results_has_every_system() -> None:
    """``benchmarks/onnx_systems.py`` writes it: each with its difference from torch, or why there is none."""
    page = (ROOT / "docs/results/onnx.md").read_text()
    rows = [line.split("|")[1].strip(" `") for line in page.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(RECIPES)


@pytest.mark.parametrize(("wrong", "accepted"), [(1, True), (5, False), (20_000, False)])
def test_single_voxels_may_fall_between_classes_and_no_more(
    wrong: int, accepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = np.random.default_rng(1).random((1, 1, 20, 25, 40), dtype=np.float32)
    given = wanted.copy()
    given.ravel()[:wrong] += 0.2

    class Session:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def run(self, *_: object) -> tuple[np.ndarray]:
            return (given,)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    if accepted:
        assert graph._compared(b"", {}, wanted, "card") == 0
    else:
        with pytest.raises(InputError, match=r"CKPT_GRAPH card: .* differs from torch's by 0\.2 SUV"):
            graph._compared(b"", {}, wanted, "card")


@pytest.mark.parametrize("correction", [0, 1])
def test_means_and_variances_of_a_graph_are_as_exact_as_torchs(correction: int) -> None:
    """They are taken axis by axis, the variance with torch's correction or without."""

    class Statistics(torch.nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            axes = (0, 2, 3, 4)
            mean, var = values.mean(axes), values.var(axes, correction=correction)
            return torch.cat([mean, var])

    values = 3 + torch.rand(2, 2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    content = graph._model(Statistics(), ("values",), {"values": values}, "found", "a test").SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"values": values.numpy()})
    np.testing.assert_allclose(found, Statistics()(values).numpy(), rtol=1e-6)
