"""The command line: typed words become a command and its arguments; an error is one line with a code, exit code 2."""

import dataclasses
import difflib
import errno
import inspect
import os
import resource
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from importlib import metadata
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from petscale.cluster.nodes import SILENT
from petscale.commands import COMMANDS, Command
from petscale.environment import CHECKOUT, commit
from petscale.parsing import parsed, value_typed
from storage.errors import InputError
from storage.integrity import FAILING

PURPOSE = "Restore full-dose quality to low-dose PET, or make a PET from a CT, at the scanner's own resolution."
GROUPS = {
    "start": "Start",
    "data": "Data: cohorts in SUV, checked",
    "train": "Train",
    "evaluate": "Evaluate: whole volumes, scores, reports",
    "cluster": "Cluster: more machines",
}
SHELLS = ("bash", "zsh", "tcsh", "fish")
COMPLETION = ("--tyro-print-completion", "--tyro-write-completion")


def show_help(console: Console) -> None:
    """Print what petscale is for and its commands by group."""
    console.print(PURPOSE)
    console.print("\nusage: petscale COMMAND [arguments]        petscale COMMAND --help", markup=False)
    console.print("       petscale --version", markup=False)
    for group, title in GROUPS.items():
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(min_width=12)
        table.add_column()
        for name, command in COMMANDS.items():
            if command.group == group:
                table.add_row(f"  {name}", command.summary)
        console.print(f"\n{title}", style="bold")
        console.print(table, markup=False)
    console.print("\nResearch software; not a medical device.  Shell completion: docs/how-to-own-data.md", markup=False)


def version(checkout: Path = CHECKOUT) -> str:
    """Return petscale's version and, of a checkout, its commit, and whether tracked files have changed since.

    Args:
        checkout: the folder that holds the code's repository, if any does.
    """
    told = f"petscale {metadata.version('petscale')}"
    found = commit(checkout)
    return f"{told} (commit {found})" if found else told


def parse(words: Sequence[str]) -> tuple[Command, dict[str, Any]]:
    """Turn words into a command and its arguments, without running it.

    Args:
        words: a command's name and its arguments, as typed.

    Raises:
        InputError: CFG_COMMAND for an unknown command, CFG_ARGUMENT for wrong arguments; CFG_ codes for a
            configuration that cannot be composed.
        SystemExit: 0 after a command's help.
    """
    name, *rest = apart(words)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else "petscale --help lists the commands"
        raise InputError("CFG_COMMAND", where="petscale", found=f"no command '{name}'", remedy=hint)
    command = COMMANDS[name]
    prog, text = f"petscale {name}", inspect.getdoc(command.function) or ""
    if command.options is not None:
        from petscale.arguments import run_options

        options, config = run_options(rest, command.options, prog=prog, description=text)
        return command, {"options": options, "config": config}
    found: Mapping[str, Any] = parsed(
        _arguments(command, rest), rest, prog=prog, description=text.split("\n\nArgs:")[0]
    )
    if name == "submit":
        _check_submitted(found["command"])
    return command, dict(found)


def _check_submitted(words: Sequence[str]) -> None:
    """Refuse wrong arguments of a submitted command here: no cluster need be asked, and no job wait, to tell them.

    Files that the words name may be the cluster's alone, so that nothing else is decided here.

    Raises:
        InputError: CFG_ARGUMENT.
        SystemExit: 0 after the submitted command's help.
    """
    if not words or words[0] not in COMMANDS or not COMMANDS[words[0]].in_a_job:
        return  # ``submit`` refuses it
    try:
        parse(words)
    except InputError as error:
        if error.code == "CFG_ARGUMENT":
            raise


def _arguments(command: Command, words: Sequence[str] = ()) -> Any:
    """The command's function, but returning its arguments instead of running; a preset in ``words`` sets defaults."""
    signature = inspect.signature(command.function)
    if command.presets is not None:
        option, defaults_of = command.presets
        defaults = defaults_of(value_typed(words, option) or "")
        parameters = [
            one.replace(default=defaults.get(name, one.default)) for name, one in signature.parameters.items()
        ]
        signature = signature.replace(parameters=parameters)

    @wraps(command.function)
    def bound(*args: Any, **kwargs: Any) -> dict[str, Any]:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        return dict(given.arguments)

    bound.__signature__ = signature  # type: ignore[attr-defined]
    bound.__annotations__ = {**command.function.__annotations__, "return": dict}
    return bound


