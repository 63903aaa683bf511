"""Addresses and the few things that are asked of an object store, by fsspec; its errors become one line.

A store is asked for three things: an object is put whole or not at all, a listing shows what was put, and an object can
be created only if it is not there.  Encryption is the bucket's; credentials and endpoint come from the driver's own
environment variables (``AWS_PROFILE``, ``AWS_ENDPOINT_URL``) and are refused in an URL, which is printed and recorded.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from storage import integrity
from storage.errors import InputError

WRITABLE = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory", "file")  # a put is whole or absent there


def url_of(path: Path | str) -> str:
    """Return the URL in what the user typed, also when ``pathlib`` has made ``s3:/b/x`` of it; empty for a plain path.

    Raises:
        InputError: CLU_URL for a scheme that fsspec does not know, for credentials, and for what is no plain address.
    """
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", str(path))
    if not match:
        return ""
    import fsspec  # a plain path does not need it

    scheme, rest = match.group(1).lower(), match.group(2).rstrip("/")
    if re.search(r":[^/]*@|:.*@", rest):
        raise _bad_url(scheme, "credentials in the address", "give them by the driver's environment, as AWS_PROFILE")
    if scheme not in fsspec.available_protocols():
        raise _bad_url(scheme, f"unknown scheme '{scheme}'", "use s3://bucket/name, or a path that all nodes mount")
    parts = rest.split("/")
    if any(part in ("", ".", "..") for part in parts) or re.search(r"[?#*\[\]\x00-\x1f]|::", rest):
        raise _bad_url(scheme, "not a plain address", "write it as s3://bucket/name")
    return f"{scheme}:///{rest}" if scheme == "file" else f"{scheme}://{rest}"


def _bad_url(scheme: str, found: str, remedy: str) -> InputError:
    return InputError("CLU_URL", where=f"{scheme}://...", found=found, remedy=remedy)


def mirror(url: str) -> Path:
    """Where the local copy of ``url`` lies: below ``PETSCALE_CACHE``, under a digest of the URL, by its last name."""
    cache = Path(os.environ.get("PETSCALE_CACHE") or Path.home() / ".cache" / "petscale")
    return cache.absolute() / hashlib.sha256(url.encode()).hexdigest()[:16] / name_of(url)


def origin(folder: Path) -> str:
    """The URL whose mirror ``folder`` is, empty for any other folder."""
    try:
        url = (folder.absolute().parent / "url").read_text()
    except OSError:
        return ""
    return url if mirror(url) == folder.absolute() else ""


def name_of(url: str) -> str:
    """Last component of an URL or a key."""
    return url.rpartition("/")[2]


def home_of(url: str) -> Path:
    """The folder that holds the mirror and what is known of it; the cache and it are for their owner only."""
    home = mirror(url).parent
    with integrity.disk_errors(home):
        for private in (home.parent, home):
            private.mkdir(parents=True, exist_ok=True, mode=0o700)
            private.chmod(0o700)
        if not (home / "url").exists():
            integrity.write_bytes(home / "url", url.encode())
    return home


@dataclass(frozen=True)
class Store:
    """What is asked of a file system of fsspec, by keys below one URL."""

    url: str

    @cached_property
    def fs(self) -> Any:
        return _filesystem(self.url)

    @cached_property
    def _local(self) -> bool:
        from fsspec.implementations.local import LocalFileSystem

        return isinstance(self.fs, LocalFileSystem)

    @cached_property
    def _root(self) -> str:
        return str(self.fs._strip_protocol(self.url)).rstrip("/")

    def at(self, key: str) -> str:
        return f"{self._root}/{key}"

    def listing(self) -> dict[str, str]:
        """Key -> what tells this version of the object from any other; hidden ones and foreign names left out."""
        found = self.fs.find(self._root, detail=True)
        keys = {str(name)[len(self._root) + 1 :]: _version(info) for name, info in found.items()}
        return {key: version for key, version in keys.items() if visible(key)}

    def version(self, key: str) -> str:
        return _version(self.fs.info(self.at(key)))

    def read(self, key: str) -> bytes:
        content: bytes = self.fs.cat_file(self.at(key))
        return content

    def put(self, key: str, path: Path) -> str:
        """Put a file, whole or not at all; returns the object's version."""
        if self._local:  # here a write is not whole or absent, a rename is
            partial = self.at(str(PurePosixPath(key).with_name(f".{secrets.token_hex(4)}.partial")))
            self.fs.put_file(str(path), partial)
            os.replace(partial, self.at(key))
        else:
            self.fs.put_file(str(path), self.at(key))
        return self.version(key)

    def write(self, key: str, content: bytes) -> None:
        self.fs.pipe_file(self.at(key), content)

    def create(self, key: str, content: bytes) -> bool:
        """Write an object that is not there yet; False when it is, unless a lost answer hid that it is ours."""
        try:
            if self._local:  # its "create" looks first and writes then
                with self.fs.open(self.at(key), "xb") as file:
                    file.write(content)
            else:
                self.fs.pipe_file(self.at(key), content, mode="create")
        except FileExistsError:
            return self.read(key) == content
        except OSError as error:
            if not {"PreconditionFailed", "ConditionalRequestConflict"} & {code_of(error)}:
                raise
            return self.read(key) == content
        return True

    def remove(self, key: str) -> None:
        with suppress(FileNotFoundError):
            self.fs.rm_file(self.at(key))

    def leases(self) -> list[int]:
        """Numbers of the leases, ascending."""
        try:
            names = self.fs.ls(self.at(".lease"), detail=False)
        except FileNotFoundError:
            return []
        return sorted(int(n.group(1)) for n in (re.search(r"/(\d{9})$", str(name)) for name in names) if n)

    def age_s(self, key: str) -> float:
        """How long ago an object was written by the store's own clock; those of nodes need not agree."""
        clock = f".lease/clock-{secrets.token_hex(8)}"
        self.write(clock, b"")
        try:
            return float((self.fs.modified(self.at(clock)) - self.fs.modified(self.at(key))).total_seconds())
        finally:
            self.remove(clock)


