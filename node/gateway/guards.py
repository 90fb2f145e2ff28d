"""Who may call: Host, Origin, keys.

Rule: a page that the user happens to visit must not reach this node (DNS rebinding shows in Host, cross-site calls in
Origin); anything but loopback needs a key; the operator's routes need the operator's token always.
"""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from aiohttp import web

from node.config import GatewaySection
from node.gateway.failures import ApiError
from node.gateway.keys import ApiKeys
from protocol.ids import NodeId, parse_peer_id

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")


def is_loopback(host: str) -> bool:
    """True if a bind address is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guards:
    """The checks of one gateway."""

    def __init__(self, config: GatewaySection, keys: ApiKeys, admin_token: str) -> None:
        self._config = config
        self._keys = keys
        self._admin_token = admin_token
        self._open = is_loopback(config.host)

    def check(self, request: web.Request) -> None:
        """Raises `ApiError` (401, 403)."""
        self._check_host(request)
        self._check_origin(request)
        if request.path.startswith("/mtor/"):
            self._check_admin(request)
        elif request.path.startswith("/v1/") and not self._open:
            self._check_key(request)

    def payer(self, request: web.Request) -> NodeId | None:
        """The sub-account that pays for this client's queries; None: this node's own. A key that is not known here
        says nothing where none is wanted: most clients cannot send none."""
        key = bearer(request)
        known = self._keys.find(key) if key else None
        return parse_peer_id(known.account) if known is not None and known.account else None

    def _check_host(self, request: web.Request) -> None:
        """A bare name of another site in Host is a rebinding; addresses are what somebody typed."""
        name = _host_name(request.host)
        own = name in LOOPBACK_NAMES or name in self._config.allowed_hosts
        if own or (not self._open and _is_address(name)):
            return
        raise ApiError(
            403, f"Host {name!r} is not this node; add it to gateway.allowed_hosts if it is", code="bad_host"
        )

    def _check_origin(self, request: web.Request) -> None:
        origin = request.headers.get("Origin")
        if origin is None or origin in self._config.allowed_origins or _site(origin) == request.host:
            return
        raise ApiError(403, f"pages of {origin} may not call this node (gateway.allowed_origins)", code="bad_origin")

    def _check_key(self, request: web.Request) -> None:
        if not self._keys.accepts(bearer(request)):
            fix = "send `Authorization: Bearer KEY` with one from `mtor keys create`"
            raise ApiError(401, f"this node wants an API key: {fix}", code="invalid_api_key")

    def _check_admin(self, request: web.Request) -> None:
        if not hmac.compare_digest(bearer(request).encode(), self._admin_token.encode()):
            raise ApiError(
                401, "the operator's routes want the token in admin.token of the data folder", code="bad_token"
            )


def bearer(request: web.Request) -> str:
    """The bearer token of a request; "" without one. Tokens made here are ASCII; other bytes are no token."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.isascii() else ""


def _site(origin: str) -> str:
    """Host and port of an origin; "" if it has none or is not one."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _host_name(host: str) -> str:
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
