"""Messages and progress bars on the terminal (standard error); plain lines where there is no terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from petscale.durations import spoken
from storage.errors import printable


class Terminal(Console):
    """A console to which no text can give orders: what a file's name or header may hold is escaped, in tables too."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Make rich's text of a string; line breaks are ours."""
        return super().render_str(printable(text, keep="\n"), **options)


console = Terminal(stderr=True, highlight=False)

Advance = Callable[[int, str], None]  # done so far, what is going on

SILENT_S = 10.0  # between two lines of one stage


def _left(to_do: int, done: int, spent_s: float) -> str:
    """What is left at the speed so far, in words; nothing while there is no speed yet."""
    if not done or not to_do:
        return ""
    return f", about {spoken(spent_s * to_do / done)} left"


@contextmanager
def bar(title: str, total: int) -> Iterator[Advance]:
    """Show one stage's progress: a bar on a terminal, elsewhere a line now and then."""
    if console.is_terminal:
        columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as progress:
            task = progress.add_task(title, total=total, note="")
            yield lambda done, note: progress.update(task, completed=done, note=note)
            return
    begin = said = time.monotonic()
    state = {"done": -1, "note": ""}
    first: tuple[int, float] | None = None  # what was done when the work itself began, and when: a run may be continued

    def advance(done: int, note: str) -> None:
        nonlocal said, first
        now = time.monotonic()
        if state["done"] == -1:  # not before: a refusal at the door is then the only line
            console.print(f"{title}: {done}/{total}", soft_wrap=True)
        elif done != state["done"] and (first is None or done < first[0]):  # a run goes on from before where it was
            first = done, now
        state.update(done=done, note=note)
        if now - said > SILENT_S:
            said = now
            left = _left(total - done, done - first[0], now - first[1]) if first else ""
            console.print(f"{title}: {done}/{total} {note}{left}", soft_wrap=True)

    yield advance
    if state["done"] == -1:
        return
    spent = time.monotonic() - begin
    console.print(f"{title}: {state['done']}/{total} in {spent:.0f} s {state['note']}", soft_wrap=True)
