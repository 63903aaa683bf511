"""Codes that few users meet, each reached as they would: by a command, or by the cluster that it joins."""

import http.server
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from petscale.cluster import installation, nodes
from storage.errors import InputError

Refused = Callable[..., str]
pytestmark = pytest.mark.usefixtures("no_ray")


def test_a_full_dose_in_dicom_and_a_low_dose_in_nifti(scans: Path, tmp_path: Path, refused: Refused) -> None:
    pair = ("--low", f"20={scans / 'suv.nii.gz'}", "--case", "p01")
    assert refused("ingest", scans / "pet", tmp_path / "cohort", *pair).startswith("PAIR_FORMAT suv.nii.gz: one of")


def test_a_pattern_of_masks_that_matches_nothing(scans: Path, tmp_path: Path, refused: Refused) -> None:
    folder = tmp_path / "tree/p01"
    folder.mkdir(parents=True)
    shutil.copy(scans / "suv.nii.gz", folder / "pet.nii.gz")
    words = ("--layout", "patterns", "--pet", "{patient}/pet.nii.gz", "--mask", "{patient}/mask.nii.gz")
    assert refused("ingest", tmp_path / "tree", tmp_path / "cohort", *words).startswith("SET_NO_MASK ")


def test_an_overview_of_a_size_that_no_cohort_has(cohort: Path, tmp_path: Path, refused: Refused) -> None:
    words = ("--run", tmp_path / "run", "--feed.source", "low_drf4", "--set", "recipe.rois=()", "recipe.patch=24,24,24")
    told = refused("train", cohort, *words, "recipe.overview=16")
    assert told.startswith("CFG_OVERVIEW recipe.overview: 16; ")


@contextmanager
def answering(status: int, words: str) -> Iterator[str]:
    """A service on loopback that answers everything alike."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = words.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_dashboard_that_answers_something_else(refused: Refused) -> None:
    with answering(500, "out of order") as address:
        told = refused("status", "--cluster", address)
    assert told.startswith(f"CLU_REFUSED {address}: ")


def test_a_node_of_other_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = installation.versions()
    other = {**ours, "numpy": "1.0"}
    monkeypatch.setattr(installation, "on_every_node", lambda function: {"192.0.2.7": ours, "192.0.2.8": ours})
    installation.check_alike()
    monkeypatch.setattr(installation, "on_every_node", lambda function: {"192.0.2.7": ours, "192.0.2.8": other})
    with pytest.raises(InputError) as told:
        installation.check_alike()
    assert (told.value.code, told.value.where) == ("CLU_VERSIONS", "node 192.0.2.8")
    assert told.value.found == f"numpy 1.0, here {np.__version__}"


def test_a_node_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    class Silent:
        def options(self, **_: object) -> "Silent":
            return self

        def remote(self, *_: object) -> object:
            return object()

    node = {"Alive": True, "NodeID": "7" * 56, "NodeManagerAddress": "192.0.2.7"}
    monkeypatch.setattr(ray, "nodes", lambda: [node, {**node, "Alive": False, "NodeManagerAddress": "192.0.2.8"}])
    monkeypatch.setattr(ray, "remote", lambda **_: lambda function: Silent())
    monkeypatch.setattr(ray, "wait", lambda asked, timeout: ([], asked))
    cancelled: list[object] = []
    monkeypatch.setattr(ray, "cancel", lambda one, force: cancelled.append(one))
    with pytest.raises(InputError) as told:
        nodes.on_every_node(installation.versions, timeout_s=0.02)
    assert (told.value.code, told.value.where) == ("CLU_NODE_SILENT", "192.0.2.7")
    assert len(cancelled) == 1
