"""What may be chosen of a report: pages as PDF by a browser that is there or not, standard deviations, sizes."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from petscale import api, commands
from petscale.reporting import pdf
from petscale.reporting.options import ReportOptions
from petscale.reporting.pdf import find_browser, write_pdf
from storage import nifti
from storage.errors import InputError
from storage.source import Grid

GRID = Grid((3, 4, 5), np.diag([-4.0, -4.0, 6.0, 1.0]))

PRINTS = """#!/bin/sh
for word in "$@"; do
  case "$word" in --print-to-pdf=*) printf '%%PDF-1.4 %s' "$*" > "${word#--print-to-pdf=}";; esac
done
"""
FAILS = """#!/bin/sh
echo "first line" >&2
echo "cannot open display" >&2
exit 3
"""


def browser(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "chromium"
    path.write_text(script)
    path.chmod(0o700)
    monkeypatch.setattr(pdf, "BROWSERS", (str(path),))


def test_a_page_is_printed_by_a_browser_that_can_reach_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    browser(tmp_path, PRINTS, monkeypatch)
    page, made = tmp_path / "a page.html", tmp_path / "made" / "page.pdf"
    made.parent.mkdir()
    page.write_text("<p>")
    write_pdf(page, made)
    words = made.read_bytes().decode()
    assert words.startswith("%PDF-")
    assert words.endswith(page.as_uri())
    assert "--host-resolver-rules=MAP * ~NOTFOUND" in words
    assert [path.name for path in made.parent.iterdir()] == ["page.pdf"]


def test_a_browser_that_fails_is_named_with_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    browser(tmp_path, FAILS, monkeypatch)
    with pytest.raises(InputError, match=r"chromium: made no PDF \(exit code 3\); it said: cannot open") as caught:
        write_pdf(tmp_path / "page.html", tmp_path / "page.pdf")
    assert caught.value.code == "CFG_BROWSER"
    assert not (tmp_path / "page.pdf").exists()


def test_without_a_browser_the_report_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf, "BROWSERS", ("no-such-browser",))
    with pytest.raises(InputError, match="apt install chromium") as caught:
        ReportOptions(pdf=True)
    assert caught.value.code == "CFG_BROWSER"
    with pytest.raises(InputError):
        find_browser()


def test_a_real_browser_prints_a_page(tmp_path: Path) -> None:
    try:
        find_browser()
    except InputError as absent:
        pytest.skip(absent.found)
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><title>t</title><p>text")
    write_pdf(page, tmp_path / "page.pdf")
    assert b"%%EOF" in (tmp_path / "page.pdf").read_bytes()


@pytest.mark.parametrize("page_mb", [-1.0, 2000.0, float("nan")])
def test_the_size_of_a_page_has_a_range(page_mb: float) -> None:
    with pytest.raises(InputError, match=r"report\.page_mb") as caught:
        ReportOptions(page_mb=page_mb)
    assert caught.value.code == "CFG_RANGE"


def test_command_and_function_have_the_same_size() -> None:
    for function in (commands.report, api.report):
        assert inspect.signature(function).parameters["page_mb"].default == ReportOptions().page_mb


def test_deviations_are_those_of_the_cases(tmp_path: Path) -> None:
    values: NDArray[np.float32] = (np.arange(60) / 100).astype(np.float32).reshape(GRID.shape)
    folder, scratch = tmp_path / "sd", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    for name in ("case-a.nii.gz", "case-b.nii"):
        nifti.write_nifti(folder / name, GRID, lambda z0, z1: values[z0:z1])
    options = ReportOptions(deviations=folder)
    options.check_cases(["case-c", "case-b"])
    for case in ("case-a", "case-b"):
        found = options.deviation(case, GRID, scratch)
        assert found is not None
        np.testing.assert_allclose(found.read(0, 3), values, atol=1e-6)
    assert options.deviation("case-c", GRID, scratch) is None
    assert ReportOptions().deviation("case-a", GRID, scratch) is None


def test_deviations_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        ReportOptions(deviations=tmp_path / "absent")
    assert caught.value.code == "IMG_NO_FILE"
    values = np.zeros(GRID.shape, dtype=np.float32)
    options = ReportOptions(deviations=tmp_path)
    with pytest.raises(InputError, match=r"case-a\.nii\.gz") as caught:
        options.check_cases(["case-a"])
    assert caught.value.code == "IMG_NO_FILE"
    nifti.write_nifti(tmp_path / "case-a.nii", GRID, lambda z0, z1: values[z0:z1])
    with pytest.raises(InputError, match="another grid") as caught:
        options.deviation("case-a", Grid((3, 4, 5), np.diag([-4.0, -4.0, 5.0, 1.0])), tmp_path)
    assert caught.value.code == "IMG_GRID"
