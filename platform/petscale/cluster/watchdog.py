"""A private cluster whose head or node process is lost: the driver says so and ends, for Ray would let it wait.

Without its node process (raylet) Ray's driver waits without an end, and without its head (GCS) it aborts after a minute
with words of its own.  Neither can be interrupted from Python, so the process ends here, as a killed one does: what it
held locked is free, and the same command continues.
"""

import os
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count

import psutil

from storage.errors import InputError

VITAL = {"gcs_server": "its head process", "raylet": "its node process"}
LOOK_S = 0.2  # between two looks
LOOKS = 10  # at the vital processes for one at the whole family, which costs more
EXIT = 2  # of a command that ends in one coded line


def vital_of(processes: Collection[psutil.Process]) -> list[psutil.Process]:
    """Return those processes of a cluster without which it is none."""
    found = []
    for one in processes:
        with suppress(psutil.Error):
            if one.name() in VITAL:
                found.append(one)
    return found


@contextmanager
def ending_with(vital: Sequence[psutil.Process], tidy: Callable[[], object]) -> Iterator[None]:
    """End this process, with one line, where one of ``vital`` ends before the block does.

    Args:
        vital: processes that this one has started.
        tidy: removes what this process made for itself.
    """
    over = threading.Event()
    names = {one: one.name() for one in vital}

    def watch() -> None:
        family: set[psutil.Process] = set()
        for look in count():
            if over.wait(LOOK_S):
                return
            if look % LOOKS == 0:
                with suppress(psutil.Error):
                    family |= {*psutil.Process().children(recursive=True)}
            lost = next((name for one, name in names.items() if not _alive(one)), None)
            if lost and not over.is_set():
                _end(lost, family, tidy)

    watcher = threading.Thread(target=watch, name="petscale-watchdog", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _alive(process: psutil.Process) -> bool:
    """Whether it runs: a child that nobody has waited for is still in the table of processes."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _end(lost: str, family: Collection[psutil.Process], tidy: Callable[[], object]) -> None:
    error = InputError(
        "CLU_LOST",
        where="this machine",
        found=f"Ray lost {VITAL[lost]} ({lost}): something ended it, as a system does that is short of memory",
        remedy="run the same command again: it continues",
    )
    for one in family:
        with suppress(psutil.Error):
            one.kill()
    tidy()
    sys.stdout.flush()
    print(f"\npetscale: {error}", file=sys.stderr, flush=True)
    os._exit(EXIT)
