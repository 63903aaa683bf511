"""Pictures made during training show what is trained, in SUV."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from petscale.training.pictures import panels_of, picture
from storage.reader import open_cohort
from trainers.assembly import WindowSynthesizer
from trainers.feed_config import FeedConfig
from trainers.recipe import Tiling

FEED = FeedConfig(source=("low_drf4",), suv_scale=5.0)
CPU = torch.device("cpu")
TILING = Tiling((4, 16, 16), (0, 0, 0))


class Masking(WindowSynthesizer):
    """Trains something else than what restores."""

    def shown(self, source: Tensor, target: Tensor) -> Mapping[str, Tensor]:
        return {"seen": 0 * source, "made": 2 * target, "wanted": target}


def test_a_picture_shows_source_synthesized_and_target_in_suv(cohort: Path) -> None:
    case = open_cohort(cohort).case("phantom-000")
    network = WindowSynthesizer(nn.Identity(), TILING, run=lambda source: source + 1)
    panels = panels_of(network, case, FEED, CPU, 7.0)
    assert list(panels) == ["low_drf4", "synthesized", "full"]
    low, made, _ = (voxels for voxels, _, _ in panels.values())
    np.testing.assert_allclose(made, low + 5, rtol=1e-5)


def test_a_picture_shows_what_is_trained_where_that_is_not_what_restores(cohort: Path, tmp_path: Path) -> None:
    case = open_cohort(cohort).case("phantom-000")
    plain = panels_of(WindowSynthesizer(nn.Identity(), TILING, run=lambda source: source), case, FEED, CPU, 7.0)
    network = Masking(nn.Identity(), TILING, run=lambda source: pytest.fail("it is not trained yet"))
    panels = panels_of(network, case, FEED, CPU, 7.0)
    assert list(panels) == ["seen", "made", "wanted"]
    assert not panels["seen"][0].any()
    np.testing.assert_allclose(panels["wanted"][0], plain["full"][0], rtol=1e-5)
    np.testing.assert_allclose(panels["made"][0], 2 * plain["full"][0], rtol=1e-5)
    picture(tmp_path / "pictures", case, FEED, CPU)(3, network)
    assert (tmp_path / "pictures" / "step-0000003.png").stat().st_size > 1000
