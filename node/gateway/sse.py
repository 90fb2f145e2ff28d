"""Server-sent events.

Rule: until the first byte is out an error is an HTTP status; after it, it is an error event in the stream.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from node.gateway.bridge import NodeStopping
from node.gateway.failures import ApiError

log = logging.getLogger("mtor.gateway")

DONE_EVENT = b"data: [DONE]\n\n"


def event(data: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + compact(data) + b"\n\n"


def compact(data: dict[str, Any]) -> bytes:
    """JSON in one line. What is no Unicode becomes question marks."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


class EventStream:
    """An answer in events. `headers` is asked when the first of them goes out. Other framings and other shapes of an
    error are subclasses."""

    media_type = "text/event-stream"

    def __init__(self, request: web.Request, headers: Callable[[], Mapping[str, str]]) -> None:
        self._request = request
        self._headers = headers
        self.response = web.StreamResponse(
            headers={"Content-Type": self.media_type, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )

    def encode(self, data: dict[str, Any]) -> bytes:
        """One event as it is framed here."""
        return event(data)

    def failure(self, error: ApiError) -> dict[str, Any]:
        """The last event of an answer that broke off."""
        return error.body()

    @property
    def begun(self) -> bool:
        """True once the headers are out."""
        return self.response.prepared

    async def send(self, data: dict[str, Any]) -> None:
        """One event."""
        await self.write(self.encode(data))

    async def waiting(self) -> None:
        """A comment, so that proxies do not hang up."""
        await self.write(b": waiting\n\n")

    async def write(self, data: bytes) -> None:
        """Bytes that are whole events."""
        if not self.response.prepared:
            self.response.headers.update(self._headers())
            await self.response.prepare(self._request)
        await self.response.write(data)

    async def run(self, work: Callable[[], Awaitable[None]]) -> web.StreamResponse:
        """Do the work that sends the events, and end the stream. Raises what happens before the first byte."""
        try:
            await work()
        except ConnectionError:
            raise  # the client went away: there is nobody to tell
        except Exception as error:
            if not self.begun:
                raise
            await self.send(self.failure(_told(error)))
        await self.response.write_eof()
        return self.response


def _told(error: Exception) -> ApiError:
    """What the client is told of a failure when the headers are out already: a second answer would be noise."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, NodeStopping):
        return ApiError(503, "the node is stopping", code="stopping")
    log.error("an answer failed", exc_info=error)
    return ApiError(500, "the answer ended without a last word", code="internal")
