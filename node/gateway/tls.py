"""TLS by the operator's own certificate.

Rule: TLS 1.2 at least. The files are checked before the node listens, and looked at again while it runs, so that a
renewed certificate is shown without a restart; a renewal that cannot be used leaves the one before in force.
"""

from __future__ import annotations

import datetime
import ipaddress
import logging
import ssl
from collections.abc import Collection
from pathlib import Path

from node.certificates import Certificate, CertificateError, load_pair, read_certificate
from node.config import GatewaySection
from node.gateway.guards import LOOPBACK_NAMES

log = logging.getLogger("mtor.gateway")


class Tls:
    """The context of a gateway's listener, and its certificate."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises `CertificateError`."""
        self._certificate_path = certificate
        self._key_path = key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._seen = self._stamps()
        self.certificate = self._load()

    @property
    def hosts(self) -> frozenset[str]:
        """Names that the operator has a certificate for: no rebinding can have one of them."""
        return frozenset(name.lower() for name in self.certificate.names if not _address(name) and "*" not in name)

    def renew(self) -> bool:
        """Take up the files if they changed; True if there is another certificate now."""
        stamps = self._stamps()
        if stamps == self._seen:
            return False
        self._seen = stamps
        try:
            self.certificate = self._load()
        except CertificateError as error:
            log.error("the certificate was changed and cannot be used, the one before stays in force: %s", error)
            return False
        log.info("shows a new certificate, good until %s", self.certificate.ends.date())
        return True

    def _load(self) -> Certificate:
        now = datetime.datetime.now(datetime.UTC)
        found = read_certificate(self._certificate_path, now)
        load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self._certificate_path, self._key_path)  # tried before
        load_pair(self.context, self._certificate_path, self._key_path)
        if found.ends_soon(now):
            log.warning("the certificate in %s ends on %s; renew it", self._certificate_path, found.ends.date())
        return found

    def _stamps(self) -> tuple[object, ...]:
        return tuple(_stamp(path) for path in (self._certificate_path, self._key_path))


def tls_of(config: GatewaySection) -> Tls | None:
    """None without a certificate. Raises `CertificateError`."""
    if config.tls_certificate is None and config.tls_key is None:
        return None
    if config.tls_certificate is None or config.tls_key is None:
        missing = "tls_certificate" if config.tls_certificate is None else "tls_key"
        raise CertificateError(f"gateway.{missing} is missing; a certificate and its key belong together")
    return Tls(config.tls_certificate.expanduser(), config.tls_key.expanduser())


def client_name(certificate: Certificate) -> str:
    """A name that a client of this machine may check the certificate by."""
    return certificate.names[0].replace("*", "node")


def link_host(certificate: Certificate, reached: str, allowed: Collection[str]) -> str:
    """The host of links for this machine's browser: one that the certificate is good for and the gateway answers to, or
    where it is reached if there is none."""
    names = [name.lower() for name in certificate.names if "*" not in name]
    good = [name for name in names if name in LOOPBACK_NAMES] or [name for name in names if name in allowed]
    return reached if reached in names or not good else good[0]


def _address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _stamp(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
