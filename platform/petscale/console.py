"""Messages and progress bars on the terminal (standard error); plain lines where there is no terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from storage.errors import printable


class Terminal(Console):
    """A console to which no text can give orders: what a file's name or header may hold is escaped, in tables too."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Make rich's text of a string; line breaks are ours."""
        return super().render_str(printable(text, keep="\n"), **options)


console = Terminal(stderr=True, highlight=False)

Advance = Callable[[int, str], None]  # done so far, what is going on


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

    def advance(done: int, note: str) -> None:
        nonlocal said
        if state["done"] == -1:  # not before: a refusal at the door is then the only line
            console.print(f"{title}: {done}/{total}", soft_wrap=True)
        state.update(done=done, note=note)
        if time.monotonic() - said > 10:
            said = time.monotonic()
            console.print(f"{title}: {done}/{total} {note}", soft_wrap=True)

    yield advance
    if state["done"] == -1:
        return
    spent = time.monotonic() - begin
    console.print(f"{title}: {state['done']}/{total} in {spent:.0f} s {state['note']}", soft_wrap=True)
