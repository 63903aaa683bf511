"""Words that do not fit a command: one line, a code, what is near."""

from collections.abc import Callable

import pytest

from petscale.parsing import in_a_line, parsed


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["phantom"], "petscale phantom: Missing from petscale phantom: COHORT; petscale phantom --help lists"),
        (["train", "c"], "petscale train: Missing from petscale train: --run PATH; petscale train --help lists"),
        (["verify", "a", "b", "c"], "petscale verify: Unrecognized options: b, c; petscale verify --help lists"),
        (["phantom", "c", "--cases", "abc"], "petscale phantom: Error parsing --cases: invalid literal for int()"),
        (
            ["phantom", "c", "--case", "3"],
            "petscale phantom: Unrecognized options: --case, 3; did you mean --cases",
        ),
        (["tune", "c", "--study", "s", "--workers", "1:2"], "petscale tune: Error parsing --workers: no type matching"),
        (["train", "c", "--run", "r", "--engine.zero-stage", "7"], "petscale train: invalid choice '7' for argument"),
        (
            ["ingest", "--pet"],
            "petscale ingest: Missing value for argument '--pet'. Expected 1 values; petscale",
        ),
    ],
)
def test_a_wrong_argument_is_one_line_with_a_code(words: list[str], told: str, refused: Callable[..., str]) -> None:
    assert refused(*words).startswith(f"CFG_ARGUMENT {told}")


def test_a_value_of_another_type_says_which_is_taken(refused: Callable[..., str]) -> None:
    assert refused("phantom", "c", "--cases", "abc").endswith("with base 10: 'abc'; give --cases INT")
    line = refused("tune", "c", "--study", "s", "--workers", "1:2")
    assert line.endswith("from ['1:2']; give --workers {None}|INT")


def test_the_help_of_a_missing_argument_is_left_to_help() -> None:
    lines = ["Missing from p:", "    --run PATH", "        a folder", "─" * 20, "For help, run p --help"]
    framed = "\n".join(["╭─ Required ─╮", *(f"│ {line:24} │" for line in lines), "╰─╯"])
    assert in_a_line(framed) == ("Missing from p: --run PATH", "")
    plain = "\n".join([" Required ", " " + "-" * 20, *(f"  {line:24}  ".replace("─", "-") for line in lines), "    "])
    assert in_a_line(plain) == ("Missing from p: --run PATH", "")
    assert in_a_line("") == ("", "")


def test_help_is_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    def command(size: int = 1) -> int:
        return size

    assert parsed(command, ["--size", "3"], prog="p", description="") == 3
    with pytest.raises(SystemExit) as ended:
        parsed(command, ["--help"], prog="p", description="what it does")
    assert ended.value.code == 0
    assert "what it does" in capsys.readouterr().out
