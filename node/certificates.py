"""The certificate of the gateway's TLS: read, checked, and said what is wrong with it.

Rule: a node with a certificate that no client would take does not start; the message names the file and the fix.
"""

from __future__ import annotations

import datetime
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

SOON = datetime.timedelta(days=7)


class CertificateError(Exception):
    """The certificate or its key cannot be used."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What clients will see."""

    pem: str  # the node's own, without those that signed it
    names: tuple[str, ...]  # that it is good for: hosts first, then addresses
    ends: datetime.datetime

    def ends_soon(self, now: datetime.datetime) -> bool:
        """True in its last days."""
        return self.ends - now < SOON


def read_certificate(path: Path, now: datetime.datetime) -> Certificate:
    """The first certificate of a PEM file, good now. Raises `CertificateError`."""
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        raise CertificateError(f"{path} is not there (gateway.tls_certificate); name a PEM file") from None
    except OSError as error:
        raise CertificateError(f"{path} cannot be read ({error.strerror}); let the node's user read it") from None
    except ValueError:
        raise CertificateError(f"{path} holds no certificate in PEM (-----BEGIN CERTIFICATE-----)") from None
    if now < found.not_valid_before_utc:
        begins = found.not_valid_before_utc.date()
        raise CertificateError(f"the certificate in {path} is good from {begins} on; is this machine's clock right?")
    if now >= found.not_valid_after_utc:
        raise CertificateError(f"the certificate in {path} expired on {found.not_valid_after_utc.date()}; renew it")
    names = _names(found)
    if not names:
        message = f"the certificate in {path} says for no name or address that it is good (subjectAltName)"
        raise CertificateError(f"{message}; clients refuse such: make one that does")
    return Certificate(found.public_bytes(Encoding.PEM).decode(), names, found.not_valid_after_utc)


def load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Have a server's context show this certificate. Raises `CertificateError`."""
    try:
        key.read_bytes()
    except FileNotFoundError:
        raise CertificateError(f"{key} is not there (gateway.tls_key); name the certificate's key in PEM") from None
    except OSError as error:
        raise CertificateError(f"{key} cannot be read ({error.strerror}); let the node's user read it") from None
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except _Locked:
        raise CertificateError(
            f"{key} is locked by a password; store it without, readable by its owner alone"
        ) from None
    except ssl.SSLError as error:
        if "MISMATCH" in (error.reason or ""):
            raise CertificateError(f"{key} is not the key of the certificate in {certificate}; name its own") from None
        raise CertificateError(f"{key} or {certificate} is damaged or no PEM ({error.reason or error})") from None


class _Locked(Exception):
    """Asked for a password."""


def _no_password() -> str:
    """A node has nobody to ask; OpenSSL would wait at the terminal."""
    raise _Locked


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        said = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    addresses = said.get_values_for_type(x509.IPAddress)
    return (*said.get_values_for_type(x509.DNSName), *(str(address) for address in addresses))
