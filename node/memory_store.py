"""A store in memory: the contract of `node.store.Store`, for tests and for what need not outlive the process.

Rule: the same promises as LevelDB's, except that nothing survives the end of the process.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping


class MemoryStore:
    """Sorted keys in a dict. Never damaged."""

    damaged = ""

    def __init__(self, values: Mapping[bytes, bytes] | None = None) -> None:
        self._values = dict(values or {})

    def get(self, key: bytes, /) -> bytes | None:
        """The value of `key`, None if there is none."""
        return self._values.get(key)

    def iterate(self, prefix: bytes = b"", start: bytes = b"", reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Pairs as they were when the walk began."""
        keys = sorted(key for key in self._values if key.startswith(prefix))
        cut = bisect_left(keys, start) if start else (len(keys) if reverse else 0)
        chosen = reversed(keys[:cut]) if reverse else keys[cut:]
        pairs = [(key, self._values[key]) for key in chosen]
        return iter(pairs)

    def snapshot(self) -> MemoryStore:
        """A copy that later writes do not change."""
        return MemoryStore(self._values)

    def write(self, batch: Mapping[bytes, bytes | None], *, sync: bool = True) -> None:
        """All of `batch` or nothing; None deletes."""
        changed = dict(self._values)
        for key, value in batch.items():
            if value is None:
                changed.pop(key, None)
            else:
                changed[key] = value
        self._values = changed

    def close(self) -> None:
        """Nothing to give back."""
