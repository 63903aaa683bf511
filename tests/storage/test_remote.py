"""At an URL: what is committed travels whole, once, by one writer; no kill leaves a half that is believed."""

import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from storage import integrity, remote
from storage.errors import InputError
from storage.ingest import CasePlan, ingest
from storage.integrity import MANIFEST
from storage.reader import open_cohort
from storage.remote import store, writer
from storage.source import SUV, ArraySource, Grid
from storage.verification import verify

OPERATIONS = ("put_file", "get_file", "pipe_file", "cat_file", "rm_file", "find", "ls", "info", "modified")


class KilledError(BaseException):
    """Stands for a SIGKILL: nothing of ours catches it."""


class Wire:
    """Counts what a store is asked for, and is dead from its n-th request on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
        self.calls: list[str] = []
        self.dies_at = 0
        fs = store._filesystem(url)
        for name in OPERATIONS:
            monkeypatch.setattr(fs, name, self.watched(name, getattr(fs, name)), raising=False)

    def watched(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            if self.dies_at and len(self.calls) >= self.dies_at:
                raise KilledError
            return operation(*args, **kwargs)

        return ask

    def reset(self, dies_at: int = 0) -> None:
        self.calls.clear()
        self.dies_at = dies_at

    def count(self, name: str) -> int:
        return self.calls.count(name)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An S3-compatible server on loopback with one bucket."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (pip install petscale[cloud])")
    server_of = pytest.importorskip("moto.server", reason="moto's server is not installed")
    from s3fs import S3FileSystem

    server = server_of.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "a secret that nobody prints")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        S3FileSystem.clear_instance_cache()
        fsspec.filesystem("s3").mkdir("mirrors")
        yield "s3://mirrors"
        S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(params=["memory", "file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place in each kind of store."""
    if request.param == "file":
        return f"file://{tmp_path}/store/{tmp_path.name}"
    if request.param == "memory":
        return f"memory://{tmp_path.name}/here"
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PETSCALE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def other_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str = "node") -> None:
    """What follows happens on another machine: its cache is empty."""
    monkeypatch.setenv("PETSCALE_CACHE", str(tmp_path / name))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny cohort of two cases."""
    folder = tmp_path_factory.mktemp("pristine")
    grid = Grid((20, 12, 12), np.diag([-8.0, -8.0, 8.0, 1.0]))
    plans = {}
    for number, name in enumerate(("a", "b")):
        source = ArraySource(np.random.default_rng(number).random(grid.shape, dtype=np.float32), grid, SUV)
        plans[name] = lambda _, source=source, name=name: CasePlan({"full": source}, "subject", f"print {name}")
    ingest(folder, plans, strict=True, workers=1)
    return folder


def make_unit(folder: Path, content: str, names: tuple[str, ...] = ("x/one", "two")) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{content} {name}")
    integrity.commit(folder, {"content": content})


def make_run(folder: Path, steps: tuple[int, ...] = (1, 2)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "metrics.jsonl").write_text("\n".join(map(str, steps)))
    (folder / ".lock").touch()
    (folder / "ray" / "attempt").mkdir(parents=True, exist_ok=True)
    (folder / "ray" / "attempt" / "state").touch()
    for step in steps:
        if not (folder / "checkpoints" / f"{step:09d}.aaaa").exists():
            make_unit(folder / "checkpoints" / f"{step:09d}.aaaa", f"step {step}")
    for old in sorted((folder / "checkpoints").iterdir())[: -len(steps)]:
        shutil.rmtree(old)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Key -> content of what is no lock, staging or the like."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {key: content for key, content in found.items() if not key.startswith((".", "ray/")) and "/." not in key}


def objects(url: str) -> dict[str, bytes]:
    """Key -> content of every object at ``url``, read behind petscale's back."""
    fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    root = root.rstrip("/")
    return {str(name)[len(root) + 1 :]: fs.cat_file(name) for name in fs.find(root)}


def visible(url: str) -> dict[str, bytes]:
    return {key: content for key, content in objects(url).items() if not key.startswith(".")}


def publish(folder: Path, url: str) -> None:
    with remote.lease(url, "test") as held:
        remote.publish(folder, url, held)


def believed(tmp_path: Path, found: dict[str, bytes]) -> set[str]:
    """Folders that have a manifest among these files; each must prove whole."""
    place = tmp_path / "believed"
    shutil.rmtree(place, ignore_errors=True)
    for key, content in found.items():
        (place / key).parent.mkdir(parents=True, exist_ok=True)
        (place / key).write_bytes(content)
    units = [path.parent for path in place.rglob(MANIFEST)]
    assert not [damage for unit in units for damage in integrity.verify(unit)]
    return {unit.relative_to(place).as_posix() for unit in units}


