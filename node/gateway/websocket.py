"""`/ws`: many queries on one socket, each with its place in the queue, previews, cancelling, and going on elsewhere.

Rule: a frame that cannot be used costs that frame, a flood of frames costs the socket, and nothing that happens to a
socket ends a query at once (`ongoing.py`). One frame at a time waits to be sent for each query, so a client that does
not read is waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from aiohttp import WSCloseCode, WSMsgType, web

from node.config import GatewaySection
from node.gateway.asking import Asker
from node.gateway.callers import Caller
from node.gateway.failures import ApiError
from node.gateway.frames import (
    Ask,
    Cancel,
    Hello,
    Ping,
    Resume,
    Unwatch,
    Watch,
    encoded,
    name_in,
    named,
    read_frame,
    read_question,
    refused,
)
from node.gateway.guards import Guards
from node.gateway.ongoing import Ongoing, Reader, TakenOver
from node.gateway.routes import Answered, Route
from node.gateway.watching import Watching

HELLO_SECONDS = 5.0  # for the key, where one is wanted and the client could not set a header
MOST_STRANGERS = 8  # sockets that have not shown a key yet: each may hold a large frame
HEARTBEAT_SECONDS = 30.0  # between pings; without an answer for half as long the client is gone
FRAMES_PER_SECOND = 50.0
FRAMES_AT_ONCE = 200  # a page that was reloaded resumes all it had
CLOSE_SECONDS = 1.0  # for the last events to go out, and for the client to say goodbye

ENDED = frozenset({WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR})


class SocketRoutes:
    """The handler of the route, and the owner of the sockets."""

    def __init__(self, config: GatewaySection, guards: Guards, asker: Asker, watching: Watching) -> None:
        self._config = config
        self._guards = guards
        self._watching = watching
        self._ongoing = Ongoing(asker, config.max_kept_bytes)
        self._sockets: set[Socket] = set()

    def routes(self) -> tuple[Route, ...]:
        """The route."""
        summary = "A WebSocket for many queries and the node's state; docs/websocket.md has its frames."
        return (Route("GET", "/ws", self.handle, "openai", summary, (Answered(status=101),), errors=(426,)),)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One socket."""
        response = web.WebSocketResponse(
            heartbeat=HEARTBEAT_SECONDS,
            max_msg_size=self._config.max_body_bytes,
            timeout=CLOSE_SECONDS,
            compress=False,  # pieces of text are too short to gain by it
        )
        if not response.can_prepare(request):
            raise ApiError(426, "/ws is a WebSocket: open it with ws:// and not with http://", code="upgrade_required")
        caller = self._caller(request)
        self._refuse_too_many(caller)
        shared = Shared(self._ongoing, self._watching, self._config.max_socket_queries)
        socket = Socket(response, caller, partial(self._greet, request), shared)
        self._sockets.add(socket)
        try:
            await response.prepare(request)
            await socket.run()
        finally:
            self._sockets.discard(socket)
        return response

    def _caller(self, request: web.Request) -> Caller | None:
        """None: its first frame has to say. Raises `ApiError` (401)."""
        try:
            return self._guards.caller(request)
        except ApiError as error:
            if error.status != 401 or "Authorization" in request.headers:
                raise
            return None

    def _greet(self, request: web.Request, key: str) -> Caller:
        """Who says hello with this key. Raises `ApiError` (401)."""
        return self._guards.caller_of(key, self._guards.address(request))

    def _refuse_too_many(self, caller: Caller | None) -> None:
        strangers = sum(socket.stranger for socket in self._sockets)
        if len(self._sockets) >= self._config.max_sockets or (caller is None and strangers >= MOST_STRANGERS):
            message = f"{len(self._sockets)} sockets are open (gateway.max_sockets); one can carry many queries"
            raise ApiError(503, message, type="overloaded_error", code="too_many_sockets", retry_ms=1_000)

    async def say_goodbye(self, app: web.Application) -> None:
        """The node stops: every query ends, every client is told."""
        self._ongoing.stop()
        await asyncio.gather(*(socket.say_goodbye() for socket in self._sockets), return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Shared:
    """What all sockets have in common."""

    ongoing: Ongoing
    watching: Watching
    max_queries: int  # on one socket


class Socket:
    """One client's socket."""

    def __init__(
        self,
        response: web.WebSocketResponse,
        caller: Caller | None,
        greet: Callable[[str], Caller],
        shared: Shared,
    ) -> None:
        """`caller` is None where only a key can say it; `greet` says whose a key is, or raises `ApiError`."""
        self._response = response
        self._caller = caller
        self._greet = greet
        self._ongoing = shared.ongoing
        self._watching = shared.watching
        self._max_queries = shared.max_queries
        self._pace = Pace(FRAMES_PER_SECOND, FRAMES_AT_ONCE)
        self._sending = asyncio.Lock()
        self._read: dict[str, Reader] = {}  # by the client's name for the query
        self._deliveries: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None
        self._greeted = False
        self._running: asyncio.Task[None] | None = None
        self._node_stops = False

    @property
    def stranger(self) -> bool:
        """True until it is known who calls."""
        return self._caller is None

    async def run(self) -> None:
        """Until the client leaves or is sent away. Its queries go on for a while."""
        self._running = asyncio.current_task()
        try:
            while (text := await self._receive()) is not None:
                await self._take(text)
        except ConnectionError:
            pass  # the client went away
        except asyncio.CancelledError:
            if not self._node_stops:
                raise
            await self._close(WSCloseCode.GOING_AWAY, "the node is stopping")
        finally:
            tasks = self._deliveries | ({self._watch} if self._watch else set())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def say_goodbye(self) -> None:
        """The last events, then the end, which is said by the one who reads: nobody else could wait for the answer."""
        if self._deliveries:
            await asyncio.wait(self._deliveries, timeout=CLOSE_SECONDS)
        if self._running is not None:
            self._node_stops = True
            self._running.cancel()
            await asyncio.wait((self._running,), timeout=CLOSE_SECONDS)

    # --- frames that come in -------------------------------------------------------------------------

    async def _receive(self) -> str | None:
        """The text of a frame; None at the end."""
        while True:
            try:
                message = await self._response.receive(HELLO_SECONDS if self.stranger else None)
            except TimeoutError:
                await self._send_away(self._unknown())
                return None
            if message.type in ENDED:
                return None
            if not self._pace.allows():
                error = f"more than {FRAMES_PER_SECOND:.0f} frames a second; send fewer"
                await self._send_away(ApiError(429, error, type="rate_limit_error", code="flood", retry_ms=1_000))
                return None
            if message.type is WSMsgType.TEXT:
                return str(message.data)
            if self.stranger:
                await self._send_away(self._unknown())
                return None
            await self._refuse(ApiError(400, "frames are text, one JSON object each", code="invalid_frame"))

    async def _take(self, text: str) -> None:
        """One frame."""
        try:
            frame = read_frame(text)
            if self.stranger and not isinstance(frame, Hello):
                await self._send_away(self._unknown())
            else:
                await self._ACTIONS[type(frame)](self, frame)
        except ApiError as error:
            await self._refuse(error, name_in(text))
        if self.stranger and not self._response.closed:
            await self._close(WSCloseCode.POLICY_VIOLATION, "no API key")

    async def _hello(self, frame: Hello) -> None:
        if self._greeted or self._read:
            raise ApiError(400, "hello is the first frame, and comes once", code="invalid_frame")
        self._caller = self._greet(frame.key)
        self._greeted = True

    async def _ask(self, frame: Ask) -> None:
        self._refuse_name(frame.id)
        self._deliver(frame.id, self._ongoing.start(self._known(), read_question(frame)))

    async def _resume(self, frame: Resume) -> None:
        self._refuse_name(frame.id)
        self._deliver(frame.id, self._ongoing.resume(self._known(), frame.query, frame.after))

    async def _cancel(self, frame: Cancel) -> None:
        reader = self._read.get(frame.id)
        if reader is None:
            message = f"no query of this socket is called {frame.id!r} now; it may have ended"
            raise ApiError(404, message, code="no_such_query", param="id")
        reader.query.cancel()

    async def _start_watch(self, frame: Watch) -> None:
        if self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._tell_state())

    async def _end_watch(self, frame: Unwatch) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    async def _pong(self, frame: Ping) -> None:
        await self._send(encoded({"type": "pong"}))

    _ACTIONS: ClassVar[dict[type, Callable[..., Awaitable[None]]]] = {
        Hello: _hello,
        Ask: _ask,
        Resume: _resume,
        Cancel: _cancel,
        Watch: _start_watch,
        Unwatch: _end_watch,
        Ping: _pong,
    }

    def _known(self) -> Caller:
        assert self._caller is not None, "strangers say hello first"
        return self._caller

    def _refuse_name(self, name: str) -> None:
        if name in self._read:
            raise ApiError(400, f"{name!r} is the id of a query that is running here", code="id_in_use", param="id")
        if len(self._read) >= self._max_queries:
            message = f"{len(self._read)} queries run on this socket (gateway.max_socket_queries); end one first"
            raise ApiError(429, message, type="rate_limit_error", code="too_many_queries", retry_ms=1_000)

    def _unknown(self) -> ApiError:
        fix = 'send {"type":"hello","key":"mtor-…"} first, with a key from `mtor keys create`'
        return ApiError(401, f"this node wants an API key: {fix}", code="invalid_api_key")

    # --- what goes out -------------------------------------------------------------------------------

    def _deliver(self, name: str, reader: Reader) -> None:
        self._read[name] = reader
        task = asyncio.get_running_loop().create_task(self._hand_on(name, reader))
        self._deliveries.add(task)
        task.add_done_callback(partial(self._end_delivery, name, reader))

    async def _hand_on(self, name: str, reader: Reader) -> None:
        """A query's events, until its end or until somebody else reads it."""
        with suppress(ConnectionError):  # the client went away; whoever waits for its frames knows
            try:
                async for event in reader:
                    if event.last:
                        self._release(name, reader)  # whoever reads the last event may use the name again
                    await self._send(named(name, event.body))
            except TakenOver:
                self._release(name, reader)
                error = ApiError(409, "this query is read elsewhere now: it was resumed", code="taken_over")
                await self._refuse(error, name)

    def _end_delivery(self, name: str, reader: Reader, task: asyncio.Task[None]) -> None:
        """Also of one that was cancelled before it began."""
        self._deliveries.discard(task)
        self._release(name, reader)
        reader.leave()

    def _release(self, name: str, reader: Reader) -> None:
        if self._read.get(name) is reader:
            del self._read[name]

    async def _tell_state(self) -> None:
        with suppress(ConnectionError):
            async with aclosing(self._watching.follow()) as frames:
                async for frame in frames:
                    await self._send(frame)

    async def _refuse(self, error: ApiError, name: str | None = None) -> None:
        await self._send(encoded(refused(error, name)))

    async def _send(self, frame: bytes) -> None:
        """Returns when the client has taken most of what was sent before. Raises `ConnectionError`."""
        async with self._sending:
            await self._response.send_frame(frame, WSMsgType.TEXT)

    async def _send_away(self, error: ApiError) -> None:
        await self._refuse(error)
        await self._close(WSCloseCode.POLICY_VIOLATION, error.code or "")

    async def _close(self, code: WSCloseCode, why: str) -> None:
        await self._response.close(code=code, message=why.encode())


class Pace:
    """So many a second, and some at once."""

    def __init__(self, per_second: float, at_once: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._at_once = at_once
        self._clock = clock
        self._left = at_once
        self._at = clock()

    def allows(self) -> bool:
        """True if one more is in time; it is counted then."""
        now = self._clock()
        self._left = min(self._at_once, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
