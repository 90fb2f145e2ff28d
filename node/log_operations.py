"""`logs.tail`: the last lines of this node's log, and those to come.

Rule: what was written comes from the files, what is to come from the loggers themselves, so that following reads
nothing twice and minds no rotation. Readers are bounded in number, and one that is too slow misses lines and is told.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal

import trio
from pydantic import Field

from node.log_files import Record, Wish, read_log
from node.logs import Discretion, as_record
from node.operations import Emit, OperationFailed, Streaming

MOST_LINES = 10_000
MOST_FOLLOWERS = 8
FOLLOWED_LINES = 1_000  # kept for a reader that is slow

Level = Literal["debug", "info", "warning", "error"]


class LogOperations:
    """Its `streams` are some of `STREAMED`."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._following = 0
        self.streams: Mapping[str, Streaming] = {"logs.tail": self.tail}

    async def tail(
        self,
        emit: Emit,
        lines: Annotated[int, Field(ge=0, le=MOST_LINES)] = 200,
        follow: bool = False,
        level: Level = "debug",
        query: Annotated[str, Field(pattern=r"^([0-9a-f]{4,32})?$")] = "",
    ) -> None:
        """The last `lines` that fit; with `follow` also all that come, until the reader leaves."""
        wish = Wish(level, query)
        if not follow:
            for record in await self._last(wish, lines):
                await emit(record)
            await emit({"done": True})
            return
        with self._one_more_follower(), _followed() as follower:
            last = await self._last(wish, lines)
            for record in last:
                await emit(record)
            shown = {_key(record) for record in last}  # of these, some came to the follower as well
            async with aclosing(follower.records()) as records:
                async for record in records:
                    if wish.takes(record) and _key(record) not in shown:
                        await emit(record)

    async def _last(self, wish: Wish, lines: int) -> list[Record]:
        return await trio.to_thread.run_sync(read_log, self._data, wish, lines)

    @contextmanager
    def _one_more_follower(self) -> Iterator[None]:
        if self._following >= MOST_FOLLOWERS:
            raise OperationFailed(f"{self._following} readers follow the log already; end one of them")
        self._following += 1
        try:
            yield
        finally:
            self._following -= 1


def _key(record: Record) -> tuple[str, str, str]:
    return record["time"], record["logger"], record["message"]


class _Follower(logging.Handler):
    """Takes records from any thread to one task."""

    def __init__(self) -> None:
        super().__init__()
        self._token = trio.lowlevel.current_trio_token()
        self._waiting: deque[Record] = deque(maxlen=FOLLOWED_LINES)
        self._missed = 0
        self._came = trio.Event()
        self.addFilter(Discretion())

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self._missed += len(self._waiting) == FOLLOWED_LINES
        self._waiting.append(as_record(record))
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._wake, idempotent=True)

    def _wake(self) -> None:
        self._came.set()

    async def records(self) -> AsyncGenerator[Record, None]:
        """One after the other as they come."""
        while True:
            await self._came.wait()
            self._came = trio.Event()
            while self._waiting:
                record = self._waiting.popleft()
                if self._missed:
                    yield record | {
                        "message": f"({self._missed} lines before this one were missed) {record['message']}"
                    }
                    self._missed = 0
                else:
                    yield record


@contextmanager
def _followed() -> Iterator[_Follower]:
    follower = _Follower()
    root = logging.getLogger()
    root.addHandler(follower)
    try:
        yield follower
    finally:
        root.removeHandler(follower)
        follower.close()
