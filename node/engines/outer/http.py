"""HTTP to one server of the operator's: the only file that knows httpx.

Rule: a name is resolved here and its address held to the operator's allow-list before every request, redirects too,
and the connection goes to that very address, so that no name can change its mind in between. Whatever a server sends
is counted while it streams, after decompression, and cut off at the limit. A request is repeated only where nothing
was done yet: when no connection came about, or the answer was a 5xx. What a peer is told of a failure names no address
of this house; the operator's log does.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import logging
import random
import re
import socket
import ssl
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import trio

from node.engines.port import EngineError
from protocol.errors import ErrorCode
from protocol.params import KIB, MIB

log = logging.getLogger("mtor.outer")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LOOPBACK: tuple[Network, ...] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))

CONNECT_SECONDS = 5.0
KEPT_CONNECTIONS = 8  # for the next queries
KEPT_SECONDS = 2.0  # servers keep theirs for five and more: one closed meanwhile would look like one that failed
LAST_BYTES_SECONDS = 0.25  # for the end of a body whose last event was heard
READ_SECONDS = 120.0  # without a byte: a server may have to load its model first
ATTEMPTS = 3
FIRST_PAUSE_SECONDS = 0.25
MAX_RESPONSE_BYTES = 32 * MIB
INFLATE_BYTES = 64 * KIB  # decompressed at a time
MOST_REDIRECTS = 3
ERROR_BYTES = 8 * KIB  # of an error's body that is looked at
IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")  # of an error's type: short enough to hold no prompt
TOO_LONG = re.compile(r"context|too (long|many tokens)|maximum.{0,20}(length|tokens)", re.IGNORECASE)
REDIRECTS = frozenset({301, 302, 303, 307, 308})
KEEPING_METHOD = frozenset({307, 308})  # the others turn a POST into a GET


class OuterError(EngineError):
    """A server did not do what it was asked. `detail` is for the operator alone."""

    def __init__(self, message: str, detail: str = "", code: ErrorCode = ErrorCode.ENGINE_FAILED) -> None:
        super().__init__(code, message)
        self.detail = detail or message
        self.retry_after_ms = 0


class NotConnected(OuterError):
    """No connection came about: nothing was asked yet."""


class NotAllowed(OuterError):
    """The address is not on the operator's list."""


class BrokenOff(OuterError):
    """The connection ended or fell silent in the middle."""


class BadAnswer(OuterError):
    """The answer is none that can be used."""


