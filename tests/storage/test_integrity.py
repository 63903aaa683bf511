"""Whole or absent, one writer at a time, and every damage named."""

import errno
import hashlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import integrity, layout, reader, shards
from storage.errors import InputError
from storage.ingest import CasePlan, ingest
from storage.integrity import MANIFEST, Damage
from storage.reader import open_cohort
from storage.source import SUV, ArraySource, Grid
from storage.verification import verify

HOLDER = """
import sys, time
from pathlib import Path
from storage import integrity
with integrity.exclusive(Path(sys.argv[1]), purpose="test"):
    print("held", flush=True)
    time.sleep(60)
"""

# Writes again and again, each time killed one line of Python later than before, until one write lives to its end.
KILLED_WRITES = """
import os, signal, sys
from pathlib import Path
from storage import integrity
path = Path(sys.argv[1])
contents = {"old": b"o" * 5000, "new": b"n" * 5000}
for step in range(1, 2000):
    path.write_bytes(contents["old"])
    child = os.fork()
    if child == 0:
        count = 0
        def trace(frame, event, argument):
            global count
            count += event == "line"
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace
        sys.settrace(trace)
        integrity.write_bytes(path, contents["new"])
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    content = path.read_bytes()
    print(next((name for name, whole in contents.items() if whole == content), "torn"))
    if status == 0:
        break
"""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """Folder that another process holds, and the process."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield tmp_path, process
    process.kill()
    process.wait()
    process.stdout.close()


def make_cohort(folder: Path, cases: tuple[str, ...] = ("a", "b")) -> Any:
    """A case of two images per name, tiny."""
    grid = Grid((20, 12, 12), np.diag([-8.0, -8.0, 8.0, 1.0]))
    plans = {}
    for number, name in enumerate(cases):
        rng = np.random.default_rng(number)
        images = {
            image: ArraySource(rng.random(grid.shape, dtype=np.float32), grid, SUV) for image in ("full", "low_drf4")
        }
        plans[name] = lambda _, images=images, name=name: CasePlan(images, "subject", f"print {name}")
    ingest(folder, plans, strict=True, workers=1)
    return folder


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def cohort(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "cohort")


def data_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (".lock",))


def flip(path: Path, rng: np.random.Generator) -> None:
    raw = bytearray(path.read_bytes())
    raw[rng.integers(len(raw))] ^= 1 << int(rng.integers(8))
    path.write_bytes(raw)


# --- writing ---


@pytest.mark.parametrize("point", ["fsync", "replace"])
def test_a_crash_before_the_rename_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    path = tmp_path / "state.json"
    integrity.write_bytes(path, b"old")

    def crash(*_: object) -> None:
        raise RuntimeError("crash")

    monkeypatch.setattr(os, point, crash)
    with pytest.raises(RuntimeError, match="crash"):
        integrity.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(b"")
    left = subprocess.run([sys.executable, "-c", KILLED_WRITES, path], check=True, capture_output=True, text=True)
    states = left.stdout.split()
    assert len(states) > 20
    assert set(states) == {"old", "new"}, "and never a torn one"
    assert states == sorted(states, reverse=True), "old before the rename, new after it"


def test_threads_may_replace_one_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    contents = [bytes([number]) * 5000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            list(pool.map(lambda content: integrity.write_bytes(path, content), contents))
            assert path.read_bytes() in contents
    assert [one.name for one in tmp_path.iterdir()] == ["state.json"]


def test_what_a_killed_process_was_making_goes_and_what_a_living_one_makes_stays(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    killed, folder, another = (tmp_path / f".{name}" for name in ("state.json.1.partial", "state.json.x.partial", "b"))
    killed.write_bytes(b"half")
    folder.mkdir()
    (folder / "00001.dcm").write_bytes(b"half")
    another.write_bytes(b"of the user")
    script = (
        "import sys, pathlib, storage.integrity as integrity\n"
        "with integrity.replacing(pathlib.Path(sys.argv[1])): print(flush=True); input()"
    )
    living = subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert living.stdout
    assert living.stdout.readline() == "\n"
    integrity.write_bytes(path, b"ours")
    names = {one.name for one in tmp_path.iterdir()}
    living.communicate("\n")
    assert names > {"state.json", ".b"}
    (theirs,) = names - {"state.json", ".b"}
    assert theirs.startswith(f".state.json.{living.pid}-")
    assert path.read_bytes() == b""
    assert {one.name for one in tmp_path.iterdir()} == {"state.json", ".b"}


@pytest.mark.parametrize("limit", [0, 1, 100, 4096, 9999])
def test_a_full_disk_is_told_and_the_old_file_stays(tmp_path: Path, limit: int) -> None:
    script = f"""
