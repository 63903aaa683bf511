"""Fixtures of the tests of systems."""

from functools import partial

import pytest

from trainers import perceptual


@pytest.fixture
def small_autoencoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the masked autoencoder of the perceptual loss two channels."""
    monkeypatch.setattr(perceptual, "MaskedAutoencoder", partial(perceptual.MaskedAutoencoder, channels=2))
