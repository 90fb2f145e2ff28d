"""What a power loss may leave of a folder, from the record that `disk_recorder.c` wrote.

Rule: what a finished sync covers is there. Of what was written since, any part may be there: nothing, a beginning,
pages in any order, all. Names are made, moved and taken away in the order in which it was done, up to some point: at
least as far as the last sync of their folder, and on a file system whose journal holds everything (ext4, XFS) as far as
the last sync of any file. A page is 4,096 bytes.
"""

from __future__ import annotations

import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

PAGE = 4_096
_HEAD = struct.Struct("<cQQII")


class Event(NamedTuple):
    """One recorded call. `number` is the file's inode; `offset` is the thread for a sync, a length for a truncation."""

    operation: bytes
    number: int
    offset: int
    first: bytes
    second: bytes


class Change(NamedTuple):
    """A change of a file's content, by the event's place in the record."""

    place: int
    offset: int
    data: bytes | None  # None: cut off at `offset`


class Renaming(NamedTuple):
    """A change of names: `source` to `target`; no source: `file` is made, no target: it goes away."""

    place: int
    source: str
    target: str
    file: RecordedFile | None


@dataclass(eq=False)
class RecordedFile:
    """A file's content when the record began, what was written since, and how much of that was synced."""

    base: bytes = b""
    changes: list[Change] = field(default_factory=list)
    synced: int = 0  # changes before this place in the record are on the disk

    def durable(self) -> bytes:
        """What is there for certain."""
        return changed(self.base, [change for change in self.changes if change.place < self.synced])

    def unsynced(self) -> list[Change]:
        """What may be there."""
        return [change for change in self.changes if change.place >= self.synced]


Keep = Callable[[random.Random, bytes, list[Change]], bytes]


def keep_nothing(chance: random.Random, durable: bytes, unsynced: list[Change]) -> bytes:
    """Only what was synced."""
    return durable


def keep_all(chance: random.Random, durable: bytes, unsynced: list[Change]) -> bytes:
    """Everything, as after a mere kill."""
    return changed(durable, unsynced)


def keep_beginning(chance: random.Random, durable: bytes, unsynced: list[Change]) -> bytes:
    """A random beginning of what was written, to the byte."""
    left = chance.randint(0, sum(len(change.data or b"") for change in unsynced))
    kept = []
    for change in unsynced:
        if left <= 0:
            break
        data = None if change.data is None else change.data[:left]
        kept.append(change._replace(data=data))
        left -= len(data or b"")
    return changed(durable, kept)


def keep_pages(chance: random.Random, durable: bytes, unsynced: list[Change]) -> bytes:
    """Each page as it was at a random moment since the sync, and a random length; what is missing reads as zeros."""
    moments = [chance.randint(0, len(unsynced)) for _ in range(4)] + [0, len(unsynced)]
    states = {moment: changed(durable, unsynced[:moment]) for moment in set(moments)}
    shortest, longest = sorted((len(durable), len(states[len(unsynced)])))
    size = chance.choice((longest, chance.randint(shortest, longest)))
    pages = []
    for start in range(0, size, PAGE):
        page = states[chance.choice(moments)][start : start + PAGE]
        pages.append(page.ljust(PAGE, b"\0"))
    return b"".join(pages)[:size]


KEEPS: dict[str, Keep] = {
    "nothing": keep_nothing,
    "beginning": keep_beginning,
    "pages": keep_pages,
    "all": keep_all,
}


def changed(content: bytes, changes: list[Change]) -> bytes:
    """Content after some changes."""
    result = bytearray(content)
    for _, offset, data in changes:
        if data is None:
            del result[offset:]
        else:
            result.extend(bytes(max(0, offset - len(result))))
            result[offset : offset + len(data)] = data
    return bytes(result)


