"""The real store, and wrong ones that the tests must find.

Rule: imports nothing but the store. Processes that only write are started by the dozen.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from node.acknowledged import Acknowledged
from node.store import LevelStore, Store

WRITE_BUFFER_BYTES = 64 * 1024  # LevelDB's least: files change often


class UnsyncedStore(LevelStore):
    """Wrong: nothing is ever synced."""

    def write(self, batch: Mapping[bytes, bytes | None], *, sync: bool = True) -> None:
        """Hand it to the operating system only."""
        super().write(batch, sync=False)


class LazyStore(LevelStore):
    """Wrong: says that it is written when it is only going to be."""

    def __init__(self, folder: Path, write_buffer_bytes: int) -> None:
        self._later: queue.SimpleQueue[Mapping[bytes, bytes | None]] = queue.SimpleQueue()
        self._view: dict[bytes, bytes | None] = {}
        super().__init__(folder, write_buffer_bytes)
        threading.Thread(target=self._write_later, daemon=True).start()

    def get(self, key: bytes, /) -> bytes | None:
        """What was or is going to be written."""
        return self._view[key] if key in self._view else super().get(key)

    def write(self, batch: Mapping[bytes, bytes | None], *, sync: bool = True) -> None:
        """Not now."""
        self._view |= batch
        self._later.put(dict(batch))

    def _write_later(self) -> None:
        while True:
            batch = self._later.get()
            time.sleep(0.02)
            super().write(batch)


class Forgetful(Acknowledged):
    """Wrong: leaves it to LevelDB to make the names of its files durable."""

    def note(self, writes: int) -> None:
        """Nothing."""


def _real(folder: Path) -> Store:
    return LevelStore(folder, WRITE_BUFFER_BYTES)


def _unsynced(folder: Path) -> Store:
    return UnsyncedStore(folder, WRITE_BUFFER_BYTES)


def _lazy(folder: Path) -> Store:
    return LazyStore(folder, WRITE_BUFFER_BYTES)


def _nameless(folder: Path) -> Store:
    store = LevelStore(folder, WRITE_BUFFER_BYTES)
    store._acknowledged.close()
    store._acknowledged = Forgetful(folder)
    return store


STORES = {"real": _real, "nameless": _nameless, "unsynced": _unsynced, "lazy": _lazy}
