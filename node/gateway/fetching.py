"""Pictures that a client names instead of sending them, fetched if the operator allowed it.

Rule: whoever names an address must not reach anything through this node that he could not reach without it. Only
public addresses are connected to, and what was checked is what is connected to: the check stands where the socket is
made, so no name can change its mind in between. Every redirect is held to the same. Nothing of the node's is sent: no
cookies, no credentials, no proxy of its environment. What comes back is a picture of a bounded size, or nothing.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from node.gateway.failures import ApiError
from node.gateway.public_addresses import IPAddress, is_public
from node.picture_headers import PictureRefused, read_header
from node.version import VERSION
from protocol import params

MOST_REDIRECTS = 3
REDIRECTS = frozenset({301, 302, 303, 307, 308})
PORTS = frozenset({80, 443})
ALL_SECONDS = 20.0  # for all pictures of a request
CONNECT_SECONDS = 5.0
MOST_AT_ONCE = 8  # requests whose pictures are being fetched
LONGEST_ADDRESS = 4_096  # characters
HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": f"mtor/{VERSION}"}

Inlined = Callable[[bytes], Awaitable[bytes]]


class NotPublic(OSError):
    """An address that no stranger may have this node connect to."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be connected to. Tests have others: their servers are on this machine."""

    public: Callable[[IPAddress], bool] = is_public
    ports: frozenset[int] = PORTS
    resolver: Callable[[], AbstractResolver | None] = lambda: None  # None: the system's
    seconds: float = ALL_SECONDS


class Fetcher:
    """Puts pictures into a request's body in the place of their addresses."""

    def __init__(self, rules: Rules = Rules()) -> None:
        self._rules = rules
        self._running = asyncio.Semaphore(MOST_AT_ONCE)

    async def inlined(self, body: bytes) -> bytes:
        """The body with data: URLs. Raises `ApiError` (400, 413)."""
        places = list(_places(body))
        if not places:
            return body
        addresses = {place.address for place in places}
        if len(addresses) > params.MAX_INPUTS:
            message = f"{len(addresses)} pictures; one conversation shows at most {params.MAX_INPUTS}"
            raise ApiError(400, message, code="invalid_value", param="messages")
        async with self._running:
            fetched = await self._all(sorted(addresses))
        for place in places:
            place.put(fetched[place.address])
        return json.dumps(places[0].whole).encode()

    async def _all(self, addresses: list[str]) -> dict[str, str]:
        """data: URLs by address."""
        left = params.MAX_INPUT_BYTES
        fetched: dict[str, str] = {}
        try:
            async with asyncio.timeout(self._rules.seconds), self._session() as session:
                for address in addresses:
                    data = await self._one(session, address, left)
                    left -= len(data)
                    fetched[address] = _data_url(data)
        except TimeoutError:
            raise _refused(f"the pictures did not come within {self._rules.seconds:.0f} s") from None
        except (aiohttp.ClientError, OSError, ValueError, UnicodeError) as error:
            raise _refused(_reason(error)) from None
        return fetched

    def _session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            resolver=self._rules.resolver(),
            socket_factory=self._socket,
            use_dns_cache=False,
            force_close=True,
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=HEADERS,
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=self._rules.seconds, connect=CONNECT_SECONDS),
        )

    def _socket(self, found: Any) -> socket.socket:
        """The socket for exactly this address, which is about to be connected. Raises `NotPublic`."""
        family, kind, protocol, _, where = found
        address = ipaddress.ip_address(str(where[0]).partition("%")[0])
        if not self._rules.public(address) or where[1] not in self._rules.ports:
            raise NotPublic("not a public address")
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made

    async def _one(self, session: aiohttp.ClientSession, address: str, most: int) -> bytes:
        """A picture's bytes, over redirects."""
        url = self._checked(address)
        for _ in range(MOST_REDIRECTS + 1):
            async with session.get(url, allow_redirects=False) as response:
                if response.status not in REDIRECTS:
                    return await _picture(response, most)
                url = self._checked(str(url.join(URL(response.headers.get("Location", "")))))
        raise _refused(f"it is redirected more than {MOST_REDIRECTS} times")

    def _checked(self, address: str) -> URL:
        """Raises `ApiError` (400)."""
        if len(address) > LONGEST_ADDRESS:
            raise _refused(f"it has more than {LONGEST_ADDRESS} characters")
        try:
            url = URL(address)
            port = url.port
        except ValueError:
            raise _refused("it is none") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise _refused("it has to begin with http:// or https://")
        if url.user is not None or url.password is not None:
            raise _refused("it holds a name or a password, which this node does not send")
        if port not in self._rules.ports:
            raise _refused("only the usual ports of http and https are used")
        return url


async def _picture(response: aiohttp.ClientResponse, most: int) -> bytes:
    if response.status != 200:
        raise _refused(f"its server answered {response.status}")
    if not response.content_type.startswith("image/"):
        raise _refused("its server says that it is no picture")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise _refused("its server sent it compressed, which was not asked for")
    data = bytearray()
    async with aclosing(_chunks(response)) as chunks:
        async for chunk in chunks:
            data += chunk
            if len(data) > most:
                message = f"pictures have at most {params.MAX_INPUT_BYTES} bytes together"
                raise ApiError(413, message, code="picture_too_large", param="messages")
    try:
        read_header(bytes(data))
    except PictureRefused as error:
        raise _refused(str(error)) from None
    return bytes(data)


async def _chunks(response: aiohttp.ClientResponse) -> Any:
    async for chunk in response.content.iter_chunked(params.MAX_CHUNK_BYTES):
        yield chunk


def _data_url(data: bytes) -> str:
    kind = read_header(data).format.lower()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _refused(why: str) -> ApiError:
    """One sentence for all that is behind an address: which of this house's machines answers is not told."""
    return ApiError(400, f"a picture's address cannot be used: {why}", code="unfetchable_picture", param="messages")


def _reason(error: BaseException) -> str:
    """Without what was connected to: names and addresses of this house are not told."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, NotPublic):
            return "it is not a public one"
        inner = inner.__cause__ or getattr(inner, "os_error", None)
    return "its server cannot be reached or does not answer as it should"


# --- where addresses stand in a request -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a request names a picture."""

    whole: Any
    holder: dict[str, Any]
    key: str
    address: str

    def put(self, url: str) -> None:
        self.holder[self.key] = url


def _places(body: bytes) -> Iterator[_Place]:
    """All of them; none in what is no JSON of a known shape, which its own reader refuses in better words."""
    if b"http" not in body.lower():
        return
    try:
        whole = json.loads(body)
    except (ValueError, RecursionError):
        return
    messages = whole.get("messages") if isinstance(whole, dict) else None
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") == "image_url":
                named = part.get("image_url")
                holder, key = (named, "url") if isinstance(named, dict) else (part, "image_url")
                address = holder.get(key)
                if isinstance(address, str) and address.lower().startswith(("http://", "https://")):
                    yield _Place(whole, holder, key, address)
