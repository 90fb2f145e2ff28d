"""Where the ledger lies on disk: LevelDB through plyvel.

Rule: a write that returned is on the disk, whole; one that raised changed nothing, and after it nothing more is written
until the store is opened anew. One process has a folder. Damage is reported, never repaired in silence.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import plyvel

from node.acknowledged import Acknowledged
from node.leveldb_manifest import unfinished_edit
from node.private_files import cut_off, sync_folder

WRITE_BUFFER_BYTES = 4 * 1024 * 1024
DAMAGED_FILE = "DAMAGED"

_WRITES = b""  # the number of the last write, under the one key that no walk begins at
_FIRST_KEY = b"\0"
_NOT_LOCKED = "io error: lock "  # LevelDB's words; a lock file that may not be opened is another thing


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
        low = max(prefix, _FIRST_KEY) if reverse else max(prefix, start, _FIRST_KEY)
        high = start if reverse and start else _after(prefix)
        try:
            with self._reader.iterator(start=low, stop=high, reverse=reverse, verify_checksums=True) as pairs:
                yield from pairs
        except plyvel.Error as error:
            raise StoreDamaged(f"the ledger on disk cannot be read: {error}") from None


class LevelStore(LevelSnapshot):
    """One folder. Any thread may read; one thread at a time writes.

    Beside LevelDB's files lie a note of what was acknowledged (`Acknowledged`) and, once the folder was found damaged,
    `DAMAGED`, which says so at every later start; the folder as it was then is kept next to it.
    """

    def __init__(self, folder: Path, write_buffer_bytes: int = WRITE_BUFFER_BYTES) -> None:
        """Open or create; LevelDB begins new files after about `write_buffer_bytes`.

        Raises `StoreLocked`, `StoreDamaged` or `StoreError`.
        """
        self._folder = folder
        self._write_buffer_bytes = write_buffer_bytes
        self._failed = ""
        self._acknowledged = Acknowledged(folder)
        try:
            if not (folder / "CURRENT").exists():
                self._create()
            self.damaged = _read_text(folder / DAMAGED_FILE)
            super().__init__(self._open())
            self._writes = self._begin()
        except OSError as error:
            raise StoreError(f"the ledger in {folder} cannot be opened: {error}") from None

    def snapshot(self) -> LevelSnapshot:
        """See `Store`."""
        return LevelSnapshot(self._reader.snapshot())

    def write(self, batch: Mapping[bytes, bytes | None], *, sync: bool = True) -> None:
        """See `Store`."""
        if self._failed:
            raise StoreFailed(self._failed)
        try:
            self._write(batch, sync)
        except (plyvel.Error, OSError) as error:
            # LevelDB may have left half a record behind; what it would append after that could be lost.
            self._failed = (
                f"the ledger in {self._folder} cannot be written ({_said(error)}); nothing acknowledged is lost. "
                "Make room on the disk, then start the node again"
            )
            raise StoreFailed(self._failed) from None

    def close(self) -> None:
        """See `Store`."""
        self._reader.close()
        self._acknowledged.close()

    def _write(self, batch: Mapping[bytes, bytes | None], sync: bool) -> None:
        self._writes += 1
        with self._reader.write_batch(transaction=True, sync=sync) as pending:
            pending.put(_WRITES, self._writes.to_bytes(8, "big"))
            for key, value in batch.items():
                if value is None:
                    pending.delete(key)
                else:
                    pending.put(key, value)
        if sync:
            self._acknowledged.note(self._writes)

    # --- opening ---

    def _create(self) -> None:
        """A new ledger, made elsewhere and moved here whole: a power loss leaves none or all of it."""
        if self._folder.exists():
            remains = sorted(path.name for path in self._folder.iterdir() if not _is_harmless(path.name))
            if remains:
                raise self._unopenable(f"CURRENT is missing, {remains[0]} is there")
            shutil.rmtree(self._folder)
        _make_folders(self._folder.parent)
        made = self._folder.with_name(self._folder.name + ".new")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(mode=0o700)
        self._database(made).close()
        sync_folder(made)
        made.rename(self._folder)
        sync_folder(self._folder.parent)

    def _open(self) -> Any:
        problem = self._acknowledged.problem_before()
        if not problem:
            database, problem = self._attempt()
            for cut in (self._cut_unfinished_edit, self._acknowledged.cut_torn_write):
                if problem and cut():
                    database, problem = self._attempt()
            if not problem:
                return database
        self._found_damaged(problem)
        return self._salvaged()

    def _attempt(self) -> tuple[Any, str]:
        """The open database, or what LevelDB finds wrong with it."""
        try:
            return self._database(self._folder), ""
        except plyvel.CorruptionError as error:
            return None, _said(error)

    def _cut_unfinished_edit(self) -> bool:
        """Take from the manifest an edit that a power loss left although LevelDB had not finished it. False if there is
        none."""
        unfinished = unfinished_edit(self._folder)
        if unfinished is not None:
            cut_off(*unfinished)
        return unfinished is not None

    def _salvaged(self) -> Any:
        """What can be read is written anew by LevelDB, the rest dropped; then it is opened with all checks again."""
        try:
            self._database(self._folder, paranoid=False).close()
            return self._database(self._folder)
        except plyvel.CorruptionError as error:
            raise self._unopenable(_said(error)) from None

    def _begin(self) -> int:
        """The number of the last write that is there."""
        writes = int.from_bytes(self.get(_WRITES) or b"", "big")
        problem = self._acknowledged.problem_after(writes)
        if problem:
            self._found_damaged(problem)
        self._acknowledged.begin(writes)
        return writes

    def _found_damaged(self, problem: str) -> None:
        """Keep the folder as it is, and say so from now on. LevelDB would remove what it could not read."""
        if problem in self.damaged:
            return
        kept = _free_name(self._folder)
        shutil.copytree(self._folder, kept)
        self.damaged = "; ".join(filter(None, [self.damaged, f"{problem} (as it was: {kept.name})"]))
        with (self._folder / DAMAGED_FILE).open("w") as file:
            file.write(self.damaged)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self._folder)

    def _database(self, folder: Path, *, paranoid: bool = True) -> Any:
        try:
            return plyvel.DB(
                str(folder),
                create_if_missing=folder != self._folder,
                paranoid_checks=paranoid,
                write_buffer_size=self._write_buffer_bytes,
            )
        except plyvel.IOError as error:
            if _said(error).lower().startswith(_NOT_LOCKED):
                raise StoreLocked(
                    f"another process has the ledger in {self._folder}; stop that node, or give this one another folder"
                ) from None
            raise StoreError(f"the ledger in {self._folder} cannot be opened: {_said(error)}") from None

    def _unopenable(self, problem: str) -> StoreDamaged:
        return StoreDamaged(
            f"the ledger in {self._folder} is damaged and cannot be opened ({problem}). Nothing was removed. "
            "Move that folder away: the node then fetches the federation's log from its witness"
        )


def _said(error: Exception) -> str:
    """LevelDB's words, which come as bytes, or the system's."""
    words = error.args[0] if error.args else b""
    return words.decode(errors="replace") if isinstance(words, bytes) else str(error)


def _read_text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _is_harmless(name: str) -> bool:
    """A file that says nothing about a ledger."""
    return name in ("LOCK", "LOG", "LOG.old")


def _free_name(folder: Path) -> Path:
    """A name beside `folder` for what it holds now."""
    names = (folder.with_name(f"{folder.name}.damaged-{number}") for number in count(1))
    return next(name for name in names if not name.exists())


def _make_folders(folder: Path) -> None:
    """A folder and those above it, durable."""
    if not folder.exists():
        _make_folders(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder.parent)


def _after(prefix: bytes) -> bytes | None:
    """The first key that no longer begins with `prefix`; None if there is none."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else None
