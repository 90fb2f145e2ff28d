"""Connections: how many there may be, and how long each may keep the node waiting.

Rule: an open connection costs a file and some memory, so whoever sends no request, half a request, or does not read
what it asked for loses it after a while; an idle one makes room for a new one. What cannot be read as HTTP is answered
in this node's words, without its bytes in the log.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Callable, Iterable
from typing import Any, cast

from aiohttp import web

from node.gateway.failures import ApiError
from node.gateway.hardening import SERVER_NAME, USUAL
from protocol.params import KIB

log = logging.getLogger("mtor.gateway")

HANDSHAKE_SECONDS = 10.0  # of TLS
HEAD_SECONDS = 15.0  # from the first byte of a request to the end of its headers
IDLE_SECONDS = 75.0  # without a request; somewhat longer than proxies keep theirs
STALLED_SECONDS = 60.0  # in which a client that lets answers wait has to take `LEAST_TAKEN`
LEAST_TAKEN = 4 * KIB
LINGER_SECONDS = 2.0  # a body that nobody wants is read on for so long, so that its sender hears why
LOOK_SECONDS = 1.0
ADDRESS_SHARE = 4  # one address from elsewhere has a quarter of all connections at most
HEADER_BYTES = 16 * KIB  # of one header; a page's address and tokens are far shorter
MOST_HEADERS = 100

GroupOf = Callable[[str, str], str]  # (peer's address, own): what counts together; "" for whoever is not counted


class Connection(web.RequestHandler):
    """One client's connection, from its first byte to its last."""

    def __init__(self, door: Door, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # None is aiohttp's own way to have none
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=LINGER_SECONDS,
            max_line_size=HEADER_BYTES,
            max_field_size=HEADER_BYTES,
            max_headers=MOST_HEADERS,
            auto_decompress=False,  # a few bytes could stand for any number; see bodies.py
        )
        self._door = door
        self._clock = loop.time
        self._running = 0  # requests that are being answered
        self._head_since: float | None = None  # when the first byte of a request came that has not begun
        self._full_since: float | None = None  # when the client had to be waited for, or last took enough
        self._left_then = 0  # bytes that waited for it then
        self._refused = False
        self.group = ""
        self.idle_since = loop.time()

    @property
    def idle(self) -> bool:
        """True between requests."""
        return not self._running and self._head_since is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        refusal = self._door.enter(self, transport)
        if refusal is None:
            super().connection_made(transport)
            return
        self._refused = True
        refused = cast(asyncio.Transport, transport)  # uvloop's are none by their class
        refused.write(_last_answer(refusal))
        refused.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """See asyncio."""
        self._door.leave(self)
        if not self._refused:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._refused:
            return
        if self.idle and data:
            self._head_since = self._clock()
        super().data_received(data)

    def pause_writing(self) -> None:
        """See asyncio: more waits to be sent than should."""
        self._full_since, self._left_then = self._clock(), self._waiting_bytes()
        super().pause_writing()

    def resume_writing(self) -> None:
        """See asyncio."""
        self._full_since = None
        super().resume_writing()

    def begin(self) -> None:
        """A request's headers are whole; it is being answered from now on."""
        self._running += 1
        self._head_since = None

    def end(self) -> None:
        """It was answered."""
        self._running -= 1
        self.idle_since = self._clock()

    def look(self, now: float) -> None:
        """End it if it kept the node waiting for too long."""
        if self.transport is None:
            return
        if self._head_since is not None and now - self._head_since > HEAD_SECONDS:
            self.transport.abort()
        elif self._full_since is not None and now - self._full_since > STALLED_SECONDS:
            left = self._waiting_bytes()
            if self._left_then - left < LEAST_TAKEN:
                log.info("a client did not read its answer for %.0f s and was left", STALLED_SECONDS)
                self.transport.abort()
            self._full_since, self._left_then = now, left

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what could not be read, or to what no handler took on itself."""
        if status >= 500:
            log.error("a request failed outside of its route", exc_info=exc)
        else:
            log.debug("what a client sent is no HTTP: %s", type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("half an answer is out already")
        told = _unreadable() if status < 500 else ApiError(status, "the node failed in a way it cannot name")
        headers = {"Server": SERVER_NAME} | USUAL
        response = web.json_response(told.body(), status=told.status, headers=headers)
        response.force_close()
        return response

    def _waiting_bytes(self) -> int:
        return self.transport.get_write_buffer_size() if self.transport is not None else 0


class Door:
    """All connections of one gateway. Lives on its loop."""

    def __init__(self, most: int, group_of: GroupOf) -> None:
        self._most = most
        self._group_of = group_of
        self._inside: set[Connection] = set()

    def __len__(self) -> int:
        return len(self._inside)

    async def listen(self, server: web.Server, host: str, port: int, context: ssl.SSLContext | None) -> asyncio.Server:
        """Let clients in from now on. Raises `OSError`."""
        loop = asyncio.get_running_loop()
        seconds = HANDSHAKE_SECONDS if context is not None else None
        return await loop.create_server(
            lambda: Connection(self, server, loop), host, port, ssl=context, ssl_handshake_timeout=seconds
        )

    async def watch(self) -> None:
        """Look after them, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = loop.time()
            for connection in list(self._inside):
                try:
                    connection.look(now)
                except Exception:  # of one of them: the others are to be looked after all the same
                    log.exception("a connection cannot be looked after")
                    self._inside.discard(connection)

    def enter(self, connection: Connection, transport: asyncio.BaseTransport) -> ApiError | None:
        """Why this one may not stay; None if it may."""
        connection.group = self._group(transport)
        same = [each for each in self._inside if each.group == connection.group] if connection.group else []
        share = max(1, self._most // ADDRESS_SHARE)
        if len(same) >= share and not self._make_room(same):
            return _too_many(f"{len(same)} connections of one address are open")
        if len(self._inside) >= self._most and not self._make_room(self._inside):
            return _too_many(f"{len(self._inside)} connections are open (gateway.max_connections)")
        self._inside.add(connection)
        return None

    def leave(self, connection: Connection) -> None:
        """It is closed."""
        self._inside.discard(connection)

    def _make_room(self, among: Iterable[Connection]) -> bool:
        """Close the one that has been idle for longest."""
        oldest = min((each for each in among if each.idle), key=lambda each: each.idle_since, default=None)
        if oldest is None:
            return False
        self._inside.discard(oldest)
        oldest.force_close()
        return True

    def _group(self, transport: asyncio.BaseTransport) -> str:
        peer, own = (transport.get_extra_info(name) for name in ("peername", "sockname"))
        return self._group_of(_host(peer), _host(own))


def begin(request: web.BaseRequest) -> Callable[[], None]:
    """Note that a request is being answered; what is returned notes that it was."""
    connection = request.protocol
    if not isinstance(connection, Connection):
        return lambda: None
    connection.begin()
    return connection.end


def _host(address: Any) -> str:
    return str(address[0]) if isinstance(address, tuple) and address else ""


def _too_many(what: str) -> ApiError:
    return ApiError(
        503, f"{what}; use one again, or try again soon", type="overloaded_error", code="too_many_connections"
    )


def _unreadable() -> ApiError:
    message = (
        "this is no HTTP/1.1 request that can be read: a line or a header is malformed or has more than "
        f"{HEADER_BYTES} bytes, or there are more than {MOST_HEADERS} headers"
    )
    return ApiError(400, message, code="invalid_http")


def _last_answer(error: ApiError) -> bytes:
    """An answer to whoever has not asked yet."""
    body = json.dumps(error.body()).encode()
    headers = {"Server": SERVER_NAME, "Content-Type": "application/json", "Content-Length": str(len(body))}
    headers |= USUAL | error.headers() | {"Connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {error.status} Service Unavailable\r\n{head}\r\n".encode() + body
