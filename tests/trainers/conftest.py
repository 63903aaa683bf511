"""Fixtures of the tests of networks; a file asks for them with ``pytest.mark.usefixtures``."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread: small layers on more threads than there are free cores take many times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def seeded() -> None:
    """Start PyTorch's global random numbers at the same place in every test."""
    torch.manual_seed(0)
