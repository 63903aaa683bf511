"""A page as PDF: printed by a Chromium, Chrome or Edge of this machine, which asks nothing outside it."""

import os
import shutil
import subprocess
from pathlib import Path

from storage import integrity
from storage.errors import InputError

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
LONGEST_S = 300.0
OPTIONS = (
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # the browser's own requests, for the time and updates, have no address
    "--no-pdf-header-footer",
    "--virtual-time-budget=10000",
)


def find_browser() -> str:
    """Return the path of a browser that prints pages.

    Raises:
        InputError: CFG_BROWSER.
    """
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise InputError(
            "CFG_BROWSER",
            where="--pdf",
            found="no Chromium, Chrome or Edge on this machine's PATH",
            remedy="install one (apt install chromium), or leave --pdf out and print the page from any browser",
        )
    return found


def write_pdf(page: Path, pdf: Path) -> None:
    """Print a page (.html) as A4, as the page's own rules for print lay it out.

    Raises:
        InputError: CFG_BROWSER without a browser, or when it fails; DISK_FULL and its kin.
    """
    browser = find_browser()
    with integrity.disk_errors(pdf), integrity.scratch(pdf.parent.absolute(), ".pdf-") as scratch:
        printed = scratch / "page.pdf"
        words = [browser, *OPTIONS, f"--user-data-dir={scratch / 'profile'}", f"--print-to-pdf={printed}"]
        if os.geteuid() == 0:  # the browser's sandbox refuses to start for root
            words.append("--no-sandbox")
        try:
            done = subprocess.run(  # noqa: S603  (a browser found on PATH, and a page of ours)
                [*words, page.absolute().as_uri()], capture_output=True, text=True, errors="replace", timeout=LONGEST_S
            )
        except subprocess.TimeoutExpired:
            raise _failed(browser, f"did not end within {LONGEST_S:g} s") from None
        if not printed.is_file() or not printed.read_bytes().startswith(b"%PDF-"):
            told = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise _failed(browser, f"made no PDF (exit code {done.returncode}); it said: {told[-200:]}")
        integrity.write_bytes(pdf, printed.read_bytes())


def _failed(browser: str, what: str) -> InputError:
    return InputError(
        "CFG_BROWSER",
        where=Path(browser).name,
        found=what,
        remedy="the page itself is written: print it from any browser",
    )
