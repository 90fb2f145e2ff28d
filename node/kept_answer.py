"""Long lists that peers read in pages, worked out once and not for each page.

Rule: the work is done beside the running node, one at a time, and kept while the same is asked for: whoever asks a
thousand times costs as much as who asks once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import trio


class KeptAnswer:
    """The last list that was asked for."""

    def __init__(self) -> None:
        self._working = trio.Lock()
        self._key: Hashable = None
        self._list: Sequence[bytes] = ()

    async def get(self, key: Hashable, work: Callable[[], Sequence[bytes]]) -> Sequence[bytes]:
        """The list under `key`; `work` makes it, in a worker thread."""
        async with self._working:
            if self._key != key:
                self._list = await trio.to_thread.run_sync(work)
                self._key = key
            return self._list
