"""LevelDB's manifest, read by itself: whether its last edit may be what a power loss left of an unfinished one.

Rule: a manifest is a log whose batches are edits (LevelDB's db/version_edit.cc): tagged numbers, tables that came and
went. LevelDB writes an edit, and only then syncs the names of its tables and the edit. So after a power loss the edit
may be there, or half of it, and a table that it names may not; all that it replaces is there, for that is removed
afterwards. Without that edit the ledger is whole. Nothing here writes.
"""

from __future__ import annotations

from io import SEEK_CUR, BytesIO
from pathlib import Path

from node.leveldb_log import another_begins, batches

_LOG, _GONE, _CAME = 2, 6, 7
_FIELDS = {  # tag: what follows it, numbers (n) and strings of bytes (s)
    1: "s",  # comparator
    _LOG: "n",  # what older logs hold is in tables
    3: "n",  # next file
    4: "n",  # last sequence
    5: "ns",  # where compaction goes on
    _GONE: "nn",  # level, table
    _CAME: "nnnss",  # level, table, size, first key, last key
    9: "n",  # log before, of old versions
}
_SUFFIXES = (".ldb", ".sst")


def unfinished_edit(folder: Path) -> tuple[Path, int] | None:
    """The manifest in force and where its last edit begins, if the ledger in `folder` is whole without that one and
    only so; None otherwise. Raises `OSError`."""
    path = folder / (folder / "CURRENT").read_text(errors="replace").strip()
    if not path.is_file():
        return None
    manifest = path.read_bytes()
    ends, edits = [0], list[bytes]()
    for end, edit in batches(manifest):
        ends.append(end)
        edits.append(edit)
    if ends[-1] < len(manifest):  # the last one is torn
        return (path, ends[-1]) if _is_whole(folder, edits) and not another_begins(manifest, ends[-1]) else None
    return (path, ends[-2]) if _is_whole(folder, edits[:-1]) and not _is_whole(folder, edits) else None


def _is_whole(folder: Path, edits: list[bytes]) -> bool:
    """After these edits all tables are there, and the log of what is in none of them."""
    log, tables = 0, set[tuple[int, ...]]()
    try:
        for tag, values in (change for edit in edits for change in _changes(edit)):
            if tag == _LOG:
                log = values[0]
            elif tag == _GONE:
                tables.discard(values[:2])
            elif tag == _CAME:
                tables.add(values[:2])
    except (KeyError, IndexError):  # not an edit as we know it
        return False
    names = {path.name for path in folder.iterdir()}
    there = [any(f"{number:06}{suffix}" in names for suffix in _SUFFIXES) for _, number in tables]
    return all(there) and f"{log:06}.log" in names


def _changes(edit: bytes) -> list[tuple[int, tuple[int, ...]]]:
    """Tags and their numbers. Raises `KeyError` or `IndexError`."""
    rest, changes = BytesIO(edit), []
    while rest.tell() < len(edit):
        tag, numbers = _number(rest), list[int]()
        for kind in _FIELDS[tag]:
            number = _number(rest)
            if kind == "n":
                numbers.append(number)
            else:
                rest.seek(number, SEEK_CUR)
        changes.append((tag, tuple(numbers)))
    return changes


def _number(rest: BytesIO) -> int:
    """LevelDB's varint: seven bits a byte, the lowest first."""
    number = shift = 0
    while (byte := rest.read(1)[0]) >= 0x80:
        number |= (byte & 0x7F) << shift
        shift += 7
    return number | byte << shift
