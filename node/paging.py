"""Long lists that others read in parts.

Rule: a part fits into one answer, and whoever wants more asks again. What takes long to work out is worked out once,
beside the running node: whoever asks a thousand times costs as much as who asks once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

import trio

from protocol import params
from protocol.messages import FetchEpoch, FetchSnapshot, Ids

MAX_ANSWER_BYTES = params.MAX_FRAME_BYTES // 2  # of records in one answer

Kept = TypeVar("Kept")


class KeptAnswer(Generic[Kept]):
    """The last answer that took long."""

    def __init__(self) -> None:
        self._working = trio.Lock()
        self._last: tuple[Hashable, Kept] | None = None

    async def get(self, key: Hashable, work: Callable[[], Kept]) -> Kept:
        """The answer under `key`; `work` makes it, in a worker thread, one at a time."""
        async with self._working:
            if self._last is None or self._last[0] != key:
                self._last = (key, await trio.to_thread.run_sync(work))
            return self._last[1]


def page(ids: Sequence[bytes], request: FetchEpoch | FetchSnapshot) -> Ids:
    """The part of a list that was asked for."""
    return Ids(request.start, len(ids), tuple(ids[request.start : request.start + request.limit]))


def fitting(records: Iterable[bytes | None]) -> tuple[bytes, ...]:
    """The first of some records, as many as one answer holds; up to the first gap."""
    chosen: list[bytes] = []
    size = 0
    for record in records:
        if record is None or size + len(record) > MAX_ANSWER_BYTES:
            break
        chosen.append(record)
        size += len(record)
    return tuple(chosen)
