"""``petscale certificates``: how the machines of a cluster know each other and encrypt Ray's traffic."""

import ipaddress
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from storage import integrity
from storage.errors import InputError

AUTHORITY, CERTIFICATE, KEY = "authority.crt", "cluster.crt", "cluster.key"

HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.(?!-)[A-Za-z0-9-]{1,63})*")


def make_certificates(folder: Path, hosts: Sequence[str], *, days: int) -> list[Path]:
    """Make one certificate that holds for all machines of a cluster, and the authority that has signed it.

    The authority's key is forgotten: nobody can sign a further one.  For another machine all are made again.

    Args:
        folder: where ``authority.crt``, ``cluster.crt`` and ``cluster.key`` are written; made readable by this user
            alone.
        hosts: addresses or names of all machines; the loopback is added.
        days: how long they are valid, 1 or more.

    Returns:
        The three files.

    Raises:
        InputError: CFG_RANGE, CFG_NAME.
    """
    if days < 1:
        raise InputError("CFG_RANGE", where="--days", found=str(days), remedy="give 1 or more")
    if not hosts:
        raise InputError("CFG_RANGE", where="--hosts", found="none", remedy="name every machine of the cluster")
    names = [_name(host) for host in dict.fromkeys([*hosts, "127.0.0.1", "::1", "localhost"])]
    now = datetime.now(UTC)
    valid = now - timedelta(hours=1), now + timedelta(days=days)  # clocks differ a little
    signer, key = generate_private_key(SECP256R1()), generate_private_key(SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "petscale authority")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "petscale cluster")])
    ours = _certificate(issuer, signer, issuer, signer, valid).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    theirs = (
        _certificate(subject, key, issuer, signer, valid)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
    )
    content = {
        AUTHORITY: ours.sign(signer, SHA256()).public_bytes(Encoding.PEM),
        CERTIFICATE: theirs.sign(signer, SHA256()).public_bytes(Encoding.PEM),
        KEY: key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    }
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, text in content.items():
        (folder / name).unlink(missing_ok=True)  # a new file is this user's alone, whatever the old one was
        integrity.write_bytes(folder / name, text)
    return [folder / name for name in content]


def _certificate(
    subject: x509.Name,
    key: EllipticCurvePrivateKey,
    issuer: x509.Name,
    signer: EllipticCurvePrivateKey,
    valid: tuple[datetime, datetime],
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=subject == issuer,
                crl_sign=subject == issuer,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if HOST.fullmatch(host):
            return x509.DNSName(host)
    remedy = "give addresses or names of machines, as in cluster.yaml"
    raise InputError("CFG_NAME", where="--hosts", found=f"'{host}' is neither", remedy=remedy)
