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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

PAGE = 4_096
SECTOR = 512
_HEAD = struct.Struct("<cQQII")


class Event(NamedTuple):
    """One recorded call. `number` is the file's inode; `offset` is a length for a truncation, a thread for a sync."""

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


class NameChange(NamedTuple):
    """A name that came or went, by the event's place in the record."""

    place: int
    name: str
    entry: RecordedFile | RecordedFolder | None  # None: it goes away


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


@dataclass(eq=False)
class RecordedFolder:
    """A folder's names when the record began, and what became of them."""

    base: dict[str, RecordedFile | RecordedFolder] = field(default_factory=dict)
    changes: list[NameChange] = field(default_factory=list)
    synced: int = 0

    def names(self, until: int) -> dict[str, RecordedFile | RecordedFolder]:
        """Its names before a place in the record."""
        names: dict[str, RecordedFile | RecordedFolder | None] = dict(self.base)
        names |= {change.name: change.entry for change in self.changes if change.place < until}
        return {name: entry for name, entry in names.items() if entry is not None}

    def places(self, certain: int) -> list[int]:
        """Up to where its changes may be durable."""
        return [certain, *(change.place + 1 for change in self.changes if change.place >= certain)]


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
        self._numbers: dict[int, RecordedFile | RecordedFolder] = {}
        self._root = self._found(folder)
        self._begun: dict[int, int] = {}  # thread: place at which its sync began
        self._place = 0
        self._any_synced = 0

    def _found(self, folder: Path) -> RecordedFolder:
        made = RecordedFolder()
        self._numbers[folder.stat().st_ino] = made
        for path in folder.iterdir():
            entry = self._found(path) if path.is_dir() else RecordedFile(path.read_bytes())
            self._numbers[path.stat().st_ino] = made.base[path.name] = entry
        return made

    def replay(self, record: Path) -> None:
        """Take in what the process did."""
        for event in _events(record.read_bytes() if record.exists() else b""):
            _HANDLERS[event.operation](self, event)
            self._place += 1

    def power_loss(self, chance: random.Random, keep: Keep, *, journal: bool) -> dict[str, bytes]:
        """A legal content of the folder, by path. `journal`: the sync of any file also makes all names durable, and
        names are durable in one order for all folders."""
        until: int | None = None
        if keep is keep_all:
            until = self._place
        elif journal:
            folders = [entry for entry in self._numbers.values() if isinstance(entry, RecordedFolder)]
            places = [place for folder in folders for place in folder.places(self._any_synced)]
            until = self._any_synced if keep is keep_nothing else chance.choice(places)
        return dict(self._left(str(self._folder), self._root, chance, keep, until))

    def _left(
        self, path: str, folder: RecordedFolder, chance: random.Random, keep: Keep, until: int | None
    ) -> Iterator[tuple[str, bytes]]:
        certain = folder.synced
        own = certain if keep is keep_nothing else chance.choice(folder.places(certain))
        for name, entry in folder.names(own if until is None else max(certain, until)).items():
            if isinstance(entry, RecordedFolder):
                yield from self._left(f"{path}/{name}", entry, chance, keep, until)
            else:
                yield f"{path}/{name}", keep(chance, entry.durable(), entry.unsynced())

    def leave(self, contents: dict[str, bytes]) -> None:
        """Make the folder on this machine what the power loss left. A folder without files is not made."""
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
            if _is_recorded(path) and there is not None and not _at_most_a_call_ahead(content, there):
                found.append(f"{path.name}: {len(content)} bytes in the record, {len(there)} there")
        recorded = {name for name in contents if _is_recorded(Path(name))}
        lying = {str(path) for path in self._folder.rglob("*") if path.is_file() and _is_recorded(path)}
        if len(recorded ^ lying) > len(self._root.names(self._place)):  # each ledger's thread is ahead by one at most
            found.append(f"names differ: {sorted(recorded ^ lying)}")
        return found

    @property
    def unsynced_bytes(self) -> int:
        """How much was written that no sync covers."""
        files = [entry for entry in self._numbers.values() if isinstance(entry, RecordedFile)]
        return sum(len(change.data or b"") for file in files for change in file.unsynced())

    # --- events ---

    def created(self, event: Event) -> None:
        """A name for a new, empty file."""
        file = self._numbers[event.number] = RecordedFile()
        self._name(event.first, file)

    def folder_made(self, event: Event) -> None:
        """A name for a new, empty folder."""
        folder = self._numbers[event.number] = RecordedFolder()
        self._name(event.first, folder)

    def written(self, event: Event) -> None:
        """Bytes at an offset."""
        self._file(event).changes.append(Change(self._place, event.offset, event.first))

    def cut(self, event: Event) -> None:
        """A file made shorter."""
        self._file(event).changes.append(Change(self._place, event.offset, None))

    def sync_begun(self, event: Event) -> None:
        """From here on nothing more is certain to be in this sync."""
        self._begun[event.offset] = self._place

    def sync_ended(self, event: Event) -> None:
        """What came before its beginning is on the disk."""
        place = self._begun[event.offset]
        self._numbers[event.number].synced = place
        self._any_synced = max(self._any_synced, place)

    def renamed(self, event: Event) -> None:
        """A file or folder gets another name in its folder."""
        folder, name = self._parent(event.first)
        entry = folder.names(self._place).get(name)
        if entry is not None:  # LevelDB's own notes are made unseen
            self._name(event.first, None)
            self._name(event.second, entry)

    def unlinked(self, event: Event) -> None:
        """A name goes away."""
        self._name(event.first, None)

    def _file(self, event: Event) -> RecordedFile:
        file = self._numbers[event.number]
        assert isinstance(file, RecordedFile)
        return file

    def _name(self, path: bytes, entry: RecordedFile | RecordedFolder | None) -> None:
        folder, name = self._parent(path)
        folder.changes.append(NameChange(self._place, name, entry))

    def _parent(self, path: bytes) -> tuple[RecordedFolder, str]:
        folder = self._root
        *above, name = Path(path.decode()).relative_to(self._folder).parts
        for part in above:
            inner = folder.names(self._place + 1)[part]
            assert isinstance(inner, RecordedFolder)
            folder = inner
        return folder, name


_HANDLERS: dict[bytes, Callable[[Disk, Event], None]] = {
    b"C": Disk.created,
    b"M": Disk.folder_made,
    b"W": Disk.written,
    b"T": Disk.cut,
    b"B": Disk.sync_begun,
    b"S": Disk.sync_ended,
    b"R": Disk.renamed,
    b"U": Disk.unlinked,
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


def _at_most_a_call_ahead(recorded: bytes, there: bytes) -> bool:
    """What is there may have more at its end, or bytes written over others within one sector (a note)."""
    if len(there) != len(recorded):
        return there.startswith(recorded)
    starts = range(0, len(there), SECTOR)
    return sum(recorded[start : start + SECTOR] != there[start : start + SECTOR] for start in starts) <= 1


def _is_recorded(path: Path) -> bool:
    """LevelDB's own notes (LOG) are written through another interface and matter to nobody."""
    return not path.name.startswith("LOG")
