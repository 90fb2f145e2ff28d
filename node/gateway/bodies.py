"""Bodies of requests: how large, how slow, and how many of them at once.

Rule: what a body may take is set aside before its first byte is read, over all clients and for each address from
elsewhere, so that no number of clients fills the memory. A body comes as it is: what is compressed could be anything.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from node.gateway.failures import ApiError

BODY_SECONDS = 30.0  # for a request's body to arrive
LARGEST_AT_ONCE = 16  # bodies of the largest size that there is room for, and many more small ones
ADDRESS_SHARE = 4  # one address from elsewhere may fill a quarter of that


class Bodies:
    """Room for what is being sent or worked on."""

    def __init__(self, max_body_bytes: int) -> None:
        self._most = max_body_bytes
        self._room = LARGEST_AT_ONCE * max_body_bytes
        self._taken: Counter[str] = Counter()  # bytes by group; "": all together

    @contextmanager
    def room_for(self, request: web.Request, group: str) -> Iterator[None]:
        """Room until the request has been answered; `group` is counted on its own if it is not "". Raises `ApiError`
        (413, 415, 503)."""
        if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            message = "a compressed body is not taken: send it as it is, without Content-Encoding"
            raise ApiError(415, message, code="unsupported_encoding")
        size = self._most if request.content_length is None else request.content_length
        if not request.can_read_body:
            size = 0
        if size > self._most:
            raise web.HTTPRequestEntityTooLarge(self._most, size)
        groups = {"", group}
        for each in groups:
            room = self._room // ADDRESS_SHARE if each else self._room
            if self._taken[each] + size > room and self._taken[each]:
                message = "too many large requests are being read; try again soon"
                raise ApiError(503, message, type="overloaded_error", code="overloaded", retry_ms=1_000)
        self._take(groups, size)
        try:
            yield
        finally:
            self._take(groups, -size)

    async def read(self, request: web.Request) -> None:
        """Read it here, so that its size and its time are bounded for every route. Raises `ApiError` (408)."""
        try:
            async with asyncio.timeout(BODY_SECONDS):
                await request.read()
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {BODY_SECONDS:.0f} s", code="slow_body") from None

    def _take(self, groups: set[str], size: int) -> None:
        for each in groups:
            self._taken[each] += size
            if not self._taken[each]:
                del self._taken[each]