# --- there and back ---


def test_a_mirror_is_private_and_named_as_its_url(cache: Path, pristine: Path) -> None:
    url = "memory://private/cohort"
    publish(pristine, url)
    folder = remote.fetch(url)
    assert folder == remote.mirror(url)
    assert folder.name == "cohort"
    assert folder.is_relative_to(cache)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (cache, folder.parent)] == [0o700, 0o700]
    assert remote.mirror("memory://other/cohort") != folder
    assert remote.origin(folder) == url
    assert [remote.origin(place) for place in (folder.parent, folder / "cases", pristine)] == ["", "", ""]


def test_a_cohort_goes_there_and_back_once(
    url: str, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = Wire(monkeypatch, url)
    publish(pristine, url)
    assert visible(url) == files(pristine)
    assert wire.count("put_file") == len(files(pristine))
    wire.reset()
    publish(pristine, url)
    assert wire.count("put_file") == 0

    other_node(monkeypatch, tmp_path)
    wire.reset()
    folder = remote.fetch(url)
    assert files(folder) == files(pristine)
    assert wire.count("get_file") + wire.count("cat_file") == len(files(pristine))
    assert not verify(folder)
    voxels = [open_cohort(place).case("a").image("full").read(0, 20) for place in (pristine, folder)]
    assert np.array_equal(*voxels)  # type: ignore[arg-type]
    wire.reset()
    remote.fetch(url)
    assert wire.count("get_file") + wire.count("cat_file") == 0


def test_a_run_grows_and_forgets_there_as_it_does_here(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", (1, 2))
    publish(run, url)
    make_run(run, (2, 3))
    wire = Wire(monkeypatch, url)
    publish(run, url)
    assert visible(url) == files(run)
    assert wire.count("put_file") == 4  # two files and the manifest of step 3, and the metrics
    other_node(monkeypatch, tmp_path)
    folder = remote.fetch(url)
    assert files(folder) == files(run)


def test_the_newest_checkpoint_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "memory://first/run"
    publish(make_run(tmp_path / "run", (9, 10, 11)), url)
    other_node(monkeypatch, tmp_path)
    fs, order = store._filesystem(url), []
    read = fs.cat_file

    def noted(path: str) -> Any:
        order.append(path)
        return read(path)

    monkeypatch.setattr(fs, "cat_file", noted)
    remote.fetch(url)
    assert [path.split("/")[-2] for path in order] == ["000000011.aaaa", "000000010.aaaa", "000000009.aaaa"]


def test_what_is_not_committed_does_not_travel(
    url: str, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = shutil.copytree(pristine, tmp_path / "cohort")
    (cohort / "cases" / "b" / MANIFEST).unlink()
    (cohort / ".staging" / "x").mkdir(parents=True)
    (cohort / ".staging" / "x" / "y").touch()
    publish(cohort, url)
    assert not [key for key in objects(url) if key.startswith(("cases/b/", ".staging"))]
    store._filesystem(url).pipe_file(f"{url}/cases/c/zarr.json", b"{}")
    other_node(monkeypatch, tmp_path)
    assert not (remote.fetch(url) / "cases" / "c").exists()


def test_what_is_gone_there_goes_here(url: str, pristine: Path) -> None:
    publish(pristine, url)
    folder, fs = remote.fetch(url), store._filesystem(url)
    for key in (f"cases/b/{MANIFEST}", "CATALOG.json"):
        fs.rm_file(store.Store(url).at(key))
    remote.fetch(url)
    assert open_cohort(folder).cases == ("a",)
    assert not [name for name in ("cases/b", "CATALOG.json") if (folder / name).exists()]


def test_only_what_is_asked_for_is_fetched(pristine: Path) -> None:
    url = "memory://only/cohort"
    publish(pristine, url)
    folder = remote.fetch(url, only=("zarr.json", "cases/zarr.json", "cases/a"))
    assert open_cohort(folder).cases == ("a",)
    remote.fetch(url, only=("cases/b",))
    assert open_cohort(folder).cases == ("a", "b")


def test_a_damaged_mirror_is_repaired(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "memory://repaired/cohort"
    publish(pristine, url)
    folder = remote.fetch(url)
    lost = next(path for path in (folder / "cases" / "a").rglob("*") if path.is_file() and path.name == "0")
    lost.unlink()
    (folder / "CATALOG.json").write_text("{}")
    wire = Wire(monkeypatch, url)
    remote.fetch(url)
    assert files(folder) == files(pristine)
    assert wire.count("get_file") == 2


# --- damage ---


def data_key(folder: Path, case: str) -> str:
    return next(key for key in files(folder) if key.startswith(f"cases/{case}/full/0/c/"))


@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
def test_damage_in_the_store_is_named_and_never_believed(
    url: str, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    publish(pristine, url)
    key, (fs, root) = data_key(pristine, "b"), fsspec.core.url_to_fs(url, use_listings_cache=False)
    content = bytearray((pristine / key).read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    fs.rm_file(f"{root}/{key}")
    if how != "missing":
        fs.pipe_file(f"{root}/{key}", bytes(content[:-1] if how == "cut" else content))
    other_node(monkeypatch, tmp_path)
    with pytest.raises(InputError, match=f"STORE_DAMAGED b/{key.removeprefix('cases/b/')}: .* in the object store"):
        remote.fetch(url)
    assert not (remote.mirror(url) / "cases" / "b" / MANIFEST).exists()
    assert not [path for path in remote.mirror(url).rglob("*.partial") if how != "missing"]
    fs.pipe_file(f"{root}/{key}", (pristine / key).read_bytes())
    assert files(remote.fetch(url)) == files(pristine)


@pytest.mark.parametrize("key", ["../../escaped", "/escaped", "x/../../../escaped"])
def test_a_manifest_cannot_lead_out_of_the_mirror(tmp_path: Path, key: str) -> None:
    url = f"memory://{tmp_path.name}/run"
    entries = {key: {"size": 1, "sha256": "0" * 64}}
    forged = {"facts": {}, "files": entries, "root": integrity.root_digest(entries, {})}
    store._filesystem(url).pipe_file(f"{url}/checkpoints/1.a/{MANIFEST}", json.dumps(forged).encode())
    with pytest.raises(InputError, match=r"STORE_DAMAGED 1.a/MANIFEST.json"):
        remote.fetch(url)
    assert not list(tmp_path.rglob("escaped"))


def test_a_damaged_case_is_not_published(url: str, pristine: Path, tmp_path: Path) -> None:
    cohort = shutil.copytree(pristine, tmp_path / "cohort")
    place = cohort / data_key(cohort, "a")
    place.write_bytes(bytes(len(place.read_bytes())))
    with pytest.raises(InputError, match=r"STORE_DAMAGED a/full/0/c/.*it was not published"):
        publish(cohort, url)
    assert f"cases/a/{MANIFEST}" not in objects(url)


# --- killed at every request ---


def deaths(monkeypatch: pytest.MonkeyPatch, wire: Wire, work: Callable[[int], None]) -> Iterator[int]:
    """Run ``work`` again and again, dead from the first, the second, ... request on, until it lives to its end."""
    monkeypatch.setattr(writer, "STALE_S", -1.0)  # the dead do not release their lease, and nobody waits here
    for number in range(1, 500):
        wire.reset(number)
        try:
            work(number)
        except KilledError:
            wire.reset()
            yield number
        else:
            wire.reset()
            return
    raise AssertionError("never came to its end")


def test_a_publish_killed_at_any_request_leaves_no_half_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hardest one: a case is exchanged, a checkpoint is added and an old one goes."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, content, steps in ((old, "before", (1, 2)), (new, "after", (2, 3))):
        make_run(folder, steps)
        make_unit(folder / "cases" / "a", content, ("x/one", "two", content))
    count = 0
    wire = Wire(monkeypatch, "memory://killed")

    url = ""

    def work(number: int) -> None:
        nonlocal url
        other_node(monkeypatch, tmp_path, f"writer-{number}")
        url = f"memory://killed/{number}"
        dies_at, wire.dies_at = wire.dies_at, 0
        publish(old, url)
        wire.reset(dies_at)
        publish(new, url)

    expected = {"cases/a", *(f"checkpoints/{step:09d}.aaaa" for step in (1, 2, 3))}
    for number in deaths(monkeypatch, wire, work):
        found = believed(tmp_path, visible(url))
        assert found <= expected
        assert "checkpoints/000000002.aaaa" in found
        assert found & {"checkpoints/000000001.aaaa", "checkpoints/000000003.aaaa"}
        if number % 5 == 0:
            other_node(monkeypatch, tmp_path, "reader")
            assert believed(tmp_path, files(remote.fetch(url))) == found
            other_node(monkeypatch, tmp_path, f"writer-{number}")
        publish(new, url)
        assert visible(url) == files(new), number
        count += 1
    assert count > 20


def test_a_fetch_killed_at_any_request_leaves_no_half_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mirror holds an older state, of which a case was exchanged and a checkpoint is gone."""
    old, new, url = make_run(tmp_path / "old"), make_run(tmp_path / "new", (2, 3)), "memory://fetch/run"
    make_unit(old / "cases" / "a", "before", ("x/one", "two", "three"))
    make_unit(new / "cases" / "a", "after")
    publish(old, url)
    seen = remote.fetch(url).parent
    publish(new, url)
    wire = Wire(monkeypatch, url)

    def work(number: int) -> None:
        other_node(monkeypatch, tmp_path, f"reader-{number}")
        shutil.copytree(seen, remote.mirror(url).parent)
        remote.fetch(url)

    count = 0
    for _ in deaths(monkeypatch, wire, work):
        believed(tmp_path, files(remote.mirror(url)))
        assert files(remote.fetch(url)) == files(new)
        count += 1
    assert count > 10


# Publishes to a folder, each time with a real SIGKILL one request later than before, until one lives to its end.
KILLED = """
import os, signal, sys
from pathlib import Path
from storage import remote
from storage.remote import store, writer
url, folder = sys.argv[1], Path(sys.argv[2])
writer.STALE_S = -1.0
for step in range(1, 500):
    child = os.fork()
    if child == 0:
        fs, count = store._filesystem(url), 0
        def killing(operation):
            def ask(*args, **kwargs):
                global count
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return operation(*args, **kwargs)
            return ask
        for name in ("put_file", "pipe_file", "cat_file", "rm_file", "find", "ls", "info"):
            setattr(fs, name, killing(getattr(fs, name)))
        with remote.lease(url, "test") as held:
            remote.publish(folder, url, held)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(step, status, flush=True)
    if status == 0:
        break
"""


def test_a_publish_killed_by_the_system_continues(tmp_path: Path) -> None:
    run, url = make_run(tmp_path / "run"), f"file://{tmp_path}/store/run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, url, str(run)]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    steps = [line.split() for line in told.stdout.splitlines()]
    assert len(steps) > 5
    assert {status for _, status in steps[:-1]} == {"9"}
    assert {key: value for key, value in visible(url).items() if "/." not in key} == files(run)


def test_unfinished_work_is_published_before_new_work_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wire, finished = Wire(monkeypatch, "memory://unfinished"), []

    url = ""

    def work(number: int) -> None:
        nonlocal url
        url = f"memory://unfinished/{number}"
        with remote.writing(url, "ingest") as (folder, _):
            make_unit(folder / "cases" / "a", "made once")

    for _ in deaths(monkeypatch, wire, work):
        made = (remote.mirror(url) / "cases" / "a" / MANIFEST).exists()
        with remote.writing(url, "ingest") as (folder, _):
            assert (folder / "cases" / "a").exists() == made
        assert believed(tmp_path, visible(url)) == ({"cases/a"} if made else set())
        finished.append(made)
    assert set(finished) == {False, True}


def test_a_case_that_was_taken_away_there_does_not_come_back(pristine: Path) -> None:
    url = "memory://withdrawn/cohort"
    publish(pristine, url)
    remote.fetch(url)
    store._filesystem(url).rm(f"{url}/cases/b", recursive=True)
    with remote.writing(url, "ingest") as (folder, _):
        assert not (folder / "cases" / "b").exists()
    assert not [key for key in objects(url) if key.startswith("cases/b/")]


def test_a_stale_mirror_neither_overwrites_nor_removes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that trained long ago comes back: the run has moved on elsewhere."""
    url = "memory://stale/run"
    with remote.writing(url, "train") as (folder, _):
        make_run(folder, (1, 2))
    make_run(folder, (2, 3))  # committed here, never published
    other_node(monkeypatch, tmp_path)
    with remote.writing(url, "train") as (other, _):
        make_run(other, (2, 4))
    expected = files(other)
    monkeypatch.setenv("PETSCALE_CACHE", str(tmp_path / "cache"))
    with remote.writing(url, "train") as (again, _):
        assert again == folder
        assert (again / "metrics.jsonl").read_text() == "2\n4"
        assert (again / "checkpoints" / "000000004.aaaa" / MANIFEST).exists()
    assert expected.items() <= visible(url).items()


def test_the_work_of_a_block_that_fails_is_kept(tmp_path: Path) -> None:
    url = "memory://fails/cohort"
    with suppress(InputError), remote.writing(url, "ingest") as (folder, _):
        make_unit(folder / "cases" / "a", "good")
        raise InputError("SET_REFUSED", where="b", found="bad", remedy="fix it")
    assert believed(tmp_path, visible(url)) == {"cases/a"}


def test_what_an_earlier_attempt_left_is_removed_when_named(url: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "error.json").write_text("{}")
    publish(run, url)
    (run / "error.json").unlink()
    with remote.lease(url, "test") as held:
        remote.publish(run, url, held, without=("error.json",))
    assert visible(url) == files(run)


# --- one writer ---


def test_two_writers_exclude_each_other(url: str) -> None:
    with (
        remote.lease(url, "train"),
        pytest.raises(InputError, match=r"STORE_BUSY .*another process is writing here"),
        remote.lease(url, "ingest"),
    ):
        raise AssertionError("two at once")
    with remote.lease(url, "ingest") as held:
        held.check()
        assert remote.holding(url) == held
    assert remote.holding(url) is None


def test_of_many_that_come_at_once_one_writes(url: str) -> None:
    begin = threading.Barrier(6, timeout=30)

    def come(_: object) -> Any:
        begin.wait()
        try:
            with remote.lease(url, "test") as mine:
                time.sleep(0.5)
                mine.check()
                return mine.number
        except InputError as error:
            return error.code

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(come, range(6)))
    held = [number for number in found if number != "STORE_BUSY"]
    assert held
    assert len(set(held)) == len(held)


def test_a_silent_holder_is_taken_over_and_can_commit_no_more(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "STALE_S", 1.5)
    run = make_run(tmp_path / "run")
    with remote.lease(url, "train") as held:  # its next heartbeat is far away
        with pytest.raises(InputError, match="STORE_BUSY"), remote.lease(url, "train"):
            raise AssertionError("too early")
        time.sleep(3.0)  # the clock of S3 counts seconds
        with remote.lease(url, "train") as other:
            assert other.number > held.number
            with pytest.raises(InputError, match=r"STORE_BUSY .*took over"):
                remote.publish(run, url, held)
            assert not visible(url)
            remote.publish(run, url, other)
    assert visible(url) == files(run)


def test_a_heartbeat_keeps_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "memory://beats/run"
    monkeypatch.setattr(writer, "STALE_S", 0.6)
    monkeypatch.setattr(writer, "BEAT_S", 0.05)
    with remote.lease(url, "train") as held:
        time.sleep(1.2)
        with pytest.raises(InputError, match="STORE_BUSY"), remote.lease(url, "train"):
            raise AssertionError("taken from the living")
        held.check()


def test_an_attempt_takes_over_from_a_dying_one_of_its_driver(url: str, tmp_path: Path) -> None:
    with remote.lease(url, "train") as driver, remote.succession(driver) as first, remote.succession(driver) as second:
        assert driver.number < first.number < second.number
        for old in (driver, first):
            with pytest.raises(InputError, match="STORE_BUSY"):
                old.check()
        remote.publish(make_run(tmp_path / "run"), url, second)
        with pytest.raises(InputError, match="STORE_BUSY"), remote.lease(url, "train"):
            raise AssertionError("the driver lives")
    with remote.lease(url, "train"), pytest.raises(InputError, match="STORE_BUSY"), remote.succession(driver):
        raise AssertionError("another command has taken over")


def test_what_a_worker_published_is_not_undone_by_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "memory://driver/run"
    with remote.writing(url, "train") as (folder, driver):
        make_run(folder, (1,))
        remote.publish(folder, url, driver)
        other_node(monkeypatch, tmp_path)
        with remote.succession(driver) as mine:
            there = make_run(remote.fetch(url, held=mine), (1, 2))
            remote.publish(there, url, mine)
        other_node(monkeypatch, tmp_path, "cache")
    assert visible(url) == files(there)


def test_a_reader_beside_a_writer_takes_nothing_away(tmp_path: Path) -> None:
    url = "memory://beside/cohort"
    with remote.writing(url, "ingest") as (folder, held):
        make_unit(folder / "cases" / "a", "not yet published")
        assert (remote.fetch(url) / "cases" / "a" / MANIFEST).exists()
        remote.fetch(url, held=held)
        assert not (folder / "cases" / "a").exists()
        make_unit(folder / "cases" / "a", "published at the end")
    assert believed(tmp_path, visible(url)) == {"cases/a"}


def test_a_lost_answer_does_not_lose_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "memory://lost/run"
    fs = store._filesystem(url)
    put = fs.pipe_file

    def twice(path: Path, content: Any, **kwargs: Any) -> None:  # as a client does that saw no answer
        put(path, content, **kwargs)
        put(path, content, **kwargs)

    monkeypatch.setattr(fs, "pipe_file", twice)
    with remote.lease(url, "test") as held:
        held.check()


def test_a_writable_place_is_left_as_it_was(url: str) -> None:
    remote.check_writable(url)
    assert objects(url) == {}