class BadStatus(OuterError):
    """The server refused. `status` is HTTP's; `tells` may name its reason."""

    def __init__(self, status: int, tells: str, message: str, code: ErrorCode) -> None:
        super().__init__(message, f"HTTP {status} {tells}".strip(), code)
        self.status = status


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a server."""

    url: str  # the base: "http://127.0.0.1:11434/v1"
    allowed: tuple[Network, ...] = LOOPBACK
    key: str = field(default="", repr=False)  # sent as a bearer token, "name:password" as basic authentication
    max_response_bytes: int = MAX_RESPONSE_BYTES
    connect_seconds: float = CONNECT_SECONDS
    read_seconds: float = READ_SECONDS
    first_pause_seconds: float = FIRST_PAUSE_SECONDS


@dataclass(frozen=True, slots=True)
class Upload:
    """A form with one file."""

    fields: Mapping[str, str]
    filename: str
    data: bytes


class Answer:
    """A response whose body was not read yet."""

    def __init__(self, response: httpx.Response, limit: int) -> None:
        self._response = response
        self._limit = limit

    @property
    def status(self) -> int:
        """HTTP's status code."""
        return self._response.status_code

    @property
    def content_type(self) -> str:
        """Without its parameters, in small letters."""
        name: str = self._response.headers.get("content-type", "")
        return name.partition(";")[0].strip().lower()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes, decompressed. Raises `BrokenOff`, `BadAnswer`."""
        total = 0
        unpack = _unpacker(self._response.headers.get("content-encoding", ""))
        raw = self._response.aiter_raw()
        try:
            async for data in raw:
                for part in unpack.feed(data):
                    total += len(part)
                    if total > self._limit:
                        raise BadAnswer("the worker's server sent more than fits", f"over {self._limit} bytes")
                    yield part
            unpack.end()
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise BrokenOff("the worker's server broke off", _named(error)) from None
        except zlib.error as error:
            raise BadAnswer("the worker's server sent damaged data", f"compressed wrongly: {error}") from None
        finally:
            await self._end(raw)

    async def finish(self, chunks: AsyncIterator[bytes]) -> None:
        """The rest of a body of which nothing is needed any more, so that its connection can be kept."""
        with trio.move_on_after(LAST_BYTES_SECONDS), suppress(OuterError):
            async for _ in chunks:
                pass

    async def _end(self, raw: AsyncIterator[bytes]) -> None:
        """Close, and let httpx's own generators, one in another, find out: trio minds those that are left lying."""
        with trio.CancelScope(shield=True), suppress(httpx.HTTPError, httpx.StreamError):
            await self._response.aclose()
            async for _ in raw:
                pass

    async def body(self, limit: int | None = None) -> bytes:
        """All of it. Raises as `chunks`."""
        whole = bytearray()
        async with aclosing(self.chunks()) as chunks:
            async for part in chunks:
                whole += part
                if limit is not None and len(whole) >= limit:
                    return bytes(whole[:limit])
        return bytes(whole)

    async def json(self) -> Any:
        """The body as JSON. Raises `BadAnswer`, `BrokenOff`."""
        body = await self.body()
        try:
            return json.loads(body.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            raise BadAnswer("the worker's server sent no JSON", f"{len(body)} bytes of {self.content_type}") from None


class OuterHttp:
    """Requests to one server."""

    def __init__(self, access: Access, chance: random.Random | None = None) -> None:
        self.access = access
        self._chance = chance or random.Random()
        base = httpx.URL(access.url)
        if base.scheme not in ("http", "https") or not base.host:
            raise ValueError(f"{access.url} is no address like http://127.0.0.1:11434/v1")
        self._base = base
        self._client = httpx.AsyncClient(
            # Making a context for TLS takes a tenth of a second; a redirect never changes the scheme.
            verify=ssl.create_default_context() if base.scheme == "https" else False,
            trust_env=False,  # no proxy that a variable names
            follow_redirects=False,
            limits=httpx.Limits(
                max_connections=None,
                # A redirect may lead to another name at the same address, whose certificate would go unseen.
                max_keepalive_connections=KEPT_CONNECTIONS if base.scheme == "http" else 0,
                keepalive_expiry=KEPT_SECONDS,
            ),
        )

    async def aclose(self) -> None:
        """Close what is open."""
        await self._client.aclose()

    async def fetch(
        self, method: str, path: str, *, body: Any = None, attempts: int = ATTEMPTS, read_seconds: float | None = None
    ) -> Any:
        """Ask and take the JSON of the answer. Raises `OuterError`."""
        async with self.open(method, path, body=body, attempts=attempts, read_seconds=read_seconds) as answer:
            return await answer.json()

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        upload: Upload | None = None,
        attempts: int = ATTEMPTS,
        read_seconds: float | None = None,
    ) -> AsyncIterator[Answer]:
        """Ask; the answer has a status below 300. Leaving the context closes the connection. Raises `OuterError`."""
        wanted = self._prepared(method, body, upload, read_seconds or self.access.read_seconds)
        response = await self._insist(wanted, path, attempts)
        try:
            if response.status_code >= 300:
                raise await _refusal(response)
            yield Answer(response, self.access.max_response_bytes)
        finally:
            await response.aclose()

    def _prepared(self, method: str, body: Any, upload: Upload | None, read_seconds: float) -> dict[str, Any]:
        connect = self.access.connect_seconds
        prepared: dict[str, Any] = {
            "method": method,
            "timeout": httpx.Timeout(connect=connect, read=read_seconds, write=read_seconds, pool=connect),
        }
        if body is not None:
            prepared["json"] = body
        if upload is not None:
            prepared["data"] = dict(upload.fields)
            prepared["files"] = {"file": (upload.filename, upload.data)}
        return prepared

    async def _insist(self, wanted: dict[str, Any], path: str, attempts: int) -> httpx.Response:
        """Repeat while nothing was done: pauses double, with jitter."""
        url = httpx.URL(self.access.url.rstrip("/") + path)
        pause = self.access.first_pause_seconds
        for attempt in range(1, attempts + 1):
            try:
                response = await self._redirected(wanted, url)
                if response.status_code < 500 or attempt == attempts:
                    return response
                await response.aclose()
            except NotConnected:
                if attempt == attempts:
                    raise
            await trio.sleep(pause * self._chance.uniform(0.5, 1.5))
            pause *= 2
        raise AssertionError("no attempt was made")

    async def _redirected(self, wanted: dict[str, Any], url: httpx.URL) -> httpx.Response:
        for _ in range(MOST_REDIRECTS + 1):
            response = await self._once(wanted, url)
            if response.status_code not in REDIRECTS:
                return response
            await response.aclose()
            if response.status_code not in KEEPING_METHOD:
                raise BadAnswer("the worker's server sent the query elsewhere", f"HTTP {response.status_code}")
            url = self._next(url, response)
        raise BadAnswer("the worker's server sent the query in circles", f"over {MOST_REDIRECTS} redirects")

    def _next(self, url: httpx.URL, response: httpx.Response) -> httpx.URL:
        try:
            following = url.join(response.headers.get("location", ""))
        except httpx.InvalidURL as error:
            raise BadAnswer("the worker's server sent the query elsewhere", f"redirect: {error}") from None
        if following.scheme != self._base.scheme or not following.host:
            raise NotAllowed("the worker's server sent the query elsewhere", f"redirect to {following.scheme}:")
        return following

    async def _once(self, wanted: dict[str, Any], url: httpx.URL) -> httpx.Response:
        """One request, to the first allowed address that takes a connection."""
        failure: OuterError | None = None
        for address in await self._addresses(url):
            try:
                return await self._client.send(self._request(wanted, url, address), stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = NotConnected("the worker's server cannot be reached", f"{url.host}: {_named(error)}")
            except httpx.HTTPError as error:
                raise BrokenOff("the worker's server broke off", _named(error)) from None
        assert failure is not None
        raise failure

    def _request(self, wanted: dict[str, Any], url: httpx.URL, address: str) -> httpx.Request:
        headers = {"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity", "User-Agent": "mtor"}
        same_place = (url.host, url.port) == (self._base.host, self._base.port)
        if self.access.key and same_place:  # a redirect takes the key nowhere
            headers["Authorization"] = _authorization(self.access.key)
        extensions = {"sni_hostname": url.host} if url.scheme == "https" else {}
        return self._client.build_request(
            url=url.copy_with(host=address, username=None, password=None),
            headers=headers,
            extensions=extensions,
            **wanted,
        )

    async def _addresses(self, url: httpx.URL) -> list[str]:
        """Addresses of the host that the operator allows. Raises `NotAllowed`, `NotConnected`."""
        try:
            found = await trio.socket.getaddrinfo(url.host, url.port or _port(url.scheme), type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise NotConnected("the worker's server cannot be reached", f"{url.host}: {error}") from None
        every = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        allowed = [address for address in every if is_allowed(address, self.access.allowed)]
        if not allowed:
            raise NotAllowed("the worker's server is not to be asked", not_allowed(url.host, every))
        return allowed


def is_allowed(address: str, networks: tuple[Network, ...]) -> bool:
    """Whether an IP address lies in one of the networks. An IPv4 address in IPv6 clothes is the IPv4 address."""
    plain = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(plain, "ipv4_mapped", None)
    return any((mapped or plain) in network for network in networks)


def not_allowed(host: str, addresses: list[str]) -> str:
    """The refusal with its remedy, for the operator."""
    where = host if host in addresses else f"{host} ({', '.join(addresses)})"
    return f"{where} is not on the list of allowed addresses; to use it, add {addresses[0]} to workers.allowed"


def _port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _authorization(key: str) -> str:
    if ":" in key:
        return f"Basic {base64.b64encode(key.encode()).decode()}"
    return f"Bearer {key}"


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


async def _refusal(response: httpx.Response) -> BadStatus:
    """What a status means for the asker. The body is only looked at, since it may repeat the prompt."""
    status = response.status_code
    tells, text = "", ""
    try:
        text = (await Answer(response, MAX_RESPONSE_BYTES).body(ERROR_BYTES)).decode("utf-8", "replace")
        tells = _identifier(json.loads(text))
    except (OuterError, ValueError, RecursionError):
        pass  # the status is enough
    if status in (400, 413, 422) and TOO_LONG.search(text):
        return BadStatus(status, tells, "the prompt is too long for the worker's model", ErrorCode.CONTEXT_OVERFLOW)
    if status in (404, 405, 501):
        message = "the worker's server does not do that"
        return BadStatus(status, tells, message, ErrorCode.UNSUPPORTED_FEATURE)
    if 400 <= status < 500 and status not in (401, 403, 408, 429):
        message = f"the worker's server did not take the request (HTTP {status})"
        return BadStatus(status, tells, message, ErrorCode.UNSUPPORTED_FEATURE)
    if status in (429, 503):
        return BadStatus(status, tells, "the worker's server is busy", ErrorCode.OVERLOADED)
    return BadStatus(status, tells, f"the worker's server failed (HTTP {status})", ErrorCode.ENGINE_FAILED)


def _identifier(body: Any) -> str:
    """An error's machine-readable name, if it has one."""
    error = body.get("error") if isinstance(body, dict) else None
    for key in ("code", "type"):
        name = error.get(key) if isinstance(error, dict) else None
        if isinstance(name, str) and IDENTIFIER.fullmatch(name):
            return name
    return ""


# --- decompression ------------------------------------------------------------------------------------


class _Plain:
    """Nothing to unpack."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The same."""
        yield data

    def end(self) -> None:
        """Nothing is held back."""


class _Inflate:
    """gzip and deflate, a bounded piece at a time however much a few bytes stand for."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # either header

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Pieces of at most `INFLATE_BYTES`."""
        piece = self._stream.decompress(data, INFLATE_BYTES)
        while piece:
            yield piece
            piece = self._stream.decompress(self._stream.unconsumed_tail, INFLATE_BYTES)

    def end(self) -> None:
        """Raises `BadAnswer` if the last bytes are missing."""
        if not self._stream.eof:
            raise BadAnswer("the worker's server sent damaged data", "compressed data without its end")


def _unpacker(encoding: str) -> _Plain | _Inflate:
    """Plain data was asked for; gzip is taken all the same, since some servers always send it."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return _Plain()
    if name in ("gzip", "x-gzip", "deflate"):
        return _Inflate()
    raise BadAnswer("the worker's server sent data that cannot be read", "an unknown content encoding")
