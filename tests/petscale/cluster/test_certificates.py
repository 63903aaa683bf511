"""Certificates of a cluster: both sides of a connection show one, and only the machines that were named can."""

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
import yaml

from petscale.cli import main
from petscale.cluster.certificates import AUTHORITY, CERTIFICATE, KEY, make_certificates
from storage.errors import InputError

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home") / "tls"
    make_certificates(folder, ["192.0.2.10", "node1.example.org"], days=30)
    return folder


def side(folder: Path, *, server: bool, shows: bool = True) -> ssl.SSLContext:
    """One side of a connection that wants the other's certificate, as Ray's do."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(folder / AUTHORITY)
    context.verify_mode = ssl.CERT_REQUIRED
    if shows:
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    return context


def connect(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> None:
    """Shake hands in memory, until both sides are content or one refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(6):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    ends[0].write(b"gradients")
    assert ends[1].read(100) == b"gradients"


@pytest.mark.parametrize("host", ["192.0.2.10", "node1.example.org", "127.0.0.1", "localhost"])
def test_named_machines_know_each_other(made: Path, host: str) -> None:
    connect(side(made, server=True), side(made, server=False), host)


def test_another_machine_or_one_without_a_certificate_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(side(made, server=True), side(made, server=False), "192.0.2.99")
    with pytest.raises(ssl.SSLError):
        connect(side(made, server=True), side(made, server=False, shows=False), "192.0.2.10")
    make_certificates(tmp_path, ["192.0.2.10"], days=1)  # another cluster's
    with pytest.raises(ssl.SSLError):
        connect(side(made, server=True), side(tmp_path, server=False), "192.0.2.10")


def test_keys_are_their_users_alone_also_where_an_older_one_was_not(tmp_path: Path) -> None:
    (tmp_path / KEY).touch(0o644)
    files = make_certificates(tmp_path, ["192.0.2.10"], days=1)
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == dict.fromkeys(
        (AUTHORITY, CERTIFICATE, KEY), 0o600
    )
    assert {*tmp_path.iterdir()} == {*files}  # the authority's key is nowhere


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_openssl_agrees(made: Path) -> None:
    words = ["openssl", "verify", "-x509_strict", "-CAfile", str(made / AUTHORITY), str(made / CERTIFICATE)]
    assert subprocess.run(words, capture_output=True, text=True).stdout.endswith(": OK\n")


@pytest.mark.parametrize(
    ("hosts", "days", "code"), [([], 1, "CFG_RANGE"), (["node 1"], 1, "CFG_NAME"), (["192.0.2.10"], 0, "CFG_RANGE")]
)
def test_mistakes_are_refused(tmp_path: Path, hosts: list[str], days: int, code: str) -> None:
    with pytest.raises(InputError) as error:
        make_certificates(tmp_path, hosts, days=days)
    assert error.value.code == code
    assert not list(tmp_path.iterdir())


def test_the_command_names_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["certificates", str(tmp_path / "tls"), "--hosts", "192.0.2.10", "192.0.2.11"])
    assert capsys.readouterr().out.split() == [str(tmp_path / "tls" / name) for name in (AUTHORITY, CERTIFICATE, KEY)]


@pytest.mark.parametrize("there", [False, True])
def test_machines_that_have_certificates_start_ray_with_them(tmp_path: Path, there: bool) -> None:
    """What cluster.yaml writes into every shell."""
    tls = tmp_path / ".config/petscale/tls"
    for path in (tmp_path / ".ray/auth_token", tmp_path / ".config/petscale/site.key"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if there:
        make_certificates(tls, ["192.0.2.10"], days=1)
    content = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    (shell,) = [command for command in content["setup_commands"] if "cat > ~/.petscale.sh" in command]
    shell = shell.replace("/tmp/petscale-$(id -un)", str(tmp_path / "tmp"))
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    told = f"({shell}) && . ~/.petscale.sh && env"
    said = subprocess.check_output(["bash", "-ec", told], env=environment, text=True).splitlines()
    names = {
        "RAY_USE_TLS=1",
        f"RAY_TLS_SERVER_CERT={tls / CERTIFICATE}",
        f"RAY_TLS_SERVER_KEY={tls / KEY}",
        f"RAY_TLS_CA_CERT={tls / AUTHORITY}",
    }
    assert {line for line in said if "TLS" in line} == (names if there else set())
