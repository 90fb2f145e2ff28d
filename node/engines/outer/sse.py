"""Server-sent events, as bytes arrive.

Rule: a line and an event have a longest length, and what is longer is refused before it is kept. Bytes are cut into
lines first and read as UTF-8 then, so a character is never torn; what is no UTF-8 becomes U+FFFD.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator

from node.engines.outer.http import BadAnswer
from protocol.params import KIB

MOST_EVENT_BYTES = 256 * KIB  # of one event; a token's is some hundred


class EventReader:
    """Bytes in, the `data` of each whole event out."""

    def __init__(self) -> None:
        self._pending = b""  # the line that has not ended yet
        self._lines: list[bytes] = []  # of data in the event that has not ended yet
        self._after_return = False

    def feed(self, data: bytes) -> Iterator[str]:
        """Events that `data` completes. Raises `BadAnswer` for one that is too long."""
        if self._after_return and data.startswith(b"\n"):
            data = data[1:]  # of a CR LF that came in two parts
        if data:
            self._after_return = data.endswith(b"\r")
        *lines, self._pending = (self._pending + data).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            yield from self._take(line)
        self._refuse_long(len(self._pending))

    def _take(self, line: bytes) -> Iterator[str]:
        if not line:
            if self._lines:
                yield b"\n".join(self._lines).decode("utf-8", "replace")
            self._lines = []
            return
        name, _, value = line.partition(b":")
        if name == b"data":  # comments, ids and names of events mean nothing here
            self._lines.append(value.removeprefix(b" "))
            self._refuse_long(0)

    def _refuse_long(self, more: int) -> None:
        if more + sum(map(len, self._lines)) > MOST_EVENT_BYTES:
            raise BadAnswer("the worker's server sent an endless line", f"an event over {MOST_EVENT_BYTES} bytes")


async def events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[str, None]:
    """The events of a body. One that the end cuts off is dropped, as the format wants it."""
    reader = EventReader()
    async for chunk in chunks:
        for event in reader.feed(chunk):
            yield event
