"""Many results in one folder: what is whole is kept, the rest is made again, and what is somebody else's is left."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from petscale.batch import RECORD, Work, make_all, read_record
from storage.errors import InputError


def folder_of(text: str) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        place.mkdir()
        (place / "1.dcm").write_text(text)
        (place / "2.dcm").write_text(text)

    return make


def refusing(place: Path) -> None:
    raise InputError("IMG_NONFINITE", where="scan", found="NaN", remedy="correct it")


def run(output: Path, *works: Work, weights: str = "w") -> list[Path]:
    return make_all(output, works, read_record(output, weights, [work.name for work in works]))


def test_a_folder_that_is_whole_is_kept_and_any_other_made_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(out, Work("pet", {"input": 1}, folder_of("first"))) == [out / "pet"]
    run(out, Work("pet", {"input": 1}, refusing))  # which is not asked
    assert (out / "pet" / "1.dcm").read_text() == "first"
    (out / "pet" / "2.dcm").unlink()
    run(out, Work("pet", {"input": 1}, folder_of("again")))
    assert (out / "pet" / "2.dcm").read_text() == "again"
    run(out, Work("pet", {"input": 2}, folder_of("other")))
    assert (out / "pet" / "1.dcm").read_text() == "other"
    assert json.loads((out / RECORD).read_bytes())["files"]["pet"]["input"] == 2


def test_what_is_refused_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="IMG_NONFINITE scan"):
        run(out, Work("a", {}, refusing))
    assert not out.exists()
    with pytest.raises(InputError, match="SET_REFUSED out: 2 of 2"):
        run(out, Work("a", {}, refusing), Work("b", {}, refusing))
    assert not out.exists()
    with pytest.raises(InputError, match="SET_REFUSED out: 1 of 2"):
        run(out, Work("a", {}, refusing), Work("b", {}, folder_of("b")))
    assert {path.name for path in out.iterdir()} == {"b", RECORD}
    assert "refused a: IMG_NONFINITE scan: NaN" in capsys.readouterr().err


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, Work("a", {}, folder_of("a")))
    with pytest.raises(InputError, match="DISK_EXISTS out: results of other weights"):
        read_record(out, "v", ["a"])
    (out / "b").mkdir()
    with pytest.raises(InputError, match="DISK_EXISTS out: b is there already"):
        read_record(out, "w", ["a", "b"])
    for content in ("[]", "{", '{"weights": "w", "files": [1]}', '{"weights": "w", "files": {"a": 1}}'):
        (out / RECORD).write_text(content)
        with pytest.raises(InputError, match="STORE_DAMAGED"):
            read_record(out, "w", ["a"])
