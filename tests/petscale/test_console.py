"""Nothing that a file's name or a header holds gives orders to a terminal."""

import io

import pytest
from rich.table import Table

from petscale.console import Terminal, bar
from petscale.durations import spoken

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


def test_a_stage_says_how_long_it_still_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its speed since the work began: of a run that is continued, since then."""
    now = [1000.0]
    monkeypatch.setattr("petscale.console.time.monotonic", lambda: now[0])
    with bar("train", 1000) as advance:
        for at_s, done in ((0, 0), (30, 400), (50, 450), (80, 475), (100, 1000)):
            now[0] = 1000.0 + at_s
            advance(done, "gan")
    assert capsys.readouterr().err.splitlines() == [
        "train: 0/1000",
        "train: 400/1000 gan",  # loaded, and no speed yet
        "train: 450/1000 gan, about 4 min left",  # 550 of them at 50 in 20 s
        "train: 475/1000 gan, about 6 min left",  # 525 at 75 in 50 s
        "train: 1000/1000 gan",
        "train: 1000/1000 in 100 s gan",
    ]


def test_a_stage_that_goes_on_from_before_where_it_was_never_says_a_negative_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The records of a run that was stopped reach further than its last checkpoint."""
    now = [1000.0]
    monkeypatch.setattr("petscale.console.time.monotonic", lambda: now[0])
    with bar("train", 1000) as advance:
        for at_s, done in ((0, 0), (15, 900), (30, 800), (50, 850)):
            now[0] = 1000.0 + at_s
            advance(done, "gan")
    said = capsys.readouterr().err.splitlines()
    assert said[2:4] == ["train: 800/1000 gan", "train: 850/1000 gan, about 1 min left"]  # 150 of them at 50 in 20 s


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3569, "59 min"),
        (3571, "1 h 0 min"),
        (86399, "1 d 0 h"),
        (2e5, "2 d 8 h"),
    ],
)
def test_durations_are_said_in_two_units_at_most(seconds: float, said: str) -> None:
    assert spoken(seconds) == said
