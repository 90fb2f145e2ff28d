"""Archives of a model's folder, unpacked with care.

Rule: names stay below the folder; links, devices and files that have no place in a model are refused before anything
is written; no more bytes are written than the archive's table announces and the disk has room for.
"""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from node.models.checking import is_allowed_name, is_pickle_name
from node.models.errors import ModelError
from node.models.manifest import READ_BYTES

MOST_FILES = 2_000
MOST_DEPTH = 4
SPARE_BYTES = 100_000_000  # left free on the disk


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in an archive."""

    name: str
    bytes: int
    file: bool  # a plain file; if not, and no folder either, it is refused
    folder: bool


def unpack(archive: Path, kind: str, folder: Path) -> None:
    """Write the archive's files below `folder`, which must not exist; one folder around them all is left out. `kind` is
    the file's name, whose end tells what it is. Blocks. Raises `ModelError`."""
    try:
        with (_zip if kind.lower().endswith(".zip") else _tar)(archive) as (entries, copy):
            names = _checked(entries, folder.parent)
            for entry, name in names.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                copy(entry, target)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ModelError(f"the archive cannot be read: {error}") from None
    except OSError as error:
        raise ModelError(f"the archive cannot be unpacked to {folder}: {error}") from None


def _checked(entries: Sequence[Entry], place: Path) -> dict[str, str]:
    """The files' names in the archive, and below the folder. Raises `ModelError`."""
    if len(entries) > MOST_FILES:
        raise ModelError(f"the archive holds more than {MOST_FILES} files")
    for entry in entries:
        _check(entry)
    files = [entry for entry in entries if entry.file]
    room = shutil.disk_usage(place).free - SPARE_BYTES
    if (total := sum(entry.bytes for entry in files)) > room:
        raise ModelError(f"the archive unpacks to {total:,} bytes, and {max(room, 0):,} can be used; make room")
    names = {entry.name: _parts(entry.name) for entry in files}
    around = {parts[0] for parts in names.values()}
    cut = 1 if len(around) == 1 and all(len(parts) > 1 for parts in names.values()) else 0
    placed = {name: "/".join(parts[cut:]) for name, parts in names.items()}
    if not placed or len({name.lower() for name in placed.values()}) < len(files):
        raise ModelError("the archive holds no files, or two of the same name")
    return placed


def _check(entry: Entry) -> None:
    shown = repr(entry.name[:100])
    parts = _parts(entry.name)
    outside = entry.name.startswith("/") or "\\" in entry.name or ":" in entry.name or "\0" in entry.name
    if outside or ".." in parts or len(parts) > MOST_DEPTH or not parts:
        raise ModelError(f"the archive holds {shown}, which would lie outside its folder")
    if entry.folder:
        return
    if not entry.file:
        raise ModelError(f"the archive holds {shown}, which is a link or a device; it is not unpacked")
    if is_pickle_name(entry.name):
        raise ModelError(
            f"the archive holds the pickle {shown}, which can run a program; only safetensors and GGUF are"
        )
    if not is_allowed_name(entry.name):
        raise ModelError(f"the archive holds {shown}, which has no place in a model's folder")


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in PurePosixPath(name).parts if part != ".")


class _Copy:
    """One file out of an archive, no longer than announced."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._bytes = {entry.name: entry.bytes for entry in entries}

    def write(self, name: str, packed: IO[bytes], target: Path) -> None:
        """Raises `ModelError` if it is longer, `OSError`."""
        left = self._bytes[name]
        with target.open("xb") as file:
            while block := packed.read(READ_BYTES):
                left -= len(block)
                if left < 0:
                    raise ModelError(f"{name} in the archive is longer than announced")
                file.write(block)
        if left:
            raise ModelError(f"{name} in the archive is cut off")


@contextmanager
def _zip(path: Path) -> Iterator[tuple[list[Entry], Any]]:
    with zipfile.ZipFile(path) as archive:
        entries = [_zip_entry(info) for info in archive.infolist()]
        copier = _Copy(entries)

        def copy(name: str, target: Path) -> None:
            with archive.open(name) as packed:
                copier.write(name, packed, target)

        yield entries, copy


def _zip_entry(info: zipfile.ZipInfo) -> Entry:
    kind = stat.S_IFMT(info.external_attr >> 16)
    plain = kind in (0, stat.S_IFREG) and not info.is_dir()
    return Entry(info.filename, info.file_size, plain, info.is_dir() and kind in (0, stat.S_IFDIR))


@contextmanager
def _tar(path: Path) -> Iterator[tuple[list[Entry], Any]]:
    with tarfile.open(path) as archive:
        members: dict[str, tarfile.TarInfo] = {}
        entries: list[Entry] = []
        for info in archive:
            members[info.name] = info
            entries.append(Entry(info.name, info.size, info.isreg() and not info.issparse(), info.isdir()))
            if len(entries) > MOST_FILES:
                break
        copier = _Copy(entries)

        def copy(name: str, target: Path) -> None:
            packed = archive.extractfile(members[name])
            if packed is None:
                raise ModelError(f"{name} in the archive is no file")
            with packed:
                copier.write(name, packed, target)

        yield entries, copy
