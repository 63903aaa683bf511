"""A run with scores, and cards of it and of one that starts from CT."""

from pathlib import Path

import pytest
from named_runs import fill, score, write_run
from untrained_runs import cascade

from petscale.cards.making import make_card


@pytest.fixture(scope="session")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort; read only."""
    return fill(tmp_path_factory.mktemp("clinic-of-doe"))


@pytest.fixture
def named(tmp_path: Path, clinic: Path) -> Path:
    """The run, evaluated."""
    run = write_run(tmp_path / "run-of-doe", clinic)
    score(run)
    return run


@pytest.fixture(scope="session")
def card(tmp_path_factory: pytest.TempPathFactory, clinic: Path) -> Path:
    """The run's card, its cohort read; read only."""
    folder = tmp_path_factory.mktemp("card")
    run = write_run(folder / "run", clinic)
    score(run)
    make_card(run, folder / "card.safetensors", [clinic], licence="CC0")
    return folder / "card.safetensors"


@pytest.fixture(scope="session")
def from_ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card of a cascade from CT, of voxels of 20 x 7.5 x 7 mm; read only."""
    folder = tmp_path_factory.mktemp("from_ct")
    make_card(cascade(folder / "run", 0, (20.0, 7.5, 7.0)), folder / "card.safetensors")
    return folder / "card.safetensors"
