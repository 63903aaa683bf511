"""Nothing that a file's name or a header holds gives orders to a terminal."""

import io

import pytest
from rich.table import Table

from petscale.console import Terminal

HOSTILE = "a\x1b[2Jb\x07c\u202egnp.nii\u2066d\re"
SHOWN = r"a\x1b[2Jb\x07c\u202egnp.nii\u2066d\re"


@pytest.mark.parametrize("terminal", [False, True])
def test_messages_and_tables_show_what_would_be_an_order(terminal: bool) -> None:
    out = io.StringIO()
    console = Terminal(file=out, force_terminal=terminal, color_system=None, width=200, highlight=False)
    console.print(f"refused {HOSTILE}", markup=False, soft_wrap=True)
    table = Table(HOSTILE)
    table.add_row(HOSTILE)
    console.print(table, markup=False)
    said = out.getvalue()
    assert said.count(SHOWN) == 3
    assert not {*"\x1b\x07\u202e\u2066\r"} & {*said}


def test_a_line_break_of_ours_stays() -> None:
    out = io.StringIO()
    Terminal(file=out, highlight=False).print("one\ntwo")
    assert out.getvalue() == "one\ntwo\n"
