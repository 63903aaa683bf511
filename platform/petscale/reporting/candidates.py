"""What ``petscale score`` shows: tables of candidates, and a page, with pictures of images."""

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rich.console import Console, RenderableType

from petscale.console import Terminal
from petscale.data.inspection_table import PIPE_WIDTH
from petscale.evaluation.paired import Compared
from petscale.reporting.cohort import WINDOW_SUV, Pictured
from petscale.reporting.pictures import GREY, anterior_mip, coronal_slice
from petscale.reporting.templates import template
from storage.integrity import write_bytes
from storage.source import ImageSource


def show(compared: Compared, console: Console) -> None:
    """Print the tables, and what they rest on."""
    for part in _parts(compared):
        console.print(part, markup=False, soft_wrap=isinstance(part, str))


def _parts(compared: Compared) -> Iterator[RenderableType]:
    yield from compared.mean_tables()
    if (table := compared.test_table()) is not None:
        yield table
    yield from compared.remarks()
    if verdict := compared.verdict():
        yield verdict


def picture(images: Mapping[str, ImageSource]) -> list[Pictured]:
    """Draw PETs in SUV: anterior projection, and the middle coronal slice."""
    return [
        Pictured(name, one.units, anterior_mip(one, WINDOW_SUV, GREY), coronal_slice(one, WINDOW_SUV, GREY))
        for name, one in images.items()
    ]


def write_candidates_page(
    path: Path, title: str, tell: Callable[[Console], None], cases: Mapping[str, list[Pictured]]
) -> None:
    """Write what ``tell`` prints and the pictures of every case as one HTML file that needs no network.

    Raises:
        InputError: DISK_FULL and its kin.
    """
    console = Terminal(record=True, highlight=False, width=PIPE_WIDTH, file=io.StringIO())
    tell(console)
    text = template("cohort.html.j2").render(title=title, told=console.export_text(), cases=dict(cases))
    write_bytes(path, text.encode())
