"""The folder of a private cluster: short enough for sockets, wherever temporary files are, or refused in one line."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from petscale.cluster import session
from storage.errors import InputError


@pytest.mark.parametrize("length", [20, 60, 200])
def test_wherever_temporary_files_are_sockets_find_room(
    length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / ("x" * length)
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    made = Path(session.own_folder())
    try:
        deep = made / f"r/session_2026-11-29_17-29-39_123456_{os.getpid()}/sockets"
        deep.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(deep / "plasma_store"))
        assert made.stat().st_mode & 0o777 == 0o700
    finally:
        shutil.rmtree(made)


def test_a_short_folder_for_temporary_files_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="p", dir="/tmp") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        monkeypatch.setattr(os, "getpid", lambda: 1)
        assert Path(session.own_folder()).parent == Path(short)


HOLDER = """
import sys, tempfile
from petscale.cluster import session

tempfile.tempdir = sys.argv[1]
print(session.own_folder(), flush=True)
sys.stdin.read()
"""


def test_a_cluster_of_another_container_is_left_alone_and_a_killed_ones_folder_is_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Containers share /tmp, and each counts its own processes: there the number in a folder's name is of nobody here.

    Seen: a training whose folder a process of another PID namespace had removed waited for ever.
    """
    with tempfile.TemporaryDirectory(prefix="p", dir="/tmp") as place:
        monkeypatch.setattr(tempfile, "tempdir", place)
        words = [sys.executable, "-c", HOLDER, place]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            theirs = Path(holder.stdout.readline().strip())
            assert theirs.parent == Path(place)
            monkeypatch.setattr(psutil, "pid_exists", lambda number: False)
            session._forget_killed(Path(place))
            assert theirs.exists()
            holder.kill()
            holder.wait()
            session._forget_killed(Path(place))
            assert not theirs.exists()


def test_no_room_anywhere_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_places", lambda: [tmp_path / ("x" * 200), tmp_path / "missing"])
    with pytest.raises(InputError, match="CLU_SOCKET_PATH TMPDIR"):
        session.own_folder()


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_ray_is_started_again_after_a_pause_and_then_it_is_told(
    failures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Ray raises when one of its own processes does not come up; nothing stays of the attempt."""
    import ray

    folders: list[Path] = []
    pauses_s: list[float] = []
    monkeypatch.setattr("time.sleep", pauses_s.append)

    def init(**words: object) -> str:
        folders.append(Path(str(words["_temp_dir"])).parent)
        if len(folders) <= failures:
            raise Exception("Failed to start the dashboard\nModule MetricsHead failed to start.")
        return "started"

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if failures < 3:
        assert session._start_private({}, 1, dashboard=True) == ("started", str(folders[-1]), [])
        assert [folder.exists() for folder in folders] == [False] * failures + [True]
        assert pauses_s == sorted({*pauses_s})
        return
    with pytest.raises(InputError, match=r"CLU_START this machine: Ray did not start \(Module MetricsHead failed"):
        session._start_private({}, 1, dashboard=True)
    assert not list(tmp_path.iterdir())
