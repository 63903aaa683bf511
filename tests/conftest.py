"""Fixtures for the tests of all packages: everything is generated, nothing touches the home folder or the network."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest

from petscale.cluster.nodes import SILENT

os.environ.setdefault("DS_ACCELERATOR", "cpu")
# One thread per process: two streams of tests share the cores, and the threads of small layers wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where a test asks for more, OpenMP's threads would spin while they wait, on cores that other tests' processes need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Ray makes its workers nice, and other tests' processes are not: beside them a training would get a 25th of a core.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ |= SILENT
# A shell lets what runs in its background ignore SIGINT, and their children too: make test runs streams there.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Ray looks once, when it is first imported: a test that only checks a cluster file must not settle it for the others.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", "0" * 64)
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

# How long an example takes says what else the machine does.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

PHANTOM_SHAPE = (48, 40, 40)


@pytest.fixture(scope="session", autouse=True)
def site_key(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A throw-away site key: tests must not read or make the user's."""
    os.environ["PETSCALE_SITE_KEY"] = str(tmp_path_factory.mktemp("site") / "site.key")


@pytest.fixture(scope="session", autouse=True)
def no_loss_of_power() -> Iterator[None]:
    """What is killed in a test has written to the kernel, which loses nothing: no test waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small phantom patients with a full-dose scan, two low doses, CT and labels; read only."""
    from petscale.data.phantom import phantom_plans
    from storage.ingest import ingest
    from storage.lowdose import LowDoseConfig
    from storage.phantom import PhantomConfig

    body = PhantomConfig(shape=PHANTOM_SHAPE, spacing_mm=(20.0, 11.0, 11.0), num_lesions=2)
    scan = replace(LowDoseConfig(million_prompts_per_bed=20.0), iterations=1)
    folder = tmp_path_factory.mktemp("cohort")
    ingest(folder, phantom_plans(4, body, scan, [4.0, 20.0]), strict=True)
    return folder