class Disk:
    """A folder as it was before a process wrote to it; then, with the record, what may be left of it."""

    def __init__(self, folder: Path) -> None:
        """Everything that lies in `folder` now counts as durable."""
        self._folder = folder
        self._files = {str(path): RecordedFile(path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
        self._numbers = {path.stat().st_ino: self._files[str(path)] for path in folder.rglob("*") if path.is_file()}
        self._renamings: list[Renaming] = []
        self._names = dict(self._files)  # as the process sees them
        self._begun: dict[int, int] = {}  # thread: place at which its sync began
        self._place = 0
        self._names_synced: dict[str, int] = {}  # folder: renamings before this place are on the disk
        self._any_synced = 0

    def replay(self, record: Path) -> None:
        """Take in what the process did."""
        for event in _events(record.read_bytes() if record.exists() else b""):
            _HANDLERS[event.operation](self, event)
            self._place += 1

    def power_loss(self, chance: random.Random, keep: Keep, *, journal: bool) -> dict[str, bytes]:
        """A legal content of the folder, by path. `journal`: the sync of a file also makes all names durable."""
        certain = self._names_synced_before(journal)
        open_places = [renaming.place + 1 for renaming in self._renamings if renaming.place >= certain]
        until = certain if keep is keep_nothing else chance.choice([certain, *open_places])
        if keep is keep_all:
            until = self._place
        names = dict(self._files)
        for renaming in self._renamings:
            if renaming.place < until:
                _rename(names, renaming)
        return {path: keep(chance, file.durable(), file.unsynced()) for path, file in names.items()}

    def leave(self, contents: dict[str, bytes]) -> None:
        """Make the folder on this machine what the power loss left."""
        for path in self._folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name, content in contents.items():
            path = Path(name)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_bytes(content)

    def differences(self) -> list[str]:
        """Where the record does not lead to what lies in the folder; a process may have been one call ahead of it."""
        found = []
        contents = self.power_loss(random.Random(0), keep_all, journal=True)
        for name, content in contents.items():
            path = Path(name)
            there = path.read_bytes() if path.exists() else None
            if _is_recorded(path) and there is not None and there[: len(content)] != content:
                found.append(f"{path.name}: {len(content)} bytes in the record, {len(there)} there")
        recorded = {name for name in contents if _is_recorded(Path(name))}
        lying = {str(path) for path in self._folder.rglob("*") if path.is_file() and _is_recorded(path)}
        if len(recorded ^ lying) > 1:
            found.append(f"names differ: {sorted(recorded ^ lying)}")
        return found

    # --- events ---

    def _names_synced_before(self, journal: bool) -> int:
        # Folders here hold no folders with names of their own to lose: the ledger's folder is what counts.
        return max([*self._names_synced.values(), self._any_synced if journal else 0], default=0)

    def created(self, event: Event) -> None:
        """A name for a new, empty file."""
        file = RecordedFile()
        self._numbers[event.number] = file
        self._move(Renaming(self._place, "", event.first.decode(), file))

    def written(self, event: Event) -> None:
        """Bytes at an offset."""
        if event.number in self._numbers:
            self._numbers[event.number].changes.append(Change(self._place, event.offset, event.first))

    def cut(self, event: Event) -> None:
        """A file made shorter."""
        if event.number in self._numbers:
            self._numbers[event.number].changes.append(Change(self._place, event.offset, None))

    def sync_begun(self, event: Event) -> None:
        """From here on nothing more is certain to be in this sync."""
        self._begun[event.offset] = self._place

    def sync_ended(self, event: Event) -> None:
        """What came before its beginning is on the disk."""
        place = self._begun[event.offset]
        if event.first:
            self._names_synced[event.first.decode()] = place
        elif event.number in self._numbers:
            self._numbers[event.number].synced = place
        self._any_synced = max(self._any_synced, place)

    def renamed(self, event: Event) -> None:
        """A file gets another name."""
        self._move(Renaming(self._place, event.first.decode(), event.second.decode(), None))

    def unlinked(self, event: Event) -> None:
        """A name goes away."""
        self._move(Renaming(self._place, event.first.decode(), "", None))

    def folder_made(self, event: Event) -> None:
        """Folders are made again when something lies in them."""

    def _move(self, renaming: Renaming) -> None:
        self._renamings.append(renaming)
        _rename(self._names, renaming)


_HANDLERS: dict[bytes, Callable[[Disk, Event], None]] = {
    b"C": Disk.created,
    b"W": Disk.written,
    b"T": Disk.cut,
    b"B": Disk.sync_begun,
    b"S": Disk.sync_ended,
    b"R": Disk.renamed,
    b"U": Disk.unlinked,
    b"M": Disk.folder_made,
}


def _events(data: bytes) -> list[Event]:
    """All whole events; the last may have been cut off by the kill."""
    events, place = [], 0
    while place + _HEAD.size <= len(data):
        operation, number, offset, first, second = _HEAD.unpack_from(data, place)
        place += _HEAD.size
        if place + first + second > len(data):
            break
        parts = data[place : place + first], data[place + first : place + first + second]
        events.append(Event(operation, number, offset, *parts))
        place += first + second
    return events


def _rename(names: dict[str, RecordedFile], renaming: Renaming) -> None:
    file = names.pop(renaming.source, None) if renaming.source else renaming.file
    if renaming.target and file is not None:
        names[renaming.target] = file


def _is_recorded(path: Path) -> bool:
    """LevelDB's own notes (LOG) are written through another interface and matter to nobody."""
    return not path.name.startswith("LOG")