def _filesystem(url: str) -> Any:
    import fsspec

    scheme = url.partition(":")[0]
    options = {"auto_mkdir": True} if scheme == "file" else {}
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False, **options)
    except ImportError as error:
        remedy = 'pip install "petscale[cloud]" on every node' if scheme in ("s3", "s3a") else str(error)
        raise InputError("CLU_DRIVER", where=f"{scheme}://...", found="its driver is missing", remedy=remedy) from None


def _version(info: Mapping[str, Any]) -> str:
    tag = next((info[name] for name in ("ETag", "etag", "generation", "mtime", "created") if info.get(name)), "")
    return f"{info.get('size')} {tag.timestamp() if isinstance(tag, datetime) else tag}"


def visible(key: str) -> bool:
    """Whether a key is a cohort's or a run's, and safe below a folder of this machine."""
    parts = key.split("/")
    return "ray" not in parts[:-1] and not any(part == "" or part.startswith(".") or "\\" in part for part in parts)


_CREDENTIALS = re.compile("Credential|Token|ProfileNotFound|ConfigNotFound|LoginRefresh")
_CONNECTION = re.compile("Connect|Timeout|HTTPClient|SSL|Socket|ClientPayload|Disconnect|gaierror|ProtocolError")


def code_of(error: BaseException | None) -> str:
    """Code of the store's own answer, such as ``NoSuchBucket``; empty when it gave none."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, Mapping):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


@contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Turn an error of the store or its driver into one line; libraries' messages may hold keys and are not repeated.

    Raises:
        InputError: CLU_CREDENTIALS, CLU_BUCKET, CLU_DENIED, CLU_UNREACHABLE, CLU_STORE.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        refusal = _refusal(error)
        if not refusal:
            raise
        code, found, remedy = refusal
        where = url.partition("://")[2].split("/")[0] or name_of(url)
        raise InputError(code, where=where, found=found, remedy=remedy) from None


def _refusal(error: Exception) -> tuple[str, str, str] | None:
    """Code, what was found and what to do; None for what is not the store's or its driver's."""
    code, kind = code_of(error), type(error).__name__
    if _CREDENTIALS.search(code or kind):
        keys = "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        return "CLU_CREDENTIALS", f"no valid credentials ({code or kind})", f"set {keys}, on every node"
    if code == "NoSuchBucket":
        return "CLU_BUCKET", "no such bucket", "make it, or correct the URL"
    if isinstance(error, PermissionError):
        remedy = "check the credentials, the bucket's policy and this machine's clock"
        return "CLU_DENIED", f"the store denies it ({code or 'no permission'})", remedy
    chain = f"{kind} {type(error.__cause__).__name__}"
    if not code and (isinstance(error, ConnectionError | TimeoutError) or _CONNECTION.search(chain)):
        remedy = "check AWS_ENDPOINT_URL and the network, then run the same command again: published work is kept"
        return "CLU_UNREACHABLE", "the store cannot be reached", remedy
    if code or type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp")):
        return (
            "CLU_STORE",
            f"the store refused ({code or kind})",
            "run the same command again",
        )
    return None


def check_writable(url: str) -> None:
    """Put, read back and delete a small object, and see that an object can be created once only.

    Raises:
        InputError: CLU_URL, CLU_DRIVER, CLU_CREDENTIALS, CLU_BUCKET, CLU_DENIED, CLU_UNREACHABLE, CLU_STORE.
    """
    store, key = writable(url), f".probe-{secrets.token_hex(8)}"
    with store_errors(url):
        try:
            first, second = (store.create(key, token.encode()) for token in ("first", "second"))
            whole = store.read(key) == b"first"
        finally:
            with suppress(Exception):  # the error of the probe itself is the one to report
                store.remove(key)
    if not first or second or not whole:
        raise InputError(
            "CLU_STORE",
            where=name_of(url),
            found="an object that is there can be created again, so two writers could not be kept apart",
            remedy="use a store with conditional writes (If-None-Match), as AWS S3 and recent MinIO have",
        )


def writable(url: str) -> Store:
    """The store of ``url``, if puts are whole or absent there.

    Raises:
        InputError: CLU_URL.
    """
    scheme = url.partition(":")[0]
    if scheme not in WRITABLE:
        raise _bad_url(scheme, "can be read, not written", "use s3://bucket/name, or a path that all nodes mount")
    return Store(url)
