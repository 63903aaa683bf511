"""Dashboards answer on the loopback address only, and nothing of them is left, however their parent ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import optuna
import psutil
import pytest
from torch.utils.tensorboard import SummaryWriter

from petscale import dashboards
from petscale.cluster.session import DASHBOARD, SESSION, TOKEN, ray_dashboard
from petscale.dashboards import OPTUNA, RAY, TENSORBOARD, missing, serve, serving
from petscale.tuning import study
from petscale.tuning.study import STUDY_NAME
from storage.errors import InputError

SECRET = "postgresql://petscale:swordfish@127.0.0.1:1/studies"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a_run")
    (folder / "config.json").write_text("{}")
    with SummaryWriter(folder / "tb") as log:
        log.add_scalar("loss/content", 0.5, 1)
    return folder


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    (tmp_path / "trials" / "0" / "tb").mkdir(parents=True)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kept = optuna.create_study(study_name=STUDY_NAME, storage=study._storage(tmp_path, ""))
    kept.tell(kept.ask(), 1.0)
    return tmp_path


def fetch(address: str) -> str:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(address, timeout=30) as page:
        return bytes(page.read()).decode()


def servers(of: int | None = None) -> list[psutil.Process]:
    """The children that serve: other tests leave Python children too (multiprocessing's resource tracker)."""
    return [child for child in psutil.Process(of).children() if dashboards._CHILD in child.cmdline()]


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def gone(process: psutil.Process, within_s: float = 15) -> bool:
    try:
        process.wait(within_s)
    except psutil.TimeoutExpired:
        return False
    return True


def test_tensorboard_serves_a_run_on_loopback_and_is_gone_afterwards(run: Path) -> None:
    before = {child.pid for child in servers()}
    with serving(run) as addresses:
        assert list(addresses) == [TENSORBOARD]
        where = urlsplit(addresses[TENSORBOARD])
        assert "TensorBoard" in fetch(addresses[TENSORBOARD])
        assert "loss/content" in fetch(addresses[TENSORBOARD] + "data/plugin/scalars/tags")
        (child,) = (child for child in servers() if child.pid not in before)
        (socket_,) = (one for one in child.net_connections() if one.status == psutil.CONN_LISTEN)
        assert (socket_.laddr.ip, socket_.laddr.port) == ("127.0.0.1", where.port)
        assert str(run) not in " ".join(child.cmdline())
    assert not child.is_running()
    assert where.port is not None
    assert not listening(where.port)


def test_servers_stop_when_what_is_done_with_them_fails(run: Path) -> None:
    found = []

    def fail() -> None:
        with serving(run):
            found.extend(servers())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(found) == 1
    assert not found[0].is_running()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_orphan_is_left(run: Path, how: signal.Signals) -> None:
    code = f"from pathlib import Path\nfrom petscale.dashboards import serve\nserve(Path({str(run)!r}))"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().startswith(f"{TENSORBOARD}: http://127.0.0.1:")
        (child,) = servers(parent.pid)
        os.kill(parent.pid, how)
        assert parent.wait(30) == (0 if how != signal.SIGKILL else -signal.SIGKILL)
        assert gone(child)


def test_serving_ends_in_time_and_says_what_is_not_installed(
    journal: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboards, "_installed", lambda: False)
    began = time.monotonic()
    serve(journal, seconds=0.2)
    assert time.monotonic() - began < 60
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{TENSORBOARD}: http://127.0.0.1:")
    assert second == f'{OPTUNA}: not installed; pip install "petscale[dashboard]"'
    assert third.startswith(f"{RAY}: no sweep of this study runs on this machine")
    assert not servers()


@pytest.mark.skipif(not dashboards._installed(), reason="the extra `dashboard` is not installed")
@pytest.mark.parametrize("storage", ["", "sqlite"])
def test_optuna_dashboard_serves_a_study(journal: Path, storage: str) -> None:
    if storage:
        kept = optuna.create_study(study_name=STUDY_NAME, storage=study._storage(journal, storage))
        kept.tell(kept.ask(), 1.0)
    with serving(journal, storage) as addresses:
        assert list(addresses) == [TENSORBOARD, OPTUNA]
        assert STUDY_NAME in fetch(addresses[OPTUNA] + "api/studies")
    assert not servers()


def test_a_study_kept_elsewhere_asks_for_its_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboards, "_installed", lambda: True)
    (tmp_path / "trials").mkdir()
    assert "--storage" in missing(tmp_path)
    assert missing(tmp_path, SECRET) == ""


def test_a_run_needs_no_optuna_dashboard(run: Path) -> None:
    assert missing(run) == ""


@pytest.mark.parametrize("made", [True, False])
def test_neither_run_nor_study(tmp_path: Path, made: bool) -> None:
    folder = tmp_path / "scans"
    if made:
        folder.mkdir()
    with pytest.raises(InputError) as refused, serving(folder):
        pass
    assert refused.value.code == "CFG_RUN_FOLDER"
    assert refused.value.where == "scans"
    assert not servers()


def test_a_database_out_of_reach_is_told_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused, serving(tmp_path, SECRET):
        pass
    assert refused.value.code == "TUNE_STORAGE"
    assert "swordfish" not in str(refused.value)
    assert not servers()


def test_a_server_that_ends_at_once_is_told(run: Path) -> None:
    with pytest.raises(InputError) as refused, dashboards._server("TensorBoard", ["no_such_module"]):
        pass
    assert refused.value.code == "CFG_DASHBOARD"
    assert "it ended" in refused.value.found
    assert not servers()


def test_nothing_to_show() -> None:
    with pytest.raises(InputError, match="CFG_DASHBOARD dashboard: nothing to show"):
        serve(None)


def test_a_clusters_dashboard_must_answer(run: Path) -> None:
    with pytest.raises(InputError, match="CLU_UNREACHABLE"):
        serve(run, cluster="http://127.0.0.1:1", seconds=0)
    assert not servers()


def test_only_the_session_of_this_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead driver's session, another folder's and one without a dashboard are passed over."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen(["true"])
    dead.wait()
    for pid, folder in ((dead.pid, "mine"), (os.getpid(), "other"), (os.getppid(), "")):
        place = tmp_path / f"{SESSION}{pid}-x"
        place.mkdir()
        if folder:
            facts = {"folder": str(tmp_path / folder), "port": pid}
            (place / DASHBOARD).write_text(json.dumps(facts))
    (tmp_path / f"{SESSION}strange").mkdir()
    assert ray_dashboard(tmp_path / "mine") is None
    found = ray_dashboard(tmp_path / "other")
    assert found == (os.getpid(), tmp_path / f"{SESSION}{os.getpid()}-x" / TOKEN)