import resource, sys
from pathlib import Path
from storage import integrity
from storage.errors import InputError
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    integrity.write_bytes(Path(sys.argv[1]), b"n" * 10000)
except InputError as error:
    sys.exit(0 if error.code == "DISK_FULL" else 3)
sys.exit(4)
"""
    path = tmp_path / "state"
    path.write_bytes(b"old")
    assert subprocess.run([sys.executable, "-c", script, path], check=False).returncode == 0
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_too_little_space_is_refused_before_the_work(tmp_path: Path) -> None:
    integrity.require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(InputError) as error:
        integrity.require_space(tmp_path, 2**62)
    assert error.value.code == "DISK_FULL"
    assert "MiB needed" in error.value.found


def test_other_os_errors_pass_untouched(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), integrity.disk_errors(tmp_path):
        (tmp_path / "none").read_bytes()
    with pytest.raises(InputError, match="DISK_DENIED"), integrity.disk_errors(tmp_path):
        raise PermissionError(13, "denied")


# --- the lock ---


def test_a_second_process_is_told_to_wait(
    held: tuple[Path, subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = held
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits itself"))
    with pytest.raises(InputError) as error, integrity.exclusive(folder, purpose="ingest"):
        pass
    assert error.value.code == "STORE_BUSY"


def test_a_killed_process_blocks_nobody(held: tuple[Path, subprocess.Popen[str]]) -> None:
    folder, process = held
    process.kill()
    process.wait()
    with integrity.exclusive(folder, purpose="ingest"):
        pass
    with integrity.exclusive(folder, purpose="again, after it was given back"):
        pass


def test_waiting_outlives_a_writer_that_ends(held: tuple[Path, subprocess.Popen[str]]) -> None:
    folder, process = held
    process.terminate()
    with integrity.exclusive(folder, purpose="ingest", wait_s=20.0):
        pass


# --- commit and proof ---


def test_a_commit_proves_itself_and_its_digest_is_the_content(tmp_path: Path) -> None:
    roots = []
    for name in ("one", "two"):
        folder = tmp_path / name
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "er" / "x").write_bytes(b"1")
        (folder / "y").write_bytes(b"")
        roots.append(integrity.commit(folder, {"case": "c"}))
        assert integrity.verify(folder) == []
        assert integrity.check_presence(folder)["facts"] == {"case": "c"}
    assert roots[0] == roots[1]
    (tmp_path / "two" / "y").write_bytes(b"2")
    assert integrity.commit(tmp_path / "two", {"case": "c"}) != roots[0]
    assert integrity.commit(tmp_path / "one", {"case": "d"}) != roots[0]


def test_what_was_never_committed_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    with pytest.raises(InputError) as error:
        integrity.manifest(tmp_path)
    assert error.value.code == "STORE_UNCOMMITTED"


def test_every_flipped_bit_is_found_and_its_file_named(cohort: Path) -> None:
    """Random bits in every file of a case, in proportion and at least 12 in each."""
    rng = np.random.default_rng(21)
    case = cohort / "cases" / "a"
    flips = 0
    for path in data_files(case):
        whole = path.read_bytes()
        for _ in range(12):
            flip(path, rng)
            damage = integrity.verify(case)
            assert [d.key for d in damage] == [str(path.relative_to(case))], path
            path.write_bytes(whole)
            flips += 1
    assert flips > 200
    assert integrity.verify(case) == []


def test_no_flipped_bit_is_ever_read_as_a_value(cohort: Path) -> None:
    """Without ``verify``: opening or reading refuses, or the values are the ones that were written."""
    rng = np.random.default_rng(22)

    def read() -> Any:
        shards._opened.cache_clear()  # nothing from memory, though files change faster than their times tell
        reader._case.cache_clear()
        case = open_cohort(cohort).case("a")
        maps = case.sampling_maps
        return [
            *(case.image(n).read(0, 20).tobytes() for n in case.images),
            *(case.image(n).grid.affine.tobytes() for n in case.images),
            *(case.overview(n).tobytes() for n in ("full", "low_drf4")),
            maps.body.tobytes(),
            maps.uptake.tobytes(),
            case.subject,
            case.fingerprint,
        ]

    good = read()
    quiet = 0
    for path in data_files(cohort / "cases" / "a"):
        whole = path.read_bytes()
        for _ in range(4):
            flip(path, rng)
            with suppress(InputError):
                assert read() == good, path
                quiet += 1
            path.write_bytes(whole)
    assert quiet == 0


def test_every_flipped_bit_of_the_catalog_is_found(cohort: Path) -> None:
    rng = np.random.default_rng(23)
    path = cohort / layout.CATALOG
    whole = path.read_bytes()
    for _ in range(60):
        flip(path, rng)
        assert verify(cohort)
        path.write_bytes(whole)
    assert verify(cohort) == {}


def exchange(one: Path, two: Path) -> None:
    other = one.with_name("exchange")
    os.rename(one, other)
    os.rename(two, one)
    os.rename(other, two)


FULL, LOW = "full/0/c/0/0/0", "low_drf4/0/c/0/0/0"


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda c: (c / FULL).unlink(), {FULL: "missing"}),
        (lambda c: (c / FULL).write_bytes(b""), {FULL: "0 bytes"}),
        (lambda c: os.truncate(c / FULL, 1000), {FULL: "1000 bytes"}),
        (lambda c: exchange(c / FULL, c / LOW), {FULL: "", LOW: ""}),
        (lambda c: shutil.copy(c.parent / "b" / FULL, c / FULL), {FULL: ""}),
        (lambda c: (c / "full" / "note.txt").write_text("x"), {"full/note.txt": "never committed"}),
        (lambda c: shutil.copy(c / MANIFEST, c / "full" / MANIFEST), {f"full/{MANIFEST}": "never committed"}),
        (lambda c: (c / MANIFEST).write_bytes(b""), {MANIFEST: "own digest"}),
        (lambda c: (c / MANIFEST).unlink(), {MANIFEST: "no manifest"}),
        (lambda c: (c / "zarr.json").unlink(), {"zarr.json": "missing"}),
    ],
    ids=[
        "missing", "emptied", "truncated", "swapped", "from another case", "foreign", "foreign manifest",
        "manifest emptied", "manifest missing", "metadata missing",
    ],
)  # fmt: skip
def test_damage_is_named(cohort: Path, spoil: Callable[..., Any], named: str) -> None:
    spoil(cohort / "cases" / "a")
    found = verify(cohort)
    assert list(found) == ["a"]
    assert {d.key for d in found["a"]} == set(named)
    for damage in found["a"]:
        assert named[damage.key] in damage.problem


def test_a_stale_file_is_named(cohort: Path, tmp_path: Path) -> None:
    """A file of an earlier ingest of the same case, whole in itself."""
    rng = np.random.default_rng(5)
    image = np.asarray(rng.random((20, 12, 12)), np.float32)
    stale = tmp_path / "stale"
    layout.create_array(stale, image.shape, image.dtype, depth=32)
    layout.write_shard(stale, 0, image)
    shutil.copy(stale / "c/0/0/0", cohort / "cases" / "a" / FULL)
    assert [d.key for d in verify(cohort)["a"]] == [FULL]


def test_a_lost_case_is_missed_even_after_the_next_ingest(cohort: Path) -> None:
    shutil.rmtree(cohort / "cases" / "a")
    assert verify(cohort) == {"a": [Damage("", "the whole case is missing")]}
    ingest(cohort, {})
    assert "a" in verify(cohort)
    shutil.rmtree(cohort / "cases")
    assert set(verify(cohort)) == {"a", "b"}


def test_exchanged_cases_are_found(cohort: Path) -> None:
    exchange(cohort / "cases" / "a", cohort / "cases" / "b")
    found = verify(cohort)
    assert set(found) == {"a", "b"}
    assert all(MANIFEST in [d.key for d in damage] for damage in found.values())
    with pytest.raises(InputError) as error:
        open_cohort(cohort).case("a")
    assert error.value.code == "STORE_DAMAGED"


def test_a_case_replaced_by_an_older_commit_is_found(cohort: Path) -> None:
    case = cohort / "cases" / "a"
    (case / "full" / "zarr.json").write_bytes((case / "full" / "zarr.json").read_bytes() + b"\n")
    integrity.commit(case, {"case": "a", "schema": layout.SCHEMA})  # whole in itself, but not what the catalog says
    assert verify(cohort) == {"a": [Damage(MANIFEST, "is not the one that was committed")]}
    ingest(cohort, {})
    assert "a" in verify(cohort)


def test_a_missing_catalog_is_told_and_made_again(cohort: Path) -> None:
    (cohort / layout.CATALOG).unlink()
    assert list(verify(cohort)) == [layout.CATALOG]
    ingest(cohort, {})
    assert verify(cohort) == {}


# --- one file at a time ---


def fail_while_replacing(path: Path, content: bytes, error: Exception) -> None:
    with integrity.replacing(path) as file:
        file.write(content)
        raise error


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, old: bytes, new: bytes
) -> None:
    path = tmp_path_factory.mktemp("file") / "a.bin"
    with integrity.replacing(path) as file:
        file.write(old)
        assert not path.exists(), "nothing stands there before it is whole"
    assert path.read_bytes() == old
    with pytest.raises(RuntimeError):
        fail_while_replacing(path, new, RuntimeError())
    assert path.read_bytes() == old
    with integrity.replacing(path) as file:
        file.write(new)
    assert path.read_bytes() == new
    assert [found.name for found in path.parent.iterdir()] == ["a.bin"]
    assert integrity.file_digest(path) == hashlib.sha256(new).hexdigest()


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        fail_while_replacing(tmp_path / "a.bin", b"a", OSError(errno.ENOSPC, "no space"))
    assert error.value.code == "DISK_FULL"
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_is_its_users_and_one_that_was_opened_to_others_stays_open(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        path = tmp_path / "made" / "file"
        layout.create_group(path.parent, {})
        integrity.write_bytes(path, b"1")
        assert [stat.S_IMODE(one.stat().st_mode) for one in (path.parent, path)] == [0o700, 0o600]
        path.chmod(0o640)
        integrity.write_bytes(path, b"2")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    finally:
        os.umask(before)


def test_a_killed_process_leaves_its_intermediate_files_to_the_next(tmp_path: Path) -> None:
    """A scan's copy would else lie there for ever; what another process still needs, and the user's own, stays."""
    script = (
        "import sys, pathlib, storage.integrity as integrity\n"
        "with integrity.scratch(pathlib.Path(sys.argv[1]), '.petscale-') as made: print(made.name, flush=True); input()"
    )
    users = [
        subprocess.Popen(
            [sys.executable, "-c", script, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    names = [user.stdout.readline().strip() for user in users if user.stdout]
    (tmp_path / names[0] / "scan").write_bytes(b"voxels")
    (tmp_path / ".petscale-notes").mkdir()
    users[0].kill()
    users[0].communicate()
    with integrity.scratch(tmp_path, ".petscale-") as ours:
        assert {one.name for one in tmp_path.iterdir()} == {names[1], ours.name, ".petscale-notes"}
    users[1].communicate("\n")
    assert [one.name for one in tmp_path.iterdir()] == [".petscale-notes"]
