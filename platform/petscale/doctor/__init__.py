"""`petscale doctor`: look at a running cluster, or at this machine, and say what to fix.

This file asks every node and shows what was found.  ``machine`` gathers facts, ``rules`` applies rules to them,
``port_probe`` probes ports, and ``petscale.cluster.nodes`` runs a function on every node.
"""

import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from petscale.cluster.nodes import STORAGE, joined, on_every_node
from petscale.cluster.shared_storage import check_shared
from petscale.console import Terminal
from petscale.doctor import port_probe, rules
from petscale.doctor.machine import clock, facts
from petscale.doctor.port_probe import targets
from petscale.doctor.rules import THIS, Finding
from storage.errors import InputError

__all__ = ["Finding", "check", "facts", "run"]

CONNECT_S = 5.0
ROUNDS = 3  # of asking for the time: the first starts processes, the best of the others counts
COLOURS = {"ok": "green", "note": "yellow", "fix": "bold red"}

Ask = Callable[..., Mapping[str, Any]]  # run a function with its arguments on every node: address -> its result


def check(storage: Path | None = None) -> list[Finding]:
    """Check the cluster that RAY_ADDRESS names (it is set for a job's driver), or else this machine.

    Args:
        storage: the folder of cohorts and runs; on a cluster one that all nodes mount (by default the one that
            cluster.yaml names).

    Raises:
        InputError: ``CLU_DOCTOR`` if the cluster does not let us in; ``CLU_NODE_SILENT`` if a node does not answer.
    """
    if not joined():
        return examine(lambda function, *arguments: {THIS: function(*arguments)}, _writes, storage)
    if storage is None and os.environ.get(STORAGE):
        storage = Path(os.environ[STORAGE])
    with _joined():
        return examine(on_every_node, check_shared, storage)


def examine(ask: Ask, share: Callable[[Path], None], storage: Path | None) -> list[Finding]:
    """Gather the facts of every node and apply the rules.

    Args:
        ask: runs a function once on every node.
        share: checks the storage; its InputError becomes a finding.
        storage: as for ``check``.
    """
    machines = dict(ask(facts, storage))
    alone = set(machines) == {THIS}
    ports = {where: targets(machine, "" if alone else where) for where, machine in machines.items()}
    probed = ask(port_probe.probe, ports)
    found = [*rules.findings(machines), *rules.ports(machines, probed), _storage(share, storage, alone)]
    return found if alone else rules.together([*found, rules.skew(_clock_offsets(ask))], machines)


def run(storage: Path | None = None) -> None:
    """Print what was found: a table on a terminal, elsewhere a line each.

    Raises:
        InputError: ``CLU_DOCTOR`` when something must be fixed; as ``check``.
    """
    console = Terminal(highlight=False)
    if not joined():
        text = "This machine only; a cluster is checked by `petscale submit doctor --storage FOLDER`."
        console.print(text, soft_wrap=True)
    found = sorted(check(storage), key=lambda one: list(COLOURS).index(one.level))
    _show(console, found)
    broken = [one for one in found if one.level == "fix"]
    if broken:
        raise InputError(
            "CLU_DOCTOR",
            where="the cluster" if joined() else THIS,
            found=f"{len(broken)} to fix ({', '.join(sorted({one.code for one in broken}))})",
            remedy="each line marked fix says what to do",
        )
    console.print("Nothing to fix.")


def _show(console: Console, found: Sequence[Finding]) -> None:
    if not console.is_terminal:
        for one in found:
            remedy = f"; {one.remedy}" if one.remedy else ""
            console.print(f"{one.level} {one.code} {one.where}: {one.found}{remedy}", soft_wrap=True, markup=False)
        return
    table = Table("", "code", "where", "found", "what to do", box=None, pad_edge=False)
    for one in found:
        cells = (one.code, one.where, one.found, one.remedy)
        table.add_row(f"[{COLOURS[one.level]}]{one.level}", *(cell.replace("[", r"\[") for cell in cells))
    console.print(table)


@contextmanager
def _joined() -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names, unless this process already did.

    Raises:
        InputError: ``CLU_DOCTOR``.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    host, _, port = joined().rpartition(":")
    try:
        if port.isdigit():  # asked first, for a head that is not there would end this process after two minutes
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        ray.init(address=joined(), log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise InputError(
            "CLU_DOCTOR",
            where="RAY_ADDRESS",
            found=f"the cluster does not let us in ({type(error).__name__})",
            remedy="is it up, and are RAY_AUTH_MODE=token and its token set here? Without RAY_ADDRESS only this "
            "machine is checked",
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _storage(share: Callable[[Path], None], storage: Path | None, alone: bool) -> Finding:
    """What cohorts and runs lie on: ``CLU_STORAGE``."""
    where = THIS if alone else rules.ALL
    if storage is None:
        level: rules.Level = "ok" if alone else "note"
        return Finding("CLU_STORAGE", level, where, "not checked", "name the folder of cohorts and runs with --storage")
    try:
        share(storage)
    except InputError as error:
        return Finding("CLU_STORAGE", "fix", where, f"{error.where}: {error.found}", error.remedy)
    who = "this machine writes and reads it" if alone else "what one node writes the others read"
    return Finding("CLU_STORAGE", "ok", where, f"{storage.name}: {who}")


def _writes(storage: Path) -> None:
    """Write into a folder of this machine and read it back.

    Raises:
        InputError: ``CLU_STORAGE``.
    """
    try:
        with tempfile.TemporaryFile(dir=storage) as file:
            file.write(b"petscale")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(
            "CLU_STORAGE",
            where=storage.name,
            found=f"cannot be written to ({error.strerror})",
            remedy="name a folder that this user may write to",
        ) from None


def _clock_offsets(ask: Ask) -> dict[str, tuple[float, float]]:
    """Between which bounds each node's clock is ahead of this one, s.

    A node reads its clock after the question left and before the answer came, so that each round bounds the offset;
    the rounds' bounds are cut with each other.
    """
    bounds: dict[str, tuple[float, float]] = {}
    for _ in range(ROUNDS):
        asked = time.time()
        answers = ask(clock)
        answered = time.time()
        for where, told in answers.items():
            low, high = bounds.get(where, (float("-inf"), float("inf")))
            bounds[where] = (max(low, told - answered), min(high, told - asked))
    return bounds
