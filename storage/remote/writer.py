"""One writer at a time for an URL: numbered leases, created once each, whose highest number holds.

A store has no lock that ends with its owner, so a lease is renewed, ages by the store's own clock, and is looked at
again before every commit.  What can remain is a writer that was cut off between that look and a put: it may overwrite
one object, which the next reader's digests tell, never make a half look whole.
"""

import fcntl
import json
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from storage.errors import InputError
from storage.remote.store import Store, home_of, name_of, store_errors, writable

STALE_S, BEAT_S = 60.0, 10.0  # a lease that was silent for so long may be taken over; its holder speaks so often


@dataclass(frozen=True)
class Lease:
    """The right to write at an URL; plain values, so that a driver can hand it to its workers.

    The highest number in the store is the holder's.  It only grows, so whoever was taken over knows it at the next
    ``check``.

    Args:
        url: what may be written.
        number: of the lease.
        family: random token shared by a driver and the workers that write for it.
    """

    url: str
    number: int
    family: str

    def check(self) -> None:
        """Make sure that nobody has taken over.

        Raises:
            InputError: STORE_BUSY.
        """
        with store_errors(self.url):
            found = Store(self.url).leases()
        if not found or found[-1] != self.number:
            raise _busy(self.url, "another process took over writing here")


_HELD: dict[str, Lease] = {}


@contextmanager
def lease(url: str, purpose: str) -> Iterator[Lease]:
    """Hold ``url`` for writing while the block lasts; a lease whose holder was silent for ``STALE_S`` is taken over.

    Raises:
        InputError: STORE_BUSY when another process writes there; CLU_ codes.
    """
    held = _acquire(url, purpose, secrets.token_hex(8))
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(held, stop), daemon=True)
    beat.start()
    try:
        with _writer_here(url):
            _HELD[url] = held
            yield held
    finally:
        _HELD.pop(url, None)
        stop.set()
        beat.join()
        with suppress(Exception):  # an error of the block is worth more; the lease goes stale by itself
            _renew(held, {"released": True})


def holding(url: str) -> Lease | None:
    """The lease that a block of this process holds, to be handed to its workers."""
    return _HELD.get(url)


@contextmanager
def succession(held: Lease) -> Iterator[Lease]:
    """Write for a driver: take over at once from whoever writes for it, as one attempt does from one still dying.

    Args:
        held: the driver's lease; its heartbeat also keeps this one.

    Raises:
        InputError: STORE_BUSY when another command has taken over from the driver.
    """
    mine = _acquire(held.url, "this attempt", held.family)
    with _writer_here(held.url):
        yield mine


@contextmanager
def _writer_here(url: str) -> Iterator[None]:
    """Tell other processes of this node that the mirror holds work that is not published yet."""
    handle = _lock_file(url)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)  # a driver and its worker may be on one node
        yield
    finally:
        os.close(handle)


def written_here(url: str) -> bool:
    """Whether a process of this node, maybe this one, writes at ``url``."""
    handle = _lock_file(url)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _lock_file(url: str) -> int:
    return os.open(home_of(url) / ".writer", os.O_CREAT | os.O_RDWR, 0o600)


def _key_of(number: int) -> str:
    return f".lease/{number:09d}"


def _acquire(url: str, purpose: str, family: str) -> Lease:
    store = writable(url)
    with store_errors(url):
        found = store.leases()
        if found and not _free(store, _key_of(found[-1]), family):
            raise _busy(url, f"another process is writing here ({purpose} must wait)")
        number = (found[-1] if found else 0) + 1
        body = {"family": family, "purpose": purpose, "token": secrets.token_hex(8), "released": False}
        created = store.create(_key_of(number), json.dumps(body).encode())
        # Looked at again: a slow taker may have created a number that was used and cleaned away meanwhile.
        if not created or store.leases()[-1] != number:
            raise _busy(url, f"another process has just begun to write here ({purpose} must wait)")
        for old in found:
            store.remove(_key_of(old))
    return Lease(url, number, family)


def _free(store: Store, key: str, family: str) -> bool:
    body = _body(store, key)
    return body.get("released") is True or body.get("family") == family or store.age_s(key) > STALE_S


def _body(store: Store, key: str) -> dict[str, Any]:
    try:
        content = json.loads(store.read(key))
    except ValueError:  # on a file system it may just be being written
        return {}
    return content if isinstance(content, dict) else {}


def _beat(held: Lease, stop: threading.Event) -> None:
    while not stop.wait(BEAT_S):
        with suppress(Exception):  # the network may come back; whoever commits checks for himself
            _renew(held, {})


def _renew(held: Lease, changes: Mapping[str, object]) -> None:
    """Write the newest lease again if it is of this family, which also renews that of a worker."""
    store = Store(held.url)
    key = _key_of(store.leases()[-1])
    body = _body(store, key)
    if body.get("family") == held.family:
        store.write(key, json.dumps({**body, **changes}).encode())


def _busy(url: str, found: str) -> InputError:
    remedy = f"wait for it to end, or {STALE_S:.0f} s after it was killed, then run the same command again"
    return InputError("STORE_BUSY", where=name_of(url), found=found, remedy=remedy)
