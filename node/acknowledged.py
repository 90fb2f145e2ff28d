"""How far the ledger on disk was acknowledged, noted beside LevelDB's own files.

Rule: to LevelDB a log that ends in the middle of a record is a write that a crash cut short: it goes on without it and
says nothing. So after each synced write its number and the log's length are noted in a file of their own, and what is
found at the next start must reach at least that far. The note itself is not synced: after a power loss it may be older
than the ledger, never newer. It has two places, written in turn, so a torn one does no harm.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from node.leveldb_log import another_begins, batches_end, is_whole
from node.private_files import cut_off, sync_folder

NOTE_FILE = "ACKNOWLEDGED"

_PLACE_BYTES = 512  # a sector of the disk: written whole or not at all
_NOTE = struct.Struct(">QQQQQ")
_SUM = struct.Struct(">I")


class _Note(NamedTuple):
    """`writes` are on the disk: the last in log `number`, which is `size` bytes long. `earlier` is the log before."""

    writes: int = 0
    number: int = 0
    size: int = 0
    earlier: int = 0
    earlier_size: int = 0


class Acknowledged:
    """The note of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / NOTE_FILE
        self._note = _Note()

    def problem_before(self) -> str:
        """What is wrong with the logs, before LevelDB opens them and goes on without it; "" if nothing."""
        if not self._path.exists():
            return ""
        data = self._path.read_bytes()
        notes = [note for place in (0, _PLACE_BYTES) if (note := _read(data, place)) is not None]
        if not notes:
            return f"{NOTE_FILE} cannot be read"
        self._note = max(notes)
        for number, size in ((self._note.number, self._note.size), (self._note.earlier, self._note.earlier_size)):
            log = self._log(number)
            if log.exists() and not is_whole(log.read_bytes(), size):
                return f"{log.name} lacks records that were acknowledged"
        return ""

    def cut_torn_write(self) -> bool:
        """Take from the newest log a write that did not end. False if there is none.

        A power loss may leave any pages of it, and LevelDB would call that damage. A write begins when the one before
        is synced, so it is torn only if nothing faultless begins behind it; and it was not acknowledged.
        """
        newest = self._newest_log()
        if newest < self._note.number:
            return False
        log = self._log(newest).read_bytes() if newest else b""
        end = batches_end(log, self._note.size if newest == self._note.number else 0)
        if end == len(log) or another_begins(log, end):
            return False
        cut_off(self._log(newest), end)
        return True

    def problem_after(self, writes: int) -> str:
        """What is wrong with an open ledger whose last write has this number; "" if nothing."""
        if writes >= self._note.writes:
            return ""
        return f"{self._note.writes} writes were acknowledged, {writes} are there"

    def begin(self, writes: int) -> None:
        """The ledger is open; its last write has this number. Raises `OSError`."""
        sync_folder(self._folder)
        self._file = self._path.open("r+b" if self._path.exists() else "w+b", buffering=0)
        newest = self._newest_log()
        self._note = _Note(writes, newest, self._size(newest), 0, 0)
        self._put(0)
        self._put(1)
        os.fsync(self._file.fileno())
        sync_folder(self._folder)

    def note(self, writes: int) -> None:
        """The write with this number is synced; makes its log's name durable as well. Raises `OSError`."""
        size = self._size(self._note.number)
        if size > self._note.size:
            self._note = self._note._replace(writes=writes, size=size)
        else:  # LevelDB has begun another log, and syncs the folder only with a manifest
            newest = self._newest_log()
            sync_folder(self._folder)
            self._note = _Note(writes, newest, self._size(newest), self._note.number, self._note.size)
        self._put(writes % 2)

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def _put(self, place: int) -> None:
        self._file.seek(place * _PLACE_BYTES)
        data = _NOTE.pack(*self._note)
        self._file.write(data + _SUM.pack(zlib.crc32(data)))

    def _log(self, number: int) -> Path:
        return self._folder / f"{number:06}.log"

    def _newest_log(self) -> int:
        return max((int(path.stem) for path in self._folder.glob("*.log") if path.stem.isdigit()), default=0)

    def _size(self, number: int) -> int:
        try:
            return self._log(number).stat().st_size
        except FileNotFoundError:
            return 0


def _read(data: bytes, place: int) -> _Note | None:
    note = data[place : place + _NOTE.size]
    written = data[place + _NOTE.size : place + _NOTE.size + _SUM.size]
    if len(note) + len(written) < _NOTE.size + _SUM.size or _SUM.unpack(written)[0] != zlib.crc32(note):
        return None
    return _Note(*_NOTE.unpack(note))