def run(command: Command, arguments: Mapping[str, Any]) -> None:
    """Run a command; URLs may stand for its paths: it works on their mirrors, and what it writes is published."""
    with ExitStack() as stack:

        def here(name: str, value: Any) -> Any:
            if not isinstance(value, Path):
                return value
            purpose = command.function.__name__ if name == command.writes else ""
            return stack.enter_context(_mirrored(value, purpose))

        if command.options is None:
            command.function(**{name: here(name, value) for name, value in arguments.items()})
            return
        options = arguments["options"]
        paths = {f.name: here(f.name, getattr(options, f.name)) for f in dataclasses.fields(options)}
        command.function(dataclasses.replace(options, **paths), arguments["config"])


@contextmanager
def _mirrored(path: Path, purpose: str) -> Iterator[Path]:
    """The mirror of what a path turns out to be the URL of, else the path; published at the end if it has a purpose."""
    if ":/" not in str(path):  # no URL: nothing of the object stores is loaded
        yield path
        return
    from storage import remote

    if not (url := remote.url_of(path)):
        yield path
    elif purpose:
        remote.check_writable(url)
        with remote.writing(url, purpose) as (folder, _):
            yield folder
    else:
        yield remote.fetch(url)


def apart(words: Sequence[str]) -> Sequence[str]:
    """Keep the options of a submitted command from being taken for those of ``submit``."""
    if words[:1] != ["submit"] or "--" in words or "--help" in words[:2]:
        return words
    first = next((place for place, word in enumerate(words[1:], 1) if word in COMMANDS), len(words))
    return [*words[:first], "--", *words[first:]]


def _complete(words: Sequence[str]) -> None:
    """Write a shell's completion script, as tyro makes it of all commands; a system's own fields are sgsgan's."""
    from petscale.arguments import arguments_of
    from petscale.config import RunConfig

    if not words[1:] or words[1] not in SHELLS:
        found = words[1] if words[1:] else "no shell"
        raise InputError("CFG_CHOICE", where=words[0], found=found, remedy=f"choose one of {', '.join(SHELLS)}")
    if words[0] == COMPLETION[1] and len(words) != 3:
        raise InputError(
            "CFG_ARGUMENT",
            where=words[0],
            found=f"{len(words) - 2} files" if words[2:] else "no file",
            remedy=f"name the file to write: petscale {words[0]} {words[1]} FILE",
        )
    base = RunConfig()
    targets = {
        name: arguments_of(command.options, base) if command.options else _arguments(command)
        for name, command in COMMANDS.items()
    }
    tyro.extras.subcommand_cli_from_dict(targets, prog="petscale", args=words)


@contextmanager
def _private() -> Iterator[None]:
    """What the block makes can be read by this user alone, and a crash in it leaves no dump of a patient's voxels."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, by which schedulers end a job: as Ctrl-C, so that what was begun is ended in order."""


def _terminated(*_: object) -> None:
    raise _Terminated


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, where this process has not settled it otherwise."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@_private()
@_ended_in_order()
def main(argv: Sequence[str] | None = None) -> None:
    """Run one command."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries' notes are for developers; python -W shows them
    os.environ |= SILENT
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words or words[0] in ("-h", "--help"):
            show_help(Console(highlight=False))
            return
        if words == ["--version"]:
            print(version())
            return
        if words[0] in COMPLETION:
            _complete(words)
            return
        if words == ["@command.json"]:
            from petscale.cluster.jobs import received

            sys.argv[1:] = words = received()
        run(*parse(words))
    except InputError as error:
        print(f"petscale: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, *FAILING):  # not about a file
            raise
        where = Path(str(error.filename or tempfile.gettempdir())).name
        told = InputError("DISK_ERROR", where=where, found=str(error.strerror), remedy="check the path and its folder")
        print(f"petscale: {told}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as stop:
        print("petscale: stopped; run the same command again to continue", file=sys.stderr)
        raise SystemExit(128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)) from None
