"""Who may call: Host, Origin, keys, limits.

Rule: a page that the user happens to visit must not reach this node (DNS rebinding shows in Host, cross-site calls in
Origin); anything but loopback needs a key; the operator's routes need the operator's token or a session always. What a
client may do is looked up at each query, so that a key that was revoked is refused also where a socket is open.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import queue
import time
from collections.abc import Callable, Collection
from typing import NoReturn
from urllib.parse import urlsplit

from aiohttp import web

from node.answers import WorkerShare
from node.config import GatewaySection
from node.gateway.callers import Address, Caller, client_address, is_within
from node.gateway.failures import ApiError
from node.gateway.key_usage import KeyUsage
from node.gateway.keys import PREFIX, ApiKey, ApiKeys, KeysError
from node.gateway.limits import Limits
from node.gateway.sessions import Sessions

__all__ = ["Address", "Admission", "Caller", "Guards", "bearer", "is_loopback"]

log = logging.getLogger("mtor.gateway")

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")
ASKING = ("/v1/", "/api/", "/ws")  # what clients call; the rest of the paths show nothing that is anybody's
SOCKET = "/ws"  # a page cannot send a header with it: its key comes in the first frame
OPERATING = "/mtor/"
UNLOCK = "/mtor/unlock"
HANDED_ON = ("X-Forwarded-For", "Forwarded", "X-Real-IP")
CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)


def is_loopback(host: str) -> bool:
    """True if a bind address is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Admission:
    """One query that was let in. `leave` has to follow."""

    def __init__(self, guards: Guards, caller: Caller) -> None:
        self._guards = guards
        self.caller = caller

    def charged(self, share: WorkerShare) -> None:
        """Count what a worker delivered, from whichever thread, also after the query has left."""
        self._guards.note_share(self.caller, share)

    def headers(self) -> dict[str, str]:
        """How far the caller is from its limits."""
        return self._guards.limit_headers(self.caller)

    def leave(self) -> None:
        """The query has ended."""
        self._guards.left(self.caller)


