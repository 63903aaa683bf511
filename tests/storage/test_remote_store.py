"""What the user typed is an URL or is not, and what a store refuses is one coded line without its secrets."""

import os
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from storage import remote
from storage.errors import InputError
from storage.remote import store


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An S3-compatible server on loopback with one bucket."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (pip install petscale[cloud])")
    server_of = pytest.importorskip("moto.server", reason="moto's server is not installed")
    from s3fs import S3FileSystem

    server = server_of.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "a secret that nobody prints")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        S3FileSystem.clear_instance_cache()
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
        S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETSCALE_CACHE", str(tmp_path / "cache"))


# --- addresses ---


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("s3://bucket/cohort", "s3://bucket/cohort"),
        (Path("s3://bucket/a/b"), "s3://bucket/a/b"),
        (Path("file:///data/cohort/"), "file:///data/cohort"),
        ("S3://bucket/cohort/", "s3://bucket/cohort"),
        ("cohort", ""),
        (Path("/data/s3:"), ""),
        ("C:/data", ""),
        (Path("runs/lr=1e-3"), ""),
    ],
)
def test_an_url_is_told_from_a_path_also_after_pathlib(typed: str | Path, url: str) -> None:
    assert remote.url_of(typed) == url


@pytest.mark.parametrize(
    "typed",
    [
        "s3://KEY:hunter2@bucket/cohort",
        Path("s3://KEY:hun/ter2@bucket/cohort"),
        "nosuch://bucket/hunter2",
        "s3://bucket/../hunter2",
        "s3://bucket/cohort?hunter2=1",
        "s3://x::s3://bucket/hunter2",
        "s3://",
    ],
)
def test_other_addresses_are_refused_and_never_repeated(typed: str | Path) -> None:
    with pytest.raises(InputError, match="CLU_URL") as told:
        remote.url_of(typed)
    assert "ter2" not in str(told.value)


# --- refusals ---


def test_a_store_that_cannot_keep_two_writers_apart_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "memory://careless/run"
    fs = store._filesystem(url)
    put = fs.pipe_file
    monkeypatch.setattr(fs, "pipe_file", lambda path, content, mode="overwrite": put(path, content))
    with pytest.raises(InputError, match=r"CLU_STORE run: .*created again"):
        remote.check_writable(url)


def test_a_missing_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(InputError, match=r'CLU_DRIVER .*pip install "petscale\[cloud\]"'):
        remote.check_writable("s3://bucket/run")


def test_a_place_that_is_only_read_is_refused() -> None:
    with pytest.raises(InputError, match="CLU_URL"):
        remote.check_writable("https://example.org/cohort")


@pytest.fixture
def fresh_s3(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A client that is made anew by other variables and thrown away afterwards."""
    from s3fs import S3FileSystem

    def anew(**variables: Any) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
        S3FileSystem.clear_instance_cache()
        monkeypatch.setattr(S3FileSystem, "retries", 1)

    yield anew
    monkeypatch.undo()
    S3FileSystem.clear_instance_cache()


def test_a_missing_bucket_is_told(fresh_s3: Callable[..., Any]) -> None:
    for work in (remote.check_writable, remote.fetch):
        with pytest.raises(InputError, match="CLU_BUCKET nobucket: no such bucket"):
            work("s3://nobucket/run")


def test_missing_credentials_are_told(
    fresh_s3: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nowhere = str(tmp_path / "none")
    fresh_s3(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="", AWS_CONFIG_FILE=nowhere, HOME=nowhere)
    with pytest.raises(InputError, match=r"CLU_CREDENTIALS bucket: .*AWS_PROFILE"):
        remote.check_writable("s3://bucket/run")
    fresh_s3(AWS_PROFILE="nobody")
    with pytest.raises(InputError, match="CLU_CREDENTIALS bucket"):
        remote.check_writable("s3://bucket/run")


def test_a_silent_endpoint_is_told(fresh_s3: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fresh_s3(AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_MAX_ATTEMPTS="1")
    with pytest.raises(InputError, match=r"CLU_UNREACHABLE bucket: .*AWS_ENDPOINT_URL"):
        remote.check_writable("s3://bucket/run")


def answering(reply: bytes) -> socketserver.ThreadingTCPServer:
    """A server on loopback that gives each connection one reply and hangs up."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(reply)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


DENIED = b"<Error><Code>AccessDenied</Code><Message>a secret that nobody prints</Message></Error>"


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (b"", "CLU_UNREACHABLE"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf", "CLU_UNREACHABLE"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%s" % (len(DENIED), DENIED), "CLU_DENIED"),
    ],
    ids=["hangs up", "half an answer", "denied"],
)
def test_a_store_that_fails_on_the_way_is_told(fresh_s3: Callable[..., Any], reply: bytes, code: str) -> None:
    server = answering(reply)
    fresh_s3(AWS_ENDPOINT_URL="http://{}:{}".format(*server.server_address), AWS_MAX_ATTEMPTS="1")
    with pytest.raises(InputError, match=f"{code} bucket: ") as told:
        remote.check_writable("s3://bucket/run")
    server.shutdown()
    server.server_close()
    assert "secret" not in str(told.value)
