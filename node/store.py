"""Where the ledger lies on disk: LevelDB through plyvel.

Rule: a write that returned is on the disk, whole; one that raised changed nothing, and after it nothing more is written
until the store is opened anew. One process has a folder. Damage is reported, never repaired in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import plyvel

WRITE_BUFFER_BYTES = 4 * 1024 * 1024


class StoreError(Exception):
    """The disk could not do it. The message names the fix."""


class StoreLocked(StoreError):
    """Another process has this folder."""


class StoreDamaged(StoreError):
    """What lies there is not what was written."""


class StoreFailed(StoreError):
    """A write failed; nothing of it was stored."""


class Snapshot(Protocol):
    """A store as it was at one moment."""

    def get(self, key: bytes, /) -> bytes | None:
        """The value of `key`, None if there is none. Raises `StoreDamaged`."""

    def iterate(self, prefix: bytes = b"", start: bytes = b"", reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Pairs whose key begins with `prefix`, in the order of keys, from the key `start` on; with `reverse`
        downwards from `start`, which is itself left out. Raises `StoreDamaged`."""


class Store(Snapshot, Protocol):
    """A sorted mapping of bytes to bytes that outlives the process."""

    @property
    def damaged(self) -> str:
        """What was found wrong at opening; "" if nothing."""

    def snapshot(self) -> Snapshot:
        """A view that later writes do not change."""

    def write(self, batch: Mapping[bytes, bytes | None], *, sync: bool = True) -> None:
        """Store all of `batch` or nothing; None deletes. With `sync` it is on the disk when this returns.
        Blocks. Raises `StoreFailed`."""

    def close(self) -> None:
        """Give the folder back."""


class LevelSnapshot:
    """Reading side of an open database or of one of its snapshots."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def get(self, key: bytes, /) -> bytes | None:
        """See `Snapshot`."""
        try:
            value: bytes | None = self._reader.get(key, verify_checksums=True)
        except plyvel.Error as error:
            raise StoreDamaged(f"the ledger on disk cannot be read: {error}") from None
        return value

    def iterate(self, prefix: bytes = b"", start: bytes = b"", reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """See `Snapshot`."""
        low = prefix if reverse else max(prefix, start)
        high = start if reverse and start else _after(prefix)
        try:
            with self._reader.iterator(start=low or None, stop=high, reverse=reverse, verify_checksums=True) as pairs:
                yield from pairs
        except plyvel.Error as error:
            raise StoreDamaged(f"the ledger on disk cannot be read: {error}") from None


class LevelStore(LevelSnapshot):
    """One folder. Any thread may read; one thread at a time writes."""

    def __init__(self, folder: Path, write_buffer_bytes: int = WRITE_BUFFER_BYTES) -> None:
        """Open or create; LevelDB begins new files after about `write_buffer_bytes`.

        Raises `StoreLocked`, `StoreDamaged` or `StoreError`.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._write_buffer_bytes = write_buffer_bytes
        self._failed = ""
        self.damaged = ""
        super().__init__(self._open())

    def snapshot(self) -> LevelSnapshot:
        """See `Store`."""
        return LevelSnapshot(self._reader.snapshot())

    def write(self, batch: Mapping[bytes, bytes | None], *, sync: bool = True) -> None:
        """See `Store`."""
        if self._failed:
            raise StoreFailed(self._failed)
        try:
            with self._reader.write_batch(transaction=True, sync=sync) as pending:
                for key, value in batch.items():
                    if value is None:
                        pending.delete(key)
                    else:
                        pending.put(key, value)
        except (plyvel.Error, OSError) as error:
            # LevelDB may have left half a record behind; what it would append after that could be lost.
            self._failed = (
                f"the ledger in {self._folder} cannot be written ({error}); nothing acknowledged is lost. "
                "Make room on the disk, then start the node again"
            )
            raise StoreFailed(self._failed) from None

    def close(self) -> None:
        """See `Store`."""
        self._reader.close()

    def _open(self) -> Any:
        try:
            return self._database(paranoid=True)
        except plyvel.CorruptionError as error:
            self.damaged = str(error)
        try:
            return self._database(paranoid=False)
        except plyvel.CorruptionError as error:
            raise StoreDamaged(
                f"the ledger in {self._folder} is damaged and cannot be opened ({error}). Nothing was changed. "
                "Move that folder away: the node then fetches the federation's log from its witness"
            ) from None

    def _database(self, *, paranoid: bool) -> Any:
        try:
            return plyvel.DB(
                str(self._folder),
                create_if_missing=True,
                paranoid_checks=paranoid,
                write_buffer_size=self._write_buffer_bytes,
            )
        except plyvel.IOError as error:
            if "lock" in str(error).lower():
                raise StoreLocked(
                    f"another process has the ledger in {self._folder}; stop that node, or give this one another folder"
                ) from None
            raise StoreError(f"the ledger in {self._folder} cannot be opened: {error}") from None


def _after(prefix: bytes) -> bytes | None:
    """The first key that no longer begins with `prefix`; None if there is none."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else None