class Guards:
    """The checks of one gateway. Entered on the gateway's loop alone, but for `note_share`."""

    def __init__(
        self,
        config: GatewaySection,
        keys: ApiKeys,
        usage: KeyUsage,
        sessions: Sessions,
        admin_token: str,
        own_names: Callable[[], Collection[str]] = tuple,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`own_names`: hosts that the gateway's certificate is good for now."""
        self._config = config
        self._keys = keys
        self._usage = usage
        self._sessions = sessions
        self._admin_token = admin_token
        self._own_names = own_names
        self._clock = clock
        self._open = is_loopback(config.host)
        self._allowed_hosts = frozenset(host.lower() for host in config.allowed_hosts)
        self._limits = Limits(config, usage)
        self._shares: queue.SimpleQueue[tuple[Caller, WorkerShare]] = queue.SimpleQueue()

    # --- requests ------------------------------------------------------------------------------------

    def check(self, request: web.Request) -> None:
        """Raises `ApiError` (401, 403, 429)."""
        self._check_host(request)
        if request.path.startswith(OPERATING):
            self._check_operator(request)
            return
        self._check_origin(request)
        if request.method == "OPTIONS":
            return  # a browser asks without a key what it may ask with one
        if request.path.startswith(ASKING):
            self._limits.arrived(self.address(request), self._clock())
            if request.path != SOCKET:
                self.caller(request)

    def address(self, request: web.Request) -> Address:
        """Where a request comes from."""
        transport = request.transport
        own = transport.get_extra_info("sockname") if transport is not None else None
        forwarded = ",".join(request.headers.getall("X-Forwarded-For", ())).split(",")
        marked = any(name in request.headers for name in HANDED_ON)
        own_address = str(own[0]) if isinstance(own, tuple) else ""
        return client_address(request.remote or "", own_address, forwarded, self._config.trusted_proxies, marked=marked)

    def group(self, peer: str, own: str) -> str:
        """What counts together when connections are counted; "" for this machine and trusted proxies."""
        address = client_address(peer, own, (), (), marked=False)
        return "" if address.local or is_within(peer, self._config.trusted_proxies) else address.group

    def caller(self, request: web.Request) -> Caller:
        """Who asks; made once for a request. Raises `ApiError` (401, 429)."""
        found = request.get(CALLER)
        if found is None:
            found = request[CALLER] = self.caller_of(bearer(request), self.address(request))
        return found

    def caller_of(self, key: str, address: Address) -> Caller:
        """Who asks with this key ("": none) from there. A key that is not known here says nothing where none is
        wanted: most clients cannot send none. Raises `ApiError` (401, 429)."""
        shown = key if key.isascii() else ""  # keys made here are; others could not even be hashed
        if shown and self._is_operator(shown) and self._from_here(address):
            return Caller(address, operator=True)
        known = self._read(lambda: self._keys.find(shown)) if shown else None
        if known is not None:
            return Caller(address, self._in_force(known))
        if not self._anonymous(address, key):
            self._refuse_key(key, address)
        return Caller(address)

    # --- queries -------------------------------------------------------------------------------------

    def admit(self, caller: Caller, realm: str) -> Admission:
        """Let a query in. Raises `ApiError` (401, 403, 429)."""
        self.take_in_shares()
        now = self._clock()
        if caller.key is not None:
            key_id = caller.key.id
            key = self._in_force(self._read(lambda: self._keys.current(key_id)))
            if not key.may_ask(realm):
                scopes = " ".join(f"--scope '{scope}'" for scope in (*key.terms.scopes, realm))
                message = (
                    f"the key {key.name!r} may not ask {realm} (its scopes: {', '.join(key.terms.scopes)}); "
                    f"`mtor keys create NAME {scopes}` at the node makes one that may"
                )
                raise ApiError(403, message, type="permission_error", code="insufficient_scope", param="model")
            caller = Caller(caller.address, key)
        self._limits.admit(caller, now)
        if caller.key is not None:
            self._usage.used(caller.key.id, now)
        return Admission(self, caller)

    def left(self, caller: Caller) -> None:
        """A query that was admitted has ended."""
        self._limits.left(caller)

    def limit_headers(self, caller: Caller) -> dict[str, str]:
        """OpenAI's x-ratelimit headers."""
        self.take_in_shares()
        return self._limits.headers(caller, self._clock())

    def note_share(self, caller: Caller, share: WorkerShare) -> None:
        """Have a worker's share counted. From any thread."""
        self._shares.put((caller, share))

    def take_in_shares(self) -> None:
        """Count what was noted."""
        while not self._shares.empty():
            caller, share = self._shares.get()
            now = self._clock()
            self._limits.charge(caller, share.units_in + share.units_out, now)
            if caller.key is not None:
                self._usage.charge(caller.key.id, share.amount, now)

    def usage(self) -> KeyUsage:
        """What keys have spent until now."""
        self.take_in_shares()
        return self._usage

    def unsaved_usage(self) -> str:
        """What the file of it should say; "" if it says so already."""
        self.take_in_shares()
        try:
            known = frozenset(key.id for key in self._keys.known())
        except (KeysError, OSError):
            known = None
        return self._usage.unsaved(known)

    # --- keys ----------------------------------------------------------------------------------------

    def _read(self, look: Callable[[], ApiKey | None]) -> ApiKey | None:
        try:
            return look()
        except (KeysError, OSError) as error:
            log.error("the API keys cannot be read: %s", error)
            message = "this node cannot read its API keys; its operator finds the reason in its log"
            raise ApiError(503, message, code="keys_unreadable", retry_ms=60_000) from None

    def _in_force(self, key: ApiKey | None) -> ApiKey:
        """Raises `ApiError` (401)."""
        if key is None:
            raise ApiError(
                401, "this API key was revoked; `mtor keys create NAME` makes another", code="revoked_api_key"
            )
        if key.expired(self._clock()):
            day = time.strftime("%Y-%m-%d", time.gmtime(key.terms.expires))
            message = f"the API key {key.name!r} expired on {day}; `mtor keys create NAME` makes another"
            raise ApiError(401, message, code="expired_api_key")
        return key

    def _anonymous(self, address: Address, key: str) -> bool:
        """True if this one may ask without a key. A key of ours that is wrong is a mistake to be told of, other
        texts are what clients send that have to send something; this machine is spared both."""
        match self._config.anonymous:
            case "anybody":
                return not key.startswith(PREFIX) or address.local
            case "loopback":
                return address.local
            case "auto":
                return address.local and self._open
        return False

    def _refuse_key(self, key: str, address: Address) -> NoReturn:
        """Raises `ApiError` (401, 429)."""
        if key:
            self._limits.wrong_key(address, self._clock())
        fix = "send `Authorization: Bearer KEY` with one from `mtor keys create`"
        raise ApiError(401, f"this node wants an API key: {fix}", code="invalid_api_key")

    # --- pages ---------------------------------------------------------------------------------------

    def _check_host(self, request: web.Request) -> None:
        """A bare name of another site in Host is a rebinding; addresses are what somebody typed."""
        said = request.headers.getall("Host", [])
        if len(said) != 1:
            raise ApiError(400, "a request has one Host header; HTTP/1.0 without it is not answered", code="bad_host")
        name = host_name(said[0])
        own = name in LOOPBACK_NAMES or name in self._allowed_hosts or name in self._own_names()
        if own or (not self._open and _is_address(name)):
            return
        raise ApiError(
            403, f"Host {name!r} is not this node; add it to gateway.allowed_hosts if it is", code="bad_host"
        )

    def _check_origin(self, request: web.Request) -> None:
        origin = request.headers.get("Origin")
        if origin is None and not _embedded(request):
            return
        if origin is not None and (origin in self._config.allowed_origins or _same_site(request, origin)):
            return
        who = origin or "another site"
        raise ApiError(403, f"pages of {who} may not call this node (gateway.allowed_origins)", code="bad_origin")

    # --- the operator --------------------------------------------------------------------------------

    def _check_operator(self, request: web.Request) -> None:
        origin = request.headers.get("Origin")
        if origin is not None and not _same_site(request, origin):
            raise ApiError(403, f"pages of {origin} may not call the operator's routes", code="bad_origin")
        address = self.address(request)
        if not self._from_here(address):
            message = "the operator's routes are for the node's own machine; gateway.admin: any opens them to others"
            raise ApiError(403, message, code="not_local")
        if request.path != UNLOCK and not self._is_operator(bearer(request)):
            self._limits.wrong_key(address, self._clock())
            raise ApiError(
                401,
                "the operator's routes want the token in admin.token of the data folder, or a session of `mtor open`",
                code="bad_token",
            )

    def unlock(self, request: web.Request, code: str) -> str:
        """The token of a new session. Raises `ApiError` (401, 429)."""
        token = self._sessions.unlock(code)
        if token is None:
            self._limits.wrong_key(self.address(request), self._clock())
            message = "this link was used, or is older than ten minutes; `mtor open` makes another"
            raise ApiError(401, message, code="bad_code")
        return token

    def _is_operator(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self._admin_token.encode()) or self._sessions.holds(token)

    def _from_here(self, address: Address) -> bool:
        return address.local or self._config.admin == "any"


def bearer(request: web.Request) -> str:
    """The bearer token of a request; "" without one. Tokens made here are ASCII; other bytes are no token."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.isascii() else ""


def _same_site(request: web.Request, origin: str) -> bool:
    """True for this node's own pages. A page without TLS is none of a node with it: anybody on the way can make one."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    schemes = ("https",) if request.secure else ("http", "https")  # a proxy may speak TLS for this node
    return parts.scheme in schemes and parts.netloc.lower() == request.host.lower()


def _embedded(request: web.Request) -> bool:
    """True for what a foreign page shows or runs as its own: a picture, a script. Browsers name no Origin there."""
    foreign = request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")
    return foreign and request.headers.get("Sec-Fetch-Mode") == "no-cors"


def host_name(host: str) -> str:
    """The name in a Host header, as names are compared."""
    return (host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]).lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
