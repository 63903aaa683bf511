"""RED-CNN: its layers, its loss, and windows that equal the whole slice."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from storage.errors import InputError
from trainers.assembly import Supervised, windows
from trainers.engine import plain_engine
from trainers.recipe import Batch
from trainers.synthesize import fitted
from trainers.systems import red_cnn
from trainers.systems.red_cnn import REDCNN, TILING, Config


def build(**changes: Any) -> Supervised:
    torch.manual_seed(0)
    config = Config(**{"channels": 4, "patch": (1, 24, 24), "patches_per_case": 1, "samples": 400, **changes})
    return red_cnn.build(config, make_engine=plain_engine, patches_per_step=2)


def batch(low: Tensor, full: Tensor) -> Batch:
    nothing = torch.zeros(len(low), 0, *low.shape[2:])
    drf = torch.full((len(low),), 20.0)
    places = tuple("case image 0,0,0" for _ in low)
    return Batch(low, full, nothing, torch.zeros(len(low), 1, 0, 0, 0), drf, len(low), places)


def slices(seed: int) -> Batch:
    """Two smooth images and the same with noise."""
    random = torch.Generator().manual_seed(seed)
    full = F.avg_pool3d(torch.rand(2, 1, 1, 32, 32, generator=random) * 4, (1, 9, 9), stride=1)
    return batch((full + 0.3 * torch.randn(full.shape, generator=random)).clamp(min=0), full)


def test_the_published_number_of_parameters() -> None:
    assert sum(p.numel() for p in REDCNN(Config().channels).parameters()) == 1_848_865


def test_shortcuts_are_added_before_the_relu() -> None:
    """Against the layers written out with PyTorch's 2D functions."""
    torch.manual_seed(1)
    network: Any = REDCNN(3)
    x = torch.randn(1, 1, 1, 25, 27)
    c1, c2, c3, c4, c5 = ((c.weight[:, :, 0], c.bias) for c in network.down)
    d1, d2, d3, d4, d5 = ((d.weight[:, :, 0], d.bias) for d in network.up)
    image = x[:, :, 0]
    a2 = F.conv2d(F.conv2d(image, *c1).relu(), *c2).relu()
    a4 = F.conv2d(F.conv2d(a2, *c3).relu(), *c4).relu()
    a5 = F.conv2d(a4, *c5).relu()
    u1 = (F.conv_transpose2d(a5, *d1) + a4).relu()
    u3 = (F.conv_transpose2d(F.conv_transpose2d(u1, *d2).relu(), *d3) + a2).relu()
    u5 = (F.conv_transpose2d(F.conv_transpose2d(u3, *d4).relu(), *d5) + image).relu()
    torch.testing.assert_close(network(x)[:, :, 0], u5)


@pytest.mark.parametrize(("loss", "expected"), [("mse", (4 + 0 + 1) / 3), ("l1", (2 + 0 + 1) / 3)])
def test_the_loss_by_hand(loss: str, expected: float) -> None:
    """With all weights 0 the network returns its input, negatives as 0."""
    recipe = build(loss=loss, patch=(3, 24, 24))
    for weight in recipe.engine.module.parameters():
        torch.nn.init.zeros_(weight)
    low, full = torch.ones(1, 1, 3, 24, 24), torch.ones(1, 1, 3, 24, 24)
    low[:, :, 2] = -5
    full[:, :, 0] = 3
    metrics = recipe.step(batch(low, full), 0)
    assert float(metrics["loss"]) == pytest.approx(expected)


def test_it_overfits_two_slices() -> None:
    recipe = build(lr=3e-3, channels=16, samples=600)
    given = slices(0)
    first, *_, last = [float(recipe.step(given, step)["loss"]) for step in range(300)]
    assert first > 0.05
    assert last < 0.1 * first


def test_a_resumed_run_is_bit_equal() -> None:
    whole, first, second = build(), build(), build()
    for step in range(4):
        whole.step(slices(step), step)
    for step in range(2):
        first.step(slices(step), step)
    second.load(first.state())
    for step in range(2, 4):
        second.step(slices(step), step)
    assert (whole.num_steps, whole.phase_starts, whole.phase(199)) == (200, {"train": 0}, "train")
    assert all(torch.equal(value, second.weights()[name]) for name, value in whole.weights().items())


@settings(max_examples=8, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 60), st.integers(1, 60)),
    edges=st.tuples(st.integers(1, 2), st.integers(5, 30), st.integers(5, 30)),
)
def test_windows_equal_the_whole_slice(shape: tuple[int, int, int], edges: tuple[int, int, int]) -> None:
    torch.manual_seed(2)
    synthesizer = windows(REDCNN(2).double(), TILING)
    halo = synthesizer.tiling.halo
    assert halo == (0, 20, 20)
    low = torch.zeros(1, 1, *(n + 2 * h + e for n, h, e in zip(shape, halo, edges, strict=True)), dtype=torch.float64)
    low[:, :, : shape[0], 20 : 20 + shape[1], 20 : 20 + shape[2]] = torch.rand(shape, dtype=torch.float64) * 10
    whole = synthesizer(low[:, :, : shape[0], : shape[1] + 40, : shape[2] + 40], {})
    assert whole.shape[2:] == shape
    tile = tuple(min(n, e) for n, e in zip(shape, edges, strict=True))
    for z, y, x in np.ndindex(*(-(-n // t) for n, t in zip(shape, tile, strict=True))):
        a, b, c = z * tile[0], y * tile[1], x * tile[2]
        window = low[:, :, a : a + tile[0], b : b + tile[1] + 40, c : c + tile[2] + 40]
        part = whole[:, :, a : a + tile[0], b : b + tile[1], c : c + tile[2]]
        found = synthesizer(window, {})[:, :, : part.shape[2], : part.shape[3], : part.shape[4]]
        torch.testing.assert_close(found, part, rtol=0, atol=1e-12)


def test_tiles_divide_a_volume() -> None:
    assert fitted(TILING, (40, 200, 100)) == ((40, 200, 100), (14, 100, 100))


def test_exported_weights_synthesize_what_the_recipe_does() -> None:
    recipe = build()
    recipe.step(slices(0), 0)
    alone = red_cnn.weights_to_synthesizer(Config(channels=4), recipe.weights())
    low = torch.rand(1, 1, 2, 64, 64)
    assert torch.equal(alone(low, {}), recipe.synthesizer()(low, {}))
    assert float(alone(low, {}).min()) >= 0
    with pytest.raises(InputError, match="CKPT_CONFIG weights of RED-CNN"):
        red_cnn.weights_to_synthesizer(Config(channels=5), recipe.weights())


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"channels": 0}, "CFG_RANGE", "channels"),
        ({"lr": 0.0}, "CFG_RANGE", "lr"),
        ({"samples": 0}, "CFG_RANGE", "samples"),
        ({"patches_per_case": 0}, "CFG_RANGE", "patches_per_case"),
        ({"loss": "l2"}, "CFG_CHOICE", "loss"),
        ({"patch": (1, 64, 20)}, "CFG_PATCH_SIZE", "patch"),
        ({"patch": (0, 64, 64)}, "CFG_PATCH_SIZE", "patch"),
    ],
)
def test_a_configuration_that_cannot_be_trained_is_refused(changes: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(InputError) as refusal:
        Config(**changes)
    assert (refusal.value.code, refusal.value.where) == (code, f"red_cnn.{field}")


def test_the_report_names_its_origin() -> None:
    (caveat,) = red_cnn.caveats(Config())
    assert "re-implementation" in caveat
